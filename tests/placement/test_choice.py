from __future__ import annotations

import pytest

from handoff_dask.placement.events import FunctionSpec, Place, WorkerSpec
from handoff_dask.placement.simulation import simulate
from tests.placement.conftest import Driver

TWO = {"a": {"cpu": 1}, "b": {"cpu": 1}}


def test_a_free_worker_that_holds_the_inputs_wins(drive) -> None:
    """Also if the strategy alone would take another, and for small inputs."""
    d = drive({"a": {"cpu": 2}, "b": {"cpu": 2}})
    d.add({"fill": {"cpu": 1}})
    assert d.places() == {"fill": "a"}
    d.specs(FunctionSpec("f", {"cpu": 1}))
    d.ready("f", inputs={"b": 28.0})
    assert d.places() == {"f": "b"}


def test_small_inputs_do_not_override_a_strategy(drive) -> None:
    """first_available is the first; only inputs that take longer to move than to use count."""
    d = drive(TWO, run={"strategy": "first_available"})
    d.specs(FunctionSpec("f", {"cpu": 1}), FunctionSpec("g", {"cpu": 1}))
    d.ready("f", inputs={"b": 28.0})
    assert d.places() == {"f": "a"}
    d.end("f")
    d.ready("g", inputs={"b": 1e9})
    assert d.places() == {"g": "b"}


def test_cpu_work_does_not_follow_small_data_to_the_gpu(drive) -> None:
    """What is scarce is spared unless moving the inputs takes longer than the function."""
    d = drive({"gpu": {"cpu": 4, "gpu": 1}, "cpu": {"cpu": 4}})
    d.specs(*(FunctionSpec(k, {"cpu": 1}, expected=5.0, code="c") for k in "fg"))
    d.ready("f", inputs={"gpu": 1e6})
    d.ready("g", inputs={"gpu": 1e9})
    assert d.places() == {"f": "cpu", "g": "gpu"}


def test_large_inputs_are_waited_for(drive) -> None:
    """If the holder is free sooner than the inputs could be moved, the function waits for it."""
    d = drive(TWO, bandwidth=100e6)
    d.specs(FunctionSpec("busy", {"cpu": 1}, expected=3.0), FunctionSpec("f", {"cpu": 1}))
    d.ready("busy", inputs={"a": 1.0})
    assert d.places() == {"busy": "a"}
    d.ready("f", inputs={"a": 1e9})  # 10 s to move
    assert d.places() == {}
    assert d.engine.questions.why("f").reason == "data"
    d.end("busy", after=3.0)
    assert d.places() == {"f": "a"}


def test_it_waits_no_longer_than_moving_takes(drive) -> None:
    """The holder that does not get free in time is not waited for any more."""
    d = drive(TWO, bandwidth=100e6, latency=0.0)
    d.specs(FunctionSpec("busy", {"cpu": 1}), FunctionSpec("f", {"cpu": 1}))
    d.ready("busy", inputs={"a": 1.0})
    d.places()
    d.ready("f", inputs={"a": 1e9})
    assert d.places() == {}
    assert d.engine.wake_at() == 10.0
    assert d.places(after=10.0) == {"f": "b"}


def test_it_does_not_wait_if_moving_is_faster(drive) -> None:
    """A holder that is busy for longer than the transfer takes is left alone."""
    d = drive(TWO, bandwidth=100e6)
    d.specs(FunctionSpec("busy", {"cpu": 1}, expected=30.0), FunctionSpec("f", {"cpu": 1}))
    d.ready("busy", inputs={"a": 1.0})
    d.places()
    d.ready("f", inputs={"a": 1e9})
    assert d.places() == {"f": "b"}


def test_a_lost_holder_is_not_waited_for(drive) -> None:
    """What waits for a worker's data goes elsewhere when it is lost."""
    d = drive(TWO)
    d.specs(FunctionSpec("busy", {"cpu": 1}), FunctionSpec("f", {"cpu": 1}))
    d.ready("busy", inputs={"a": 1.0})
    d.places()
    d.ready("f", inputs={"a": 1e9})
    assert d.places() == {}
    d.engine.worker_removed("a")
    assert d.places() == {"f": "b"}


def test_a_shrunk_holder_is_not_waited_for(drive) -> None:
    """What waits for the data of a worker that becomes too small goes elsewhere."""
    d = drive({"a": {"cpu": 2}, "b": {"cpu": 2}}, slots=1)
    d.specs(FunctionSpec("busy", {"cpu": 1}), FunctionSpec("f", {"cpu": 2}))
    d.ready("busy", inputs={"a": 1.0})
    d.places()
    d.ready("f", inputs={"a": 1e9})
    assert d.places() == {}
    d.join("a", {"cpu": 1}, slots=1)
    assert d.poll() == [Place("f", "b")]


def test_an_input_that_many_workers_hold_is_weighed_once(drive) -> None:
    """Copies make a function no less urgent where one of them lies."""
    d = drive({"a": {"cpu": 1}}, bandwidth=100e6)
    d.specs(FunctionSpec("g", {"cpu": 1}, expected=4.0, code="g"))
    d.specs(FunctionSpec("f", {"cpu": 1}, expected=5.0, code="f"))
    d.ready("g", inputs={"a": 1e9})
    d.ready("f", inputs={"b": 1e9, "c": 1e9, "a": 1e9}, input_total=1e9)
    assert d.places() == {"f": "a"}


def test_the_size_of_all_inputs_must_be_given() -> None:
    """It cannot be forgotten: a worker's share of the inputs is never more than all of them."""
    d = Driver({"a": {"cpu": 1}})
    d.specs(FunctionSpec("f", {}))
    with pytest.raises(ValueError, match="more than all the inputs of 'f'"):
        d.engine.function_ready("f", 0.0, inputs={"a": 1.0})
    assert d.engine.questions.why("f") is None


def test_a_worker_prefers_what_it_holds(drive) -> None:
    """Among equally urgent functions, the one whose inputs are there is started."""
    d = drive(TWO)
    d.add({0: {"cpu": 1}, 1: {"cpu": 1}})
    assert d.places() == {0: "a", 1: "b"}
    d.specs(*(FunctionSpec(k, {"cpu": 1}) for k in "xy"))
    d.ready("x", inputs={"a": 8.0})
    d.ready("y", inputs={"b": 8.0})
    d.end(1)
    assert d.places() == {"y": "b"}
    d.end(0)
    assert d.places() == {"x": "a"}


def test_chains_stay_on_their_worker() -> None:
    """100 chains of 100 functions that add one hardly ever move."""
    specs = [
        FunctionSpec((c, i), {"cpu": 1}, ((c, i - 1),) if i else (), code="inc")
        for c in range(100)
        for i in range(100)
    ]
    workers = [WorkerSpec(w, w, "h", {"cpu": 2}, 2) for w in "ab"]
    durations = {spec.key: 0.001 for spec in specs}
    run = simulate(specs, workers, durations, known=False, sizes=dict.fromkeys(durations, 28.0))
    moved = sum(
        run.placements[c, i].worker != run.placements[c, i - 1].worker
        for c in range(100)
        for i in range(1, 100)
    )
    assert len(run.placements) == 10_000
    assert moved < 500
    assert run.makespan < 1.3 * 10_000 * 0.001 / 4


def test_large_results_stay_where_they_are() -> None:
    """Functions that reduce large results run where these are."""
    specs = [FunctionSpec(("make", i), {"cpu": 1}, code="make") for i in range(8)]
    specs += [FunctionSpec(("use", i), {"cpu": 1}, (("make", i),), code="use") for i in range(8)]
    workers = [WorkerSpec(w, w, "h", {"cpu": 2}, 2) for w in "ab"]
    durations = {spec.key: 1.0 for spec in specs}
    sizes = {spec.key: 1e9 for spec in specs}
    run = simulate(specs, workers, durations, sizes=sizes)
    assert all(
        run.placements["use", i].worker == run.placements["make", i].worker for i in range(8)
    )
    assert run.makespan == 4.0


def test_a_place_names_what_it_is() -> None:
    """A decision compares by value."""
    assert Place("f", "a") == Place("f", "a", None, False)
