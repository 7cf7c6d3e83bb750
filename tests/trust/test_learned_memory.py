"""Memory that is claimed as AUTO: learned by code, exact in the ledger, kept beyond a cluster."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import dask
import pytest
from distributed import Client, LocalCluster
from distributed.utils_test import gen_cluster

from handoff_dask import (
    AUTO,
    DAG,
    Function,
    FunctionFailedError,
    InvalidFunctionError,
    OutOfMemoryError,
    RetryPolicy,
    current,
    execute,
    execute_local,
    explain,
    plan,
    submit,
)
from handoff_dask.scheduler import measurements
from handoff_dask.scheduler.learned_file import LearnedFile
from handoff_dask.worker.isolation import unavailable
from tests.support import dag_of
from tests.trust.isolated_calls import need, using

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=str(unavailable()))


@pytest.fixture
def cluster():
    with LocalCluster(
        n_workers=1,
        threads_per_worker=4,
        processes=True,
        memory_limit="1GB",
        dashboard_address=":0",
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        yield client


def needing(sizes, **fields):
    dag = DAG("d")
    dag.map(need, sizes, cost={"memory": AUTO}, id="f", **fields)
    return dag


def outcomes(result):
    return {id: [a.outcome for a in attempts] for id, attempts in result.attempts.items()}


def test_two_kinds_of_one_code(client):
    """All succeed without a retry; each kill is in the ledger, and the next claim is higher."""
    sizes = [20] * 27 + [400] * 3
    # Those that take too much keep it for long enough to be noticed, also on a loaded machine.
    held = [0.0] * 27 + [1.0] * 3
    dag = DAG("d")
    dag.map(need, sizes, held, cost={"memory": AUTO}, id="f", max_retries=0)
    result = execute(dag, client=client)
    assert len(result.results) == 30
    for (_, i), attempts in result.attempts.items():
        assert [a.number for a in attempts] == list(range(1, len(attempts) + 1))
        assert [a.outcome for a in attempts[:-1]] == ["out-of-memory"] * (len(attempts) - 1)
        assert attempts[-1].outcome == "ok"
        claims = [a.cost["memory"] for a in attempts]
        assert claims == sorted(set(claims))
        assert claims[-1] + 64 >= sizes[i]
        assert all(claim <= 1000 for claim in claims)
        assert result.results["f", i] == claims[-1]
    assert any(len(attempts) > 1 for attempts in result.attempts.values())


def test_claims_come_down(client):
    """What waits claims what the first have taught; so do later runs, from the start."""
    first = execute(needing([150] * 12), client=client)
    second = execute(needing([150] * 12), client=client)
    assert set(second.results.values()) < {*range(166, 260)}
    assert min(first.results.values()) < 260
    at_once = {id: a[-1] for id, a in second.attempts.items()}
    assert len(at_once) == 12


def test_more_than_any_worker_has(client):
    """It fails when a whole worker was not enough, with every attempt on record."""
    dag = needing([5000], max_retries=0)
    with pytest.raises(FunctionFailedError, match="claim of 1,000 MB") as caught:
        execute(dag, client=client)
    assert isinstance(caught.value.__cause__, OutOfMemoryError)
    claims = [a.cost["memory"] for a in caught.value.attempts]
    assert claims[-1] == 1000
    assert claims == sorted(set(claims))
    assert {a.outcome for a in caught.value.attempts} == {"out-of-memory"}


def test_other_failures_are_charged(client):
    """Only out of memory is not the function's fault; a policy still escalates the rest."""

    def fail(mb):
        need(mb)
        raise ValueError(mb)

    policy = RetryPolicy(max_retries=1, escalate=lambda n, cost, error: {**cost, "slots": 0})
    dag = DAG()
    dag.add(fail, 300, id="f", cost={"memory": AUTO, "cpu": 1}, retry=policy)
    with pytest.raises(FunctionFailedError) as caught:
        execute(dag, client=client)
    ends = [a.outcome for a in caught.value.attempts]
    assert ends.count("error") == 2
    assert set(ends) <= {"error", "out-of-memory"}


def test_beside_what_is_declared(client):
    """Learned and declared claims share the worker: together they never exceed it."""
    dag = DAG()
    dag.map(using, [100] * 10, cost={"memory": AUTO})
    dag.map(using, [300] * 4, cost={"memory": 400}, isolate=True)
    uses = list(execute(dag, client=client).results.values())
    for _, at, _ in uses:
        assert sum(claim for claim, start, stop in uses if start <= at < stop) <= 1000


def test_the_next_cluster_knows(tmp_path):
    """A new cluster starts with what the last one learned; the file names codes only by name."""
    path = tmp_path / "learned.json"
    claims = []
    for _ in range(2):
        with (
            dask.config.set({"handoff.learned": str(path)}),
            LocalCluster(
                n_workers=1, threads_per_worker=4, memory_limit="1GB", dashboard_address=":0"
            ) as cluster,
            Client(cluster) as client,
        ):
            result = execute(needing([150] * 8, seconds=0.05), client=client)
            claims.append(set(result.results.values()))
    assert max(claims[1]) < 260
    content = json.loads(path.read_text())
    assert "isolated_calls.need" in str(content)


def test_durations_are_kept(tmp_path):
    """The next cluster knows how long each function takes before it has run any."""
    path = tmp_path / "learned.json"
    dag = DAG("d")
    dag.map(time.sleep, [0.02, 0.3, 0.02])

    async def expected(s):
        while True:
            functions = s.plugins["handoff"].engine._functions.values()
            if functions and None not in (known := [f.seconds for f in functions]):
                return known
            await asyncio.sleep(0.01)

    # Dask's test tools replace the configuration.
    learned = {"handoff.learned": str(path)}

    @gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], config=learned)
    async def first(c, s, a):
        await execute(dag)

    @gen_cluster(client=True, nthreads=[], config=learned)
    async def second(c, s):
        run = await submit(dag, placement_timeout=60, bundle=False)
        known = await asyncio.wait_for(expected(s), 30)
        assert known[1] >= 0.3 and min(known) >= 0.02
        await run.cancel()

    first()
    second()


def test_a_long_function_travels_alone(tmp_path):
    """A new cluster knows which of many short functions is long: it puts that into no bundle."""
    path = tmp_path / "learned.json"
    dag = DAG("d")
    dag.map(time.sleep, [0.2] + [0.001] * 400)

    # Dask's test tools replace the configuration.
    @gen_cluster(client=True, nthreads=[("", 2)], config={"handoff.learned": str(path)})
    async def bundled(c, s, a):
        run = await submit(dag)
        (record,) = s.plugins["handoff"].runs.values()
        await run
        return [home >= 0 for home in record.homes]

    bundled()
    long, *short = bundled()
    assert not long
    assert sum(short) > 300


@pytest.mark.parametrize("content", ["{", "[]", '{"format": "other"}'])
def test_a_damaged_file(content, tmp_path, caplog):
    """It is renamed, with one warning; the run goes on and a new file is written."""
    path = tmp_path / "learned.json"
    path.write_text(content)
    with (
        dask.config.set({"handoff.learned": str(path)}),
        LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        assert execute(dag_of(Function("f", code=time.sleep, extra_args=[0.02])), client=client)
    assert "format" in json.loads(path.read_text())
    assert sum("learned" in record.message for record in caplog.records) == 1


def test_a_place_that_cannot_be_written(tmp_path, caplog):
    """The run goes on without it."""
    with (
        dask.config.set({"handoff.learned": "no-such-protocol://x/y"}),
        LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        result = execute(dag_of(Function("f", code=time.sleep, extra_args=[0.02])), client=client)
        assert result.results == {"f": None}
    assert "no-such-protocol" in caplog.text


#: The process of the tests may use more memory than their workers have.
UNPAUSED = {f"distributed.worker.memory.{limit}": False for limit in ("target", "spill", "pause")}


@gen_cluster(client=True, nthreads=[], config=UNPAUSED)
async def test_workers_that_come_later(c, s):
    """Without workers, nothing is claimed; the first one to come decides."""
    from distributed import Worker

    run = await submit(needing([10] * 3), placement_timeout=60)
    async with Worker(s.address, nthreads=2, memory_limit="800MB"):
        result = await run
        assert set(result.results.values()) == {400}
    del run


@gen_cluster(
    client=True,
    nthreads=[("", 4, {"memory_limit": "1GB"}), ("", 4, {"memory_limit": "20GB"})],
    config=UNPAUSED,
)
async def test_a_worker_with_much_memory_beside(c, s, a, b):
    """It does not raise the claims of what others run: these use all their threads."""
    await execute(needing([10] * 8))
    result = await execute(needing([10] * 8))
    assert set(result.results.values()) == {250}


def test_the_log_counts_what_is_left(caplog):
    """A kill uses none of the retries: the log does not say that no attempt is left."""

    def fail(mb):
        block = b"x" * (mb * 1_000_000)
        while current().cost["memory"] < mb:
            time.sleep(0.01)  # until it is killed
        raise ValueError(len(block) // 1_000_000)

    @gen_cluster(
        client=True, nthreads=[("", 2)], worker_kwargs={"memory_limit": "800MB"}, config=UNPAUSED
    )
    async def run(c, s, a):
        dag = DAG("d")
        dag.add(fail, 500, id="f", cost={"memory": AUTO}, max_retries=1)
        with pytest.raises(FunctionFailedError):
            await execute(dag)

    run()
    ends = [r.getMessage().split("'d': ")[1] for r in caplog.records if "attempt" in r.message]
    assert ends == [
        "attempt 2 of 3 failed: ValueError: 500; it will be retried",
        "attempt 3 of 3 failed: ValueError: 500; no attempt is left",
    ]


@gen_cluster(client=True, nthreads=[], config=UNPAUSED, timeout=60)
async def test_a_worker_that_leaves_after_a_kill(c, s):
    """What ran out of memory and waits for a larger worker claims what those that stay have."""
    from distributed import Worker

    async with (
        Worker(s.address, nthreads=8, memory_limit="1GB", name="small"),
        Worker(s.address, nthreads=8, memory_limit="4GB", name="large") as large,
    ):
        dag = needing([700], seconds=0.1)
        for name, memory in (("small", 900), ("large", 3300)):
            dag.add(time.sleep, 5, id=name, cost={"memory": memory}, node=name, max_retries=0)
        run = await submit(dag, placement_timeout=1, on_error="continue")
        functions = s.plugins["handoff"].functions
        while not any(
            record.row.learns_memory and record.exceeded for record in functions.values()
        ):
            await asyncio.sleep(0.01)
        await large.close()
        result = await run
        assert result.results["f", 0] == 1000


@gen_cluster(client=True, nthreads=[], config=UNPAUSED, timeout=60)
async def test_a_worker_that_leaves_beside_pins(c, s):
    """Functions of one code that different workers can run claim what theirs have."""
    from distributed import Worker

    async with (
        Worker(s.address, nthreads=2, memory_limit="400MB", name="small"),
        Worker(s.address, nthreads=2, memory_limit="4GB", name="large") as large,
    ):
        dag = DAG("d")
        for name, memory in (("small", 390), ("large", 3900)):
            dag.add(time.sleep, 2, id=name, cost={"memory": memory}, node=name, max_retries=0)
        for i in range(8):
            fields = {"node": "small"} if i % 2 else {}
            dag.add(need, 10, id=("f", i), cost={"memory": AUTO}, **fields)
        run = await submit(dag, placement_timeout=1, on_error="continue")
        while (await run.status())["running"] < 2:
            await asyncio.sleep(0.01)
        await large.close()
        result = await run
        assert {id for id in dag if id in result.results} >= {("f", i) for i in range(8)}


def test_all_is_saved_when_a_run_closes(tmp_path, monkeypatch):
    """So it is if it closes while an earlier save goes on."""
    path = tmp_path / "learned.json"
    save = LearnedFile.save

    def slow(file, uses):
        time.sleep(0.3)
        save(file, uses)

    monkeypatch.setattr(LearnedFile, "save", slow)

    @gen_cluster(client=True, nthreads=[("", 1)], config={"handoff.learned": str(path)})
    async def runs(c, s, a):
        dag = DAG("d")
        dag.map(time.sleep, [0.02] * 5)
        await execute(dag, bundle=False)
        while not path.exists() or len(durations()) < 5:
            await asyncio.sleep(0.01)

    def durations():
        return json.loads(path.read_text())["codes"]["time.sleep"]["durations"]

    runs()


@pytest.mark.parametrize("method", ["open", "save"])
def test_a_file_system_that_hangs(method, tmp_path, monkeypatch, caplog):
    """The run goes on without the file, and the scheduler closes."""
    hanging = threading.Event()
    monkeypatch.setattr(LearnedFile, method, lambda *_: hanging.wait())
    monkeypatch.setattr(measurements, "PATIENCE", 0.2)

    @gen_cluster(
        client=True,
        nthreads=[("", 1)],
        config={"handoff.learned": str(tmp_path / "learned.json")},
        clean_kwargs={"threads": False},
    )
    async def runs(c, s, a):
        dag = dag_of(Function("f", code=time.sleep, extra_args=[0.02]))
        assert (await execute(dag)).results == {"f": None}

    try:
        runs()
    finally:
        hanging.set()
    assert "takes too long" in caplog.text


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"cost": {"cpu": AUTO}}, "only that of memory"),
        ({"cost": {"memory": AUTO}, "isolate": False}, "must not be False"),
        ({"isolate": "yes"}, "True, False or None"),
    ],
)
def test_mistakes(fields, problem):
    """They are reported when the DAG is validated."""
    with pytest.raises(InvalidFunctionError, match=problem):
        dag_of(Function("f", code=int, **fields)).validate()


def test_without_running():
    """What never runs ignores what would be learned."""
    dag = needing([1, 2])
    assert plan(dag, {"w": {"cpu": 2}}, dict.fromkeys(dag, 1.0)).makespan == 1.0
    dag = DAG()
    dag.add(int, cost={"memory": AUTO})
    assert execute_local(dag).results == {"int": 0}
    assert repr(dag["int"].cost) == "{'memory': AUTO}"
    with LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster:
        with Client(cluster) as client:
            assert explain(dag, client=client).possible
