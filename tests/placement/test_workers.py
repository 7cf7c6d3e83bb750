from __future__ import annotations

from handoff_dask.placement.events import FunctionSpec, WorkerSpec


def test_a_worker_that_joins_is_used_at_once(drive) -> None:
    """The next poll places on it what waited."""
    d = drive({"a": {"cpu": 1}})
    d.add({0: {"cpu": 1}, 1: {"cpu": 1}})
    assert d.places() == {0: "a"}
    d.join("b", {"cpu": 1})
    assert d.places() == {1: "b"}


def test_a_paused_worker_gets_nothing(drive) -> None:
    """It keeps what runs, gets nothing new, and goes on where it was."""
    d = drive({"a": {"cpu": 2}})
    d.add({key: {"cpu": 1} for key in range(4)})
    assert len(d.places()) == 2
    d.engine.worker_running("a", False)
    d.end(0)
    assert d.places() == {}
    assert d.engine.questions.why(3).reason == "paused"
    d.engine.worker_running("a", True)
    assert len(d.places()) == 1


def test_a_lost_worker_takes_its_claims_along(drive) -> None:
    """What ran there can be ready again and runs elsewhere; the late end is ignored."""
    d = drive({"a": {"cpu": 1}, "b": {"cpu": 1}})
    d.add({0: {"cpu": 1}, 1: {"cpu": 1}})
    assert d.places() == {0: "a", 1: "b"}
    d.engine.worker_removed("a")
    d.engine.worker_removed("a")
    d.engine.attempt_ended(0, 0.0)
    d.ready(0)
    assert d.places() == {}
    d.end(1)
    assert d.places() == {0: "b"}


def test_a_worker_that_shrinks_must_fit_again_first(drive) -> None:
    """Claims beyond a smaller capacity stay; nothing new is placed until they fit."""
    d = drive({"a": {"cpu": 4, "disk": 1}})
    d.add({0: {"cpu": 3}, 1: {"disk": 1}, 2: {"cpu": 1}})
    d.engine.function_withdrawn(1)
    d.engine.function_withdrawn(2)
    assert d.places() == {0: "a"}
    d.join("a", {"cpu": 2, "disk": 1})
    d.ready(1, 2)
    assert d.places() == {}, "not even what costs something else"
    assert d.engine.questions.free("a")["cpu"] == -1
    d.end(0)
    assert set(d.places()) == {1, 2}


def test_a_worker_that_grows_is_used_at_once(drive) -> None:
    """More capacity or more slots are offered from the next poll on."""
    d = drive({"a": {"cpu": 1}}, slots=1)
    d.add({key: {"cpu": 1} for key in range(3)})
    assert len(d.places()) == 1
    d.join("a", {"cpu": 3}, slots=1)
    assert d.places() == {}
    d.join("a", {"cpu": 3}, slots=2)
    assert len(d.places()) == 1


def test_a_worker_that_is_added_again_keeps_its_claims(drive) -> None:
    """Registering an address anew updates what it declares and who it answers to."""
    d = drive({"a": {"cpu": 1}})
    d.add({0: {"cpu": 1}})
    d.places()
    d.engine.worker_added(WorkerSpec("a", "renamed", "host", {"cpu": 2}, 8))
    assert d.engine.questions.free("a") == {"cpu": 1}
    d.specs(FunctionSpec(1, {"cpu": 1}, pin=("renamed",)), FunctionSpec(2, {}, pin=("a-name",)))
    d.ready(1, 2)
    assert d.places() == {1: "a"}


def test_what_others_use_is_not_free(drive) -> None:
    """Foreign claims count, may exceed the capacity, and are given back."""
    d = drive({"a": {"cpu": 2}})
    d.engine.foreign_claimed("x", "a", {"cpu": 1})
    d.add({key: {"cpu": 1} for key in range(2)})
    assert len(d.places()) == 1
    d.engine.foreign_claimed("y", "a", {"cpu": 3})
    d.end(0)
    d.add({9: {}})
    assert d.places() == {}, "more is used than there is: nothing is placed"
    d.engine.foreign_released("y")
    d.engine.foreign_released("y")
    assert set(d.places()) == {1, 9}
    d.engine.foreign_claimed("z", "unknown worker", {"cpu": 1})
    d.engine.worker_removed("a")
    d.engine.foreign_released("x")
