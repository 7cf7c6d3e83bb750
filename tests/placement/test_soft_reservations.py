"""Soft reservations: who a worker is kept for before anybody's patience is at an end."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from handoff_dask.placement.events import FunctionSpec, Place
from tests.placement.conftest import Driver


def measured(d: Driver, functions: Mapping[str, tuple[float, float]], run: str = "run") -> None:
    """Add ready functions of so many CPUs and seconds, as measured earlier."""
    for key, (_, seconds) in functions.items():
        d.engine.duration_known(key, seconds)
    d.engine.functions_added(
        run, [FunctionSpec(k, {"cpu": cpu}, token=k) for k, (cpu, _) in functions.items()]
    )
    d.ready(*functions)


def kept(d: Driver) -> dict[str, str]:
    """Return which worker is softly kept for whom."""
    reserved = d.engine._ready.reserved.items()
    return {w.address: r.queue.head().function.key for w, r in reserved if r.soft}


@pytest.fixture
def busy(drive) -> Driver:
    """A worker that runs two halves, one till 5 s, one till 10 s, and a wide function waiting."""
    d = drive({"a": {"cpu": 4}}, horizon=0.0)
    measured(d, {"first": (2, 5.0), "second": (2, 10.0)})
    assert len(d.places()) == 2
    measured(d, {"wide": (4, 50.0)})
    assert not d.places()
    assert kept(d) == {"a": "wide"}
    return d


def test_small_functions_do_not_bypass_a_wide_one(busy: Driver) -> None:
    """A wide function gets its worker as soon as that drains, though narrower ones are ready."""
    measured(busy, {f"small-{i}": (1, 8.0) for i in range(20)})
    busy.end("first", after=5.0)
    assert not busy.places()
    why = busy.engine.questions.why("small-0")
    assert why is not None and why.reason == "reserved"
    busy.end("second", after=5.0)
    assert busy.places() == {"wide": "a"}
    assert not busy.engine._ready.reserved


@pytest.mark.parametrize("cpu", [1, 2])
def test_a_more_urgent_function_passes(busy: Driver, cpu: int) -> None:
    """What is more urgent takes the kept worker at any time, and the estimate follows."""
    measured(busy, {"small": (1, 8.0)})
    busy.end("first", after=5.0)
    assert not busy.places()
    measured(busy, {"urgent": (cpu, 100.0)})
    placed = busy.places()
    assert "urgent" in placed
    assert kept(busy) == {"a": "wide"}
    busy.end("second", after=5.0)
    placed |= busy.places()
    assert "small" in placed, "it ends before the urgent one does"
    assert "wide" not in placed


def test_one_that_becomes_more_urgent_passes(busy: Driver) -> None:
    """The same when it was ready before and its rank changes."""
    measured(busy, {"small": (1, 8.0)})
    busy.end("first", after=5.0)
    assert not busy.places()
    busy.specs(FunctionSpec("after", {"cpu": 1}, ("small",), expected=200.0))
    measured(busy, {"no-room": (3, 1.0)})
    assert busy.places() == {"small": "a"}


def test_what_ends_in_time_backfills(busy: Driver) -> None:
    """A less urgent function that ends before the wide one could start runs meanwhile."""
    measured(busy, {"short": (2, 4.0), "long": (1, 6.0)})
    busy.end("first", after=5.0)
    assert busy.places() == {"short": "a"}


def test_what_fits_beside_runs(drive) -> None:
    """A less urgent function runs on what the wide one leaves of the worker."""
    d = drive({"a": {"cpu": 4}}, horizon=0.0)
    measured(d, {"first": (2, 5.0), "second": (2, 10.0)})
    d.places()
    measured(d, {"wide": (3, 50.0), "beside": (1, 40.0), "too-much": (1, 30.0)})
    assert not d.places() and kept(d) == {"a": "wide"}
    d.end("first", after=5.0)
    assert d.places() == {"beside": "a"}


@pytest.mark.parametrize("unknown", ["wide", "running"])
def test_nothing_is_kept_on_a_guess(drive, unknown: str) -> None:
    """Without a measured duration of its own, or of what it waits for, all is as it was."""
    d = drive({"a": {"cpu": 4}}, horizon=0.0)
    if unknown == "wide":
        measured(d, {"first": (2, 5.0), "second": (2, 10.0)})
        d.places()
        d.specs(FunctionSpec("wide", {"cpu": 4}, expected=50.0))
        d.ready("wide")
    else:
        d.add({"first": {"cpu": 2}, "second": {"cpu": 2}})
        d.places()
        measured(d, {"wide": (4, 50.0)})
    measured(d, {"small": (1, 8.0)})
    assert not d.places() and not d.engine._ready.reserved
    d.end("first", after=5.0)
    assert d.places() == {"small": "a"}


def test_an_unknown_end_takes_the_estimate_away(busy: Driver) -> None:
    """When something urgent of unknown duration comes to run there, the worker is let go."""
    busy.engine.run_opened("other", priority=1)
    busy.engine.functions_added("other", [FunctionSpec("riddle", {"cpu": 1})])
    busy.ready("riddle")
    busy.end("first", after=5.0)
    assert busy.places() == {"riddle": "a"}
    assert not kept(busy)


@pytest.mark.parametrize(("cpu", "running"), [(2, 2), (4, 1)])
def test_only_a_wide_function_that_waits_for_several_needs_it(drive, cpu, running) -> None:
    """Narrow functions find room soon, and one that waits for a single end misses no gap."""
    d = drive({"a": {"cpu": 4}}, horizon=0.0)
    measured(d, {f"running-{i}": (4 / running, 5.0 + i) for i in range(running)})
    assert len(d.places()) == running
    measured(d, {"waits": (cpu, 50.0)})
    assert not d.places() and not d.engine._ready.reserved


def test_functions_of_one_cost_follow_each_other(drive) -> None:
    """One that waits for its like needs no reservation: short ones are handed ahead as ever."""
    d = drive({"a": {"cpu": 4, "gpu": 1}})
    measured(d, {"side": (1, 30.0)})
    for i in range(9):
        d.engine.duration_known(i, 0.01)
    d.specs(*(FunctionSpec(i, {"cpu": 1, "gpu": 1}, token=i) for i in range(9)))
    d.ready(*range(9))
    decisions = d.poll()
    assert not d.engine._ready.reserved
    assert sum(decision.ahead for decision in decisions if isinstance(decision, Place)) > 0


def test_one_that_the_more_urgent_forestall_gets_a_worker_kept(drive) -> None:
    """When another takes what a wide function would have got, the worker is kept from then on."""
    d = drive({"a": {"cpu": 4}}, horizon=0.0)
    measured(d, {"like": (3, 10.0), "side": (1, 30.0)})
    assert len(d.places()) == 2
    measured(d, {"wide": (3, 50.0)})
    assert not d.places() and not kept(d)
    measured(d, {"urgent": (2, 100.0)})
    d.end("like", after=10.0)
    assert d.places() == {"urgent": "a"}
    assert kept(d) == {"a": "wide"}


@pytest.fixture
def pair(drive) -> Driver:
    """Two workers that drain at 10 s and 20 s; the first is kept for a wide function."""
    d = drive({"a": {"cpu": 4}, "b": {"cpu": 4}}, horizon=0.0)
    measured(d, {"a0": (2, 10.0), "a1": (2, 9.0), "b0": (2, 20.0), "b1": (2, 19.0)})
    where = d.places()
    assert len(where) == 4
    measured(d, {"wide": (4, 50.0)})
    assert not d.places()
    d.sooner, d.later = where["a0"], where["b0"]  # type: ignore[attr-defined]
    assert kept(d) == {d.sooner: "wide"}
    return d


@pytest.mark.parametrize(
    "event",
    [
        lambda d, w: d.engine.worker_removed(w),
        lambda d, w: d.engine.worker_running(w, False),
        lambda d, w: d.join(w, {"cpu": 2}),
    ],
    ids=["lost", "paused", "shrunk"],
)
def test_it_moves_when_its_worker_cannot_serve(pair, event: Callable[..., None]) -> None:
    """The other worker is kept when the first is lost, paused or shrunk."""
    event(pair, pair.sooner)
    assert not pair.places()
    assert kept(pair) == {pair.later: "wide"}


def test_it_goes_with_its_head(pair) -> None:
    """A worker is not kept for a function that was withdrawn, nor for a run that was closed."""
    measured(pair, {"small": (1, 30.0)})
    assert not pair.places()
    pair.engine.function_withdrawn("wide")
    pair.places()
    assert not pair.engine._ready.reserved
    pair.ready("wide")
    pair.places()
    assert kept(pair) == {pair.sooner: "wide"}
    pair.engine.run_closed("run")
    assert not pair.places() and not pair.engine._ready.reserved


def test_the_most_urgent_heads_have_workers_kept(drive) -> None:
    """There are only a few soft reservations; the least urgent head gives way."""
    d = drive({name: {"cpu": 8} for name in "abcd"}, horizon=0.0)
    measured(d, {str(i): (4, 9.0 + i) for i in range(8)})
    assert len(d.places()) == 8
    measured(d, {"low": (8, 20.0)})
    d.places()
    measured(d, {"mid": (7, 30.0)})
    d.places()
    assert set(kept(d).values()) == {"low", "mid"}
    measured(d, {"high": (6, 40.0), "least": (5, 10.0)})
    d.places()
    assert set(kept(d).values()) == {"mid", "high"}


def test_one_that_others_pass_for_long_gets_a_hard_one(busy: Driver) -> None:
    """More urgent functions delay a wide one only so long, if they are of its priority."""
    running = ["first", "second"]
    for i in range(400):
        measured(busy, {f"urgent-{i}": (2, 100.0)})
        busy.end(running.pop(0), after=5.0)
        running += busy.places()
        if "wide" in running:
            break
        assert busy.engine._ready.reserved
    assert "wide" in running


def test_a_hard_reservation_takes_a_worker_that_is_softly_kept(drive) -> None:
    """A stream of wide functions, each with the worker kept for it, starves no other."""
    d = drive({"a": {"cpu": 4}}, horizon=0.0)
    measured(d, {"0": (3, 10.0), "side": (1, 1.0)})
    running = list(d.places())
    d.specs(FunctionSpec("unknown", {"cpu": 4}, expected=1.0))
    d.ready("unknown")
    for i in range(1, 400):
        measured(d, {f"wide-{i}": (3, 10.0), f"side-{i}": (1, 9.0)})
        d.end(running.pop(0), after=5.0)
        running += d.places()
        if "unknown" in running:
            return
    raise AssertionError("starved")


def test_a_run_at_its_limit_keeps_nothing(drive) -> None:
    """No worker is kept for a run that may not start more functions."""
    d = drive({"a": {"cpu": 4}}, horizon=0.0)
    measured(d, {"first": (1, 5.0), "second": (1, 10.0)})
    d.places()
    d.engine.run_opened("limited", max_concurrency=1)
    measured(d, {"wide": (4, 50.0), "narrow": (1, 60.0), "narrow-too": (1, 8.0)}, "limited")
    assert d.places() == {"narrow": "a"}
    assert not d.engine._ready.reserved


def test_a_worker_is_given_back_at_once_when_its_head_is_handed_ahead(drive) -> None:
    """Others get what was kept for a function that waits on another worker now."""
    d = drive({"a": {"cpu": 4}, "b": {"cpu": 4}}, horizon=1.0)
    measured(d, {"whole": (4, 0.2), "half": (2, 0.01), "ends": (2, 0.01)})
    where = d.places()
    assert len(where) == 3
    measured(d, {"narrow": (1, 0.02)})
    d.end("ends")
    measured(d, {"wide": (4, 0.05)})
    decisions = {x.key: x for x in d.poll()}
    assert decisions["wide"].ahead and decisions["wide"].worker == where["whole"]
    assert decisions["narrow"].worker == where["half"]
    assert not d.engine._ready.reserved
