"""A retry prefers another worker, but does not wait for one longer than is useful."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from distributed import Event, Status
from distributed.utils_test import gen_cluster

from handoff_dask import Function, InvalidFunctionError, RetryPolicy, current, execute, submit
from tests.gate import one_held
from tests.support import assert_clean, dag_of, where

WORKERS = [("127.0.0.1", 1, {"resources": {"cpu": 1}})] * 2
on_cluster = partial(gen_cluster, nthreads=WORKERS, client=True)


def fail_once():
    if current().attempt == 1:
        raise OSError("at first")
    return where()


def hold():
    Event("held").set()
    Event("go").wait()


async def with_one_busy(worker):
    """Keep a worker busy until the event "go"."""
    run = await submit(dag_of(Function(id="busy", code=hold, args=[], node=worker.address)))
    await (await Event("held")).wait()
    return run


def failing(policy):
    return dag_of(Function(id="f", args=[], code=fail_once, cost={"cpu": 1}, retry=policy))


@on_cluster()
@pytest.mark.parametrize("code", ["unknown", "known"])
async def test_a_retry_does_not_wait_for_a_busy_worker(c, s, a, b, code):
    """It returns to the worker where it failed, because the only other one stays busy."""
    if code == "known":
        await execute(failing(RetryPolicy(1)))
    busy = await with_one_busy(b)
    run = await submit(failing(RetryPolicy(1)))
    result = await asyncio.wait_for(run.result(), 30)
    assert result.results == {"f": a.address}
    assert [attempt.worker for attempt in result.attempts["f"]] == [a.address] * 2
    await (await Event("go")).set()
    await busy.result()
    del run, busy
    await assert_clean(s, a, b)


@on_cluster()
async def test_a_retry_that_always_avoids_waits(c, s, a, b):
    """With "always", it starts on the other worker when that becomes free."""
    busy = await with_one_busy(b)
    run = await submit(failing(RetryPolicy(1, avoid_last_worker="always")))
    while not (await run.status())["attempts"]:
        await asyncio.sleep(0.01)
    await one_held(run)
    assert (await run.explain())["f"].workers == (b.address,)
    await (await Event("go")).set()
    assert (await run.result()).results == {"f": b.address}
    await busy.result()
    del run, busy
    await assert_clean(s, a, b)


@on_cluster(nthreads=WORKERS[:1])
async def test_the_only_worker_is_used_whatever_the_policy(c, s, a):
    """A retry that always avoids the last worker runs there, if the cluster has no other."""
    run = await submit(failing(RetryPolicy(1, avoid_last_worker="always")))
    assert (await run.result()).results == {"f": a.address}


def slow_once():
    if current().attempt == 1:
        Event("thread may end").wait()
    return where()


@on_cluster(config={"distributed.worker.memory.pause": False})
async def test_a_worker_whose_thread_goes_on_is_no_last_resort(c, s, a, b):
    """After a timeout the function waits for its thread to end, even if no other worker is left."""
    await execute(dag_of(Function(id="first", args=[], code=where)))
    b.status = Status.paused
    while s.workers[b.address] in s.running:
        await asyncio.sleep(0.01)
    run = await submit(dag_of(Function(id="f", args=[], code=slow_once, timeout=0.4)))
    while not (await run.status())["attempts"]:
        await asyncio.sleep(0.01)
    await one_held(run)
    assert (await run.explain())["f"].reason == "paused"
    await b.close()
    while b.address in s.workers:
        await asyncio.sleep(0.01)
    why = (await run.explain())["f"]
    assert (why.reason, why.workers) == ("excluded", (a.address,))
    await (await Event("thread may end")).set()
    assert (await run.result()).results == {"f": a.address}


@pytest.mark.parametrize("value", ["never", None, 2])
def test_an_unknown_preference_is_named(value):
    """validate() names the function, the field and the allowed values."""
    dag = failing(RetryPolicy(avoid_last_worker=value))
    with pytest.raises(InvalidFunctionError, match=r"'f'.*avoid_last_worker.*\"always\""):
        dag.validate()
