from __future__ import annotations

import pytest

from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import FunctionSpec, WorkerSpec


def stream(
    *,
    workers: int,
    small: dict[str, float],
    big: dict[str, float],
    pin: tuple[str, ...] = (),
    priority: float = 0,
    chain: int = 1,
    seconds: float | None = None,
    big_seconds: float | None = None,
) -> int | None:
    """Keep workers busy with small functions that end one by one; return how many were placed
    before the big one was, None if that never happened."""
    engine = Engine(horizon=0.0)
    for i in range(workers):
        engine.worker_added(WorkerSpec(f"w{i}", f"n{i}", "h", {"cpu": 4}, 4))
    engine.run_opened("big", priority=0)
    engine.run_opened("small", priority=priority)
    engine.functions_added(
        "big", [FunctionSpec("big", big, pin=pin, code="big", expected=big_seconds)]
    )
    count = 200 * workers
    for i in range(count):
        key = ("small", i)
        rest = [
            FunctionSpec((*key, j), small, ((*key, j - 1) if j > 1 else key,))
            for j in range(1, chain)
        ]
        spec = FunctionSpec(key, small, code="small", expected=seconds)
        engine.functions_added("small", [spec, *rest])
    for i in range(8 * workers):
        engine.function_ready(("small", i), 0.0)
    now = 0.0
    running = [d.key for d in engine.poll(now)]
    engine.function_ready("big", now)
    placed, ready = len(running), 8 * workers
    while running and ready < count:
        now += 1.0
        engine.attempt_ended(running.pop(0), now, done=True)
        engine.function_ready(("small", ready), now)
        ready += 1
        for decision in engine.poll(now):
            if decision.key == "big":
                return placed
            placed += 1
            running.append(decision.key)
    return None


@pytest.mark.parametrize("workers", [1, 2, 4, 20])
def test_a_whole_worker_is_got_in_bounded_time(workers: int) -> None:
    """A stream of small functions does not starve one that needs a whole busy worker."""
    placed = stream(workers=workers, small={"cpu": 1}, big={"cpu": 4})
    assert placed is not None and placed <= 8 * workers + 4 * min(8, 2 * workers) + 4


def test_a_pinned_function_is_not_starved() -> None:
    """The same when it may only go to one worker."""
    placed = stream(workers=4, small={"cpu": 1}, big={"cpu": 4}, pin=("w2",))
    assert placed is not None and placed < 400


def test_more_urgent_functions_delay_only_so_long() -> None:
    """A stream of functions with longer paths behind them does not starve it either."""
    placed = stream(workers=2, small={"cpu": 1}, big={"cpu": 4}, chain=5)
    assert placed is not None and placed < 350


def test_equals_wait_longer_than_the_more_urgent() -> None:
    """The more urgent those that overtake it, the longer a function waits; but not for ever."""
    small = {"cpu": 1}
    equal, longer, unknown = (
        stream(workers=2, small=small, big={"cpu": 4}, seconds=1.0, big_seconds=big)
        for big in (1.0, 2.0, None)
    )
    assert equal is not None and longer is not None and unknown is not None
    assert unknown <= longer < equal < 200
    lower = stream(
        workers=2, small=small, big={"cpu": 4}, priority=-1, seconds=1.0, big_seconds=1.0
    )
    assert lower == unknown, "what is of lower priority is never an equal"


def test_a_higher_priority_goes_first() -> None:
    """A run of higher priority may take all there is: that is what priority means."""
    assert stream(workers=2, small={"cpu": 1}, big={"cpu": 4}, priority=1) is None


def test_what_does_not_compete_is_not_held_up(drive) -> None:
    """While a worker is kept for one function, others use what that one does not need."""
    d = drive({"a": {"cpu": 4, "gpu": 1}}, slots=99, horizon=0.0)
    d.add({i: {"cpu": 1} for i in range(4)})
    d.places()
    d.add({"big": {"cpu": 4}})
    now = {i: {"cpu": 1} for i in range(10, 90)}
    d.add(now)
    running = list(range(4))
    for _ in range(60):
        d.end(running.pop(0), after=1.0)
        running += d.places()
        if d.engine._ready.reserved:
            break
    assert d.engine._ready.reserved
    d.add({"gpu": {"gpu": 1}})
    d.end(running.pop(0))
    assert "gpu" in d.places()
    assert d.engine.questions.why(89).reason in ("reserved", "resources")


def test_what_ends_in_time_may_run_meanwhile(drive) -> None:
    """With known durations, short functions use a reserved worker till it is needed."""
    d = drive({"a": {"cpu": 4}}, horizon=0.0)
    d.specs(FunctionSpec("long", {"cpu": 3}, expected=100.0, code="long"))
    d.ready("long")
    d.places()
    d.specs(FunctionSpec("big", {"cpu": 4}, expected=500.0, code="big"))
    d.ready("big")
    d.specs(*(FunctionSpec(i, {"cpu": 1}, expected=2.0, code="short") for i in range(60)))
    d.ready(*range(60))
    short = 0
    for _ in range(45):
        for key in d.places():
            short += 1
            assert key != "big"
            d.end(key, after=2.0)
    assert short >= 45, "they fill the time until the long one ends"
    assert d.engine._ready.reserved


def test_a_lost_worker_is_not_kept(drive) -> None:
    """A reservation goes with its worker, and when nobody waits for it any more."""
    d = drive({"a": {"cpu": 4}}, horizon=0.0)
    d.add({i: {"cpu": 1} for i in range(4)})
    d.places()
    d.add({"big": {"cpu": 4}, **{i: {"cpu": 1} for i in range(10, 60)}})
    running = list(range(4))
    while not d.engine._ready.reserved:
        d.end(running.pop(0), after=1.0)
        running += d.places()
    d.engine.worker_running("a", False)
    assert not d.engine._ready.reserved
    d.engine.worker_running("a", True)
    while not d.engine._ready.reserved:
        d.end(running.pop(0), after=1.0)
        running += d.places()
    d.engine.function_withdrawn("big")
    assert not d.engine._ready.reserved
    free = d.engine.questions.free("a")["cpu"]
    assert len(d.places()) == free, "all that was kept is used"


def test_a_kept_worker_stays_at_work() -> None:
    """What runs beside a reserved function gives its room to the next that does, time and again."""
    engine = Engine(horizon=0.0)
    engine.worker_added(WorkerSpec("gpu", "gpu", "h", {"cpu": 4, "gpu": 1}, 4))
    engine.run_opened("run")
    engine.functions_added("run", [FunctionSpec("train", {"gpu": 1}, code="train")])
    engine.function_ready("train", 0.0)
    assert [place.key for place in engine.poll(0.0)] == ["train"]
    count = 200
    specs = [FunctionSpec(i, {"cpu": 2}, code="small") for i in range(count)]
    specs.append(FunctionSpec("next", {"cpu": 1, "gpu": 1}, code="next"))
    engine.functions_added("run", specs)
    for spec in reversed(specs):
        engine.function_ready(spec.key, 1.0)
    running = [place.key for place in engine.poll(1.0)]
    for now in range(2, count):
        engine.attempt_ended(running.pop(0), now, duration=1.0, done=True)
        running += [place.key for place in engine.poll(now)]
        assert running, f"nothing runs after {now} ends, and yet {engine.questions.why('next')}"
    engine.attempt_ended("train", count, duration=count, done=True)
    assert "next" in [place.key for place in engine.poll(count)]
