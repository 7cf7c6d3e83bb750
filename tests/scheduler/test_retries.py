"""Retry policies, time limits and current(), on a cluster with Dask's validation on."""

from __future__ import annotations

import asyncio
import itertools
from functools import partial

import pytest
from distributed import Event, Status
from distributed.utils_test import gen_cluster

from handoff_dask import (
    AllocationError,
    Function,
    FunctionFailedError,
    InvalidFunctionError,
    RetryPolicy,
    current,
    execute,
    submit,
)
from tests.support import assert_clean, dag_of, where

WORKERS = [
    ("127.0.0.1", 2, {"resources": {"cpu": 2, "memory": 1000}}),
    ("127.0.0.1", 2, {"resources": {"cpu": 2, "memory": 4000}}),
]
on_cluster = partial(gen_cluster, nthreads=WORKERS, client=True)

#: What note() saw: (worker, attempt, cost) of every start; workers run in this process.
SEEN = []


def note():
    me = current()
    SEEN.append((where(), me.attempt, me.cost))
    return me


def fail_until(good, error=ValueError):
    """Fail in the attempts before a good one."""
    me = note()
    if me.attempt < good:
        raise error(f"attempt {me.attempt}")
    return me.attempt


@pytest.fixture(autouse=True)
def nothing_seen():
    SEEN.clear()


@on_cluster()
async def test_current(c, s, a, b):
    """A running function is told its id, DAG, attempt and cost; nobody else is."""
    dag = dag_of(Function(id=("me", 1), args=[], code=fail_until, extra_args=[2], cost={"CPU": 1}))
    await execute(dag)
    assert [(attempt, cost) for _, attempt, cost in SEEN] == [(1, {"cpu": 1}), (2, {"cpu": 1})]
    assert current() is None


@on_cluster()
async def test_a_retry_avoids_the_last_worker(c, s, a, b):
    """A retry goes to another worker, unless the policy says otherwise or there is none."""
    dag = dag_of(Function(id=1, args=[], code=fail_until, extra_args=[2]))
    await execute(dag)
    assert len({worker for worker, _, _ in SEEN}) == 2
    SEEN.clear()
    pinned = dag_of(Function(id=1, args=[], code=fail_until, extra_args=[2], node=a.address))
    await execute(pinned)
    assert [worker for worker, _, _ in SEEN] == [a.address] * 2


@on_cluster()
async def test_a_retry_waits_out_its_delay(c, s, a, b):
    """Delays grow by the backoff up to the longest; the function is held meanwhile."""
    policy = RetryPolicy(max_retries=3, delay=0.05, backoff=2, max_delay=0.1, jitter=0)
    dag = dag_of(Function(id=1, args=[], code=fail_until, extra_args=[4], retry=policy))
    result = await execute(dag)
    tried = result.attempts[1]
    assert [attempt.outcome for attempt in tried] == ["error", "error", "error", "ok"]
    pauses = [after.started - before.stopped for before, after in itertools.pairwise(tried)]
    for pause, delay in zip(pauses, (0.05, 0.1, 0.1), strict=True):
        assert pause >= delay


@on_cluster()
async def test_only_some_errors_are_retried(c, s, a, b):
    """retry_on names what is retried, give_up_on what is not; subclasses count."""

    async def starts(error, **policy):
        SEEN.clear()
        function = Function(
            id=1, args=[], code=fail_until, extra_args=[9, error], retry=RetryPolicy(2, **policy)
        )
        with pytest.raises(FunctionFailedError) as caught:
            await execute(dag_of(function))
        assert len(caught.value.attempts) == len(SEEN)
        assert isinstance(caught.value.__cause__, error)
        return len(SEEN)

    assert await starts(KeyError, retry_on=(LookupError,)) == 3
    assert await starts(ValueError, retry_on=(LookupError,)) == 1
    assert await starts(KeyError, give_up_on=(LookupError,)) == 1
    assert await starts(ValueError, give_up_on=(LookupError,)) == 3
    await assert_clean(s, a, b)


@on_cluster()
async def test_policy_of_the_run(c, s, a, b):
    """A run's policy holds for functions without one; max_retries of a function adjusts it."""
    dag = dag_of(
        Function(id=1, args=[], code=fail_until, extra_args=[9]),
        Function(id=2, args=[], code=fail_until, extra_args=[9], max_retries=1),
    )
    result = await execute(dag, retry=RetryPolicy(2, give_up_on=(KeyError,)), on_error="continue")
    assert len(result.attempts[1]) == 3
    assert len(result.attempts[2]) == 2


@on_cluster()
async def test_escalation(c, s, a, b):
    """A retry may cost more: it is placed where that is free, and the ledger shows it."""

    def more(attempt, cost, error):
        assert isinstance(error, MemoryError)
        return {"Memory": cost["memory"] * 4}

    function = Function(
        id=1,
        args=[],
        code=fail_until,
        extra_args=[3, MemoryError],
        cost={"memory": 200},
        retry=RetryPolicy(escalate=more, avoid_last_worker=False),
    )
    result = await execute(dag_of(function))
    assert [attempt.cost["memory"] for attempt in result.attempts[1]] == [200, 800, 3200]
    assert [cost["memory"] for _, _, cost in SEEN] == [200, 800, 3200]
    assert SEEN[-1][0] == b.address
    await assert_clean(s, a, b)


@on_cluster()
@pytest.mark.parametrize(
    "escalate, error, match",
    [
        (lambda *_: {"memory": 9999}, AllocationError, "escalate.*9999"),
        (lambda *_: {"memory": -1}, InvalidFunctionError, "retry.escalate.*-1"),
        (lambda *_: 1 / 0, InvalidFunctionError, "retry.escalate.*ZeroDivisionError"),
    ],
)
async def test_escalation_gone_wrong(c, s, a, b, escalate, error, match):
    """An escalation that raises, or asks for what is no cost or nowhere to be had, is named."""
    function = Function(
        id="greedy",
        args=[],
        code=fail_until,
        extra_args=[9],
        cost={"memory": 1},
        retry=RetryPolicy(escalate=escalate),
    )
    with pytest.raises(error, match=match) as caught:
        await execute(dag_of(function))
    assert caught.value.function_id == "greedy"
    assert len(SEEN) == 1
    await assert_clean(s, a, b)


def late():
    """Wait for the test in the first attempt; be quick in the others."""
    me = note()
    if me.attempt == 1:
        Event("started").set()
        Event("go").wait()
    return me.attempt


@on_cluster()
async def test_timeout_is_a_failed_attempt(c, s, a, b):
    """An attempt past its time counts as failed and is tried again on another worker.

    Its claim stays until its thread has really ended.
    """
    go = await Event("go")
    dag = dag_of(Function(id=1, args=[], code=late, cost={"cpu": 2}, timeout=0.1))
    result = await execute(dag)
    assert result.results == {1: 2}
    assert [attempt.outcome for attempt in result.attempts[1]] == ["timeout", "ok"]
    assert "0.1 s" in result.attempts[1][0].message
    (first, _, _), (second, _, _) = SEEN
    assert first != second
    engine = s.plugins["handoff"].engine
    assert engine.questions.claimed(first)["cpu"] == 2
    await go.set()
    await assert_clean(s, a, b)
    assert engine.questions.slots(first) == (2, 2)


@on_cluster()
async def test_timeout_in_the_last_attempt(c, s, a, b):
    """Out of attempts, a function past its time fails with a TimeoutError."""
    go = await Event("go")
    dag = dag_of(Function(id="slow", args=[], code=late, timeout=0.05, max_retries=0))
    with pytest.raises(FunctionFailedError, match=r"'slow'.*0\.05 s") as caught:
        await execute(dag)
    assert isinstance(caught.value.__cause__, TimeoutError)
    assert [attempt.outcome for attempt in caught.value.attempts] == ["timeout"]
    await go.set()
    await assert_clean(s, a, b)


@on_cluster(config={"distributed.worker.memory.pause": False})
async def test_a_late_thread_where_the_others_pause(c, s, a, b):
    """The retry waits, too, if other workers exist and none of them takes functions."""
    started, go = await Event("started"), await Event("go")
    await execute(dag_of(Function(id=0, args=[], code=int)))
    b.status = Status.paused
    while s.workers[b.address] in s.running:
        await asyncio.sleep(0.01)
    run = await submit(dag_of(Function(id=1, args=[], code=late, timeout=0.4)))
    await started.wait()
    while not (await run.status())["attempts"].get(1):
        await asyncio.sleep(0.01)
    for _ in range(20):  # the loop gets to whatever the scheduler has in mind
        assert (await run.counts())["held"] == 1
    assert len(SEEN) == 1
    await go.set()
    result = await run.result()
    assert result.results == {1: 2}
    assert [attempt.outcome for attempt in result.attempts[1]] == ["timeout", "ok"]
    b.status = Status.running
    del run
    await assert_clean(s, a, b)


@on_cluster()
async def test_a_late_thread_on_the_only_worker(c, s, a, b):
    """With nowhere else to go, the retry waits until the late thread ends: starts are true."""
    started, go = await Event("started"), await Event("go")
    dag = dag_of(Function(id=1, args=[], code=late, timeout=0.4, node=a.address))
    run = await submit(dag)
    await started.wait()
    while (await run.status())["running"]:
        await asyncio.sleep(0.01)
    assert (await run.status())["held"] == 1
    assert len(SEEN) == 1
    await go.set()
    assert (await run.result()).results == {1: 2}
    assert len(SEEN) == 2
    del run
    await assert_clean(s, a, b)


@on_cluster()
async def test_in_time(c, s, a, b):
    """A function within its time is none the wiser, and its value arrives."""
    dag = dag_of(
        Function(id=1, args=[], code=fail_until, extra_args=[1], timeout=60),
        Function(id=2, args=[1], code=str, timeout=60),
    )
    assert (await execute(dag)).results == {1: 1, 2: "1"}


@on_cluster()
async def test_a_late_function_of_a_cancelled_run(c, s, a, b):
    """Cancelling a run with a late thread leaves nothing once the thread ends."""
    started, go = await Event("started"), await Event("go")
    dag = dag_of(Function(id=1, args=[], code=late, timeout=0.4, node=a.address))
    run = await submit(dag)
    await started.wait()
    while (await run.status())["running"]:
        await asyncio.sleep(0.01)
    await run.cancel()
    await go.set()
    await assert_clean(s, a, b)
