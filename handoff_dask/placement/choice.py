"""Which worker a function goes to, and which function a worker gets."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from handoff_dask.placement import reservations
from handoff_dask.placement.costs import Cost
from handoff_dask.placement.entities import Function, Queue, Worker
from handoff_dask.placement.ready_queues import ReadyQueues

#: At most so many workers are considered to wait for. Bounds the cost.
_HOLDERS = 16


class Chooser:
    """Strategy, locality and reservations, weighed."""

    def __init__(
        self, ready: ReadyQueues, *, bandwidth: float, latency: float, worth: float
    ) -> None:
        #: Seconds that waiting for the holder of inputs must save at least.
        self._worth = worth
        self._bandwidth = bandwidth
        self._latency = latency
        self._ready = ready
        self._fleet = ready.fleet
        self._index = ready.fleet.index

    def find(self, queue: Queue, function: Function) -> Worker | None:
        """Choose a worker that has room."""
        cost = queue.cost
        for reservation in queue.reservations:
            if reservation.worker.has_room(cost):
                return reservation.worker
        best: Worker | None = None
        barred = self._fleet.barred(queue)
        if queue.able is None and not queue.closed:
            view = self._index.view(function.run.strategy, cost, queue.need)
            bucket = view.best()
            if bucket is not None:
                best = bucket.first()
                if best.address in barred:
                    best = next(
                        (w for b in view.buckets() for w in b.members() if w.address not in barred),
                        None,
                    )
        else:
            least = 0.0
            for worker in self._ready.gains if queue.able is None else queue.able:
                self._index.checks += 1
                if (
                    cost.fits(worker.free)
                    and worker.open
                    and worker.address not in barred
                    and queue.need.fits(worker.shape.capacity)
                ):
                    score = self._score(function, cost, worker)
                    if best is None or score < least:
                        best, least = worker, score
        if best is not None and function.inputs:
            best = self._near(function, queue, best, barred)
        if best is None and self._ready.reserved:
            best = self._beside(queue, function, barred)
        return best

    def suited(self, queue: Queue, function: Function, worker: Worker) -> Function:
        """Choose between the head and the most urgent function whose inputs a worker holds.

        A function is as much less urgent on a worker as its inputs take to get there.
        """
        entry = queue.head_at(worker.address) if queue.local else None
        if entry is None or entry.function is function:
            return function
        other = entry.function
        if other.priority == function.priority and (
            other.rank - self._moving(other, worker.address)
            >= function.rank - self._moving(function, worker.address)
        ):
            return other
        return function

    def defers(self, function: Function, worker: Worker) -> bool:
        """Make a function wait for the worker that holds its inputs, if that is faster.

        It waits no longer than moving them would take, and only once per attempt.
        """
        ready = self._ready
        inputs = function.inputs
        assert inputs is not None
        queue = function.queue
        assert queue is not None
        if function.deferred or not queue.anywhere:
            return False
        here = self._moving(function, worker.address)
        if here <= self._worth:
            return False
        most = max(inputs, key=lambda a: inputs[a])
        saved = here - self._moving(function, most)
        if saved <= self._worth:
            return False
        best: Worker | None = None
        soonest = saved
        # Of those that hold as much, the one that has room first.
        for address in islice((a for a in inputs if inputs[a] == inputs[most]), _HOLDERS):
            holder = self._fleet.workers.get(address)
            if (
                holder is not None
                and holder is not worker
                and holder.running
                and not queue.bars(holder)
                and queue.need.fits(holder.shape.capacity)
                and self._welcome(function, worker, holder, saved)
                and (wait := self._wait(holder, queue)) < soonest
            ):
                best, soonest = holder, wait
        if best is None:
            return False
        ready.dequeue(function)
        function.deferred = True
        function.holder = best
        function.stamp += 1
        ready.enqueue(function)
        ready.timers.set(ready.now + saved, function)
        return True

    def _wait(self, holder: Worker, queue: Queue) -> float:
        """Return the seconds until a holder has room for a function; 0 if that is unknown."""
        drained = reservations.drain(holder, queue.cost, self._ready.now)
        if drained is None:
            return float("inf")
        at, _, _ = drained
        if at is None:
            return 0.0
        # Others that wait for it go first.
        ahead = sum(
            (q.order.heads[0].function.seconds or 0.0) * q.live
            for q in holder.watchers
            if q.deferred
        )
        return at - self._ready.now + ahead

    def _moving(self, function: Function, address: str) -> float:
        return function.transfer(address, self._bandwidth, self._latency)

    def _score(self, function: Function, cost: Cost, worker: Worker) -> float:
        """Return what the strategy makes of a worker that has room: the lowest is the best."""
        score = function.run.strategy.score
        if score is None:
            return worker.order
        return score(cost, worker.shape.capacity, worker.free, self._index.scarce)

    def _near(
        self, function: Function, queue: Queue, first: Worker, barred: frozenset[str]
    ) -> Worker:
        """Choose a worker with room that holds the inputs, if that is worth it."""
        inputs = function.inputs
        assert inputs is not None
        least = first_moving = self._moving(function, first.address)
        if not least:
            return first
        chosen = first
        for address in inputs:
            worker = self._fleet.workers.get(address)
            if worker is None or not worker.open or address in barred:
                continue
            moving = self._moving(function, address)
            if moving > least or not queue.cost.fits(worker.free):
                continue
            if moving == least and (
                chosen is first
                or self._score(function, queue.cost, worker)
                >= self._score(function, queue.cost, chosen)
            ):
                continue
            if not queue.need.fits(worker.shape.capacity) or (
                queue.able is not None and worker not in queue.able
            ):
                continue
            if self._welcome(function, first, worker, first_moving - moving):
                chosen, least = worker, moving
        return chosen

    def _welcome(self, function: Function, here: Worker, there: Worker, saved: float) -> bool:
        """Whether to go where the data is, although the strategy chose another worker.

        The strategy's purpose comes first, unless moving takes longer than running or the function
        prefers that worker.
        """
        if function.preferences and there in self._fleet.answering(function.preferences):
            return True
        strategy = function.run.strategy
        used = {i for i, _ in function.cost.items}
        spared, lacking = there.shape.capacity, here.shape.capacity
        spares = any(spared[i] and not lacking[i] and i not in used for i in self._index.scarce)
        return saved >= function.guess or (strategy.local and not spares)

    def _beside(self, queue: Queue, function: Function, barred: frozenset[str]) -> Worker | None:
        """Choose a reserved worker on which the function delays nobody."""
        ready = self._ready
        workers: Iterable[Worker] = ready.gains if queue.closed else ready.reserved
        for worker in workers if queue.able is None else queue.able:
            reservation = worker.reservation
            if (
                reservation is not None
                and worker.has_room(queue.cost)
                and worker.address not in barred
                and queue.need.fits(worker.shape.capacity)
                and reservation.admits(function, ready.now)
            ):
                return worker
        return None
