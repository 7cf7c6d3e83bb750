"""The facade on a cluster in the test's own event loop, with Dask's validation on."""

from __future__ import annotations

import asyncio
import operator
from functools import partial

import pytest
from distributed import Event, get_worker
from distributed.utils_test import gen_cluster

from handoff_dask import (
    DAG,
    AllocationError,
    Argument,
    Function,
    FunctionFailedError,
    UnknownFunctionError,
    UnknownWorkerError,
    collocated,
    discover_nodes,
    execute,
    forget,
    function,
    register_node,
    resources_available,
    submit,
)
from handoff_dask.client import waiting
from tests.support import assert_clean, dag_of, where
from tests.unlike import RAN, note, on_cluster


@on_cluster()
async def test_readme_example(c, s, a, b):
    """The seeds' three functions run: dag_id, results and allocations are what Handoff gives."""
    dag = dag_of(
        Function(id="source", args=[], code=lambda x: x, extra_args=[42]),
        Function(id="transform", args=["source"], code=operator.mul, extra_args=[2]),
        Function(id="sink", args=["transform"], code="The final answer is: {}".format),
    )
    result = await execute(dag)
    assert result.dag_id == "a dag"
    assert result.results == {"source": 42, "transform": 84, "sink": "The final answer is: 84"}
    assert result.allocations.keys() == result.results.keys()
    assert set(result.allocations.values()) <= {a.address, b.address}
    assert result.errors == {}
    assert result.makespan > 0
    await assert_clean(s, a, b)


@on_cluster()
async def test_every_field_of_a_call(c, s, a, b):
    """Results, extra_args, extra_kwargs arrive in that order; as_list makes one list."""

    def show(*args, **kwargs):
        return args, kwargs

    def pack(data, source, target):
        return -data

    dag = dag_of(
        Function(id=("a", 1), args=[], code=int, extra_args=["1"]),
        Function(id=2, args=[], code=int, extra_args=["2"]),
        Function(
            id="variadic", args=[("a", 1), 2], code=show, extra_args=[3], extra_kwargs={"k": 4}
        ),
        Function(
            id="listed", args=[("a", 1), 2], code=show, extra_args=[3], argument_inclusion="as_list"
        ),
        Function(
            id="nested",
            args=[2],
            code=partial(show, Argument(("a", 1))),
            extra_args=[[Argument(2, serialization_fn=pack)]],
            extra_kwargs={"k": {"x": (Argument(("a", 1)), Argument(2))}},
        ),
    )
    result = await execute(dag)
    assert result.results["variadic"] == ((1, 2, 3), {"k": 4})
    assert result.results["listed"] == (([1, 2], 3), {})
    assert result.results["nested"] == ((1, 2, [-2]), {"k": {"x": (1, 2)}})
    assert result.functions[2].results == 2
    assert result.functions[2].node == result.allocations[2]


@on_cluster()
async def test_a_dag_built_by_calls(c, s, a, b):
    """What `add` and `map` build runs with the fields of its code and of the calls."""

    @function(cost={"cpu": 1}, node=a.address)
    def load(path, level=1):
        return [path, level, where()]

    dag = DAG("built")
    raw = dag.map(load, ["x", "y"], level=2)
    moved = dag.add(partial(load, raw[0]), node=b.address, level=raw[1])
    total = dag.add(dict, raw=raw, moved=moved, id="total")
    result = await execute(dag, results=["total"])
    x, y = ["x", 2, a.address], ["y", 2, a.address]
    assert result.results == {total.id: {"raw": [x, y], "moved": [x, y, b.address]}}
    assert [dict(result.attempts[ref.id][0].cost) for ref in (*raw, moved)] == [{"cpu": 1}] * 3


@on_cluster()
async def test_inline_functions_are_evaluated_in_each_user(c, s, a, b):
    """An inline function runs inside each function that uses it, and shows up nowhere."""
    dag = dag_of(
        Function(id="base", args=[], code=int, extra_args=["10"]),
        Function(id="where", args=["base"], code=lambda base: (base, where()), type="inline"),
        Function(id="nested", args=["where"], code=lambda w: w, type="inline"),
        Function(id="one", args=["nested"], code=lambda w: w, node=a.address),
        Function(id="two", args=["nested"], code=lambda w: w, node=b.address),
    )
    result = await execute(dag)
    assert result.results["one"] == (10, a.address)
    assert result.results["two"] == (10, b.address)
    assert result.results.keys() == result.allocations.keys() == {"base", "one", "two"}


@on_cluster()
async def test_transforms_see_both_ends(c, s, a, b):
    """The serializer runs where the producer ran, the deserializer where the consumer runs."""

    def pack(data, source, target, tag):
        return {"data": data, "packed": (source, target, where()), "tag": tag}

    def unpack(data, source, target):
        return {**data, "unpacked": (source, target, where())}

    dag = dag_of(
        Function(id="make", args=[], code=lambda: "payload", node=a.address),
        Function(
            id="use",
            args=[Argument("make", (pack, ["tag"]), unpack)],
            code=lambda data: (data, where()),
            node=b.address,
        ),
        Function(
            id="free", args=[Argument("make", (pack, ["tag"]), unpack)], code=lambda d: (d, where())
        ),
    )
    result = await execute(dag)
    for id_ in ("use", "free"):
        data, place = result.results[id_]
        assert place == result.allocations[id_]
        assert data["packed"] == (a.address, place, a.address)
        assert data["unpacked"] == (a.address, place, place)
        assert data["tag"] == "tag"
        assert data["data"] == "payload"
    assert result.allocations["use"] == b.address
    assert result.allocations.keys() == {"make", "use", "free"}
    await assert_clean(s, a, b)


@gen_cluster(nthreads=[("127.0.0.1", 1)] * 2, client=True)
async def test_pins_by_name_address_and_host(c, s, a, b):
    """A pin is a worker's name, also a number, its address, or its host."""
    dag = dag_of(
        Function(id="number", args=[], code=where, node=1),
        Function(id="name", args=[], code=where, node="1"),
        Function(id="address", args=[], code=where, node=b.address),
        Function(id="host", args=[], code=where, node="127.0.0.1"),
    )
    result = await execute(dag)
    assert result.results == result.allocations
    assert {result.results[i] for i in ("number", "name", "address")} == {b.address}
    assert result.results["host"] in {a.address, b.address}


@on_cluster()
async def test_collocation_follows_chains(c, s, a, b):
    """A function runs wherever the one it is collocated with runs, over any number of steps."""
    dag = dag_of(
        Function(id="last", args=[], code=where, node=collocated("middle")),
        Function(id="middle", args=[], code=where, node=collocated("first")),
        Function(id="first", args=[], code=where, cost={"gpu": 1}),
    )
    result = await execute(dag)
    assert set(result.results.values()) == {b.address}


@on_cluster()
async def test_costs_and_custom_resources(c, s, a, b):
    """A function runs where its cost is offered; names are compared without case."""
    await register_node(a.address, {"licence": 1})
    dag = dag_of(
        Function(id="gpu", args=[], code=where, cost={"GPU": 1, "cpu": 0.5}),
        Function(id="licence", args=[], code=where, cost={"Licence": 1, "memory": 10}),
    )
    result = await execute(dag)
    assert result.results == {"gpu": b.address, "licence": a.address}
    (attempt,) = result.attempts["gpu"]
    assert attempt.cost == {"gpu": 1, "cpu": 0.5}


@gen_cluster(
    nthreads=[("127.0.0.1", 1, {"resources": {"GPU": 2}, "memory_limit": "512 MB"})] * 2,
    client=True,
    config={"distributed.worker.memory.pause": False},  # this process may use more
)
async def test_workers_offer_what_they_have(c, s, a, b):
    """Workers that declare no cpu or memory offer threads and limit; what is declared stays."""
    nodes = await discover_nodes()
    assert nodes == {w.address: {"gpu": 2, "cpu": 1, "memory": 512} for w in (a, b)}
    result = await execute(dag_of(Function(id=1, args=[], code=where, cost={"gpu": 2, "cpu": 1})))
    assert result.results[1] in nodes
    await assert_clean(s, a, b)


@on_cluster()
async def test_resources_available_is_what_is_free(c, s, a, b):
    """resources_available looks at what is free, not at what is declared."""
    started, go = await Event("started"), await Event("go")
    assert await resources_available(b.address, {"gpu": 1})

    def hold():
        Event("started").set()
        Event("go").wait()

    run = await submit(dag_of(Function(id="hold", args=[], code=hold, cost={"gpu": 1})))
    await started.wait()
    assert not await resources_available(b.address, {"gpu": 1})
    assert await resources_available(b.address, {"cpu": 2})
    await go.set()
    await run.result()
    assert await resources_available(b.address, {"gpu": 1})
    with pytest.raises(UnknownWorkerError, match="nobody"):
        await resources_available("nobody", {"gpu": 1})
    with pytest.raises(ValueError, match="gpu"):
        await resources_available(b.address, {"gpu": -1})


@on_cluster()
async def test_results_selection(c, s, a, b):
    """Sinks or a list: only these are in the results, though every function ran."""
    RAN.clear()

    def dag():
        return dag_of(
            Function(id="root", args=[], code=note),
            Function(id="left", args=["root"], code=note),
            Function(id="right", args=["root"], code=note),
        )

    assert (await execute(dag(), results="sinks")).results == {"left": 1, "right": 1}
    result = await execute(dag(), results=["root"])
    assert result.results == {"root": 0}
    assert result.allocations.keys() == {"root", "left", "right"}
    assert len(RAN) == 6
    with pytest.raises(UnknownFunctionError, match="centre"):
        await execute(dag(), results=["centre"])
    with pytest.raises(ValueError, match="results"):
        await execute(dag(), results="some")


@on_cluster()
async def test_futures_of_a_run(c, s, a, b):
    """run.futures holds the results on the workers while the run is referenced."""
    run = await submit(dag_of(Function(id="x", args=[], code=where)))
    assert await run.futures["x"] in {a.address, b.address}
    await run.result()
    del run
    await assert_clean(s, a, b)


@on_cluster()
async def test_allocator_of_the_users_own(c, s, a, b):
    """An Allocator is asked once for everything; what it leaves out or invents is an error."""

    class Everything:
        def __init__(self, worker, but=()):
            self.worker, self.but, self.asked = worker, but, []

        def allocate(self, functions, capabilities):
            self.asked.append(({f.id for f in functions}, set(capabilities)))
            return {f.id: self.worker for f in functions if f.id not in self.but}

    dag = dag_of(
        Function(id=1, args=[], code=where), Function(id=2, args=[1], code=lambda x: where())
    )
    allocator = Everything(b.address)
    result = await execute(dag, allocation_strategy=allocator)
    assert set(result.allocations.values()) == {b.address}
    assert allocator.asked == [({1, 2}, {a.address, b.address})]
    with pytest.raises(AllocationError, match=r"2.*Everything.allocate\(\)"):
        await execute(dag, allocation_strategy=Everything(b.address, but=[2]))
    with pytest.raises(UnknownWorkerError, match="nowhere"):
        await execute(dag, allocation_strategy=Everything("nowhere"))
    await assert_clean(s, a, b)


@on_cluster()
async def test_concurrent_runs_do_not_collide(c, s, a, b):
    """Runs with the same dag id and function ids keep their results apart."""

    def dag(value):
        return dag_of(
            Function(id="x", args=[], code=int, extra_args=[str(value)], cost={"cpu": 1}),
            Function(id="y", args=["x"], code=operator.neg),
        )

    results = await asyncio.gather(*(execute(dag(value)) for value in range(20)))
    assert [result.results["y"] for result in results] == [-value for value in range(20)]
    await assert_clean(s, a, b)


@on_cluster()
async def test_the_worker_of_a_function_is_the_schedulers_word(c, s, a, b):
    """Allocations are what the scheduler saw, function by function."""
    dag = dag_of(*(Function(id=i, args=[], code=where, cost={"cpu": 1}) for i in range(20)))
    result = await execute(dag)
    assert result.allocations == result.results
    assert {tried[-1].worker for tried in result.attempts.values()} == set(result.results.values())


@on_cluster()
async def test_an_empty_dag(c, s, a, b):
    """A DAG without functions, or with inline ones only, has an empty result and leaves nothing."""
    for dag in (dag_of(), dag_of(Function(id=1, args=[], code=int, type="inline"))):
        for detach in (False, True):
            run = await submit(dag, detach=detach)
            result = await run.result()
            assert (result.results, result.allocations, result.makespan) == ({}, {}, 0.0)
            assert (await run.status())["done"] == 0
            if detach:
                await forget(dag.id)
            del run
            await assert_clean(s, a, b)


def nested(depth):
    """Run a DAG inside of a function of a DAG, and so on."""
    if not depth:
        return where()
    dag = dag_of(Function(id="inner", args=[], code=nested, extra_args=[depth - 1]))
    return [execute(dag).results["inner"]]


@gen_cluster(nthreads=[("127.0.0.1", 1)], client=True)
async def test_a_run_inside_of_a_run(c, s, a):
    """A function that executes a DAG of its own gives up its thread meanwhile: nothing hangs."""
    result = await execute(dag_of(Function(id="outer", args=[], code=nested, extra_args=[3])))
    assert result.results["outer"] == [[[a.address]]]
    await assert_clean(s, a)


def test_worker_of_this_module_is_found():
    """Outside a worker, where() has no answer: the tests above really ask a worker."""
    with pytest.raises(ValueError):
        get_worker()


def test_a_failure_in_an_embedded_cluster():
    """The original exception arrives where messages between threads are not serialized, too."""
    dag = DAG().add_function(Function(id="half", args=[], code=operator.truediv, extra_args=[1, 0]))
    with pytest.raises(FunctionFailedError) as caught:
        execute(dag, max_retries=0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_going_on_in_an_embedded_cluster():
    """What does not depend on a failed function runs, also where no client is the current one."""
    dag = (
        DAG()
        .add_function(Function(id="half", args=[], code=operator.truediv, extra_args=[1, 0]))
        .add_function(Function(id="whole", args=[], code=operator.truediv, extra_args=[2, 2]))
    )
    result = execute(dag, max_retries=0, on_error="continue")
    assert result.results == {"whole": 1.0}
    assert list(result.errors) == ["half"]


@on_cluster()
async def test_large_runs(c, s, a, b, monkeypatch):
    """A run whose futures are too many to wait for each ends as others do."""
    monkeypatch.setattr(waiting, "_MANY", 3)
    monkeypatch.setattr(waiting, "_PAUSE", 0.01)
    dag = dag_of(*(Function(i, [], int, extra_args=[i]) for i in range(50)))
    assert (await execute(dag)).results == {i: i for i in range(50)}
    bad = dag_of(*(Function(i, [], fail, max_retries=0) for i in range(50)))
    with pytest.raises(FunctionFailedError):
        await execute(bad)
    await assert_clean(s, a, b)


def fail():
    raise LookupError("no such thing")
