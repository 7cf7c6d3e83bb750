"""Keeping a worker softly for a wide function, before patience runs out.

Where small functions fill every gap, a function that takes most of a worker comes late, even if
it is the most urgent: it never finds enough free at a time. So for the most urgent of such
functions the worker that has room for it soonest is kept. What is more urgent still goes first;
of the rest, that worker gets what ends in time or runs beside it, so there must be an estimate of
that time. A soft reservation becomes a hard one when its queue's debt reaches patience.
"""

from __future__ import annotations

from collections.abc import Sequence

from handoff_dask.placement.costs import Cost
from handoff_dask.placement.entities import Entry, Queue, Reservation, Worker
from handoff_dask.placement.ready_queues import ReadyQueues
from handoff_dask.placement.reservations import choose, drain

# Soft reservations buy 1.7 % of the suite's makespan once durations are known, up to 8.0 % of a
# workload's: tests/benchmarks/bench_ablation.py.

#: At most so many workers are softly kept at a time: with more, too much stays idle. One would cost
#: 0.3 %, four 0.8 %.
_KEPT = 2
#: A function is wide if it takes this share of some resource of the worker: two such functions
#: do not fit, and what is left is for small ones. 0.5 would cost 0.1 %, 0.8 would cost 0.2 %.
_WIDE = 0.6
#: In a larger cluster, some worker is about to have room anyway. Bounds the cost.
_MANY_WORKERS = 64


class SoftReserver:
    """Reserves workers softly."""

    def __init__(self, ready: ReadyQueues) -> None:
        self._ready = ready

    def keep(self, queue: Queue) -> None:
        """Keep a worker for the head of a queue that found no room, if it is worth it.

        The least urgent head that has one kept gives way.
        """
        ready = self._ready
        # Most queues end here: this is asked for each that finds no room.
        if not self._wide_somewhere(queue.cost) or queue.reservations:
            return
        head = queue.head()
        if (
            head is None
            or not head.function.measured
            or _saturated(queue)
            or len(ready.fleet.workers) > _MANY_WORKERS
        ):
            return
        soft = [r for r in ready.reserved.values() if r.soft]
        last: Reservation | None = None
        if len(soft) >= _KEPT:
            last = max(soft, key=_head)
            if _head(last) < head:
                return
        reservation = choose(queue, ready.fleet.sample(), ready.now)
        if (
            reservation is None
            or reservation.at is None
            or not _wide(queue.cost, reservation.worker.shape.capacity)
            or _gapless(reservation.worker, queue.cost)
        ):
            return
        if last is not None:
            ready.cancel(last)
        reservation.soft = True
        ready.reserve(reservation)

    def refresh(self, worker: Worker) -> None:
        """Estimate anew when a worker that is softly kept has room.

        The worker is released if the time is unknown, or if its function may not start anyway.
        """
        reservation = worker.reservation
        if reservation is None or not reservation.soft:
            return
        queue = reservation.queue
        drained = drain(worker, queue.cost, self._ready.now)
        if drained is None or drained[0] is None or _saturated(queue):
            self._ready.cancel(reservation)
        else:
            reservation.at, _, reservation.extra = drained
            reservation.beside.clear()

    def _wide_somewhere(self, cost: Cost) -> bool:
        fleet = self._ready.fleet
        if cost.wide_epoch != fleet.epoch:
            cost.wide_epoch = fleet.epoch
            cost.wide = any(_wide(cost, capacity) for capacity in fleet.shapes)
        return cost.wide


def _head(reservation: Reservation) -> Entry:
    head = reservation.queue.head()
    assert head is not None  # a queue that is empty has no reservations
    return head


def _saturated(queue: Queue) -> bool:
    return queue.run is not None and queue.run.saturated


def _wide(cost: Cost, capacity: Sequence[int]) -> bool:
    # The slot does not count: nobody takes less of it.
    for i, amount in cost.rest:
        if _WIDE * capacity[i] <= amount <= capacity[i]:
            return True
    return False


def _gapless(worker: Worker, cost: Cost) -> bool:
    # A function of the same cost leaves it just the room it needs, so that it misses no gap;
    # besides, short ones are handed ahead there, which a reservation would forbid. Nor is there
    # a gap if a single function has all of something.
    return cost in worker.counts or (
        len(worker.placed) == 1 and any(worker.free[i] <= 0 for i, _ in cost.items)
    )
