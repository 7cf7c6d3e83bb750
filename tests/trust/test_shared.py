"""Shared objects are pickled once per run, and sent once to each worker."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import pickle
from threading import Lock

import cloudpickle
import dask
import numpy
import pytest
from distributed import Event, Status, Worker
from distributed.utils_test import gen_cluster

from handoff_dask import Argument, Function, InvalidFunctionError, execute, submit
from handoff_dask.graph.translation import translate, translate_plain
from handoff_dask.model.expansion import expand
from tests.support import assert_clean, dag_of

RUN = "0123456789abcdef0123456789abcdef"
SIZE = 1_000_000
N = 20


class Data:
    """Counts how often it is pickled; only pickling shows that it is large."""

    def __init__(self, size=SIZE):
        self.rest = list(range(size // 4))
        self.pickled = 0

    def __getstate__(self):
        self.pickled += 1
        return {"rest": self.rest, "pickled": 0}

    def __call__(self, *args):
        return len(self.rest)

    method = __call__


def use(*args, **kwargs):
    return len(args) + len(kwargs)


def in_closure(data, i):
    return lambda: (data, i)


@dataclasses.dataclass
class Job:
    data: object
    i: int

    def __call__(self, *args):
        return self.i


#: How functions share a large object: each takes it and a number.
WAYS = {
    "code": lambda data, i: {"code": data, "extra_args": [i]},
    "bound method": lambda data, i: {"code": data.method, "extra_args": [i]},
    "partial": lambda data, i: {"code": functools.partial(use, data, i)},
    "partial of a method": lambda data, i: {"code": functools.partial(data.method, i)},
    "keyword of a partial": lambda data, i: {"code": functools.partial(use, data=data, i=i)},
    "extra_args": lambda data, i: {"extra_args": [data, i]},
    "extra_kwargs": lambda data, i: {"extra_kwargs": {"data": data, "i": i}},
    "in a list": lambda data, i: {"extra_args": [[i, data]]},
    "in a dict": lambda data, i: {"extra_kwargs": {"k": {"i": i, "data": (data,)}}},
    "static argument": lambda data, i: {"args": [Argument("source", (use, [data, i]))]},
    "transform": lambda data, i: {"args": [Argument("source", data.method)]},
    "inline function": lambda data, i: {"args": ["inline"]},
    "closure": lambda data, i: {"code": in_closure(data, i)},
    "default": lambda data, i: {"code": lambda data=data: (data, i)},
}
#: The same for what is large by itself, as arrays are, wherever it lies.
ANYWHERE = {
    **{name: WAYS[name] for name in ("partial", "extra_args", "extra_kwargs", "in a dict")},
    **{name: WAYS[name] for name in ("static argument", "inline function", "closure")},
    "attribute": lambda data, i: {"extra_args": [Job(data, i)]},
    "attribute of the code": lambda data, i: {"code": Job(data, i)},
}


def functions_with(way, data):
    """Return functions that share an object."""
    source = Function("source", [], int)
    inline = Function("inline", [], use, [data], type="inline")
    return [
        source,
        inline,
        *(Function(**{"id": i, "args": [], "code": use, **way(data, i)}) for i in range(N)),
    ]


def graph_of(functions):
    by_id = {f.id: f for f in functions}
    return translate(expand(by_id), RUN).graph


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_shared_objects_are_pickled_once(way):
    """However functions share an object, it is pickled once, and is in the graph once."""
    data = Data()
    graph = graph_of(functions_with(way, data))
    assert data.pickled == 1
    alone = len(cloudpickle.dumps(data))
    assert len(cloudpickle.dumps(graph)) < alone + N * 2000
    assert_small_tasks(graph)


def assert_small_tasks(graph):
    """Only one task contains the data."""
    sizes = sorted(len(pickle.dumps(task)) for task in graph.to_dict().values())
    assert sizes[-1] > SIZE / 2
    assert sizes[-2] < 5000


@pytest.mark.parametrize("way", ANYWHERE.values(), ids=ANYWHERE)
@pytest.mark.parametrize(
    "make",
    [lambda: numpy.ones(SIZE // 8), lambda: bytes(SIZE), lambda: "x" * SIZE],
    ids=["array", "bytes", "text"],
)
def test_large_data_is_in_the_graph_once(make, way):
    """Arrays, bytes and text are detected everywhere, also in closures and attributes."""
    data = make()
    graph = graph_of(functions_with(way, data))
    assert len(cloudpickle.dumps(graph)) < SIZE * 1.1 + N * 2000
    assert_small_tasks(graph)


def test_a_plain_graph_shares_too():
    """As a Dask collection, a DAG contains shared objects once."""
    data = Data()
    functions = functions_with(WAYS["bound method"], data)
    graph, _ = translate_plain({f.id: f for f in functions}, RUN)
    assert data.pickled == 1
    assert_small_tasks(graph)
    assert set(dag_of(*functions).compute().values()) >= {len(data.rest)}


def test_what_is_not_shared_stays_with_its_function():
    """Large data of a single function stays in its task, and so do all small objects."""
    small = numpy.ones(10)
    functions = [Function(i, [], use, [numpy.ones(SIZE // 8) * i, small]) for i in range(3)]
    assert len(graph_of(functions).to_dict()) == 3


@gen_cluster(client=True, nthreads=[("127.0.0.1", 2), ("127.0.0.1", 2)])
async def test_shared_data_moves_once_to_each_worker(c, s, a, b):
    """On a cluster, results are right, users see nothing of it, and nothing is left."""
    data = numpy.arange(SIZE // 8)
    received = []
    for worker in (a, b):
        handle = worker.handle_stimulus

        def count(*events, handle=handle):
            received.extend(len(pickle.dumps(e.run_spec)) for e in events if hasattr(e, "run_spec"))
            handle(*events)

        worker.handle_stimulus = count

    def total(array, i):
        array += i
        return int(array.sum())

    functions = [Function(i, [], total, [data, i], cost={"cpu": 1}) for i in range(N)]
    run = await submit(dag_of(*functions))
    result = await run.result()
    assert result.results == {i: int((data + i).sum()) for i in range(N)}
    assert result.attempts.keys() == result.allocations.keys() == set(range(N))
    assert all(len(tried) == 1 for tried in result.attempts.values())
    status = await run.status()
    assert (status["done"], status["attempts"].keys()) == (N, set(range(N)))
    assert sum(received) < 2 * SIZE  # the data once, and the calls
    del run, result
    await assert_clean(s, a, b)


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_shared_data_is_lost_and_made_again(c, s, a):
    """Functions still get the data after the worker that had it leaves."""
    data = numpy.arange(SIZE // 8)

    def last(array, *_):
        return int(array[-1])

    late = Function("late", [], last, [data], cost={"licence": 1})
    run = await submit(dag_of(Function("first", [], last, [data]), late), placement_timeout=60)
    while (await run.counts())["done"] == 0:
        await asyncio.sleep(0.01)
    await a.close()
    async with Worker(s.address, resources={"licence": 1}):
        result = await run.result()
    assert result.results == {"first": int(data[-1]), "late": int(data[-1])}


@gen_cluster(
    client=True,
    nthreads=[("127.0.0.1", 1)],
    config={
        "distributed.scheduler.no-workers-timeout": "100ms",
        "distributed.worker.memory.pause": False,
    },
)
async def test_shared_data_waits_for_workers_as_functions_do(c, s, a):
    """While all workers are paused, an operator's no-workers-timeout does not apply to it."""
    await execute(dag_of())
    a.status = Status.paused
    while s.workers[a.address].status != Status.paused:
        await asyncio.sleep(0.01)
    shared = bytes(SIZE)
    run = await submit(dag_of(*(Function(i, [], len, [shared]) for i in range(3))))
    await asyncio.sleep(0.6)  # Dask looks every 250 ms
    a.status = Status.running
    assert set((await run.result()).results.values()) == {SIZE}


@gen_cluster(client=True, nthreads=[("127.0.0.1", 2)])
async def test_many_shared_objects_beside_a_busy_cluster(c, s, a):
    """Shared data is not kept waiting for idle workers, as Dask's root tasks are."""

    def hold():
        Event("go").wait()

    holding = c.submit(hold)
    # More than the worker may have at once, so that Dask queues what it can queue.
    filling = c.map(lambda i: Event("go").wait(), range(10))
    parts = [bytes(SIZE // 5 + i) for i in range(10)]
    dag = dag_of(*(Function((i, j), [], len, [parts[i]]) for i in range(10) for j in range(2)))
    run = await submit(dag)
    while not s.tasks.get(next(iter(run.futures.values())).key):
        await asyncio.sleep(0.01)
    shared = [ts for key, ts in s.tasks.items() if "shared" in str(key)]
    assert {ts.state for ts in shared} == {"processing"}
    await Event("go").set()
    assert len((await run.result()).results) == 20
    await c.gather([holding, *filling])


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_annotations_of_the_user_do_not_reach_shared_data(c, s, a):
    """Users' annotations of Dask tasks do not keep the data from being sent."""
    data = bytes(SIZE)
    dag = dag_of(*(Function(i, [], len, [data]) for i in range(3)))
    with (
        pytest.warns(UserWarning, match="ignores these annotations"),
        dask.annotate(resources={"nothing": 1}, workers=["nobody"]),
    ):
        run = await submit(dag)
    assert (await run.result()).results == dict.fromkeys(range(3), SIZE)
    del run
    await assert_clean(s, a)


@pytest.mark.parametrize("large", [False, True])
def test_shared_data_that_cannot_be_pickled(large):
    """The error names the first function, and the field."""
    data = [Lock(), bytes(SIZE if large else 1)]
    with pytest.raises(InvalidFunctionError, match="pickle") as caught:
        graph_of([Function(i, [], use, [data]) for i in range(3)])
    assert (caught.value.function_id, caught.value.field) == (0, "extra_args")


@gen_cluster(client=True, nthreads=[("127.0.0.1", 2)])
async def test_runs_do_not_share(c, s, a):
    """Each of two simultaneous runs of a DAG, and a later one, has its own data."""
    data = numpy.ones(SIZE // 8)
    dag = dag_of(*(Function(i, [], numpy.sum, [data]) for i in range(4)))
    runs = [await submit(dag), await submit(dag)]
    outcomes = [(await run.result()).results for run in runs] + [(await execute(dag)).results]
    assert outcomes == [dict.fromkeys(range(4), SIZE // 8)] * 3
    del runs
    await assert_clean(s, a)
