"""The registered workers: who they are, what they could ever hold, and which have room."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from operator import attrgetter

from handoff_dask.placement.costs import SLOT, UNIT, Cost, Resources
from handoff_dask.placement.entities import Group, Queue, Shape, Worker
from handoff_dask.placement.events import Finding, WorkerSpec
from handoff_dask.placement.index import Index
from handoff_dask.placement.strategies import load

#: How many workers are compared where the best of all is wanted. Bounds the cost of a decision.
SAMPLE = 16


class Fleet:
    """All registered workers."""

    def __init__(self, *, grace: float) -> None:
        self.resources = Resources()
        self.index = Index()
        self.workers: dict[str, Worker] = {}
        #: Who answers to a pin: an address, a name or a host.
        self.names: dict[str, dict[Worker, None]] = {}
        self.shapes: dict[tuple[int, ...], Shape] = {}
        #: Seconds in which a lost worker may come back; by identity, when each was lost.
        self.grace = grace
        self.lost: dict[Hashable, tuple[float, Worker]] = {}
        #: Changes whenever a worker comes, goes, pauses, resumes or changes its capacity.
        self.epoch = 0
        #: Workers that changed since the last poll.
        self.touched: dict[Worker, None] = {}
        self._width = 1
        self._order = 0
        #: All workers, as a list, for `sample`.
        self._listed: list[Worker] = []
        self._listed_epoch = -1
        self._cursor = 0
        self._totals_epoch = -1
        self._totals: list[int] = []

    # -- workers come, change and go

    def add(self, spec: WorkerSpec) -> Worker:
        """Register a worker; one that is registered takes what `spec` says."""
        self.lost.pop(spec.address if spec.identity is None else spec.identity, None)
        worker = self.workers.get(spec.address)
        capacity = self.resources.capacity(spec.capacity, spec.slots)
        self._widen()
        shape = self.shapes.setdefault(capacity, Shape(capacity))
        if worker is None:
            self._order += 1
            worker = Worker(spec, shape, self._order)
            self.workers[spec.address] = worker
            shape.workers[worker] = None
        else:
            self._unname(worker)
            worker.name, worker.host = spec.name, spec.host
            worker.spec_capacity = dict(spec.capacity)
            worker.slots = spec.slots
            worker.running = spec.running
            if worker.shape is not shape:
                self._leave(worker)
                worker.reshape(shape)
                shape.workers[worker] = None
        for name in {worker.address: None, worker.name: None, worker.host: None}:
            self.names.setdefault(name, {})[worker] = None
        self.changed(worker)
        return worker

    def worker(self, address: str) -> Worker:
        """Return a registered worker; `KeyError` if there is none at that address."""
        worker = self.workers.get(address)
        if worker is None:
            raise KeyError(f"no worker {address!r}")
        return worker

    def remove(self, worker: Worker, lost_at: float | None = None) -> None:
        """Forget a worker; if it was lost, remember for a while what it could hold."""
        if lost_at is not None:
            for identity, (when, _) in list(self.lost.items()):
                if when + self.grace < lost_at:
                    del self.lost[identity]
            self.lost[worker.identity] = lost_at, worker
        del self.workers[worker.address]
        self._unname(worker)
        self._leave(worker)
        worker.running = False
        self.index.changed[worker] = None
        self.touched.pop(worker, None)
        self.epoch += 1

    def changed(self, worker: Worker) -> None:
        """Note that what a worker could hold, or whether it runs, changed."""
        self.touched[worker] = None
        self.epoch += 1

    def cost(self, amounts: Mapping[str, float]) -> Cost:
        """Return the `Cost` of these amounts."""
        cost = self.resources.cost(amounts)
        self._widen()
        return cost

    def _widen(self) -> None:
        """Make room for resources that were not known before: everybody offers 0 of them."""
        width = len(self.resources.names)
        if width == self._width:
            return
        self._width = width
        shapes = list(self.shapes.values())
        self.shapes.clear()
        for shape in shapes:
            shape.capacity += (0,) * (width - len(shape.capacity))
            known = self.shapes.setdefault(shape.capacity, shape)
            for worker in list(shape.workers):
                worker.free += [0] * (width - len(worker.free))
                if known is not shape:
                    worker.shape = known
                    known.workers[worker] = None
                self.touched[worker] = None
        self.epoch += 1

    # -- what could ever hold a cost

    def able(self, queue: Queue) -> bool:
        """Whether a registered worker could ever hold what the queue's functions need."""
        if queue.able_epoch != self.epoch:
            queue.able_epoch = self.epoch
            if queue.anywhere:
                shapes = self.shapes.values()
                queue.able = None if any(queue.need.fits(s.capacity) for s in shapes) else ()
            else:
                candidates = self.candidates(queue.pin, queue.bound)
                queue.able = tuple(w for w in candidates if queue.need.fits(w.shape.capacity))
        return queue.able is None or bool(queue.able)

    def candidates(self, pin: tuple[str, ...], bound: Worker | None) -> Collection[Worker]:
        """Return the workers that a pin or a binding leaves, in order of registration."""
        if bound is None:
            return self.answering(pin) if pin else self.workers.values()
        answers = not pin or bound in self.answering(pin)
        return (bound,) if answers and bound.address in self.workers else ()

    def answering(self, names: tuple[str, ...]) -> Collection[Worker]:
        """Return the workers that answer to one of these addresses, names or hosts."""
        if len(names) == 1:
            return self.names.get(names[0], ())
        workers = {worker for name in names for worker in self.names.get(name, ())}
        return sorted(workers, key=attrgetter("order"))

    def barred(self, queue: Queue) -> frozenset[str]:
        """Return the workers that a queue's functions may not use now.

        Workers to avoid are included as long as another one could hold the functions: a running one
        or, if they insist, any.
        """
        if not queue.avoid:
            return queue.exclude
        barred = queue.avoid | queue.exclude
        others = any(
            (w.running or queue.insist)
            and w.address not in barred
            and queue.need.fits(w.shape.capacity)
            for w in self.candidates(queue.pin, queue.bound)
        )
        return barred if others else queue.exclude

    def finding(self, need: Cost, names: tuple[str, ...] = ()) -> Finding:
        """Who could ever hold a need, of those that answer to these names, or what is missing."""
        candidates = sorted(self.candidates(names, None), key=attrgetter("order"))
        pin = names if len(names) > 1 else names[0] if names else None
        able = tuple(w.address for w in candidates if need.fits(w.shape.capacity))
        if able:
            return Finding(able, pin)
        pin_known = pin is None or bool(candidates)
        nearest: Worker | None = None
        least = float("inf")
        for worker in candidates or self.workers.values():
            capacity = worker.shape.capacity
            lack = sum(max(0.0, (amount - capacity[i]) / amount) for i, amount in need.items)
            if lack < least:
                nearest, least = worker, lack
        if nearest is None:
            return Finding((), pin, pin_known)
        capacity = nearest.shape.capacity
        resources = self.resources.names
        shortfall = {
            resources[i]: (amount / UNIT, capacity[i] / UNIT)
            for i, amount in need.items
            if capacity[i] < amount
        }
        name = nearest.name if nearest.name != nearest.address else None
        return Finding((), pin, pin_known, nearest.address, shortfall, name)

    def hope(self, need: Cost, pin: tuple[str, ...]) -> float:
        """Return until when a lost worker that could hold a need may come back."""
        until = -float("inf")
        for when, worker in self.lost.values():
            if not pin or not {worker.address, worker.name, worker.host}.isdisjoint(pin):
                if need.fits(self.resources.capacity(worker.spec_capacity, worker.slots)):
                    until = max(until, when + self.grace)
        return until

    # -- choosing

    def sample(self) -> list[Worker]:
        """Return some workers to compare, others each time when there are many."""
        if self._listed_epoch != self.epoch:
            self._listed_epoch = self.epoch
            self._listed = list(self.workers.values())
        workers = self._listed
        if len(workers) <= SAMPLE:
            return list(workers)
        start = self._cursor = (self._cursor + SAMPLE) % len(workers)
        some = workers[start : start + SAMPLE]
        return some + workers[: SAMPLE - len(some)]

    def promise(self, group: Group, near: Worker) -> Worker | None:
        """Choose the worker to bind a group to before any of it runs.

        One that has the need free, what others were promised set aside, else any that is able. Of
        these, one that the group prefers, then `near` if it has room, then the least loaded.
        """
        need = group.need
        preferred = dict.fromkeys(self.answering(group.preferred))
        if group.pin:
            candidates = dict.fromkeys(self.answering(group.pin))
        else:
            candidates = {near: None, **preferred, **dict.fromkeys(self.sample())}
        best: Worker | None = None
        best_score = (2, 0, 0.0)
        for worker in candidates:
            capacity = worker.shape.capacity
            if not worker.running or not need.fits(capacity):
                continue
            free = list(worker.free)
            for promised in worker.promised.values():
                for i, amount in promised.items:
                    free[i] -= amount
            if need.fits(free) and not worker.ahead:
                score = (
                    0,
                    worker not in preferred,
                    -1.0 if worker is near else load(capacity, free),
                )
            else:
                score = (1, worker not in preferred, load(capacity, free))
            if best is None or score < best_score:
                best, best_score = worker, score
        return best

    def footprint(self, cost: Cost) -> float:
        """Return the dominant share of all that running workers offer."""
        if cost.footprint_epoch != self._totals_epoch:
            totals = self._totals
            cost.footprint_epoch = self._totals_epoch
            cost.footprint = max(
                (amount / totals[i] for i, amount in cost.rest if i < len(totals) and totals[i]),
                default=0.0,
            )
        return cost.footprint

    def totals(self) -> list[int]:
        """Return what all running workers offer of each resource, by its index."""
        self.refresh()
        return self._totals

    def refresh(self) -> None:
        """Bring what depends on the whole cluster up to date."""
        if self._totals_epoch == self.epoch:
            return
        self._totals_epoch = self.epoch
        width = len(self.resources.names)
        totals = [0] * width
        lacking: set[int] = set()
        for shape in self.shapes.values():
            running = sum(w.running for w in shape.workers)
            if running:
                for i, amount in enumerate(shape.capacity):
                    totals[i] += amount * running
                    if not amount and i != SLOT:
                        lacking.add(i)
        self._totals = totals
        scarce = frozenset(i for i in lacking if totals[i])
        if scarce != self.index.scarce:
            self.index.scarce = scarce
            self.index.restart()

    # -- inside

    def _leave(self, worker: Worker) -> None:
        shape = worker.shape
        del shape.workers[worker]
        if not shape.workers:
            self.shapes.pop(shape.capacity, None)

    def _unname(self, worker: Worker) -> None:
        for name in {worker.address, worker.name, worker.host}:
            answers = self.names.get(name)
            if answers is not None:
                answers.pop(worker, None)
                if not answers:
                    del self.names[name]
