from __future__ import annotations

import itertools
import random

from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import FunctionSpec, WorkerSpec


def distinct(n: int, *, workers: int = 20) -> Engine:
    """Return an engine with n ready functions of n different costs."""
    rng = random.Random(n)
    engine = Engine()
    for i in range(workers):
        engine.worker_added(WorkerSpec(f"w{i}", f"n{i}", "h", {"cpu": 8, "memory": 16000}, 8))
    engine.run_opened("run")
    costs = [{"cpu": rng.choice([1, 2, 4]), "memory": 100 + 3 * i} for i in range(n)]
    engine.functions_added("run", [FunctionSpec(i, c) for i, c in enumerate(costs)])
    for i in range(n):
        engine.function_ready(i, 0.0)
    return engine


def test_a_cost_of_its_own_for_every_function() -> None:
    """All are placed, though not all are looked at whenever one ends."""
    engine = distinct(1500)
    running = [place.key for place in engine.poll(0.0)]
    placed, now = len(running), 0.0
    index = engine._fleet.index
    checks = index.checks
    while running:
        now += 1.0
        engine.attempt_ended(running.pop(0), now, done=True)
        running += (decided := [d.key for d in engine.poll(now)])
        placed += len(decided)
        for worker in engine._fleet.workers.values():
            assert min(worker.free) >= 0
    assert placed == 1500
    # Each of the 1,500 ends looked at each of the 750 that wait on average: a million.
    assert index.checks - checks < 100 * 1500


def test_many_costs_leave_no_worker_idle() -> None:
    """What became free is used up: a worker is as full as with few costs."""
    engine = distinct(1000, workers=4)
    running = [place.key for place in engine.poll(0.0)]
    now, least = 0.0, 8.0 * 4
    while len(engine._ready.anywhere) > 300:
        now += 1.0
        engine.attempt_ended(running.pop(0), now, done=True)
        running += [d.key for d in engine.poll(now)]
        least = min(least, sum(engine.questions.claimed(f"w{i}")["cpu"] for i in range(4)))
    assert least >= 20


def test_the_most_urgent_of_a_bin_goes_first() -> None:
    """Among many costs of a size, the longest remaining path decides, but for those that waited
    too long; and nothing is left behind."""
    engine = Engine()
    engine.worker_added(WorkerSpec("w", "w", "h", {"memory": 1000}, 1))
    engine.run_opened("run")
    specs = [
        FunctionSpec(i, {"memory": 600 + i}, expected=float(i), code=f"{i}") for i in range(200)
    ]
    engine.functions_added("run", specs)
    for i in range(200):
        engine.function_ready(i, 0.0)
    order = []
    now = 0.0
    while places := engine.poll(now):
        order += [place.key for place in places]
        now += 1
        engine.attempt_ended(order[-1], now, done=True)
        assert len(places) == 1
    assert sorted(order) == list(range(200))
    assert order[:20] == list(range(199, 179, -1))
    assert sum(a < b for a, b in itertools.pairwise(order)) < 10
