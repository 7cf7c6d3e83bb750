"""What `on_event` hears of a run."""

from __future__ import annotations

import asyncio
import pickle
import time

import pytest
from distributed import Client, Event, LocalCluster
from distributed.utils_test import gen_cluster

from handoff_dask import (
    Argument,
    Attempt,
    AttemptEnded,
    Function,
    FunctionEnded,
    FunctionPlaced,
    RunClosed,
    RunOpened,
    RunStopped,
    execute,
    forget,
    submit,
)
from handoff_dask.wire.run_events import topic
from tests.support import assert_clean, dag_of

ATTEMPT = Attempt(1, "tcp://a", "a", "host", 1.0, 2.0)


def hold(*args):
    Event("go").wait()


def with_transform(**options):
    """A DAG of two functions, by index 0 and 1, and of a transform."""
    return dag_of(
        Function(("first", 1), [], hold),
        Function("second", [Argument(("first", 1), id_of)], str),
        **options,
    )


def id_of(value, *_):
    return value


async def sent(s, events, run_id=None):
    """Publish events of the only run as the scheduler does."""
    (run_id,) = s.plugins["handoff"].runs
    s.log_event(topic(run_id), pickle.dumps([event._replace(run_id=run_id) for event in events]))
    return run_id


async def heard(events, kind):
    while not any(isinstance(event, kind) for event in events):
        await asyncio.sleep(0.01)


@gen_cluster(client=True)
async def test_events_in_the_users_terms(c, s, a, b):
    """They come in order, with the ids of functions and DAG as given, without transforms."""
    events = []
    run = await submit(with_transform(id=("dag", 1)), on_event=events.append)
    run_id = await sent(
        s,
        [
            RunOpened("", "('dag', 1)", 1.0),
            FunctionPlaced("", 2.0, 0, 1, "tcp://a", False),
            FunctionPlaced("", 2.5, 2, 1, "tcp://a", False),
            AttemptEnded("", 3.0, 0, ATTEMPT),
            FunctionEnded("", 4.0, 1, "failed", "because"),
            RunStopped("", 5.0, "failed", "because"),
        ],
    )
    await heard(events, RunStopped)
    ours = [event for event in events if event.at < 10]
    assert ours == [
        RunOpened(run_id, ("dag", 1), 1.0),
        FunctionPlaced(run_id, 2.0, ("first", 1), 1, "tcp://a", False),
        AttemptEnded(run_id, 3.0, ("first", 1), ATTEMPT),
        FunctionEnded(run_id, 4.0, "second", "failed", "because"),
        RunStopped(run_id, 5.0, "failed", "because"),
    ]
    await Event("go").set()
    await run.result()


@gen_cluster(client=True)
async def test_nothing_comes_after_the_end(c, s, a, b):
    """Once the run is closed, the client no longer listens, and keeps nothing of it."""
    events = []
    run = await submit(with_transform(), on_event=events.append)
    run_id = await sent(s, [RunClosed("", 1.0)])
    await heard(events, RunClosed)
    s.log_event(topic(run_id), pickle.dumps([RunClosed(run_id, 2.0)]))
    await Event("go").set()
    await run.result()
    assert topic(run_id) not in c._event_handlers
    assert [event.at for event in events if event.at < 10] == [1.0]


@gen_cluster(client=True)
async def test_a_callable_that_fails(c, s, a, b, caplog):
    """Its error is logged once, with its name, and neither later events nor the run suffer."""
    calls = []

    def broken_listener(event):
        calls.append(event)
        raise LookupError("no such thing")

    run = await submit(with_transform(), on_event=broken_listener)
    await sent(s, [RunOpened("", "", 1.0), RunStopped("", 2.0, "failed", "")])
    await heard(calls, RunStopped)
    await Event("go").set()
    assert (await run.result()).results["second"] == "None"
    records = [r for r in caplog.records if r.name == "handoff_dask.client.listening"]
    assert len(records) == 1 and "broken_listener" in records[0].getMessage()
    assert "no such thing" in caplog.text


@gen_cluster(client=True)
async def test_only_the_submitter_of_a_detached_run_hears(c, s, a, b):
    """It hears of the run though it dropped it; the run goes on when its client is closed."""
    events = []
    async with Client(s.address, asynchronous=True) as other:
        await submit(with_transform(), client=other, detach=True, on_event=events.append)
        run_id = await sent(s, [RunOpened("", "", 1.0)])
        await heard(events, RunOpened)
        assert topic(run_id) not in c._event_handlers
    await Event("go").set()
    await forget("a dag")
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_a_run_that_never_begins(c, s, a, b):
    """Nobody hears of a run that the scheduler refuses, also if something is on its way still."""
    events = []
    impossible = dag_of(Function("f", [], int, cost={"gpu": 1}))
    with pytest.raises(Exception, match="gpu"):
        await execute(impossible, on_event=events.append)
    (name,) = (name for name in c._event_handlers if name.startswith("handoff-events"))
    s.log_event(name, pickle.dumps([RunClosed("", 1.0)]))
    s.subscribe_topic(name, c.id)
    s.log_event(name, pickle.dumps([RunClosed("", 2.0)]))
    await execute(dag_of(Function("f", [], int)))
    assert [event for event in events if event.at < 10] == []


def test_on_a_plain_thread():
    """With a synchronous client, the callable is called on the client's event loop."""
    events = []
    with (
        LocalCluster(
            n_workers=1, processes=False, threads_per_worker=2, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        run = submit(with_transform(), client=client, on_event=events.append)
        client.sync(sent, cluster.scheduler, [RunOpened("", "", 1.0)])
        deadline = time.monotonic() + 60
        while not events and time.monotonic() < deadline:
            time.sleep(0.01)
        assert events[0].dag_id == "a dag"
        Event("go").set()
        assert run.result().results["second"] == "None"


async def coroutine_function(event):
    pass


@pytest.mark.parametrize("on_event", [1, "print", coroutine_function])
def test_what_cannot_be_called(on_event):
    """The error names the argument, before anything is sent."""
    with pytest.raises(ValueError, match=r"on_event must .*"):
        submit(dag_of(), on_event=on_event)
