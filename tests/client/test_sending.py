"""Runs that are sent in portions."""

from __future__ import annotations

import asyncio
import contextlib
import operator
import threading

import numpy as np
import pytest
from distributed import Client, Event, LocalCluster

from handoff_dask import (
    DAG,
    Argument,
    Function,
    FunctionFailedError,
    InvalidFunctionError,
    RunCancelledError,
    execute,
    forget,
    get_result,
    get_run,
    submit,
)
from handoff_dask.client import sending, submission
from handoff_dask.client.sending import Sender
from handoff_dask.errors import HandoffError
from handoff_dask.wire.keys import is_shared
from tests.support import assert_clean, dag_of
from tests.unlike import RAN, note, on_cluster


@pytest.fixture(autouse=True)
def small_portions(monkeypatch):
    """Send four functions at a time."""
    RAN.clear()
    monkeypatch.setattr(sending, "PORTION", 4)


@pytest.fixture
def small_pieces(monkeypatch):
    """Pickle three functions at a time."""
    monkeypatch.setattr(submission, "PIECE", 3)
    monkeypatch.setattr(sending, "PIECE", 3)


class Gate(threading.Event):
    """Holds back portions once it is closed."""

    def __init__(self):
        super().__init__()
        self.set()

    close = threading.Event.clear


@pytest.fixture
def gate(monkeypatch):
    """Hold back all portions but the first of a run while this is closed."""
    opened = Gate()

    async def wait(self):
        while not opened.is_set():
            await asyncio.sleep(0.001)

    monkeypatch.setattr(Sender, "_learn", wait)
    yield opened
    opened.set()


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def is_wanted(scheduler, key):
    """Whether a client wants the result of a task."""
    return key in scheduler.tasks and bool(scheduler.tasks[key].who_wants)


async def until_counts(record, **counts):
    """Wait until so many functions of a run are in these states."""
    while any(record.counts[state] != number for state, number in counts.items()):
        await asyncio.sleep(0.001)


def record_of(scheduler):
    """Return the only run of the scheduler."""
    (record,) = scheduler.plugins["handoff"].runs.values()
    return record


def chain(length):
    """Return functions of which each increments the result of the one before it."""
    first = Function(0, [], int, extra_args=["0"])
    return [first, *(Function(i, [i - 1], operator.add, extra_args=[1]) for i in range(1, length))]


def noted(number, **fields):
    return [Function(i, [], note, extra_args=[i], **fields) for i in range(number)]


def size_of(array):
    return len(array)


async def learned(*functions):
    """Teach the cluster how long functions like these take."""
    await execute(dag_of(*functions, id="taught"))
    RAN.clear()


@on_cluster()
@pytest.mark.parametrize("results", ["all", "sinks"])
async def test_the_order_of_the_dag(c, s, a, b, results):
    """Results come in the order of the DAG, though portions follow the dependencies."""
    functions = chain(11)[::-1]
    run = await submit(dag_of(*functions, id="reversed"), results=results)
    result = await run.result()
    assert len(record_of(s).portions) == 3
    expected = {i: i for i in range(10, -1, -1)} if results == "all" else {10: 10}
    assert list(result.results.items()) == list(expected.items())
    assert {id_: len(attempts) for id_, attempts in result.attempts.items()} == dict.fromkeys(
        range(11), 1
    )
    del run
    await assert_clean(s, a, b)


def two_levels(number):
    dag = DAG()
    dag.map(operator.neg, dag.map(int, range(number)), id="level 2")
    return dag


def tree(leaves):
    dag = DAG()
    level = [dag.add(int, i) for i in range(leaves)]
    while len(level) > 1:
        level = [dag.add(operator.add, *level[i : i + 2]) for i in range(0, len(level), 2)]
    return dag


@pytest.mark.parametrize("dag", [two_levels(512), tree(512)], ids=["levels", "tree"])
@on_cluster()
async def test_a_dag_that_is_built_level_by_level(c, s, a, b, monkeypatch, dag):
    """Functions that need each other are sent together, so few tasks carry them."""
    monkeypatch.setattr(submission, "SMALL", 100)
    monkeypatch.setattr(sending, "PORTION", 500)
    durations = dict.fromkeys(dag.functions, 0.0001)
    result = await execute(dag, results="sinks", durations=durations)
    assert result.tasks < len(dag) / 5
    assert sum(result.results.values()) in (sum(range(512)), -sum(range(512)))


@on_cluster()
async def test_transforms(c, s, a, b):
    """Serializers, deserializers, and the functions that they are for may be in any portion."""

    def increment(value, source, target):
        return value + 1

    consumers = [
        Function(("use", i), [Argument("source", increment, increment)], lambda value: value)
        for i in range(5)
    ]
    result = await execute(dag_of(*consumers, Function("source", [], int, extra_args=["7"])))
    assert result.results == {**{("use", i): 9 for i in range(5)}, "source": 7}
    await assert_clean(s, a, b)


@on_cluster()
@pytest.mark.parametrize("bundle", [None, False])
async def test_values_for_later_portions(c, s, a, b, gate, bundle):
    """What a later portion needs is kept until all have come, and computed once."""
    if bundle is None:
        await learned(*noted(20))
    gate.close()
    functions = noted(12)
    functions += [Function(("later", i), [i, 0], operator.add) for i in range(12)]
    run = await submit(dag_of(*functions, id="lent"), results="sinks", bundle=bundle)
    await until(lambda: len(RAN) == 4)
    # All that was sent is done, and nobody but the rest of the run wants it.
    record = record_of(s)
    await until_counts(record, done=4)
    await c.submit(int, key="a round trip", workers=a.address)
    gate.set()
    result = await run.result()
    assert len(record.portions) == 6
    assert result.results == {("later", i): 2 for i in range(12)}
    assert sorted(RAN) == [(i,) for i in range(12)]
    # The message that releases them travels apart from the answer that the result waits for.
    keys = list(map(record.key_of, range(12)))
    await until(lambda: not any(is_wanted(s, key) for key in keys))
    del run, record
    await assert_clean(s, a, b)


@on_cluster()
async def test_large_data_of_several_portions(c, s, a, b, gate):
    """An array that functions of several portions share is sent once, and kept for all of them."""
    gate.close()
    array = np.arange(100_000.0)
    functions = [Function("first", [], size_of, extra_args=[array]), *noted(6)]
    functions += [Function(("later", i), [], size_of, extra_args=[array]) for i in range(8)]
    run = await submit(dag_of(*functions))
    record = record_of(s)
    await until_counts(record, done=4)
    await c.submit(int, key="a round trip", workers=a.address)
    shared = [key for key in s.tasks if key != "a round trip" and is_shared(key)]
    assert len(shared) == 1
    started = s.tasks[shared[0]]
    gate.set()
    result = await run.result()
    assert {result.results["later", i] for i in range(8)} == {100_000}
    assert s.tasks[shared[0]] is started
    while started.state != "released":
        await asyncio.sleep(0.001)
    del run, record, started
    await assert_clean(s, a, b)


@on_cluster()
@pytest.mark.parametrize("fields", [{"extra_args": [threading.Lock()]}, {"code": threading.Lock}])
async def test_a_later_function_that_cannot_be_pickled(c, s, a, b, small_pieces, fields):
    """It fails, and what depends on it does not run; all others do."""
    if "code" in fields:
        lock = threading.Lock()
        fields = {"code": lambda: lock}
    functions = noted(12)
    functions[10] = Function("bad", [], **{"code": note, **fields})
    functions += [Function("after", ["bad"], note), Function("other", [0], int)]
    result = await execute(dag_of(*functions), on_error="continue")
    assert result.results == {**dict.fromkeys((*range(10), 11), 1), "other": 1}
    assert set(result.errors) == {"bad", "after"}
    error = result.errors["bad"]
    assert type(error) is FunctionFailedError
    assert isinstance(error.__cause__, InvalidFunctionError)
    assert error.__cause__.function_id == "bad" and "pickle" in str(error)
    assert error.__cause__.field == ("code" if "code" in fields else "extra_args")
    with pytest.raises(FunctionFailedError, match=r"'bad'.*cannot be pickled"):
        await execute(dag_of(*functions))
    await assert_clean(s, a, b)


@on_cluster()
async def test_a_first_function_that_cannot_be_pickled(c, s, a, b, small_pieces):
    """The submission raises, and nothing runs."""
    functions = noted(12)
    functions[2] = Function("bad", [], note, extra_args=[threading.Lock()])
    with pytest.raises(InvalidFunctionError, match="'bad'"):
        await submit(dag_of(*functions), on_error="continue")
    assert not RAN and not s.tasks


@on_cluster()
async def test_a_future_of_another_client(c, s, a, b, small_pieces):
    """It is refused before anything is sent, wherever in the DAG it is."""
    async with Client(s.address, asynchronous=True, set_as_default=False) as other:
        future = other.submit(int, 1)
        last = Function("last", [], note, extra_args=[future])
        with pytest.raises(InvalidFunctionError, match=r"'last'.*of another client"):
            await submit(dag_of(*noted(12), last))
        assert not RAN
        del future, last


@on_cluster()
@pytest.mark.parametrize("bundle", [None, False])
async def test_a_future_before_its_function_was_sent(c, s, a, b, gate, monkeypatch, bundle):
    """`run.futures` has the futures of all functions at once."""
    monkeypatch.setattr(sending, "PORTION", 60)
    gate.close()
    durations = dict.fromkeys(range(120), 0.001)
    run = await submit(dag_of(*noted(120)), bundle=bundle, durations=durations)
    future = run.futures[119]
    assert future.status == "pending"
    gate.set()
    assert await future == 1
    assert bool(record_of(s).bundles) == (bundle is None)
    assert run.futures[119].key == future.key
    assert (await run.result()).results == dict.fromkeys(range(120), 1)
    assert sorted(RAN) == [(i,) for i in range(120)]
    del run, future
    await assert_clean(s, a, b)


@on_cluster()
@pytest.mark.parametrize("bundle", [None, False])
async def test_a_run_with_a_future_before_its_function_was_sent(
    c, s, a, b, gate, monkeypatch, bundle
):
    """The run begins once the cluster knows that function."""
    monkeypatch.setattr(sending, "PORTION", 60)
    gate.close()
    durations = dict.fromkeys(range(120), 0.001)
    run = await submit(dag_of(*noted(120), id="first"), bundle=bundle, durations=durations)
    user = Function("use", [], operator.neg, extra_args=[run.futures[119]])
    await until(lambda: record_of(s).asked)
    using = asyncio.create_task(execute(dag_of(user, id="second")))
    for _ in range(20):  # more round trips than it takes to send a run
        await c.scheduler.identity()
    gate.set()
    assert (await using).results == {"use": -1}
    await run
    del run, user, using
    await assert_clean(s, a, b)


@on_cluster()
async def test_a_future_that_the_cluster_has_lost(c, s, a, b):
    """The run ends and says so, and the scheduler keeps nothing of it."""
    future = c.submit(int, 7)
    await future
    s.client_releases_keys([future.key], c.id)
    with pytest.raises(RunCancelledError, match="before they had arrived"):
        await execute(dag_of(Function("use", [], operator.neg, extra_args=[future])))
    await assert_clean(s, a, b)


@on_cluster()
@pytest.mark.parametrize("bundle", [None, False])
async def test_cancel_a_future_before_its_function_was_sent(c, s, a, b, gate, monkeypatch, bundle):
    """It has the effect that it would have had later: the function does not run."""
    monkeypatch.setattr(sending, "PORTION", 60)
    gate.close()
    durations = dict.fromkeys(range(120), 0.001)
    run = await submit(dag_of(*noted(120)), bundle=bundle, durations=durations)
    await c.cancel([run.futures[119]])
    await until(lambda: record_of(s).asked)
    gate.set()
    if bundle is None:
        result = await run
        assert set(result.results) == set(range(119))
        assert isinstance(result.errors[119], RunCancelledError)
    else:
        with pytest.raises(RunCancelledError, match="119"):
            await run
    assert (119,) not in RAN
    result = None
    del run
    await assert_clean(s, a, b)


@on_cluster()
@pytest.mark.parametrize("bundle", [None, False])
async def test_detached_runs(c, s, a, b, monkeypatch, bundle):
    """Other clients get the run of all portions, in the order of the DAG."""
    monkeypatch.setattr(sending, "PORTION", 60)
    functions = [*noted(150)[::-1], Function("last", [149, 0], operator.add)]
    dag, durations = dag_of(*functions, id="kept"), dict.fromkeys(range(150), 0.001)
    run = await submit(dag, detach=True, bundle=bundle, durations=durations)
    await run.result()
    record = record_of(s)
    assert len(record.portions) == 3 and bool(record.bundles) == (bundle is None)
    async with Client(s.address, asynchronous=True, set_as_default=False) as other:
        assert await get_result("kept", "last", client=other) == 2
        assert await get_result("kept", 75, client=other) == 1
        result = await (await get_run("kept", client=other)).result()
    assert list(result.results) == [*range(149, -1, -1), "last"]
    assert result.results["last"] == 2
    assert all(len(attempts) == 1 for attempts in result.attempts.values())
    assert len(RAN) == 150
    await forget("kept")
    del run, record
    await assert_clean(s, a, b)


@on_cluster()
@pytest.mark.parametrize("detach", [True, False])
async def test_a_submitter_that_dies(c, s, a, b, gate, detach):
    """The run ends; what a detached run has done stays readable until it is forgotten."""
    gate.close()
    functions = [*noted(4), *(Function(("later", i), [i % 4], note) for i in range(8))]
    other = await Client(s.address, asynchronous=True, set_as_default=False)
    dag = dag_of(*functions, id="orphan")
    submitting = asyncio.create_task(submit(dag, client=other, detach=detach).__aenter__())
    await until(lambda: len(RAN) == 4)
    record = record_of(s)
    await until_counts(record, done=4)
    await other.close()
    await until_counts(record, cancelled=8)
    assert record.stop.kind == "abandoned"
    gate.set()
    with contextlib.suppress(BaseException):
        await submitting
    if detach:
        assert [await get_result("orphan", i) for i in range(4)] == [1] * 4
        with pytest.raises(HandoffError):
            await get_result("orphan", ("later", 7))
        run = await get_run("orphan")
        with pytest.raises(RunCancelledError, match="client went away"):
            await run.result()
        assert (await run.counts())["done"] == 4
        await forget("orphan")
        del run
    assert len(RAN) == 4
    del record, submitting
    await assert_clean(s, a, b)


@on_cluster()
async def test_submit_returns_while_durations_are_learned(c, s, a, b, monkeypatch):
    """The rest is pickled, but it is sent when the first functions have ended."""
    monkeypatch.setattr(sending, "PORTION", 1000)
    monkeypatch.setattr(sending, "SAMPLE", 20)

    def wait():
        Event("go").wait()

    run = await submit(dag_of(*(Function(i, [], wait) for i in range(60))))
    record = record_of(s)
    await until_counts(record, running=4)
    counts = await run.counts()
    assert sum(counts.values()) == 60 and counts["done"] == 0
    assert len(record.portions) == 1 and len(record.records) == 20
    await (await Event("go")).set()
    result = await run.result()
    assert len(result.results) == 60
    assert len(record.portions) > 1
    del run, record
    await assert_clean(s, a, b)


@on_cluster()
async def test_cancel_while_portions_are_unsent(c, s, a, b, gate):
    """They are never sent, and their functions count as cancelled."""
    gate.close()
    run = await submit(dag_of(*noted(12)))
    record = record_of(s)
    await until(lambda: len(RAN) == 4)
    await run.cancel()
    gate.set()
    with pytest.raises(RunCancelledError):
        await run.result()
    counts = await run.counts()
    assert counts["cancelled"] >= 8 and sum(counts.values()) == 12
    assert len(RAN) == 4 and len(record.portions) == 1
    del run, record
    await assert_clean(s, a, b)


@on_cluster()
async def test_a_failure_stops_the_sending(c, s, a, b, gate):
    """The run ends with the first failure, though not all was sent."""
    gate.close()

    def fail():
        raise LookupError("no such thing")

    first = Function("bad", [], fail, max_retries=0)
    with pytest.raises(FunctionFailedError, match=r"'bad'.*no such thing") as caught:
        await execute(dag_of(first, *noted(12)))
    assert set(caught.value.partial.results) <= set(range(3))
    gate.set()
    await assert_clean(s, a, b)
    assert len(RAN) <= 3


@on_cluster()
async def test_a_failure_that_does_not_stop_it(c, s, a, b):
    """With `on_error="continue"`, later portions come, and depend on what failed."""

    def fail():
        raise LookupError("no such thing")

    first = Function("bad", [], fail, max_retries=0)
    after = [Function(("after", i), ["bad"], note) for i in range(6)]
    result = await execute(dag_of(first, *noted(6), *after), on_error="continue")
    assert result.results == dict.fromkeys(range(6), 1)
    assert set(result.errors) == {"bad", *(("after", i) for i in range(6))}
    await assert_clean(s, a, b)


def test_with_a_synchronous_client(small_pieces):
    """The same from another thread than the client's loop."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address="localhost:0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        result = execute(dag_of(*chain(20)), client=client)
    assert result.results == {i: i for i in range(20)}
