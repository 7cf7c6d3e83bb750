"""What happens to functions whose worker dies, with real processes."""

from __future__ import annotations

import os
import signal
import sys
import time

import dask
import pytest
from distributed import Client, Nanny, Scheduler, SpecCluster, get_worker

from handoff_dask import (
    DAG,
    Function,
    FunctionFailedError,
    RetryPolicy,
    StandInError,
    WorkerLostError,
    current,
    execute,
    forget,
    get_result,
    register_node,
    submit,
)
from tests.integration.test_processes import dag_of, tasks_on, wait_until


@pytest.fixture(scope="module")
def cluster():
    """A worker process with one thread, which is handed short functions ahead."""
    options = {"nthreads": 1, "resources": {"cpu": 1}, "memory_limit": "1 GB", "name": "alice"}
    scheduler = {"cls": Scheduler, "options": {"dashboard": False, "dashboard_address": ":0"}}
    workers = {"alice": {"cls": Nanny, "options": options}}
    # Here workers are often gone for a moment.
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "10m"}),
        SpecCluster(workers=workers, scheduler=scheduler) as cluster,
    ):
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        client.wait_for_workers(1, timeout=60)
        yield client


def die(how):
    if how == "exit":
        os._exit(7)
    if how == "memory":
        hoard = []
        while True:
            hoard.append(b"1" * 2**24)
            time.sleep(0.01)
    os.kill(os.getpid(), how)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (signal.SIGKILL, "killed by signal 9 (SIGKILL)"),
        (signal.SIGSEGV, "killed by signal 11 (SIGSEGV)"),
        ("exit", "exited with status 7"),
        ("memory", "out of memory"),
    ],
)
def test_the_reason_of_a_death(client, how, reason):
    """The error, its cause and each attempt say which worker died, how often and how."""
    function = Function(id="f", args=[], code=die, extra_args=[how], max_retries=1)
    with pytest.raises(FunctionFailedError) as caught:
        execute(dag_of(function))
    cause = caught.value.__cause__
    assert isinstance(cause, WorkerLostError)
    assert cause.names == ("alice", "alice")
    assert all(text.startswith(reason) for text in cause.reasons)
    assert [a.worker for a in caught.value.attempts] == list(cause.workers)
    assert all(a.message.startswith(reason) for a in caught.value.attempts)
    assert "'f'" in str(caught.value) and "2 times" in str(caught.value)
    assert reason in str(caught.value)
    wait_until(lambda: tasks_on(client) == 0)


def test_what_never_started_used_up_nothing(client, tmp_path):
    """Functions handed ahead to a worker that dies still run with max_retries=0."""

    def work(i):
        (tmp_path / f"{i}.{time.time_ns()}").touch()
        if i == 50 and len(list(tmp_path.glob("50.*"))) == 1:
            time.sleep(0.5)  # until it is known on the scheduler what has ended
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    def dag(n):
        dag = DAG()
        for i in range(n):
            retries = 1 if i == 50 else 0
            dag.add_function(
                Function(
                    id=i, args=[], code=work, extra_args=[i], cost={"cpu": 1}, max_retries=retries
                )
            )
        return dag

    execute(dag(40), results=[])  # from now on it is known to be short
    for path in tmp_path.iterdir():
        path.unlink()
    run = submit(dag(100))
    assert run.result(timeout=60).results == {i: i for i in range(100)}
    attempts = run.status()["attempts"]
    # Results may have been lost with the worker, too: made again, which is a start as well.
    for i in range(100):
        tried = attempts[i]
        assert len(tried) == len(list(tmp_path.glob(f"{i}.*")))
        assert [a.outcome for a in tried].count("worker-lost") == (i == 50)


def test_escalation_after_running_out_of_memory(client):
    """A policy learns that a function ran out of memory, so it can claim more next time."""
    execute(dag_of(Function(id=1, args=[], code=int)))
    register_node("alice", {"memory": 1000})

    def more(attempt, cost, error):
        # On the scheduler, where the worker's death is known.
        assert isinstance(error, WorkerLostError)
        assert error.reasons[-1].startswith("out of memory")
        return {**cost, "memory": cost["memory"] * 2}

    def hungry():
        if current().cost["memory"] < 400:
            die("memory")
        return current().cost["memory"]

    function = Function(
        id=1, args=[], code=hungry, cost={"memory": 200}, retry=RetryPolicy(1, escalate=more)
    )
    result = execute(dag_of(function))
    assert result.results == {1: 400}
    assert [a.cost["memory"] for a in result.attempts[1]] == [200, 400]


def test_an_exception_that_only_the_worker_knows(client, tmp_path):
    """An exception that cannot be unpickled here arrives with type name, message and traceback."""

    def work():
        (tmp_path / "only_there.py").write_text("class Odd(Exception): pass")
        sys.path.insert(0, str(tmp_path))
        try:
            import only_there
        finally:
            sys.path.remove(str(tmp_path))
        raise only_there.Odd("so odd")

    with pytest.raises(FunctionFailedError, match="Odd: so odd") as caught:
        execute(dag_of(Function(id="f", args=[], code=work, max_retries=0)))
    cause = caught.value.__cause__
    assert isinstance(cause, StandInError)
    assert (cause.type_name, cause.message) == ("Odd", "so odd")
    assert "in work" in cause.traceback_text
    (attempt,) = caught.value.attempts
    assert (attempt.error_type, attempt.message) == ("Odd", "so odd")
    dag = DAG("odd").add_function(Function(id="f", args=[], code=work, max_retries=0))
    dag.add_function(Function(id="g", args=["f"], code=str))
    submit(dag, detach=True)
    for id_ in ("f", "g"):
        with pytest.raises(FunctionFailedError, match="Odd: so odd"):
            get_result("odd", id_, timeout=30)
    forget("odd")


def test_sys_exit_fails_the_function_alone(client):
    """sys.exit() in a function is its failure; the worker continues."""

    def leave():
        sys.exit(3)

    pid = client.run(os.getpid)
    with pytest.raises(FunctionFailedError, match="SystemExit: 3") as caught:
        execute(dag_of(Function(id="f", args=[], code=leave, max_retries=1)))
    assert [a.outcome for a in caught.value.attempts] == ["error", "error"]
    assert client.run(os.getpid) == pid


def test_a_closing_worker_speaks_for_itself(client, cluster, tmp_path):
    """An orderly shutdown of a worker uses no retry, and the ledger has what it started."""

    def work():
        (tmp_path / f"{time.time_ns()}").touch()
        time.sleep(0.5 if len(list(tmp_path.iterdir())) == 1 else 0)
        return get_worker().name

    run = submit(dag_of(Function(id="f", args=[], code=work, max_retries=0)))
    wait_until(lambda: len(list(tmp_path.iterdir())) == 1)
    address = next(iter(client.scheduler_info(n_workers=-1)["workers"]))
    client.restart_workers([address], timeout=60)
    assert run.result(timeout=60).results == {"f": "alice"}
    tried = run.status()["attempts"]["f"]
    assert len(list(tmp_path.iterdir())) == len(tried) == 2
    assert [a.outcome for a in tried] == ["worker-lost", "ok"]
    assert "does not count" in tried[0].message
