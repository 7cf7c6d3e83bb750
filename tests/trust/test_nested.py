"""Functions that start runs and wait for them, in every way that user code can."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import pytest
from distributed import Client, Event, LocalCluster, get_client, rejoin, secede, worker_client
from distributed.utils_test import gen_cluster

from handoff_dask import Argument, Function, current, execute, get_result, submit
from tests.support import assert_clean, dag_of


def leaf(answer="7"):
    return dag_of(Function(id="leaf", args=[], code=int, extra_args=[answer]), id="inner")


def value(answer="7", **kwargs):
    return execute(leaf(answer), **kwargs).results["leaf"]


def in_a_worker_client():
    with worker_client() as client:
        return value(client=client)


def in_a_worker_client_unnamed():
    with worker_client():
        return value()


def with_the_workers_client():
    return value(client=get_client())


def after_secede():
    secede()
    return value()


def after_secede_and_rejoin():
    secede()
    rejoin()
    return value()


def before_secede():
    outcome = value()
    secede()
    rejoin()
    return outcome


def before_a_worker_client():
    outcome = value()
    with worker_client() as client:
        return client.submit(int, str(outcome), pure=False).result()


def submitted_and_awaited():
    run = submit(leaf())
    run.wait()
    return run.result().results["leaf"]


def by_get_result():
    run = submit(leaf())
    return get_result(run.dag_id, "leaf", timeout=None)


def three_deep():
    def deeper(depth):
        if not depth:
            return in_a_worker_client()
        inner = Function(id="inner", args=[], code=deeper, extra_args=[depth - 1])
        with worker_client() as client:
            return execute(dag_of(inner), client=client).results["inner"]

    return deeper(2)


async def in_a_coroutine():
    return value()


async def in_a_thread_of_a_coroutine():
    return await asyncio.to_thread(value)


async def in_many_threads_of_a_coroutine():
    outcome = await asyncio.gather(*(asyncio.to_thread(value, str(i)) for i in range(5)))
    assert outcome == list(range(5))
    return 7


async def with_an_asynchronous_client():
    address = get_client().scheduler.address
    async with Client(address, asynchronous=True, set_as_default=False) as client:
        run = await submit(leaf(), client=client)
        await run.wait()
        result = await execute(leaf(), client=client)
        return result.results["leaf"]


def in_a_thread_with_the_context():
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, value).result()


def in_a_worker_client_and_a_thread():
    with worker_client():
        return in_a_thread_with_the_context()


def in_threads():
    client = get_client()
    with ThreadPoolExecutor(4) as pool:
        outcome = list(pool.map(lambda i: value(str(i), client=client), range(8)))
    assert outcome == list(range(8))
    return 7


def in_a_thread_without_a_client():
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append((value(), get_client().id)))
    thread.start()
    thread.join()
    assert outcome[0][1] == get_client().id
    return outcome[0][0]


PROGRAMS = [
    value,
    in_a_worker_client,
    in_a_worker_client_unnamed,
    with_the_workers_client,
    after_secede,
    after_secede_and_rejoin,
    before_secede,
    before_a_worker_client,
    submitted_and_awaited,
    by_get_result,
    three_deep,
    in_a_coroutine,
    in_a_thread_of_a_coroutine,
    in_many_threads_of_a_coroutine,
    with_an_asynchronous_client,
    in_a_thread_with_the_context,
    in_a_worker_client_and_a_thread,
]


def slots(scheduler, worker):
    return scheduler.plugins["handoff"].engine.questions.slots(worker.address)


@pytest.mark.parametrize("program", PROGRAMS)
@gen_cluster(nthreads=[("127.0.0.1", 1)], client=True, timeout=20)
async def test_a_function_waits_for_a_run(c, s, a, program):
    """On a worker with one thread, however a function waits, its run gets that thread."""
    for _ in range(2):
        result = await execute(dag_of(Function(id="outer", args=[], code=program)), max_retries=0)
        assert result.results == {"outer": 7}
    assert slots(s, a) == (1, 1)
    # Functions that wait for nothing share the thread again.
    assert (await execute(leaf())).results == {"leaf": 7}
    assert a.executors["default"]._max_workers == 1
    await assert_clean(s, a)


@gen_cluster(nthreads=[("127.0.0.1", 1)], client=True, timeout=20)
async def test_other_code_on_a_worker_waits_for_a_run(c, s, a):
    """Transforms and plain Dask tasks may wait for a run, too."""
    plus = lambda data, source, target: data + value()  # noqa: E731
    dag = dag_of(
        Function(id="one", args=[], code=int, extra_args=["1"]),
        Function(id="sum", args=[Argument("one", plus, plus)], code=int),
    )
    assert (await execute(dag)).results["sum"] == 15
    assert await c.submit(value) == 7
    assert await c.submit(in_a_worker_client) == 7


@gen_cluster(nthreads=[("127.0.0.1", 1)], client=True, timeout=20)
async def test_who_seceded_has_no_slot(c, s, a):
    """The slot of a function that called secede() is used by another function."""

    def outer():
        secede()
        Event("go").wait()

    run = await submit(dag_of(Function(id="outer", args=[], code=outer)))
    while (await run.counts())["running"] != 1 or slots(s, a) != (1, 1):
        await asyncio.sleep(0.01)
    assert (await execute(leaf())).results == {"leaf": 7}
    await Event("go").set()
    await run.result()
    del run
    assert slots(s, a) == (1, 1)
    await assert_clean(s, a)


@gen_cluster(nthreads=[("127.0.0.1", 1)], client=True)
async def test_current_in_threads_of_a_function(c, s, a):
    """A thread with the function's context knows its function, also in a second attempt."""

    async def who():
        outcome = await asyncio.to_thread(current)
        assert outcome.attempt == 2, "the first attempt fails"
        return outcome

    def plain():
        return current()

    dag = dag_of(Function(id="who", args=[], code=who, cost={"cpu": 0.5}), id="d")
    ran = (await execute(dag)).results["who"]
    assert (ran.id, ran.dag_id, ran.attempt, ran.cost) == ("who", "d", 2, {"cpu": 0.5})

    def ask():
        return get_client().submit(plain, pure=False).result(), current().id

    def outer():
        with worker_client():
            return ask()

    assert (await execute(dag_of(Function(id="outer", args=[], code=outer)))).results == {
        "outer": (None, "outer")
    }


@pytest.fixture(scope="module")
def client():
    """One worker process with one thread. For the last tests: gen_cluster ends every process."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address="localhost:0", memory_limit=0
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def by_value(program):
    """Return a function that can be sent to a worker process that cannot import this module."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        packed = cloudpickle.dumps(program)
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])

    def unpacked():
        outcome = pickle.loads(packed)()
        return asyncio.run(outcome) if inspect.iscoroutine(outcome) else outcome

    return unpacked


@pytest.mark.parametrize(
    "program",
    [
        in_a_worker_client,
        in_many_threads_of_a_coroutine,
        with_an_asynchronous_client,
        in_threads,
        in_a_thread_without_a_client,
    ],
)
def test_a_function_in_a_process_of_its_own_waits_for_a_run(client, program):
    """If a process runs only functions, any thread that waits there waits on behalf of one."""
    run = submit(dag_of(Function(id="outer", args=[], code=by_value(program))), max_retries=0)
    assert run.result(timeout=30).results == {"outer": 7}


def test_the_first_at_once():
    """The functions of a worker wait for the client that the first of them is making."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=8, dashboard_address=":0", memory_limit=0
        ) as cluster,
        Client(cluster) as client,
    ):
        functions = [
            Function(id=i, args=[], code=value, extra_args=[str(i)], max_retries=0)
            for i in range(8)
        ]
        assert execute(dag_of(*functions), client=client).results == {i: i for i in range(8)}
