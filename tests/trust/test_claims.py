"""What a thread uses stays claimed until it has ended, however its run ended."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
from distributed import Client, Event, secede
from distributed.utils_test import gen_cluster

from handoff_dask import (
    Argument,
    Function,
    FunctionFailedError,
    RunTimeoutError,
    current,
    discover_nodes,
    execute,
    explain,
    resources_available,
    submit,
    uninstall,
)
from handoff_dask.attempts.endings import Endings
from handoff_dask.attempts.life import Life
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import FunctionSpec, WorkerSpec
from handoff_dask.scheduler import inquiries
from tests.gate import SEEN, hold, note, until
from tests.support import assert_clean, dag_of, where

ONE = {"cpu": 1}
WORKERS = [("127.0.0.1", 1, {"resources": ONE})] * 2
on_two = partial(gen_cluster, nthreads=WORKERS, client=True)


@pytest.fixture(autouse=True)
def nothing_seen():
    SEEN.clear()


def fail(*_):
    raise ValueError("it fails")


def plugin_of(s):
    return s.plugins["handoff"]


def stuck(name="stuck", id="stuck", **fields):
    """Return a function that runs until its event is set."""
    return Function(id=id, args=[], code=hold, extra_args=[name], **{"cost": ONE, **fields})


async def begin(run, name="stuck"):
    """Wait until the blocking function of a run is running; return its worker."""
    run = await run
    await (await Event(f"started-{name}")).wait()
    return run


def where_stuck(*workers):
    """Return the address of the worker whose thread runs the function that is stuck."""
    (worker,) = [
        w.address
        for w in workers
        if any(ts.key[0].startswith(("hold", "stuck")) for ts in w.state.executing)
    ]
    return worker


async def cancel(c, run):
    await run.cancel()


async def fail_beside(c, run):
    with pytest.raises(FunctionFailedError, match="it fails"):
        await run.result()


async def run_out_of_time(c, run):
    with pytest.raises(RunTimeoutError):
        await run.result()


async def drop_client(c, run):
    await run._follower.client.close()


async def cancel_a_future(c, run):
    await c.cancel([run.futures["stuck"]])


ENDS = {
    "cancelled": (cancel, [], {}),
    "a future cancelled": (cancel_a_future, [], {}),
    "failed": (fail_beside, [Function("boom", [], fail, cost=ONE, max_retries=0)], {}),
    "timed out": (run_out_of_time, [], {"timeout": 0.5}),
    "timed out, detached": (run_out_of_time, [], {"timeout": 0.5, "detach": True}),
    "client closed": (drop_client, [], {}),
}


@pytest.mark.parametrize("how", ENDS)
@on_two()
async def test_a_run_that_is_over_keeps_what_its_threads_use(c, s, a, b, how):
    """Later functions use the idle worker; those that need the busy one wait, and say so."""
    end, others, options = ENDS[how]
    async with Client(s.address, asynchronous=True, set_as_default=False) as other:
        run = await begin(submit(dag_of(stuck(), *others, id="first"), client=other, **options))
        busy = where_stuck(a, b)
        await end(other, run)
        del run
        plugin = plugin_of(s)
        await until(lambda: not plugin.runs)

        assert plugin.engine.questions.free(busy)["cpu"] == 0
        assert plugin.engine.questions.slots(busy) == (0, 1)
        assert not await resources_available(busy, ONE)
        text = "still ending: 1 function of a run that "
        assert text in str(await explain(dag_of(stuck())))
        (idle,) = {a.address, b.address} - {busy}
        for i in range(3):
            # Costs nothing, but for the thread that every function needs.
            dag = dag_of(Function(i, [], where, cost=[None, ONE][i % 2]))
            assert (await execute(dag)).results == {i: idle}
        waiting = await submit(dag_of(Function("next", [], where, cost=ONE, node=busy)))
        await until(lambda: plugin.engine.questions.backlog(1).largest)
        assert (await waiting.counts())["running"] == 0
        assert text in str(await waiting.explain())
        await (await Event("stuck")).set()
        assert (await waiting.result()).results == {"next": busy}
        assert await resources_available(busy, ONE)
        assert str(await explain(dag_of(stuck()))).count("\n") == 1
        del waiting
    await assert_clean(s, a, b)


SCRIPT = """
import sys, time
from distributed import Client, Event
from handoff_dask import DAG, Function, submit

def stuck():
    Event("started-stuck").set()
    Event("stuck").wait()

client = Client(sys.argv[1])
dag = DAG("killed").add_function(Function("stuck", [], stuck, cost={"cpu": 1}))
run = submit(dag)
time.sleep(3600)
"""


@on_two()
async def test_a_client_that_was_killed(c, s, a, b):
    """Threads that it left running count, too."""
    with subprocess.Popen([sys.executable, "-c", SCRIPT, s.address]) as process:
        try:
            await (await Event("started-stuck")).wait()
            busy = where_stuck(a, b)
        finally:
            process.kill()
    await until(lambda: not plugin_of(s).runs)
    assert not await resources_available(busy, ONE)
    assert "1 function of a run that lost its client ('killed')" in str(await explain(dag_of()))
    (idle,) = {a.address, b.address} - {busy}
    for i in range(3):
        assert (await execute(dag_of(Function(i, [], where)))).results == {i: idle}
    await (await Event("stuck")).set()
    await assert_clean(s, a, b)


@on_two()
async def test_two_runs_cancelled_on_the_same_worker(c, s, a, b):
    """Each one has its own claim there, and the report names both."""
    half = {"cpu": 0.5}
    async with Client(s.address, asynchronous=True, set_as_default=False) as other:
        for name in ("x", "y"):
            dag = dag_of(stuck(name, cost=half, node=[a, b][name == "y"].address), id=name)
            run = await begin(submit(dag, client=other), name)
            await run.cancel()
    await until(lambda: not plugin_of(s).runs)
    explanation = str(await explain(dag_of(stuck())))
    assert "1 function of a run that was cancelled ('x')" in explanation
    assert "1 function of a run that was cancelled ('y')" in explanation
    for name in ("x", "y"):
        await (await Event(name)).set()
    await assert_clean(s, a, b)


SLOTS = [("127.0.0.1", 4, {"resources": {"cpu": 4, "gpu": 2}})]


@gen_cluster(nthreads=SLOTS, client=True)
async def test_several_of_a_run(c, s, a):
    """Each thread's claim is released exactly when that thread has ended."""
    dag = dag_of(stuck("x", "x"), stuck("y", "y", cost={"cpu": 2}), stuck("z", "z", cost=None))
    run = await begin(submit(dag), "x")
    await begin(asyncio.sleep(0), "y")
    await begin(asyncio.sleep(0), "z")
    await run.cancel()
    await until(lambda: not plugin_of(s).runs)
    engine = plugin_of(s).engine
    assert engine.questions.free(a.address)["cpu"] == 1
    assert engine.questions.slots(a.address) == (1, 4)
    assert "still ending: 3 functions of a run that" in str(await explain(dag_of(stuck())))
    await (await Event("y")).set()
    await until(lambda: engine.questions.slots(a.address) == (2, 4))
    assert engine.questions.free(a.address)["cpu"] == 3
    for name in ("x", "z"):
        await (await Event(name)).set()
    del run
    await assert_clean(s, a)


@on_two()
async def test_what_was_handed_ahead_never_starts(c, s, a, b):
    """Functions of a cancelled run that had not started release their claims and never start."""
    pin = {"cost": ONE, "node": a.address}
    await execute(dag_of(*(Function(i, [], note, extra_args=[i], **pin) for i in range(20))))
    SEEN.clear()
    run = await begin(submit(dag_of(stuck(node=a.address))))
    plugin = plugin_of(s)
    # Short functions of a known code: they go behind one of their kind.
    ahead = [Function(i, [], note, extra_args=[i], **pin) for i in range(20)]
    second = await submit(dag_of(*ahead))
    await until(lambda: plugin.engine.questions.backlog(1).largest)
    await second.cancel()
    await run.cancel()
    await until(lambda: len(plugin.endings) == 1)
    assert plugin.engine.questions.claimed(a.address)["cpu"] == 1
    await (await Event("stuck")).set()
    del run, second
    await assert_clean(s, a, b)
    assert SEEN == []


@gen_cluster(nthreads=SLOTS, client=True)
async def test_a_function_that_waits_for_a_run_of_its_own(c, s, a):
    """The run that it waits for is stopped with its own: neither blocks the other forever."""

    def outer(name):
        execute(dag_of(Function("inner", [], hold, extra_args=[name], cost=ONE)))

    run = await submit(dag_of(Function("outer", [], outer, extra_args=["inner"], cost={"cpu": 2})))
    await (await Event("started-inner")).wait()
    engine = plugin_of(s).engine
    await until(lambda: engine.questions.slots(a.address) == (3, 4))
    assert engine.questions.free(a.address)["cpu"] == 1
    await run.cancel()
    await until(lambda: engine.questions.free(a.address)["cpu"] == 3)
    # The inner function still holds its thread.
    assert engine.questions.slots(a.address) == (3, 4)
    await (await Event("inner")).set()
    del run
    await assert_clean(s, a)


@gen_cluster(nthreads=SLOTS, client=True)
async def test_a_slot_given_back_after_the_run_was_cancelled(c, s, a):
    """Only the cost stays claimed."""

    def outer():
        hold("first")
        secede()
        hold("second")

    run = await submit(dag_of(Function("outer", [], outer, cost={"cpu": 2})))
    await (await Event("started-first")).wait()
    await run.cancel()
    engine = plugin_of(s).engine
    await until(lambda: not plugin_of(s).runs)
    assert engine.questions.slots(a.address) == (3, 4)
    await (await Event("first")).set()
    await until(lambda: engine.questions.slots(a.address) == (4, 4))
    assert engine.questions.free(a.address)["cpu"] == 2
    await (await Event("second")).set()
    del run
    await assert_clean(s, a)


@on_two()
async def test_late_and_then_the_run_fails(c, s, a, b):
    """An attempt past its timeout keeps its claim when its run fails, too, until it has ended."""
    late = stuck(id="late", timeout=0.05, max_retries=0)
    run = await begin(submit(dag_of(late, id="etl")))
    with pytest.raises(FunctionFailedError, match="timeout"):
        await run.result()
    del run
    await until(lambda: not plugin_of(s).runs)
    assert "still ending: 1 function of a run that failed ('etl')" in str(await explain(dag_of()))
    assert sorted(plugin_of(s).engine.questions.free(w.address)["cpu"] for w in (a, b)) == [0, 1]
    await (await Event("stuck")).set()
    await assert_clean(s, a, b)


@on_two()
async def test_late_twice(c, s, a, b):
    """Both workers stay busy; the third attempt waits, and says what it waits for."""

    def late():
        hold(f"{current().attempt}") if current().attempt < 3 else None
        return current().attempt

    dag = dag_of(Function("late", [], late, cost=ONE, timeout=0.05, max_retries=2), id="etl")
    run = await submit(dag)
    for name in ("1", "2"):
        await (await Event(f"started-{name}")).wait()
    engine = plugin_of(s).engine
    await until(lambda: len(plugin_of(s).endings) == 2)
    assert [engine.questions.free(w.address)["cpu"] for w in (a, b)] == [0, 0]
    await until(lambda: all(r.state.name == "held" for r in plugin_of(s).functions.values()))
    text = str(await run.explain())
    assert "an earlier attempt still runs" in text
    assert "still ending: 2 functions of a run that goes on ('etl')" in text
    for name in ("1", "2"):
        await (await Event(name)).set()
    assert (await run.result()).results == {"late": 3}
    del run
    await assert_clean(s, a, b)


@gen_cluster(nthreads=SLOTS, client=True)
async def test_devices(c, s, a):
    """No other function gets the device of a thread that is still running."""

    def gpus(name):
        hold(name)
        return current().gpus

    gpu = {"gpu": 1}
    run = await begin(submit(dag_of(Function(0, [], gpus, extra_args=["stuck"], cost=gpu))))
    await run.cancel()
    await until(lambda: not plugin_of(s).runs)
    assert not await resources_available(a.address, {"gpu": 2})
    second = await begin(submit(dag_of(Function(0, [], gpus, extra_args=["y"], cost=gpu))), "y")
    third = await submit(dag_of(Function("third", [], gpus, extra_args=["y"], cost=gpu)))
    await until(lambda: plugin_of(s).engine.questions.backlog(1).largest)
    assert "still ending" in str(await third.explain())
    await (await Event("y")).set()
    assert (await second.result()).results == {0: (1,)}
    assert (await third.result()).results == {"third": (1,)}
    await (await Event("stuck")).set()
    del run, second, third
    await assert_clean(s, a)


class Loading:
    """Code that takes long to unpickle."""

    def __reduce__(self):
        return self.load, ()

    @staticmethod
    def load():
        hold("loading")
        return Loading()

    def __call__(self):
        note("called")


@on_two()
async def test_a_thread_that_has_not_come_to_its_function(c, s, a, b):
    """Unpickling the code uses the worker; the function itself never starts."""
    run = await begin(submit(dag_of(Function("slow", [], Loading(), cost=ONE))), "loading")
    await run.cancel()
    await until(lambda: not plugin_of(s).runs and not plugin_of(s).inquiries)
    assert sorted(plugin_of(s).engine.questions.free(w.address)["cpu"] for w in (a, b)) == [0, 1]
    await (await Event("loading")).set()
    del run
    await assert_clean(s, a, b)
    assert SEEN == []


def slow_transform(data, source, target):
    hold("transform")
    return data


async def slow_coroutine():
    hold("coroutine")


@pytest.mark.parametrize(
    ("functions", "name"),
    [
        (
            [Function("x", [], int), Function("y", [Argument("x", slow_transform)], int)],
            "transform",
        ),
        (
            [Function("x", [], int), Function("y", [Argument("x", None, slow_transform)], int)],
            "transform",
        ),
        ([Function("x", [], slow_coroutine)], "coroutine"),
    ],
)
@on_two()
async def test_threads_of_other_kinds(c, s, a, b, functions, name):
    """Transforms and coroutines have threads as functions do, whether results are kept or not."""
    run = await begin(submit(dag_of(*functions), results=[]), name)
    await run.cancel()
    await until(lambda: not plugin_of(s).runs)
    assert sorted(plugin_of(s).engine.questions.slots(w.address)[0] for w in (a, b)) == [0, 1]
    await (await Event(name)).set()
    del run
    await assert_clean(s, a, b)


@on_two()
async def test_an_attempt_that_others_take_back(c, s, a, b):
    """Dask releases the function; it runs elsewhere, and its first worker stays busy."""

    def stuck_at_first():
        if current().attempt == 1:
            hold("stuck")
        return where()

    run = await begin(submit(dag_of(Function("f", [], stuck_at_first, cost=ONE), id="etl")))
    (record,) = plugin_of(s).functions.values()
    first = record.worker
    s.transitions({record.key: "released"}, "test")
    result = await run.result()
    assert result.results["f"] != first
    assert [attempt.outcome for attempt in result.attempts["f"]] == ["cancelled", "ok"]
    assert not await resources_available(first, ONE)
    assert "1 function of a run that is done ('etl')" in str(await explain(dag_of()))
    await (await Event("stuck")).set()
    del run, result
    await assert_clean(s, a, b)


@on_two()
async def test_a_worker_that_does_not_answer(c, s, a, b, monkeypatch):
    """While it is unknown what a worker still runs, all of that counts as running."""
    monkeypatch.setattr(inquiries, "ANSWER", 0.05)
    monkeypatch.setattr(inquiries, "PAUSE", 0.05)
    run = await begin(submit(dag_of(stuck())))
    busy = where_stuck(a, b)
    worker = {w.address: w for w in (a, b)}[busy]
    withdraw = worker.handlers["handoff_withdraw"]
    asked = []

    async def deaf(calls):
        asked.append(calls)
        await asyncio.Event().wait()

    worker.handlers["handoff_withdraw"] = deaf
    await run.cancel()
    await until(lambda: len(asked) == 2)
    assert plugin_of(s).engine.questions.free(busy)["cpu"] == 0
    worker.handlers["handoff_withdraw"] = withdraw
    monkeypatch.undo()
    await until(lambda: not plugin_of(s).inquiries)
    assert plugin_of(s).engine.questions.free(busy)["cpu"] == 0
    await (await Event("stuck")).set()
    del run
    await assert_clean(s, a, b)


@on_two()
async def test_a_worker_that_goes_while_something_is_ending(c, s, a, b):
    """Its claims are released with it."""
    run = await begin(submit(dag_of(stuck(node=a.address))))
    await run.cancel()
    await until(lambda: len(plugin_of(s).endings) == 1 and not plugin_of(s).runs)
    await s.remove_worker(a.address, stimulus_id="test")
    assert len(plugin_of(s).endings) == 0
    assert "still ending" not in str(await explain(dag_of(stuck())))
    await (await Event("stuck")).set()
    del run
    await assert_clean(s, b)


@on_two()
async def test_uninstalled_and_installed_again(c, s, a, b):
    """A new plugin knows about threads that were running before it was installed."""
    run = await begin(submit(dag_of(stuck())))
    busy = where_stuck(a, b)
    await uninstall(client=c, force=True)
    await discover_nodes(client=c)
    await until(lambda: len(plugin_of(s).endings) == 1)
    assert not await resources_available(busy, ONE)
    (idle,) = {a.address, b.address} - {busy}
    assert (await execute(dag_of(Function(0, [], where, cost=ONE)))).results == {0: idle}
    await (await Event("stuck")).set()
    del run
    await assert_clean(s, a, b)
    assert await resources_available(busy, ONE)


def test_the_claim_of_one_handed_ahead():
    """An attempt that waits behind another takes over that claim as soon as it may run."""
    engine = Engine()
    engine.worker_added(WorkerSpec("a", "a", "host", {"cpu": 2}, slots=2))
    engine.run_opened("run")
    engine.functions_added("run", [FunctionSpec(key, {"cpu": 1}) for key in ("x", "y")])
    engine.function_ready("x", 0.0)
    assert [place.key for place in engine.poll(0.0)] == ["x"]
    endings = Endings(engine)
    row = SimpleNamespace(label="y", cost={"cpu": 1}, policy=RetryPolicy())
    endings.begin(Life("y", row), 7, "a", seceded=False, claims=False)
    assert engine.questions.free("a")["cpu"] == 1  # it waits for x
    endings.pass_on("a", {"cpu": 2})  # another, of another cost
    assert engine.questions.free("a")["cpu"] == 1
    endings.pass_on("a", {"cpu": 1})  # x has ended: the worker starts y by itself
    engine.attempt_ended("x", 1.0, done=True)
    assert engine.questions.free("a")["cpu"] == 1
    endings.over("y", 7)
    assert engine.questions.free("a")["cpu"] == 2
