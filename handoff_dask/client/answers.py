"""How to annotate what is a value with a synchronous client, and an awaitable with another.

Distributed has one class for both kinds of client, so types cannot tell which of the two a call
returns. They allow both uses: the answer is an instance of the value's type, and can be awaited
for it. At run time it is either the value or an awaitable; these classes have no instances.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeAlias, TypeVar

K = TypeVar("K")
V = TypeVar("V")

#: A value of a type that has no subclasses, such as bool or None, or an awaitable of one.
ScalarAnswer: TypeAlias = Any


class DictAnswer(dict[K, V], Awaitable[dict[K, V]]):
    """A dict, or an awaitable of one."""


class ListAnswer(list[V], Awaitable[list[V]]):
    """A list, or an awaitable of one."""
