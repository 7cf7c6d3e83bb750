"""Handing a busy worker more than it can run, so that short functions need no round trip."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice

from handoff_dask.placement.costs import Cost
from handoff_dask.placement.entities import Entry, Function, Queue, Worker
from handoff_dask.placement.events import Decision
from handoff_dask.placement.placer import Placer
from handoff_dask.placement.ready_queues import MANY


@dataclass(eq=False, slots=True)
class Ahead:
    """The pass that commits short functions ahead, after all that fits was placed."""

    placer: Placer
    #: Seconds of work that a worker may have waiting.
    horizon: float
    #: Functions that may wait per function of their kind that it runs and that ends soon.
    most: int
    #: How many functions wait ahead on a worker, on average.
    each: int = 0

    def commit(self, came: bool, out: list[Decision]) -> None:
        """Top up the workers that changed; all of some, when functions came."""
        placer, ready = self.placer, self.placer.ready
        if self.horizon <= 0 or self.most <= 0:
            return
        if not ready.short_queues:
            return
        some = placer.fleet.sample()
        workers = placer.changed | dict.fromkeys(some) if came else placer.changed
        self.each = sum(len(worker.ahead) for worker in some) // max(1, len(some))
        for worker in workers:
            if worker.running and worker.counts and worker.reservation is None:
                while self._top_up(worker, out):
                    pass

    def _top_up(self, worker: Worker, out: list[Decision]) -> bool:
        """Commit from the most urgent queue that may use a worker; True to look at it again.

        Nothing is committed if a function of another kind could start at once, or comes first:
        it would wait behind what it does not compete with.
        """
        placer, ready = self.placer, self.placer.ready
        capacity = worker.shape.capacity
        if min(worker.free) < 0:
            return False
        waiting = next(iter(worker.ahead)).cost if worker.ahead else None
        if waiting is not None:
            # In portions: what is committed together travels together.
            slots = self._slots(worker, waiting)
            if (
                2 * len(worker.ahead) > self.most * slots
                or 2 * worker.ahead_work > self.horizon * slots
            ):
                return False
        best: Queue | None = None
        first: Entry | None = None
        second: Entry | None = None
        queues: Iterable[Queue] = ready.anywhere
        if len(ready.anywhere) > MANY:
            some = chain(islice(ready.short_queues, MANY), islice(ready.anywhere, MANY))
            queues = dict.fromkeys(queue for queue in some if queue.anywhere)
        for queue in chain(queues, worker.watchers):
            if not ready.usable(queue) or queue.bars(worker) or not queue.need.fits(capacity):
                continue
            if queue.cost is not waiting and queue.cost.fits(worker.free):
                return False
            head = queue.head()
            assert head is not None
            if first is None or head < first:
                best, first, second = queue, head, first
            elif second is None or head < second:
                second = head
        if best is None or (waiting is not None and best.cost is not waiting):
            return False
        slots = self._slots(worker, best.cost)
        if not slots:
            return False
        # Nobody gets more than a share of what there is, handed over or not.
        fair = 1 + best.live // len(placer.fleet.workers) + self.each
        most = min(self.most * slots, fair)
        budget = self.horizon * slots
        while len(worker.ahead) < most and ready.usable(best):
            head = best.head()
            if head is None or (second is not None and second < head):
                return len(worker.ahead) > 0 and second is not None
            function = placer.chooser.suited(best, head.function, worker)
            seconds = function.seconds
            if (
                seconds is None
                or seconds > ready.short
                or worker.ahead_work + seconds > budget
                or function.binds is not None
                or self._elsewhere(function, worker)
            ):
                return False
            placer.assign(function, worker, out, ahead=True)
        return False

    def _slots(self, worker: Worker, cost: Cost) -> int:
        """Return how many functions of a cost end soon; what waits behind others waits for long."""
        # A bundle does.
        soon = self.placer.ready.now + 2 * self.horizon
        return sum(
            function.cost is cost
            and function.seconds is not None
            and function.started + function.seconds <= soon
            for function in worker.placed
            if function not in worker.seceded
        )

    def _elsewhere(self, function: Function, worker: Worker) -> bool:
        """Whether another worker that holds more of the inputs will take it as soon."""
        inputs = function.inputs
        if not inputs or worker.address in inputs:
            return False
        workers = self.placer.fleet.workers
        for address in inputs:
            holder = workers.get(address)
            if (
                holder is not None
                and holder.running
                and holder.reservation is None
                and holder.ahead_work < self.horizon
                and len(holder.ahead) < self.most
            ):
                return True
        return False
