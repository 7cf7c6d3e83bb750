"""How long a run waits for missing capacity, and what a returning worker brings back."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
from distributed import Event, Nanny, Status, Worker
from distributed.utils_test import gen_cluster

from handoff_dask import (
    AllocationError,
    Function,
    discover_nodes,
    execute,
    explain,
    get_run,
    list_runs,
    register_node,
    submit,
)
from tests.support import assert_clean, dag_of, where
from tests.trust.test_declarations import hold, until

#: Seconds that no test here takes, unless it waits for the wrong thing.
LONG = 3600
PATIENT = {"handoff.lost-capacity-grace": f"{LONG}s"}
ONE = [("127.0.0.1", 1)]
TWO = [("127.0.0.1", 1)] * 2


def licensed(id=1):
    return dag_of(Function(id=id, args=[], code=where, cost={"licence": 1}))


async def held(run):
    """Wait until all unfinished functions of a run are held."""
    while (await run.counts())["held"] != 1:
        await asyncio.sleep(0.01)


# How long


@gen_cluster(client=True, nthreads=ONE, config=PATIENT)
async def test_a_placement_timeout_replaces_the_grace(c, s, a):
    """A function that nothing can hold fails when the placement_timeout is over, not later."""
    with pytest.raises(AllocationError, match="licence"):
        await asyncio.wait_for(execute(licensed(), placement_timeout=0.2), 30)
    await assert_clean(s, a)


@gen_cluster(client=True, nthreads=ONE, config={"handoff.lost-capacity-grace": "1ms"})
async def test_a_longer_placement_timeout(c, s, a):
    """It is waited for beyond the grace period, also by functions that become ready later."""
    dag = dag_of(
        Function(id="first", args=[], code=int),
        Function(id="then", args=["first"], code=lambda _: where(), cost={"licence": 1}),
    )
    run = await submit(dag, placement_timeout=LONG)
    await held(run)
    await asyncio.sleep(0.05)
    assert (await run.explain())["then"].reason == "impossible"
    await register_node(a.address, {"licence": 1})
    assert (await run.result()).results["then"] == a.address


@gen_cluster(client=True, nthreads=ONE, config=PATIENT)
async def test_each_run_has_its_own_time(c, s, a):
    """Runs that wait for the same capacity are each refused after their own time."""
    patient = await submit(licensed(), placement_timeout=LONG)
    await held(patient)
    started = time.monotonic()
    with pytest.raises(AllocationError):
        await asyncio.wait_for(execute(licensed(), placement_timeout=0.5), 30)
    assert time.monotonic() - started >= 0.5
    assert (await patient.counts())["held"] == 1
    await patient.cancel()


@gen_cluster(client=True, nthreads=TWO, config=PATIENT)
async def test_what_was_lost_is_waited_for(c, s, a, b):
    """Active and new runs wait for it; a worker that returns serves them all."""
    await register_node(b.address, {"licence": 1})
    running = await submit(
        dag_of(Function(id=1, args=[], code=hold, extra_args=["x"], cost={"licence": 1})),
        max_retries=1,
    )
    await (await Event("started-x")).wait()
    await (await Event("x")).set()
    await b.close()
    await held(running)
    runs = [running] + [await submit(licensed(i)) for i in range(10)]
    pinned = await submit(dag_of(Function(id=1, args=[], code=where, node="1")))
    assert "needs licence 1" in str(await explain(licensed()))
    with pytest.raises(AllocationError):  # as ever
        await submit(dag_of(Function(id=1, args=[], code=where, cost={"licence": 2})))
    async with Worker(s.address, nthreads=1, name="1") as back:
        results = [(await run.result()).results for run in (*runs, pinned)]
        assert {value for result in results for value in result.values()} == {back.address}
        assert (await discover_nodes())[back.address]["licence"] == 1


@gen_cluster(client=True, nthreads=TWO, config={"handoff.lost-capacity-grace": "100ms"})
async def test_what_was_lost_for_good(c, s, a, b):
    """After the grace period it is an error, for waiting runs and for new ones."""
    await register_node(b.address, {"licence": 1})
    await b.close()
    await until(lambda: len(s.workers) == 1)
    for _ in range(2):
        with pytest.raises(AllocationError, match="licence"):
            await asyncio.wait_for(execute(licensed()), 30)
        await asyncio.sleep(0.1)
    await assert_clean(s, a)


@gen_cluster(client=True, nthreads=TWO, config=PATIENT)
async def test_what_was_withdrawn_is_not_waited_for(c, s, a, b):
    """Neither is a resource that register_node set to 0, nor a worker that was retired."""
    for withdraw in (
        lambda: register_node(b.address, {"licence": 0}),
        lambda: b.set_resources(licence=0),
        lambda: c.retire_workers([b.address]),
    ):
        await register_node(b.address, {"licence": 1})
        runs = [
            await submit(dag_of(Function(id=1, args=[], code=hold, extra_args=["y"], node="1"))),
            await submit(
                dag_of(
                    Function(id=1, args=[], code=hold, extra_args=["z"], node="0"),
                    Function(id=2, args=[1], code=lambda _: where(), cost={"licence": 1}),
                )
            ),
        ]
        for name in "yz":
            await (await Event(f"started-{name}")).wait()
        waits = await submit(licensed()) if withdraw else None
        await (await Event("y")).set()
        await waits.result()
        await withdraw()
        with pytest.raises(AllocationError, match="licence"):
            await submit(licensed())
        await (await Event("z")).set()
        with pytest.raises(AllocationError, match="licence"):
            await asyncio.wait_for(runs[1].result(), 30)
        for name in "yz":
            await (await Event(name)).clear()
            await (await Event(f"started-{name}")).clear()
        del runs, waits


@gen_cluster(client=True, nthreads=[], config=PATIENT)
async def test_workers_that_come_one_by_one(c, s):
    """On a cluster without workers, the first ones do not decide what may still come."""
    dag = dag_of(
        Function(id=1, args=[], code=where, node="first"),
        Function(id=2, args=[1], code=lambda _: where(), cost={"licence": 1}),
    )
    run = await submit(dag)
    async with Worker(s.address, nthreads=1, name="first"):
        await held(run)
        async with Worker(s.address, nthreads=1, resources={"licence": 1}) as last:
            assert (await run.result()).results[2] == last.address


# What comes back


def keepers(scheduler):
    return [name for name in scheduler.clients if name.startswith("handoff-")]


@gen_cluster(client=True, nthreads=[], config=PATIENT, timeout=120)
async def test_a_declaration_comes_back_with_the_worker(c, s):
    """After restart_workers, restart and the death of the process, named or not."""
    options = {"nthreads": 1, "resources": {"seat": 2}}
    async with Nanny(s.address, name="alice", **options) as a, Nanny(s.address, **options) as b:

        def address(nanny):
            return next((w.address for w in s.workers.values() if w.nanny == nanny.address), None)

        for nanny in (a, b):
            await register_node(address(nanny), {"licence": 1, "seat": 0, "cpu": 3})
        await register_node(address(b), {"licence": 2})
        assert await c.submit(where, resources={"licence": 2}, pure=False) == address(b)
        for restart in (
            lambda: c.restart_workers([address(a), address(b)]),
            lambda: c.restart(),
            lambda: c.run(os._exit, 1, on_error="ignore"),
        ):
            before = {address(a), address(b)}
            await restart()
            while not before.isdisjoint({address(a), address(b)}):
                await asyncio.sleep(0.01)
            # Dask's nanny cannot be closed while it does not know that its worker has started.
            await until(lambda: all(n.process.status is Status.running for n in (a, b)))
            dag = dag_of(Function(id=1, args=[], code=where, cost={"licence": 2}))
            assert (await execute(dag)).results[1] == address(b)
            await until(lambda: None not in (address(a), address(b)))
            nodes = await discover_nodes()
            for nanny, licences in ((a, 1), (b, 2)):
                offered = nodes[address(nanny)]
                assert (offered["licence"], offered["seat"], offered["cpu"]) == (licences, 0, 3)
                assert s.workers[address(nanny)].resources["licence"] == licences


@gen_cluster(client=True, nthreads=ONE)
async def test_what_the_operator_changed_since(c, s, a):
    """A worker that returns with another declaration by its operator keeps that."""
    async with Worker(s.address, nthreads=1, name="w", resources={"GPU": 2}) as w:
        await register_node(w.address, {"gpu": 1, "licence": 1})
    async with Worker(s.address, nthreads=1, name="w", resources={"GPU": 4}) as w:
        offered = (await discover_nodes())[w.address]
        assert (offered["gpu"], offered["licence"]) == (4, 1)
    async with Worker(s.address, nthreads=1, name="other", resources={"GPU": 4}) as w:
        assert "licence" not in (await discover_nodes())[w.address]


@gen_cluster(client=True, nthreads=ONE, Worker=Nanny, timeout=120)
async def test_restart_leaves_nothing_of_a_run(c, s, a):
    """Leaves no keeper of a detached run and no record; the next run needs no new plugin."""
    done = Function(id="done", args=[], code=int)
    held = Function(id="held", args=[], code=int, cost={"licence": 1})
    run = await submit(dag_of(done, held), detach=True, placement_timeout=LONG)
    while (await run.counts())["done"] != 1:
        await asyncio.sleep(0.01)
    plugin = s.plugins["handoff"]
    await c.restart()
    assert not keepers(s)
    assert not plugin.runs and not plugin.functions
    assert await list_runs() == []
    assert set((await execute(dag_of(Function(id=1, args=[], code=int)))).results) == {1}
    assert s.plugins["handoff"] is plugin and "handoff" in s.task_metadata


@gen_cluster(client=True, nthreads=TWO)
async def test_no_keeper_stays_whatever_ends_a_run(c, s, a, b):
    """Cancelling the tasks of a detached run also removes its keeper."""
    run = await submit(dag_of(Function(id=1, args=[], code=int)), detach=True)
    await run.result()
    followed = await get_run("a dag")
    await c.cancel(list(followed.futures.values()), force=True)
    del run, followed
    await until(lambda: not keepers(s))
    await assert_clean(s, a, b)
