"""What runs on the worker around the user's code, called here without one."""

from __future__ import annotations

import asyncio
import operator
import pickle

import cloudpickle
import pytest
from distributed import Reschedule

from handoff_dask import StandInError, _compat, task
from handoff_dask.model.expansion import Call, Listed, Transformed


def packed(call, *codes):
    """Return codes and call as the graph carries them."""
    return tuple(map(cloudpickle.dumps, codes)), pickle.dumps((("f", "a dag"), *call))


@pytest.fixture
def log(monkeypatch):
    """Return what tasks tell the scheduler."""
    told = []

    class Task:
        facts = {}  # noqa: RUF012 - read only

        def log(self, *event):
            told.append(event)

    monkeypatch.setattr(_compat, "this_task", Task)
    return told


def fail(*args):
    raise ValueError("no")


@pytest.mark.parametrize("runner", [task.run, task.run_and_discard, task.run_transform])
def test_failure_is_told_and_raised(runner, log):
    """The scheduler hears of a failed attempt, once, and Dask gets what arrives as it was."""
    with pytest.raises(StandInError, match="ValueError: no") as caught:
        runner(*packed(Call(0, (0,), (), {}), fail), 1)
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
        task.run((code,), pickle.dumps((("f", "a dag"), 0, (), (), {})))
    ((_, message),) = log
    assert message["error_type"] == "ModuleNotFoundError"


@pytest.mark.parametrize("ending", [SystemExit(3), KeyboardInterrupt(), Reschedule()])
def test_a_function_cannot_end_its_worker(log, ending):
    """sys.exit() in a function, and what else Dask would not take for a failure, is a failure."""

    def end():
        raise ending

    with pytest.raises(StandInError, match=type(ending).__name__):
        task.run(*packed(Call(0, (), (), {}), end))
    ((_, message),) = log
    assert message["error_type"] == type(ending).__name__


def test_run(log):
    """Codes stand in the call by number, values by the position of the dependency."""
    call = Call(0, (1, Call(1, (0, 0), (), {}), Listed((0,))), ("x",), {"k": 2})
    found = task.run(*packed(call, lambda *a, **k: (a, k), operator.add), 10, 20)
    assert found == ((20, 20, [10], "x"), {"k": 2})
    assert log == []


def test_shared_calls_stay_shared():
    """What is one object in a call is still evaluated once after its journey."""
    shared = Call(1, (), (), {})
    codes = (lambda *args: args, iter(range(9)).__next__)
    assert task.run(*packed(Call(0, (shared, shared), (), {}), *codes)) == (0, 0)


def test_each_attempt_has_its_own_arguments():
    """A function that changes its extra arguments does not change those of its next attempt."""
    codes, call = packed(Call(0, (), ([1],), {}), lambda items: items.append(2) or items)
    assert task.run(codes, call) == task.run(codes, call) == [1, 2]


def test_coroutines():
    """Coroutine code is run to its end."""

    async def later(value, *_):
        await asyncio.sleep(0)
        return value + 1

    call = Call(0, (Transformed(0, ((0, ()),)),), (), {})
    assert task.run(*packed(call, later), 1) == 3
    assert task.run_transform(*packed(Call(0, (0,), (), {}), later), 1) == 2


def test_discard():
    """What nobody wants is made, for what making it does, and dropped."""
    assert task.run_and_discard(*packed(Call(0, (), (5,), {}), abs)) is None


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
    monkeypatch.setattr(_compat, "task_annotations", lambda: marks)
    codes, call = packed(Call(0, (0,), (7, 8), {}), lambda *args: args)
    assert task.run_transform(codes, call, "data") == ("data", *nodes, 7, 8)


def test_current_is_the_function_that_runs():
    """current() tells ids, attempt and cost inside of a call, also after a nested one."""

    def who():
        return task.current()

    def outer():
        before = task.current()
        task.run(*packed(Call(0, (), (), {}), who))
        return before, task.current()

    before, after = task.run(*packed(Call(0, (), (), {}), outer))
    assert (before.id, before.dag_id, before.attempt, before.cost) == ("f", "a dag", 1, {})
    assert before == after
    assert task.current() is None
