"""What must hold in an engine at any time."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from handoff_dask.placement import soft_reservations
from handoff_dask.placement.engine import Engine
from handoff_dask.placement.entities import PLACED, QUEUED


def invariants(engine: Engine, excess: Set[str] = frozenset()) -> None:
    """Check that the engine's books agree with each other.

    `excess`: workers whose claims may exceed their capacity, as it shrank or others took it.
    """
    ready, fleet = engine._ready, engine._fleet
    placed: dict[Any, int] = {}
    for worker in fleet.workers.values():
        free = list(worker.shape.capacity)
        counts: dict[Any, int] = {}
        for f in worker.placed:
            assert f.worker is worker and f.state == PLACED and f not in worker.ahead
            placed[f.run] = placed.get(f.run, 0) + 1
            items = f.cost.rest if f in worker.seceded else f.cost.items
            if f not in worker.seceded:
                counts[f.cost] = counts.get(f.cost, 0) + 1
            for i, amount in items:
                free[i] -= amount
        for items in worker.foreign.values():
            for i, amount in items:
                free[i] -= amount
        assert worker.free == free, worker
        assert worker.counts == counts
        assert worker.seceded <= worker.placed.keys()
        assert len({f.cost for f in worker.ahead}) <= 1, "functions ahead are of one cost"
        for f in worker.ahead:
            assert f.worker is worker and f.state == PLACED
            placed[f.run] = placed.get(f.run, 0) + 1
        if not worker.ahead:
            assert abs(worker.ahead_work) < 1e-6
        if worker.address not in excess:
            assert min(free) >= 0, f"{worker} is over-committed"
        assert worker in worker.shape.workers
        for group in worker.groups:
            assert group.worker is worker
        assert set(worker.promised) <= set(worker.groups)
        for queue in worker.watchers:
            assert worker in queue.watched and queue.live
        if worker.reservation is not None:
            assert ready.reserved[worker] is worker.reservation
            assert worker.reservation in worker.reservation.queue.reservations
            if worker.reservation.soft:
                assert worker.running
                assert worker.reservation.queue.reservations == [worker.reservation]
        bucket = fleet.index.where.get(worker)
        if bucket is not None and worker not in fleet.index.changed | fleet.touched:
            assert worker.open and bucket.free == tuple(worker.free)
    for run in engine._runs.values():
        assert len(run.placed) == placed.get(run, 0)
        assert run.limit is None or len(run.placed) <= run.limit
        for f in run.functions.values():
            assert (f.queue is not None) == (f.state == QUEUED)
            assert (f.worker is not None) == (f.state == PLACED) == (f in run.placed)
    live = [*ready.anywhere, *ready.tied]
    assert sum(q.live for q in live) == sum(f.state == QUEUED for f in engine._functions.values())
    assert ready.unclosed.keys() == {q for q in ready.anywhere if not q.closed}
    for queue in live:
        functions = queue.functions()
        assert queue.live == len(functions) > 0
        assert all(f.queue is queue and f.cost is queue.cost for f in functions)
        assert queue.head() == queue.entry(functions[0])
        assert not queue.opened
    assert {r.worker for q in live for r in q.reservations} == ready.reserved.keys()
    assert sum(r.soft for r in ready.reserved.values()) <= soft_reservations._KEPT
    for group, worker in {
        (f.group, f.group.worker) for f in engine._functions.values() if f.group is not None
    }:
        assert worker is None or group in worker.groups


def nothing_overlooked(engine: Engine) -> None:
    """Check that after a poll no ready function could start.

    Not on a worker that is free for all, nor on one that is softly kept for a less urgent one.
    """
    ready, fleet = engine._ready, engine._fleet
    for queue in [*ready.anywhere, *ready.tied]:
        if queue.run is not None and queue.run.saturated:
            continue
        for worker in fleet.candidates(queue.pin, None):
            if queue.bound is not None and worker is not queue.bound:
                continue
            kept = worker.reservation
            if kept is not None and kept.soft:
                # Of very many queues, some are looked at when a worker changes, not all.
                passes = queue.head() < kept.queue.head() and ready.size_classes is None
                mine = kept.queue is queue
                room = (passes or mine) and worker.running and not worker.ahead
                room = room and min(worker.free) >= 0
            else:
                room = worker.open
            if room and queue.cost.fits(worker.free):
                if queue.need.fits(worker.shape.capacity):
                    assert worker.address in fleet.barred(queue), (queue, worker)
