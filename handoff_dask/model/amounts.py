"""Numbers as users write them, such as numpy's or fractions; internally, int or float."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from numbers import Integral, Real
from typing import Any


def as_number(value: Any) -> Any:
    """Return a number as int or float; anything else unchanged, to be checked by the caller.

    Examples
    --------
    >>> from fractions import Fraction
    >>> as_number(Fraction(1, 4)), as_number(True), as_number("4")
    (0.25, True, '4')
    """
    if type(value) in (int, float, bool) or not isinstance(value, Real):
        return value
    with suppress(OverflowError):  # too large for a float
        return int(value) if isinstance(value, Integral) else float(value)
    return value


def as_numbers(amounts: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return amounts by name, such as a cost, each converted by :func:`as_number`."""
    return {name: as_number(amount) for name, amount in amounts.items()}
