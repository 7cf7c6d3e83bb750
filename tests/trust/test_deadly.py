"""Values that kill the worker that unpickles them: they use up attempts like any crash."""

from __future__ import annotations

import os
import time
from functools import partial

import pytest
from distributed import Client, LocalCluster, Worker

from handoff_dask import (
    Argument,
    Function,
    FunctionFailedError,
    TransferError,
    WorkerLostError,
    submit,
)
from tests.support import dag_of


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(
        n_workers=3, threads_per_worker=1, dashboard_address=":0", memory_limit=0
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        client.wait_for_workers(3, timeout=60)
        yield client


class Deadly:
    """Kills the process that unpickles it, unless that is its home."""

    def __init__(self, folder, deadly, home=None):
        self.folder = folder
        self.deadly = deadly
        self.home = home

    def __reduce__(self):
        return _opened, (self.folder, self.deadly, self.home)

    def __call__(self, *args):
        return args[0]


def _opened(folder, deadly, home):
    # Values are opened in threads that get_worker() does not know.
    here = next((worker.name for worker in Worker._instances), home)
    if here != home:
        (folder / str(time.time_ns())).touch()
        if openings(folder) in deadly:
            os._exit(7)
    return Deadly(folder, deadly, home)


def openings(folder):
    return len(list(folder.iterdir()))


@pytest.mark.parametrize("where", ["argument", "code", "transform"])
def test_calls(client, tmp_path, where):
    """Unpickling a call is part of the attempt: a worker that dies of it counts."""
    fields = {"code": type, "args": ["a"]}
    if where == "argument":
        fields["extra_args"] = [Deadly(tmp_path, range(99))]
    elif where == "code":
        fields["code"] = Deadly(tmp_path, range(99))
    else:
        fields["args"] = [Argument("a", None, Deadly(tmp_path, range(99)))]
    dag = dag_of(Function("a", [], int), Function("f", max_retries=0, **fields))
    plain = client.submit(str, 7)
    with pytest.raises(FunctionFailedError, match="exited with status 7") as caught:
        submit(dag).result(timeout=60)
    assert caught.value.function_id == "f"
    assert isinstance(caught.value.__cause__, WorkerLostError)
    assert openings(tmp_path) == 1
    assert plain.result() == "7"


def test_results(client, tmp_path):
    """After two workers died while fetching a result, its consumer fails and names the producer."""
    folder = tmp_path / "openings"
    folder.mkdir()

    def make():
        return Deadly(folder, (1, 2), home=0)

    def wait(name, *args):
        while not (tmp_path / name).exists():
            time.sleep(0.01)

    run = submit(
        dag_of(
            Function("make", [], make, node="0"),
            *(Function(i, [], str, extra_args=[i], node="0") for i in range(9)),
            Function("use", [*range(9), "make"], print, node="1", max_retries=0),
            Function("at home", ["make"], id, node="0"),
            Function("one", [], partial(wait, "one"), node="2"),
            Function("late", ["make", "one"], print, node="2"),
            Function("two", ["at home"], partial(wait, "two"), node="0"),
        ),
        on_error="continue",
    )
    error = run.futures["use"].exception(timeout=60)
    assert isinstance(error, TransferError)
    assert error.type_name.endswith("Deadly")
    assert "of function 'make'" in str(error) and "(1) exited with status 7" in str(error)
    assert "and 6 more" in str(error)
    assert openings(folder) == 2

    # Others are not sent there to try it: nobody else dies.
    (tmp_path / "one").touch()
    assert "'make'" in str(run.futures["late"].exception(timeout=60))
    assert openings(folder) == 2

    # It is tried again, if somebody asks for that; and what was opened once is trusted.
    run.futures["use"].retry()
    run.futures["use"].result(timeout=60)
    run.futures["late"].retry()
    run.futures["late"].result(timeout=60)
    (tmp_path / "two").touch()
    result = run.result(timeout=60)
    assert not result.errors
    assert [a.outcome for a in result.attempts["use"]] == ["ok"]
