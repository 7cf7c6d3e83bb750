"""The task around the user's code, called without a worker."""

from __future__ import annotations

import asyncio
import operator
import pickle
from functools import partial
from types import SimpleNamespace

import cloudpickle
import pytest
from distributed import Reschedule

from handoff_dask import StandInError
from handoff_dask.compat import worker as compat
from handoff_dask.model.expansion import Call, Listed, Transformed
from handoff_dask.worker import task
from handoff_dask.worker.current import current


def packed(call):
    """Return a call as it is in the graph."""
    return (), cloudpickle.dumps((("f", "a dag"), *call))


@pytest.fixture
def log(monkeypatch):
    """Return the messages of tasks to the scheduler."""
    events = []

    class Task:
        facts = {}  # noqa: RUF012 - read only
        plugin = None
        noted = ()

        def log(self, *event):
            events.append(event)

    monkeypatch.setattr(compat, "this_task", Task)
    return events


#: Without a policy that has code.
run_transform = partial(task.run_transform, None)


def fail(*args):
    raise ValueError("no")


@pytest.mark.parametrize("runner", [task.run, task.run_and_discard, run_transform])
def test_failure_is_told_and_raised(runner, log):
    """A failed attempt is reported once, and Dask gets an error that arrives unchanged."""
    with pytest.raises(StandInError, match="ValueError: no") as caught:
        runner(*packed(Call(fail, (0,), (), {})), 1)
    arrived = pickle.loads(pickle.dumps(caught.value))
    assert type(arrived) is ValueError
    assert arrived.args == ("no",)
    ((topic, message),) = log
    assert topic == task.TOPIC
    assert message["action"] == "attempt-failed"
    assert (message["error_type"], message["message"]) == ("ValueError", "no")
    assert message["started"] <= message["stopped"]


def test_code_that_cannot_be_opened(log):
    """A worker that lacks the user's module is a failed attempt like any other."""
    code = b"cno_such_module\nno_such_name\n."
    with pytest.raises(StandInError, match=r"ModuleNotFoundError.*no_such_module"):
        task.run((), code)
    ((_, message),) = log
    assert message["error_type"] == "ModuleNotFoundError"


@pytest.mark.parametrize("ending", [SystemExit(3), KeyboardInterrupt(), Reschedule()])
def test_a_function_cannot_end_its_worker(log, ending):
    """sys.exit() in a function is a failure, and so are exceptions that Dask treats specially."""

    def end():
        raise ending

    with pytest.raises(StandInError, match=type(ending).__name__):
        task.run(*packed(Call(end, (), (), {})))
    ((_, message),) = log
    assert message["error_type"] == type(ending).__name__


def test_run(log):
    """Values take the places of their dependencies in the call."""
    inner = Call(operator.add, (0, 0), (), {})
    call = Call(lambda *a, **k: (a, k), (1, inner, Listed((0,))), ("x",), {"k": 2})
    outcome = task.run(*packed(call), 10, 20)
    assert outcome == ((20, 20, [10], "x"), {"k": 2})
    assert log == []


def test_shared_calls_stay_shared():
    """An entry that occurs twice in a call is evaluated once, also after pickling."""
    shared = Call(iter(range(9)).__next__, (), (), {})
    assert task.run(*packed(Call(lambda *args: args, (shared, shared), (), {}))) == (0, 0)


def test_each_attempt_has_its_own_arguments():
    """A function that changes its extra arguments does not change those of its next attempt."""
    call = packed(Call(lambda items: items.append(2) or items, (), ([1],), {}))
    assert task.run(*call) == task.run(*call) == [1, 2]


def test_coroutines():
    """Coroutine code is run to its end."""

    async def later(value, *_):
        await asyncio.sleep(0)
        return value + 1

    call = Call(later, (Transformed(0, ((later, ()),)),), (), {})
    assert task.run(*packed(call), 1) == 3
    assert run_transform(*packed(Call(later, (0,), (), {})), 1) == 2


def test_discard():
    """A result that nobody wants is computed for its side effects, and dropped."""
    assert task.run_and_discard(*packed(Call(abs, (), (5,), {}))) is None


@pytest.mark.parametrize(
    ("marks", "nodes"),
    [
        ({"handoff": {"source": "tcp://a", "target": "tcp://b"}}, ("tcp://a", "tcp://b")),
        ({"handoff": {}}, (None, None)),
        ({}, (None, None)),
    ],
)
def test_transform(monkeypatch, marks, nodes):
    """A transform gets the data, the nodes its task is marked with, and its static arguments."""
    monkeypatch.setattr(compat, "this_task", lambda: SimpleNamespace(facts=marks))
    call = packed(Call(lambda *args: args, (0,), (7, 8), {}))
    assert run_transform(*call, "data") == ("data", *nodes, 7, 8)


def test_current_is_the_function_that_runs():
    """current() returns ids, attempt and cost inside a call, also after a nested one."""

    def who():
        return current()

    def outer():
        before = current()
        task.run(*packed(Call(who, (), (), {})))
        return before, current()

    before, after = task.run(*packed(Call(outer, (), (), {})))
    assert (before.id, before.dag_id, before.attempt, before.cost) == ("f", "a dag", 1, {})
    assert before == after
    assert current() is None
