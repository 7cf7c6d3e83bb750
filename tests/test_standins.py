"""Exceptions that cannot be sent, on a cluster with Dask's validation."""

from __future__ import annotations

import copyreg
import pickle
import threading

import pytest
from distributed.protocol import pickle as dask_pickle
from distributed.utils_test import gen_cluster
from tblib import pickling_support

from handoff_dask import DAG, ExecutionResult, Function, FunctionFailedError, StandInError, execute
from tests.support import assert_clean


class Locked(Exception):
    """Cannot be pickled."""

    def __init__(self):
        super().__init__("locked")
        self.lock = threading.Lock()


class Demanding(Exception):
    """Can be pickled but not unpickled: its arguments are not passed on."""

    def __init__(self, one, two):
        super().__init__("demanding")


class Mute(Exception):
    """Has no text."""

    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


def locked():
    raise Locked


def demanding():
    raise Demanding(1, 2)


def mute():
    raise Mute


def for_a_reason():
    try:
        locked()
    except Locked as error:
        raise ValueError("because of it") from error


@pytest.mark.parametrize(
    ("code", "name", "text"),
    [
        (locked, "Locked", "locked"),
        (demanding, "Demanding", "demanding"),
        (mute, "Mute", "no text: str() raised RuntimeError"),
    ],
)
@gen_cluster(client=True)
async def test_what_arrives(c, s, a, b, code, name, text):
    """An exception that cannot be sent arrives as a stand-in, and its function is retried."""
    dag = DAG().add_function(Function(id="f", args=[], code=code, max_retries=1))
    with pytest.raises(FunctionFailedError, match=f"'f' failed after 2 attempts: {name}") as caught:
        await execute(dag)
    cause = caught.value.__cause__
    if code is not demanding:  # which can, where the traceback is pickled along
        assert isinstance(cause, StandInError)
        assert cause.type_name == name
        assert text in cause.message
        assert f"in {code.__name__}" in cause.traceback_text
    for attempt in caught.value.attempts:
        assert attempt.error_type == name
        assert text in attempt.message
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert str(again.__cause__) == str(cause)
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_a_reason_that_cannot_travel(c, s, a, b):
    """An exception arrives unchanged even if its cause cannot be sent."""
    dag = DAG().add_function(Function(id="f", args=[], code=for_a_reason, max_retries=0))
    with pytest.raises(FunctionFailedError, match="ValueError: because of it") as caught:
        await execute(dag)
    assert type(caught.value.__cause__) is ValueError


@pytest.mark.parametrize("by_dask", [False, True])
def test_errors_travel_without_what_cannot(monkeypatch, by_dask):
    """A FunctionFailedError can be pickled, whatever its cause and its partial result contain."""
    dumps, table = pickle.dumps, copyreg.dispatch_table
    if by_dask:
        dumps = dask_pickle.dumps
        monkeypatch.setitem(table, FunctionFailedError, pickling_support.pickle_exception)
    error = FunctionFailedError("f", (), "Locked: locked")
    error.__cause__ = Locked()
    error.partial = ExecutionResult("dag", {"g": threading.Lock()})
    again = pickle.loads(dumps(error))
    assert type(again) is FunctionFailedError
    assert str(again) == str(error)
    assert isinstance(again.__cause__, StandInError)
    assert str(again.__cause__) == "Locked: locked"
    assert again.partial is None
