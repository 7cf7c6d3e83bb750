"""Runs without a client report their ends at once, and nothing of their cluster is left."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import psutil
import pytest
from dask.system import CPU_COUNT
from distributed import Client, Scheduler, Worker

from handoff_dask import (
    AllocationError,
    Function,
    FunctionFailedError,
    RunCancelledError,
    RunTimeoutError,
    execute,
    submit,
)
from tests.support import dag_of

#: Seconds that a function runs that nobody releases, and that a test waits at most.
LONG, PATIENCE = 20, 60
started, release, ended = threading.Event(), threading.Event(), threading.Event()


def hold():
    started.set()
    release.wait(LONG)
    ended.set()


def hold_within():
    execute(dag_of(Function(id="within", args=[], code=hold)))


def fail():
    assert started.wait(LONG)
    raise ValueError("boom")


HOLD = Function(id="hold", args=[], code=hold)
FAIL = Function(id="fail", args=[], code=fail, max_retries=0)


def io_loops():
    return [thread for thread in threading.enumerate() if thread.name == "IO loop"]


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def assert_gone():
    """No scheduler, worker, event loop or default client is left."""
    until(lambda: not io_loops())
    assert {x.status.name for x in (*Scheduler._instances, *Worker._instances)} <= {"closed"}
    with pytest.raises(ValueError):
        Client.current()


@pytest.fixture
def still_running():
    """A function continues after the test; its cluster is gone, and others replace it."""
    for event in (started, release, ended):
        event.clear()
    yield
    assert started.is_set()
    assert not ended.is_set()
    assert_gone()
    assert execute(dag_of(Function(id="f", args=[], code=int))).results == {"f": 0}
    assert not ended.is_set()
    release.set()
    until(ended.is_set)
    until(lambda: not any("Default-Threads" in thread.name for thread in threading.enumerate()))


@pytest.mark.parametrize("sibling", [hold, hold_within])
def test_a_failed_sibling(still_running, sibling):
    """The failure is reported while another function, of this run or another, is running."""
    with pytest.raises(FunctionFailedError, match="'fail' failed after 1 attempt") as caught:
        execute(dag_of(Function(id="sibling", args=[], code=sibling), FAIL))
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_run_out_of_time(still_running):
    """The time limit holds, however long a function takes."""
    with pytest.raises(RunTimeoutError):
        execute(dag_of(HOLD), timeout=0.3)


def test_a_cancelled_run(still_running):
    """Neither cancel() nor the end of the cluster waits for running functions."""
    run = submit(dag_of(HOLD))
    assert started.wait(PATIENCE)
    run.cancel()
    with pytest.raises(RunCancelledError):
        run.result()
    del run
    gc.collect()


def test_an_attempt_out_of_time(still_running):
    """The report of a run whose function was given up is available while its thread runs."""
    late = Function(id="late", args=[], code=hold, timeout=0.3, max_retries=0)
    result = execute(dag_of(late, Function(id="f", args=[], code=int)), on_error="continue")
    assert (result.results, list(result.errors)) == ({"f": 0}, ["late"])


def test_within_a_running_loop(still_running):
    """As in a notebook: the caller has its own event loop."""

    async def cell():
        return execute(dag_of(HOLD, FAIL))

    with pytest.raises(FunctionFailedError, match="'fail'"):
        asyncio.run(cell())


def test_threads_of_functions():
    """Functions on all threads of the cluster wait in threads of their own for further runs."""

    def value(number=0):
        leaf = Function(id="leaf", args=[], code=int, extra_args=[str(number)])
        return execute(dag_of(leaf)).results["leaf"]

    def outer():
        value()  # from here on there is a client
        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(value, range(3)))

    many = [Function(id=i, args=[], code=outer) for i in range(2 * CPU_COUNT)]
    assert set(map(tuple, execute(dag_of(*many)).results.values())) == {(0, 1, 2)}
    assert_gone()


def test_nobody_can_hold_it():
    """The cluster that was started for this is gone."""
    with pytest.raises(AllocationError):
        execute(dag_of(Function(id="f", args=[], code=int, cost={"nothing": 1})))
    assert_gone()


def test_a_dropped_run():
    """The cluster of an unreferenced run is closed after the end of the run."""
    for event in (started, release, ended):
        event.clear()
    submit(dag_of(HOLD))
    assert started.wait(PATIENCE)
    release.set()
    assert ended.wait(PATIENCE)
    # Its end is a matter of the loop's, which drops the last reference when it comes to it.
    until(lambda: gc.collect() is not None and not io_loops())
    assert_gone()


def test_worker_processes():
    """Worker processes end by themselves, without a wait and without being killed."""
    before = set(psutil.Process().children(recursive=True))
    with dask.config.set({"handoff.embedded.processes": True}):
        sleep = Function(id="sleep", args=[], code=time.sleep, extra_args=[300])
        with pytest.raises(RunTimeoutError):
            execute(dag_of(sleep), timeout=0.5)
    left = set(psutil.Process().children(recursive=True)) - before
    # What starts processes may stay; it ends with this one.
    assert not any("spawn_main" in " ".join(child.cmdline()) for child in left)
    assert_gone()


def script(tmp_path, code):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(code))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-W", "error::RuntimeWarning", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_script_ends(tmp_path, interrupted):
    """After an error or Ctrl-C, the process ends although its functions are still running."""
    process = script(
        tmp_path,
        f"""
        import time
        from handoff_dask import DAG, Function, execute, submit

        def hold():
            print("started", flush=True)
            time.sleep(300)

        def fail():
            time.sleep({300 if interrupted else 0.1})
            raise ValueError("boom")

        dag = DAG().add_function(Function(id="hold", args=[], code=hold))
        run = submit(DAG().add_function(Function(id="other", args=[], code=hold)))
        execute(dag.add_function(Function(id="fail", args=[], code=fail, max_retries=0)))
        """,
    )
    try:
        for _ in range(2):
            assert process.stdout.readline() == "started\n"
        if interrupted:
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode != 0
    lines = errors.rstrip().splitlines()
    if interrupted:
        assert lines[-1] == "KeyboardInterrupt"
    else:
        assert "FunctionFailedError: function 'fail' failed after 1 attempt" in errors
    for noise in ("never awaited", "Exception ignored", "CancelledError"):
        assert noise not in errors
