"""Costs and capacities.

Amounts are integers of a billionth of a unit: sums are exact, so nothing drifts, and "fits" needs
no tolerance. A cost is rounded down and a capacity up, so that six times a sixth fits into one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from handoff_dask.placement.events import THREADS

#: Parts of one unit of a resource.
UNIT = 10**9

#: The resource every worker has and every function takes one of: a thread. Always index 0.
SLOT = 0

#: An infinite capacity: more than any sum of costs.
_ENDLESS = 10**40


def _parts(amount: float, name: str, *, up: bool) -> int:
    if not amount >= 0:  # catches NaN
        raise ValueError(f"{name!r}: {amount!r} is not a number >= 0")
    if math.isinf(amount):
        if not up:
            raise ValueError(f"{name!r}: a cost must be finite")
        return _ENDLESS
    parts = amount * UNIT
    if up:
        return math.ceil(parts)
    # What costs something must not end up costing nothing.
    return max(math.floor(parts), 1) if amount else 0


class Cost:
    """A cost, interned: one object per distinct cost of an engine."""

    __slots__ = (
        "amounts", "footprint", "footprint_epoch", "items", "rest", "wide", "wide_epoch",
    )  # fmt: skip

    def __init__(self, items: tuple[tuple[int, int], ...], amounts: Mapping[str, float]) -> None:
        #: (resource index, parts), the slot first: it is what most often does not fit.
        self.items = items
        #: The same without the slot: what a function that seceded keeps.
        self.rest = items[1:]
        self.amounts = amounts
        #: Dominant share, cached until the cluster changes.
        self.footprint = 0.0
        self.footprint_epoch = -1
        #: Whether it takes most of some worker; cached likewise.
        self.wide = False
        self.wide_epoch = -1

    def fits(self, free: Sequence[int]) -> bool:
        """Whether `free` holds it."""
        for i, amount in self.items:
            if free[i] < amount:
                return False
        return True

    def __repr__(self) -> str:
        """Name the amounts."""
        return f"Cost({dict(self.amounts)})"


class Resources:
    """Resource names as indices, and the costs made of them."""

    def __init__(self) -> None:
        self.names = [THREADS]
        self.index: dict[str, int] = {}
        self._by_items: dict[tuple[tuple[str, float], ...], Cost] = {}
        self._by_parts: dict[tuple[tuple[int, int], ...], Cost] = {}

    def number(self, name: str) -> int:
        """Return the index of a resource, new if need be."""
        i = self.index.get(name)
        if i is None:
            i = self.index[name] = len(self.names)
            self.names.append(name)
        return i

    def cost(self, amounts: Mapping[str, float]) -> Cost:
        """Return the one `Cost` of these amounts."""
        spelled = tuple(amounts.items())
        cost = self._by_items.get(spelled)
        if cost is None:
            parts = sorted(
                (self.number(name), part)
                for name, amount in spelled
                if (part := _parts(amount, name, up=False))
            )
            if len(self._by_items) > 100_000:
                # Nobody has that many costs at once; forgetting only costs interning anew.
                self._by_items.clear()
                self._by_parts.clear()
            cost = self.interned(((SLOT, UNIT), *parts))
            self._by_items[spelled] = cost
        return cost

    def interned(self, items: tuple[tuple[int, int], ...]) -> Cost:
        """Return the one `Cost` of these parts, the slot included."""
        cost = self._by_parts.get(items)
        if cost is None:
            amounts = {self.names[i]: part / UNIT for i, part in items if i != SLOT}
            cost = self._by_parts[items] = Cost(items, amounts)
        return cost

    def union(self, costs: Sequence[Cost]) -> Cost:
        """Return the element-wise maximum: what can hold each of them, one at a time."""
        most: dict[int, int] = {}
        for cost in costs:
            for i, amount in cost.items:
                most[i] = max(most.get(i, 0), amount)
        return self.interned(tuple(sorted(most.items())))

    def capacity(self, amounts: Mapping[str, float], slots: int) -> tuple[int, ...]:
        """Return a worker's capacity by index, the slots first."""
        named = {
            self.number(name): _parts(amount, name, up=True) for name, amount in amounts.items()
        }
        named[SLOT] = max(0, int(slots)) * UNIT
        return tuple(named.get(i, 0) for i in range(len(self.names)))
