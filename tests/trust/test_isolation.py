"""Functions in processes of their own: limits are enforced on the one that breaks them."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from pathlib import Path

import numpy
import psutil
import pytest
from distributed import Client, LocalCluster, get_client, secede

from handoff_dask import (
    DAG,
    AllocationError,
    Argument,
    Function,
    FunctionFailedError,
    OutOfMemoryError,
    ProcessDiedError,
    RetryPolicy,
    RunCancelledError,
    current,
    execute,
    execute_local,
    grow,
    register_node,
    submit,
)
from handoff_dask.worker.isolation import unavailable
from tests.support import dag_of
from tests.trust.isolated_calls import (
    Stuck,
    coroutine,
    grandchildren,
    hang,
    hog,
    kill,
    leave,
    segfault,
    slow,
    where,
)

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=str(unavailable()))

#: Seconds within which what must end has ended.
PROMISED = 20


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        processes=True,
        memory_limit="2GB",
        dashboard_address=":0",
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        client.wait_for_workers(1)
        before = pids(client)
        yield client
        assert pids(client) == before, "the worker was lost"
        assert client.run_on_scheduler(left_behind) == []


def pids(client):
    return client.run(os.getpid)


async def left_behind(dask_scheduler):
    """Return what of ours is on the scheduler although no run is."""
    plugin = dask_scheduler.plugins.get("handoff")
    deadline = time.monotonic() + 10
    while plugin is not None and plugin.functions and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return [] if plugin is None else list(plugin.functions)


def isolated(id, code, *args, **fields):
    fields.setdefault("isolate", True)
    return Function(id, code=code, extra_args=list(args), **fields)


def outcomes(result, id):
    return [attempt.outcome for attempt in result.attempts[id]]


# What a function finds


def test_a_process_of_its_own(client):
    """It has its thread pools as wide as its `cpu`, and knows who it is."""
    dag = dag_of(
        isolated("one", where, cost={"cpu": 1.5}),
        isolated("two", where),
        Function("in", code=where),
    )
    results = execute(dag, client=client).results
    (worker,) = pids(client).values()
    assert results["in"][0] == worker
    for id in ("one", "two"):
        pid, _, _, me = results[id]
        assert pid != worker
        assert (me.id, me.attempt, me.gpus) == (id, 1, ())
    assert results["one"][2] == "2"
    assert results["one"][3].cost == {"cpu": 1.5}
    assert results["two"][2] == results["in"][2]


def test_the_runs_default(client):
    """`execute(isolate=True)` isolates every function but those that say no; inline ones join."""
    functions = [
        Function("inline", code=os.getpid, type="inline"),
        Function("user", ["inline"], code=lambda pid: (pid, os.getpid())),
        Function("in", code=os.getpid, isolate=False),
    ]
    results = execute(dag_of(*functions), client=client, isolate=True).results
    (worker,) = pids(client).values()
    assert results["in"] == worker
    assert results["user"][0] == results["user"][1] != worker
    functions = [Function("inline", code=os.getpid, type="inline", isolate=True), functions[1]]
    results = execute(dag_of(*functions), client=client).results
    assert results["user"][0] != worker


def test_devices(client):
    """It sees only the devices that it claims, numbered from 0."""

    def visible():
        return os.environ.get("CUDA_VISIBLE_DEVICES"), current().gpus

    (address,) = pids(client)
    register_node(address, {"gpu": 2}, client=client)
    dag = DAG()
    dag.map(lambda _: (time.sleep(0.2), visible())[1], range(2), cost={"gpu": 1}, isolate=True)
    dag.add(visible, id="none", isolate=True)
    dag.add(visible, id="both", isolate=True, cost={"gpu": 2})
    results = execute(dag, client=client).results
    assert {results["lambda", i][0] for i in range(2)} == {"0", "1"}
    assert {results["lambda", i][1] for i in range(2)} == {(0,)}
    assert results["none"] == ("", ())
    assert results["both"] == ("0,1", (0, 1))


@pytest.mark.parametrize("call", [lambda: execute(DAG()), get_client, secede])
def test_no_cluster_in_there(call, client):
    """What needs the cluster raises an error that names `isolate`."""
    with pytest.raises(FunctionFailedError, match="isolate") as caught:
        execute(dag_of(isolated("f", call, max_retries=0)), client=client)
    assert "isolate=False" in str(caught.value.__cause__)


def test_what_it_prints_and_logs(client):
    """Output and log records arrive in the worker, as from a thread."""

    def speak():
        print("printed in a process")
        logging.getLogger("mine").warning("logged in a process")

    def listen():
        heard = []

        class Listening(logging.Handler):
            def emit(self, record):
                heard.append(record.getMessage())

        logging.getLogger("mine").addHandler(Listening())
        sys.heard = heard

    client.run(listen)
    execute(dag_of(isolated("speak", speak)), client=client)
    deadline = time.monotonic() + PROMISED
    while time.monotonic() < deadline:
        (heard,) = client.run(lambda: sys.heard).values()
        if heard:
            break
    assert heard == ["logged in a process"]


def test_values(client):
    """Arrays, closures and classes of a script go in and out; inputs are writable and private."""

    class Local:
        def __init__(self, value):
            self.value = value

    def change(array, other):
        array += 1
        return Local(array), other

    def check(pair, array):
        local, other = pair
        return local.value.sum(), other, array.sum(), local.value.flags.writeable

    functions = [
        Function("array", code=numpy.ones, extra_args=[500_000]),
        isolated("change", change, "text", args=["array"]),
        isolated("check", check, args=["change", "array"]),
        Function("in", ["change", "array"], check),
    ]
    results = execute(dag_of(*functions), client=client, results=["check", "in"]).results
    assert results["check"] == results["in"] == (1_000_000, "text", 500_000, True)


def test_modules_that_are_sent_again(client, tmp_path, monkeypatch):
    """A process that has imported an older version of an uploaded file is not used again."""
    monkeypatch.setattr(sys, "path", list(sys.path))  # the scheduler imports it here, too

    def version():
        import sent_again

        return sent_again.VERSION

    try:
        for number in (1, 22, 333):
            (tmp_path / "sent_again.py").write_text(f"VERSION = {number}")
            client.upload_file(str(tmp_path / "sent_again.py"))
            dag = dag_of(isolated("process", version), Function("thread", code=version))
            assert {*execute(dag, client=client).results.values()} == {number}
    finally:
        sys.modules.pop("sent_again", None)


def test_arguments_with_transforms(client):
    """Transforms run beside it, as for any function."""
    pack = Argument("text", lambda data, *_: data[::-1], lambda data, *_: data + "!")
    functions = [isolated("text", str, "abc"), isolated("user", str.upper, args=[pack])]
    assert execute(dag_of(*functions), client=client).results["user"] == "CBA!"


def test_coroutines(client):
    """The coroutine of a coroutine function is run to its end, there."""
    result = execute(dag_of(isolated("f", coroutine)), client=client)
    assert result.results["f"] not in pids(client).values()


# What ends it


@pytest.mark.parametrize(
    ("code", "fields", "outcome", "cause", "text"),
    [
        (segfault, {}, "process-died", ProcessDiedError, "SIGSEGV"),
        (leave, {}, "process-died", ProcessDiedError, "status 3"),
        (kill, {}, "process-died", ProcessDiedError, "SIGKILL"),
        (hog, {"cost": {"memory": 100}}, "out-of-memory", OutOfMemoryError, "claim of 100 MB"),
        (hang, {"timeout": 0.3}, "timeout", TimeoutError, "timeout of 0.3 s"),
        (hang, {"timeout": 1e-6}, "timeout", TimeoutError, "timeout of 1e-06 s"),
        (grandchildren, {"timeout": 0.3}, "timeout", TimeoutError, "timeout of 0.3 s"),
        (lambda: 1 / 0, {}, "error", ZeroDivisionError, "division"),
        (lambda: open, {}, None, None, None),
        (lambda: (i for i in ()), {}, "error", TypeError, "generator"),
    ],
    ids="segfault exit kill memory timeout at-once sleepers error fine unpicklable".split(),
)
def test_ends(code, fields, outcome, cause, text, client):
    """Each end has its outcome and cause; its neighbours and plain tasks never notice."""
    plain = client.submit(lambda: time.sleep(0.5) or 7, pure=False)
    dag = dag_of(
        isolated("bad", code, max_retries=1, **fields),
        isolated("good", where),
        Function("in", code=where),
    )
    result = execute(dag, client=client, on_error="continue")
    assert plain.result() == 7
    assert set(result.results) >= {"good", "in"}
    if outcome is None:
        assert not result.errors
        return
    error = result.errors["bad"]
    assert outcomes(result, "bad") == [outcome] * 2
    assert isinstance(error.__cause__, cause)
    assert text in str(error.__cause__)
    assert text in str(error)
    assert "sleep" not in children_of(client)


def children_of(client):
    """Return the commands of the processes below the workers, once those that end have ended."""

    def commands():
        return [child.name() for child in psutil.Process().children(recursive=True)]

    time.sleep(0.2)
    return [name for names in client.run(commands).values() for name in names]


def test_a_result_that_hangs_on_arrival(client):
    """Its timeout counts for the result, too: the attempt ends, but its thread is free later."""
    dag = DAG("stuck")
    dag.add(Stuck, id="a", isolate=True, timeout=0.5, max_retries=0)
    started = time.monotonic()
    result = execute(dag, on_error="continue")
    assert time.monotonic() - started < 4
    assert result.attempts["a"][0].outcome == "timeout"


def test_the_limit_is_the_claim(client):
    """Killed a little past its claim, with the peak in the attempt; without a claim, not at all."""
    dag = dag_of(
        isolated("past", hog, cost={"memory": "300 MB"}, max_retries=0),
        isolated("within", hog, 200, cost={"memory": "300 MB"}),
        isolated("free", hog, 500),
    )
    result = execute(dag, client=client, on_error="continue")
    assert set(result.results) == {"within", "free"}
    (attempt,) = result.attempts["past"]
    assert 364 <= attempt.usage.peak_memory < 1000
    error = result.errors["past"].__cause__
    assert (error.claim, error.peak) == (300, attempt.usage.peak_memory)
    (attempt,) = result.attempts["within"]
    assert 195 <= attempt.usage.peak_memory < 364


def test_retries_on_out_of_memory_alone(client):
    """Policies can tell the ends apart; another end is not retried then."""
    policy = RetryPolicy(
        max_retries=2, retry_on=(OutOfMemoryError,), escalate=grow("memory", factor=4)
    )
    dag = dag_of(
        isolated("grows", hog, 600, cost={"memory": 60}, retry=policy),
        isolated("dies", leave, retry=policy),
    )
    result = execute(dag, client=client, on_error="continue")
    assert result.results["grows"] == 600
    assert [a.cost["memory"] for a in result.attempts["grows"]] == [60, 240, 960]
    assert outcomes(result, "grows") == ["out-of-memory", "out-of-memory", "ok"]
    assert outcomes(result, "dies") == ["process-died"]


def test_no_process_can_be_started(client):
    """That is a failure like any other: counted, with its cause, and subject to its policy."""

    def fail():
        from handoff_dask.worker.isolation.handles import NoProcessError
        from handoff_dask.worker.isolation.pool import Pool

        def child(*_):
            raise NoProcessError("no process today")

        Pool.usual, Pool._child = Pool._child, child

    def mend():
        from handoff_dask.worker.isolation.pool import Pool

        Pool._child = Pool.usual

    never = RetryPolicy(max_retries=9, give_up_on=(RuntimeError,))
    dag = dag_of(
        isolated("counted", where, max_retries=2), isolated("given up", where, retry=never)
    )
    client.run(fail)
    try:
        result = execute(dag, client=client, on_error="continue")
    finally:
        client.run(mend)
    assert outcomes(result, "counted") == ["error"] * 3
    assert outcomes(result, "given up") == ["error"]
    assert all("no process today" in str(e.__cause__) for e in result.errors.values())


def test_growing_ends_where_no_worker_has_more(client):
    """The error says what was asked for; another failure lets nothing grow."""
    policy = RetryPolicy(max_retries=9, escalate=grow(factor=3))
    dag = dag_of(
        isolated("hog", hog, 100_000, cost={"memory": 400}, retry=policy),
        isolated("error", int, "x", cost={"memory": 400}, max_retries=1, retry=policy),
    )
    result = execute(dag, client=client, on_error="continue")
    assert isinstance(result.errors["hog"].__cause__ or result.errors["hog"], AllocationError)
    assert {a.cost["memory"] for a in result.attempts["error"]} == {400}


def test_cancel(client):
    """A cancelled run is killed: its claim and its thread are free at once."""
    run = submit(dag_of(*(isolated(i, hang, cost={"cpu": 1}) for i in range(2))), client=client)
    while run.status()["running"] < 2:
        time.sleep(0.01)
    run.cancel()
    with pytest.raises(RunCancelledError):
        run.result()
    assert execute(dag_of(isolated("next", where, cost={"cpu": 2})), client=client).results


def test_a_failed_run(client):
    """What still runs when its run fails is killed, too."""
    dag = dag_of(isolated("hang", hang, cost={"cpu": 1}), isolated("bad", leave, max_retries=0))
    with pytest.raises(FunctionFailedError, match="'bad'"):
        execute(dag, client=client)
    assert execute(dag_of(isolated("next", where, cost={"cpu": 2})), client=client).results


def test_usage(client):
    """What an attempt used is measured; a thread knows its processor time and its result.

    Of a result that nobody needs, the size is not known.
    """

    def work():
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        return bytes(10_000)

    dag = dag_of(isolated("process", work), Function("thread", code=work))
    attempts = execute(dag, client=client).attempts
    usage = attempts["process"][0].usage
    assert usage.cpu_time >= 0.19
    assert 0 < usage.peak_memory < 100
    assert 10_000 <= usage.result_bytes < 11_000
    usage = attempts["thread"][0].usage
    assert usage.cpu_time > 0.05
    assert usage.peak_memory is None
    assert 10_000 <= usage.result_bytes < 11_000
    attempts = execute(dag, client=client, results=[]).attempts
    assert {attempts[id][0].usage.result_bytes for id in attempts} == {None}


def test_a_worker_that_is_retired():
    """Its processes end with it, and what it ran is done elsewhere."""
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        run = submit(dag_of(isolated("f", slow)), client=client)
        while not run.status()["running"]:
            time.sleep(0.01)
        (where_,) = [a for a, keys in client.processing().items() if keys]
        client.retire_workers([where_])
        result = run.result(timeout=60)
        assert result.allocations["f"] != where_


def test_a_worker_that_is_killed(tmp_path):
    """No process outlives its worker, however it ends."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        note = tmp_path / "pid"

        def hang_once():
            if note.exists():
                return 1
            note.write_text(str(os.getpid()))
            hang()

        run = submit(dag_of(isolated("f", hang_once)), client=client)
        while not (note.exists() and note.read_text()):
            time.sleep(0.01)
        (worker,) = pids(client).values()
        os.kill(worker, signal.SIGKILL)
        assert run.result(timeout=60).results == {"f": 1}
        deadline = time.monotonic() + PROMISED
        while psutil.pid_exists(int(note.read_text())) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not psutil.pid_exists(int(note.read_text()))


def test_elsewhere(monkeypatch):
    """Where functions cannot be isolated, that is an error at submission."""
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(Exception, match="isolate"):
        execute(dag_of(isolated("f", where)))


def test_without_a_cluster():
    """`execute_local` ignores it, as it does costs."""
    assert execute_local(dag_of(isolated("f", os.getpid))).results["f"] == os.getpid()


def shared_memory():
    """Return the names of shared memory, except multiprocessing's, which other tests make."""
    names = {path.name for path in Path("/dev/shm").iterdir()}
    return {name for name in names if not name.startswith(("sem.", "psm_"))}


def test_nothing_is_left(client, tmp_path):
    """No descriptor, shared memory or temporary file is left after many calls."""

    def state():
        return len(os.listdir("/proc/self/fd"))

    warm = DAG()
    warm.map(numpy.ones, [300_000] * 20, isolate=True)
    execute(warm, client=client, results=[])
    before = client.run(state)
    shm = shared_memory()
    many = DAG()
    many.map(numpy.ones, [300_000] * 300, isolate=True)
    execute(many, client=client, results=[])
    (left,) = client.run(state).values()
    assert left <= next(iter(before.values())) + 5
    assert shared_memory() <= shm
