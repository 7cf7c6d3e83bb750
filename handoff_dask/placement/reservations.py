"""Keeping a busy worker for a function that is too big for what is free.

A worker that is reserved gets nothing but what ends before the reserved function can start, or
runs beside it. So the function starts in bounded time: once what it waits for has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from handoff_dask.placement.ledger import Cost, Worker
    from handoff_dask.placement.queues import Queue
    from handoff_dask.placement.runs import Function

__all__ = ["Reservation", "choose", "drain", "share"]


class Reservation:
    """A worker kept for the head of a queue."""

    __slots__ = ("at", "extra", "queue", "worker")

    def __init__(self, queue: Queue, worker: Worker, at: float | None, extra: list[int]) -> None:
        self.queue = queue
        self.worker = worker
        #: When it should have room (s); None: unknown.
        self.at = at
        #: What it should have free beside the reserved cost then.
        self.extra = extra

    def admits(self, function: Function, now: float) -> bool:
        """Whether `function` would not delay what the worker is kept for."""
        seconds = function.seconds
        if self.at is not None and seconds is not None and now + seconds <= self.at:
            return True
        return function.cost.fits(self.extra)


def drain(worker: Worker, cost: Cost, now: float) -> tuple[float | None, int, list[int]] | None:
    """When a busy worker has room for a cost if it gets nothing more.

    Returns
    -------
    at
        Seconds, by the estimated ends; None if one of them is unknown.
    ended
        How many claims must end for it.
    extra
        What is free beside the cost then.
    """
    free = list(worker.free)
    ends: list[tuple[float, int, Function]] = []
    for function in worker.placed:
        seconds = function.seconds
        if seconds is None:
            end = float("inf")
        else:
            end = function.started + seconds
            if end < now:
                # Past its estimate: what took long tends to take longer.
                end = now + 0.5 * (now - function.started)
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
    return (None if at == float("inf") else at), ended, free


def choose(queue: Queue, workers: Iterable[Worker], now: float) -> Reservation | None:
    """Reserve the worker that has room for the queue's cost soonest."""
    best: Reservation | None = None
    best_score = (float("inf"), 0)
    for worker in workers:
        if (
            not worker.running
            or worker.reservation is not None
            or worker.address == queue.avoid
            or not queue.need.fits(worker.shape.capacity)
        ):
            continue
        found = drain(worker, queue.cost, now)
        if found is None:
            continue
        at, ended, extra = found
        score = (1e300 if at is None else at, ended)
        if best is None or score < best_score:
            best, best_score = Reservation(queue, worker, at, extra), score
    return best


def share(taken: Mapping[int, int], of: Cost, worker: Worker) -> float:
    """How much of a worker is taken of what `of` lacks there; 0 if it lacks something else."""
    free = worker.free
    most = 0.0
    for i, amount in of.items:
        if i in taken:
            part = taken[i]
            if free[i] - part < amount:
                part_of_all = part / worker.shape.capacity[i]
                if part_of_all > most:
                    most = part_of_all
    return most
