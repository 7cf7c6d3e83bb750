"""Members of bundles that end their worker: only they are charged, whatever travelled with them."""

from __future__ import annotations

import os
import signal
import time

import dask
import pytest
from distributed import Client, LocalCluster, get_worker

from handoff_dask import FunctionFailedError, WorkerLostError, current, execute
from tests.support import dag_of
from tests.trust.test_bundles import COUNT, doing


def die(how, folder, times):
    """End the process, unless that happened often enough."""
    (folder / str(time.time_ns())).touch()
    if len(list(folder.iterdir())) > times:
        return "alive"
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    os._exit(3)


@pytest.fixture(scope="module")
def cluster():
    # Otherwise the cluster drops a worker that happens to be restarting 15 s after another death.
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"}),
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit=0
        ) as cluster,
    ):
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        client.wait_for_workers(2, timeout=60)
        execute(dag_of(*(doing(("learn", i)) for i in range(8)), id="learning"), bundle=False)
        yield client


def check_neighbours(result, *others):
    """Check that what ended with a worker did not count, and that nothing is lost."""
    for id, attempts in result.attempts.items():
        if id not in others:
            assert attempts[-1].outcome == "ok", (id, attempts)
            for attempt in attempts[:-1]:
                assert attempt.outcome in ("ok", "worker-lost"), (id, attempts)
                assert "does not count" in (attempt.message or "does not count"), (id, attempts)


@pytest.mark.parametrize("how", ["kill", "exit", "segfault"])
def test_only_the_one_that_ran_is_charged(client, tmp_path, how):
    """It runs again alone; what had ended with it is made again, and nothing else."""
    dag = dag_of(
        *(doing(i, int, i, max_retries=0) for i in range(COUNT)),
        doing("bad", die, how, tmp_path, 1, max_retries=1),
        *(doing(i, int, i, max_retries=0) for i in range(COUNT, 2 * COUNT)),
    )
    result = execute(dag)
    assert result.results == {**{i: i for i in range(2 * COUNT)}, "bad": "alive"}
    assert [a.outcome for a in result.attempts["bad"]] == ["worker-lost", "ok"]
    check_neighbours(result, "bad")


def test_a_poisonous_function(client, tmp_path):
    """It ends as many workers as it has attempts, and uses up no retry of its neighbours."""
    dag = dag_of(
        *(doing(i, int, i, max_retries=0) for i in range(COUNT)),
        doing("bad", die, "kill", tmp_path, 99, max_retries=3),
        *(doing(i, int, i, max_retries=0) for i in range(COUNT, 2 * COUNT)),
    )
    result = execute(dag, on_error="continue")
    assert result.results == {i: i for i in range(2 * COUNT)}
    assert list(result.errors) == ["bad"]
    assert isinstance(result.errors["bad"], FunctionFailedError)
    assert isinstance(result.errors["bad"].__cause__, WorkerLostError)
    assert [a.outcome for a in result.attempts["bad"]] == ["worker-lost"] * 4
    assert len(list(tmp_path.iterdir())) == 4
    check_neighbours(result, "bad")


def test_several_of_them(client, tmp_path):
    """Each of several in one bundle is charged for itself."""
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    dag = dag_of(
        *(doing(i, int, i, max_retries=0) for i in range(COUNT)),
        doing("one", die, "kill", tmp_path / "one", 1, max_retries=1),
        doing("two", die, "kill", tmp_path / "two", 1, max_retries=1),
        doing("three", die, "exit", tmp_path / "three", 2, max_retries=2),
    )
    result = execute(dag)
    assert len(result.results) == COUNT + 3
    for name, count in (("one", 1), ("two", 1), ("three", 2)):
        # It may run once more because another one took its result along.
        attempts = result.attempts[name]
        assert len(attempts) == len(list((tmp_path / name).iterdir()))
        assert [a.outcome for a in attempts[:count]] == ["worker-lost"] * count
        assert attempts[-1].outcome == "ok"
    check_neighbours(result, "one", "two", "three")


def fail_and_die(blocked):
    """Raise, then end the process, then end well; there is no time for a report between.

    If it blocks the worker's loop, there is none at all.
    """
    if blocked and current().attempt == 1:
        get_worker().loop.add_callback(time.sleep, 3)
    if current().attempt <= 3:
        raise ValueError("not yet")
    if current().attempt == 4:
        os._exit(3)
    return "alive"


@pytest.mark.parametrize("blocked", [False, True])
def test_an_attempt_before_the_one_that_ends_its_worker(client, blocked):
    """Every attempt is recorded, and counts, though its worker could not report it."""
    bad = ("bad", blocked)  # another name each time: one that took long travels alone
    dag = dag_of(
        *(doing(i, int, i, max_retries=0) for i in range(COUNT)),
        doing(bad, fail_and_die, blocked, max_retries=4),
    )
    result = execute(dag, durations={id: "1 ms" for id in dag.functions})
    assert result.tasks < COUNT
    assert result.results[bad] == "alive"
    assert [a.outcome for a in result.attempts[bad]] == ["error"] * 3 + ["worker-lost", "ok"]
    check_neighbours(result, bad)
