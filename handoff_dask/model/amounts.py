"""Converts what users write for amounts and times, such as ``"2 GB"``, to int or float."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from numbers import Integral, Real
from typing import Any, NoReturn, Union
from weakref import WeakValueDictionary


class Auto:
    """An amount of memory that is learned from what functions of the same code have used.

    In a cost: ``{"memory": AUTO}``. It implies ``isolate=True``, because only a process of its own
    can be measured and limited.
    """

    def __repr__(self) -> str:
        return "AUTO"

    def __reduce__(self) -> str:
        return "AUTO"


AUTO = Auto()

#: What users may write for seconds.
Seconds = Union[float, str, timedelta]  # noqa: UP007 - evaluated at run time, on Python 3.10 too
#: What they may write for a cost, or for what a worker offers.
Amounts = Mapping[str, Union[float, str, Auto]]  # noqa: UP007

#: The smallest whole number that a Dask message cannot hold; sending one breaks the connection.
TOO_LARGE = 2**63

#: What a time must be, in errors.
TIME = "a number of seconds, a timedelta or text like '5 min'"


_QUANTITY = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*([a-z]+)", re.IGNORECASE)

#: Bytes by unit; the "B" of the others may be left out.
_BYTES = {"b": 1} | {
    f"{prefix}{infix}{b}": base**power
    for infix, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate("kmgtp", start=1)
    for b in ("b", "")
}
_SECONDS = {
    unit: seconds
    for seconds, units in (
        (1e-6, "us microsecond microseconds"),
        (1e-3, "ms millisecond milliseconds"),
        (1, "s sec second seconds"),
        (60, "m min minute minutes"),
        (3600, "h hr hour hours"),
        (86_400, "d day days"),
        (604_800, "w week weeks"),
    )
    for unit in units.split()
}


def is_number(value: object) -> bool:
    """Whether a value is a real number; neither a truth value nor a time of numpy's is one."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    return getattr(getattr(value, "dtype", None), "kind", None) != "m"


def as_number(value: Any) -> Any:
    """Return a number as int or float; the caller checks anything else, which is unchanged.

    Whole numbers that Dask's messages cannot hold become floats.

    Examples
    --------
    >>> from fractions import Fraction
    >>> as_number(Fraction(1, 4)), as_number(True), as_number("4")
    (0.25, True, '4')
    """
    if type(value) in (float, bool) or not is_number(value):
        return value
    with suppress(OverflowError):  # too large for a float
        if isinstance(value, Integral) and abs(int(value)) < TOO_LARGE:
            return int(value)
        return float(value)
    return value


def as_count(value: Any) -> Any:
    """Return a whole number as int; the caller checks anything else, which is unchanged."""
    if isinstance(value, Integral) and is_number(value):
        return int(value)
    return value


def as_seconds(value: Any) -> Any:
    """Return a time in seconds; the caller checks anything that is not a time, as `as_number` says.

    Raises
    ------
    ValueError
        Text whose unit cannot be read; the message says what to write.

    Examples
    --------
    >>> as_seconds("5 min"), as_seconds("250ms"), as_seconds(timedelta(hours=1)), as_seconds(30)
    (300.0, 0.25, 3600.0, 30)
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.timedelta64):
        return float(value / numpy.timedelta64(1, "s"))
    if isinstance(value, str):
        return _quantity(value, _SECONDS, TIME)
    return as_number(value)


def as_amount(resource: str, amount: Any) -> Any:
    """Return an amount of a resource as a number, memory in MB (10**6 bytes).

    The caller checks anything that is neither a number nor text.

    Raises
    ------
    ValueError
        Text for another resource than memory, or text whose unit cannot be read.

    Examples
    --------
    >>> as_amount("memory", "2 GB"), as_amount("memory", "500 MiB"), as_amount("memory", 2048)
    (2000.0, 524.288, 2048)
    """
    if not isinstance(amount, str):
        return as_number(amount)
    if resource.lower() != "memory":
        raise ValueError(
            f"the amount of {resource!r} must be a number, not {amount!r}: only memory takes text, "
            "such as '2 GB'"
        )
    form = "a number of MB, text like '2 GB' or '500 MiB', or AUTO"
    try:
        return _quantity(amount, _BYTES, form) / 1e6
    except ValueError as error:
        raise ValueError(f"the amount of {resource!r} {error}") from None


def as_amounts(amounts: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return amounts by resource, such as a cost, each converted by :func:`as_amount`.

    Raises
    ------
    ValueError
        As :func:`as_amount`.
    """
    return {name: as_amount(name, amount) for name, amount in amounts.items()}


class FixedAmounts(dict[Any, Any]):
    """Amounts by resource that cannot be changed, because many functions share them."""

    __slots__ = ("__weakref__",)

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            "the cost of a Function cannot be changed: make another Function with "
            "dataclasses.replace(function, cost={...})"
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_amounts, (dict(self),)


_shared: WeakValueDictionary[Any, FixedAmounts] = WeakValueDictionary()


def shared_amounts(amounts: Mapping[Any, Any]) -> FixedAmounts:
    """Return the same as :func:`as_amounts`, as one object for all that are the same.

    Examples
    --------
    >>> shared_amounts({"cpu": 1}) is shared_amounts({"cpu": 1})
    True
    """
    fixed = FixedAmounts(as_amounts(amounts))
    try:
        # True equals 1, but is no amount.
        return _shared.setdefault(tuple((n, type(a), a) for n, a in fixed.items()), fixed)
    except TypeError:  # something that no cost may hold cannot be hashed
        return fixed


def _quantity(text: str, units: Mapping[str, float], form: str) -> float:
    match = _QUANTITY.fullmatch(text.strip())
    factor = units.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"must be {form}, not {text!r}")
    return float(match[1]) * factor
