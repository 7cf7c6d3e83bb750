"""Reserving a busy worker for a function that is too big for what is free.

A worker that is reserved gets nothing but what ends before the reserved function can start, or
runs beside it. So the function starts in bounded time: once what it waits for has ended. If the
reservation is soft, the worker also gets what is more urgent than the function.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice

from handoff_dask.placement.costs import Cost
from handoff_dask.placement.entities import Entry, Function, Queue, Reservation, Worker
from handoff_dask.placement.ready_queues import ReadyQueues

_NEVER = float("inf")

# What each value buys is the makespan of the suite without it: tests/benchmarks/bench_ablation.py.

#: A queue's head is overtaken until others got this much of what it lacks, in whole workers; less
#: where there are few workers. So that nothing starves. Reservations buy 0.9 %; half the patience
#: would cost 0.5 %, twice as much nothing.
_PATIENCE = 8.0
_PATIENCE_PER_WORKER = 2.0
#: One in so many of the more urgent functions counts as well. So that nothing starves; buys 0.1 %.
_URGENT = 16
#: What is as urgent counts only this much when it overtakes, because draining a worker is
#: expensive. Buys 0.5 %, up to 3.7 % of a workload, and is what users are told.
_EQUALS = 0.25
#: With more workers than this, one placement in so many is counted, times that. Bounds the cost.
_FEW = 16
_SAMPLED = 4
#: At most so many queues are charged per placement, the longest waiting first. Bounds the cost.
_CHARGED = 64
#: At most so many workers are reserved at a time, so that a large cluster stays at work.
_RESERVED = 32


def drain(worker: Worker, cost: Cost, now: float) -> tuple[float | None, int, list[int]] | None:
    """Find when a busy worker has room for a cost if it gets nothing more.

    Return that time (s, by the estimated ends; None if one of them is unknown), how many claims
    must end for it, and what is free beside the cost then. None: the worker cannot hold the cost.
    """
    free = list(worker.free)
    ends: list[tuple[float, int, Function]] = []
    for function in worker.placed:
        seconds = function.seconds
        # Not before now, if it is past its estimate.
        end = _NEVER if seconds is None else max(now, function.started + seconds)
        ends.append((end, function.seq, function))
    ends.sort()
    at = now
    ended = 0
    while not cost.fits(free):
        if ended == len(ends):
            return None
        at, _, function = ends[ended]
        items = function.cost.rest if function in worker.seceded else function.cost.items
        for i, amount in items:
            free[i] += amount
        ended += 1
    for i, amount in cost.items:
        free[i] -= amount
    return (None if at == _NEVER else at), ended, free


def choose(
    queue: Queue, workers: Iterable[Worker], now: float, *, kept: bool = False
) -> Reservation | None:
    """Choose the worker that has room for the queue's cost soonest.

    With `kept`, it may be one that is softly kept for others, if all are reserved.
    """
    best: Reservation | None = None
    best_score = (True, _NEVER, 0)
    for worker in workers:
        if (
            not worker.running
            or (worker.reservation is not None and not (kept and worker.reservation.soft))
            or queue.bars(worker)
            or not queue.need.fits(worker.shape.capacity)
        ):
            continue
        drained = drain(worker, queue.cost, now)
        if drained is None:
            continue
        at, ended, extra = drained
        score = (worker.reservation is not None, 1e300 if at is None else at, ended)
        if best is None or score < best_score:
            best, best_score = Reservation(queue, worker, at, extra), score
    return best


def _harm(waiting: Entry, placed: Entry) -> float:
    """How much of the placement of a function counts as a debt to one that waits.

    If either duration is unknown, all of it does.
    """
    head, function = waiting.function, placed.function
    if waiting.priority != placed.priority or placed < waiting or not head.rank:
        return 1.0
    if head.seconds is None or function.seconds is None:
        return 1.0
    return _EQUALS + (1 - _EQUALS) * max(0.0, 1 - function.rank / head.rank)


class Reserver:
    """Keeps track of overtaken functions and reserves workers for them."""

    def __init__(self, ready: ReadyQueues) -> None:
        self._ready = ready
        self._charged = 0

    def charge(self, function: Function, queue: Queue, worker: Worker) -> bool:
        """Count a placement as a debt to those it overtakes; True if one of them gets the worker.

        A head that is overtaken for too long gets a worker reserved.
        """
        if worker.reservation is not None and not worker.reservation.soft:
            return False
        entry = queue.entry(function)
        # Where many workers share the debts, a sample of the placements will do.
        workers = len(self._ready.fleet.workers)
        weight = 1 if workers <= _FEW else _SAMPLED
        self._charged += 1
        if self._charged % weight:
            return False
        # The more urgent are counted now and then: they, too, may only delay so long.
        aged = self._charged // weight % _URGENT == 0
        taken = dict(function.cost.items)
        free, capacity = worker.free, worker.shape.capacity
        gone = False
        patience = min(_PATIENCE, _PATIENCE_PER_WORKER * workers)
        for other in chain(
            islice(self._ready.anywhere, _CHARGED), islice(worker.watchers, _CHARGED)
        ):
            if other.opened or other is queue or not (aged or other.order.heads[0] < entry):
                continue
            # What part of the worker this takes of what the other lacks there.
            part = 0.0
            for i, amount in other.cost.items:
                taking = taken.get(i)
                if taking and free[i] - taking < amount and taking > part * capacity[i]:
                    part = taking / capacity[i]
            if not part:
                continue
            head = other.head()
            if head is None or head.priority > entry.priority or not (aged or head < entry):
                continue
            if other.need.fits(capacity):
                other.debt += weight * part * _harm(head, entry)
                if other.debt >= patience and self._reserve(other):
                    other.debt = 0.0
                    gone = gone or (worker.reservation is not None and not worker.reservation.soft)
        return gone

    def _reserve(self, queue: Queue) -> bool:
        ready = self._ready
        room = min(_RESERVED, (len(ready.fleet.workers) + 1) // 2)
        hard = sum(not reservation.soft for reservation in ready.reserved.values())
        if hard >= room or not ready.usable(queue):
            return False
        for reservation in queue.reservations:
            if reservation.soft:
                # The more urgent have delayed it long enough.
                reservation.soft = False
                return True
        if len(queue.reservations) >= queue.live:
            return False
        workers = ready.fleet.sample() if queue.able is None else queue.able
        chosen = choose(queue, workers, ready.now, kept=True)
        if chosen is None:
            return False
        ready.reserve(chosen)
        return True
