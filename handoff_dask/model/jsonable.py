"""Converts arbitrary values to JSON."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextlib import suppress
from numbers import Integral, Real
from typing import Any

#: Most levels of nesting: a deeper value probably contains itself.
_DEPTH = 100
#: The reports of this package are nested less deeply.
_LOOSE_DEPTH = 8
#: Most items of an array; larger ones belong in other formats.
_ARRAY_SIZE = 10_000
#: Numpy's kinds of numbers, truth values and text.
_ARRAY_KINDS = "biufU"


class NotJSONError(ValueError):
    """JSON cannot hold a value."""


def exact(value: Any) -> Any:
    """Return a value as JSON if that loses nothing but its type.

    Tuples and small arrays become lists, numbers of any type int or float.

    Raises
    ------
    NotJSONError
        JSON cannot hold the value, or something in it.

    Examples
    --------
    >>> from fractions import Fraction
    >>> exact({"size": (1, Fraction(5, 2), None)})
    {'size': [1, 2.5, None]}
    >>> exact(float("nan"))
    Traceback (most recent call last):
    ...
    handoff_dask.model.jsonable.NotJSONError: JSON cannot hold a value of type float
    """
    try:
        return _exact(value, 0)
    except Exception:
        raise NotJSONError(f"JSON cannot hold a value of type {type(value).__name__}") from None


def _exact(value: Any, depth: int) -> Any:
    if value is None or type(value) in (str, bool):
        return value
    if isinstance(value, Real):
        return _number(value)
    if depth > _DEPTH:
        raise ValueError("too deep")
    if type(value) in (list, tuple):
        return [_exact(item, depth + 1) for item in value]
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: _exact(item, depth + 1) for key, item in value.items()}
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.bool_, numpy.str_)):
        return value.item()
    if numpy is not None and type(value) is numpy.ndarray:
        if value.dtype.kind in _ARRAY_KINDS and value.size <= _ARRAY_SIZE:
            return _exact(value.tolist(), depth + 1)
    raise TypeError(type(value))


def _number(value: Any) -> int | float:
    number = int(value) if isinstance(value, Integral) else float(value)
    if number != value or not math.isfinite(number):
        raise ValueError("not a JSON number")
    if isinstance(number, int) and number.bit_length() > 64:
        str(number)  # raises for numbers that Python refuses to write
    return number


def loose(value: Any, depth: int = _LOOSE_DEPTH) -> Any:
    """Return a value as JSON; what JSON cannot hold becomes text, or null for numbers.

    So many levels of lists and dicts are converted; deeper ones become text.

    Examples
    --------
    >>> loose({("a", 1): {"cpu": float("inf")}, "b": {1, 2}})
    {"('a', 1)": {'cpu': None}, 'b': '{1, 2}'}
    """
    with suppress(NotJSONError):
        return exact(value)
    if isinstance(value, Mapping) and depth:
        return {text(key): loose(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)) and depth:
        return [loose(item, depth - 1) for item in value]
    if isinstance(value, Real):
        try:
            return float(value) if math.isfinite(value) else None
        except (OverflowError, ValueError):
            return None
    return text(value)


def text(value: Any) -> str:
    """Return a string unchanged, and anything else as `shown` does.

    Examples
    --------
    >>> text("a"), text(("a", 1))
    ('a', "('a', 1)")
    """
    return str.__str__(value) if isinstance(value, str) else shown(value)


def shown(value: Any) -> str:
    """Return the `repr` of a value, or a substitute if that raises."""
    try:
        return repr(value)
    except Exception as problem:
        return f"<{type(value).__name__} whose repr raises {type(problem).__name__}>"
