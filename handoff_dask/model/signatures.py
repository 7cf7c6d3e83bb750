"""What the code of functions accepts."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping
from functools import partial
from itertools import groupby
from types import FunctionType, MethodType
from typing import Any

from handoff_dask.errors import InvalidFunctionError
from handoff_dask.model.function import Function, is_listed


def signature_of(code: Any) -> inspect.Signature | None:
    """Return the signature of a callable, or None if it has none, like some builtins."""
    # A decorator may add arguments, so its own signature comes first. Without one, as for a cached
    # function, the signature of the wrapped function applies.
    for follow in (False, True):
        try:
            return inspect.signature(code, follow_wrapped=follow)
        except (TypeError, ValueError):
            continue
    return None


def check_signatures(functions: Mapping[Hashable, Function]) -> None:
    """Raise for the first function whose arguments do not fit its code."""
    # Each kind of call is bound once: DAGs repeat a few kinds of calls many times.
    fitting: set[Any] = set()
    for function in functions.values():
        code = function.code
        positional = _positional(function) + len(function.extra_args)
        shape = (*_kind(code), positional, *function.extra_kwargs)
        if shape in fitting:
            continue
        if misfit := _misfit(function, signature_of(code), positional):
            raise InvalidFunctionError(function.id, "args", misfit)
        fitting.add(shape)


def _kind(code: Any) -> tuple[Hashable, ...]:
    """Return what codes whose signatures take the same arguments have in common."""
    if type(code) is partial and not code.__dict__:
        # Types of arguments, because a placeholder among them has its own.
        return *_kind(code.func), *map(type, code.args), "keywords", *code.keywords
    if type(code) is MethodType:
        return "method", *_kind(code.__func__)
    if type(code) is FunctionType and not (code.__dict__ or code.__kwdefaults__):
        return "function", id(code.__code__), len(code.__defaults__ or ())
    return (id(code),)


def _positional(function: Function) -> int:
    """Return how many positional arguments the `args` of a function become."""
    if function.argument_inclusion == "as_list":
        return 1
    if not any(map(is_listed, function.args)):
        return len(function.args)
    groups = groupby(function.args, is_listed)
    return sum(1 if as_list else len(list(args)) for as_list, args in groups)


def _misfit(function: Function, signature: inspect.Signature | None, positional: int) -> str | None:
    if signature is None:
        return None
    try:
        signature.bind(*[None] * positional, **function.extra_kwargs)
    except TypeError as error:
        name = getattr(function.code, "__qualname__", None) or repr(function.code)
        given = f"{positional} positional argument{'' if positional == 1 else 's'}"
        if function.extra_kwargs:
            given += f" and {', '.join(map(repr, function.extra_kwargs))}"
        return f"{name}{signature} cannot be called with {given}: {error}"
    return None
