"""Results that cannot be fetched, and submitters that are killed, with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from distributed import Client, LocalCluster

from handoff_dask import (
    Function,
    FunctionFailedError,
    RunCancelledError,
    UnknownRunError,
    execute,
    forget,
    get_result,
    get_run,
    list_runs,
    submit,
)
from tests.support import dag_of


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit=0
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        yield client


class Raises:
    def __reduce__(self):
        raise LookupError("it does not pickle")


class DoesNotOpen:
    def __reduce__(self):
        return int, ("no number",)


def cancel():
    raise asyncio.CancelledError("not now")


class Cancels:
    def __reduce__(self):
        return cancel, ()


BAD = {
    "cancels": (Cancels, "CancelledError"),
    "lock": (threading.Lock, "lock"),
    "generator": (lambda: (i for i in "abc"), "generator"),
    "raises": (Raises, "Raises"),
    "does not open": (DoesNotOpen, "no number"),
}


def values(n=6):
    """Six functions; the results of some cannot be fetched."""
    dag = dag_of(*(Function(i, [], str, [i]) for i in range(n)))
    for id_, (make, _) in BAD.items():
        dag.add_function(Function(id_, [], make))
    return dag


def test_one_value_is_its_functions_failure(client):
    """The error names the first one that cannot be fetched; the other results are there."""
    for bad, (make, text) in BAD.items():
        dag = dag_of(*(Function(i, [], str, [i]) for i in range(3)))
        dag.add_function(Function(bad, [], make))
        dag.add_function(Function("last", [], int, ["7"]))
        with pytest.raises(FunctionFailedError, match=text) as caught:
            execute(dag)
        assert caught.value.function_id == bad
        assert isinstance(caught.value.__cause__, (TypeError, ValueError, asyncio.CancelledError))
        assert len(caught.value.attempts) == 1
        assert len(str(caught.value).splitlines()) == 1
        assert caught.value.partial.results == {0: "0", 1: "1", 2: "2", "last": 7}


def test_many_values_are_their_functions_errors(client):
    """With on_error="continue", each of them has an error, and no other function has."""
    result = execute(values(), on_error="continue")
    assert result.results == {i: str(i) for i in range(6)}
    assert result.errors.keys() == BAD.keys()
    for bad, error in result.errors.items():
        assert isinstance(error, FunctionFailedError) and error.function_id == bad
    assert len(result.allocations) == 6 + len(BAD)


def test_a_value_leaves_other_runs_alone(client):
    """Results of another run that are fetched at the same moment arrive."""
    runs = [submit(values(0), on_error="continue") for _ in range(5)]
    others = [submit(dag_of(*(Function(i, [], str, [i]) for i in range(20)))) for _ in range(5)]
    for other in others:
        assert len(other.result().results) == 20
    for run in runs:
        assert run.result().errors.keys() == BAD.keys()


def test_one_value_that_somebody_reads(client):
    """get_result names the function whose result cannot be fetched; others can be read."""
    submit(values(), detach=True)
    assert get_result("a dag", 3, timeout=60) == "3"
    for bad, (_, text) in BAD.items():
        with pytest.raises(FunctionFailedError, match=text) as caught:
            get_result("a dag", bad, timeout=60)
        assert caught.value.function_id == bad
    forget("a dag")


SUBMITTER = """
import os, signal, sys
from distributed import Client
from handoff_dask import DAG, Function, submit

dag = DAG("killed")
for i in range(2000):
    dag.add_function(Function(i, [], int))
client = Client(sys.argv[1])

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

client.get = die
submit(dag, detach=True)
"""


def test_a_submitter_that_is_killed(client):
    """A detached run whose submitter is killed while it sends it ends by itself and says why."""
    script = subprocess.run(
        [sys.executable, "-c", SUBMITTER, client.scheduler.address],
        cwd=os.getcwd(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    assert script.returncode == -signal.SIGKILL
    with pytest.raises(RunCancelledError, match="went away before its functions had arrived"):
        get_result("killed", 7, timeout=60)
    assert get_run("killed").status()["cancelled"] == 2000
    assert "killed" not in [info.dag_id for info in list_runs()]
    forget("killed")
    with pytest.raises(UnknownRunError):
        get_run("killed")


def test_ends_of_runs_beside_each_other(client):
    """While runs fail, are cancelled or run out of time, the client's other runs continue."""

    def work(seconds):
        time.sleep(seconds)
        return os.getpid()

    def fail():
        raise LookupError("no")

    fine = [submit(dag_of(*(Function(i, [], work, [0.01]) for i in range(30)))) for _ in range(3)]
    plain = client.map(work, [0.05] * 10, pure=False)
    failing = submit(dag_of(Function("bad", [], fail, max_retries=0), Function("x", [], work, [1])))
    cancelled = submit(dag_of(*(Function(i, [], work, [1]) for i in range(4))))
    late = submit(dag_of(*(Function(i, [], work, [1]) for i in range(4))), timeout=0.1)
    cancelled.cancel()
    with pytest.raises(FunctionFailedError):
        failing.result()
    with pytest.raises(TimeoutError):
        late.result()
    for run in fine:
        assert len(run.result().results) == 30
    assert len(client.gather(plain)) == 10


def test_a_loop_that_waits(client):
    """An asynchronous client gets the same errors, in its own loop."""

    async def run():
        async with Client(client.scheduler.address, asynchronous=True) as c:
            with pytest.raises(FunctionFailedError) as caught:
                await execute(values(), client=c)
            assert caught.value.partial.results == {i: str(i) for i in range(6)}

    asyncio.run(run())
