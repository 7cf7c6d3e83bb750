"""Converts numbers that users write, such as numpy's or fractions, to int or float."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from numbers import Integral, Real
from typing import Any

#: The smallest whole number that a Dask message cannot hold; sending one breaks the connection.
TOO_LARGE = 2**63


def as_number(value: Any) -> Any:
    """Return a number as int or float; the caller checks anything else, which is unchanged.

    Whole numbers that Dask's messages cannot hold become floats.

    Examples
    --------
    >>> from fractions import Fraction
    >>> as_number(Fraction(1, 4)), as_number(True), as_number("4")
    (0.25, True, '4')
    """
    if type(value) in (float, bool) or not isinstance(value, Real):
        return value
    with suppress(OverflowError):  # too large for a float
        if isinstance(value, Integral) and abs(int(value)) < TOO_LARGE:
            return int(value)
        return float(value)
    return value


def as_count(value: Any) -> Any:
    """Return a whole number as int; the caller checks anything else, which is unchanged."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return value


def as_numbers(amounts: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return amounts by name, such as a cost, each converted by :func:`as_number`."""
    return {name: as_number(amount) for name, amount in amounts.items()}
