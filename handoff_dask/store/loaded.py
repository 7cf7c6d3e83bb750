"""Whether this process has loaded the code that results are named by.

A worker keeps a module as it was when it imported it. If the module has been edited since, then
functions that are sent by their names run the old code, and the client knows the new.
"""

from __future__ import annotations

import dis
import functools
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from handoff_dask.errors import StoreError
from handoff_dask.learning.identity import fingerprint

#: What compiles code otherwise: then versions cannot be told apart.
_COMPILER = *sys.version_info[:2], sys.flags.optimize

_CONSTANTS = (type(None), bool, int, float, complex, str, bytes)
_CALLABLES = (FunctionType, staticmethod, classmethod, property, functools._lru_cache_wrapper)


def loaded(labels: Iterable[str]) -> dict[str, str]:
    """Return what tells versions of functions and constants apart, by module and qualified name.

    Left out is what this process has not imported, and values that may change while functions run.

    Examples
    --------
    >>> loaded(["json.decoder.NaN", "json.decoder", "not.imported"])
    {'json.decoder.NaN': 'nan'}
    """
    contents = {label: _content(_value(label)) for label in labels}
    return {label: content for label, content in contents.items() if content is not None}


def packed(store: str, code: Mapping[str, str]) -> bytes:
    """Pack the URL of a store, and what is loaded at the client, for :func:`check`."""
    return pickle.dumps((store, _COMPILER, code))


def check(expected: bytes) -> None:
    """Raise StoreError if this process has loaded other code than the client."""
    store, compiler, code = _unpacked(expected)
    here = loaded(code) if compiler == _COMPILER else {}
    others = [name for name in here if here[name] != code[name] and not _is_assigned(name)]
    if others:
        raise StoreError(
            store,
            f"the worker runs another version of {', '.join(sorted(others))} than the client has, "
            "and would store its result under the name of the client's. If a module was edited, "
            "restart the workers, with client.restart()",
        )


_unpacked: Callable[[bytes], tuple[str, Any, dict[str, str]]] = lru_cache(1000)(pickle.loads)


def _value(label: str) -> Any:
    """Return what a label names; a module if there is no such thing, or none was imported."""
    home, names = label, list[str]()
    while home and home not in sys.modules:
        home, _, name = home.rpartition(".")
        names.insert(0, name)
    value: Any = sys.modules.get(home, sys)
    for name in names:
        value = getattr(value, "__dict__", {}).get(name, sys)  # runs no code of the user's
    return value


def _content(value: Any) -> str | None:
    """Return a text that stands for a function or a constant; None for anything else."""
    functions = list(_functions(value))
    return " ".join(map(_function, functions)) if functions else _constant(value)


def _functions(value: Any) -> Iterator[FunctionType]:
    """Yield a function and those that it wraps."""
    seen = set[int]()
    while isinstance(value, _CALLABLES) and id(value) not in seen:
        seen.add(id(value))
        if isinstance(value, FunctionType):
            yield value
        value = value.fget if isinstance(value, property) else getattr(value, "__wrapped__", None)


def _function(function: FunctionType) -> str:
    named = sorted((function.__kwdefaults__ or {}).items())
    defaults = _constant((function.__defaults__ or (), tuple(named)))
    return f"{_fingerprint(function.__code__)} {defaults}"


def _constant(value: Any) -> str | None:
    if type(value) is tuple:
        parts = list(map(_constant, value))
        return None if None in parts else repr(parts)
    return repr(value) if type(value) in _CONSTANTS else None


_fingerprint = lru_cache(maxsize=10_000)(fingerprint)


def _is_assigned(label: str) -> bool:
    """Whether functions of a module assign to this global of it: then its value may change."""
    home, _, name = label.rpartition(".")
    module = sys.modules.get(home)
    return module is not None and any(
        name in _assigned(code) for code in _codes(vars(module), home)
    )


def _codes(namespace: Mapping[str, Any], home: str) -> Iterator[CodeType]:
    """Yield the code of the functions and methods that are defined in a module."""
    for value in list(namespace.values()):
        yield from (function.__code__ for function in _functions(value))
        if isinstance(value, type) and value.__module__ == home:
            yield from _codes(vars(value), home)


def _assigned(code: CodeType) -> Iterator[str]:
    """Yield the names of the globals that a function assigns to."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            yield instruction.argval
        elif isinstance(instruction.argval, CodeType):
            yield from _assigned(instruction.argval)
