"""What clients do with the futures of functions in bundles: cancel, ask again, try again."""

from __future__ import annotations

import asyncio

from distributed import Client

from handoff_dask import Function, forget, get_run
from tests.support import dag_of
from tests.trust.test_bundles import (
    COUNT,
    DID,
    GO,
    begin,
    chain,
    doing,
    fail,
    fail_first,
    on_cluster,
    quick,
    until,
    wait_for,
)


def same(value):
    return value


def blocked():
    """Return functions of which one blocks each thread, and a chain behind them."""
    return [*(doing(i, wait_for, "go") for i in range(COUNT)), doing("x", int, 1), *chain("x", 5)]


async def begin_blocked(s, **options):
    run, record = await begin(s, dag_of(*blocked(), id="blocked"), 0, "x", **options)
    await until(lambda: DID.count("go") == 2)
    return run, record


@on_cluster()
async def test_a_cancelled_member_is_asked_for_again(c, s, a, b):
    """Its future is cancelled, for other clients as well; its bundle does not run again."""
    run, record = await begin_blocked(s, detach=True)
    await c.cancel([run.futures["x", 4]], force=True)
    await until(lambda: record.counts["cancelled"] == 1)
    GO.set()
    result = await run
    assert list(result.errors) == [("x", 4)]
    bundle = s.tasks[record.bundle_of(COUNT).key]
    number = bundle.run_id
    async with Client(s.address, asynchronous=True, set_as_default=False) as other:
        followed = await get_run("blocked", client=other)
        future = followed.futures["x", 4]
        await until(future.cancelled)
        assert await followed.futures["x", 3] == 1
        assert bundle.run_id == number
        del followed, future
    del run
    await forget("blocked")


@on_cluster()
async def test_cancelled_with_what_depends_on_it(c, s, a, b):
    """Futures of what is cancelled with a member are cancelled; the run goes on."""
    run, record = await begin_blocked(s)
    first, second, end = (run.futures[id] for id in ("x", ("x", 0), ("x", 4)))
    await until(lambda: end.key in s.tasks)
    await c.cancel([first, second])
    await until(lambda: record.counts["cancelled"] == 6)
    GO.set()
    result = await asyncio.wait_for(run, 30)
    assert end.cancelled()
    assert set(result.results) == set(range(COUNT))
    assert len(result.errors) == 6


@on_cluster()
async def test_cancelled_while_another_client_wants_it(c, s, a, b):
    """Without force, only the future of the client that cancels is."""
    run, record = await begin_blocked(s, detach=True)
    async with Client(s.address, asynchronous=True, set_as_default=False) as other:
        followed = await get_run("blocked", client=other)
        future = followed.futures["x", 4]
        key, wants = future.key, s.clients[other.id].wants_what
        await until(lambda: key in {ts.key for ts in wants})
        await other.cancel([future])
        await until(lambda: key not in {ts.key for ts in wants})
        assert not record.counts["cancelled"]
        GO.set()
        assert await run.futures["x", 4] == 1
        del followed, future
    assert not (await run).errors
    del run
    await forget("blocked")


@on_cluster()
async def test_a_member_is_tried_again(c, s, a, b):
    """It has all its retries, and what failed because of it follows, in its bundle and outside."""
    dag = dag_of(
        *quick(),
        doing("bad", fail_first, 4, "bad", max_retries=1),
        doing("inside", same, args=["bad"]),
        Function("outside", ["inside"], same, node=str(a.name)),
        Function("all", [*range(COUNT), "bad"], lambda *values: len(values)),
        doing("worse", fail),
    )
    run, _ = await begin(s, dag, "bad", "inside", on_error="continue")
    result = await run
    assert set(result.errors) == {"bad", "inside", "outside", "all", "worse"}
    await run.futures["bad"].retry()  # at once: the scheduler may not know its future yet
    assert isinstance(await run.futures["bad"].exception(), ValueError)
    await run.futures["all"].retry()
    assert await asyncio.wait_for(run.futures["all"].result(), 30) == COUNT + 1
    assert await asyncio.wait_for(run.futures["outside"].result(), 30) == "bad"
    assert await asyncio.wait_for(run.futures["inside"].result(), 30) == "bad"
    status = await run.status()
    assert [x.number for x in status["attempts"]["bad"]] == [1, 2, 3, 4, 5]
    assert [x.outcome for x in status["attempts"]["bad"]] == ["error"] * 4 + ["ok"]
    assert (status["done"], status["failed"]) == (COUNT + 4, 1)
    assert isinstance(await run.futures["worse"].exception(), ValueError)


@on_cluster()
async def test_an_input_of_a_bundle_is_tried_again(c, s, a, b):
    """The functions that had failed because of it run."""
    dag = dag_of(
        Function("first", [], fail_first, extra_args=[2, "first"], max_retries=1),
        *(doing(("use", i), same, args=["first"]) for i in range(COUNT)),
    )
    run, record = await begin(s, dag, ("use", 0), on_error="continue")
    assert len((await run).errors) == COUNT + 1
    future = run.futures["use", 3]
    assert isinstance(await asyncio.wait_for(future.exception(), 30), ValueError)
    await run.futures["use", 5].retry()
    await until(lambda: future.status != "error")
    for i in (3, 5, 7):
        assert await asyncio.wait_for(run.futures["use", i].result(), 30) == "first"
    await until(lambda: record.counts["done"] == COUNT + 1)
    assert record.counts["failed"] == 0


@on_cluster()
async def test_a_member_is_tried_again_while_others_run(c, s, a, b):
    """It need not wait for the end of its bundle."""
    dag = dag_of(
        doing("bad", fail_first, 2, "bad", max_retries=1),
        *(doing(i, wait_for, "go") for i in range(COUNT)),
    )
    run, record = await begin(s, dag, "bad", 0, on_error="continue")
    await until(lambda: record.counts["failed"] == 1 and DID.count("go") == 2)
    await run.futures["bad"].retry()
    assert (record.counts["failed"], record.bundle_of(1).state.shown) == (0, "running")
    GO.set()
    result = await asyncio.wait_for(run, 30)
    assert result.results["bad"] == "bad"
    assert not result.errors and len(result.attempts["bad"]) == 3
