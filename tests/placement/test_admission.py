from __future__ import annotations

from handoff_dask.placement.events import FunctionSpec, Place

TWO = {"a": {"cpu": 2}, "b": {"cpu": 2}}


def test_collocated_functions_share_a_worker(drive) -> None:
    """All of a chain of collocations run where the first one was placed."""
    d = drive(TWO)
    d.specs(
        FunctionSpec("x", {"cpu": 1}),
        FunctionSpec("z", {"cpu": 1}, collocated="y"),
        FunctionSpec("y", {"cpu": 1}, collocated="x"),
    )
    d.ready("z")
    (worker,) = d.places().values()
    d.add({"fill": {"cpu": 1}, "more": {"cpu": 2}})
    d.places()
    d.ready("x", "y")
    assert d.places() == {}, "their worker is full; the other has room or not"
    d.end("z", "fill", "more")
    assert d.places() == {"x": worker, "y": worker}


def test_a_group_goes_where_each_member_fits(drive) -> None:
    """The first one is not placed where another of its group could never run."""
    d = drive({"cpu": {"cpu": 8}, "gpu": {"cpu": 2, "gpu": 1}})
    d.specs(
        FunctionSpec("light", {"cpu": 1}),
        FunctionSpec("heavy", {"gpu": 1}, collocated="light"),
    )
    d.ready("light")
    assert d.places() == {"light": "gpu"}


def test_a_group_no_worker_can_hold_is_refused(drive) -> None:
    """Members that fit one by one on different workers do not fit together."""
    d = drive({"a": {"cpu": 8}, "b": {"gpu": 1}}, lost_grace=1.0)
    d.specs(FunctionSpec("x", {"cpu": 1}), FunctionSpec("y", {"gpu": 1}, collocated="x"))
    d.ready("x")
    assert d.poll() == []
    (refusal,) = d.poll(after=1)
    assert not refusal.finding


def test_a_pin_on_any_member_pins_the_group(drive) -> None:
    """The others follow it, also when they come first."""
    d = drive(TWO)
    d.specs(FunctionSpec("x", {"cpu": 1}), FunctionSpec("y", {}, collocated="x", pin=("b",)))
    d.ready("x")
    assert d.places() == {"x": "b"}


def test_a_group_survives_its_worker(drive) -> None:
    """When the worker is lost the group is bound anew, to one worker."""
    d = drive(TWO)
    d.specs(FunctionSpec("x", {"cpu": 1}), FunctionSpec("y", {"cpu": 1}, collocated="x"))
    d.ready("x")
    (first,) = d.places().values()
    d.end("x")
    d.engine.worker_removed(first)
    d.ready("y")
    (second,) = d.places().values()
    assert second != first
    d.ready("x")
    assert d.places() == {"x": second}


def test_a_serializer_binds_its_consumer(drive) -> None:
    """Placing one tells the worker of the other, which then runs there, and only there."""
    d = drive(TWO)
    d.specs(
        FunctionSpec("pack", {"cpu": 1}, binds="use"),
        FunctionSpec("pack2", {"cpu": 1}, binds="use"),
        FunctionSpec("use", {"cpu": 2}),
        FunctionSpec("unpack", {}, collocated="use"),
    )
    d.ready("pack")
    (place,) = d.poll()
    assert isinstance(place, Place) and place.target in TWO
    d.ready("pack2")
    (again,) = d.poll()
    assert again.target == place.target, "bound once"
    d.end("pack", "pack2")
    d.ready("unpack")
    assert d.places() == {"unpack": place.target}
    d.end("unpack")
    d.ready("use")
    assert d.places() == {"use": place.target}


def test_bindings_spread(drive) -> None:
    """Functions bound before they run count against a worker, so that not all go to one."""
    d = drive({name: {"cpu": 4} for name in "abcd"})
    for i in range(8):
        d.specs(FunctionSpec(f"p{i}", {}, binds=f"c{i}"), FunctionSpec(f"c{i}", {"cpu": 2}))
    d.ready(*(f"p{i}" for i in range(8)))
    targets = [place.target for place in d.poll()]
    assert sorted(targets) == sorted("abcd" * 2)


def test_a_target_without_a_worker_holds_the_function_back(drive) -> None:
    """What binds a function that no worker can hold waits with it, and is refused with it."""
    d = drive({"a": {"cpu": 1}}, lost_grace=5.0)
    d.specs(FunctionSpec("p", {}, binds="c"), FunctionSpec("c", {"gpu": 1}))
    d.ready("p")
    assert d.poll() == []
    why = d.engine.questions.why("p")
    assert why.reason == "binding" and not why.finding
    assert d.engine.wake_at() == 5.0
    d.join("g", {"gpu": 1})
    (place,) = d.poll()
    assert place.target == "g"


def test_a_paused_target_is_waited_for(drive) -> None:
    """A binding waits for a worker that is only paused, without a deadline."""
    d = drive({"a": {"cpu": 1}, "g": {"gpu": 1}}, lost_grace=5.0)
    d.engine.worker_running("g", False)
    d.specs(FunctionSpec("p", {"cpu": 1}, binds="c"), FunctionSpec("c", {"gpu": 1}))
    d.ready("p")
    assert d.poll() == [] and d.poll(after=100) == []
    d.engine.worker_running("g", True)
    assert d.poll() == [Place("p", "a", "g")]
