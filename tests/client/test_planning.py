"""plan(): the engine against the clock of a simulation."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import dask
import pytest

from handoff_dask import (
    AllocationError,
    Argument,
    CyclicDependencyError,
    Function,
    RetryPolicy,
    collocated,
    execute_local,
    plan,
)
from handoff_dask.client import planning
from handoff_dask.placement.simulation import SimulatedRun
from tests.support import dag_of


def f(id_, *args, **fields):
    return Function(id=id_, args=args, code=lambda *_: None, **fields)


def test_functions_run_in_turns_where_their_cost_is_free():
    """Three functions that need a whole worker take two turns on two workers."""
    planned = plan(
        dag_of(*(f(i, cost={"cpu": 2}) for i in range(3))),
        {"a": {"cpu": 2}, "b": {"cpu": 2}},
        {i: 1.0 for i in range(3)},
    )
    assert planned.makespan == 2.0
    assert sorted(len(slots) for slots in planned.timeline.values()) == [1, 2]
    assert planned.utilisation == {"cpu": pytest.approx(0.75)}
    assert "makespan 2 s" in str(planned)


def test_dependencies_pins_collocation_and_inline_functions():
    """A plan keeps to the order, the pins and the collocations; inline functions are not in it."""
    dag = dag_of(
        f("in", type="inline"),
        f("first", "in", node="b"),
        f("second", Argument("first", bytes, bytes), node=collocated("first")),
    )
    planned = plan(dag, {"a": {"cpu": 1}, "b": {"cpu": 1}}, {"first": 1.0, "second": 2.0})
    assert planned.timeline == {"a": [], "b": [("first", 0.0, 1.0), ("second", 1.0, 3.0)]}


def test_priorities_and_preferences():
    """A plan keeps to priorities, to nodes of several workers and, where that pays, to wishes."""
    dag = dag_of(
        f("low", priority=-1, node=("a", "c")),
        f("high", priority=1, node=("a", "nobody")),
        f("wish", node=("b",), allow_other_workers=True),
        f("vain", node="nobody", allow_other_workers=True, priority=-2),
    )
    workers = {name: {"cpu": 1, "threads": 1} for name in "ab"}
    planned = plan(dag, workers, dict.fromkeys(dag.functions, 1.0))
    assert planned.timeline == {
        "a": [("high", 0.0, 1.0), ("low", 1.0, 2.0)],
        "b": [("wish", 0.0, 1.0), ("vain", 1.0, 2.0)],
    }
    with pytest.raises(AllocationError, match="no worker answers to any of 'x', 'y'"):
        plan(dag_of(f("f", node=("x", "y"))), workers, {"f": 1.0})


def test_units():
    """Memory of workers, durations and the overhead may be written with their units."""
    dag = dag_of(*(f(i, cost={"memory": "1 GB"}) for i in range(4)))
    durations = {0: "1 min", 1: timedelta(minutes=1), 2: 60, 3: "60s"}
    workers = {"a": {"threads": 8, "memory": "2.5 GB"}}
    assert plan(dag, workers, durations).makespan == 120.0
    assert plan(dag, workers, durations, overhead="15s").makespan == pytest.approx(180.0, rel=0.1)
    with pytest.raises(ValueError, match=r"the duration of function 3 must be .* '5 min'"):
        plan(dag, workers, durations | {3: "5 parsecs"})
    with pytest.raises(ValueError, match="overhead must be"):
        plan(dag, workers, durations, overhead="none")


def test_threads_limit_what_runs_at_once():
    """A worker runs as many functions as it has threads, whatever they cost."""
    dag = dag_of(*(f(i) for i in range(4)))
    seconds = {i: 1.0 for i in range(4)}
    assert plan(dag, {"a": {"cpu": 8, "threads": 2}}, seconds).makespan == 2.0
    assert plan(dag, {"a": {"cpu": 4}}, seconds).makespan == 1.0


def test_max_concurrency():
    """The limit of a run holds in its plan."""
    dag = dag_of(*(f(i) for i in range(4)))
    seconds = {i: 1.0 for i in range(4)}
    assert plan(dag, {"a": {"cpu": 4}}, seconds, max_concurrency=1).makespan == 4.0


def test_overhead_is_counted_for_each_start():
    """A chain takes two overheads longer for each of its functions, always the same."""
    dag = dag_of(f(0), *(f(i, i - 1) for i in range(1, 10)))
    arguments = dag, {"a": {"cpu": 1}}, {i: 1.0 for i in range(10)}
    planned = plan(*arguments, overhead=0.5)
    assert planned.makespan == pytest.approx(20.0, rel=0.05)
    assert planned == plan(*arguments, overhead=0.5)
    assert plan(*arguments).makespan == 10.0


def test_durations_of_an_earlier_result():
    """The result of a run is as good as a mapping of durations."""
    dag = dag_of(f("a"), f("b", "a"))
    result = execute_local(dag)
    expected = sum(tried[0].duration for tried in result.attempts.values())
    assert plan(dag, {"w": {"cpu": 1}}, result).makespan == pytest.approx(expected)


def test_mistakes_are_named():
    """What is wrong with the input of a plan is an error that names it."""
    dag = dag_of(f("a", cost={"gpu": 2}))
    with pytest.raises(AllocationError, match=r"'a'.*gpu") as caught:
        plan(dag, {"w": {"gpu": 1}}, {"a": 1})
    assert caught.value.shortfall == {"gpu": (2, 1)}
    with pytest.raises(ValueError, match="no entry for function 'a'"):
        plan(dag, {"w": {"gpu": 2}}, {})
    with pytest.raises(ValueError, match=r"duration of function 'a'"):
        plan(dag, {"w": {"gpu": 2}}, {"a": -1})
    with pytest.raises(ValueError, match="capabilities"):
        plan(dag, {"w": {"gpu": -2}}, {"a": 1})
    with pytest.raises(ValueError, match="overhead"):
        plan(dag, {"w": {"gpu": 2}}, {"a": 1}, overhead=-1)
    with pytest.raises(ValueError, match="no worker"):
        plan(dag, {}, {"a": 1})
    with pytest.raises(ValueError, match="strategy"):
        plan(dag, {"w": {"gpu": 2}}, {"a": 1}, allocation_strategy="best")
    with pytest.raises(CyclicDependencyError):
        plan(dag_of(f("a", "a")), {"w": {}}, {"a": 1})


@pytest.mark.parametrize(("size", "times"), [(3, 15), (1000, 5), (1250, 5), (6000, 1)])
def test_small_dags_are_simulated_more_often(monkeypatch, size, times):
    """Chance decides less in a large DAG, and it takes long; there is always a median."""
    made = []

    def simulate(*args, seed, **options):
        made.append(SimulatedRun({}, float(-seed), {}, {}))
        return made[-1]

    monkeypatch.setattr(planning, "simulate", simulate)
    dag = dag_of(*(f(i) for i in range(size)))
    planned = plan(dag, {"a": {"cpu": 1}}, dict.fromkeys(range(size), 1.0))
    assert len(made) == times
    assert planned.makespan == -(times // 2)


def test_bundles_of_short_functions():
    """A plan bundles what a run bundles; each function has its own slot."""
    dag = dag_of(*(f(i, cost={"cpu": 1}) for i in range(400)))
    durations = dict.fromkeys(range(400), "1 ms")
    workers = {name: {"cpu": 1} for name in "ab"}
    # A message for each start: of functions, or of bundles.
    assert plan(dag, workers, durations, overhead="1 ms", bundle=False).makespan > 0.35
    bundled = plan(dag, workers, durations, overhead="1 ms", bundle="50 ms")
    assert 0.2 < bundled.makespan < 0.25
    assert bundled == plan(dag, workers, durations, overhead="1 ms")
    slots = [slot for slots in bundled.timeline.values() for slot in slots]
    assert sorted(slot.id for slot in slots) == list(range(400))
    for row in bundled.timeline.values():
        assert all(before.stop <= after.start for before, after in pairwise(row))


def test_bundles_do_not_cost_makespan():
    """Without overhead, bundles are as good as single functions: all threads end together."""
    dag = dag_of(*(f(i) for i in range(1000)))
    durations = dict.fromkeys(range(1000), "5 ms")
    workers = {name: {"cpu": 4} for name in "abcd"}
    single = plan(dag, workers, durations, bundle=0)
    bundled = plan(dag, workers, durations)
    assert bundled.makespan <= single.makespan
    for row in bundled.timeline.values():
        assert row == sorted(row, key=lambda slot: slot.start), "in order of start"


def test_bundles_are_made_of_what_asks_for_nothing_more():
    """A pin or a delay before retries keeps a function out of bundles."""
    fields = [{"node": "a"}, {"retry": RetryPolicy(delay=1)}]
    workers = {"a": {"cpu": 1}}
    for extra in fields:
        dag = dag_of(*(f(i, **extra) for i in range(50)))
        durations = dict.fromkeys(range(50), 0.001)
        arguments = dag, workers, durations
        assert plan(*arguments, overhead=1e-3) == plan(*arguments, overhead=1e-3, bundle=False)


def test_the_setting_for_bundles_counts():
    """Without the argument, `handoff.bundle` says whether functions are bundled."""
    dag = dag_of(*(f(i) for i in range(100)))
    arguments = dag, {"a": {"cpu": 1}}, dict.fromkeys(range(100), 0.001)
    with dask.config.set({"handoff.bundle": False}):
        off = plan(*arguments, overhead=0.001)
    assert off == plan(*arguments, overhead=0.001, bundle=0)
    assert off.makespan > 1.5 * plan(*arguments, overhead=0.001).makespan
    for wrong in (-1, "much", True):
        with pytest.raises(ValueError, match="bundle must be"):
            plan(*arguments, bundle=wrong)
        with dask.config.set({"handoff.bundle": wrong}), pytest.raises(ValueError):
            plan(*arguments)
