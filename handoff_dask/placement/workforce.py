"""What happens to workers, and what others use of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from itertools import chain

from handoff_dask.placement.events import WorkerSpec
from handoff_dask.placement.ledger import Worker
from handoff_dask.placement.questions import Answers
from handoff_dask.placement.runs import WAITING, Run

__all__ = ["Workforce"]


class Workforce(Answers):
    """The engine's events that concern workers."""

    def __init__(self, *, horizon: float, bandwidth: float, latency: float) -> None:
        super().__init__(horizon=horizon, bandwidth=bandwidth, latency=latency)
        self._foreign: dict[Hashable, Worker] = {}

    def worker_added(self, spec: WorkerSpec) -> None:
        """Take in a worker that joined or is back; one that is registered is updated."""
        known = spec.address in self._cluster.workers
        worker = self._cluster.add(spec)
        if known:
            self._reshaped(worker)

    def worker_changed(
        self,
        address: str,
        *,
        capacity: Mapping[str, float] | None = None,
        slots: int | None = None,
    ) -> None:
        """Take in that a worker declares something else now.

        What it runs keeps its claims. If these exceed the new capacity, nothing is placed
        there until they fit again.
        """
        worker = self._worker(address)
        if capacity is not None:
            worker.spec_capacity = dict(capacity)
        if slots is not None:
            worker.slots = slots
        self._cluster.reshape(worker)
        self._reshaped(worker)

    def worker_running(self, address: str, running: bool) -> None:
        """Take in that a worker paused or is closing (False), or goes on (True)."""
        worker = self._worker(address)
        if worker.running != running:
            worker.running = running
            self._reshaped(worker)
            worker.promote()
            self._cluster.changed(worker)

    def worker_removed(self, address: str, lost_at: float | None = None) -> None:
        """Forget a worker that is gone, and all claims on it. Unknown addresses are ignored.

        Parameters
        ----------
        address
            The worker.
        lost_at
            The time, if it may come back; None if it left for good.
        """
        worker = self._cluster.workers.get(address)
        if worker is None:
            return
        placer = self._placer
        if worker.reservation is not None:
            self._board.cancel(worker.reservation)
        self._cluster.remove(worker, lost_at)
        if not self._cluster.workers:
            # Workers will join one by one: the first ones do not decide what is impossible.
            for run in self._runs.values():
                run.patience = run.patience or self._cluster.grace
        for function in chain(worker.placed, worker.ahead):
            function.state = WAITING
            function.stamp += 1
            function.worker = None
            self._left(function.run)
        for key in worker.foreign:
            del self._foreign[key]
        for group in list(worker.groups):
            placer.unbind(group)
        placer.forget_holder(worker)

    def foreign_claimed(
        self, key: Hashable, worker: str, cost: Mapping[str, float], *, slot: bool = False
    ) -> None:
        """Count what something that is not placed uses of a worker, a slot only if so told.

        It may exceed the capacity; then nothing of ours is placed there.
        """
        self.foreign_released(key)
        found = self._cluster.workers.get(worker)
        if found is not None:
            amounts = self._cluster.cost(cost)
            items = amounts.items if slot else amounts.rest
            found.foreign[key] = items
            found.take(items)
            self._foreign[key] = found
            self._cluster.touched[found] = None

    def foreign_released(self, key: Hashable) -> None:
        """Give back what something that is not ours used. Unknown keys are ignored."""
        worker = self._foreign.pop(key, None)
        if worker is not None:
            worker.give(worker.foreign.pop(key))
            worker.promote()
            self._cluster.touched[worker] = None

    def _left(self, run: Run) -> None:
        run.placed -= 1
        if run.limit is not None:
            self._board.woken.update(run.queues)

    def _reshaped(self, worker: Worker) -> None:
        """Take back what a changed worker can't keep: its reservation, groups that don't fit it."""
        placer = self._placer
        if worker.reservation is not None:
            self._board.cancel(worker.reservation)
        for group in list(worker.groups):
            answers = group.pin is None or worker in self._cluster.candidates(group.pin, None)
            if not answers or not group.need.fits(worker.shape.capacity):
                placer.unbind(group)
