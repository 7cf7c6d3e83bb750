"""explain() before a run, run.explain() during one."""

from __future__ import annotations

import pytest
from distributed import Event
from distributed.utils_test import gen_cluster

from handoff_dask import Function, collocated, explain, submit
from tests.support import assert_clean, dag_of, where

WORKERS = [
    ("127.0.0.1", 2, {"resources": {"cpu": 2, "memory": 1000}}),
    ("127.0.0.1", 2, {"resources": {"cpu": 2, "memory": 1000, "gpu": 1}}),
]


def hold():
    Event("started").set()
    Event("go").wait()


@gen_cluster(nthreads=WORKERS, client=True)
async def test_before_a_run(c, s, a, b):
    """For each function: the workers that could run it, the nearest one's lack, the lost pin."""
    found = await explain(
        dag_of(
            Function(id="any", args=[], code=where, cost={"cpu": 1}),
            Function(id="gpu", args=[], code=where, cost={"gpu": 1}),
            Function(id="too much", args=[], code=where, cost={"gpu": 1, "memory": 2000}),
            Function(id="pinned", args=[], code=where, node="mars"),
            Function(id="beside", args=[], code=where, cost={"cpu": 3}, node=collocated("gpu")),
        )
    )
    assert set(found["any"].able) == {a.address, b.address}
    assert found["gpu"].able == found["beside"].able == ()
    assert found["gpu"].nearest == b.address
    assert found["gpu"].shortfall == {"cpu": (3, 2)}
    assert found["too much"].shortfall == {"memory": (2000, 1000)}
    assert (found["pinned"].pin, found["pinned"].pin_known) == ("mars", False)
    assert not found.possible
    text = str(found)
    assert text.startswith("4 of 5 functions cannot run")
    assert "mars" in text
    assert "memory 2000" in text
    await assert_clean(s, a, b)


@gen_cluster(nthreads=WORKERS, client=True)
async def test_all_is_well(c, s, a, b):
    """A DAG that can run is explained in two lines, however many functions it has."""
    found = await explain(dag_of(*(Function(id=i, args=[], code=where) for i in range(100))))
    assert found.possible
    lines = str(found).splitlines()
    assert lines[0] == "all 100 functions can run on this cluster"
    assert lines[1].strip().startswith("0, 1, 2 and 97 more: can run on")
    assert len(lines) == 2


@gen_cluster(nthreads=WORKERS, client=True)
async def test_during_a_run(c, s, a, b):
    """For each function that does not run: the resource it waits for, where, or what it lacks."""
    started, go = await Event("started"), await Event("go")
    run = await submit(
        dag_of(
            Function(id="first", args=[], code=hold, cost={"gpu": 1}),
            Function(id="second", args=[], code=where, cost={"gpu": 1}),
            Function(id="after", args=["first", "second"], code=where),
        )
    )
    await started.wait()
    why = await run.explain()
    waiting, (held,) = why["after"], [i for i in ("first", "second") if i in why]
    assert set(waiting.dependencies) == {"first", "second"}
    assert why[held].reason == "resources"
    assert why[held].workers == (b.address,)
    assert why[held].resources == {"gpu": (1, 0)}
    assert str(why).startswith("2 functions wait")
    await go.set()
    await run.result()
    assert str(await run.explain()) == "nothing waits"
    del run
    await assert_clean(s, a, b)


@gen_cluster(nthreads=WORKERS, client=True)
async def test_the_limit_of_a_run(c, s, a, b):
    """A function held by max_concurrency is told so."""
    started, go = await Event("started"), await Event("go")
    run = await submit(
        dag_of(*(Function(id=i, args=[], code=hold) for i in range(2))), max_concurrency=1
    )
    await started.wait()
    (why,) = (await run.explain()).values()
    assert why.reason == "max_concurrency"
    await go.set()
    await run.result()


def test_explaining_needs_a_cluster():
    """Without a client there is nothing to explain against: a clear error."""
    with pytest.raises(ValueError, match="no client"):
        explain(dag_of(Function(id=1, args=[], code=where)))
