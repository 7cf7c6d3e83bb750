"""Text of the command line, as the values that functions and workers take."""

from __future__ import annotations

import collections.abc
import datetime
import enum
import inspect
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from handoff_dask.cli.failing import Problem

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_LISTS = (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable)


def call(factory: Callable[..., Any], arguments: Sequence[str], name: str) -> Any:
    """Call a function with arguments of the form ``name=value``.

    Each value becomes what the parameter's annotation says or, without one, what its default is.

    Parameters
    ----------
    factory, arguments
        The function, and the text.
    name
        What messages call the function.

    Raises
    ------
    Problem
        An argument is unknown, missing, given twice, or no value of its type.
    """
    signature = inspect.signature(factory)
    try:
        hints = typing.get_type_hints(factory)
    except Exception:
        hints = {}  # annotations that only type checkers can resolve
    named = {
        p.name: p
        for p in signature.parameters.values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    rest = next((p for p in signature.parameters.values() if p.kind == p.VAR_KEYWORD), None)
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key.isidentifier():
            raise Problem(f"the argument {argument!r} is not of the form name=value")
        if key in values:
            raise Problem(f"the argument {key!r} of {name} is given twice")
        parameter = named.get(key, rest)
        if parameter is None:
            takes = ", ".join(named) or "none"
            raise Problem(f"{name} takes no argument {key!r}; its arguments are: {takes}")
        wanted = hints.get(parameter.name, _type_of(parameter.default))
        try:
            values[key] = convert(text, wanted)
        except ValueError as error:
            raise Problem(f"the argument {key!r} of {name}: {error}") from None
    missing = [p.name for p in named.values() if p.default is p.empty and p.name not in values]
    if missing:
        raise Problem(
            f"{name} needs the argument {missing[0]!r}: give it after --, as {missing[0]}=VALUE"
        )
    return factory(**values)


def _type_of(default: Any) -> Any:
    return type(default) if isinstance(default, (bool, int, float)) else str


def convert(text: str, wanted: Any) -> Any:
    """Return a text as a value of a type.

    Raises
    ------
    ValueError
        It is none.

    Examples
    --------
    >>> convert("3", int), convert("yes", bool), convert("1,2.5", list[float])
    (3, True, [1.0, 2.5])
    >>> convert("none", int | None) is None
    True
    """
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if wanted in (str, Any, object, inspect.Parameter.empty):
        return text
    if origin in (typing.Union, types.UnionType):
        return _one_of(text, inner)
    if origin is typing.Literal:
        for choice in inner:
            if text == str(choice):
                return choice
        raise ValueError(f"{text!r} is none of {', '.join(map(repr, inner))}")
    if origin is typing.Annotated:
        return convert(text, inner[0])
    if (origin or wanted) in _LISTS:
        items = [convert(item.strip(), inner[0] if inner else str) for item in text.split(",")]
        kind = origin or wanted
        return kind(items) if isinstance(kind, type) and kind in _LISTS[:4] else items
    if (origin or wanted) in (dict, collections.abc.Mapping):
        return _json_object(text)
    return _scalar(text, wanted)


def _one_of(text: str, members: Sequence[Any]) -> Any:
    if type(None) in members and text.lower() in ("", "none"):
        return None
    problem = ValueError(f"{text!r} is not a value it takes")
    for member in sorted(members, key=lambda member: member is str):
        if member is not type(None):
            try:
                return convert(text, member)
            except ValueError as error:
                problem = error
    raise problem


def _json_object(text: str) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{text!r} is not a JSON object")
    return found


def _scalar(text: str, wanted: Any) -> Any:
    name = getattr(wanted, "__name__", str(wanted))
    if wanted is bool:
        if text.lower() in (*_TRUE, *_FALSE):
            return text.lower() in _TRUE
        raise ValueError(f"{text!r} is neither true nor false")
    try:
        if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
            return wanted[text] if text in wanted.__members__ else wanted(text)
        if isinstance(wanted, type) and issubclass(wanted, (datetime.date, datetime.time)):
            return wanted.fromisoformat(text)
        return wanted(text)
    except Exception:
        raise ValueError(f"{text!r} is not {_article(name)} {name}") from None


def _article(name: str) -> str:
    return "an" if name[:1].lower() in "aeiou" else "a"


def worker(text: str) -> tuple[str | None, Mapping[str, float]]:
    """Return the name, if it has one, and the capabilities of a worker.

    Parameters
    ----------
    text
        ``"cpu=4,memory=8000,gpu=1"``: cores, MB, units; ``name=...`` is what a pin may call it.

    Raises
    ------
    ValueError
        A part is not of that form.

    Examples
    --------
    >>> worker("cpu=4,memory=8000")
    (None, {'cpu': 4.0, 'memory': 8000.0})
    """
    name: str | None = None
    capabilities: dict[str, float] = {}
    for part in text.split(","):
        key, equals, amount = (piece.strip() for piece in part.partition("="))
        if not equals or not key or not amount:
            raise ValueError(f"{part!r} is not of the form resource=amount")
        if key.lower() in capabilities or (key == "name" and name is not None):
            raise ValueError(f"{key!r} is given twice")
        if key == "name":
            name = amount
            continue
        try:
            number = float(amount)
        except ValueError:
            raise ValueError(f"the amount of {key!r} is {amount!r}, which is no number") from None
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f"the amount of {key!r} must be finite and not below 0, not {amount}")
        capabilities[key.lower()] = number
    return name, capabilities
