"""A caller that waits for a stalled run is warned, and told what is missing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import warnings

import pytest
from distributed import Client, Event, LocalCluster, Status, Worker
from distributed.utils_test import gen_cluster

from handoff_dask import Function, execute, get_result, submit
from handoff_dask.client import connection, waiting
from tests.support import assert_clean, dag_of

ONE = [("127.0.0.1", 1, {"resources": {"cpu": 1}})]


@pytest.fixture(autouse=True)
def looks(monkeypatch):
    """Check often; return a list that grows with each answer of the scheduler."""
    monkeypatch.setattr(waiting, "LOOK", 0.02)
    monkeypatch.setattr(waiting, "FIRST", 0.05)
    monkeypatch.setattr(waiting, "AGAIN", 0.05)
    answers, call = [], connection.call

    async def noted(client, handler, /, **kwargs):
        answer = await call(client, handler, **kwargs)
        if handler == "stalled":
            answers.append(answer)
        return answer

    monkeypatch.setattr(connection, "call", noted)
    return answers


@contextlib.contextmanager
def recorded():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


async def warned(caught, number=1):
    """Wait for warnings, and return the texts."""
    while len(caught) < number:
        await asyncio.sleep(0.01)
    assert {warning.category for warning in caught} == {RuntimeWarning}
    return [str(warning.message) for warning in caught]


async def looked(looks, number=5):
    start = len(looks)
    while len(looks) < start + number:
        await asyncio.sleep(0.01)


def nested(cost=None):
    """Return a function that executes a DAG of one function with a cost."""

    def outer():
        inner = dag_of(Function(id="inner", args=[], code=int, cost=cost), id="within")
        return execute(inner).results["inner"]

    return outer


@gen_cluster(nthreads=[], client=True)
async def test_a_cluster_without_workers(c, s):
    """The warning says so and is repeated, and the run ends once there is a worker."""
    with recorded() as caught:
        waits = asyncio.create_task(execute(dag_of(Function(id="f", args=[], code=int))))
        first, second, *_ = await warned(caught, 2)
        assert "the cluster has no workers; the run waits for one" in first
        assert "nothing has moved for" in second
        async with Worker(s.address):
            assert (await waits).results == {"f": 0}
    await assert_clean(s)


@pytest.fixture
def empty_cluster():
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address="localhost:0") as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.mark.parametrize("how", ["execute", "result", "wait", "get_result"])
def test_every_way_to_wait(empty_cluster, how):
    """Every call that waits in a thread warns, and names the waiting line."""
    dag = dag_of(Function(id="f", args=[], code=int))
    with pytest.warns(RuntimeWarning, match="no workers") as caught:
        if how == "execute":
            with pytest.raises(Exception, match="did not end within 1 s"):
                execute(dag, timeout=1)
        else:
            run = submit(dag)
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                if how == "get_result":
                    get_result(dag.id, "f", timeout=0.5)
                else:
                    getattr(run, how)(timeout=0.5)
            run.cancel()
    assert caught[0].filename == __file__


# Without a limit nothing resumes a worker that has memory.
@gen_cluster(nthreads=[("127.0.0.1", 1, {"memory_limit": 0})], client=True)
async def test_all_workers_are_paused(c, s, a):
    """The workers that could run it are named."""
    run = await submit(dag_of(Function(id="f", args=[], code=int)))
    await run.wait()
    a.status = Status.paused
    while s.workers[a.address].status != Status.paused:
        await asyncio.sleep(0.01)
    with recorded() as caught:
        waits = asyncio.create_task(execute(dag_of(Function(id="f", args=[], code=int))))
        (text, *_) = await warned(caught)
        assert f"'f' of 'a dag': the workers that could run it are paused: {a.address}" in text
        a.status = Status.running
        await waits


@gen_cluster(nthreads=ONE, client=True)
async def test_a_capacity_that_is_not_there(c, s, a):
    """If a run waits for something that no worker offers, the warning says what."""
    dag = dag_of(Function(id="f", args=[], code=int, cost={"gpu": 2}))
    with recorded() as caught:
        waits = asyncio.create_task(execute(dag, placement_timeout=60))
        (text, *_) = await warned(caught)
        assert "function 'f' of 'a dag': no worker can hold it" in text
        assert "needs gpu 2, offers 0" in text
        async with Worker(s.address, resources={"gpu": 2}):
            await waits


@gen_cluster(nthreads=ONE, client=True)
async def test_waiting_for_what_is_busy_is_no_stall(c, s, a, looks):
    """Waiting for other functions to end, of this run or another, causes no warning."""

    def hold():
        Event("go").wait()

    def dag(id):
        return dag_of(
            Function(id=1, args=[], code=hold, cost={"cpu": 1}),
            Function(id=2, args=[], code=hold, cost={"cpu": 1}),
            Function(id=3, args=[2], code=lambda _: None),
            id=id,
        )

    with recorded() as caught:
        first = asyncio.create_task(execute(dag("first")))
        second = asyncio.create_task(execute(dag("second")))
        await looked(looks, 10)
        assert set(looks) == {None}
        assert not caught
        await Event("go").set()
        await asyncio.gather(first, second)


@gen_cluster(nthreads=[], client=True)
async def test_where_warnings_are_errors(c, s, caplog):
    """If warnings are errors, the warning is logged instead, and the run does not fail."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        waits = asyncio.create_task(execute(dag_of(Function(id="f", args=[], code=int))))
        while "the cluster has no workers" not in caplog.text:
            await asyncio.sleep(0.01)
        async with Worker(s.address):
            assert (await waits).results == {"f": 0}
    assert {r.levelno for r in caplog.records if r.name == "handoff_dask.client.waiting"} == {
        logging.WARNING
    }


@gen_cluster(nthreads=ONE, client=True)
async def test_a_function_holds_what_its_own_run_needs(c, s, a, looks):
    """The warning names both functions, here and on the outer one's worker; more capacity helps."""
    dag = dag_of(Function(id="outer", args=[], code=nested({"cpu": 1}), cost={"cpu": 1}))
    with recorded() as caught:
        waits = asyncio.create_task(execute(dag))
        while len({(warning.filename, warning.lineno) for warning in caught}) < 2:
            await asyncio.sleep(0.01)
        for text in await warned(caught):
            assert (
                "function 'inner' of 'within' needs cpu 1, and function 'outer' of 'a dag' holds "
                f"cpu 1 on {a.address} while it waits for a run of its own: neither can go on"
            ) in text
        async with Worker(s.address, resources={"cpu": 1}):
            assert (await waits).results == {"outer": 0}
    await assert_clean(s, a)


@gen_cluster(nthreads=ONE, client=True)
async def test_a_function_holds_what_a_run_further_in_needs(c, s, a):
    """The function in between costs nothing, so the outermost one is named."""

    def outer():
        return execute(dag_of(Function(id="middle", args=[], code=nested({"cpu": 1})))).results

    with recorded() as caught:
        dag = dag_of(Function(id="outer", args=[], code=outer, cost={"cpu": 0.5}))
        waits = asyncio.create_task(execute(dag))
        (text, *_) = await warned(caught)
        assert "'inner' of 'within' needs cpu 1, and function 'outer' of 'a dag' holds cpu 0.5" in (
            text
        )
        async with Worker(s.address, resources={"cpu": 1}):
            assert (await waits).results == {"outer": {"middle": 0}}


@gen_cluster(nthreads=ONE * 2, client=True)
async def test_functions_hold_what_each_others_runs_need(c, s, a, b):
    """Each function has a worker, and each run needs what the other function holds."""
    dag = dag_of(
        *(
            Function(id=name, args=[], code=nested({"cpu": 1}), cost={"cpu": 1})
            for name in ("left", "right")
        )
    )
    with recorded() as caught:
        waits = asyncio.create_task(execute(dag))
        (text, *_) = await warned(caught)
        assert "function 'left' of 'a dag' holds" in text
        assert "function 'right' of 'a dag' holds" in text
        async with Worker(s.address, resources={"cpu": 1}):
            assert (await waits).results == {"left": 0, "right": 0}


@gen_cluster(nthreads=ONE * 2, client=True)
async def test_what_others_hold_for_a_while_is_no_stall(c, s, a, b, looks):
    """The run of a function waits for another worker, which somebody else will leave."""

    def hold():
        Event("go").wait()

    with recorded() as caught:
        busy = await submit(dag_of(Function(id="busy", args=[], code=hold, cost={"cpu": 1})))
        dag = dag_of(Function(id="outer", args=[], code=nested({"cpu": 1}), cost={"cpu": 1}))
        waits = asyncio.create_task(execute(dag))
        while len([run for run in s.plugins["handoff"].runs.values()]) < 3:
            await asyncio.sleep(0.01)
        await looked(looks, 10)
        assert set(looks) == {None}
        await Event("go").set()
        assert (await waits).results == {"outer": 0}
        await busy.result()
        assert not caught


@gen_cluster(nthreads=ONE, client=True)
async def test_a_run_within_that_lacks_workers(c, s, a):
    """Callers that wait for a function are also told what its nested run lacks."""

    def outer():
        inner = dag_of(Function(id="inner", args=[], code=int, cost={"gpu": 1}), id="within")
        return execute(inner, placement_timeout=60).results["inner"]

    with recorded() as caught:
        waits = asyncio.create_task(execute(dag_of(Function(id="outer", args=[], code=outer))))
        while len({(warning.filename, warning.lineno) for warning in caught}) < 2:
            await asyncio.sleep(0.01)
        for text in await warned(caught):
            assert "function 'inner' of 'within': no worker can hold it" in text
        async with Worker(s.address, resources={"gpu": 1}):
            await waits
