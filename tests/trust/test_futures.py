"""Dask objects as arguments: futures are resolved, and objects that are not values are refused."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import dataclasses
import functools
import gc

import dask
import dask.array
import dask.bag
import pytest
from dask import delayed
from distributed import Client, Event, Lock, Queue, Variable, get_client
from distributed.utils_test import gen_cluster

from handoff_dask import (
    DAG,
    Argument,
    Function,
    FunctionFailedError,
    InvalidFunctionError,
    RunCancelledError,
    execute,
    execute_local,
    submit,
)
from tests.support import assert_clean, dag_of

Pair = collections.namedtuple("Pair", "one two")


def same(*args, **kwargs):
    return args, kwargs


def fail(*args):
    raise ValueError("no")


def use(data, source, target, value):
    return data, value


def ways(future):
    """Return, by name, a function with a future, and what it makes of the future's result, 42."""
    ordered = collections.OrderedDict(a=future)
    listing = [future]
    listing.append(listing)
    return {
        "extra_args": (dict(extra_args=[1, future]), ((1, 42), {})),
        "extra_kwargs": (dict(extra_kwargs={"k": future}), ((), {"k": 42})),
        "list": (dict(extra_args=[[future, 1]]), (([42, 1],), {})),
        "tuple": (dict(extra_args=[(future, 1)]), (((42, 1),), {})),
        "named tuple": (dict(extra_args=[Pair(1, future)]), ((Pair(1, 42),), {})),
        "set": (dict(extra_args=[{future}, frozenset({future})]), (({42}, frozenset({42})), {})),
        "dict": (dict(extra_kwargs={"k": {"a": (future,)}}), ((), {"k": {"a": (42,)}})),
        "ordered": (dict(extra_args=[ordered]), ((collections.OrderedDict(a=42),), {})),
        "twice": (dict(extra_args=[future, [future]]), ((42, [42]), {})),
        "partial": (dict(code=functools.partial(same, future, k=[future])), ((42,), {"k": [42]})),
        "partial argument": (dict(code=lambda f: f(), extra_args=[partial(future)]), ((42,), {})),
        "static": (dict(args=[Argument("x", (use, [future]))]), (((0, 42),), {})),
        "both static": (
            dict(args=[Argument("x", (use, [future]), (use, [[future]]))]),
            ((((0, 42), [42]),), {}),
        ),
        "inline": (dict(args=["inline"]), ((((42,), {}),), {})),
        "transform of inline": (dict(args=[Argument("y", (use, [future]))]), (((0, 42),), {})),
        "on terms": (dict(extra_args=[future], timeout=60), ((42,), {})),
    }


def partial(future):
    return functools.partial(same, future)


def functions_with(future, **fields):
    return [
        Function("x", [], int),
        Function("y", [], int, type="inline"),
        Function("inline", [], same, [future], type="inline"),
        Function(**{"id": "f", "args": [], "code": same, **fields}),
    ]


WAYS = list(ways(None))


@gen_cluster(client=True)
async def test_futures_are_resolved(c, s, a, b):
    """Wherever a future is among the arguments, the function gets its result in that place."""
    future = c.submit(lambda: 42, key="answer")
    for name, (fields, expected) in ways(future).items():
        dag = dag_of(*functions_with(future, **fields), id=name)
        assert (await execute(dag)).results["f"] == expected, name
        assert (await c.compute(dag))["f"] == expected, name
    del future, dag, fields
    await assert_clean(s, a, b)


@pytest.fixture(scope="module")
def client():
    with Client(
        processes=False, n_workers=1, dashboard_address="localhost:0", set_as_default=False
    ) as client:
        yield client


def test_execute_local_waits_for_futures(client):
    """In this process, too, futures are replaced by results; a failed one fails its function."""
    future = client.submit(lambda: 42)
    for name, (fields, expected) in ways(future).items():
        dag = dag_of(*functions_with(future, **fields))
        assert execute_local(dag).results["f"] == expected, name
    dag = dag_of(
        Function("f", [], same, [client.submit(fail, key="bad")]),
        Function("g", ["f"], same),
        Function("h", [], int),
    )
    result = execute_local(dag, on_error="continue")
    assert result.results == {"h": 0}
    error = result.errors["f"]
    assert "'bad'" in str(error)
    assert isinstance(error.__cause__, ValueError)
    assert error.attempts == ()


def test_synchronous_runs(client):
    """Futures of an earlier run belong to the same client."""
    first = submit(dag_of(Function("a", [], int, [3])), client=client)
    second = execute(dag_of(Function("b", [], int, [first.futures["a"]])), client=client)
    assert second.results == {"b": 3}


@gen_cluster(client=True, nthreads=[("127.0.0.1", 4)])
async def test_a_future_of_the_future(c, s, a):
    """A pending result is waited for even if nobody else holds the future."""
    event = Event("go")

    def wait():
        Event("go").wait()
        return [1]

    dag = dag_of(Function("f", [], lambda x: x, [c.submit(wait)]), Function("g", ["f"], len))
    run = await submit(dag)
    del dag
    await asyncio.sleep(0.05)
    assert (await run.counts())["done"] == 0
    why = await run.explain()
    assert (str(why["f"]), str(why["g"])) == ("waits for its arguments", "waits for 'f'")
    await event.set()
    assert (await run.result()).results == {"f": [1], "g": 1}
    del run
    await assert_clean(s, a)


@gen_cluster(client=True)
async def test_results_of_another_run(c, s, a, b):
    """A run's futures can be arguments of the next, before and after that run has ended."""
    first = await submit(dag_of(Function("a", [], lambda: [1, 2]), Function("b", ["a"], len)))
    one = await submit(dag_of(Function("c", [], same, [first.futures["a"], first.futures["b"]])))
    await first.result()
    two = await submit(dag_of(Function("c", [], same, [first.futures["a"], first.futures["b"]])))
    del first
    for run in (one, two):
        assert (await run.result()).results["c"] == (([1, 2], 2), {})
    del run, one, two
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_many_futures(c, s, a, b):
    """One list of many futures, for several functions."""
    futures = c.map(lambda i: i, range(200))
    result = await execute(dag_of(*(Function(i, [], sum, [futures]) for i in range(3))))
    assert set(result.results.values()) == {sum(range(200))}


@pytest.mark.parametrize("done", [True, False], ids=["before", "meanwhile"])
@pytest.mark.parametrize("on_error", ["raise", "continue"])
def test_a_future_that_fails(done, on_error):
    """Its function never starts: the error names the future, and its cause is that exception."""

    @gen_cluster(client=True, nthreads=[("127.0.0.1", 4)])
    async def check(c, s, a):
        def wait_and_fail():
            Event("go").wait()
            fail()

        bad = c.submit(wait_and_fail, key="bad")
        if done:
            await Event("go").set()
            await bad.exception()
        dag = dag_of(
            Function("f", [], same, [[bad]]), Function("g", ["f"], same), Function("h", [], int)
        )
        run = await submit(dag, on_error=on_error)
        if not done:
            while (await run.counts())["done"] == 0:
                await asyncio.sleep(0.01)
        await Event("go").set()
        if on_error == "continue":
            result = await run.result()
            assert result.results == {"h": 0}
            assert set(result.errors) == {"f", "g"}
            error = result.errors["f"]
        else:
            try:
                await run.result()
            except FunctionFailedError as raised:
                error, result = raised, raised.partial
        assert error.function_id == "f"
        assert "'bad'" in str(error) and "no" in str(error)
        assert isinstance(error.__cause__, ValueError)
        assert error.attempts == ()
        assert "f" not in result.attempts
        # Results and errors know their functions, and these the future.
        del run, bad, dag, error, result
        while "bad" in c.futures:
            gc.collect()
            await asyncio.sleep(0.01)
        await assert_clean(s, a)

    check()


@gen_cluster(client=True)
async def test_a_future_that_is_cancelled(c, s, a, b):
    """Before the run it is refused; during the run, the run is cancelled, as Dask tasks are."""
    future = c.submit(lambda: Event("go").wait())
    run = await submit(dag_of(Function("f", [], same, [future])))
    await future.cancel()
    with pytest.raises(RunCancelledError):
        await run.result()
    with pytest.raises(InvalidFunctionError, match="cancelled") as caught:
        await submit(dag_of(Function("f", [], same, extra_kwargs={"k": future})))
    assert (caught.value.function_id, caught.value.field) == ("f", "extra_kwargs")
    await Event("go").set()


@gen_cluster(client=True)
async def test_a_future_of_another_client(c, s, a, b):
    """It is refused before anything is sent, and the error says what to use."""
    async with Client(s.address, asynchronous=True, set_as_default=False) as other:
        future = other.submit(lambda: 42)
        for name, (fields, _) in ways(future).items():
            tasks = dict(s.tasks)
            with pytest.raises(InvalidFunctionError, match=r"another client.*client=") as caught:
                await submit(dag_of(*functions_with(future, **fields), id=name), client=c)
            assert caught.value.function_id in ("f", "inline")
            assert s.tasks.keys() <= tasks.keys()
            assert not s.plugins["handoff"].runs if "handoff" in s.plugins else True
        run = await submit(dag_of(Function("f", [], same, [future])), client=other)
        assert (await run.result()).results == {"f": ((42,), {})}


@gen_cluster(client=True)
async def test_a_future_for_an_id(c, s, a, b):
    """Values are not ids: a future among the args is refused, with the field to use instead."""
    for future in (c.submit(int), concurrent.futures.Future()):
        with pytest.raises(InvalidFunctionError, match=r"extra_args") as caught:
            await submit(dag_of(Function("f", [future], same)))
        assert (caught.value.function_id, caught.value.field) == ("f", "args")


@dataclasses.dataclass
class Box:
    value: object

    def __call__(self):
        return self.value


@gen_cluster(client=True)
async def test_futures_out_of_reach(c, s, a, b):
    """A future that cannot be replaced by its result is refused instead of sent."""
    future = c.submit(lambda: 42)
    Function("x", [], int)
    for field, fields in [
        ("code", {"code": lambda: future}),
        ("code", {"code": Box(future)}),
        ("code", {"code": future.result}),
        ("extra_args", {"extra_args": [Box(future)]}),
        ("extra_kwargs", {"extra_kwargs": {"k": [Box([future])]}}),
        ("args", {"args": [Argument("x", lambda *args: future)]}),
    ]:
        with pytest.raises(InvalidFunctionError, match=r"future.*extra_args") as caught:
            await submit(
                dag_of(
                    Function("x", [], int),
                    Function(**{"id": 1, "args": [], "code": same, **fields}),
                )
            )
        assert (caught.value.function_id, caught.value.field) == (1, field)


def refused():
    array = dask.array.ones(10)
    value = delayed(int)(3)
    return [
        ("code", {"code": delayed(int)}),
        ("code", {"code": value}),
        ("code", {"code": functools.partial(same, value)}),
        ("extra_args", {"extra_args": [value]}),
        ("extra_args", {"extra_args": [array]}),
        ("extra_args", {"extra_args": [[{"a": dask.bag.from_sequence([1])}]]}),
        ("extra_args", {"extra_args": [DAG("other").add_function(Function(1, [], int))]}),
        ("extra_args", {"extra_args": [DAG("broken").add_function(Function(1, [2], int))]}),
        ("extra_kwargs", {"extra_kwargs": {"k": (array,)}}),
        ("args", {"args": [value]}),
        ("args", {"args": [Argument("x", delayed(same))]}),
        ("args", {"args": [Argument("x", None, (same, [value]))]}),
    ]


@pytest.mark.parametrize("type_", ["regular", "inline"])
@pytest.mark.parametrize(("field", "fields"), refused())
def test_collections_are_refused(field, fields, type_):
    """validate() refuses uncomputed collections as values and as code, and says what to pass."""
    dag = dag_of(
        Function("x", [], int),
        Function(**{"id": "f", "args": [], "code": same, "type": type_, **fields}),
        Function("g", ["f"], same),
    )
    for check in (dag.validate, lambda: execute_local(dag)):
        with pytest.raises(InvalidFunctionError, match="compute") as caught:
            check()
        assert (caught.value.function_id, caught.value.field) == ("f", field)


def test_collections_as_objects_of_the_users():
    """Code may compute a collection of its own."""
    value = delayed(int)(3)
    dag = dag_of(Function("f", [], lambda: value.compute(scheduler="sync")))
    assert execute_local(dag).results == {"f": 3}
    assert dag.compute(scheduler="sync") == {"f": 3}


@gen_cluster(client=True)
async def test_what_dask_shares_between_tasks(c, s, a, b):
    """Queues, variables, locks and events are made to be passed to tasks."""
    queue, variable, lock, event = Queue("q"), Variable("v"), Lock("l"), Event("e")

    def put(queue, variable, lock, event):
        with lock:
            queue.put(1)
            variable.set(2)
        event.set()

    await execute(dag_of(Function("f", [], put, [queue, variable, lock, event])))
    assert (await queue.get(), await variable.get(), await event.is_set()) == (1, 2, True)


async def later():
    """Be a coroutine."""


@pytest.mark.parametrize(
    "make",
    [
        lambda: (i for i in range(3)),
        later,
        lambda: asyncio.get_running_loop().create_future(),
        concurrent.futures.Future,
    ],
    ids=["generator", "coroutine", "future of asyncio", "future of a pool"],
)
def test_what_cannot_travel_names_its_field(make):
    """For objects that only this process can wait for, the error names function and field."""

    @gen_cluster(client=True)
    async def check(c, s, a, b):
        value = make()
        with pytest.raises(InvalidFunctionError, match="pickle") as caught:
            await submit(dag_of(Function("f", [], same, [[value]])))
        assert (caught.value.function_id, caught.value.field) == ("f", "extra_args")
        if asyncio.iscoroutine(value):
            value.close()

    check()


@gen_cluster(client=True, nthreads=[("127.0.0.1", 2)])
async def test_futures_in_a_nested_run(c, s, a):
    """On a worker, futures of its own client are arguments as well."""

    def nested():
        future = get_client().submit(lambda: 42)
        return execute(dag_of(Function("g", [], same, [future]))).results["g"]

    result = await execute(dag_of(Function("f", [], nested)))
    assert result.results == {"f": ((42,), {})}


def test_without_a_client(client):
    """A future of another cluster than the embedded one is refused."""
    future = client.submit(lambda: 42)
    with pytest.raises(InvalidFunctionError, match="another client"):
        execute(dag_of(Function("f", [], same, [future])))
