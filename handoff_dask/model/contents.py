"""Finds and replaces objects in a function's arguments, also inside lists, tuples, sets, dicts."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

_PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None)})
_SIMPLE = _PLAIN | {FunctionType, BuiltinFunctionType, type}


def are_plain(values: Iterable[Any]) -> bool:
    """Whether all values are plain numbers, text or None."""
    return _PLAIN.issuperset(map(type, values))


def are_simple(values: Iterable[Any]) -> bool:
    """Whether all values are plain, functions or classes: a quick check before `contents`."""
    return _SIMPLE.issuperset(map(type, values))


def contents(values: Iterable[Any], *, closures: bool = False) -> Iterator[Any]:
    """Yield values and what they contain, at any depth, except plain numbers, text and None.

    Visits the contents of lists, tuples, sets, partial calls, the values of dicts, the objects of
    bound methods and, if asked to, the closures of functions, each once. Objects of other types are
    not opened.

    Examples
    --------
    >>> [len(value) for value in contents([1, "text", [2, {"k": (3, 4)}]])]
    [2, 1, 2]
    """
    pending = list(values)
    seen: set[int] = set()
    while pending:
        value = pending.pop()
        kind = type(value)
        if kind in _PLAIN:
            continue
        yield value
        # Not isinstance(), which believes an object's __class__.
        inner: Iterable[Any]
        if issubclass(kind, (list, tuple, set, frozenset)):
            inner = value
        elif issubclass(kind, dict):
            inner = value.values()
        elif issubclass(kind, functools.partial):
            inner = (value.func, *value.args, *value.keywords.values())
        elif kind is MethodType:
            inner = (value.__self__,)
        elif closures and kind is FunctionType:
            inner = [*(value.__defaults__ or ()), *_closure(value)]
        else:
            continue
        if id(value) not in seen:
            seen.add(id(value))
            if not are_plain(inner):  # a long list of numbers, for example
                pending.extend(inner)


def _closure(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # it is empty
            yield cell.cell_contents


class Replacing:
    """Replaces objects of one or several types anywhere in the contents of a value.

    Numbers, text and None cannot be replaced. A container without any such object is returned
    unchanged. An object that occurs twice is replaced by one object. Bound methods are not opened,
    because their object cannot be replaced.

    Examples
    --------
    >>> Replacing(range, list)([range(2), ("x", range(1)), 3.0])
    [[0, 1], ('x', [0]), 3.0]
    """

    def __init__(self, kind: type | tuple[type, ...], replace: Callable[[Any], Any]) -> None:
        self._kind = kind
        self._replace = replace
        #: {id of an object: (the object, to keep it alive, its replacement)}.
        self._replaced: dict[int, tuple[Any, Any]] = {}

    def __call__(self, value: Any) -> Any:
        """Return a value with the objects in it replaced."""
        if type(value) in _PLAIN:
            return value
        if isinstance(value, self._kind):
            return self._replace(value)
        if id(value) not in self._replaced:
            self._replaced[id(value)] = value, value  # for containers that contain themselves
            self._replaced[id(value)] = value, self._inside(value)
        return self._replaced[id(value)][1]

    def _inside(self, value: Any) -> Any:
        kind = type(value)
        if issubclass(kind, dict):
            items = {key: self(item) for key, item in value.items()}
            if all(items[key] is item for key, item in value.items()):
                return value
            if kind is dict:
                return items
            changed = copy.copy(value)
            dict.update(changed, items)  # a Counter's own would add
            return changed
        if issubclass(kind, functools.partial):
            keywords = self(value.keywords)
            func, args = self(value.func), self(value.args)
            same = func is value.func and args is value.args and keywords is value.keywords
            return value if same else kind(func, *args, **keywords)
        if not issubclass(kind, (list, tuple, set, frozenset)):
            return value
        if are_plain(value):
            return value
        parts = [self(item) for item in value]
        if all(new is old for new, old in zip(parts, value, strict=True)):
            return value
        if issubclass(kind, tuple):
            return tuple.__new__(kind, parts)  # also for named tuples
        if kind in (list, set) or issubclass(kind, frozenset):
            return kind(parts)
        changed = copy.copy(value)
        changed.clear()
        (changed.extend if issubclass(kind, list) else changed.update)(parts)
        return changed
