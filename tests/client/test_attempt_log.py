"""What the logger `handoff_dask` says of the attempts of a run."""

from __future__ import annotations

import logging

import pytest
from distributed.utils_test import gen_cluster

from handoff_dask import Attempt, AttemptEnded, Function, FunctionPlaced, RetryPolicy, execute
from handoff_dask.client.attempt_log import AttemptLog
from handoff_dask.wire.run_events import FunctionEnded
from tests.support import dag_of

FUNCTIONS = {
    "f": Function("f", [], int),
    "patient": Function("patient", [], int, retry=RetryPolicy(max_retries=2, delay=3)),
    "alone": Function("alone", [], int, retry=RetryPolicy(avoid_last_worker=False)),
}


def attempt(number, outcome="error", error_type="ValueError", message="no"):
    return Attempt(number, "tcp://w", "w", "host", 1.0, 2.5, {}, outcome, error_type, message)


def ended(*arguments, function="f", **options):
    return AttemptEnded("run", 2.5, function, attempt(*arguments, **options))


@pytest.fixture
def lines(caplog):
    """Log events; return the lines with their levels."""

    def logged(*events, level=logging.DEBUG):
        caplog.clear()
        with caplog.at_level(level, logger="handoff_dask"):
            AttemptLog(FUNCTIONS, RetryPolicy(max_retries=3))(events)
        return [(record.levelname, record.getMessage()) for record in caplog.records]

    return logged


OTHER = "next on another worker, if there is one"


@pytest.mark.parametrize(
    "event, text",
    [
        (ended(2), f"attempt 2 of 4 of function 'f' failed on tcp://w (ValueError: no); {OTHER}"),
        (
            ended(1, function="patient"),
            "attempt 1 of 3 of function 'patient' failed on tcp://w (ValueError: no); "
            f"{OTHER}, in 3 s",
        ),
        (
            ended(1, function="alone"),
            "attempt 1 of 4 of function 'alone' failed on tcp://w (ValueError: no); next",
        ),
        (
            ended(1, "out-of-memory", "OutOfMemoryError", "it used 900 MB"),
            "attempt 1 of 4 of function 'f' ran out of memory on tcp://w (OutOfMemoryError: it "
            f"used 900 MB); {OTHER}",
        ),
        (
            ended(1, "process-died", "ProcessDiedError", "killed by signal 11"),
            "attempt 1 of 4 of function 'f' lost its process on tcp://w (ProcessDiedError: killed "
            f"by signal 11); {OTHER}",
        ),
        (
            ended(1, "worker-lost", None, "killed by signal 9"),
            "attempt 1 of 4 of function 'f' was lost with tcp://w (killed by signal 9); " + OTHER,
        ),
        (
            ended(4, "timeout", None, None),
            "attempt 4 of 4 of function 'f' timed out on tcp://w",
        ),
        # One before did not count.
        (ended(5), "attempt 5 of function 'f' failed on tcp://w (ValueError: no)"),
    ],
)
def test_a_failed_attempt(lines, event, text):
    """Which of how many, why, and what follows; at level INFO."""
    assert lines(event, level=logging.INFO) == [("INFO", text)]


def test_a_failure_that_is_not_retried(lines):
    """Nothing follows where the function has failed for good."""
    failed = FunctionEnded("run", 2.5, "f", "failed", "no")
    ((_, text),) = lines(ended(1), failed)
    assert text == "attempt 1 of 4 of function 'f' failed on tcp://w (ValueError: no)"


def test_a_message_of_many_lines(lines):
    """It takes one line in the log; a very long one is cut."""
    ((_, text),) = lines(ended(4, message="bad\n\ttable"))
    assert text == "attempt 4 of 4 of function 'f' failed on tcp://w (ValueError: bad table)"
    ((_, text),) = lines(ended(4, message="x" * 100_000))
    assert len(text) < 1000
    assert text.endswith("xxx...)")


def test_starts_and_ends(lines):
    """All of them at level DEBUG."""
    placed = FunctionPlaced("run", 1.0, "f", 1, "tcp://w", False)
    assert lines(placed, ended(1, "ok", None, None), level=logging.DEBUG) == [
        ("DEBUG", "attempt 1 of 4 of function 'f' goes to tcp://w"),
        ("DEBUG", "attempt 1 of 4 of function 'f' on tcp://w: ok after 1.5 s"),
    ]
    assert lines(placed, ended(1, "ok", None, None), level=logging.INFO) == []


def fail():
    raise LookupError("no such thing")


@gen_cluster(client=True)
async def test_a_run(c, s, a, b, caplog):
    """A run is logged to its end if the logger is configured before it begins."""
    dag = dag_of(Function("bad", [], fail), Function("good", [], int))
    options = {"max_retries": 1, "on_error": "continue"}
    await execute(dag, **options)
    assert [r for r in caplog.records if r.name == "handoff_dask"] == []
    with caplog.at_level(logging.INFO, logger="handoff_dask"):
        await execute(dag, **options)
    first, second = (r.getMessage() for r in caplog.records if r.name == "handoff_dask")
    assert first.startswith("attempt 1 of 2 of function 'bad' failed on tcp://")
    assert first.endswith(f"(LookupError: no such thing); {OTHER}")
    assert second.endswith("(LookupError: no such thing)")
