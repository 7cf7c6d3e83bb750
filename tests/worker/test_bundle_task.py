"""The task that runs the functions of a bundle."""

from __future__ import annotations

import asyncio
import operator
import os
import pickle
import signal
import threading
import time
import weakref
from contextvars import ContextVar
from types import SimpleNamespace

import cloudpickle
import dask
import pytest
from distributed import Event, Nanny, Reschedule, secede
from distributed.utils_test import gen_cluster

from handoff_dask import discover_nodes
from handoff_dask.compat import worker as compat
from handoff_dask.model.expansion import Call
from handoff_dask.wire.bundles import MEMBERS, EndedColumns, Member, MemberFailure, packed
from handoff_dask.worker import bundle_task
from handoff_dask.worker.bundle_task import run_bundle, take
from handoff_dask.worker.current import current
from handoff_dask.worker.starts import Starts

#: The number of the placement in tests without a worker.
NUMBER = 7


def member(code, *args, sources=(), keep=True, retries=0):
    """Return what makes a member: its code gets the values of its sources, then `args`."""
    call = Call(code, tuple(range(len(sources))), args, {})
    return lambda position: Member(
        100 + position,
        (),
        sources,
        retries,
        keep,
        cloudpickle.dumps(((position, "a dag"), *call)),
    )


def bundle(*members):
    """Return members as they travel; their nodes are numbered from 100."""
    return packed([make(position) for position, make in enumerate(members)])


class Reports:
    """What was reported, from all messages."""

    def __init__(self):
        self.messages = []

    def __call__(self, op, message):
        assert op == MEMBERS
        self.messages.append(message)

    @property
    def ended(self):
        return [position for m in self.messages for position, *_ in EndedColumns.unpack(m["ended"])]

    @property
    def failures(self):
        return [MemberFailure(*failure) for m in self.messages for failure in m["failures"]]


@pytest.fixture
def task(monkeypatch):
    """Stands in for the task of a worker."""
    task = SimpleNamespace(
        key="a bundle",
        run_id=NUMBER,
        facts={"handoff": {"cost": {"cpu": 2}}},
        mark=lambda **mark: task.facts["handoff"].update(mark),
        starts=Starts(8),
        closing=False,
        undisturbed=True,
        plugin=None,
        send=Reports(),
        later=lambda delay, call: None,
    )
    monkeypatch.setattr(compat, "this_task", lambda: task)
    return task


#: What the functions of a test noted, in this process.
NOTES = []


@pytest.fixture(autouse=True)
def _no_notes():
    NOTES.clear()


def note(*values):
    NOTES.append(values)


def fail(*_):
    raise ValueError("no")


class Value:
    """Something that can neither be pickled nor live on unnoticed."""

    def __init__(self):
        NOTES.append(weakref.ref(self))

    def __reduce__(self):
        raise TypeError("never pickled")


def make_value(*_):
    return Value()


def alive(*_):
    """Return which of the values that were made still exist."""
    return [reference() is not None for reference in NOTES]


# Values


def test_values_go_from_call_to_call(task):
    """Members get the inputs of the bundle and the values of others, which are not pickled."""
    members = bundle(
        member(make_value),
        member(lambda *args: args, "last", sources=(-1, 1, -1)),
        member(operator.add, 1, sources=(0,)),
    )
    values = run_bundle(members, ("a name",), b"its content", 10, "input")
    first, text, again, last = values[101]
    assert first is again is values[100]
    assert (text, last, values[102]) == ("input", "last", 11)
    assert task.send.ended == [0, 1, 2]


def test_values_are_dropped(task):
    """A value that does not outlive the bundle is dropped when the last member has used it."""
    members = bundle(
        member(make_value, keep=False),
        member(make_value, keep=True),
        member(make_value, keep=False),  # nobody uses it
        member(alive),
        member(type, sources=(-1,)),
        member(alive),
    )
    values = run_bundle(members, ())
    assert values.keys() == {101, 103, 104, 105}
    assert values[103] == [True, True, False]
    assert values[105] == [False, True, False]


def test_what_is_kept_this_time(task):
    """The scheduler may ask for other values than the members say."""
    task.mark(keep=[1])
    values = run_bundle(bundle(member(int, 1), member(int, 2, keep=False), member(int, 3)), ())
    assert dict(values) == {101: 2}


def test_some_positions(task):
    """Only the members that are asked for run; one whose source is not among them cannot."""
    task.mark(positions=[1, 3, 4])
    members = bundle(
        *(member(int, i) for i in range(4)), member(abs, sources=(-1,)), member(int, 5)
    )
    assert dict(run_bundle(members, ())) == {101: 1, 103: 3}
    assert task.send.ended == [1, 3]


# Failures


def fail_twice(*_):
    NOTES.append(current().attempt)
    if len(NOTES) < 3:
        raise ValueError("not yet")
    return "at last"


def test_retries_in_place(task, caplog):
    """A failed member is retried at once; each attempt is reported and logged in one line."""
    task.mark(attempts={1: (1, 1)})
    members = bundle(member(int), member(fail_twice, retries=3), member(int))
    values = run_bundle(members, ())
    assert values[101] == "at last" and not values.errors
    assert NOTES == [2, 3, 4]
    for failure in task.send.failures:
        assert (failure.position, failure.error_type, failure.message) == (
            1,
            "ValueError",
            "not yet",
        )
        assert failure.started <= failure.stopped
        assert not failure.final and failure.exception is None
    assert len(task.send.failures) == 2
    assert task.send.ended == [0, 1, 2]
    lines = [record.getMessage() for record in caplog.records]
    head = "Function 1 of DAG 'a dag': attempt"
    assert lines == [
        f"{head} 2 of 4 failed: ValueError: not yet; it will be retried",
        f"{head} 3 of 4 failed: ValueError: not yet; it will be retried",
    ]


def test_attempts_that_do_not_count(task):
    """A member has all its retries, however often its results were lost."""
    task.mark(attempts={0: (5, 0)})
    values = run_bundle(bundle(member(fail_twice, retries=2)), ())
    assert values[100] == "at last"
    assert NOTES == [6, 7, 8]


def test_a_failure_for_good(task):
    """Members that depend on it do not run, however far away; the others do."""
    task.mark(attempts={0: (1, 1)})
    members = bundle(
        member(fail, retries=2),
        member(note, sources=(-1,)),
        member(note, sources=(-2, -4)),
        member(int, 3),
        member(int, 4, sources=(), keep=False),
    )
    values = run_bundle(members, ())
    assert dict(values) == {103: 3}
    assert NOTES == []
    assert [failure.final for failure in task.send.failures] == [False, True]
    assert task.send.ended == [3, 4]
    # Those that depend on it have its error.
    assert values.errors == dict.fromkeys((100, 101, 102), task.send.failures[-1].exception)
    error = pickle.loads(values.errors[100])
    assert type(error) is ValueError and error.args == ("no",)
    with pytest.raises(Exception, match="no") as caught:
        take(100, values)
    assert type(pickle.loads(pickle.dumps(caught.value))) is ValueError
    assert take(103, values) == 3


def test_a_failure_needs_nothing_any_more(task):
    """What only a failed member and those after it needed is dropped."""
    members = bundle(
        member(make_value, keep=False),
        member(fail, sources=(-1,)),
        member(note, sources=(-1, -2)),
        member(alive),
    )
    assert run_bundle(members, ())[103] == [False]


def end(kind):
    raise kind


@pytest.mark.parametrize(
    "ending", [SystemExit(3), KeyboardInterrupt(), Reschedule(), asyncio.CancelledError()]
)
def test_a_member_cannot_end_its_worker(task, ending):
    """sys.exit() in a member is its failure, and so are exceptions that Dask treats specially."""
    values = run_bundle(bundle(member(end, ending), member(int, 2)), ())
    assert dict(values) == {101: 2}
    (failure,) = task.send.failures
    assert failure.error_type == type(ending).__name__


def test_code_that_cannot_be_opened(task):
    """A worker that lacks the module of one member runs the others."""
    lacking = Member(100, (), (), 0, True, b"cno_such_module\nno_such_name\n.")
    values = run_bundle(packed([lacking, member(int, 2)(1)]), ())
    assert dict(values) == {101: 2}
    assert task.send.failures[0].error_type == "ModuleNotFoundError"


# Each start is a start of its own

SETTING: ContextVar[int] = ContextVar("setting", default=0)


def set_and_fail():
    before = SETTING.get()
    SETTING.set(1)
    NOTES.append(before)
    raise ValueError("no")


def append_setting(items):
    items.append(SETTING.get())
    return items


def test_starts_share_nothing(task):
    """Each start gets its own arguments, and a context in which nobody set anything."""
    items = []
    members = bundle(
        member(set_and_fail, retries=1),
        member(append_setting, items),
        member(append_setting, items),
    )
    values = run_bundle(members, ())
    assert NOTES == [0, 0]
    assert values[101] == values[102] == [0]
    assert SETTING.get() == 0


def test_current(task):
    """current() tells which member runs, its attempt, and what it claims."""
    task.mark(attempts={1: (2, 0)})
    values = run_bundle(bundle(member(current), member(current)), ())
    for position, attempt in ((0, 1), (1, 3)):
        me = values[100 + position]
        assert (me.id, me.dag_id, me.attempt) == (position, "a dag", attempt)
        assert me.cost == {"cpu": 2}
    assert current() is None


# Reports


def test_reports_at_intervals(task, monkeypatch):
    """What succeeded is reported when some time has passed, and at the end."""
    members = bundle(*(member(int) for _ in range(5)))
    monkeypatch.setattr(bundle_task, "REPORT", 3600)
    run_bundle(members, ())
    assert len(task.send.messages) == 1
    monkeypatch.setattr(bundle_task, "REPORT", -1)
    run_bundle(members, ())
    assert len(task.send.messages) == 1 + 5
    assert task.send.ended == [*range(5), *range(5)]


def test_a_failure_is_reported_at_once(task, monkeypatch):
    """A failure does not wait, and what had ended before it goes along."""
    monkeypatch.setattr(bundle_task, "REPORT", 3600)
    run_bundle(bundle(member(int), member(fail), member(int)), ())
    first, last = task.send.messages
    assert [position for position, *_ in EndedColumns.unpack(first["ended"])] == [0]
    assert len(first["failures"]) == 1 and not last["failures"]


# Giving back


def test_a_bundle_that_takes_too_long_gives_the_rest_back(task):
    """It ends after the member that ran when its time was up; what the rest needs is returned."""
    task.mark(patience=0)
    members = bundle(member(make_value, keep=False), member(int, 1, sources=(-1,)), member(int, 2))
    values = run_bundle(members, ())
    assert values.keys() == {100}
    assert task.send.ended == [0]
    task.mark(patience=3600)
    assert run_bundle(bundle(*(member(int, i) for i in range(3))), ()).keys() == {100, 101, 102}


def test_no_retry_in_a_bundle_that_gives_the_rest_back(task):
    """A member that failed when the time was up is given back, too: it may block others again."""
    task.mark(patience=0)
    assert not run_bundle(bundle(member(fail, retries=3), member(int)), ()).errors
    (failure,) = task.send.failures
    assert not failure.final


def test_a_disturbed_bundle_gives_the_rest_back(task):
    """It starts nothing more when its task was cancelled, or gave up its thread."""
    task.undisturbed = False
    values = run_bundle(bundle(member(int, 0), member(int, 1)), ())
    assert dict(values) == {100: 0}


def test_withdrawn_before_it_starts(task):
    """Dask gets told to forget the task, and nothing is reported."""
    task.starts.withdraw([NUMBER])
    with pytest.raises(compat.NotStarted):
        run_bundle(bundle(member(note), member(note, sources=(-1,))), ())
    assert NOTES == [] and task.send.messages == []


def test_a_closing_worker_starts_nothing(task):
    """A worker that has said what it started starts no bundle, and no member of one."""
    task.starts.seal()
    with pytest.raises(compat.NotStarted):
        run_bundle(bundle(member(note)), ())
    task.starts, task.closing = None, True
    with pytest.raises(compat.NotStarted):
        run_bundle(bundle(member(note)), ())
    assert NOTES == []


def test_a_withdrawn_member(task):
    """It is skipped, and what depends on it; their neighbours run, and what they need is kept."""
    task.starts.withdraw_member(NUMBER, 1)
    members = bundle(
        member(int, 5, keep=False),
        member(note, sources=(-1,)),
        member(note, sources=(-2,)),
        member(int, 3),
    )
    assert dict(run_bundle(members, ())) == {100: 5, 103: 3}
    assert NOTES == []


def test_the_place_of_a_bundle_is_free_again(task):
    """However many bundles run, there is room for their starts."""
    for number in range(20):
        task.run_id = number
        run_bundle(bundle(member(int), member(fail)), ())
    assert task.starts.begin(100) >= 0


# With workers


async def send_bundle(c, key, members, *values, worker=None, **mark):
    """Have a worker run a bundle as if the scheduler's plugin had placed it."""
    await discover_nodes()  # installs our plugins
    await c.run_on_scheduler(ignore_reports)
    with dask.annotate(handoff=mark):
        return c.submit(run_bundle, members, (), *values, key=key, workers=worker)


class CannotBeOpened:
    def __reduce__(self):
        return int, ("no number",)


@gen_cluster(client=True)
async def test_a_value_that_cannot_be_fetched(c, s, a, b):
    """The client gets the others, and so does another worker."""
    members = bundle(member(int, 1), member(threading.Lock), member(CannotBeOpened), member(int, 4))
    future = await send_bundle(c, "bundle", members, worker=a.address)
    values = await future
    assert dict(values) == {100: 1, 103: 4}
    assert values.problems.keys() == {101, 102}
    keys = c.submit(lambda values: sorted(values), future, workers=b.address, key="there")
    assert await keys == [100, 103]
    # Where they were made, nothing is the matter with them.
    kind = c.submit(lambda values: type(values[101]).__name__, future, workers=a.address, key="k")
    assert await kind == "lock"


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_taking_values_out(c, s, a):
    """A value is taken out by itself; a failed member raises what it raised, without Dask's log."""
    future = await send_bundle(c, "bundle", bundle(member(int, 1), member(fail)))
    value, error = (c.submit(take, 100 + i, future, key=f"take {i}") for i in range(2))
    assert await value == 1
    with pytest.raises(ValueError, match="no"):
        await error
    assert not any("Compute Failed" in line for _, line in a.get_logs())


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_what_the_scheduler_asks_for(c, s, a):
    """A worker gets the annotations of a placement as the scheduler made them."""
    members = bundle(*(member(current) for _ in range(3)))
    mark = {
        "positions": [0, 2],
        "keep": [2],
        "attempts": {2: (4, 0)},
        "patience": 60,
        "cost": {"x": 1},
    }
    values = await (await send_bundle(c, "bundle", members, **mark))
    assert {index: (me.id, me.attempt, me.cost) for index, me in values.items()} == {
        102: (2, 5, {"x": 1})
    }


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_reports_arrive_before_the_end(c, s, a):
    """The scheduler has all reports when it hears of the end of the task."""
    arrived = []

    def report(key, number, ended, worker, **_):
        (ended,) = {len(EndedColumns.unpack(ended))}
        arrived.append((key, number == s.tasks[key].run_id, s.tasks[key].state, ended, worker))

    await discover_nodes()  # our plugin sets its own when it comes
    s.stream_handlers[MEMBERS] = report
    for i in range(20):
        await (await send_bundle(c, f"bundle {i}", bundle(*(member(int) for _ in range(20)))))
    assert arrived[0][1:] == (True, "processing", 20, a.address)
    assert {state for _, _, state, _, _ in arrived} == {"processing"}
    assert sum(ended for _, _, _, ended, _ in arrived) == 400


def give_up():
    secede()


def wait_for_other():
    """Wait as a run inside of a run does."""
    task = compat.this_task()
    with task.waiting():
        pass


@pytest.mark.parametrize("code", [give_up, wait_for_other])
def test_a_bundle_that_gives_up_its_thread(code):
    """The member that gave it up is the last one; the rest goes back, whatever the loop knows."""

    @gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
    async def test(c, s, a):
        for i in range(5):
            members = bundle(member(int), member(code), member(int), member(int))
            assert (await (await send_bundle(c, f"bundle {i}", members))).keys() == {100, 101}

    test()


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_withdrawn_in_the_middle(c, s, a):
    """The worker says where it is, and starts none of the rest."""
    event = Event("go on")
    members = bundle(member(int), member(event_wait), member(note), member(note))
    future = await send_bundle(c, "bundle", members)
    await until(lambda: NOTES == [("waits",)])
    number = a.state.tasks["bundle"].run_id
    answer = await c.run_on_scheduler(ask_withdraw, a.address, "bundle", number)
    ((placement, position, started, *_),) = answer["started"]
    assert (placement, position, list(answer["busy"])) == (number, 1, [number])
    assert abs(time.time() - started) < 60
    await event.set()
    assert (await future).keys() == {100, 101}
    assert NOTES == [("waits",)]


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_a_member_withdrawn_in_the_middle(c, s, a):
    """A message on the worker's stream takes one member out of a bundle that runs."""
    event = Event("go on")
    future = await send_bundle(c, "bundle", bundle(member(event_wait), member(int), member(int)))
    await until(lambda: NOTES == [("waits",)])
    number = a.state.tasks["bundle"].run_id
    message = {"op": "handoff-withdraw-member", "number": number, "position": 1}
    s.worker_send(a.address, message)
    await until(lambda: a.plugins["handoff"].starts._skipped)
    await event.set()
    assert (await future).keys() == {100, 102}


def ignore_reports(dask_scheduler):
    dask_scheduler.stream_handlers.setdefault(MEMBERS, lambda **_: None)


def event_wait():
    note("waits")
    Event("go on").wait()


async def ask_withdraw(worker, key, number, dask_scheduler):
    return await dask_scheduler.rpc(worker).handoff_withdraw(calls=[(key, number)])


async def until(condition):
    async def waiting():
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(waiting(), 30)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], Worker=Nanny)
async def test_a_process_that_is_killed(c, s, nanny):
    """Its nanny knows which member was running."""
    s.allowed_failures = 0
    (worker,) = s.workers
    id_ = s.workers[worker].server_id
    members = bundle(member(int), member(int), member(die), member(int))
    future = await send_bundle(c, "bundle", members, positions=[0, 2, 3])
    answer = await nanny.plugins["handoff"].end(id_) or await nanny.plugins["handoff"].end(id_)
    ((_, position, started, *_),) = answer["started"]
    assert position == 2
    assert abs(time.time() - started) < 60
    assert answer["code"] == -signal.SIGKILL
    future.release()
    # A nanny that closes while its worker starts waits for it for seconds.
    await until(lambda: s.workers and worker not in s.workers)
    await discover_nodes()
