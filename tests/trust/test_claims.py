"""What a thread still uses stays claimed until it has ended, whatever became of its run."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from distributed import Client, Event
from distributed.utils_test import gen_cluster

from handoff_dask import (
    Function,
    FunctionFailedError,
    RunTimeoutError,
    execute,
    explain,
    resources_available,
    submit,
)
from tests.gate import SEEN, hold, note, until
from tests.support import assert_clean, dag_of, where

ONE = {"cpu": 1}
WORKERS = [("127.0.0.1", 1, {"resources": ONE})] * 2
on_two = partial(gen_cluster, nthreads=WORKERS, client=True)


@pytest.fixture(autouse=True)
def nothing_seen():
    SEEN.clear()


def fail(*_):
    raise ValueError("it fails")


def plugin_of(s):
    return s.plugins["handoff"]


def stuck(name="stuck", id="stuck", **fields):
    """Return a function that runs until its event is set."""
    return Function(id=id, args=[], code=hold, extra_args=[name], **{"cost": ONE, **fields})


async def begin(run, name="stuck"):
    """Wait until the function of a run that holds is running; return its worker."""
    run = await run
    await (await Event(f"started-{name}")).wait()
    return run


async def where_stuck(s):
    """Return the address of the worker that runs the function that is stuck."""
    (worker,) = {r.worker for r in plugin_of(s).records.values() if r.row.label == "'stuck'"}
    return worker


async def cancel(c, run):
    await run.cancel()


async def fail_beside(c, run):
    with pytest.raises(FunctionFailedError, match="it fails"):
        await run.result()


async def run_out_of_time(c, run):
    with pytest.raises(RunTimeoutError):
        await run.result()


async def drop_client(c, run):
    await run._client.close()


async def cancel_a_future(c, run):
    await c.cancel([run.futures["stuck"]])


ENDS = {
    "cancelled": (cancel, [], {}),
    "a future cancelled": (cancel_a_future, [], {}),
    "failed": (fail_beside, [Function("boom", [], fail, cost=ONE, max_retries=0)], {}),
    "timed out": (run_out_of_time, [], {"timeout": 0.5}),
    "timed out, detached": (run_out_of_time, [], {"timeout": 0.5, "detach": True}),
    "client closed": (drop_client, [], {}),
}


@pytest.mark.parametrize("how", ENDS)
@on_two()
async def test_a_run_that_is_over_keeps_what_its_threads_use(c, s, a, b, how):
    """The next functions use the idle worker, and what asks for the busy one waits, and says so."""
    end, others, options = ENDS[how]
    async with Client(s.address, asynchronous=True, set_as_default=False) as other:
        run = await begin(submit(dag_of(stuck(), *others, id="first"), client=other, **options))
        busy = await where_stuck(s)
        await end(other, run)
        del run
        plugin = plugin_of(s)
        await until(lambda: not plugin.runs)

        assert plugin.engine.free(busy)["cpu"] == 0
        assert plugin.engine.slots(busy) == (0, 1)
        assert not await resources_available(busy, ONE)
        text = "still ending: 1 function of a run that "
        assert text in str(await explain(dag_of(stuck())))
        (idle,) = {a.address, b.address} - {busy}
        for i in range(3):
            # Costs nothing, but for the thread that every function needs.
            dag = dag_of(Function(i, [], where, cost=[None, ONE][i % 2]))
            assert (await execute(dag)).results == {i: idle}
        waiting = await submit(dag_of(Function("next", [], where, cost=ONE, node=busy)))
        await until(lambda: plugin.engine.backlog(1).largest)
        assert (await waiting.progress())["running"] == 0
        assert text in str(await waiting.explain())
        await (await Event("stuck")).set()
        assert (await waiting.result()).results == {"next": busy}
        assert await resources_available(busy, ONE)
        assert str(await explain(dag_of(stuck()))).count("\n") == 1
        del waiting
    await assert_clean(s, a, b)


@on_two()
async def test_two_runs_cancelled_on_the_same_worker(c, s, a, b):
    """Each has its own claim there, and the report names both."""
    half = {"cpu": 0.5}
    async with Client(s.address, asynchronous=True, set_as_default=False) as other:
        for name in ("x", "y"):
            dag = dag_of(stuck(name, cost=half, node=[a, b][name == "y"].address), id=name)
            run = await begin(submit(dag, client=other), name)
            await run.cancel()
    await until(lambda: not plugin_of(s).runs)
    explanation = str(await explain(dag_of(stuck())))
    assert "1 function of a run that was cancelled ('x')" in explanation
    assert "1 function of a run that was cancelled ('y')" in explanation
    for name in ("x", "y"):
        await (await Event(name)).set()
    await assert_clean(s, a, b)


SLOTS = [("127.0.0.1", 4, {"resources": {"cpu": 4, "gpu": 2}})]


@gen_cluster(nthreads=SLOTS, client=True)
async def test_several_of_a_run(c, s, a):
    """Each thread's claim goes when that thread has ended, not before and not after."""
    dag = dag_of(stuck("x", "x"), stuck("y", "y", cost={"cpu": 2}), stuck("z", "z", cost=None))
    run = await begin(submit(dag), "x")
    await begin(asyncio.sleep(0), "y")
    await begin(asyncio.sleep(0), "z")
    await run.cancel()
    await until(lambda: not plugin_of(s).runs)
    engine = plugin_of(s).engine
    assert (engine.free(a.address)["cpu"], engine.slots(a.address)) == (1, (1, 4))
    assert "still ending: 3 functions of a run that" in str(await explain(dag_of(stuck())))
    await (await Event("y")).set()
    await until(lambda: engine.slots(a.address) == (2, 4))
    assert engine.free(a.address)["cpu"] == 3
    for name in ("x", "z"):
        await (await Event(name)).set()
    del run
    await assert_clean(s, a)


@on_two()
async def test_what_was_handed_ahead_never_starts(c, s, a, b):
    """Of a cancelled run, what had not started is free at once and never starts."""
    pin = {"cost": ONE, "node": a.address}
    await execute(dag_of(*(Function(i, [], note, extra_args=[i], **pin) for i in range(20))))
    SEEN.clear()
    run = await begin(submit(dag_of(stuck(node=a.address))))
    plugin = plugin_of(s)
    # Short functions of a known code: they go behind one of their kind.
    ahead = [Function(i, [], note, extra_args=[i], **pin) for i in range(20)]
    second = await submit(dag_of(*ahead))
    await until(lambda: plugin.engine.backlog(1).largest)
    await second.cancel()
    await run.cancel()
    await until(lambda: len(plugin.endings) == 1)
    assert plugin.engine.claimed(a.address)["cpu"] == 1
    await (await Event("stuck")).set()
    del run, second
    await assert_clean(s, a, b)
    assert SEEN == []
