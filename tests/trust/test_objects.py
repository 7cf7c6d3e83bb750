"""Every start of a function has its own objects: no state passes from one start to another."""

from __future__ import annotations

import asyncio
import functools
import gc
import weakref

import numpy
import pytest
from distributed.utils_test import gen_cluster

from handoff_dask import Argument, Function, RetryPolicy, current, execute, execute_local, submit
from tests.support import assert_clean, dag_of

on_one_worker = functools.partial(gen_cluster, nthreads=[("127.0.0.1", 2)], client=True)


class Scaler:
    """Keeps every row that it has seen."""

    def __init__(self):
        self.rows = []

    def __call__(self, row):
        self.rows.append(row)
        return sum(self.rows)

    add = __call__


def closure():
    total = 0

    def add(row):
        nonlocal total
        total += row
        return total

    return add


def list_in_a_cell():
    rows = []
    return lambda row: rows.append(row) or sum(rows)


def default():
    def add(row, rows=[]):  # noqa: B006 - that is the point
        rows.append(row)
        return sum(rows)

    return add


def attribute():
    def add(row):
        add.rows.append(row)
        return sum(add.rows)

    add.rows = []
    return add


def in_a_partial():
    return functools.partial(lambda rows, row: rows.append(row) or sum(rows), [])


def keyword_of_a_partial():
    return functools.partial(lambda row, *, rows: rows.append(row) or sum(rows), rows=[])


def global_of_a_script():
    scope = {"__name__": "__main__"}
    exec("n = 0\ndef add(row):\n    global n\n    n += row\n    return n", scope)
    return scope["add"]


def iterator():
    return functools.partial(lambda numbers, row: next(numbers) + row, iter(range(0, 90, 10)))


MAKERS = [
    Scaler,
    lambda: Scaler().add,
    closure,
    list_in_a_cell,
    default,
    attribute,
    in_a_partial,
    keyword_of_a_partial,
    global_of_a_script,
    iterator,
]


@pytest.mark.parametrize("shared", [False, True], ids=["each its own", "one for all"])
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_code_with_state(make, shared):
    """Code that changes itself starts as the user made it, in every function and every run."""

    @on_one_worker()
    async def check(c, s, a):
        one = make()
        functions = [Function(i, [], one if shared else make(), [i]) for i in range(6)]
        for _ in range(2):
            result = await execute(dag_of(*functions))
            assert result.results == {i: i for i in range(6)}
        await assert_clean(s, a)

    check()


@on_one_worker()
async def test_arguments_with_state(c, s, a):
    """The same goes for arguments, however they are passed and whatever their size."""

    def add(rows, more):
        rows.append(1)
        more["rows"].append(1)
        return len(rows), len(more["rows"])

    for size in (0, 50_000):
        rows = list(range(size))
        functions = [
            Function(i, [], add, [rows], extra_kwargs={"more": {"rows": rows}}) for i in range(4)
        ]
        result = await execute(dag_of(*functions))
        # One list in a call, which both arguments are.
        assert set(result.results.values()) == {(size + 2, size + 2)}


@on_one_worker()
async def test_arrays_are_writable(c, s, a):
    """A start may write into its arrays, small or large, shared or not; no other start sees it."""

    def add_one(array, other):
        array += 1
        other["array"] += 1
        return array.sum(), other["array"].sum()

    for size in (10, 100_000):
        array = numpy.zeros(size)
        functions = [Function(i, [], add_one, [array, {"array": array.copy()}]) for i in range(4)]
        result = await execute(dag_of(*functions, id=size))
        assert set(result.results.values()) == {(size, size)}
        assert not array.any()


@on_one_worker()
async def test_a_retry_has_its_own(c, s, a):
    """The next attempt does not see what a failed one did to its objects."""

    class Flaky(Scaler):
        def __call__(self, rows):
            self.rows.append(0)
            rows.append(0)
            if current().attempt < 3:
                raise ValueError("not yet")
            return len(self.rows), len(rows)

    result = await execute(dag_of(Function("f", [], Flaky(), [[]])))
    assert result.results == {"f": (1, 1)}
    assert len(result.attempts["f"]) == 3


@on_one_worker()
async def test_inline_functions_and_transforms(c, s, a):
    """The code and static arguments of transforms keep no state either."""

    class Pack(Scaler):
        def __call__(self, data, source, target, rows):
            self.rows.append(data)
            rows.append(data)
            return sum(self.rows) + sum(rows)

    pack, rows = Pack(), []
    functions = [
        Function("one", [], int, [1]),
        Function("inline", [], Scaler(), [1], type="inline"),
    ]
    for i in range(4):
        given = [Argument("one", (pack, [rows])), "inline", Argument("inline", (pack, [rows]))]
        functions.append(Function(i, given, lambda *args: args))
    result = await execute(dag_of(*functions))
    assert {result.results[i] for i in range(4)} == {(2, 1, 2)}


@on_one_worker()
async def test_escalation_has_no_memory(c, s, a):
    """A policy's code starts fresh for each failure and each function."""
    calls = []

    def escalate(attempt, cost, error):
        calls.append(attempt)
        return {"cpu": len(calls)}

    def fail():
        if current().attempt < 3:
            raise ValueError("not yet")

    policy = RetryPolicy(escalate=escalate)
    result = await execute(
        dag_of(*(Function(i, [], fail, cost={"cpu": 1}, retry=policy) for i in range(3)))
    )
    costs = {attempt.cost["cpu"] for tried in result.attempts.values() for attempt in tried}
    assert costs == {1}


# One object in a call is one object in its start


class Model:
    """Holds a configuration and some data."""

    def __init__(self, size):
        self.config = {"size": size}
        self.data = numpy.zeros(size)
        self.table = {str(i): i for i in range(size // 10)}

    def has(self, *objects):
        mine = [self, self.config, self.data, self.table]
        return [any(o is m for m in mine) for o in objects]

    __call__ = has


def has_in_closure(model):
    return lambda *objects: model.has(*objects)


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "with others"])
def test_identity(size, alone):
    """An object that occurs twice in code and arguments is one object in the start."""

    @on_one_worker()
    async def check(c, s, a):
        model = Model(size)
        parts = [model, model.config, model.data, model.table]
        codes = [model, model.has, functools.partial(Model.has, model), has_in_closure(model)]
        functions = [
            Function((i, n), [], code, parts[:n], extra_kwargs={})
            for i, code in enumerate(codes)
            for n in range(5)
        ] + [Function((i, "backwards"), [], code, parts[::-1]) for i, code in enumerate(codes)]
        if alone:
            functions = functions[:1] + functions[-1:]
        result = await execute(dag_of(*functions))
        assert all(map(all, result.results.values()))
        assert result.results == execute_local(dag_of(*functions)).results

    check()


@on_one_worker()
async def test_a_circle(c, s, a):
    """Objects that refer to each other still do, even if several functions share them."""

    class Node:
        pass

    one, two = Node(), Node()
    one.other, two.other = two, one
    one.data = two.data = numpy.zeros(50_000)

    def check(x, y):
        return x.other is y and y.other is x and x.data is y.data

    functions = [Function(i, [], check, [one, two]) for i in range(3)]
    functions += [Function(i, [], check, [two, one]) for i in range(3, 6)]
    result = await execute(dag_of(*functions))
    assert set(result.results.values()) == {True}


# Memory


ALIVE = weakref.WeakSet()


class Counted(Scaler):
    """Can be counted while it exists."""

    def __init__(self, size):
        super().__init__()
        self.data = numpy.ones(size)
        ALIVE.add(self)

    def __setstate__(self, state):
        self.__dict__.update(state)
        ALIVE.add(self)


@on_one_worker()
async def test_a_worker_keeps_nothing(c, s, a):
    """After a run, nothing is left of code, arguments and their pickles."""
    mine = [Counted(50_000) for _ in range(3)]
    functions = [Function(i, [], mine[i % 3], [i]) for i in range(9)]
    functions += [Function((i,), [], len, [[mine[0], mine[1]]]) for i in range(3)]
    run = await submit(dag_of(*functions))
    await run.result()
    del run

    async def settled():
        while len(ALIVE) > len(mine) or a.data:
            gc.collect()
            await asyncio.sleep(0.01)

    await asyncio.wait_for(settled(), 10)
    await assert_clean(s, a)
