"""However a run ends, its client learns of it, and nothing else of that client is affected."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import operator

import pytest
from dask.distributed import CancelledError, Client, Event, wait
from distributed import Nanny
from distributed.client import FutureCancelledError
from distributed.comm import CommClosedError
from distributed.utils_test import captured_logger, gen_cluster

from handoff_dask import (
    AllocationError,
    Argument,
    Function,
    FunctionFailedError,
    HandoffError,
    RunCancelledError,
    RunTimeoutError,
    UnknownRunError,
    current,
    execute,
    forget,
    get_result,
    get_run,
    list_runs,
    submit,
    uninstall,
)
from handoff_dask.client import waiting
from tests.gate import until
from tests.support import assert_clean, dag_of


def same(data, source, target):
    return data


def boom(*_):
    raise LookupError("no such thing")


def hold(name="go", *_):
    Event(f"started-{name}").set()
    return Event(name).wait()


def hold_on(*_):
    return hold()


#: What note() was called with; workers run in this process.
STARTED = []


def note(i):
    STARTED.append(i)
    return hold()


#: Whether flaky() is well.
FINE = []


def flaky():
    if not FINE:
        raise LookupError("not yet")
    return current().attempt


def tangled(code, **fields):
    """A function whose result is kept, and one that gets it through a transform."""
    return dag_of(
        Function("a", [], int),
        Function("b", [Argument("a", None, same)], code, **fields),
        Function("c", ["b"], str),
        id="tangled",
    )


def cancel_all(c, run):
    return c.cancel(list(run.futures.values()))


def force(c, run):
    return c.cancel([run.futures["c"]], force=True)


ENDINGS = {
    "failure": (boom, {}, None, FunctionFailedError),
    "cancel": (hold_on, {}, lambda c, run: run.cancel(), RunCancelledError),
    "time": (hold_on, {"timeout": 0.2}, None, RunTimeoutError),
    "client.cancel": (hold_on, {}, cancel_all, RunCancelledError),
    "future.cancel": (hold_on, {}, lambda c, run: run.futures["a"].cancel(), RunCancelledError),
    "force": (hold_on, {}, force, RunCancelledError),
}


@pytest.mark.parametrize("results", ["all", ["a", "c"]])
@pytest.mark.parametrize("ending", ENDINGS)
@gen_cluster(client=True, nthreads=[("", 4), ("", 4)])
async def test_an_end_touches_nothing_else(c, s, a, b, ending, results):
    """Another run, a plain future and their client continue, however a run is made and ends."""
    code, options, act, error = ENDINGS[ending]
    go, other_go, plain_go = [await Event(name) for name in ("go", "other", "plain")]
    other = await submit(dag_of(Function("f", [], hold, extra_args=["other"]), id="other"))
    plain = c.submit(hold, "plain")
    run = await submit(tangled(code, max_retries=0), results=results, **options)
    if act is not None:
        await wait(run.futures["a"])
        await act(c, run)
    with pytest.raises(error):
        await run.result()
    assert c.status == "running"
    await other_go.set()
    await plain_go.set()
    assert (await other.result()).results == {"f": True}
    assert await plain is True
    await go.set()
    del run, other, plain
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_what_others_made_of_it_goes_on(c, s, a, b):
    """A plain task that needs a function of a run that was cancelled still gets its value."""
    go = await Event("go")
    run = await submit(
        dag_of(Function("f", [], hold), Function("g", ["f"], hold, extra_args=["never"]))
    )
    plain = c.submit(operator.not_, run.futures["f"])
    await Event("started-go").wait()
    while plain.key not in s.tasks:  # a call may overtake what is sent on the stream
        await asyncio.sleep(0.01)
    await run.cancel()
    await go.set()
    assert await plain is False
    with pytest.raises(RunCancelledError):
        await run.result()
    del plain, run
    await assert_clean(s, a, b)


@gen_cluster(client=True, nthreads=[("", 4, {"resources": {"gpu": 1}})])
async def test_what_others_made_of_it_ends_with_handoff(c, s, a):
    """Uninstalling fails what plain tasks need and cannot get; the rest continues."""
    go = await Event("go")
    run = await submit(
        dag_of(
            Function("f", [], hold, cost={"gpu": 1}),
            Function("held", [], int, cost={"gpu": 1}),
            Function("waiting", ["f"], operator.not_),
        )
    )
    await Event("started-go").wait()
    futures = run.futures
    fine = [c.submit(operator.not_, futures[id_]) for id_ in ("f", "waiting")]
    bad = c.submit(operator.not_, futures["held"])
    while len(s.tasks) < 6:
        await asyncio.sleep(0.01)
    await uninstall(force=True)
    await go.set()
    assert await c.gather(fine) == [False, True]
    with pytest.raises(HandoffError, match="'held': Handoff was taken off the cluster"):
        await bad
    assert "handoff" not in s.plugins


@gen_cluster(client=True)
async def test_a_cancelled_input_of_others(c, s, a, b):
    """Cancelling a plain future that a function depends on stops that run and no other."""
    go = await Event("go")
    other = await submit(dag_of(Function("f", [], hold), id="other"))
    run = await submit(tangled(hold_on))
    await wait(run.futures["a"])
    plain = c.submit(operator.neg, run.futures["a"])
    await c.cancel([run.futures["a"]])
    with pytest.raises(RunCancelledError, match=r"'tangled'.*'a' was cancelled"):
        await run.result()
    await go.set()
    assert (await other.result()).results == {"f": True}
    del run, other, plain


@gen_cluster(client=True, nthreads=[("", 1)])
async def test_a_cancelled_future_stops_the_rest(c, s, a):
    """client.cancel of a future of a run ends the run: none of its functions start afterwards."""
    STARTED.clear()
    go = await Event("go")
    run = await submit(dag_of(*(Function(i, [], note, [i]) for i in range(10))))
    await Event("started-go").wait()
    await c.cancel(run.futures[9])
    with pytest.raises(RunCancelledError, match="function 9 was cancelled"):
        await run.result()
    assert await run.counts() == {
        "waiting": 0,
        "held": 0,
        "assigned": 0,
        "running": 0,
        "done": 0,
        "failed": 0,
        "cancelled": 10,
    }
    await go.set()
    await assert_clean(s, a)
    assert len(STARTED) == 1


@gen_cluster(client=True)
async def test_a_failure_is_read_where_the_run_was_submitted(c, s, a, b):
    """get_result in the client that submitted and dropped a detached run raises the failure."""
    await submit(tangled(boom, max_retries=0), detach=True)
    with pytest.raises(FunctionFailedError, match=r"'b'.*no such thing") as caught:
        await get_result("tangled", "b")
    assert isinstance(caught.value.__cause__, LookupError)
    # It never ran: the one that failed is named.
    with pytest.raises(FunctionFailedError, match=r"'b'.*no such thing") as caught:
        await get_result("tangled", "c")
    assert caught.value.function_id == "b"
    assert await get_result("tangled", "a") == 0
    await forget("tangled")
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_what_a_failed_run_never_ran(c, s, a, b):
    """get_result of a function that was stopped with its run says what ended the run."""
    go = await Event("go")
    dag = dag_of(
        Function("a", [], hold),
        Function("b", ["a"], int),
        Function("z", [], boom, max_retries=0),
        id="stopped",
    )
    await submit(dag, detach=True)
    with pytest.raises(FunctionFailedError, match="no such thing") as caught:
        await get_result("stopped", "b")
    assert caught.value.function_id == "z"
    await go.set()
    await forget("stopped")
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_a_failure_stops_a_run_whose_client_is_gone(c, s, a, b):
    """The scheduler stops a detached run at its first failure even if no client is connected."""
    go = await Event("go")
    dag = dag_of(
        Function("a", [], hold),
        Function("b", ["a"], hold, extra_args=["never"]),
        Function("z", [], hold, extra_args=["fail"]),
        Function("boom", ["z"], boom, max_retries=0),
        id="alone",
    )
    async with Client(s.address, asynchronous=True, set_as_default=False) as other:
        await submit(dag, client=other, detach=True)
        await Event("started-fail").wait()
        await Event("started-go").wait()
    await Event("fail").set()
    (run,) = s.plugins["handoff"].runs.values()
    await until(lambda: run.over)
    await go.set()
    status = await (await get_run("alone")).status()
    assert (status["done"], status["failed"], status["cancelled"]) == (1, 1, 2)
    await forget("alone")
    await assert_clean(s, a, b)


# What a function raises


RAISED = [
    concurrent.futures.CancelledError("stop"),
    FutureCancelledError("key", "reason"),
    asyncio.CancelledError("stop"),
    asyncio.TimeoutError("slow"),
    TimeoutError("slow"),
    CommClosedError("closed"),
    ConnectionError("refused"),
    RunCancelledError("inner", "it was cancelled"),
    RunTimeoutError("inner", "it did not end within 1 s"),
    AllocationError("inner", {"gpu": 1}, "no worker can hold it"),
    FunctionFailedError("inner", (), "ValueError: no"),
    StopAsyncIteration("stop"),
    KeyboardInterrupt("stop"),
]


@pytest.mark.parametrize("on_error", ["raise", "continue"])
@gen_cluster(client=True, timeout=60)
async def test_what_a_function_raises_is_its_failure(c, s, a, b, on_error):
    """Whatever its type, it is the cause of a FunctionFailedError, and nothing is left."""

    def throw(error):
        raise error

    for error in RAISED:
        dag = dag_of(
            Function("bad", [], throw, [error], max_retries=1), Function("after", ["bad"], str)
        )
        if on_error == "raise":
            with pytest.raises(FunctionFailedError) as caught:
                await execute(dag)
            failure = caught.value
        else:
            failure = (await execute(dag, on_error="continue")).errors["bad"]
        assert isinstance(failure, FunctionFailedError), (error, failure)
        assert failure.function_id == "bad"
        assert [attempt.outcome for attempt in failure.attempts] == ["error", "error"]
        assert type(error).__name__ in str(failure)
        assert type(failure.__cause__).__name__ in (type(error).__name__, "StandInError")
        del failure
    await assert_clean(s, a, b)


# What does not come


@pytest.mark.parametrize("code, error", [(int, None), (boom, FunctionFailedError)])
@pytest.mark.parametrize("on_error", ["raise", "continue"])
@gen_cluster(client=True)
async def test_no_message_is_needed(c, s, a, b, code, error, on_error):
    """A client learns the end of a run even if it cannot read Dask's messages about its tasks."""
    interval, waiting.INTERVAL = waiting.INTERVAL, 0.05
    for name in ("key-in-memory", "task-erred"):
        c._stream_handlers[name] = lambda **kwargs: None
    try:
        dag = dag_of(Function("a", [], int), Function("b", ["a"], code, max_retries=0), id="deaf")
        run = await submit(dag, on_error=on_error, detach=True)
        await run.wait()
        if error is None:
            assert (await run.result()).results == {"a": 0, "b": 0}
        elif on_error == "raise":
            with pytest.raises(error):
                await run.result()
        else:
            assert isinstance((await run.result()).errors["b"], error)
    finally:
        waiting.INTERVAL = interval
    await forget("deaf")


@gen_cluster(client=True)
async def test_a_graph_that_the_scheduler_refuses(c, s, a, b):
    """Its run ends at once with the scheduler's reason, with or without a waiting client."""

    class Opaque:
        def __reduce__(self):
            return eval, ("1 / 0",)

    def with_opaque_keys(graph, *args, **kwargs):
        (layer,) = graph.layers.values()
        layer.annotations["opaque"] = Opaque()
        return get(graph, *args, **kwargs)

    get, c.get = c.get, with_opaque_keys
    for detach in (False, True):
        with pytest.raises(HandoffError, match="the scheduler refused its graph"):
            run = await submit(dag_of(Function("f", [], int), id="refused"), detach=detach)
            await run.result()
    with pytest.raises(HandoffError, match="the scheduler refused its graph"):
        await get_result("refused", "f", timeout=60)
    await forget("refused")
    c.get = get
    assert await list_runs() == []
    await uninstall()
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_a_submitter_that_dies_before_its_graph_arrives(c, s, a, b):
    """Its detached run ends by itself, says why, and can be forgotten."""
    other = await Client(s.address, asynchronous=True, set_as_default=False)
    dag = dag_of(Function("f", [], int), Function("g", ["f"], str), id="never")
    submitting = asyncio.ensure_future(_submit_without_graph(dag, other))
    while not s.plugins.get("handoff") or not s.plugins["handoff"].runs:
        await asyncio.sleep(0.01)
    following = asyncio.ensure_future(get_run("never"))
    await other.close()
    submitting.cancel()
    run = await following
    assert (await run.status())["cancelled"] == 2
    with pytest.raises(RunCancelledError, match="went away before its functions had arrived"):
        await run.result()
    with pytest.raises(RunCancelledError, match="went away before its functions had arrived"):
        await get_result("never", "f")
    assert await list_runs() == []
    await forget("never")
    with pytest.raises(UnknownRunError):
        await get_run("never")
    await uninstall()
    await assert_clean(s, a, b)


async def _submit_without_graph(dag, client):
    """Submit a DAG whose graph never reaches the scheduler."""
    from distributed import Future

    client.get = lambda graph, keys, **kwargs: [Future(key, client) for key in keys]
    await submit(dag, client=client, detach=True)


@gen_cluster(client=True)
async def test_a_run_that_is_stopped_before_its_graph_arrives(c, s, a, b):
    """None of its functions start when the graph arrives after all."""
    started = []
    get = c.get

    def late(graph, keys, **kwargs):
        (run,) = s.plugins["handoff"].runs.values()
        s.plugins["handoff"].runs._out_of_time(run)
        return get(graph, keys, **kwargs)

    c.get = late
    with pytest.raises(RunTimeoutError, match="5 s"):
        await execute(dag_of(Function("f", [], started.append, [1]), id="late"), timeout=5)
    c.get = get
    await assert_clean(s, a, b)
    assert not started


# What is kept of a run, and asked of it


@gen_cluster(client=True)
async def test_a_cancelled_detached_run_leaves_a_trace(c, s, a, b):
    """Its status says cancelled and finished results stay, until it is forgotten."""
    go = await Event("go")
    dag = dag_of(Function("done", [], int, ["4"]), Function("f", ["done"], hold_on), id="kept")
    dag.add_function(Function("g", ["f"], str))
    run = await submit(dag, detach=True)
    await wait(run.futures["done"])
    await run.cancel()
    await go.set()
    async with Client(s.address, asynchronous=True, set_as_default=False) as other:
        status = await (await get_run("kept", client=other)).status()
        assert (status["done"], status["cancelled"]) == (1, 2)
        assert await get_result("kept", "done", client=other) == 4
        with pytest.raises(RunCancelledError, match="its functions were cancelled on the cluster"):
            await get_result("kept", "g", client=other)
    assert await get_result("kept", "done") == 4
    await forget("kept")
    with pytest.raises(UnknownRunError):
        await get_result("kept", "done")
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_get_result_right_after_forget(c, s, a, b):
    """A forgotten run is unknown at once, even if a client still holds its futures."""
    for i in range(10):
        run = await submit(dag_of(Function("f", [], int, [str(i)]), id="short"), detach=True)
        assert await get_result("short", "f") == i
        await forget("short")
        with pytest.raises(UnknownRunError):
            await get_result("short", "f", timeout=60)
        assert run.futures["f"].key
    del run
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_a_result_read_again_and_again(c, s, a, b):
    """Releasing a future does not release the next one for the same key."""
    await submit(dag_of(Function("f", [], hold), id="again"), detach=True)
    reading = []
    for i in range(20):
        with pytest.raises(TimeoutError):
            await get_result("again", "f", timeout=0.001 * i)
        reading.append(asyncio.ensure_future(get_result("again", "f", timeout=60)))
        await asyncio.sleep(0)
    await Event("go").set()
    assert await asyncio.gather(*reading) == [True] * 20
    await forget("again")
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_waiting_no_longer_than_asked(c, s, a, b):
    """The built-in TimeoutError says what had not ended, on every Python and in every call."""
    run = await submit(
        dag_of(Function("f", [], hold), Function("g", ["f"], str), id="slow"), detach=True
    )
    await Event("started-go").wait()
    for attempt in (run.result(timeout=0.01), run.wait(timeout=0.01)):
        with pytest.raises(TimeoutError, match=r"'slow' did not end within 0\.01 s.*1 waiting, 1 "):
            await attempt
    with pytest.raises(TimeoutError, match=r"function 'g' of 'slow' did not end within 0\.01 s"):
        await get_result("slow", "g", timeout=0.01)
    await Event("go").set()
    assert await get_result("slow", "g", timeout=None) == "True"
    await forget("slow")


class Id:
    """An id that equals others with the same number; all have the same text."""

    def __init__(self, number):
        self.number = number

    def __eq__(self, other):
        return isinstance(other, Id) and other.number == self.number

    def __hash__(self):
        return hash(self.number)

    def __repr__(self):
        return "Id"


@gen_cluster(client=True)
async def test_ids_are_compared_as_python_does(c, s, a, b):
    """Ids are looked up by equality, not by their texts."""
    np = pytest.importorskip("numpy")
    ids = [np.int64(1), frozenset([3, 5]), ("x", np.int64(1)), Id(1), Id(2), 2.0, None, "1"]
    asked = [1, frozenset([5, 3]), ("x", 1), Id(1), Id(2), 2, None, "1"]
    for dag_id in (("t", np.int64(7)), "('t', 7)", Id(9)):
        dag = dag_of(*(Function(id_, [], str, [i]) for i, id_ in enumerate(ids)), id=dag_id)
        await submit(dag, detach=True)
    for same_dag in (("t", 7), "('t', 7)", Id(9)):
        for i, id_ in enumerate(asked):
            assert await get_result(same_dag, id_) == str(i)
        assert (await get_run(same_dag)).dag_id == same_dag
    for same_dag in (("t", 7), "('t', 7)", Id(9)):
        await forget(same_dag)
        with pytest.raises(UnknownRunError):
            await get_run(same_dag)
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_a_future_is_tried_again(c, s, a, b):
    """retry() of a failed function starts again with all its retries, or says why it cannot."""
    FINE.clear()
    dag = dag_of(Function("load", [], flaky, max_retries=1), Function("after", ["load"], str))
    run = await submit(dag, on_error="continue")
    assert isinstance(await run.futures["load"].exception(), LookupError)
    await run.futures["load"].retry()
    assert isinstance(await run.futures["load"].exception(), LookupError)
    FINE.append(True)
    await run.futures["load"].retry()
    assert await run.futures["load"] == 5
    status = await run.status()
    assert [attempt.number for attempt in status["attempts"]["load"]] == [1, 2, 3, 4, 5]
    FINE.clear()
    stopped = await submit(dag)
    with pytest.raises(FunctionFailedError):
        await stopped.result()
    with pytest.raises(HandoffError, match="cannot be tried again: its run was stopped"):
        await stopped.futures["load"].retry()
    assert await c.submit(operator.add, 1, 1) == 2
    del run, stopped
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_what_nobody_needs_any_more(c, s, a, b):
    """A run is over even if functions that only a failed function needed have not run."""
    go = await Event("go")
    dag = dag_of(
        Function("slow", [], hold),
        Function("bad", [], boom, max_retries=0),
        Function("both", ["slow", "bad"], print),
        Function("fine", [], int),
    )
    result = await execute(dag, on_error="continue", results=["both", "fine"])
    assert result.results == {"fine": 0}
    assert result.errors.keys() == {"bad", "both"}
    await go.set()
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_a_follower_of_a_run_whose_client_goes(c, s, a, b):
    """A caller that follows a run learns of its end when its own client closes; nothing hangs."""
    go = await Event("go")
    dag = dag_of(Function("f", [], hold), Function("g", ["f"], hold), id="followed")
    async with Client(s.address, asynchronous=True, set_as_default=False) as other:
        await submit(dag, client=other)
        run = await get_run("followed")
        await Event("started-go").wait()
    with pytest.raises(RunCancelledError, match="its client went away"):
        await run.result()
    await go.set()
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_a_client_that_dies(c, s, a, b):
    """The scheduler logs no error when the process of a client is gone in the middle of a run."""
    go = await Event("go")
    other = await Client(s.address, asynchronous=True, set_as_default=False)
    dag = dag_of(*(Function(i, [], hold) for i in range(4)), id="left alone")
    run = await submit(dag, client=other)
    await Event("started-go").wait()
    record = s.plugins["handoff"].runs[run.futures[0].key[0].rsplit("-", 1)[1]]
    with captured_logger("distributed.scheduler", level=logging.ERROR) as log:
        other.scheduler_comm.comm.abort()
        await until(lambda: record.stop is not None)
    assert record.stop.kind == "abandoned"
    assert not log.getvalue()
    del run
    await other.close()
    await go.set()
    await assert_clean(s, a, b)


@pytest.mark.parametrize("detach", [False, True])
@gen_cluster(client=True, Worker=Nanny, timeout=120)
async def test_a_restart(c, s, a, b, detach):
    """Whoever waits for a run learns that another client has restarted the cluster."""
    dag = dag_of(*(Function(i, [], hold) for i in range(4)), id="restarted")
    run = await submit(dag, detach=detach)
    await Event("started-go").wait()
    async with Client(s.address, asynchronous=True, set_as_default=False) as other:
        await other.restart()
    with pytest.raises(RunCancelledError, match="the cluster was restarted"):
        await run.result()
    counts = await run.counts()
    assert (counts["cancelled"], sum(counts.values())) == (4, 4)
    del run
    assert not s.plugins["handoff"].runs


def nested():
    with pytest.raises(CancelledError):
        raise CancelledError
    execute(dag_of(Function("greedy", [], int, cost={"gpu": 99})))


@gen_cluster(client=True, nthreads=[("", 2)])
async def test_an_allocation_error_within(c, s, a):
    """A function that cannot be placed in a nested run fails the outer function."""
    match = r"'outer' failed.*'greedy' cannot be placed"
    with pytest.raises(FunctionFailedError, match=match) as caught:
        await execute(dag_of(Function("outer", [], nested, max_retries=0)))
    assert isinstance(caught.value.__cause__, AllocationError)
