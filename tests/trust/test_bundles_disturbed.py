"""Bundles on a cluster that changes: workers die, pause or offer less."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import time

import pytest
from distributed import Client, LocalCluster, Nanny, Status
from distributed.utils_test import captured_logger, gen_cluster

from handoff_dask import (
    AllocationError,
    Function,
    FunctionFailedError,
    RunCancelledError,
    current,
    execute,
    forget,
    get_result,
    register_node,
    submit,
    uninstall,
)
from tests.support import dag_of
from tests.trust.test_bundles import (
    COUNT,
    DID,
    GO,
    begin,
    chain,
    check_attempts,
    did,
    doing,
    last,
    learn,
    made_by,
    on_cluster,
    ones,
    quick,
    repr_len,
    sleep,
    until,
    wait_for,
)
from tests.trust.test_bundles_faults import die

# Deaths


@pytest.fixture(scope="module")
def without_nannies():
    """Start two workers that nobody starts again and nobody can ask what they had started."""
    with LocalCluster(n_workers=0, dashboard_address=":0") as cluster:
        command = [
            sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address,
            "--no-nanny", "--nthreads", "1", "--no-dashboard", "--memory-limit", "0",
        ]  # fmt: skip
        processes = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(3)]
        try:
            yield cluster
        finally:
            for process in processes:
                process.kill()
                process.wait()


def test_a_death_without_a_nanny(without_nannies, tmp_path):
    """Each whose end was not reported is charged once, and travels alone from then on."""
    with Client(without_nannies) as client:
        client.wait_for_workers(3, timeout=60)
        execute(dag_of(*(doing(("learn", i)) for i in range(8)), id="learning"), bundle=False)
        dag = dag_of(
            *(doing(i, int, i, max_retries=1) for i in range(COUNT)),
            doing("bad", die, "kill", tmp_path, 1, max_retries=1),
        )
        result = execute(dag)
        assert result.results == {**{i: i for i in range(COUNT)}, "bad": "alive"}
        assert [a.outcome for a in result.attempts["bad"]] == ["worker-lost", "ok"]
        for id, attempts in result.attempts.items():
            lost = [a for a in attempts if a.outcome == "worker-lost"]
            assert len(lost) <= 1 and attempts[-1].outcome == "ok", (id, attempts)
        # What may not be charged is not bundled there.
        alone = execute(dag_of(*(doing(i, int, i, max_retries=0) for i in range(COUNT))))
        assert alone.tasks == COUNT
        assert execute(dag_of(*quick())).tasks < COUNT


def fail_second(name):
    DID.append(name)
    assert current().attempt == DID.count(name)
    if DID.count(name) == 2:
        raise ValueError("not now")
    return name


@on_cluster()
async def test_what_is_lost_uses_up_no_retry(c, s, a, b):
    """A member that runs again because its result was lost has all its retries left."""
    dag = dag_of(*quick(), doing("again", fail_second, "again", max_retries=1), last())
    run, record = await begin(s, dag, "again", placement_timeout=60)
    await until(lambda: record.counts["done"] == COUNT + 1)
    at, other = (a, b) if made_by(record, COUNT) == a.address else (b, a)
    with captured_logger("handoff_dask.worker") as log:
        await at.close()
        await register_node(other.address, {"token": 1})
        result = await asyncio.wait_for(run, 60)
    assert "attempt 2 of 3 failed: ValueError: not now; it will be retried" in log.getvalue()
    assert result.results["again"] == "again"
    assert [x.outcome for x in result.attempts["again"]] == ["ok", "error", "ok"]
    assert [x.number for x in result.attempts["again"]] == [1, 2, 3]


def once(name):
    DID.append(name)
    if DID.count(name) > 1:
        raise ValueError("not again")
    return 1


def same(value):
    return value


@on_cluster()
async def test_what_is_lost_and_cannot_be_made_again(c, s, a, b):
    """It fails with what it needs, and is counted so; what the other worker has is done."""
    dag = dag_of(
        Function("first", [], once, extra_args=["first"], max_retries=0),
        *(doing(i, same, args=["first"]) for i in range(COUNT)),
        last(),
    )
    results = [*range(COUNT), "last"]
    run, record = await begin(s, dag, 0, results=results, on_error="continue", placement_timeout=60)
    await until(lambda: record.counts["done"] == COUNT + 1)
    at, other = (a, b) if record.records[0].worker == a.address else (b, a)
    await at.close()
    await register_node(other.address, {"token": 1})
    result = await asyncio.wait_for(run, 60)
    status = await run.status()
    assert "first" in result.errors and result.results["last"] == 0
    assert (status["done"], status["failed"]) == (len(result.results), len(result.errors))


# What workers offer


@on_cluster()
async def test_a_cost_that_no_worker_can_hold_any_more(c, s, a, b):
    """The error names a function of the DAG, not a bundle, and no function runs."""
    await register_node(a.address, {"token": 1})
    costs = {"cost": {"cpu": 1, "token": 1}}
    await execute(
        dag_of(*(doing(("learn", i), **costs) for i in range(8)), id="learning"), bundle=False
    )
    dag = dag_of(
        Function("first", [], wait_for, extra_args=["go"]),
        *(doing(i, did, i, args=["first"], **costs) for i in range(COUNT)),
    )
    run, _ = await begin(s, dag, 0)
    await until(lambda: "go" in DID)
    await register_node(a.address, {"token": 0})
    GO.set()
    with pytest.raises(AllocationError) as caught:
        await asyncio.wait_for(run, 60)
    assert caught.value.function_id in range(COUNT)
    assert DID == ["go"]


@on_cluster(config={"distributed.worker.memory.pause": False})
async def test_a_result_while_all_workers_are_paused(c, s, a, b):
    """A member's result that is asked for meanwhile is there once a worker goes on."""
    run, record = await begin(s, dag_of(*quick()), 0)
    await until(lambda: record.over)
    for worker in (a, b):
        worker.status = Status.paused
    await until(lambda: not s.running)
    future = run.futures[0]
    await until(lambda: future.key in s.tasks and s.tasks[future.key].state == "no-worker")
    for worker in (a, b):
        worker.status = Status.running
    assert await asyncio.wait_for(future.result(), 30) == 0


@on_cluster(config={"distributed.worker.memory.pause": False})
async def test_a_paused_worker(c, s, a, b):
    """A bundle there gives back what has not started, and the other worker runs it."""
    dag = dag_of(*(doing(i, *([wait_for, "go"] if i == 3 else [int, i])) for i in range(COUNT)))
    run, record = await begin(s, dag, 3)
    await until(lambda: "go" in DID)
    at = a if record.bundle_of(3).worker == a.address else b
    at.status = Status.paused
    await until(lambda: s.workers[at.address].status == Status.paused)
    GO.set()
    await until(
        lambda: record.left and all(record.records[i].state.name == "done" for i in record.left)
    )
    # What was handed to it ahead waits for it.
    at.status = Status.running
    result = await asyncio.wait_for(run, 60)
    assert len(result.results) == COUNT
    check_attempts(result, COUNT)
    after = {made for i, made in result.allocations.items() if i in record.left}
    assert at.address not in after


def fail_late(name):
    DID.append(name)
    if current().attempt == 2:
        GO.wait(60)
    raise ValueError("no")


@on_cluster(config={"distributed.worker.memory.pause": False})
async def test_a_worker_that_pauses_while_a_member_fails(c, s, a, b):
    """What needs the member fails with it, though the bundle ends there; nothing runs twice."""
    bad = doing("bad", fail_late, "bad", max_retries=1)
    users = [Function(f"use {i}", [i], same, cost={"cpu": 1}) for i in ("bad", ("bad", 1))]
    dag = dag_of(*quick(), bad, *chain("bad", 2), *users)
    run, record = await begin(s, dag, 0, "bad", ("bad", 1), on_error="continue")
    bundle = record.bundle_of(COUNT)
    assert bundle is record.bundle_of(COUNT + 2)
    await until(lambda: DID.count("bad") == 2)
    at = a if bundle.worker == a.address else b
    at.status = Status.paused
    await until(lambda: s.workers[at.address].status == Status.paused)
    GO.set()
    await until(lambda: not s.tasks[bundle.key].processing_on)
    at.status = Status.running
    result = await asyncio.wait_for(run, 60)
    assert set(result.errors) == {"bad", ("bad", 0), ("bad", 1), "use bad", f"use {('bad', 1)}"}
    check_attempts(result, COUNT + 1, bad=["error", "error"])


# Runs in each other's way


@on_cluster()
async def test_priorities_between_runs(c, s, a, b):
    """Bundles of a run of higher priority start before those of another that came earlier."""
    blocking = await submit(
        dag_of(
            *(Function(w.name, [], wait_for, extra_args=["go"], node=str(w.name)) for w in (a, b))
        )
    )
    await until(lambda: DID.count("go") == 2)
    low, _ = await begin(s, dag_of(*(doing(i, did, ("low", i)) for i in range(COUNT)), id="low"), 0)
    high, _ = await begin(
        s, dag_of(*(doing(i, did, ("high", i)) for i in range(COUNT)), id="high"), 0, priority=1
    )
    GO.set()
    _, low, high = await asyncio.gather(blocking, low, high)
    for result in (low, high):
        check_attempts(result, COUNT)
    # One worker may be through with the one, while the other still has some.
    for w in (a, b):
        started, stopped = (
            [getattr(t, when) for (t,) in result.attempts.values() if t.worker == w.address]
            for result, when in ((low, "started"), (high, "stopped"))
        )
        assert max(stopped, default=0) <= min(started, default=math.inf)


@on_cluster()
async def test_max_concurrency(c, s, a, b):
    """No more functions of a run run at once than it allows, in bundles or not."""
    RUNNING.clear()
    dag = dag_of(*(doing(i, count_running) for i in range(COUNT)))
    run, _ = await begin(s, dag, 0, max_concurrency=1)
    result = await run
    assert set(result.results.values()) == {1}
    check_attempts(result, COUNT)


#: One entry for each function that is running.
RUNNING = []


def count_running():
    RUNNING.append(None)
    count = len(RUNNING)
    GO.wait(0.001)
    RUNNING.pop()
    return count


# The end


@on_cluster()
async def test_uninstall(c, s, a, b):
    """Taking Handoff off by force cancels the run between two members."""
    dag = dag_of(*(doing(i, wait_for, "go") for i in range(COUNT)))
    run, _ = await begin(s, dag, 0, 1)
    await until(lambda: len(DID) == 2)
    await uninstall(force=True)
    assert "handoff" not in s.plugins
    GO.set()
    with pytest.raises(RunCancelledError):
        await asyncio.wait_for(run, 30)
    del run
    await until(lambda: not s.tasks)
    assert len(DID) == 2
    result = await execute(dag_of(*quick(), id="next"))
    check_attempts(result, COUNT)


@on_cluster()
async def test_get_result_after_the_submitter(c, s, a, b):
    """Another client gets the result of a member whose own client is gone."""
    async with Client(s.address, asynchronous=True, set_as_default=False) as other:
        run = await submit(dag_of(*quick(), id="kept"), detach=True, client=other)
        await until(lambda: run_of(s).bundles and run_of(s).over)
        del run
    assert await get_result("kept", 5, client=c) == 5
    assert await asyncio.gather(*(get_result("kept", i, client=c) for i in (6, 5, 7))) == [6, 5, 7]
    await forget("kept", client=c)


def run_of(s):
    return list(s.plugins["handoff"].runs.values())[-1]


# Large values


def small(large):
    return bytes(10)


@on_cluster()
async def test_a_small_value_beside_a_large_one(c, s, a, b):
    """What another worker needs is moved without a neighbour of 100 MB."""
    large = 100_000_000
    dag = dag_of(
        *(doing(i, ones, 10) for i in range(COUNT)),
        doing("large", ones, large),
        *chain("large", 5),
        *(doing(("small", i), small, args=["large"]) for i in range(2)),
        *(Function(f"use {w.name}", [("small", 0)], repr_len, node=str(w.name)) for w in (a, b)),
    )
    ids = ["large", ("small", 0), ("small", 1)]
    run, record = await begin(s, dag, *ids[:2], results=["large", "use 0", "use 1"])
    assert record.homes[COUNT] == record.homes[COUNT + 6], "they travel together"
    result = await asyncio.wait_for(run, 60)
    assert len(result.results.pop("large")) == large
    assert result.results == {"use 0": [10], "use 1": [10]}
    moved = sum(transfer["total"] for w in (a, b) for transfer in w.transfer_incoming_log)
    assert moved < 1_000_000


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 2, Worker=Nanny, timeout=120)
async def test_restart_in_the_middle(c, s, a, b):
    """A restart of the cluster while bundles run cancels the run; the next one is complete."""
    await learn()
    dag = dag_of(*(doing(i, time.sleep, 0.1) for i in range(COUNT)))
    # There, the first functions import this module and take longer.
    run, _ = await begin(s, dag, bundle="5 s")
    await until(lambda: any(ws.processing for ws in s.workers.values()))
    await c.restart()
    with pytest.raises(RunCancelledError):
        await asyncio.wait_for(run, 30)
    del run
    assert not s.plugins["handoff"].runs and not s.plugins["handoff"].functions
    check_attempts(await execute(dag_of(*quick(), id="next")), COUNT)


# Errors


def wait_and_fail(name):
    wait_for(name)
    raise ValueError("no")


@on_cluster()
async def test_the_error_of_a_run_whose_bundles_all_go(c, s, a, b):
    """The run ends with what the function raised, though none of its tasks is left."""
    dag = dag_of(*(doing(i, wait_and_fail, "go", max_retries=1) for i in range(COUNT)))
    run, _ = await begin(s, dag, 0)
    GO.set()
    with pytest.raises(FunctionFailedError) as caught:
        await asyncio.wait_for(run, 30)
    assert isinstance(caught.value.__cause__, ValueError)


@on_cluster()
async def test_the_error_of_what_left_a_bundle_that_goes(c, s, a, b):
    """The run ends with what the function raised, though its bundle is released unended."""
    dag = dag_of(
        *(doing(i, sleep, 0.3, i) for i in range(8)),
        *(doing(i, wait_and_fail, "go") for i in range(8, COUNT)),
    )
    run, record = await begin(s, dag, 0, 63, results=[])
    await until(lambda: record.left)
    GO.set()
    with pytest.raises(FunctionFailedError) as caught:
        await asyncio.wait_for(run, 30)
    assert isinstance(caught.value.__cause__, ValueError)
