"""Workers that join, pause, leave and die under the gate, and capacity that is not there."""

from __future__ import annotations

import asyncio

import pytest
from distributed import Event, Status, Worker
from distributed.utils_test import gen_cluster

from handoff_dask import (
    AllocationError,
    Function,
    execute,
    register_node,
    submit,
)
from tests.gate import (
    SEEN,
    hold,
    note,
    on_cluster,
    one_held,
    until,
)
from tests.support import assert_clean, dag_of, where


@on_cluster(config={"distributed.worker.memory.pause": False})
async def test_a_paused_worker_gets_nothing(c, s, a, b):
    """Functions keep off a worker that is paused, and come to it when it goes on."""
    await execute(dag_of(Function(id=0, args=[], code=where)))
    a.status = Status.paused  # Dask's own watch over memory would undo it
    await until(lambda: s.workers[a.address].status == Status.paused)
    functions = [Function(id=i, args=[], code=where, cost={"cpu": 1}) for i in range(8)]
    result = await execute(dag_of(*functions))
    assert set(result.results.values()) == {b.address}
    pinned = await submit(dag_of(Function(id=1, args=[], code=where, node=a.address)))
    await one_held(pinned)
    assert (await pinned.explain())[1].reason == "paused"
    a.status = Status.running
    assert (await pinned.result()).results == {1: a.address}


@on_cluster()
async def test_a_worker_that_joins_is_used_at_once(c, s, a, b):
    """A function that waits for a busy resource runs on a new worker that offers it."""
    go = await Event("go")
    run = await submit(
        dag_of(
            Function(id=1, args=[], code=hold, cost={"gpu": 1}),
            Function(id=2, args=[], code=where, cost={"gpu": 1}),
        )
    )
    await (await Event("started-go")).wait()
    async with Worker(s.address, nthreads=1, resources={"gpu": 1}) as late:
        assert await run.futures[2] == late.address
        await go.set()
        await run.result()
        del run
        await assert_clean(s, a, b, late)


@gen_cluster(nthreads=[], client=True)
async def test_a_cluster_without_workers_is_waited_for(c, s):
    """Functions wait for the first worker, and run on it."""
    run = await submit(dag_of(Function(id=1, args=[], code=where, cost={"cpu": 1})))
    await until(lambda: s.plugins["handoff"].functions)
    async with Worker(s.address, nthreads=1) as worker:
        assert (await run.result()).results == {1: worker.address}
        del run
        await assert_clean(s, worker)


@on_cluster()
async def test_placement_timeout(c, s, a, b):
    """A cost that none can hold yet is waited for as long as asked, then it is an error."""
    dag = dag_of(Function(id=1, args=[], code=where, cost={"tpu": 1}))
    run = await submit(dag, placement_timeout=600)
    assert (await run.status())["held"] in (0, 1)
    await register_node(a.address, {"tpu": 1})
    assert (await run.result()).results == {1: a.address}


@on_cluster(config={"handoff.lost-capacity-grace": "50ms"})
async def test_capacity_lost_for_good(c, s, a, b):
    """Functions that wait for a worker that is gone fail when the grace is over, by name."""
    go = await Event("go")
    run = await submit(
        dag_of(
            Function(id="runs", args=[], code=hold, cost={"cpu": 4}, node=a.address),
            Function(id="waits", args=["runs"], code=where, cost={"gpu": 1}),
        )
    )
    await (await Event("started-go")).wait()
    await b.close()
    await go.set()
    with pytest.raises(AllocationError, match=r"'waits'.*gpu"):
        await run.result()
    del run
    await assert_clean(s, a)


@on_cluster()
async def test_retiring_a_worker_is_no_failure(c, s, a, b):
    """A worker that is retired takes no attempt with it: max_retries=0 survives."""
    run = await submit(
        dag_of(*(Function(id=i, args=[], code=where, cost={"cpu": 1}) for i in range(50))),
        max_retries=0,
    )
    await c.retire_workers([a.address])
    result = await run.result()
    assert len(result.results) == 50


@on_cluster(config={"distributed.scheduler.no-workers-timeout": "100ms"})
async def test_held_functions_outlive_the_no_workers_timeout(c, s, a, b):
    """An operator's no-workers-timeout is not meant for functions that wait at the gate."""
    go = await Event("go")
    run = await submit(
        dag_of(
            Function(id=1, args=[], code=hold, cost={"gpu": 1}),
            Function(id=2, args=[], code=where, cost={"gpu": 1}),
        )
    )
    await (await Event("started-go")).wait()
    await asyncio.sleep(0.6)  # Dask looks every 250 ms
    await go.set()
    assert (await run.result()).results == {1: b.address, 2: b.address}


@on_cluster()
async def test_a_result_that_is_lost_is_made_again(c, s, a, b):
    """A value lost with its worker is computed anew, through the gate, and the run ends well."""
    SEEN.clear()
    run = await submit(dag_of(Function(id="value", args=[], code=note, cost={"cpu": 1})))
    result = await run.result()
    lost = a if result.allocations["value"] == a.address else b
    kept = b if lost is a else a
    await lost.close()
    assert await run.futures["value"] == kept.address
    assert len(SEEN) == 2
