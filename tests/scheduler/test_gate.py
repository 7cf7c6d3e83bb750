"""The gate on a cluster with Dask's validation on: who runs where, and when not."""

from __future__ import annotations

import dask.config
import pytest
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from distributed import Client, Event

from handoff_dask import (
    Function,
    FunctionFailedError,
    config,
    execute,
    submit,
)
from tests.gate import (
    DEPTH,
    FRACTIONS,
    SEEN,
    hold,
    note,
    on_cluster,
    one_held,
    track,
    until,
)
from tests.support import assert_clean, dag_of, where


@pytest.fixture(autouse=True)
def nothing_seen():
    SEEN.clear()


@on_cluster()
async def test_placed_where_the_cost_is_free(c, s, a, b):
    """A function goes to the worker with room, though its data lies on the busy one."""
    go = await Event("go")
    busy = await submit(dag_of(Function(id=1, args=[], code=hold, cost={"cpu": 4}, node=a.address)))
    await (await Event("started-go")).wait()
    dag = dag_of(
        Function(id="data", args=[], code=where, node=a.address),
        Function(id="next", args=["data"], code=where, cost={"cpu": 1}),
    )
    result = await execute(dag)
    assert result.allocations == {"data": a.address, "next": b.address}
    await go.set()
    await busy.result()


@on_cluster()
async def test_a_small_function_does_not_wait_behind_a_big_one(c, s, a, b):
    """Functions that wait for one resource hold up none that wants another."""
    go = await Event("go")
    holding = Function(id="gpu", args=[], code=hold, cost={"gpu": 1})
    waiting = Function(id="waits", args=[], code=where, cost={"gpu": 1})
    run = await submit(dag_of(holding, waiting))
    await (await Event("started-go")).wait()
    small = await execute(
        dag_of(Function(id=1, args=[], code=where, cost={"cpu": 1}, node=b.address))
    )
    assert small.results == {1: b.address}
    await one_held(run)
    await go.set()
    await run.result()
    del run
    await assert_clean(s, a, b)


@on_cluster()
async def test_cpu_work_keeps_off_the_gpu_worker(c, s, a, b):
    """What needs no GPU leaves the only GPU worker alone while another has room."""
    result = await execute(
        dag_of(*(Function(id=i, args=[], code=where, cost={"cpu": 1}) for i in range(4)))
    )
    assert set(result.results.values()) == {a.address}


@on_cluster()
async def test_strategies(c, s, a, b):
    """first_available fills the first worker; load_balanced spreads; cost_optimized is packed."""
    go = await Event("go")

    async def spread(strategy):
        functions = [Function(id=i, args=[], code=where, cost={"cpu": 1}) for i in range(4)]
        result = await execute(dag_of(*functions), allocation_strategy=strategy)
        counts = [list(result.results.values()).count(w.address) for w in (a, b)]
        return sorted(counts)

    assert await spread("first_available") == [0, 4]
    assert await spread("load_balanced") == [2, 2]
    assert await spread("cost_optimized") == [0, 4]
    await go.set()


@on_cluster()
async def test_tasks_of_others_count(c, s, a, b):
    """Resources that plain Dask tasks hold are not free for functions."""
    go = await Event("go")
    await execute(dag_of(Function(id=0, args=[], code=where)))
    plain = c.submit(hold, resources={"gpu": 1}, pure=False)
    await (await Event("started-go")).wait()
    run = await submit(dag_of(Function(id=1, args=[], code=where, cost={"gpu": 1})))
    await until(lambda: s.plugins["handoff"].engine.questions.claimed(b.address)["gpu"] == 1)
    await one_held(run)
    assert (await run.explain())[1].resources == {"gpu": (1, 0)}
    await go.set()
    assert await plain == b.address
    assert (await run.result()).results == {1: b.address}
    del run, plain
    await assert_clean(s, a, b)


@on_cluster()
async def test_clients_share_one_ledger(c, s, a, b):
    """Runs of several clients together never overcommit a resource."""
    go = await Event("go")
    async with Client(s.address, asynchronous=True) as other:
        first = await submit(dag_of(Function(id=1, args=[], code=hold, cost={"gpu": 1})), client=c)
        await (await Event("started-go")).wait()
        second = await submit(
            dag_of(Function(id=1, args=[], code=note, cost={"gpu": 1})), client=other
        )
        await one_held(second)
        assert not SEEN
        await go.set()
        await first.result()
        assert (await second.result()).results == {1: b.address}


@on_cluster()
async def test_priority(c, s, a, b):
    """The run with the higher priority is placed first, whoever came first and whoever asks."""
    go = await Event("go")
    gpu = {"gpu": 1}
    blocker = await submit(dag_of(Function(id=0, args=[], code=hold, cost=gpu)), client=c)
    await (await Event("started-go")).wait()
    async with Client(s.address, asynchronous=True) as other:
        runs = [
            await submit(
                dag_of(Function(id=1, args=[], code=note, extra_args=[priority], cost=gpu)),
                priority=priority,
                client=client,
            )
            for priority, client in ((0, c), (5, other), (-1, c))
        ]
        for run in runs:
            await one_held(run)
        await go.set()
        for run in (blocker, *runs):
            await run.result()
    assert SEEN == [5, 0, -1]


@on_cluster()
async def test_longest_remaining_path_first(c, s, a, b):
    """Of functions that are ready, the one with most after it goes first."""
    go = await Event("go")
    gpu = {"gpu": 1}
    run = await submit(
        dag_of(
            Function(id="block", args=[], code=hold, cost=gpu),
            Function(id="leaf", args=[], code=note, extra_args=["leaf"], cost=gpu),
            Function(id="root", args=[], code=note, extra_args=["root"], cost=gpu),
            Function(id="mid", args=["root"], code=lambda _: note("mid"), cost=gpu),
            Function(id="end", args=["mid"], code=lambda _: note("end"), cost=gpu),
        )
    )
    await go.set()
    await run.result()
    assert SEEN.index("root") < SEEN.index("leaf")


@on_cluster()
async def test_max_concurrency(c, s, a, b):
    """No more functions of a run than it allows run at once, whatever is free."""
    functions = [Function(id=i, args=[], code=track, extra_args=[i]) for i in range(12)]
    DEPTH.clear()
    await execute(dag_of(*functions), max_concurrency=3)
    assert 1 <= max(DEPTH) <= 3


@on_cluster()
async def test_the_engine_breaking_fails_the_run(c, s, a, b):
    """Should the engine raise, functions that wait fail with an error that says so."""
    await execute(dag_of(Function(id=0, args=[], code=where)))
    engine = s.plugins["handoff"].engine

    def broken(now):
        raise ZeroDivisionError("a bug")

    engine.poll = broken
    with pytest.raises(FunctionFailedError, match="placement engine"):
        await execute(dag_of(Function(id=1, args=[], code=where)))
    del engine.poll


@on_cluster()
async def test_fractions_come_back_whole(c, s, a, b):
    """Whatever fractions came and went, a worker has all it had: rounding loses nothing."""
    first, second = FRACTIONS
    assert 4 - first - second + first + second != 4  # what a worker does with what it is told
    runs = []
    for i, cpu in enumerate(FRACTIONS):
        go = await Event(f"go-{i}")
        function = Function(
            id=i, args=[], code=hold, extra_args=[f"go-{i}"], cost={"cpu": cpu}, node=a.address
        )
        runs.append((await submit(dag_of(function)), go))
        await (await Event(f"started-go-{i}")).wait()
    for run, go in runs:
        await go.set()
        await run.result()
    await until(lambda: not a.state.executing)
    assert a.state.available_resources == a.state.total_resources
    whole = await execute(dag_of(Function(id=1, args=[], code=where, cost={"cpu": 4})))
    assert len(whole.results) == 1


@on_cluster()
async def test_graphs_of_others_pass(c, s, a, b):
    """Plain Dask graphs run beside Handoff's, also with a mark that nobody knows."""
    await execute(dag_of(Function(id=0, args=[], code=where)))
    layer = MaterializedLayer(
        {"x": (where, 1)}, annotations={"handoff": {"run": "unknown", "index": 0}}
    )
    assert await c.get(HighLevelGraph({"x": layer}, {"x": set()}), "x", sync=False) in (
        a.address,
        b.address,
    )
    assert await c.submit(where) in (a.address, b.address)


def test_settings_have_defaults():
    """The defaults hold, also where Dask's configuration was replaced as a whole."""
    with dask.config.set({"handoff.commit-ahead": "1 ms"}):
        assert config.seconds("commit-ahead") == 0.001
    assert config.seconds("lost-capacity-grace") == 60
