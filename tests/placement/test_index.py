from __future__ import annotations

import pytest

from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import FunctionSpec, WorkerSpec

COSTS = [{"cpu": 1 + i % 4, "memory": 100 * (1 + i)} for i in range(20)]


def checks_per_decision(n_workers: int, ready: int) -> tuple[float, float]:
    """Return comparisons of a cost with a worker or bucket: per placement in the initial fill,
    and per decision with full workers."""
    engine = Engine()
    for i in range(n_workers):
        capacity = {"cpu": 8, "memory": 16000 if i % 2 else 8000}
        engine.worker_added(WorkerSpec(f"w{i}", f"n{i}", "h", capacity, 8))
    engine.run_opened("run")
    specs = [FunctionSpec(i, COSTS[i % 20]) for i in range(ready + 500)]
    engine.functions_added("run", specs)
    for i in range(ready):
        engine.function_ready(i, 0.0)
    placed = [d.key for d in engine.poll(0.0)]
    index = engine._fleet.index
    fill = index.checks / len(placed)
    before = index.checks
    for i in range(500):
        engine.attempt_ended(placed[i], 1.0 + i, done=True)
        engine.function_ready(ready + i, 1.0 + i)
        placed += [d.key for d in engine.poll(1.0 + i)]
    return fill, (index.checks - before) / 500


def test_a_decision_scans_neither_workers_nor_functions() -> None:
    """Comparisons per decision depend on the number of costs, not on workers or functions."""
    for n_workers, ready in [(10, 2_000), (300, 8_000)]:
        fill, steady = checks_per_decision(n_workers, ready)
        assert fill < 60, (n_workers, ready)
        assert steady < 80, (n_workers, ready)


def test_equal_workers_are_compared_once() -> None:
    """A thousand idle workers of one kind are one bucket."""
    engine = Engine()
    for i in range(1000):
        engine.worker_added(WorkerSpec(f"w{i}", f"n{i}", "h", {"cpu": 8}, 8))
    engine.run_opened("run")
    engine.functions_added("run", [FunctionSpec("f", {"cpu": 1})])
    engine.function_ready("f", 0.0)
    engine.poll(0.0)
    # Once in the index, by kind; a worker each time it is looked at would be 1,000.
    assert engine._fleet.index.checks <= 10


@pytest.mark.parametrize("strategy", ["packed", "load_balanced", "first_available"])
def test_every_strategy_scales(strategy: str) -> None:
    """Filling many workers takes few comparisons per placement under each strategy."""
    engine = Engine()
    for i in range(500):
        engine.worker_added(WorkerSpec(f"w{i}", f"n{i}", "h", {"cpu": 8, "memory": 9}, 8))
    engine.run_opened("run", strategy=strategy)
    costs = [{"cpu": 1 + i % 3, "memory": i % 2} for i in range(3000)]
    engine.functions_added("run", [FunctionSpec(i, c) for i, c in enumerate(costs)])
    for i in range(3000):
        engine.function_ready(i, 0.0)
    placed = engine.poll(0.0)
    assert engine._fleet.index.checks / len(placed) < 40
