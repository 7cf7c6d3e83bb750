"""Who has claimed how much of what.

Amounts are integers of a billionth of a unit: sums are exact, so nothing drifts, and "fits" needs
no tolerance. A cost is rounded down and a capacity up, so that six times a sixth fits into one.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

from handoff_dask.placement.events import THREADS, WorkerSpec

if TYPE_CHECKING:
    from handoff_dask.placement.index import Bucket
    from handoff_dask.placement.queues import Queue
    from handoff_dask.placement.reservations import Reservation
    from handoff_dask.placement.runs import Function, Group

__all__ = ["SLOT", "UNIT", "Cost", "Resources", "Shape", "Worker"]

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
        "amounts", "footprint", "footprint_epoch", "items", "queue", "rest", "wide", "wide_epoch",
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
        #: Where functions of this cost queue that may run anywhere; most do.
        self.queue: Queue | None = None

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

    __slots__ = ("_by_items", "_by_parts", "index", "names")

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


class Shape:
    """A capacity, interned: workers of equal capacity share one."""

    __slots__ = ("capacity", "workers")

    def __init__(self, capacity: tuple[int, ...]) -> None:
        self.capacity = capacity
        #: Registered workers of this shape, in no order.
        self.workers: dict[Worker, None] = {}


class Worker:
    """A registered worker and what is claimed of it."""

    __slots__ = (
        "address", "ahead", "ahead_work", "bucket", "counts", "foreign", "free", "groups", "host",
        "identity", "name", "order", "placed", "promised", "promoted", "reservation",
        "running", "seceded", "shape", "slots", "spec_capacity", "watchers",
    )  # fmt: skip

    def __init__(self, spec: WorkerSpec, shape: Shape, order: int) -> None:
        self.address = spec.address
        self.name = spec.name
        self.host = spec.host
        #: What it is known by should it restart.
        self.identity = spec.address if spec.identity is None else spec.identity
        self.running = spec.running
        self.spec_capacity = dict(spec.capacity)
        self.slots = spec.slots
        self.shape = shape
        #: Place in the stable order of registration.
        self.order = order
        self.free = list(shape.capacity)
        #: Functions here with a claim, in order of placement.
        self.placed: dict[Function, None] = {}
        #: Functions handed over ahead, without a claim, in order; all of one cost.
        self.ahead: dict[Function, None] = {}
        #: Functions that left `ahead` for a claim since the last poll.
        self.promoted: list[Function] = []
        #: Seconds of work that `ahead` stands for.
        self.ahead_work = 0.0
        #: Claims with a slot, by cost.
        self.counts: dict[Cost, int] = {}
        #: Of `placed`: those that gave their slot back.
        self.seceded: set[Function] = set()
        #: Claims of others: key -> items.
        self.foreign: dict[Hashable, tuple[tuple[int, int], ...]] = {}
        #: Collocation groups bound here.
        self.groups: dict[Group, None] = {}
        #: What groups bound here will want and have not claimed yet.
        self.promised: dict[Group, Cost] = {}
        self.reservation: Reservation | None = None
        #: Queues that can only go to a few workers, this one among them, and wait.
        self.watchers: dict[Queue, None] = {}
        self.bucket: Bucket | None = None

    def __repr__(self) -> str:
        """Name the worker."""
        return f"<Worker {self.address}>"

    @property
    def open(self) -> bool:
        """Whether it may get functions of any kind now.

        Not while functions wait on it ahead: Dask's worker looks at the head of its queue
        only, so another would wait behind what it does not compete with. Not while it has
        less than is claimed of it: what shrank must fit again first.
        """
        return (
            self.running
            and not self.ahead
            and self.reservation is None
            and self.free[SLOT] > 0
            and min(self.free) >= 0
        )

    def take(self, items: tuple[tuple[int, int], ...]) -> None:
        """Take these amounts from what is free."""
        free = self.free
        for i, amount in items:
            free[i] -= amount

    def give(self, items: tuple[tuple[int, int], ...]) -> None:
        """Give these amounts back."""
        free = self.free
        for i, amount in items:
            free[i] += amount

    def claim(self, function: Function) -> None:
        """Let `function` run here."""
        cost = function.cost
        free = self.free
        for i, amount in cost.items:
            free[i] -= amount
        self.placed[function] = None
        counts = self.counts
        counts[cost] = counts.get(cost, 0) + 1

    def release(self, function: Function) -> None:
        """Let `function` go, whether it had a claim or waited ahead.

        Which of the functions ahead the worker started is unknown and does not matter: they
        cost the same. So if one of them ends that we thought waiting, it swaps places with
        one that we thought running.
        """
        if function in self.ahead:
            self._unqueue(function)
            return
        del self.placed[function]
        if function in self.seceded:
            self.seceded.discard(function)
            self.give(function.cost.rest)
        else:
            self.give(function.cost.items)
            self._uncount(function.cost)
        if self.ahead:
            self.promote()

    def secede(self, function: Function) -> None:
        """Let `function` give its slot back and keep its cost."""
        if function in self.ahead:
            # It runs, so one that we thought running still waits: nothing changes in sum.
            other = next((f for f in self.placed if f.cost is function.cost), None)
            self._unqueue(function)
            if other is None or other in self.seceded:
                self.claim(function)
            else:
                del self.placed[other]
                self.placed[function] = None
                self.ahead[other] = None
                self.ahead_work += other.seconds or 0.0
            self.promoted.append(function)
        if function in self.placed and function not in self.seceded:
            self.seceded.add(function)
            self._uncount(function.cost)
            self.free[SLOT] += UNIT
            self.promote()

    def promote(self) -> None:
        """Start what waits ahead as far as it fits, as the worker itself does."""
        while self.running and self.ahead and min(self.free) >= 0:
            function = next(iter(self.ahead))
            if not function.cost.fits(self.free):
                return
            self._unqueue(function)
            self.claim(function)
            self.promoted.append(function)

    def reshape(self, shape: Shape) -> None:
        """Change the capacity; what is claimed stays claimed."""
        old = self.shape.capacity
        new = shape.capacity
        self.free += [0] * (len(new) - len(self.free))
        for i, amount in enumerate(new):
            self.free[i] += amount - (old[i] if i < len(old) else 0)
        self.shape = shape
        self.promote()

    def _unqueue(self, function: Function) -> None:
        # Which of them it is in truth is unknown: it stands for an average one.
        self.ahead_work -= self.ahead_work / len(self.ahead)
        del self.ahead[function]

    def _uncount(self, cost: Cost) -> None:
        left = self.counts[cost] - 1
        if left:
            self.counts[cost] = left
        else:
            del self.counts[cost]
