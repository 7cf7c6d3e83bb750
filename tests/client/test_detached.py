"""Runs that the cluster keeps, and what other clients can ask of them."""

from __future__ import annotations

import operator

import pytest
from distributed import Client, Event
from distributed.utils_test import gen_cluster

from handoff_dask import (
    DAG,
    Function,
    FunctionFailedError,
    RunTimeoutError,
    UnknownFunctionError,
    UnknownRunError,
    execute,
    forget,
    get_result,
    get_run,
    submit,
)
from handoff_dask.wire.messages import Stop
from tests.support import assert_clean


def fail():
    raise ValueError("always")


def doubled(dag_id="kept"):
    return (
        DAG(dag_id)
        .add_function(Function(id=("source", 1), args=[], code=int, extra_args=["42"]))
        .add_function(
            Function(id="double", args=[("source", 1)], code=operator.mul, extra_args=[2])
        )
    )


@gen_cluster(client=True)
async def test_a_detached_run_outlives_its_client(c, s, a, b):
    """Another client gets the results after the first is closed, until the run is forgotten."""
    async with Client(s.address, asynchronous=True) as other:
        await submit(doubled(), client=other, detach=True, results="sinks")
    assert await get_result("kept", "double", client=c) == 84
    with pytest.raises(UnknownFunctionError, match="source"):
        await get_result("kept", ("source", 1), client=c)
    await forget("kept", client=c)
    with pytest.raises(UnknownRunError, match="kept"):
        await get_result("kept", "double", client=c)
    with pytest.raises(UnknownRunError, match="kept"):
        await forget("kept", client=c)
    assert set(s.clients) == {c.id, "fire-and-forget"}
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_get_result_from_another_client(c, s, a, b):
    """While its own client holds a run, any client can read a result of it."""
    run = await submit(doubled("live"))
    async with Client(s.address, asynchronous=True) as other:
        assert await get_result("live", ("source", 1), client=other) == 42
    del run
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_get_result_waits_no_longer_than_asked(c, s, a, b):
    """get_result raises TimeoutError, naming the function, when it has not ended."""
    go = await Event("go")
    dag = DAG("slow").add_function(Function(id="f", args=[], code=lambda: Event("go").wait()))
    run = await submit(dag)
    with pytest.raises(TimeoutError, match=r"'f' of 'slow'.*0\.01 s"):
        await get_result("slow", "f", timeout=0.01)
    await go.set()
    assert (await run.result()).results == {"f": True}


@gen_cluster(client=True)
async def test_get_result_of_a_failed_function(c, s, a, b):
    """get_result raises what the function raised, as the cause."""
    dag = DAG("bad").add_function(Function(id="f", args=[], code=fail, max_retries=0))
    await submit(dag, on_error="continue", detach=True)
    with pytest.raises(FunctionFailedError, match=r"'f'.*always") as caught:
        await get_result("bad", "f")
    assert isinstance(caught.value.__cause__, ValueError)
    await forget("bad")
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_a_run_that_is_not_detached_goes_with_its_client(c, s, a, b):
    """A client that goes away takes its runs with it: nothing is left on the cluster."""
    go = await Event("go")
    dag = (
        DAG("gone")
        .add_function(Function(id="f", args=[], code=lambda: Event("go").wait()))
        .add_function(Function(id="g", args=["f"], code=bool))
    )
    async with Client(s.address, asynchronous=True) as other:
        await submit(dag, client=other)
    await go.set()
    await assert_clean(s, a, b)
    with pytest.raises(UnknownRunError, match="gone"):
        await get_result("gone", "f")


def test_detaching_needs_a_cluster():
    """There is nothing to detach from an embedded cluster: an error before anything starts."""
    with pytest.raises(ValueError, match="detach"):
        submit(doubled(), detach=True)


@gen_cluster(client=True)
async def test_the_latest_of_several_runs_answers(c, s, a, b):
    """Of several runs with one dag_id, get_result reads the latest."""
    runs = []
    for value in ("1", "2"):
        dag = DAG("twice").add_function(Function(id="f", args=[], code=int, extra_args=[value]))
        runs.append(await submit(dag))
    assert await get_result("twice", "f") == 2
    await execute(doubled("once"))


@gen_cluster(client=True)
async def test_a_detached_run_keeps_its_time_limit(c, s, a, b):
    """A detached run past its time is stopped though its client is closed; who asks is told so."""
    go = await Event("go")
    dag = DAG("late").add_function(Function(id="f", args=[], code=lambda: Event("go").wait()))
    async with Client(s.address, asynchronous=True) as other:
        await submit(dag, client=other, detach=True, timeout=0.3)
    with pytest.raises(RunTimeoutError, match=r"'late'.*0\.3 s"):
        while True:
            await (await get_run("late")).result()
    with pytest.raises(RunTimeoutError, match=r"0\.3 s"):
        await get_result("late", "f")
    await forget("late")
    with pytest.raises(UnknownRunError):
        await get_result("late", "f")
    await go.set()
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_a_detached_run_in_time(c, s, a, b):
    """What has ended is not stopped, and its results are kept."""
    await submit(doubled(), detach=True, timeout="1 hour")
    assert await get_result("kept", "double") == 84
    runs = s.plugins["handoff"].runs
    (run,) = runs.values()
    runs.stop(run, Stop("timeout", "its time is up"))
    assert await get_result("kept", "double") == 84
    await forget("kept")
