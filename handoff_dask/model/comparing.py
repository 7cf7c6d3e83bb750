"""Equality and text of records that contain users' values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields


class Comparable:
    """Equal if all fields are; values that ``==`` cannot judge, such as arrays, if identical.

    The text leaves out fields that have their default. A dataclass that inherits this needs
    ``eq=False, repr=False``.
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

    def __repr__(self) -> str:
        first, *others = fields(self)  # type: ignore[arg-type]
        shown = [repr(getattr(self, first.name))]
        for field in others:
            value, default = getattr(self, field.name), field.default
            if default is MISSING and field.default_factory is not MISSING:
                default = field.default_factory()
            if type(value) is not type(default) or not _same(value, default):
                shown.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _same(value: object, other: object) -> bool:
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        return value.keys() == other.keys() and all(_same(value[k], other[k]) for k in value)
    try:
        return value is other or bool(value == other)
    except Exception:
        return False
