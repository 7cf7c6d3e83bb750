from __future__ import annotations

from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from handoff_dask.placement import ranking
from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import FunctionSpec, WorkerSpec


def order(engine: Engine, *, seconds=lambda key: None, now: float = 0.0) -> list:
    """Run what is ready one by one on one worker; return the order."""
    done = []
    while places := engine.poll(now):
        for place in places:
            done.append(place.key)
            now += 1
            engine.attempt_ended(place.key, now, duration=seconds(place.key), done=True)
    return done


def one_slot(*specs: FunctionSpec, ready: object = None, **options) -> Engine:
    engine = Engine(horizon=0.0, **options)
    engine.worker_added(WorkerSpec("w", "w", "h", {"cpu": 4, "gpu": 1}, 1))
    engine.run_opened("run")
    engine.functions_added("run", specs)
    for spec in specs:
        if not spec.dependencies:
            engine.function_ready(spec.key, 0.0)
    return engine


def test_hops_count_while_nothing_is_known() -> None:
    """The function with the longest chain behind it goes first."""
    engine = one_slot(
        FunctionSpec("short", {}),
        FunctionSpec("long", {}),
        FunctionSpec("after", {}, ("long",)),
    )
    assert order(engine) == ["long", "short"]


def test_the_widest_goes_first_of_those_that_are_as_urgent() -> None:
    """What a measurement is off by anyway doesn't decide; what is wide is hard to fit in later."""
    seconds = {"narrow": 1.004, "wide": 1.0, "longer": 1.02}
    engine = one_slot(
        *(
            FunctionSpec(key, {"cpu": 4 if key == "wide" else 1}, token=key, code="f")
            for key in seconds
        )
    )
    for key, known in seconds.items():
        engine.duration_known(key, known)
    assert order(engine) == ["longer", "wide", "narrow"]


def test_the_order_specs_come_in_does_not_matter() -> None:
    """Dependencies may come after their dependents."""
    engine = one_slot(
        FunctionSpec("c", {}, ("b",)),
        FunctionSpec("b", {}, ("a",)),
        FunctionSpec("x", {}),
        FunctionSpec("a", {}),
    )
    assert order(engine) == ["a", "x"]


def test_seconds_beat_hops() -> None:
    """What was measured counts: a long function goes before a chain of short ones."""
    specs = [
        FunctionSpec("chain", {}, code="quick"),
        FunctionSpec("after", {}, ("chain",), code="quick"),
        FunctionSpec("long", {}, code="slow"),
    ]
    engine = one_slot(*specs)
    assert order(engine)[0] == "chain"
    engine.attempt_ended("chain", 0.0)
    for code, seconds in (("quick", 1.0), ("slow", 60.0)):
        engine._durations.learn(None, code, seconds)
    engine.run_closed("run")
    engine.run_opened("run")
    engine.functions_added("run", specs)
    engine.function_ready("chain", 0.0)
    engine.function_ready("long", 0.0)
    assert order(engine) == ["long", "chain"]


def test_a_second_run_knows_what_the_first_one_measured() -> None:
    """Each function is ranked by its own time in the run before, not by its family's."""
    seconds = {0: 1.0, 1: 50.0, 2: 3.0, 3: 20.0}
    specs = [FunctionSpec(i, {}, code="same", token=("dag", i)) for i in range(4)]
    engine = one_slot(*specs)
    assert order(engine, seconds=seconds.get) == [0, 1, 2, 3]
    engine.run_closed("run")
    engine.run_opened("run")
    engine.functions_added("run", specs)
    for i in range(4):
        engine.function_ready(i, 0.0)
    assert order(engine, seconds=seconds.get) == [1, 3, 2, 0]


def test_knowledge_is_used_within_the_run() -> None:
    """Once one of a family was measured, the others are ranked by it."""
    specs = [FunctionSpec(f"{code}{i}", {}, code=code) for i in range(3) for code in "ab"]
    engine = one_slot(*specs)
    ran = order(engine, seconds=lambda key: 10.0 if key[0] == "b" else 0.1)
    assert ran == ["a0", "b0", "b1", "b2", "a1", "a2"]


def test_what_is_expected_counts_until_it_is_measured() -> None:
    """The caller's expectation ranks a function that was never measured."""
    engine = one_slot(
        FunctionSpec("a", {}, code="a", expected=1.0),
        FunctionSpec("b", {}, code="b", expected=2.0),
    )
    assert order(engine) == ["b", "a"]


def test_among_equals_the_larger_goes_first() -> None:
    """With nothing else to tell them apart, what is hardest to fit is placed first."""
    engine = one_slot(
        FunctionSpec("small", {"cpu": 1}),
        FunctionSpec("gpu", {"gpu": 1}),
        FunctionSpec("big", {"cpu": 3}),
    )
    assert order(engine) == ["gpu", "big", "small"]


def test_ranking_costs_a_bounded_amount_per_function() -> None:
    """However often estimates move, a run is ranked anew a few times only."""
    specs = [FunctionSpec(i, {}, code=f"code-{i}") for i in range(500)]
    engine = one_slot(*specs)
    ranked: list[int] = []

    def rank(run, durations):
        ranked.append(len(run.order))
        return original(run, durations)

    original = ranking.rank
    with mock.patch.object(ranking, "rank", rank):
        order(engine, seconds=lambda i: 2.0 ** (i % 7))
    assert 500 < sum(ranked) < 30 * 500


PRIORITIES = st.lists(
    st.tuples(st.integers(-2, 2), st.integers(-2, 2), st.sampled_from([{"cpu": 1}, {"gpu": 1}])),
    min_size=1,
    max_size=12,
)


@given(PRIORITIES)
def test_higher_priority_goes_first(functions) -> None:
    """A function's priority is added to its run's; the order holds over runs and costs."""
    engine = Engine(horizon=0.0)
    engine.worker_added(WorkerSpec("w", "w", "h", {"cpu": 4, "gpu": 1}, 1))
    for run in range(-2, 3):
        engine.run_opened(run, priority=run)
    for key, (run, priority, cost) in enumerate(functions):
        engine.functions_added(run, [FunctionSpec(key, cost, priority=priority)])
        engine.function_ready(key, 0.0)
    done = order(engine, seconds=lambda key: 1.0 + key)
    summed = [sum(functions[key][:2]) for key in done]
    assert len(done) == len(functions) and summed == sorted(summed, reverse=True)


def test_priority_comes_before_the_remaining_path() -> None:
    """What is more urgent by its path goes first among equals only, also when ranked anew."""
    engine = one_slot(
        FunctionSpec("last", {}, priority=-1, code="a"),
        FunctionSpec("long", {}, code="b"),
        FunctionSpec("after", {}, ("long",), code="c"),
        FunctionSpec("first", {}, priority=0.5, code="a"),
        FunctionSpec("short", {}, code="a"),
    )
    assert order(engine, seconds=lambda key: 5.0) == ["first", "long", "short", "last"]


def test_a_reservation_goes_to_what_has_priority() -> None:
    """A wide function of high priority gets the worker before narrow ones of low priority do."""
    engine = Engine(horizon=0.0)
    engine.worker_added(WorkerSpec("w", "w", "h", {"cpu": 2}, 2))
    engine.run_opened("run")
    specs = [FunctionSpec(i, {"cpu": 1}, code="n", expected=1.0 + i % 2) for i in range(40)]
    wide = FunctionSpec("wide", {"cpu": 2}, code="w", expected=1.0, priority=1)
    engine.functions_added("run", [*specs, wide])
    for i in range(40):
        engine.function_ready(i, 0.0)
    ends = [(specs[p.key].expected, p.key) for p in engine.poll(0.0)]
    engine.function_ready("wide", 0.0)
    started = []
    while "wide" not in started:
        ends.sort()
        now, key = ends.pop(0)
        engine.attempt_ended(key, now, duration=specs[key].expected, done=True)
        for place in engine.poll(now):
            started.append(place.key)
            if place.key != "wide":
                ends.append((now + specs[place.key].expected, place.key))
    assert len(started) < 10
