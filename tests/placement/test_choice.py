from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_a_preferred_worker_with_room_gets_it(drive) -> None:
    """Whatever the strategy would choose, also if another worker must be spared for it."""
    for strategy in ("packed", "first_available", "load_balanced"):
        d = drive({"a": {"cpu": 2}, "b": {"cpu": 2, "gpu": 1}}, run={"strategy": strategy})
        d.specs(FunctionSpec("f", {"cpu": 1}, preferred=("nobody", "b-name")))
        d.ready("f")
        assert d.places() == {"f": "b"}


def test_the_strategy_chooses_among_preferred_workers(drive) -> None:
    """load_balanced spreads functions over the workers that they prefer."""
    d = drive({w: {"cpu": 2} for w in "abc"}, run={"strategy": "load_balanced"})
    d.specs(*(FunctionSpec(k, {"cpu": 1}, preferred=("b", "c")) for k in range(4)))
    d.ready(*range(4))
    assert sorted(d.places().values()) == ["b", "b", "c", "c"]


def test_a_preferred_worker_is_waited_for(drive) -> None:
    """If one has room before the function would have ended elsewhere: the one that has it first."""
    d = drive({w: {"cpu": 1} for w in "abc"})
    d.specs(
        FunctionSpec("long", {"cpu": 1}, pin=("a",), expected=9.0, code="long"),
        FunctionSpec("short", {"cpu": 1}, pin=("b",), expected=3.0, code="short"),
        FunctionSpec("f", {"cpu": 1}, preferred=("a", "b"), expected=5.0, code="f"),
    )
    d.ready("long", "short")
    d.places()
    d.ready("f")
    assert d.places() == {}
    why = d.engine.questions.why("f")
    assert (why.reason, why.workers, why.until) == (
        "preferred",
        ("b",),
        pytest.approx(4.5, abs=0.1),
    )
    d.end("short", after=3.0)
    assert d.places() == {"f": "b"}


@pytest.mark.parametrize("expected", [5.0, None])
def test_a_preferred_worker_is_not_waited_for_in_vain(drive, expected) -> None:
    """Not if it has room too late; if nobody knows when, not for longer than a function takes."""
    d = drive(TWO)
    busy = None if expected is None else 30.0
    d.specs(
        FunctionSpec("busy", {"cpu": 1}, pin=("a",), expected=busy, code="busy"),
        FunctionSpec("f", {"cpu": 1}, preferred=("a",), expected=expected, code="f"),
    )
    d.ready("busy")
    d.places()
    d.ready("f")
    if expected is None:
        assert d.places() == {}
        assert d.engine.wake_at() == pytest.approx(0.9, abs=0.1)
        d.now = d.engine.wake_at()
    assert d.places() == {"f": "b"}


def test_a_preference_for_nobody_is_none(drive) -> None:
    """It is no reason to wait or to fail, nor is a preferred worker that is too small or paused."""
    d = drive({"a": {"cpu": 1}, "b": {"cpu": 2}, "c": {"cpu": 2}})
    d.engine.worker_running("c", False)
    for key in ("gone", "a", "c"):
        d.specs(FunctionSpec(key, {"cpu": 2}, preferred=(key,)))
        d.ready(key)
        assert d.places() == {key: "b"}
        d.end(key)


def test_a_preferred_worker_that_is_lost_is_not_waited_for(drive) -> None:
    """What waits for it goes elsewhere."""
    d = drive(TWO)
    d.specs(
        FunctionSpec("busy", {"cpu": 1}, pin=("a",)),
        FunctionSpec("f", {"cpu": 1}, preferred=("a",), expected=5.0),
    )
    d.ready("busy")
    d.places()
    d.ready("f")
    assert d.places() == {}
    d.engine.worker_removed("a", 0.0)
    assert d.places() == {"f": "b"}


def test_a_retry_avoids_even_a_preferred_worker(drive) -> None:
    """What went wrong there counts for more than the preference."""
    d = drive(TWO)
    d.specs(FunctionSpec("f", {"cpu": 1}, preferred=("a",), expected=5.0))
    d.ready("f", avoid=["a"])
    assert d.places() == {"f": "b"}
    d.ready("f", exclude=["b"])
    assert d.places() == {"f": "a"}


def test_a_preferred_worker_that_joins_while_a_function_is_held(drive) -> None:
    """It is preferred as if it had been there: also when the cluster had no worker at first."""
    d = drive({})
    d.specs(*(FunctionSpec(k, {"cpu": 2}, preferred=("c", "b")) for k in range(3)))
    d.ready(0)
    assert d.places() == {}
    d.join("a", {"cpu": 1})
    d.join("b", {"cpu": 2})
    d.join("c", {"cpu": 2})
    assert d.places() == {0: "b"}
    d.engine.worker_removed("b", 0.0)
    d.ready(0)
    d.ready(1, inputs={"c": 5.0})
    assert d.places() == {0: "c"}
    d.join("b", {"cpu": 2})
    assert d.places() == {1: "b"}
    assert d.engine._functions[1].inputs.keys() == {"b", "c"}
    d.engine.run_closed("run")
    assert not any(wish.functions for wish in d.engine._preferences._wishes.values())


def test_a_worker_takes_first_what_prefers_it(drive) -> None:
    """Of functions that are as urgent; those that prefer another leave it to them."""
    d = drive(TWO)
    d.add({0: {"cpu": 1}, 1: {"cpu": 1}})
    d.places()
    d.specs(*(FunctionSpec(k, {"cpu": 1}, preferred=(k[0],)) for k in ("a1", "b1", "a2", "b2")))
    d.ready("a1", "b1", "a2", "b2")
    d.end(1)
    assert d.places() == {"b1": "b"}
    d.end(0)
    assert d.places() == {"a1": "a"}


def test_a_group_shares_the_preference_of_its_first(drive) -> None:
    """Who runs where a function does prefers the same; so does what is bound for its transforms."""
    d = drive(TWO)
    d.specs(
        FunctionSpec("root", {"cpu": 1}, preferred=("b",)),
        FunctionSpec("with", {"cpu": 1}, collocated="root"),
        FunctionSpec("alone", {"cpu": 1}, preferred=("b",)),
        FunctionSpec("serializer", {}, binds="alone"),
    )
    d.ready("with")
    assert d.places() == {"with": "b"}
    d.end("with")
    d.ready("serializer", inputs={"a": 1.0})
    assert d.poll() == [Place("serializer", "a", "b")]


def test_a_preference_holds_in_a_simulation() -> None:
    """Functions run where they prefer, as far as that delays them by less than they take."""
    specs = [FunctionSpec(i, {"cpu": 1}, preferred=("b",), code="f") for i in range(4)]
    workers = [WorkerSpec(w, w, "h", {"cpu": 1}, 1) for w in "ab"]
    run = simulate(specs, workers, dict.fromkeys(range(4), 1.0))
    places = [place.worker for place in run.placements.values()]
    assert run.makespan == 2.0 and sorted(places) == ["a", "a", "b", "b"]


CPUS = st.sampled_from([1, 2])
NAMES = st.lists(st.sampled_from(["0", "1", "2", "3", "gone"]), max_size=3).map(tuple)


@given(
    st.lists(CPUS, min_size=1, max_size=4), NAMES, NAMES, CPUS,
    st.sampled_from(["packed", "first_available", "load_balanced"]),
)  # fmt: skip
def test_where_a_function_may_go_and_would_go(capacities, pin, preferred, need, strategy) -> None:
    """It goes where its pin lets it, there to a worker that it prefers if one can hold it."""
    d = Driver({str(i): {"cpu": n} for i, n in enumerate(capacities)}, run={"strategy": strategy})
    d.add({"f": {"cpu": need}}, pin=pin, preferred=preferred)
    able = {str(i) for i, n in enumerate(capacities) if n >= need and (not pin or str(i) in pin)}
    (decision,) = d.poll() if able else [None]
    if able:
        assert decision.worker in (able & set(preferred) or able)
    else:
        assert d.places() == {} and d.engine.questions.why("f").reason == "impossible"
    assert set(d.engine.questions.feasibility({"cpu": need}, pin).able) == able
