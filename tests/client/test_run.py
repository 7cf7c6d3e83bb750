"""Runs that end otherwise than well: failures, mistakes, cancellation, limits of time."""

from __future__ import annotations

import asyncio
import pickle
import threading

import cloudpickle
import pytest
from distributed import Client, Event

from handoff_dask import (
    AllocationError,
    Function,
    FunctionFailedError,
    InvalidFunctionError,
    MissingFunctionError,
    RunCancelledError,
    RunTimeoutError,
    execute,
    submit,
)
from handoff_dask.wire.messages import Stop
from tests.support import assert_clean, dag_of, where
from tests.unlike import RAN, note, note_and_fail, on_cluster


@on_cluster()
async def test_a_function_that_raises(c, s, a, b):
    """FunctionFailedError: the cause with its traceback, the attempts, what did finish."""

    def fail(x):
        raise LookupError("no such thing")

    dag = dag_of(
        Function(id="fine", args=[], code=int, extra_args=["1"]),
        Function(id="bad", args=["fine"], code=fail, max_retries=1),
        Function(id="after", args=["bad"], code=str),
    )
    with pytest.raises(FunctionFailedError, match=r"'bad'.*no such thing") as caught:
        await execute(dag)
    error = caught.value
    assert error.function_id == "bad"
    assert [attempt.outcome for attempt in error.attempts] == ["error", "error"]
    assert [attempt.number for attempt in error.attempts] == [1, 2]
    assert error.attempts[0].error_type == "LookupError"
    assert isinstance(error.__cause__, LookupError)
    frames = []
    tb = error.__cause__.__traceback__
    while tb is not None:
        frames.append(tb.tb_frame.f_code.co_name)
        tb = tb.tb_next
    assert frames[-1] == "fail"
    assert error.partial.results == {"fine": 1}
    await assert_clean(s, a, b)


@on_cluster()
@pytest.mark.parametrize(
    "run_retries, own_retries, starts", [(0, None, 1), (2, None, 3), (5, 1, 2)]
)
async def test_max_retries(c, s, a, b, run_retries, own_retries, starts):
    """A function starts max_retries + 1 times, by its own word or the run's."""
    RAN.clear()
    with pytest.raises(FunctionFailedError) as caught:
        await execute(
            dag_of(Function(id=1, args=[], code=note_and_fail, max_retries=own_retries)),
            max_retries=run_retries,
        )
    assert len(caught.value.attempts) == len(RAN) == starts


@on_cluster()
async def test_on_error_continue(c, s, a, b):
    """What does not depend on the failed function runs; errors name it and what it held back."""

    def fail():
        raise ValueError("always")

    dag = dag_of(
        Function(id="bad", args=[], code=fail),
        Function(id="after", args=["bad"], code=str),
        Function(id="fine", args=[], code=int, extra_args=["1"]),
        Function(id="end", args=["fine"], code=int),
    )
    result = await execute(dag, on_error="continue", max_retries=0)
    assert result.results == {"fine": 1, "end": 1}
    assert result.errors.keys() == {"bad", "after"}
    assert {error.function_id for error in result.errors.values()} == {"bad"}
    assert isinstance(result.errors["after"].__cause__, ValueError)
    await assert_clean(s, a, b)


@on_cluster()
async def test_impossible_cost(c, s, a, b):
    """A cost that no worker could ever hold is an error at once, with the nearest worker's lack."""
    RAN.clear()
    dag = dag_of(
        Function(id="fine", args=[], code=note),
        Function(id="big", args=[], code=where, cost={"gpu": 2, "cpu": 1}),
    )
    with pytest.raises(AllocationError, match="'big'") as caught:
        await execute(dag)
    assert caught.value.function_id == "big"
    assert caught.value.cost == {"gpu": 2, "cpu": 1}
    assert caught.value.nearest == b.address
    assert caught.value.shortfall == {"gpu": (2, 1)}
    assert not RAN
    await assert_clean(s, a, b)


@on_cluster()
async def test_pin_that_nobody_answers_to(c, s, a, b):
    """A pin without a worker is an error at once that names it."""
    with pytest.raises(AllocationError, match="somewhere") as caught:
        await execute(dag_of(Function(id="lost", args=[], code=where, node="somewhere")))
    assert caught.value.node == "somewhere"
    await assert_clean(s, a, b)


@on_cluster()
async def test_mistakes_are_found_before_anything_is_sent(c, s, a, b):
    """An invalid DAG, or what cannot be pickled, reaches neither scheduler nor workers."""
    with pytest.raises(MissingFunctionError):
        await execute(dag_of(Function(id=1, args=[2], code=int)))
    with pytest.raises(InvalidFunctionError, match=r"'locked'.*extra_args"):
        await execute(
            dag_of(Function(id="locked", args=[], code=str, extra_args=[threading.Lock()]))
        )
    lock = threading.Lock()
    with pytest.raises(InvalidFunctionError, match=r"'closed'.*code"):
        await execute(dag_of(Function(id="closed", args=[], code=lambda: lock)))
    with pytest.raises(ValueError, match=r"allocation_strategy.*packed.*fastest"):
        await execute(dag_of(Function(id=1, args=[], code=int)), allocation_strategy="fastest")
    assert "handoff" not in s.plugins
    assert not s.tasks


@on_cluster()
async def test_cancel(c, s, a, b):
    """A cancelled run raises RunCancelledError and leaves nothing behind."""
    started, go = await Event("started"), await Event("go")

    def hold():
        Event("started").set()
        Event("go").wait()

    run = await submit(
        dag_of(
            Function(id="hold", args=[], code=hold, cost={"gpu": 1}),
            Function(id="held", args=[], code=where, cost={"gpu": 1}),
        )
    )
    await started.wait()
    status = await run.status()
    assert (status["running"], status["held"]) == (1, 1)
    await run.cancel()
    with pytest.raises(RunCancelledError, match="a dag"):
        await run.result()
    await go.set()
    await assert_clean(s, a, b)
    assert (await run.counts())["cancelled"] == 2


@pytest.mark.parametrize("on_error", ["raise", "continue"])
def test_a_failure_where_nothing_goes_over_a_wire(on_error):
    """On a cluster within this process a function's own exception arrives too."""

    def fail():
        raise LookupError("no such thing")

    dag = dag_of(Function(id="bad", args=[], code=fail, max_retries=0))
    with Client(
        processes=False, n_workers=1, dashboard_address=":0", set_as_default=False
    ) as client:
        if on_error == "raise":
            with pytest.raises(FunctionFailedError) as caught:
                execute(dag, client=client)
            error = caught.value
        else:
            error = execute(dag, client=client, on_error="continue").errors["bad"]
    assert isinstance(error.__cause__, LookupError)
    assert "no such thing" in str(error)


@on_cluster()
async def test_counts(c, s, a, b):
    """counts() has the counts of status() without the attempts."""
    started, go = await Event("started"), await Event("go")

    def hold():
        Event("started").set()
        Event("go").wait()

    run = await submit(
        dag_of(
            Function(id="hold", args=[], code=hold, cost={"gpu": 1}),
            Function(id="held", args=[], code=where, cost={"gpu": 1}),
            Function(id="after", args=["hold"], code=note),
        )
    )
    await started.wait()
    counts = await run.counts()
    assert {state for state, count in counts.items() if count == 1} == {
        "running",
        "held",
        "waiting",
    }
    status = await run.status()
    del status["attempts"]
    assert counts == status
    await go.set()
    await run.result()
    assert (await run.counts())["done"] == 3


@on_cluster()
async def test_run_timeout(c, s, a, b):
    """A run past its time is stopped and raises RunTimeoutError."""
    go = await Event("go")
    with pytest.raises(RunTimeoutError, match=r"0.05 s"):
        await execute(
            dag_of(Function(id=1, args=[], code=lambda: Event("go").wait())), timeout=0.05
        )
    await go.set()
    await assert_clean(s, a, b)


@pytest.mark.parametrize("bundle", [None, False])
@pytest.mark.parametrize("end", ["timeout", "cancelled here", "cancelled elsewhere"])
@on_cluster()
async def test_what_finished_before_the_end(c, s, a, b, end, bundle):
    """The error of a run that is stopped has the results and the attempts of what finished."""
    go = await Event("go")
    dag = dag_of(
        *(Function(i, [], int, extra_args=[i]) for i in range(8)),
        Function("held", [], hold),
        Function("after", ["held"], abs),
    )
    run = await submit(dag, bundle=bundle, durations={int: 0.001})
    await Event("started").wait()
    while (await run.counts())["done"] < 8:
        await asyncio.sleep(0.01)
    if end == "cancelled here":
        await run.cancel()
    else:
        runs = s.plugins["handoff"].runs
        (record,) = runs.values()
        runs.stop(record, Stop(end.split()[0], "enough"))
    kind = RunTimeoutError if end == "timeout" else RunCancelledError
    with pytest.raises(kind) as e:
        await run.result()
    partial = e.value.partial
    assert partial.results == {i: i for i in range(8)}
    assert partial.allocations.keys() == partial.results.keys()
    assert all([t.outcome for t in partial.attempts[i]] == ["ok"] for i in range(8))
    assert "after" not in partial.attempts
    await go.set()
    await assert_clean(s, a, b)


@on_cluster()
async def test_waiting_for_a_run_may_be_given_up(c, s, a, b):
    """result(timeout) raises TimeoutError, and the run goes on."""
    go = await Event("go")
    run = await submit(dag_of(Function(id=1, args=[], code=lambda: Event("go").wait())))
    with pytest.raises(asyncio.TimeoutError):
        await run.result(timeout=0.01)
    await go.set()
    assert (await run.result()).results == {1: True}
    status = await run.status()
    assert status["done"] == 1
    assert len(status["attempts"][1]) == 1


def wait_for_go(index):
    if index >= 2:
        Event("go").wait()


@on_cluster()
async def test_the_time_remaining(c, s, a, b):
    """Seconds, once it is known how long functions of that code take; none is left at the end."""
    functions = [Function(i, [], wait_for_go, extra_args=[i]) for i in range(8)]
    run = await submit(dag_of(*functions))
    while (await run.counts())["done"] < 2:
        await asyncio.sleep(0.01)
    remaining = await run.remaining()
    assert remaining is not None and remaining >= 0
    await Event("go").set()
    await run.result()
    while await run.remaining():
        await asyncio.sleep(0.01)


@on_cluster()
async def test_a_run_is_not_pickled(c, s, a, b):
    """Whoever sends one to a worker is told what to send instead."""
    run = await submit(dag_of(Function(1, [], int)))
    for dumps in (pickle.dumps, cloudpickle.dumps):
        with pytest.raises(TypeError, match=r"pass its result\(\), or call get_run\("):
            dumps(run)
    await run


@on_cluster()
async def test_await_a_run(c, s, a, b):
    """`await run` is `await run.result()`; a coroutine can be made a task as before."""
    run = await asyncio.create_task(submit(dag_of(Function(1, [], int))))
    assert (await run).results == {1: 0}
    with pytest.raises(TypeError, match="async with"), run:
        pass


def hold():
    Event("started").set()
    Event("go").wait()


HELD = [Function("f", [], hold)]


@on_cluster()
@pytest.mark.parametrize("awaited", [True, False])
async def test_async_with(c, s, a, b, awaited):
    """Leaving the block waits for the run; with or without awaiting submit() first."""
    starting = submit(dag_of(Function(1, [], int)))
    async with (await starting) if awaited else starting as run:
        assert (await run)[1] == 0
    assert (await run.counts())["done"] == 1
    del run, starting
    await assert_clean(s, a, b)


@on_cluster()
async def test_what_is_not_a_run_yet(c, s, a, b):
    """What submit() returns to an asynchronous client says how it becomes a run."""
    starting = submit(dag_of(Function(1, [], int)))
    with pytest.raises(TypeError, match="write `async with`"), starting:
        pass
    with pytest.raises(AttributeError, match=r"write `run = await ...`, then run\.counts"):
        starting.counts()
    with pytest.raises(AttributeError, match=r"has no 'speed'$"):
        starting.speed  # noqa: B018
    await (await starting)


@on_cluster()
async def test_leaving_a_block_by_an_error(c, s, a, b):
    """The run is cancelled, also where the error is that the task itself was cancelled."""
    with pytest.raises(ZeroDivisionError):
        async with submit(dag_of(*HELD)) as run:
            await (await Event("started")).wait()
            1 / 0  # noqa: B018
    with pytest.raises(RunCancelledError):
        await run

    async def enter():
        async with submit(dag_of(*HELD)):
            entered.set()
            await asyncio.Event().wait()

    entered = asyncio.Event()
    task = asyncio.create_task(enter())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await Event("go").set()
    del run, task
    await assert_clean(s, a, b)


@on_cluster()
async def test_a_block_whose_run_fails(c, s, a, b):
    """Leaving it raises the error of the run, unless the block cancelled it."""
    with pytest.raises(FunctionFailedError, match="always"):
        async with submit(dag_of(Function(1, [], note_and_fail)), max_retries=0):
            pass
    async with submit(dag_of(*HELD)) as run:
        await run.cancel()
    await Event("go").set()


def test_with_a_synchronous_client():
    """The same by `with`; and what only an asynchronous client can do is a clear error."""
    dag = dag_of(Function(1, [], int))
    with submit(dag) as run:
        assert run.result()[1] == 0
    with pytest.raises(FunctionFailedError), submit(dag_of(Function(1, [], note_and_fail))):
        pass
    with pytest.raises(ZeroDivisionError), submit(dag_of(Function(1, [], int))) as run:
        1 / 0  # noqa: B018
    with pytest.raises(TypeError, match=r"synchronous: call run.result\(\)"):
        run.__await__()

    async def enter():
        async with run:
            pass

    with pytest.raises(TypeError, match="use `with`"):
        asyncio.run(enter())


@on_cluster()
async def test_attempts(c, s, a, b):
    """The attempts that have ended, while the run goes on."""
    dag = dag_of(Function("bad", [], note_and_fail), Function("held", [], hold))
    run = await submit(dag, max_retries=1, on_error="continue")
    while (await run.counts())["failed"] != 1:
        await asyncio.sleep(0.01)
    attempts = await run.attempts
    assert [attempt.outcome for attempt in attempts["bad"]] == ["error", "error"]
    assert attempts == (await run.status())["attempts"]
    await Event("go").set()
    assert (await run.attempts).keys() == {"bad"} or (await run).attempts.keys() == {"bad", "held"}


@on_cluster()
async def test_progress_is_deprecated(c, s, a, b):
    """progress() is counts(), with a warning at the user's line."""
    run = await submit(dag_of(Function(1, [], int)))
    await run
    with pytest.warns(DeprecationWarning, match=r"run\.counts\(\)") as caught:
        assert await run.progress() == await run.counts()
    assert caught[0].filename == __file__
