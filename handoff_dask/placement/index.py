"""Workers with room, findable without looking at each.

Workers of equal capacity and equal free amounts stand in one bucket. A view sorts the buckets that
have room for one cost by one strategy's score. It catches up lazily, from a log of the buckets
that got a worker, so that what nobody asks for costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from operator import itemgetter

from handoff_dask.placement.costs import Cost
from handoff_dask.placement.entities import Shape, Worker
from handoff_dask.placement.strategies import Strategy

#: Views that lag more entries of the log behind than this start over. Bounds the log.
LOG = 4096


@dataclass(eq=False, repr=False, slots=True)
class Bucket:
    """Open workers of equal capacity and equal free amounts."""

    shape: Shape
    free: tuple[int, ...]
    #: Breaks ties between buckets.
    order: int
    #: The bucket of each worker that is in one.
    where: dict[Worker, Bucket]
    #: A heap of (registration order, worker), with some that left.
    workers: list[tuple[int, Worker]] = field(default_factory=list)
    size: int = 0

    def first(self) -> Worker:
        """Return the worker registered first."""
        workers, where = self.workers, self.where
        while True:
            worker = workers[0][1]
            if where.get(worker) is self:
                return worker
            heappop(workers)

    def members(self) -> list[Worker]:
        """Return its workers in order of registration."""
        return list(dict.fromkeys(w for _, w in sorted(self.workers) if self.where.get(w) is self))

    def join(self, worker: Worker) -> None:
        """Add a worker."""
        workers = self.workers
        if len(workers) > 2 * self.size + 16:
            workers[:] = sorted({(w.order, w) for _, w in workers if self.where.get(w) is self})
        self.where[worker] = self
        self.size += 1
        heappush(workers, (worker.order, worker))


@dataclass(eq=False, repr=False, slots=True)
class View:
    """The buckets with room for a cost, best first."""

    index: Index
    strategy: Strategy
    cost: Cost
    #: What the worker's capacity must hold as well, for a collocation group.
    need: Cost
    heap: list[tuple[float, int, Bucket]] = field(default_factory=list)
    #: Score of each bucket met; None: no room. A bucket with a score is in the heap.
    known: dict[Bucket, float | None] = field(default_factory=dict)
    cursor: int = 0
    epoch: int = -1
    #: Epoch in which somebody last asked.
    used: int = 0

    def best(self) -> Bucket | None:
        """Return the best bucket that has a worker."""
        index = self.index
        if index.changed:
            index.catch_up()
        if self.epoch != index.epoch or self.cursor != len(index.log):
            self._catch_up()
        heap = self.heap
        while heap:
            score, _, bucket = heap[0]
            if not bucket.size:
                heappop(heap)
                self.known.pop(bucket, None)
            elif self.strategy.score is None and bucket.first().order != score:
                # Its first worker left, or one before it came.
                order = bucket.first().order
                self.known[bucket] = order
                heapreplace(heap, (order, bucket.order, bucket))
            else:
                return bucket
        return None

    def buckets(self) -> list[Bucket]:
        """Return all buckets with room, best first."""
        self.best()
        return list(
            dict.fromkeys(b for _, _, b in sorted(self.heap, key=itemgetter(0, 1)) if b.size)
        )

    def _catch_up(self) -> None:
        index = self.index
        log = index.log
        if self.epoch != index.epoch:
            self.known.clear()
            self.heap.clear()
            self.epoch = self.used = index.epoch
            fresh = list(index.buckets.values())
        else:
            fresh = log[self.cursor :]
        self.cursor = len(log)
        known = self.known
        heap = self.heap
        items = self.cost.items
        score_of = self.strategy.score
        for bucket in fresh:
            if not bucket.size:
                continue
            if bucket in known:
                old = known[bucket]
                if score_of is None and old is not None and bucket.first().order < old:
                    old = known[bucket] = bucket.first().order
                    heappush(heap, (old, bucket.order, bucket))
                continue
            index.checks += 1
            free = bucket.free
            score: float | None = None
            for i, amount in items:
                if free[i] < amount:
                    break
            else:
                capacity = bucket.shape.capacity
                if self.need is self.cost or self.need.fits(capacity):
                    if score_of is None:
                        score = bucket.first().order
                    else:
                        score = score_of(self.cost, capacity, free, index.scarce)
                    heappush(heap, (score, bucket.order, bucket))
            known[bucket] = score


class Index:
    """All open workers with room, by what they have free."""

    def __init__(self) -> None:
        self.buckets: dict[tuple[Shape, tuple[int, ...]], Bucket] = {}
        #: The bucket of each worker that is in one.
        self.where: dict[Worker, Bucket] = {}
        #: Workers that may belong elsewhere now. They are moved when somebody asks: while all
        #: workers are full, nobody does.
        self.changed: dict[Worker, None] = {}
        #: Buckets that got a worker, since the epoch began.
        self.log: list[Bucket] = []
        #: Views start over when it changes.
        self.epoch = 0
        #: Resources that not every worker offers.
        self.scarce: frozenset[int] = frozenset()
        #: Buckets compared with a cost so far; what the scaling tests count.
        self.checks = 0
        self._views: dict[tuple[Strategy, Cost, Cost], View] = {}
        self._order = 0

    def view(self, strategy: Strategy, cost: Cost, need: Cost) -> View:
        """Return the view of a cost by a strategy."""
        key = (strategy, cost, need)
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = View(self, strategy, cost, need)
        return view

    def catch_up(self) -> None:
        """Move the workers that changed to the buckets they belong to now."""
        changed = self.changed
        self.changed = {}
        for worker in changed:
            self._move(worker)

    def _move(self, worker: Worker) -> None:
        old = self.where.get(worker)
        if worker.open:
            free = tuple(worker.free)
            if old is not None:
                if old.free == free and old.shape is worker.shape:
                    return
                old.size -= 1
            key = (worker.shape, free)
            bucket = self.buckets.get(key)
            if bucket is None:
                self._order += 1
                bucket = self.buckets[key] = Bucket(worker.shape, free, self._order, self.where)
            grown = not bucket.size or worker.order < bucket.first().order
            bucket.join(worker)
            if grown:
                self.log.append(bucket)
                if len(self.log) > LOG:
                    self.restart()
        elif old is not None:
            old.size -= 1
            del self.where[worker]

    def restart(self) -> None:
        """Begin a new epoch: forget empty buckets and views that nobody asks for."""
        self._views = {k: v for k, v in self._views.items() if v.used >= self.epoch - 1}
        self.buckets = {k: b for k, b in self.buckets.items() if b.size}
        self.log.clear()
        self.epoch += 1
