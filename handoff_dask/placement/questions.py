"""Answers to those who ask why a function does not run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from handoff_dask.placement.events import Counts, Waiting
from handoff_dask.placement.ledger import UNIT
from handoff_dask.placement.runs import DELAYED, DONE, FRESH, PLACED, QUEUED

if TYPE_CHECKING:
    from handoff_dask.placement.placer import Placer
    from handoff_dask.placement.runs import Function, Run

__all__ = ["counts", "why"]


def counts(run: Run) -> Counts:
    """Count the functions of a run by where they are."""
    held = delayed = ahead = done = 0
    for function in run.functions.values():
        state = function.state
        if state == PLACED:
            assert function.worker is not None
            ahead += function in function.worker.ahead
        elif state == DONE:
            done += 1
        elif state in (DELAYED, FRESH, QUEUED):
            held += 1
            delayed += state == DELAYED
    waiting = len(run.functions) - held - run.placed - done
    return Counts(waiting, held, delayed, run.placed - ahead, ahead, done)


def why(function: Function, placer: Placer) -> Waiting | None:
    """Say why a ready function is not placed; None if it is not ready, or placed."""
    if function.state not in (DELAYED, FRESH, QUEUED):
        return None
    cluster = placer.cluster
    if function.state == DELAYED:
        until = next(
            (when for when, _, f, stamp in placer.timers if f is function and stamp == f.stamp), None
        )
        return Waiting("delay", until=until)
    if not cluster.workers:
        return Waiting("no workers")
    if function in placer.unbound:
        assert function.binds is not None and function.binds.group is not None
        group = function.binds.group
        since = function.stuck_at
        return Waiting(
            "binding",
            until=None if since is None else since + function.run.patience,
            finding=cluster.finding(group.need, group.pin),
        )
    queue = function.queue
    if queue is None:
        return Waiting("next")
    if not cluster.able(queue):
        pin = queue.pin if queue.bound is None else queue.bound.address
        until = None if queue.since is None else queue.since + function.run.patience
        return Waiting("impossible", until=until, finding=cluster.finding(queue.need, pin))
    if function.run.saturated:
        return Waiting("max_concurrency")
    candidates = cluster.workers.values() if queue.able is None else queue.able
    able = [w for w in candidates if queue.need.fits(w.shape.capacity)]
    addresses = tuple(w.address for w in able)
    if queue.deferred:
        until = next(
            (when for when, _, f, stamp in placer.timers if f is function and stamp == f.stamp), None
        )
        return Waiting("data", addresses, until=until)
    running = [w for w in able if w.running]
    if not running:
        return Waiting("paused", addresses)
    roomy = [w for w in running if queue.cost.fits(w.free) and min(w.free) >= 0]
    if any(w.open for w in roomy):
        return Waiting("next", tuple(w.address for w in roomy if w.open))
    if roomy:
        reason = "reserved" if any(w.reservation is not None for w in roomy) else "ahead"
        return Waiting(reason, tuple(w.address for w in roomy))
    names = cluster.resources.names
    short = {
        names[i]: (amount / UNIT, max(0, *(w.free[i] for w in running)) / UNIT)
        for i, amount in queue.cost.items
        if all(w.free[i] < amount for w in running)
    }
    return Waiting("resources", addresses, short)
