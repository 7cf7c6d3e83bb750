"""What plain Dask tasks see of the resources that Handoff uses, and what it leaves behind."""

from __future__ import annotations

import asyncio
import threading

import pytest
from distributed import Event, Worker
from distributed.utils_test import gen_cluster

from handoff_dask import (
    DAG,
    Function,
    current,
    discover_nodes,
    execute,
    explain,
    register_local_node,
    register_node,
    resources_available,
    submit,
    uninstall,
)
from tests.support import assert_clean, dag_of, where

TWO = [("127.0.0.1", 2)] * 2


async def until(condition, timeout=30):
    async def wait():
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(wait(), timeout)


def hold(name):
    """Run until an event is set; signal the start."""
    Event(f"started-{name}").set()
    Event(name).wait()
    return where()


def state_of(scheduler, future):
    ts = scheduler.tasks.get(future.key)
    return None if ts is None else ts.state


def free_of_ours(scheduler, *workers):
    """Whether no declaration of Handoff is left, and plain Dask's counts agree."""
    return (
        set(scheduler.plugins).isdisjoint({"handoff", "handoff-withdrawal"})
        and all(not w.state.total_resources for w in workers)
        and all(not w.state.available_resources for w in workers)
        and all(not ws.resources and not ws.used_resources for ws in scheduler.workers.values())
        and not any(scheduler.resources.values())
        and not any(op.startswith("handoff") for w in workers for op in w.stream_handlers)
        and not any(op.startswith("handoff") for op in scheduler.stream_handlers)
    )


# What is detected is not a declaration


@pytest.mark.parametrize("name", ["cpu", "memory", "gpu", "CPU"])
@gen_cluster(client=True, nthreads=TWO)
async def test_what_is_found_is_not_declared(c, s, a, b, name):
    """A plain task that needs an undeclared resource waits, as without Handoff."""
    nodes = await discover_nodes()
    assert set(nodes[a.address]) == {"cpu", "memory"}
    waiting = c.submit(where, resources={name: 1}, pure=False)
    await until(lambda: state_of(s, waiting) == "no-worker")
    await execute(dag_of(Function(id=1, args=[], code=where, cost={"cpu": 2, "memory": 1})))
    assert state_of(s, waiting) == "no-worker"


@gen_cluster(client=True, nthreads=[("127.0.0.1", 2, {"resources": {"Memory": 8}}), TWO[0]])
async def test_a_unit_of_the_operators_own(c, s, a, b):
    """Plain tasks run where their resource is declared; Handoff counts their claims."""
    nodes = await discover_nodes()
    assert nodes[a.address]["memory"] == 8 and nodes[b.address]["memory"] > 8
    ran_on = await c.gather(
        [c.submit(where, resources={"Memory": 1}, pure=False) for _ in range(10)]
    )
    assert set(ran_on) == {a.address}
    result = await execute(
        dag_of(Function(id=1, args=[], code=where, cost={"memory": 8}, node=a.address))
    )
    assert result.attempts[1][0].cost == {"memory": 8}
    await assert_clean(s, a, b)


@gen_cluster(client=True, nthreads=TWO)
async def test_names_that_users_see(c, s, a, b):
    """All reports of Handoff show cpu and memory, whatever the names on the workers."""

    def cost():
        return dict(current().cost)

    asked = {"cpu": 1, "memory": 10}
    dag = dag_of(Function(id=1, args=[], code=cost, cost=asked))
    result = await execute(dag)
    assert result.results[1] == result.attempts[1][0].cost == asked
    lacking = await explain(dag_of(Function(id=1, args=[], code=cost, cost={"cpu": 64})))
    assert "needs cpu 64, offers 2" in str(lacking)
    offered = await register_node(a.address, {"licence": 1})
    assert offered == (await discover_nodes())[a.address]
    assert set(offered) == {"cpu", "memory", "licence"}
    assert await resources_available(a.address, {"CPU": 2})


# What register_node declares is a declaration


@gen_cluster(client=True, nthreads=TWO)
async def test_what_is_registered_is_declared(c, s, a, b):
    """Plain tasks that wait for a registered resource start, and Handoff counts their claims."""
    await discover_nodes()
    plain = c.submit(hold, "plain", resources={"licence": 1, "cpu": 2}, pure=False)
    await until(lambda: state_of(s, plain) == "no-worker")
    await register_node(a.address, {"licence": 1, "cpu": 2})
    await (await Event("started-plain")).wait()
    assert not await resources_available(a.address, {"licence": 1})
    assert not await resources_available(a.address, {"cpu": 1})
    run = await submit(dag_of(Function(id=1, args=[], code=where, cost={"licence": 1})))
    while (await run.counts())["held"] != 1:
        await asyncio.sleep(0.01)
    assert (await run.explain())[1].resources == {"licence": (1, 0)}
    await (await Event("plain")).set()
    assert await plain == a.address
    assert (await run.result()).results == {1: a.address}
    await plain.cancel()
    del run
    await assert_clean(s, a, b)


@gen_cluster(client=True, nthreads=TWO)
async def test_registered_from_code_on_a_worker(c, s, a, b):
    """register_local_node declares resources, too."""
    await discover_nodes()
    f = Function(id=1, args=[], code=register_local_node, extra_args=[{"gpu": 1}], node=b.address)
    assert (await execute(dag_of(f))).results[1]["gpu"] == 1
    assert await c.submit(where, resources={"gpu": 1}) == b.address
    await c.run(register_local_node, {"gpu": 2}, workers=[a.address])
    assert await c.submit(where, resources={"gpu": 2}) == a.address


@gen_cluster(client=True, nthreads=[("127.0.0.1", 4)])
async def test_a_declaration_replaces_what_was_found(c, s, a):
    """Claims of a detected resource count until they end, for functions and plain tasks."""
    running = Function(id=1, args=[], code=hold, extra_args=["one"], cost={"cpu": 3})
    run = await submit(dag_of(running, id="one"))
    await (await Event("started-one")).wait()
    await register_node(a.address, {"cpu": 4})
    assert not await resources_available(a.address, {"cpu": 2})
    assert await resources_available(a.address, {"cpu": 1})
    then = await submit(dag_of(Function(id=2, args=[], code=where, cost={"cpu": 2}), id="two"))
    beside = dag_of(Function(id=3, args=[], code=where, cost={"cpu": 1}), id="three")
    assert (await execute(beside)).results == {3: a.address}
    assert (await then.counts())["running"] == 0
    await (await Event("one")).set()
    assert (await then.result()).results == {2: a.address}
    await run.result()
    # More than what was detected can be claimed from now on.
    await register_node(a.address, {"cpu": 6})
    more = dag_of(Function(id=4, args=[], code=where, cost={"cpu": 6}))
    assert (await execute(more)).results == {4: a.address}
    del run, then
    await assert_clean(s, a)


@gen_cluster(client=True, nthreads=[("127.0.0.1", 4)])
async def test_what_waits_on_a_worker_while_its_cpu_is_declared(c, s, a):
    """Short functions that were handed ahead, and those after them, never exceed the cpu."""
    lock, peak, now = threading.Lock(), [0], [0]

    def work(_):
        with lock:
            now[0] += 2
            peak[0] = max(peak[0], now[0])
        threading.Event().wait(0.001)
        with lock:
            now[0] -= 2

    globals()["_work"] = work
    dag = DAG()
    for i in range(300):
        dag.add_function(Function(id=i, args=[], code=call_work, extra_args=[i], cost={"cpu": 2}))
    await execute(dag, results=[])
    run = await submit(dag)
    await until(lambda: s.plugins["handoff"].engine.questions.placed(a.address))
    await register_node(a.address, {"cpu": 4})
    await run.result()
    assert peak[0] <= 4
    del run
    await assert_clean(s, a)


def call_work(i):
    globals()["_work"](i)


# The books of plain Dask


@gen_cluster(client=True, nthreads=[("127.0.0.1", 4, {"resources": {"A": 4}})])
async def test_used_resources_after_a_late_install(c, s, a):
    """When Handoff is installed, claims of plain tasks stay in Dask's counts and enter its own."""
    plain = c.submit(hold, "plain", resources={"A": 3}, pure=False)
    await (await Event("started-plain")).wait()
    await discover_nodes()
    assert s.workers[a.address].used_resources["A"] == 3
    assert await resources_available(a.address, {"a": 1})
    assert not await resources_available(a.address, {"a": 2})
    await register_node(a.address, {"licence": 1})
    await a.set_resources(other=1)
    assert s.workers[a.address].used_resources["A"] == 3
    await (await Event("plain")).set()
    await plain
    assert set(s.workers[a.address].used_resources.values()) == {0}
    assert await resources_available(a.address, {"a": 4})


@gen_cluster(client=True, nthreads=[])
async def test_used_resources_of_a_late_joiner(c, s):
    """Tasks that start before a new worker has Handoff are counted by both."""
    await discover_nodes()
    plain = [c.submit(hold, "plain", resources={"A": 1}, pure=False) for _ in range(3)]
    await until(lambda: all(state_of(s, f) == "no-worker" for f in plain))
    async with Worker(s.address, nthreads=4, resources={"A": 4}) as w:
        await discover_nodes()
        assert s.workers[w.address].used_resources["A"] == 3
        assert not await resources_available(w.address, {"a": 2})
        await (await Event("plain")).set()
        await c.gather(plain)
        assert set(s.workers[w.address].used_resources.values()) == {0}
        assert await resources_available(w.address, {"a": 4})


@gen_cluster(client=True, nthreads=[("127.0.0.1", 2, {"resources": {"GPU": 2}}), TWO[0]])
async def test_set_resources_of_others(c, s, a, b):
    """Resources that others declare later count for Handoff, and outlive it."""
    await discover_nodes()
    await a.set_resources(GPU=4, other=1)
    await b.set_resources(cpu=8)
    nodes = await discover_nodes()
    assert (nodes[a.address]["gpu"], nodes[a.address]["other"]) == (4, 1)
    assert nodes[b.address]["cpu"] == 8
    f = Function(id=1, args=[], code=where, cost={"cpu": 8})
    assert (await execute(dag_of(f))).results == {1: b.address}
    await register_node(a.address, {"gpu": 5, "other": 2})
    await a.set_resources(other=3)
    await uninstall()
    assert a.state.total_resources == a.state.available_resources == {"GPU": 4, "other": 3}
    assert s.workers[a.address].resources == {"GPU": 4, "other": 3}
    assert b.state.total_resources == b.state.available_resources == {"cpu": 8}
    assert s.workers[b.address].resources == {"cpu": 8}


# Taking Handoff off


@gen_cluster(client=True, nthreads=TWO)
async def test_uninstall_beside_plain_tasks(c, s, a, b):
    """Tasks that run, are queued on a worker, or wait for room elsewhere all end well."""
    await register_node(a.address, {"cpu": 1})
    await register_node(b.address, {"licence": 1})
    running = c.submit(hold, "go", resources={"cpu": 1}, pure=False)
    await (await Event("started-go")).wait()
    queued = [c.submit(where, resources={"cpu": 1}, pure=False) for _ in range(3)]
    later = c.submit(lambda x, y: x, running, queued, resources={"licence": 1}, pure=False)
    await until(lambda: state_of(s, later) == "waiting")
    await until(lambda: all(state_of(s, f) == "processing" for f in queued))
    await uninstall()
    assert "handoff" not in s.plugins
    assert a.state.total_resources == {"cpu": 1} and b.state.total_resources == {"licence": 1}
    assert s.workers[a.address].used_resources == {"cpu": 4}
    new = c.submit(where, resources={"cpu": 1}, pure=False)
    await (await Event("go")).set()
    assert await c.gather([running, *queued, new]) == [a.address] * 5
    assert await later == a.address
    await until(lambda: free_of_ours(s, a, b))
    assert await c.submit(where) in s.workers
    gone = c.submit(where, resources={"cpu": 1}, pure=False)
    await until(lambda: state_of(s, gone) == "no-worker")


@gen_cluster(client=True, nthreads=TWO, config={"distributed.worker.memory.pause": False})
async def test_uninstall_beside_what_waits_for_a_worker(c, s, a, b):
    """A task that no worker runs yet keeps the declaration; cancelling it withdraws that."""
    await register_node(a.address, {"cpu": 1, "licence": 1})
    a.status = type(a.status).paused
    await until(lambda: not s.running or s.workers[a.address] not in s.running)
    waiting = c.submit(where, resources={"cpu": 1}, pure=False)
    other = c.submit(where, resources={"licence": 1}, pure=False)
    await until(lambda: state_of(s, waiting) == state_of(s, other) == "no-worker")
    await uninstall()
    await other.cancel()
    await until(lambda: a.state.total_resources == {"cpu": 1})
    assert not s.resources.get("licence")
    a.status = type(a.status).running
    assert await waiting == a.address
    await until(lambda: free_of_ours(s, a, b))


@gen_cluster(client=True, nthreads=TWO)
async def test_uninstall_while_workers_come_and_go(c, s, a, b):
    """A worker that leaves takes its declaration with it; a new one has none."""
    for worker in (a, b):
        await register_node(worker.address, {"cpu": 1})
    running = [
        c.submit(hold, name, resources={"cpu": 1}, workers=[w.address], pure=False)
        for name, w in (("on-a", a), ("on-b", b))
    ]
    for name in ("on-a", "on-b"):
        await (await Event(f"started-{name}")).wait()
    await uninstall()
    async with Worker(s.address, nthreads=1) as late:
        assert late.state.total_resources == {}
        await running[1].cancel()
        await (await Event("on-b")).set()
        await b.close()
        assert a.state.total_resources == {"cpu": 1}
        await (await Event("on-a")).set()
        assert await running[0] == a.address
        await until(lambda: free_of_ours(s, a, late))


@gen_cluster(client=True, nthreads=TWO)
async def test_uninstall_and_install_again(c, s, a, b):
    """Handoff does not use resources left for plain tasks only, until they are declared again."""
    await register_node(a.address, {"cpu": 1, "licence": 1, "seat": 1})
    names = ("cpu", "licence", "seat")
    running = [c.submit(hold, n, resources={n: 1}, pure=False) for n in names[:2]]
    seat = c.submit(hold, "seat", resources={"seat": 1}, workers=[b.address], pure=False)
    for name in names[:2]:
        await (await Event(f"started-{name}")).wait()
    await until(lambda: state_of(s, seat) == "no-worker")
    await uninstall()
    nodes = await discover_nodes()
    assert set(nodes[a.address]) == {"cpu", "memory"} and nodes[a.address]["cpu"] == 2
    f = Function(id=1, args=[], code=where, cost={"cpu": 2}, node=a.address)
    offered = await register_node(a.address, {"licence": 1})
    assert offered["licence"] == 1 and "seat" not in offered
    assert not await resources_available(a.address, {"licence": 1})
    for name in names[:2]:
        await (await Event(name)).set()
    await c.gather(running)
    assert (await execute(dag_of(f))).results == {1: a.address}
    await until(lambda: "cpu" not in a.state.total_resources)
    assert (await discover_nodes())[a.address] == offered
    assert a.state.total_resources["licence"] == 1
    assert await c.submit(where, resources={"licence": 1}, pure=False) == a.address
    await uninstall()
    assert set(a.state.total_resources) == {"seat"}
    await seat.cancel()
    await until(lambda: free_of_ours(s, a, b))


@gen_cluster(client=True, nthreads=[("127.0.0.1", 2)])
async def test_uninstall_by_force_while_a_thread_runs_on(c, s, a):
    """The thread of a cancelled function keeps its claim on the worker, and ends well."""
    stop = threading.Event()
    globals()["_stop"] = stop
    run = await submit(dag_of(Function(id=1, args=[], code=wait_for_stop, cost={"cpu": 2})))
    await until(lambda: a.state.executing)
    await uninstall(force=True)
    assert set(a.state.total_resources) == {"handoff-cpu"}
    assert not s.workers[a.address].resources
    assert await c.submit(where, pure=False) == a.address
    stop.set()
    await until(lambda: free_of_ours(s, a))
    del run


def wait_for_stop():
    globals()["_stop"].wait(60)


@gen_cluster(client=True, nthreads=[("127.0.0.1", 4, {"resources": {"GPU": 2}})])
async def test_uninstall_restores_an_operators_amount(c, s, a):
    """It is reduced when no task needs more, and raised at once."""
    await register_node(a.address, {"gpu": 3})
    plain = c.submit(hold, "go", resources={"GPU": 3}, pure=False)
    await (await Event("started-go")).wait()
    await uninstall()
    assert a.state.total_resources == {"GPU": 3}
    await (await Event("go")).set()
    await plain
    await until(lambda: a.state.total_resources == {"GPU": 2})
    assert a.state.available_resources == s.workers[a.address].resources == {"GPU": 2}
    assert s.resources == {"GPU": {a.address: 2}}
    await register_node(a.address, {"gpu": 1})
    plain = c.submit(hold, "more", resources={"GPU": 1}, pure=False)
    await (await Event("started-more")).wait()
    await uninstall()
    assert a.state.total_resources == {"GPU": 2}
    assert a.state.available_resources == {"GPU": 1}
    await (await Event("more")).set()
    await plain


@gen_cluster(client=True, nthreads=[("127.0.0.1", 4, {"resources": {"GPU": 2}})])
async def test_an_operators_amount_is_restored_although_handoff_came_back_first(c, s, a):
    """When installed again while plain tasks still need more, it knows that the rest is its own."""
    await register_node(a.address, {"gpu": 3})
    plain = c.submit(hold, "go", resources={"GPU": 3}, pure=False)
    await (await Event("started-go")).wait()
    await uninstall()
    assert (await discover_nodes())[a.address]["gpu"] == 2
    assert a.state.total_resources["GPU"] == s.workers[a.address].resources["GPU"] == 3
    await (await Event("go")).set()
    await plain
    await until(lambda: a.state.total_resources["GPU"] == 2)
    assert a.state.available_resources["GPU"] == s.workers[a.address].resources["GPU"] == 2
