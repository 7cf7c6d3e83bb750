from __future__ import annotations

import pytest

from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import FunctionSpec, WorkerSpec
from handoff_dask.placement.simulation import simulate
from tests.benchmarks.workloads import WORKERS, workloads
from tests.placement.conftest import Driver


@pytest.mark.parametrize("workload", workloads(), ids=lambda workload: workload.name)
def test_with_known_durations_the_estimate_is_close(workload) -> None:
    """Until a tenth of the run is left, it is off by less than a factor of 1.5."""
    specs = [FunctionSpec(t.id, t.cost, t.parents, code=t.code) for t in workload.tasks]
    workers = [WorkerSpec(n, n, "h", offer, int(offer["cpu"])) for n, offer in WORKERS.items()]
    engine = Engine()
    estimates: list[tuple[float, float | None]] = []
    poll = engine.poll

    def watched(now):
        decisions = poll(now)
        estimates.append((now, engine.questions.remaining("simulated", now)))
        return decisions

    engine.poll = watched  # type: ignore[method-assign]
    seconds = {task.id: task.seconds for task in workload.tasks}
    makespan = simulate(specs, workers, seconds, engine=engine).makespan
    assert estimates[-1][1] == 0.0
    for now, estimate in estimates:
        if now < 0.9 * makespan:
            assert estimate is not None
            assert (makespan - now) / 1.5 < estimate < 1.5 * (makespan - now)


def test_it_is_learned_as_functions_end() -> None:
    """Unknown at first; then what is left of those that run, and of those that wait."""
    d = Driver({"a": {"cpu": 2}})
    d.specs(*(FunctionSpec(i, {"cpu": 1}, code="same") for i in range(9)))
    assert d.engine.questions.remaining("run", 0.0) is None
    d.ready(*range(9))
    assert set(d.places()) == {0, 1}
    assert d.engine.questions.remaining("run", 0.0) is None
    d.end(0, after=4.0, duration=4.0)
    d.end(1, duration=4.0)
    d.places()
    left = d.engine.questions.remaining("run", 4.0)
    assert left == pytest.approx(7 * 4 / 2, rel=0.15)
    assert d.engine.questions.remaining("run", 6.0) == pytest.approx(left - 2.0, rel=0.15)
    assert d.engine.questions.remaining("run", 1e6) >= 5 * 4 / 2, "what has not started remains"


def test_limits_and_missing_workers_count() -> None:
    """A run that may use one thread takes as long as it does there; without workers, who knows."""
    d = Driver({"a": {"cpu": 8}}, run={"max_concurrency": 1})
    d.specs(*(FunctionSpec(i, {"cpu": 1}, code="c", expected=2.0) for i in range(5)))
    d.ready(*range(5))
    d.places()
    assert d.engine.questions.remaining("run", 0.0) == pytest.approx(10.0, rel=0.1)
    d.engine.worker_removed("a")
    assert d.engine.questions.remaining("run", 0.0) is None
    with pytest.raises(KeyError, match="nothing"):
        d.engine.questions.remaining("nothing", 0.0)


def test_a_run_that_ended_takes_no_more_time() -> None:
    """Nothing is left, also if nobody knows how long it took."""
    d = Driver({"a": {"cpu": 1}})
    d.add({"f": {"cpu": 1}})
    d.places()
    d.end("f")
    assert d.engine.questions.remaining("run", 0.0) == 0.0


def test_asking_changes_nothing() -> None:
    """The estimate is the same whether it was asked for all the time or never before."""
    estimates: list[list[float | None]] = [[], []]
    for asked, answers in zip((range(16), (15,)), estimates, strict=True):
        d = Driver({"a": {"cpu": 2}})
        for i in range(0, 24, 3):
            d.engine.duration_known(i, 2.0 + i)
        d.specs(*(FunctionSpec(i, {"cpu": 1}, code=f"c{i % 2}", token=i) for i in range(24)))
        d.ready(*range(24))
        running = list(d.places())
        for turn in range(16):
            d.end(running.pop(0), after=2.0, duration=2.0 + turn / 16)
            running += d.places()
            if turn in asked:
                answers.append(d.engine.questions.remaining("run", 2.0 * turn))
    assert estimates[0][-1] == pytest.approx(estimates[1][-1])
    assert estimates[1][-1] is not None
