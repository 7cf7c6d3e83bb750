"""Equality of records that contain users' values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields


class Comparable:
    """Equal if all fields are; values that ``==`` cannot judge, such as arrays, if identical.

    A dataclass that inherits this needs ``eq=False``.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        names = [field.name for field in fields(self)]  # type: ignore[arg-type] # each is one
        return all(_same(getattr(self, name), getattr(other, name)) for name in names)

    def __hash__(self) -> int:
        # Equal objects have equal first fields, which are ids.
        return hash(getattr(self, fields(self)[0].name))  # type: ignore[arg-type]


def _same(value: object, other: object) -> bool:
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        return value.keys() == other.keys() and all(_same(value[k], other[k]) for k in value)
    try:
        return value is other or bool(value == other)
    except Exception:
        return False
