"""What a function says of when and where it runs, on a cluster: priority, node, preference."""

from __future__ import annotations

import asyncio

import pytest
from distributed import Event

from handoff_dask import AllocationError, Argument, Function, RetryPolicy, execute, explain, submit
from tests.gate import SEEN, hold, note, on_cluster, one_held
from tests.support import assert_clean, dag_of, where


@on_cluster()
async def test_priorities(c, s, a, b):
    """Of functions that wait for the same, those of higher priority go first, over all runs."""
    SEEN.clear()
    busy = await submit(dag_of(Function("busy", code=hold, cost={"cpu": 4}, node=a.address)))
    await (await Event("started-go")).wait()
    priorities = [0, -1, 2, 0.5, 1]
    runs = []
    for of_run in (1, 0):
        functions = [
            Function(i, code=note, extra_args=[of_run + p], cost={"cpu": 4}, node="0", priority=p)
            for i, p in enumerate(priorities)
        ]
        runs.append(await submit(dag_of(*functions), priority=of_run))
    while [(await run.status())["held"] for run in runs] != [5, 5]:
        await asyncio.sleep(0.01)
    await (await Event("go")).set()
    for run in (busy, *runs):
        await run.result()
    assert SEEN == sorted(SEEN, reverse=True) and len(SEEN) == 10
    del busy, runs, run
    await assert_clean(s, a, b)


def fail_elsewhere(worker):
    """Fail on all workers but one."""
    if where() != worker:
        raise ValueError("not here")
    return where()


@on_cluster()
async def test_a_node_of_several_workers(c, s, a, b):
    """Any of them runs the function; a retry goes to another of them."""
    retried = [
        Function(
            ("retried", to.address),
            code=fail_elsewhere,
            extra_args=[to.address],
            node=("nobody", a.name, b.address),
            retry=RetryPolicy(1, avoid_last_worker="always"),
        )
        for to in (a, b)
    ]
    one_answers = Function("pinned", code=where, node=["nobody", b.name])
    result = await execute(dag_of(one_answers, *retried))
    assert result.results == {
        "pinned": b.address, **{("retried", to.address): to.address for to in (a, b)}
    }  # fmt: skip


@on_cluster()
async def test_a_node_of_several_that_none_can_hold(c, s, a, b):
    """The error names all the workers that were asked for, and so does explain()."""
    nobody = dag_of(Function("f", code=where, node=("mars", "venus")))
    with pytest.raises(AllocationError, match="no worker answers to any of 'mars', 'venus'") as e:
        await execute(nobody)
    assert e.value.node == ("mars", "venus")
    assert "no worker answers to any of 'mars', 'venus'" in str(await explain(nobody))
    small = dag_of(Function("f", code=where, cost={"gpu": 1}, node=(a.name, "mars")))
    with pytest.raises(AllocationError, match=r"pinned to any of '0', 'mars'.*offers 0"):
        await execute(small)
    assert "pinned to any of" in (await explain(small))._repr_html_()


@on_cluster()
async def test_a_preferred_worker(c, s, a, b):
    """It runs the function if it has room; if nobody answers to the name, any worker does."""
    functions = [
        Function(i, code=where, cost={"cpu": 1}, node=("nobody", "1"), allow_other_workers=True)
        for i in range(4)
    ]
    anywhere = Function("any", code=where, node="nobody", allow_other_workers=True)
    dag = dag_of(*functions, anywhere)
    assert (await explain(dag)).possible
    result = await execute(dag)
    assert set(result.allocations[i] for i in range(4)) == {b.address}
    assert result.results["any"] in (a.address, b.address)


@on_cluster()
async def test_a_preferred_worker_that_is_busy(c, s, a, b):
    """It is waited for, but not for longer than the function would run."""
    busy = await submit(dag_of(Function("busy", code=hold, cost={"cpu": 4}, node=b.address)))
    await (await Event("started-go")).wait()
    run = await submit(
        dag_of(Function("f", code=where, cost={"cpu": 4}, node="1", allow_other_workers=True))
    )
    await one_held(run)
    assert (await run.explain())["f"].reason == "preferred"
    assert (await run.result()).results == {"f": a.address}
    await (await Event("go")).set()
    await busy.result()
    del busy, run
    await assert_clean(s, a, b)


@on_cluster()
async def test_a_preferred_worker_that_leaves(c, s, a, b):
    """What waited for it goes elsewhere."""
    busy = await submit(dag_of(Function("busy", code=hold, cost={"cpu": 4}, node=b.address)))
    await (await Event("started-go")).wait()
    run = await submit(
        dag_of(Function("f", code=where, cost={"cpu": 4}, node="1", allow_other_workers=True))
    )
    await one_held(run)
    await busy.cancel()
    await (await Event("go")).set()
    await b.close()
    assert (await run.result()).results == {"f": a.address}


class Everything:
    """Sends everything to one worker."""

    def __init__(self, worker):
        self.worker = worker

    def allocate(self, functions, capabilities):
        return {function.id: self.worker for function in functions}


@on_cluster()
async def test_an_allocator_overrides_a_preference(c, s, a, b):
    """Where an allocator sends a function it runs, whatever the function says."""
    f = Function("f", code=where, node=b.address, allow_other_workers=True)
    result = await execute(dag_of(f), allocation_strategy=Everything(a.address))
    assert result.results == {"f": a.address}


def whereto(data, source, target):
    return (*data, target) if isinstance(data, tuple) else (data, source, target)


@on_cluster()
async def test_transforms_know_where_a_preference_leads(c, s, a, b):
    """The consumer is bound to a worker that it prefers before its serializer runs."""
    result = await execute(
        dag_of(
            Function("make", code=where, node=a.address),
            Function(
                "use",
                [Argument("make", whereto, whereto)],
                lambda data: (*data, where()),
                node=b.address,
                allow_other_workers=True,
            ),
        )
    )
    assert result.results["use"] == (a.address, a.address, b.address, b.address, b.address)
