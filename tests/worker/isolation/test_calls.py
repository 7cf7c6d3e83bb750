"""Functions in processes of their own: what goes in, and how it comes back."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import pickle
import subprocess
import sys
import threading
import traceback

import pytest

from handoff_dask import RetryPolicy, current
from handoff_dask.attempts.retries import Verdict
from handoff_dask.pickling import dumps
from handoff_dask.worker.isolation.calls import World
from tests.worker.isolation.calling import run, value


def test_a_call(pool):
    """A closure gets its values and returns its result from another process, which is reused."""
    factor = 3

    def scaled(x):
        return x * factor, os.getpid()

    result, pid = value(run(pool, scaled, 7))
    assert result == 21
    assert pid != os.getpid()
    assert value(run(pool, scaled, 1)) == (3, pid)


def test_coroutines(pool):
    """A coroutine function runs to its end."""

    async def later(x):
        await asyncio.sleep(0)
        return x + 1

    assert value(run(pool, later, 1)) == 2


def test_what_current_says(pool):
    """current() knows the function, its attempt and cost; its devices count from 0."""

    def who():
        return current()

    cost = {"cpu": 2, "gpu": 1.5}
    here = value(run(pool, who, attempt=3, cost=cost, world=World(("5", "7"))))
    assert (here.id, here.dag_id, here.attempt, here.cost) == ("f", "a dag", 3, cost)
    assert here.gpus == (0, 1)


def test_discarded_results(pool):
    """A result that nobody needs is not sent, so it need not be one that can be."""
    ended = run(pool, lambda: (i for i in range(3)), keep=False)
    assert (value(ended), ended.usage.result_bytes) == (None, None)


def test_exceptions(pool):
    """What a function raises arrives with its cause and its traceback, and the child goes on."""

    def inner():
        raise KeyError("why")

    def outer():
        try:
            inner()
        except KeyError as error:
            raise ValueError("no") from error

    pid = value(run(pool, os.getpid))
    ended = run(pool, outer)
    assert ended.outcome == "error"
    assert (ended.value.type_name, ended.value.message) == ("ValueError", "no")
    arrived = pickle.loads(pickle.dumps(ended.value))
    assert type(arrived) is ValueError
    assert type(arrived.__cause__) is KeyError
    names = [frame.name for frame in traceback.extract_tb(ended.value.__traceback__)]
    assert names == ["outer"]
    assert ended.verdict is None
    assert value(run(pool, os.getpid)) == pid


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_exceptions_that_would_end_more(pool, kind):
    """Whatever a function raises is its failure, not the end of its process."""

    def fail():
        raise kind("stop")

    ended = run(pool, fail)
    assert (ended.outcome, ended.value.type_name) == ("error", kind.__name__)


def test_policies_are_judged_in_the_child(pool):
    """A retry policy with users' code is asked where the exception is."""

    class Mine(Exception):
        pass

    def fail():
        raise Mine

    policy = dumps(RetryPolicy(retry_on=(Mine,), escalate=lambda n, cost, e: {"cpu": n + 1}))
    cost = {"cpu": 1}
    ended = run(pool, fail, policy=policy, attempt=2, cost=cost)
    assert ended.verdict == Verdict(True, {"cpu": 3})
    ended = run(pool, lambda: 1 / 0, policy=policy, cost=cost)
    assert ended.verdict == Verdict(False)


def test_results_that_cannot_be_pickled(pool):
    """The error names the type of the result."""
    ended = run(pool, lambda: (i for i in range(3)))
    assert ended.outcome == "error"
    assert "its result, of type builtins.generator, cannot be sent" in ended.value.message


def test_inputs_that_cannot_be_pickled(pool):
    """The error names the types of the inputs."""
    ended = run(pool, lambda x: x, threading.Lock())
    assert ended.outcome == "error"
    assert "its inputs (lock) cannot be sent" in ended.value.message


@pytest.mark.parametrize("kind", [KeyError, SystemExit, KeyboardInterrupt])
def test_inputs_that_raise_when_they_are_pickled(pool, kind):
    """Whatever that raises is a failure of the function, and the worker goes on."""

    class Bad:
        def __reduce__(self):
            raise kind("no")

    ended = run(pool, lambda x: x, Bad())
    assert ended.outcome == "error"
    assert "Bad) cannot be sent to a process" in ended.value.message


def test_results_that_cannot_be_unpickled(pool):
    """A result whose code fails here is a failure of the function."""

    class Bad:
        def __reduce__(self):
            return eval, ("1 / 0",)

    ended = run(pool, Bad)
    assert (ended.outcome, ended.value.type_name) == ("error", "ZeroDivisionError")


def test_classes_of_main(pool):
    """Objects of classes that only exist here go in and out, and keep their class."""

    class Point:
        def __init__(self, x):
            self.x = x

        def moved(self):
            return type(self)(self.x + 1)

    Point.__module__ = "__main__"
    moved = value(run(pool, lambda point: point.moved(), Point(1)))
    assert type(moved) is Point
    assert moved.x == 2


def test_output_and_logs(pool, capsys, caplog):
    """What a function prints and logs arrives here, and the end of its output with its result."""

    def talk():
        print("out", "é")
        os.write(2, b"raw\n")
        subprocess.run(["echo", "from a program"], check=True)
        logging.getLogger("mine").info("quiet")
        logging.getLogger("mine").warning("a %s", "record", extra={"lock": threading.Lock()})

    ended = run(pool, talk)
    value(ended)
    out, err = capsys.readouterr()
    assert (out, err) == ("out é\nfrom a program\n", "raw\n")
    assert sorted(ended.output.splitlines()) == ["from a program", "out é", "raw"]
    (record,) = caplog.records
    assert (record.name, record.getMessage()) == ("mine", "a record")


def test_output_of_native_code(pool, monkeypatch):
    """What C functions print arrives in lines, also just before a crash."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)

    def talk():
        ctypes.CDLL(None).puts(b"from C")
        os._exit(3)

    assert run(pool, talk).output == "from C\n"


def test_logs_of_threads(pool, caplog):
    """What threads log while their function runs arrives, whatever the function returns then."""

    def talk():
        def log(number):
            for i in range(200):
                logging.getLogger("mine").warning("%d", number * 1000 + i)

        threads = [threading.Thread(target=log, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return bytes(5_000_000)

    value(run(pool, talk))
    numbers = {int(record.getMessage()) for record in caplog.records}
    assert numbers == {number * 1000 + i for number in range(4) for i in range(200)}


def test_logs_of_what_cannot_be_imported_here(pool, caplog, tmp_path):
    """A record whose extra fields only exist in the process arrives without them."""
    (tmp_path / "only_there.py").write_text("class Thing: pass\n")

    def talk():
        sys.path.insert(0, str(tmp_path))
        import only_there

        logging.getLogger("mine").warning("heard", extra={"thing": only_there.Thing()})
        return 1

    assert value(run(pool, talk)) == 1
    (record,) = caplog.records
    assert record.getMessage() == "heard"


def test_log_handlers_that_fail(pool, monkeypatch, capsys):
    """A handler that raises here says so, as others do, and costs the call nothing."""

    def fail(record):
        raise ValueError("full")

    monkeypatch.setattr(logging.getLogger("mine"), "filters", [fail])
    assert value(run(pool, lambda: logging.getLogger("mine").warning("lost") or 1)) == 1
    assert "ValueError: full" in capsys.readouterr().err


def test_logs_of_levels_that_are_shown(pool, caplog):
    """Loggers have the levels that they have here."""
    caplog.set_level(logging.DEBUG, logger="loud")
    value(run(pool, lambda: logging.getLogger("loud.part").debug("heard")))
    assert [record.getMessage() for record in caplog.records] == ["heard"]


def test_the_last_of_much_output(pool, capsys):
    """All output is passed on, and the last 64 kB are kept."""
    ended = run(pool, lambda: print("x" * 1_000_000 + "end"))
    value(ended)
    assert len(capsys.readouterr().out) == 1_000_004
    assert len(ended.output) == 1 << 16
    assert ended.output.endswith("xend\n")
