"""A held function stays held: other statements about where and when a task runs are ignored."""

from __future__ import annotations

import asyncio
import logging
import warnings

import dask
import pytest
from dask import get_annotations
from distributed import Event, SchedulerPlugin, Status, Worker, span
from distributed.utils_test import captured_logger

from handoff_dask import Function, HandoffError, execute, submit
from handoff_dask.client import annotating
from tests.gate import DEPTH, RUNNING, hold, on_cluster, track, until
from tests.support import assert_clean, dag_of, where

WHOLE = {"cpu": 4}


@pytest.fixture(autouse=True)
def nothing_seen():
    for seen in (DEPTH, RUNNING):
        seen.clear()


def one_at_a_time(a, n=8):
    """Return functions that only one worker can run, one at a time."""
    return [Function(i, [], track, extra_args=[i], cost=WHOLE, node=a.address) for i in range(n)]


#: What the worker that functions are not pinned to is called, in gen_cluster.
OTHER = "1"
ANNOTATIONS = {
    "workers": [OTHER],
    "allow_other_workers": True,
    "resources": {"cpu": 0.5},
    "retries": 5,
    "priority": 10,
    "restrictions": [OTHER],
    "loose_restrictions": True,
    "executor": "offload",
}


@pytest.mark.parametrize("as_callable", [False, True])
@on_cluster()
async def test_annotations_around_a_submission(c, s, a, b, as_callable):
    """One warning names the annotation, and the run is the same as without it."""
    for name, value in ANNOTATIONS.items():
        annotation = {name: (lambda key, value=value: value) if as_callable else value}
        dag = dag_of(*one_at_a_time(a, 6))
        with dask.annotate(**annotation), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = await execute(dag, max_retries=0)
        (warning,) = caught
        assert warning.category is UserWarning and warning.filename == __file__
        assert repr(name) in str(warning.message)
        assert set(DEPTH) == {1}, name
        assert set(result.allocations.values()) == {a.address}
        assert {len(tried) for tried in result.attempts.values()} == {1}
    await assert_clean(s, a, b)


@on_cluster()
async def test_nested_annotations(c, s, a, b):
    """One warning names all ignored annotations; those that do not affect placement apply."""
    notes = []

    class Notes(SchedulerPlugin):
        def update_graph(self, scheduler, *, annotations, **kwargs):
            notes.append({name: set(map(str, v.values())) for name, v in annotations.items()})

    await execute(dag_of(Function(0, [], where)))
    s.plugins["notes"] = Notes()
    with dask.annotate(allow_other_workers=True, owner="me"), span("mine"):
        with dask.annotate(workers=[b.address]):
            with pytest.warns(UserWarning, match="allow_other_workers.*node.*workers.*node"):
                run = submit(dag_of(*one_at_a_time(a, 2)))
            await (await run).result()
        future = c.submit(where, pure=False)
        await future
    del s.plugins["notes"]
    ours, plain = (note for note in notes if "owner" in note)
    assert ours["owner"] == {"me"} and "span" in ours
    assert not {"workers", "allow_other_workers"} & ours.keys()
    # What is submitted beside it, in the same context, has them all.
    assert plain["allow_other_workers"] == {"True"}
    del run, future


@on_cluster()
async def test_no_warning_without_annotations(c, s, a, b):
    """A span, or the user's own annotation, causes no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with dask.annotate(owner="me"), span("mine"):
            assert (await execute(dag_of(Function(0, [], int)))).results == {0: 0}


def test_an_annotation_that_raises():
    """It is passed to Dask, which refuses the graph: a mistake is not ignored."""

    def known(key):
        return 1 / key

    with dask.annotate(priority=known, retries=2, owner="me"):
        assert annotating.without([1, 2], get_annotations) == {"owner": "me"}
        assert annotating.without([1, 0], get_annotations) == {"owner": "me", "priority": known}


def meddle_restrictions(s, ts, b):
    s.set_restrictions({ts.key: [b.address]})


def meddle_loose(s, ts, b):
    ts.loose_restrictions = True


def meddle_none(s, ts, b):
    ts.worker_restrictions = None


def meddle_host(s, ts, b):
    ts.host_restrictions = {"127.0.0.1"}


def meddle_resources(s, ts, b):
    ts.resource_restrictions = {"cpu": 0.5}


def meddle_annotations(s, ts, b):
    ts.loose_restrictions, ts.annotations, ts.retries = True, None, 9


MEDDLING = [
    meddle_restrictions,
    meddle_loose,
    meddle_none,
    meddle_host,
    meddle_resources,
    meddle_annotations,
]


def nothing(s, b):
    """Do nothing that makes Dask look again."""


def transition(s, b):
    """Make Dask look at all tasks that wait for a worker."""
    s.transitions({ts.key: "processing" for ts in s.unrunnable}, "meddling")


async def resume(s, b):
    """Pause and resume a worker: Dask looks for tasks that it may run."""
    for status in (Status.paused, Status.running):
        b.status = status
        await until(lambda status=status: s.workers[b.address].status is status)


async def join(s, b):
    """Add a worker: Dask looks for tasks that it may run."""
    async with Worker(s.address, nthreads=1, resources={"cpu": 1}):
        pass


@pytest.mark.parametrize("look", [nothing, transition, resume, join])
@on_cluster(config={"distributed.worker.memory.pause": False})
async def test_a_hand_on_the_scheduler(c, s, a, b, look, caplog):
    """Restrictions that others set on held tasks are undone, and logged once.

    No attempt is lost, and none made up.
    """
    go = await Event("go")
    blocker = Function("blocker", [], hold, cost=WHOLE, node=a.address)
    functions = one_at_a_time(a, len(MEDDLING))
    # And some that are not ready yet: Dask decides once their input is there.
    later = [
        Function(f"later {i}", ["blocker"], track, cost=WHOLE, node=a.address)
        for i in range(len(MEDDLING))
    ]
    run = await submit(dag_of(blocker, *functions, *later), max_retries=0)
    await (await Event("started-go")).wait()
    await until(lambda: sum(ts.state == "no-worker" for ts in s.tasks.values()) == 6)
    plugin = s.plugins["handoff"]
    with caplog.at_level(logging.WARNING, "handoff_dask"):
        meddled = [r for r in plugin.functions.values() if r.row.label != "'blocker'"]
        for record, meddle in zip(meddled, 2 * MEDDLING, strict=False):
            meddle(s, s.tasks[record.key], b)
        if asyncio.iscoroutinefunction(look):
            await look(s, b)
        else:
            look(s, b)
        assert await c.submit(int, workers=[b.address], allow_other_workers=False) == 0
        assert DEPTH == []
        await go.set()
        result = await run.result()
    assert set(DEPTH) == {1} and len(DEPTH) == 12
    assert set(result.allocations.values()) == {a.address}
    assert {len(tried) for tried in result.attempts.values()} == {1}
    said = [r for r in caplog.records if "is ignored" in r.getMessage()]
    assert len(said) == 1 and "'a dag'" in said[0].getMessage()
    del run
    await assert_clean(s, a, b)


class Unpicklable:
    def __reduce__(self):
        raise TypeError("not this one")


@on_cluster()
async def test_an_annotation_that_cannot_be_pickled(c, s, a, b):
    """It fails its run with an error that names it; everything else of the client continues."""
    other = c.submit(int, 7)
    with dask.annotate(theirs=Unpicklable()), pytest.raises(HandoffError, match=r"'theirs'.*this"):
        await execute(dag_of(Function(1, [], int)))
    assert await other == 7
    assert (await execute(dag_of(Function(1, [], int)))).results == {1: 0}


@pytest.mark.parametrize("value", ["theirs", 1, {"theirs": 1}])
@on_cluster()
async def test_plain_tasks_with_an_annotation_of_our_name(c, s, a, b, value):
    """They are plain tasks, and the scheduler logs no error."""
    await execute(dag_of(Function(1, [], int)))
    with dask.annotate(handoff=value), captured_logger("distributed.scheduler") as log:
        assert await c.submit(int, 7) == 7
    assert not log.getvalue()
