from __future__ import annotations

from typing import Any

import pytest

from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import FunctionSpec, Place, Started, WorkerSpec


def short(d: Any, keys: Any, cost: dict[str, float], seconds: float | None = 0.001, **extra: Any):
    d.specs(*(FunctionSpec(k, cost, expected=seconds, code=str(cost), **extra) for k in keys))
    d.ready(*keys)


def ahead(decisions: list[Any]) -> list[Any]:
    return [d.key for d in decisions if isinstance(d, Place) and d.ahead]


def test_short_functions_are_handed_over_ahead(drive) -> None:
    """A worker gets up to a horizon of work beyond what it runs; that holds no claim."""
    d = drive({"a": {"cpu": 2}}, horizon=0.05)
    short(d, range(1000), {"cpu": 1}, 0.01)
    decisions = d.poll()
    assert [p.ahead for p in decisions[:2]] == [False, False]
    assert len(ahead(decisions)) == 10, "0.05 s of two slots"
    assert d.engine.questions.claimed("a") == {"cpu": 2}
    assert d.count() == (2, 10, 988)


def test_ahead_is_bounded_by_number(drive) -> None:
    """No more wait than max_ahead per function that runs."""
    d = drive({"a": {"cpu": 2}}, horizon=10.0, max_ahead=3)
    short(d, range(100), {"cpu": 1})
    assert len(ahead(d.poll())) == 6


def test_the_unknown_and_the_long_wait_for_a_claim(drive) -> None:
    """Nothing goes ahead before one of its kind was measured, or if it is longer than that."""
    d = drive({"a": {"cpu": 1}})
    short(d, range(50), {"cpu": 1}, None)
    assert ahead(d.poll()) == []
    d.end(0, duration=0.001)
    assert len(ahead(d.poll())) > 10
    e = drive({"a": {"cpu": 1}})
    short(e, range(50), {"cpu": 1}, 1.0)
    assert ahead(e.poll()) == []


@pytest.mark.parametrize("seconds", [3.0, None])
def test_nothing_waits_behind_a_long_one(drive, seconds) -> None:
    """Only functions that are known to end soon have others wait for their slot."""
    d = drive({"a": {"cpu": 2}, "b": {"cpu": 1}})
    short(d, ["long", "long too"], {"cpu": 1}, seconds, priority=1, pin=("a",))
    d.poll()
    short(d, range(100), {"cpu": 1}, 0.005)
    assert {p.worker for p in d.poll()} == {"b"}
    d.end("long")
    handed = [p for p in d.poll() if p.worker == "a"]
    assert len(handed) == 1 + 10, "one runs, and 0.05 s of one slot"
    assert len(ahead(handed)) == 10


def test_others_wait_behind_a_long_one_that_is_about_to_end(drive) -> None:
    """What counts is when it ends."""
    d = drive({"a": {"cpu": 1}})
    short(d, ["long"], {"cpu": 1}, 3.0, priority=1)
    d.poll()
    short(d, range(100), {"cpu": 1}, 0.005)
    assert not d.poll(after=1.0)
    short(d, ["another"], {"cpu": 1}, 0.005)
    assert len(ahead(d.poll(after=1.98))) == 10


def test_an_end_promotes_one_that_waits(drive) -> None:
    """The worker starts the next one itself; whichever it is, the books stay right."""
    d = drive({"a": {"cpu": 1}}, max_ahead=4)
    short(d, range(20), {"cpu": 1})
    d.poll()
    assert d.count() == (1, 4, 15)
    d.end(2)  # the engine thought that one waiting
    assert d.engine.questions.claimed("a") == {"cpu": 1}
    assert d.count() == (1, 3, 15)
    d.end(0, 1, 3)
    assert d.engine.questions.claimed("a") == {"cpu": 1}
    d.end(4)
    assert d.engine.questions.claimed("a") == {"cpu": 0}


def test_what_starts_after_waiting_ahead_is_reported_once(drive) -> None:
    """The next poll says which function has a claim now, unless that one ended meanwhile."""
    d = drive({"a": {"cpu": 1}}, max_ahead=4)
    short(d, range(5), {"cpu": 1})
    assert not any(isinstance(decision, Started) for decision in d.poll())
    d.end(0)
    assert d.poll() == [Started(1)]
    assert d.poll() == []
    d.end(1, 2)
    assert d.poll() == [Started(3)], "2 has ended"
    d.engine.attempt_ended(3, d.now)
    d.engine.worker_removed("a")
    d.ready(3)
    assert d.poll() == []


def test_one_that_secedes_has_started(drive) -> None:
    """A function that gives its slot back runs; no other is reported twice because of it."""
    d = drive({"a": {"cpu": 1}}, max_ahead=4)
    short(d, range(3), {"cpu": 1})
    d.poll()
    d.end(0)
    assert d.poll() == [Started(1)]
    d.engine.slot_released(2)  # so that 1 still waits
    d.end(2)
    assert d.poll() == []


def test_idle_workers_come_first(drive) -> None:
    """Nothing is handed ahead to a worker while another could start it."""
    d = drive({"a": {"cpu": 1}, "b": {"cpu": 1}})
    short(d, range(2), {"cpu": 1})
    assert [p.ahead for p in d.poll()] == [False, False]


def test_what_is_left_is_shared(drive) -> None:
    """Near the end no worker hoards what another could run."""
    d = drive({"a": {"cpu": 1}, "b": {"cpu": 1}}, horizon=10.0)
    short(d, range(22), {"cpu": 1})
    d.poll()
    assert abs(len(d.engine._fleet.workers["a"].ahead) - 10) <= 2
    assert abs(len(d.engine._fleet.workers["b"].ahead) - 10) <= 6


def test_a_trickle_goes_ahead_as_well(drive) -> None:
    """What becomes ready bit by bit does not wait until workers have run dry."""
    d = drive({"a": {"cpu": 1}, "b": {"cpu": 1}}, horizon=10.0)
    short(d, range(42), {"cpu": 1})
    d.poll()
    short(d, range(100, 110), {"cpu": 1})
    d.poll()
    assert d.count()[2] <= 4


def test_only_one_kind_waits_on_a_worker(drive) -> None:
    """Functions of another cost are neither mixed in nor placed behind: they would wait."""
    d = drive({"a": {"cpu": 1, "gpu": 1}})
    short(d, range(40), {"cpu": 1})
    assert ahead(d.poll())
    worker = d.engine._fleet.workers["a"]
    short(d, ["other"], {"gpu": 1})
    assert d.poll() == [], "it would stand behind what it does not compete with"
    assert d.engine.questions.why("other").reason == "ahead"
    waiting = len(worker.ahead)
    for _ in range(waiting):
        d.end(next(iter(worker.placed)).key, after=0.001)
        decisions = [p for p in d.poll() if isinstance(p, Place)]
        if decisions:
            break
    assert next(p.key for p in decisions) == "other", "the queue is not topped up meanwhile"


def test_nothing_goes_ahead_of_the_more_urgent(drive) -> None:
    """While a more urgent function waits for the worker, the next free place is its."""
    d = drive({"a": {"cpu": 4}})
    d.add({"fill": {"cpu": 3}})
    d.poll()
    short(d, ["run"], {"cpu": 1})
    d.poll()
    d.specs(FunctionSpec("urgent", {"cpu": 4}), FunctionSpec("x", {}, ("urgent",)))
    d.ready("urgent")
    short(d, range(20), {"cpu": 1})
    assert d.poll() == []


def test_max_concurrency_counts_what_waits(drive) -> None:
    """A run with a limit has no more than that, ahead or not."""
    d = drive({"a": {"cpu": 1}}, run={"max_concurrency": 3})
    short(d, range(20), {"cpu": 1})
    assert len(d.poll()) == 3


def test_ten_thousand_short_functions_end(drive) -> None:
    """All of a stream of short functions are placed, mostly ahead."""
    d = drive({"a": {"cpu": 2}, "b": {"cpu": 2}})
    short(d, range(2000), {"cpu": 1})
    running = d.poll()
    total = handed = 0
    while running:
        total += len(running)
        handed += len(ahead(running))
        d.end(*(p.key for p in running), after=0.01, duration=0.001)
        running = d.poll()
    assert total == 2000 and handed > 1800
    assert d.engine.questions.claimed("a") == {"cpu": 0}


def test_a_claim_of_others_that_is_replaced():
    """What was handed ahead does not start between the old claim and the new one."""
    engine = Engine(horizon=1000.0)
    engine.worker_added(WorkerSpec("a", "a", "host", {"cpu": 2}, slots=2))
    engine.run_opened("run")
    engine.functions_added("run", [FunctionSpec(i, {"cpu": 1}, code="f") for i in range(4)])
    engine.function_ready(0, 0.0)
    engine.poll(0.0)
    engine.attempt_ended(0, 1.0, duration=1.0, done=True)
    engine.foreign_claimed("other", "a", {"cpu": 1}, slot=True)
    for key in (1, 2, 3):
        engine.function_ready(key, 1.0)
    assert [(place.key, place.ahead) for place in engine.poll(1.0)] == [
        (1, False), (2, True), (3, True),
    ]  # fmt: skip
    engine.foreign_claimed("other", "a", {"cpu": 1})
    assert engine.questions.free("a") == {"cpu": 0}
    assert engine.questions.waits_ahead(2)
    engine.foreign_released("other")
    assert not engine.questions.waits_ahead(2)
