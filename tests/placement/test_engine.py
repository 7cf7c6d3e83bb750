from __future__ import annotations

from typing import Any

import pytest

from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import FunctionSpec, Place, Refuse, Waiting, WorkerSpec


def test_a_cost_waits_until_it_is_free(drive) -> None:
    """Nothing is placed beyond what a worker declares, whichever resource is short."""
    d = drive({"a": {"cpu": 4, "memory": 10}})
    d.add({0: {"cpu": 2, "memory": 4}, 1: {"cpu": 2, "memory": 8}, 2: {"cpu": 1}, 3: {"cpu": 4}})
    first = d.places()
    assert 3 in first and len(first) == 1
    d.end(3)
    second = d.places()
    assert set(second) == {1, 2}
    assert d.engine.questions.free("a") == {"cpu": 1, "memory": 2}
    assert d.engine.questions.claimed("a") == {"cpu": 3, "memory": 8}
    d.end(1)
    assert set(d.places()) == {0}


def test_a_function_takes_a_slot_whatever_it_costs(drive) -> None:
    """A worker runs no more functions than it has threads."""
    d = drive({"a": {"cpu": 100}}, slots=2)
    d.add({key: {} for key in range(3)})
    assert len(d.places()) == 2
    assert d.engine.questions.slots("a") == (0, 2)
    d.end(0)
    assert len(d.places()) == 1


def test_an_undeclared_resource_is_zero(drive) -> None:
    """A worker that declares nothing of a resource runs nothing that costs some of it."""
    d = drive({"a": {"cpu": 4}, "b": {"licence": 1}})
    d.add({0: {"licence": 1}, 1: {"licence": 0, "cpu": 1}})
    assert d.places() == {0: "b", 1: "a"}


def test_priority_comes_before_the_remaining_path() -> None:
    """Functions of the run with the higher priority go first."""
    engine = Engine()
    engine.worker_added(WorkerSpec("a", "a", "h", {"cpu": 1}, 1))
    for run, priority in (("low", 0), ("high", 1)):
        engine.run_opened(run, priority=priority)
        chain = [FunctionSpec((run, i), {"cpu": 1}, ((run, i - 1),) if i else ()) for i in range(3)]
        engine.functions_added(run, chain if run == "low" else chain[:1])
    engine.function_ready(("low", 0), 0.0)
    engine.function_ready(("high", 0), 0.0)
    assert engine.poll(0.0) == [Place(("high", 0), "a")]


def test_max_concurrency_counts_what_is_placed(drive) -> None:
    """A run has no more functions placed than it may, and goes on when one ends."""
    d = drive({"a": {"cpu": 8}}, run={"max_concurrency": 2})
    d.add({key: {"cpu": 1} for key in range(5)})
    placed = list(d.places())
    assert len(placed) == 2
    assert d.engine.questions.why(4).reason == "max_concurrency"
    d.end(*placed)
    assert len(d.places()) == 2


@pytest.mark.parametrize("limit", [0, -1])
def test_max_concurrency_is_checked(limit: int) -> None:
    """A limit that lets nothing run is an error that names the run, and no run is opened."""
    engine = Engine()
    with pytest.raises(ValueError, match="'r'"):
        engine.run_opened("r", max_concurrency=limit)
    engine.run_opened("r")


def test_a_delay_is_waited_out(drive) -> None:
    """A function with a delay is placed when it is over, and wake_at says when that is."""
    d = drive({"a": {"cpu": 1}})
    d.specs(FunctionSpec("f", {"cpu": 1}))
    d.ready("f", not_before=3.0)
    assert d.places() == {}
    assert d.engine.wake_at() == 3.0
    assert d.engine.questions.why("f").until == 3.0
    assert d.places(after=2.9) == {}
    assert d.places(after=0.1) == {"f": "a"}
    assert d.engine.wake_at() is None


def test_the_worker_to_avoid_is_the_last_resort(drive) -> None:
    """A retry goes elsewhere if another worker could run it, even if it must wait for that."""
    d = drive({"a": {"cpu": 2}, "b": {"cpu": 1}})
    d.specs(FunctionSpec("f", {"cpu": 1}), FunctionSpec("g", {"cpu": 2}))
    d.add({"fill": {"cpu": 1}})
    assert d.places() == {"fill": "b"}
    d.now = 5.0
    d.ready("f", "g", avoid=("a",))
    assert d.places() == {"g": "a"}, "only a could ever run g"
    d.end("g")
    assert d.places() == {}, "f waits for b"
    d.end("fill")
    assert d.places() == {"f": "b"}
    d.engine.worker_running("b", False)
    d.ready("f", avoid=("a",))
    assert d.places() == {"f": "a"}, "b does not run"


def busy_elsewhere(drive, *, expected: float | None = None, **options):
    """An engine where f failed on a after 2 s, and b, the only other worker, is full."""
    d = drive({"a": {"cpu": 1}, "b": {"cpu": 1}})
    d.specs(FunctionSpec("f", {"cpu": 1}, expected=expected))
    d.ready("f")
    assert d.places() == {"f": "a"}
    d.add({"fill": {"cpu": 1}})
    assert d.places() == {"fill": "b"}
    d.now = 2.0
    d.ready("f", avoid=("a",), **options)
    assert d.places() == {}
    return d


@pytest.mark.parametrize("expected, wait", [(7.0, 7.0), (0.5, 0.5), (None, 2.0)])
def test_another_worker_is_waited_for_no_longer_than_it_helps(drive, expected, wait) -> None:
    """For as long as the function takes; if nobody knows, as long as its last attempt took."""
    d = busy_elsewhere(drive, expected=expected)
    assert d.engine.questions.why("f").workers == ("b",)
    assert d.engine.wake_at() == 2.0 + wait
    assert d.places(after=wait - 0.1) == {}
    assert d.places(after=0.1) == {"f": "a"}
    assert d.engine.wake_at() is None


def test_another_worker_is_taken_as_soon_as_it_is_free(drive) -> None:
    """However long it would be waited for."""
    d = busy_elsewhere(drive, expected=100.0)
    d.end("fill", after=1.0)
    assert d.places() == {"f": "b"}
    assert d.engine.wake_at() is None


def test_the_wait_for_another_worker_follows_the_delay(drive) -> None:
    """A retry's delay is no part of it."""
    d = busy_elsewhere(drive, expected=3.0, not_before=10.0)
    assert d.engine.wake_at() == 10.0
    assert d.places(after=8.0) == {}
    assert d.engine.wake_at() == 13.0
    assert d.places(after=3.0) == {"f": "a"}


def test_each_attempt_waits_for_another_worker_anew(drive) -> None:
    """What the attempt before has waited counts for nothing."""
    d = busy_elsewhere(drive, expected=3.0)
    assert d.places(after=3.0) == {"f": "a"}
    d.ready("f", avoid=("a",))
    assert d.places() == {}
    assert d.places(after=3.0) == {"f": "a"}


def test_several_workers_are_avoided(drive) -> None:
    """Each of them, as long as there is a further one."""
    d = drive({name: {"cpu": 1} for name in "abc"})
    d.specs(FunctionSpec("f", {"cpu": 1}, expected=1.0))
    d.ready("f", avoid=("a", "b"))
    assert d.places() == {"f": "c"}
    d.engine.worker_removed("c")
    d.ready("f", avoid=("a", "b"))
    assert d.places() == {"f": "a"}


def test_who_insists_waits_while_there_is_another_worker(drive) -> None:
    """Busy or paused, as long as it is registered; the worker to avoid is used when it left."""
    d = busy_elsewhere(drive, expected=0.1, insist=True)
    assert d.engine.wake_at() is None
    assert d.places(after=1e6) == {}
    d.engine.worker_running("b", False)
    assert d.places() == {} and d.engine.questions.why("f").reason == "paused"
    d.engine.worker_removed("b")
    assert d.places() == {"f": "a"}


def test_an_excluded_worker_is_never_used(drive) -> None:
    """Not as the last resort either, nor is the function refused: it waits until it may."""
    d = drive({"a": {"cpu": 1}, "b": {"cpu": 1}}, lost_grace=1.0)
    d.add({"fill": {"cpu": 1}})
    assert d.places() == {"fill": "a"}
    d.specs(FunctionSpec("f", {"cpu": 1}, expected=0.1), FunctionSpec("g", {"cpu": 1}, pin=("b",)))
    d.ready("f", "g", exclude=("b",))
    assert d.places() == {} and d.engine.questions.why("f").workers == ("a",)
    assert d.engine.questions.why("g") == Waiting("excluded", ("b",))
    d.engine.worker_removed("a")
    assert d.poll(after=100.0) == []
    assert d.engine.questions.why("f") == Waiting("excluded", ("b",))
    d.engine.exclusion_ended("f", "b")
    d.engine.exclusion_ended("nobody knows", "b")
    assert d.places() == {"f": "b"}
    d.end("f")
    assert d.places() == {}
    d.engine.exclusion_ended("g", "b")
    assert d.places() == {"g": "b"}


@pytest.mark.parametrize("kind", ["plain", "pinned", "collocated", "bound", "limited"])
def test_every_kind_of_function_keeps_off_excluded_workers(drive, kind: str) -> None:
    """It is held, never refused; it goes on with a new worker or the end of an exclusion."""
    limit = 2 if kind == "limited" else None
    d = drive({"a": {"cpu": 2}}, run={"max_concurrency": limit}, lost_grace=1.0)
    d.specs(
        FunctionSpec("mate", {"cpu": 1}, binds="f" if kind == "bound" else None),
        FunctionSpec(
            "f",
            {"cpu": 1},
            pin=("host",) if kind == "pinned" else (),
            collocated="mate" if kind == "collocated" else None,
        ),
    )
    d.ready("mate")
    assert d.places() == {"mate": "a"}
    d.ready("f", exclude=("a", "b"))
    assert d.poll() == [] and d.poll(after=1e6) == []
    assert d.engine.questions.why("f") == Waiting("excluded", ("a",))
    assert "an earlier attempt still runs on a" in str(d.engine.questions.why("f"))
    assert d.engine.questions.holds("run") == [(["f"], Waiting("excluded", ("a",)))]
    d.join("b", {"cpu": 2})
    assert d.poll() == []
    if kind in ("collocated", "bound"):  # the group stays where it is
        d.engine.exclusion_ended("f", "a")
        assert d.places() == {"f": "a"}
        return
    d.engine.exclusion_ended("f", "b")
    assert d.places() == {"f": "b"}
    d.ready("f", exclude=("a", "b"))
    assert d.places() == {}
    d.join("c", {"cpu": 1})
    assert d.places() == {"f": "c"}


def test_to_exclude_comes_before_to_avoid(drive) -> None:
    """If the only other worker is excluded, the one to avoid is used at once."""
    d = drive({"a": {"cpu": 1}, "b": {"cpu": 1}})
    d.specs(FunctionSpec("f", {"cpu": 1}, expected=9.0))
    d.ready("f", avoid=("a",), exclude=("b",), insist=True)
    assert d.places() == {"f": "a"}


def test_inputs_and_a_worker_to_avoid(drive) -> None:
    """It is avoided again after the function has waited for the worker that holds its inputs."""
    d = drive({name: {"cpu": 1} for name in "abc"})
    d.specs(
        FunctionSpec("hold", {"cpu": 1}, pin=("b",), expected=5.0),
        FunctionSpec("fill", {"cpu": 1}, pin=("c",)),
        FunctionSpec("f", {"cpu": 1}, expected=15.0),
    )
    d.ready("hold")
    assert d.places() == {"hold": "b"}
    d.ready("f", avoid=("a",), inputs={"b": 1e9})
    assert d.places() == {} and d.engine.questions.why("f").reason == "data"
    d.ready("fill")
    assert d.places() == {"fill": "c"}
    d.now = d.engine.wake_at()
    assert 9 < d.now < 11, "moving the inputs takes so long"
    assert d.places() == {} and d.engine.questions.why("f").reason == "resources"
    assert d.engine.wake_at() == 15.0
    d.now = 15.0
    assert d.places() == {"f": "a"}


def test_an_attempt_may_cost_more_than_the_function(drive) -> None:
    """A cost given with an attempt holds for that attempt only."""
    d = drive({"a": {"memory": 8}})
    d.add({"f": {"memory": 2}})
    d.places()
    d.engine.attempt_ended("f", 0.0)
    d.ready("f", cost={"memory": 6})
    d.places()
    assert d.engine.questions.free("a") == {"memory": 2}
    d.ready("f")  # that attempt ended: it is ready again
    d.places()
    assert d.engine.questions.free("a") == {"memory": 6}


def test_an_end_told_twice_counts_once(drive) -> None:
    """A claim is released exactly once, and a late end does not touch the next attempt's wait."""
    d = drive({"a": {"cpu": 2}})
    d.add({"f": {"cpu": 1}})
    d.places()
    d.end("f")
    d.end("f")
    d.end("nobody knows")
    assert d.engine.questions.free("a") == {"cpu": 2}
    d.ready("f")
    d.engine.attempt_ended("f", 0.0)
    assert d.places() == {"f": "a"}


def test_a_withdrawn_function_is_not_placed(drive) -> None:
    """What is not ready any more is not placed; what is placed keeps its claim."""
    d = drive({"a": {"cpu": 2}})
    d.add({"f": {"cpu": 1}, "g": {"cpu": 1}})
    d.engine.function_withdrawn("f")
    assert d.places() == {"g": "a"}
    d.engine.function_withdrawn("g")
    assert d.engine.questions.free("a") == {"cpu": 1}


def test_a_seceded_function_gives_its_slot_back(drive) -> None:
    """It keeps its cost; another may start in its slot."""
    d = drive({"a": {"cpu": 2}}, slots=1)
    d.add({"f": {"cpu": 1}, "g": {"cpu": 1}, "h": {"cpu": 1}})
    (first,) = d.places()
    d.engine.slot_released(first)
    (second,) = d.places()
    assert d.engine.questions.free("a") == {"cpu": 0} and d.engine.questions.slots("a") == (0, 1)
    d.end(first)
    assert d.places() == {}, "the slot is the second one's"
    d.end(second)
    assert len(d.places()) == 1


def test_a_closed_run_leaves_nothing(drive) -> None:
    """All it claimed, queued and bound is gone; what ends later is ignored."""
    d = drive({"a": {"cpu": 2}})
    d.specs(FunctionSpec("s", {"cpu": 1}, binds="t"), FunctionSpec("t", {"cpu": 1}))
    d.add({i: {"cpu": 1} for i in range(4)})
    d.ready("s")
    d.places()
    d.engine.run_closed("run")
    d.engine.run_closed("run")
    d.end(0)
    assert d.poll() == []
    assert d.engine.questions.free("a") == {"cpu": 2}
    d.engine.run_opened("run")
    d.add({"s": {"cpu": 2}})
    assert d.places() == {"s": "a"}


def test_functions_are_checked_before_any_is_added(drive) -> None:
    """A bad function is an error that names it, and the run is as it was."""
    d = drive({"a": {"cpu": 2}})
    d.specs(FunctionSpec("known", {}))
    for bad, match in [
        (FunctionSpec("known", {}), "'known' was added"),
        (FunctionSpec("g", {}, collocated="nobody"), "'g' names 'nobody'"),
        (FunctionSpec("g", {}, binds="nobody"), "'g' names 'nobody'"),
        (FunctionSpec("g", {"cpu": -1}), "'g'.*'cpu'"),
    ]:
        with pytest.raises(ValueError, match=match):
            d.specs(FunctionSpec("fine", {}), bad)
    d.specs(FunctionSpec("fine", {}))
    with pytest.raises(KeyError, match="nobody"):
        d.ready("nobody")


def add_run(d: Any, run: str, **options: Any) -> None:
    """Open a run, with one function of its name that needs a GPU and is ready."""
    d.engine.run_opened(run, **options)
    d.engine.functions_added(run, [FunctionSpec(run, {"gpu": 1})])
    d.ready(run)


def test_a_cost_that_capacity_was_lost_for_is_refused_in_the_end(drive) -> None:
    """What a worker could hold that was lost waits until the grace after that is over."""
    d = drive({"a": {"gpu": 1}, "b": {"cpu": 1}}, lost_grace=60.0)
    d.engine.worker_removed("a", lost_at=0.0)
    d.now = 10.0
    add_run(d, "f")
    assert d.poll() == []
    assert d.engine.questions.why("f").reason == "impossible"
    assert d.engine.questions.why("f").until == d.engine.wake_at() == 60.0
    assert d.engine.questions.hopeless("f", d.now) is None
    assert d.poll(after=49.9) == []
    (refusal,) = d.poll(after=0.1)
    assert isinstance(refusal, Refuse) and refusal.key == "f"
    lacks = "needs gpu 1, offers 0"
    assert str(refusal.finding) == f"no worker can hold it; nearest is b (b-name): {lacks}"
    assert d.engine.wake_at() is None
    assert d.engine.questions.hopeless("f", d.now) == ("f", refusal.finding)


def test_capacity_that_comes_back_in_time_is_used(drive) -> None:
    """A worker that joins within the grace gets what waited for it."""
    d = drive({"a": {"gpu": 1}, "b": {"cpu": 1}}, lost_grace=60.0)
    d.engine.worker_removed("a", lost_at=0.0)
    add_run(d, "f")
    d.poll()
    d.poll(after=59)
    d.join("a2", {"gpu": 1})
    assert d.places() == {"f": "a2"}
    assert d.poll(after=100) == []


@pytest.mark.parametrize("how", ["left", "shrank", "came back with less", "never had it"])
def test_capacity_that_went_on_purpose_is_not_waited_for(drive, how: str) -> None:
    """A worker that was retired or declares less takes its capacity away for good."""
    d = drive({"a": {"gpu": how != "never had it"}, "b": {"cpu": 1}}, lost_grace=60.0)
    if how == "left":
        d.engine.worker_removed("a")
    elif how == "shrank":
        d.join("a", {"gpu": 0})
    elif how == "came back with less":
        d.engine.worker_removed("a", lost_at=0.0)
        d.join("a", {"gpu": 0})
    add_run(d, "f")
    assert d.engine.questions.hopeless("f", d.now)
    assert [decision.key for decision in d.poll()] == ["f"]


def test_a_pin_to_a_worker_that_was_lost(drive) -> None:
    """It is waited for by its name and host, and by no other."""
    d = drive({"a": {"cpu": 1}, "b": {"cpu": 1}}, lost_grace=60.0)
    d.engine.worker_removed("a", lost_at=0.0)
    d.engine.run_opened("pins")
    pins = {"a": ("a",), "a-name": ("a-name",), "host": ("host",), "any": ("nobody", "a-name")}
    pins["nobody"] = ("nobody", "else")
    d.engine.functions_added("pins", [FunctionSpec(k, {"cpu": 1}, pin=p) for k, p in pins.items()])
    assert d.engine.questions.hopeless("pins", 0.0)[0] == "nobody"
    d.ready(*pins)
    decisions = {decision.key: decision for decision in d.poll()}
    assert isinstance(decisions["nobody"], Refuse) and decisions["host"].worker == "b"
    assert decisions.keys() == {"nobody", "host"}


@pytest.mark.parametrize("timeout", [2.0, 100.0])
def test_the_placement_timeout_replaces_the_grace(drive, timeout: float) -> None:
    """A run that says how long to wait for a worker is refused then, not before and not later."""
    d = drive({"a": {"gpu": 1}, "b": {"cpu": 1}}, lost_grace=60.0)
    d.engine.worker_removed("a", lost_at=0.0)
    add_run(d, "f", placement_timeout=timeout)
    assert d.poll() == []
    assert d.engine.wake_at() == timeout
    assert d.poll(after=timeout - 1) == []
    assert len(d.poll(after=1)) == 1


def test_each_waits_its_own_time(drive) -> None:
    """Functions that need the same are refused one by one, each so long after it was ready."""
    d = drive({"b": {"cpu": 1}}, lost_grace=60.0)
    add_run(d, "long", placement_timeout=100.0)
    assert d.poll() == []
    assert d.poll(after=50) == []
    add_run(d, "short", placement_timeout=5.0)
    assert d.poll() == [] and d.engine.wake_at() == 55.0
    assert [decision.key for decision in d.poll(after=5)] == ["short"]
    add_run(d, "none")
    assert [decision.key for decision in d.poll()] == ["none"]
    assert d.engine.wake_at() == 100.0


def test_workers_that_come_one_by_one(drive) -> None:
    """A run that saw the cluster empty gives all of its workers the grace to come."""
    d = drive({}, lost_grace=60.0)
    d.add({"f": {"gpu": 1}})
    d.poll()
    d.now = 1000.0
    d.join("b", {"cpu": 1})
    assert d.poll() == [] and d.engine.wake_at() == 1060.0
    add_run(d, "new")
    assert [decision.key for decision in d.poll()] == ["new"]
    d.engine.worker_removed("b")
    add_run(d, "newer")
    d.poll()
    d.now = 2000.0
    d.join("b", {"cpu": 1})
    assert d.poll() == []
    d.join("a", {"gpu": 2})
    assert d.places() == {"f": "a", "newer": "a"}


def test_an_empty_cluster_is_waited_for(drive) -> None:
    """Without any worker nothing is refused, however long it takes."""
    d = drive({}, lost_grace=1.0)
    d.add({"f": {"gpu": 1}})
    assert d.poll() == [] and d.poll(after=1e6) == []
    assert d.engine.wake_at() is None
    assert d.engine.questions.why("f").reason == "no workers"
    d.join("a", {"gpu": 1})
    assert d.places() == {"f": "a"}


def test_a_pin_nobody_answers_to_is_refused_by_name(drive) -> None:
    """The finding tells a pin that nobody answers to from a cost that is too high."""
    d = drive({"a": {"cpu": 1}}, lost_grace=1.0)
    d.add({"f": {}}, pin=("gone",))
    d.poll()
    (refusal,) = d.poll(after=1)
    assert not refusal.finding.pin_known
    assert str(refusal.finding) == "no worker answers to 'gone'"


@pytest.mark.parametrize("pin", ["b", "b-name"])
def test_a_pin_is_an_address_or_a_name(drive, pin: str) -> None:
    """A pinned function runs there, or waits."""
    d = drive({"a": {"cpu": 1}, "b": {"cpu": 1}})
    d.add({0: {"cpu": 1}, 1: {"cpu": 1}}, pin=(pin,))
    assert d.places() == {0: "b"}
    d.end(0)
    assert d.places() == {1: "b"}


def test_a_pin_may_be_a_host(drive) -> None:
    """A host means any of its workers."""
    d = drive({"a": {"cpu": 1}, "b": {"cpu": 1}})
    d.engine.worker_added(WorkerSpec("c", "c", "other", {"cpu": 1}, 1))
    d.add({key: {"cpu": 1} for key in range(3)}, pin=("host",))
    assert sorted(d.places().values()) == ["a", "b"]


def test_a_pin_may_name_several_workers(drive) -> None:
    """Any of them gets the function, nobody else, also when one is avoided, lost or excluded."""
    d = drive({"a": {"cpu": 1}, "b": {"cpu": 1}, "c": {"cpu": 2}}, lost_grace=60.0)
    d.add({0: {"cpu": 1}, 1: {"cpu": 1}, 2: {"cpu": 1}}, pin=("b-name", "a"))
    assert d.places() == {0: "a", 1: "b"}
    d.engine.attempt_ended(0, d.now)
    assert d.places() == {2: "a"}
    d.ready(0, avoid=["a"], insist=True)
    d.end(2)
    assert d.places() == {}
    d.end(1)
    assert d.places() == {0: "b"}
    d.engine.worker_removed("b", lost_at=d.now)
    d.ready(0)
    assert d.places() == {0: "a"}
    d.ready(0, exclude=["a"])
    assert d.places() == {}
    assert str(d.engine.questions.why(0)).startswith("excluded")
    assert d.places(after=60.0) == {}
    d.engine.exclusion_ended(0, "a")
    assert d.places() == {0: "a"}


def test_a_pin_to_several_is_refused_by_all_their_names(drive) -> None:
    """The finding names all that were asked for, whether nobody answers or all are too small."""
    d = drive({"a": {"cpu": 1}, "b": {"cpu": 2}})
    feasibility = d.engine.questions.feasibility
    gone = feasibility({}, ("x", "y"))
    assert (gone.pin, gone.pin_known) == (("x", "y"), False)
    assert str(gone) == "no worker answers to any of 'x', 'y'"
    small = feasibility({"cpu": 3}, ("a", "b-name", "x"))
    assert str(small) == (
        "no worker can hold it (pinned to any of 'a', 'b-name', 'x'); nearest is b (b-name): "
        "needs cpu 3, offers 2"
    )
    assert feasibility({"cpu": 2}, ("b", "a")).able == ("b",)
