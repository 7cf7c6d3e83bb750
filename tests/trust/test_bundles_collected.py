"""Functions with many inputs get those from bundles together, whatever happens to these."""

from __future__ import annotations

import asyncio

import pytest

from handoff_dask import Function, FunctionFailedError, RunCancelledError, register_node
from handoff_dask.client import sending
from handoff_dask.wire.keys import is_collected
from tests.support import dag_of
from tests.trust.test_bundles import (
    COUNT,
    DID,
    GO,
    before,
    begin,
    check_attempts,
    did,
    doing,
    fail,
    fail_first,
    on_cluster,
    quick,
    sleep,
    sum_of,
    until,
    wait_for,
)

#: What the functions of `quick` return, in all.
TOTAL = sum(range(COUNT))


def collector(ids, **fields):
    """Return a function that needs them all and has no place yet."""
    return Function("all", list(ids), sum_of, cost={"cpu": 1, "token": 1}, **fields)


def collecting(s):
    """Return the tasks that take values of a bundle together."""
    return [ts for key, ts in s.tasks.items() if is_collected(key)]


async def give_token(worker):
    await register_node(worker.address, {"token": 1})


@on_cluster()
async def test_values_are_taken_together(c, s, a, b):
    """The collector has one input for each bundle, and no member gets a task of its own."""
    dag = dag_of(*quick(), collector(range(COUNT)))
    run, record = await begin(s, dag, 0, results=["all"], placement_timeout=60)
    assert len(collecting(s)) == len(record.bundles)
    await give_token(b)
    result = await run
    assert result.results == {"all": TOTAL}
    check_attempts(result, COUNT + 1)


@on_cluster()
async def test_a_member_fails(c, s, a, b):
    """The collector fails with it and does not run; the others are done."""
    dag = dag_of(*quick(), doing("bad", fail), collector([*range(COUNT), "bad"]))
    run, _ = await begin(s, dag, "bad", on_error="continue", placement_timeout=60)
    await give_token(b)
    result = await run
    assert result.results == {i: i for i in range(COUNT)}
    assert set(result.errors) == {"bad", "all"}
    assert all(isinstance(error, FunctionFailedError) for error in result.errors.values())
    assert "'bad'" in str(result.errors["all"])
    assert "all" not in result.attempts


@on_cluster()
async def test_members_leave(c, s, a, b):
    """The collector gets the values of those that travel alone, each at its place."""
    dag = dag_of(
        *(doing(i, sleep, 0.3 if i < 6 else 0, i) for i in range(COUNT)),
        Function("all", list(reversed(range(COUNT))), list_of),
    )
    run, record = await begin(s, dag, *range(8), results=["all"])
    result = await run
    assert record.left
    assert result.results == {"all": list(reversed(range(COUNT)))}
    check_attempts(result, COUNT + 1)


def list_of(*values):
    return list(values)


@on_cluster()
async def test_a_member_is_cancelled(c, s, a, b):
    """A member that a collector needs is not cancelled alone: the run is."""
    dag = dag_of(
        doing(0, wait_for, "go"),
        *(doing(i, did, i) for i in range(1, COUNT)),
        collector(range(COUNT)),
    )
    run, record = await begin(s, dag, 0, placement_timeout=60)
    await until(lambda: "go" in DID)
    waiting = record.bundle_of(0).bundle.members[-1]
    await c.cancel([run.futures[waiting]])
    GO.set()
    with pytest.raises(RunCancelledError):
        await asyncio.wait_for(run, 30)


@on_cluster()
async def test_a_worker_lost_before_the_values_are_taken(c, s, a, b):
    """The bundle that ran there runs again, elsewhere, and the collector gets all values."""
    dag = dag_of(
        *(doing(i, *([wait_for, "go"] if i == 3 else [int, i])) for i in range(COUNT)),
        collector(range(COUNT)),
    )
    run, record = await begin(s, dag, 3, results=["all"], placement_timeout=60)
    await until(lambda: "go" in DID)
    bundle = record.bundle_of(3)
    at, other = (a, b) if bundle.worker == a.address else (b, a)
    closing = asyncio.create_task(at.close())
    await until(lambda: at.address not in s.workers)
    GO.set()
    await closing
    await give_token(other)
    result = await asyncio.wait_for(run, 60)
    assert result.results == {"all": TOTAL - 3 + 1}
    assert {attempts[-1].outcome for attempts in result.attempts.values()} == {"ok"}


@on_cluster()
async def test_a_worker_lost_after_the_values_are_taken(c, s, a, b):
    """What was taken there is made again, by those members alone, and once."""
    dag = dag_of(*quick(), collector(range(COUNT)))
    run, record = await begin(s, dag, 0, results=["all"], placement_timeout=60)
    await until(lambda: all(ts.state == "memory" for ts in collecting(s)))
    assert record.counts["done"] == COUNT
    await a.close()
    await give_token(b)
    result = await asyncio.wait_for(run, 60)
    assert result.results == {"all": TOTAL}
    assert {len(attempts) for attempts in result.attempts.values()} <= {1, 2}
    assert set(result.allocations.values()) == {b.address}


@on_cluster()
async def test_a_collector_in_a_later_portion(c, s, a, b):
    """It gets its values from bundles of earlier portions, too."""
    before_, sending.PORTION = sending.PORTION, 40
    try:
        dag = dag_of(*quick(), Function("all", list(range(COUNT)), sum_of))
        run, record = await begin(s, dag, 0, results=["all"])
        result = await asyncio.wait_for(run, 60)
    finally:
        sending.PORTION = before_
    assert len(record.portions) > 1
    assert result.results == {"all": TOTAL}
    check_attempts(result, COUNT + 1)


@on_cluster()
async def test_events(c, s, a, b):
    """A listener hears of a collector after all members that it needs."""
    events = []
    dag = dag_of(
        *quick(), doing("bad", fail_first, 1, "bad"), collector(range(COUNT), max_retries=1)
    )
    run, _ = await begin(s, dag, 0, on_event=events.append, placement_timeout=60)
    await give_token(b)
    await run
    del run
    await until(lambda: type(events[-1]).__name__ == "RunClosed")
    named = [(type(e).__name__, e.function) for e in events if hasattr(e, "function")]
    placed = named.index(("FunctionPlaced", "all"))
    assert all(named.index(("FunctionEnded", i)) < placed for i in range(COUNT))
    assert [name for name, id in named if id == "all"] == [
        "FunctionPlaced",
        "AttemptEnded",
        "FunctionEnded",
    ]


@on_cluster()
async def test_two_collectors(c, s, a, b):
    """Each gets its own, also values that other members need, and a single value beside them."""
    dag = dag_of(
        *quick(),
        *(doing(("next", i), before, args=[i]) for i in range(COUNT)),
        Function("first", list(range(COUNT)), sum_of),
        Function("second", [("next", i) for i in range(COUNT)], sum_of),
        Function("one", [7], abs, node=str(a.name)),
    )
    run, _ = await begin(s, dag, 0, results=["first", "second", "one"])
    result = await run
    assert result.results == {"first": TOTAL, "second": COUNT, "one": 7}
    check_attempts(result, 2 * COUNT + 3)
