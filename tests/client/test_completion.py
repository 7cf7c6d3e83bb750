"""The results of a run as they come: `run.as_completed()`."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pytest
from distributed import Client, Event, LocalCluster
from distributed.utils_test import gen_cluster

from handoff_dask import (
    ClusterLostError,
    Function,
    FunctionFailedError,
    RunCancelledError,
    execute,
    forget,
    get_run,
    submit,
)
from tests.support import assert_clean, dag_of


def hold(*args):
    Event("go").wait()
    return "held"


def fail():
    raise LookupError("no such thing")


def half_open():
    """A DAG of which one function waits for the event `go`."""
    return dag_of(Function("first", [], int, extra_args=["1"]), Function("second", [], hold))


async def collected(iterator):
    return [pair async for pair in iterator]


@gen_cluster(client=True)
async def test_results_as_they_come(c, s, a, b):
    """Each pair of id and value comes when its function has ended, not at the end of the run."""
    run = await submit(half_open())
    pairs = run.as_completed()
    assert await anext(pairs) == ("first", 1)
    assert (await run.counts())["done"] < 2
    await Event("go").set()
    assert await collected(pairs) == [("second", "held")]
    assert await collected(pairs) == []
    assert await collected(run.as_completed()) == [("first", 1), ("second", "held")]


@gen_cluster(client=True)
async def test_only_what_was_asked_for(c, s, a, b):
    """What `results=` names; the values are the same objects as those of result()."""
    dag = dag_of(
        Function("list", [], list), Function("used", ["list"], len), Function("unused", [], hold)
    )
    run = await submit(dag, results=["list", "used"])
    pairs = dict(await asyncio.wait_for(collected(run.as_completed()), 60))
    assert pairs == {"list": [], "used": 0}
    await Event("go").set()
    assert (await run)["list"] is pairs["list"]


@gen_cluster(client=True)
async def test_a_failure(c, s, a, b):
    """What ended before it is yielded; then it is raised, as result() does, each time."""
    dag = dag_of(
        Function("first", [], int), Function("bad", [], lambda: (hold(), fail()), max_retries=0)
    )
    run = await submit(dag)
    pairs = run.as_completed()
    assert await anext(pairs) == ("first", 0)
    await Event("go").set()
    for _ in range(2):
        with pytest.raises(FunctionFailedError, match="no such thing"):
            await anext(pairs)
    with pytest.raises(FunctionFailedError, match="no such thing"):
        await run


@gen_cluster(client=True)
async def test_failures_that_do_not_end_the_run(c, s, a, b):
    """With on_error="continue", functions without a result are left out."""
    dag = dag_of(
        Function("bad", [], fail, max_retries=0),
        Function("after", ["bad"], str),
        Function(1, [], int),
    )
    run = await submit(dag, on_error="continue")
    assert await collected(run.as_completed()) == [(1, 0)]
    assert (await run).errors.keys() == {"bad", "after"}


@gen_cluster(client=True)
async def test_a_value_that_cannot_be_fetched(c, s, a, b):
    """It is left out or raised, as for result(); the others are yielded."""
    dag = dag_of(Function("lock", [], threading.Lock), Function(1, [], int))
    run = await submit(dag, on_error="continue")
    assert await collected(run.as_completed()) == [(1, 0)]
    run = await submit(dag)
    with pytest.raises(FunctionFailedError, match="'lock'"):
        await collected(run.as_completed())


@gen_cluster(client=True)
async def test_a_timeout(c, s, a, b):
    """It counts from the call. The error says what has not ended; the run goes on."""
    run = await submit(half_open())
    pairs = run.as_completed(timeout=0.05)
    with pytest.raises(TimeoutError, match=r"'a dag' did not end within 0.05 s; .*1 running"):
        await collected(pairs)
    await Event("go").set()
    await run.wait()
    assert ("second", "held") in await collected(run.as_completed(timeout=0))


@gen_cluster(client=True)
@pytest.mark.parametrize("timeout", [-1, "soon", float("nan")])
async def test_a_timeout_that_is_none(c, s, a, b, timeout):
    """The error names the argument, at the call."""
    run = await submit(dag_of(Function(1, [], int)))
    with pytest.raises(ValueError, match="timeout must be"):
        run.as_completed(timeout)
    await run


@gen_cluster(client=True)
async def test_cancelled_meanwhile(c, s, a, b):
    """The iteration ends with RunCancelledError, whoever cancelled the run."""
    run = await submit(half_open())
    pairs = run.as_completed()
    assert await anext(pairs) == ("first", 1)
    other = await get_run("a dag")
    following = asyncio.create_task(collected(other.as_completed()))
    await run.cancel()
    for waiting in (anext(pairs), following):
        with pytest.raises(RunCancelledError):
            await waiting
    await Event("go").set()
    del run, other, pairs, following, waiting
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_several_iterators(c, s, a, b):
    """Each yields everything; a value is fetched once, so that it is the same object."""
    run = await submit(dag_of(*(Function(i, [], list) for i in range(20))))
    both = await asyncio.gather(collected(run.as_completed()), collected(run.as_completed()))
    results = (await run).results
    for pairs in both:
        assert len(pairs) == 20
        assert all(value is results[id_] for id_, value in pairs)


@gen_cluster(client=True)
async def test_one_that_is_shared(c, s, a, b):
    """Of several tasks that take from one iterator, each result goes to one."""
    await Event("go").set()
    pairs = (await submit(half_open())).as_completed()
    taken = await asyncio.gather(*(collected(pairs) for _ in range(4)))
    assert sorted(chain(*taken)) == [("first", 1), ("second", "held")]


def test_one_that_threads_share():
    """Of several threads that take from one iterator, each result goes to one."""
    pairs = submit(dag_of(*(Function(i, [], int) for i in range(100)))).as_completed()
    with ThreadPoolExecutor(4) as pool:
        taken = pool.map(list, [pairs] * 4)
    assert sorted(chain(*taken)) == [(i, 0) for i in range(100)]


@gen_cluster(client=True)
async def test_one_that_is_left_early(c, s, a, b):
    """The run goes on; once run and iterator are dropped, nothing is left behind."""
    run = await submit(half_open())
    async for id_, _value in run.as_completed():
        assert id_ == "first"
        break
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(collected(run.as_completed()), 0.02)
    await Event("go").set()
    assert (await run).results == {"first": 1, "second": "held"}
    del run
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_the_iterator_keeps_the_run(c, s, a, b):
    """Nobody need hold the run while somebody iterates."""
    await Event("go").set()
    pairs = (await submit(half_open())).as_completed()
    assert dict(await collected(pairs)) == {"first": 1, "second": "held"}


@gen_cluster(client=True)
async def test_from_another_client(c, s, a, b):
    """A detached run can be iterated over by any client, also after its own has gone."""
    async with Client(s.address, asynchronous=True) as other:
        run = await submit(half_open(), client=other, detach=True)
        assert await anext(run.as_completed()) == ("first", 1)
    run = await get_run("a dag")
    pairs = run.as_completed()
    assert await anext(pairs) == ("first", 1)
    await Event("go").set()
    assert await collected(pairs) == [("second", "held")]
    del run, pairs
    await forget("a dag")
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_a_client_that_was_closed(c, s, a, b):
    """Whoever iterates or waits gets an error that says so; results that are here stay."""
    async with Client(s.address, asynchronous=True, set_as_default=False) as other:
        run = await submit(half_open(), client=other)
        pairs = run.as_completed()
        assert await anext(pairs) == ("first", 1)
        ended = await submit(dag_of(Function("f", [], int)), client=other)
        await ended
    for waiting in (anext(pairs), run, run.counts(), execute(half_open(), client=other)):
        with pytest.raises(ClusterLostError, match="its client was closed"):
            await waiting
    assert await collected(ended.as_completed()) == [("f", 0)]
    await Event("go").set()


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1), ("127.0.0.1", 1)])
async def test_results_that_were_lost(c, s, a, b):
    """What a worker took with it is made again and comes later."""
    dag = dag_of(
        Function("first", [], int, node=a.address), Function("second", [], hold, node=b.address)
    )
    run = await submit(dag, placement_timeout=60)
    while (await run.counts())["done"] != 1:
        await asyncio.sleep(0.01)
    await a.close()
    await Event("go").set()
    pairs = run.as_completed()
    assert await anext(pairs) == ("second", "held")
    await run.cancel()


@gen_cluster(client=True)
async def test_large_runs_are_yielded_in_batches(c, s, a, b):
    """Every result comes once, however fast they come."""
    run = await submit(dag_of(*(Function(i, [], int, extra_args=[i]) for i in range(500))))
    assert sorted(await collected(run.as_completed())) == [(i, i) for i in range(500)]


@gen_cluster(client=True)
async def test_the_wrong_kind_of_loop(c, s, a, b):
    """With an asynchronous client, `for` is an error that names the right form."""
    run = await submit(dag_of(Function(1, [], int)))
    with pytest.raises(TypeError, match="async for"):
        next(run.as_completed())
    await run


def test_embedded():
    """Without a client, on an embedded cluster, which the iterator keeps."""
    pairs = submit(dag_of(Function(1, [], int), Function(2, [1], str))).as_completed()
    assert list(pairs) == [(1, 0), (2, "0")]
    assert list(pairs) == []


def test_on_a_plain_thread():
    """`for` with a synchronous client; results come one by one, and a closed client ends it."""
    with (
        LocalCluster(
            n_workers=1, processes=False, threads_per_worker=2, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        run = submit(half_open(), client=client)
        pairs = run.as_completed()
        assert next(pairs) == ("first", 1)
        with pytest.raises(TypeError, match="iterate with `for`"):
            asyncio.run(collected(run.as_completed()))
        with pytest.raises(TimeoutError):
            list(run.as_completed(timeout=0.01))
        Event("go", client=client).set()
        assert list(pairs) == [("second", "held")]
        Event("go", client=client).clear()
        left = submit(half_open(), client=client)
        pairs = left.as_completed()
        assert next(pairs) == ("first", 1)
        Event("go", client=client).set()
    raised = []
    for call in (left.result, lambda: list(pairs)):
        with pytest.raises(Exception) as caught:
            call()
        raised.append(caught.value)
    assert type(raised[0]) is type(raised[1])


def test_a_run_inside_a_function():
    """A function that iterates over a run of its own gives up its thread meanwhile."""

    def outer():
        return sorted(submit(dag_of(*(Function(i, [], int) for i in range(3)))).as_completed())

    with (
        LocalCluster(
            n_workers=1, processes=False, threads_per_worker=1, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        assert execute(dag_of(Function("outer", [], outer)), client=client)["outer"] == [
            (0, 0),
            (1, 0),
            (2, 0),
        ]
