"""Unusual orders of what Dask does with tasks: no function is stuck, no start is forgotten."""

from __future__ import annotations

import asyncio
import logging

import pytest
from distributed import Event, Worker

from handoff_dask import Function, RetryPolicy, current, submit, uninstall
from handoff_dask.attempts.states import Asking
from tests.gate import hold, on_cluster, one_held, until
from tests.support import assert_clean, dag_of, where


@pytest.fixture(autouse=True)
def nothing_raised(caplog):
    """Fail if the plugin raised: Dask only logs that."""
    caplog.set_level(logging.INFO)
    yield
    raised = [r for r in caplog.get_records("call") if r.exc_info and "lugin" in r.getMessage()]
    assert not raised, [str(r.exc_info[1]) for r in raised]


@on_cluster()
async def test_a_worker_that_shrinks_while_a_function_is_sent_to_it(c, s, a, b):
    """The function waits until the worker has room again, and then runs there."""
    go = await Event("go")
    run = await submit(
        dag_of(
            Function(id=1, args=[], code=hold, cost={"gpu": 1}),
            Function(id=2, args=[], code=where, cost={"gpu": 1}),
        )
    )
    await (await Event("started-go")).wait()
    await one_held(run)
    # Its worker has said so to the scheduler, and not yet to the plugin.
    s.workers[b.address].resources["gpu"] = s.resources["gpu"][b.address] = 0.5
    await go.set()
    await run.futures[1]
    await until(lambda: not s.plugins["handoff"].engine.questions.claimed(b.address)["gpu"])
    await one_held(run)
    await b.set_resources(gpu=1)
    assert (await run.result()).results == {1: b.address, 2: b.address}
    del run
    await assert_clean(s, a, b)


def one_more(attempt, cost, error):
    SEEN.append((attempt, dict(cost)))
    return {"cpu": cost["cpu"] + 1}


def held_up(_):
    return hold()


SEEN = []
COSTS = []
FAIL = [True]


def fail_once_told():
    COSTS.append((current().attempt, dict(current().cost)))
    if FAIL:
        raise ValueError("told to")
    return "fine"


@on_cluster()
async def test_a_function_that_is_retried_after_it_failed_claims_what_it_says(c, s, a, b):
    """Tried again by a client, a function is told what it claims; escalation begins anew."""
    del SEEN[:], COSTS[:]
    FAIL[:] = [True]
    retry = RetryPolicy(1, escalate=one_more)
    function = Function(id=1, args=[], code=fail_once_told, cost={"cpu": 1}, retry=retry)
    run = await submit(dag_of(function), on_error="continue")
    await until(lambda: len(COSTS) == 2 and s.tasks[run.futures[1].key].state == "erred")
    await run.futures[1].retry()
    await until(lambda: len(COSTS) == 4 and s.tasks[run.futures[1].key].state == "erred")
    assert [cost["cpu"] for _, cost in COSTS] == [1, 2, 1, 2]
    assert [cost["cpu"] for _, cost in SEEN] == [1, 2, 1, 2]
    FAIL.clear()
    await run.futures[1].retry()
    assert await run.futures[1] == "fine"
    assert COSTS[-1] == (5, {"cpu": 1})


def first_at_once():
    if AGAIN:
        hold("again")
    AGAIN.append(True)


AGAIN = []


@on_cluster(timeout=15)
async def test_uninstall_while_it_is_asked_what_had_started(c, s, a, b):
    """A function whose worker is gone, and its input with it, still runs for plain tasks."""
    AGAIN.clear()
    run = await submit(
        dag_of(
            Function(id="in", args=[], code=first_at_once, cost={"gpu": 1}),
            Function(id="out", args=["in"], code=held_up, cost={"cpu": 1}, node=b.address),
        )
    )
    await (await Event("started-go")).wait()
    async with Worker(s.address, nthreads=1, resources={"gpu": 1, "cpu": 1}):
        plain = c.submit(len, run.futures["out"])
        await until(lambda: plain.key in s.tasks)
        out = s.tasks[run.futures["out"].key]
        await (await Event("go")).set()  # the thread may end; the attempt is lost
        # The scheduler does not learn whether it had started.
        plugin = s.plugins["handoff"]
        plugin.inquiries._answer = lambda *_: asyncio.Event().wait()
        await s.remove_worker(b.address, stimulus_id="test", expected=True)
        await (await Event("started-again")).wait()
        state = plugin.functions[out.key].state
        assert isinstance(state, Asking) and not state.ready
        await uninstall(client=c, force=True)
        del run
        await (await Event("again")).set()
        assert await asyncio.wait_for(plain.result(), 5) > 0
