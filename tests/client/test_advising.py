"""What a run says of the costs that its functions should declare."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from distributed import Client, LocalCluster
from distributed.utils_test import gen_cluster

from handoff_dask import (
    AUTO,
    DAG,
    Attempt,
    ExecutionResult,
    Function,
    Usage,
    collocated,
    discover_nodes,
    execute,
    execute_local,
    get_run,
    submit,
)
from handoff_dask.cli.result_files import OutputFile, read_result, write_result
from handoff_dask.worker.isolation import unavailable

WORKERS = {"tcp://a": {"cpu": 4, "memory": 8000, "threads": 4}}


def load(path):
    return path


def merge(*parts):
    return parts


def attempt(start, peak, outcome="ok", claim=8000):
    usage = Usage(1.0, peak, 100)
    return Attempt(
        1, "tcp://a", "a", "host", start, start + 1, {"memory": claim}, outcome, usage=usage
    )


def result_of(*functions, peaks, workers=WORKERS, **options):
    """Return the result of a run of functions, of which each used some memory."""
    attempts = {
        f.id: (attempt(start, peak, **options),)
        for start, (f, peak) in enumerate(zip(functions, peaks, strict=True))
    }
    by_id = {f.id: f for f in functions}
    return ExecutionResult("d", {}, attempts=attempts, dag_functions=by_id, capabilities=workers)


def loads(**fields):
    return [Function(("load", i), [], load, extra_args=[i], **fields) for i in range(4)]


def test_what_less_memory_would_have_saved():
    """Four functions that claimed the whole worker ran in turn; they would have run at once."""
    advice = result_of(*loads(cost={"memory": 8000}), peaks=[700, 800, 900, 1000]).advice()
    (row,) = advice.rows
    assert (row.code, row.count) == (f"{__name__}.load", 4)
    assert row.memory == (800, 1000, 1000)
    assert row.advised == {"memory": 1100, "cpu": 1}
    assert (advice.makespan, advice.advised_makespan) == (4.0, 1.0)
    assert str(advice).endswith(
        "predicted makespan: 4 s with the declared costs, 1 s with the advised ones"
    )
    json.dumps(advice.as_dict(), allow_nan=False)


def test_a_row_for_each_code_and_cost():
    """Functions of one code that declare different costs are apart, in the order of the DAG."""
    functions = [
        *loads(cost={"memory": 8000}),
        Function("small", [], load, extra_args=[1], cost={"Memory": 10}),
        Function("merge", [("load", i) for i in range(4)], merge),
    ]
    rows = result_of(*functions, peaks=[1, 2, 3, 4, 5, 6]).advice().rows
    assert [(row.code.split(".")[-1], row.count, row.declared) for row in rows] == [
        ("load", 4, {"memory": 8000}),
        ("load", 1, {"memory": 10}),
        ("merge", 1, {}),
    ]


def test_codes_that_a_name_does_not_tell():
    """Lambdas are shown with their place; those that do the same are one code, wherever."""
    functions = [
        Function("a", [], lambda: 1),
        Function("b", [], lambda: 2),
        Function("c", [], lambda: 1),
    ]
    rows = result_of(*functions, peaks=[1, 2, 3]).advice().rows
    line = test_codes_that_a_name_does_not_tell.__code__.co_firstlineno + 3
    name = f"{__name__}.test_codes_that_a_name_does_not_tell.<locals>.<lambda>"
    assert [(row.code, row.count) for row in rows] == [
        (f"{name} at test_advising.py:{line}", 2),
        (f"{name} at test_advising.py:{line + 1}", 1),
    ]


def test_learned_memory_counts_as_what_was_claimed():
    """The plan with the declared costs has what AUTO claimed in the end."""
    result = result_of(*loads(cost={"memory": AUTO}), peaks=[900] * 4, claim=4000)
    advice = result.advice()
    assert advice.rows[0].declared == {"memory": AUTO}
    assert (advice.makespan, advice.advised_makespan) == (2.0, 1.0)
    assert "AUTO" in str(advice)


def test_functions_that_ran_out_of_memory_count():
    """They used at least that much. Attempts that failed otherwise say nothing."""
    (row,) = result_of(*loads(), peaks=[900] * 4, outcome="out-of-memory").advice().rows
    assert row.memory.most == 900
    assert result_of(*loads(), peaks=[900] * 4, outcome="error").advice().rows == ()


@pytest.mark.parametrize("pin", ["a", "host", "tcp://a", ("gone", "a")])
def test_pins_mean_the_workers_that_answered(pin):
    """The plan knows addresses; a pin by name or host is that of a worker that ran something."""
    functions = [
        *loads(node=pin),
        Function("m", [("load", 0)], merge, node=collocated(("load", 0))),
    ]
    assert result_of(*functions, peaks=[1] * 5).advice().makespan == 2.0


def test_without_a_prediction():
    """Where no worker could hold the costs, or there was no cluster, the rest is there."""
    for workers in ({}, {"tcp://a": {"cpu": 1, "memory": 1000}}):
        result = result_of(*loads(cost={"memory": 8000}), peaks=[2000] * 4, workers=workers)
        advice = result.advice()
        assert (advice.makespan, advice.advised_makespan) == (None, None)
        assert advice.rows[0].advised["memory"] == 2200


def test_advice_that_no_worker_could_follow():
    """The advice says so."""
    result = result_of(*loads(cost={"cpu": 1}), peaks=[20_000] * 4)
    assert str(result.advice()).endswith(
        "predicted makespan: 1 s with the declared costs, no worker could hold the advised ones"
    )


def test_memory_that_was_not_measured():
    """The advice says why, in text and in notebooks."""
    advice = execute_local(DAG().add_function(Function("f", [], list))).advice()
    note = "memory was not measured: only that of isolated functions is"
    assert str(advice).endswith(note) and note in advice._repr_html_()
    assert str(ExecutionResult("d", {}).advice()) == "nothing was measured"


@pytest.mark.parametrize("name", ["out.json", "out.pkl"])
def test_a_file_gives_the_same_advice(tmp_path, name):
    """Costs, codes, dependencies, pins and workers are in the output of a run."""
    functions = [
        *loads(cost={"memory": 8000}, node=("a", "b")),
        Function("i", [("load", 1)], merge, type="inline"),
        Function(
            "m", [("load", 0), "i"], merge, node=collocated(("load", 0)), cost={"memory": AUTO}
        ),
        Function("l", [], lambda: 1),
    ]
    result = result_of(*functions, peaks=[700] * 7)
    attempts = {id_: tried for id_, tried in result.attempts.items() if id_ != "i"}
    result = replace(result, attempts=attempts)
    write_result(OutputFile(tmp_path / name), result)
    assert read_result(tmp_path / name).advice() == result.advice()
    assert result.advice().makespan is not None


def check(result, workers):
    assert result.capabilities == {
        address: {**offered, "threads": 2} for address, offered in workers.items()
    }
    advice = result.advice()
    assert advice.rows[0].code == f"{__name__}.load"
    assert advice.makespan > 0
    json.dumps(result.as_dict()["functions"]["merge"])


@gen_cluster(client=True, nthreads=[("127.0.0.1", 2)] * 2)
async def test_on_a_cluster(c, s, a, b):
    """The workers are those at the end of the run, also for a client that comes later."""
    dag = DAG("d")
    dag.add(merge, dag.map(load, range(3), cost={"cpu": 1}))
    run = await submit(dag, detach=True)
    await run.result()
    workers = await discover_nodes()
    assert len(workers) == 2
    await s.remove_worker(b.address, stimulus_id="test")
    check(await run.result(), workers)
    async with Client(s.address, asynchronous=True) as other:
        check(await (await get_run("d", client=other)).result(), workers)
    check(await execute(dag), await discover_nodes())


def fill(megabytes):
    return len(bytearray(megabytes * 1_000_000))


@pytest.mark.skipif(bool(unavailable()), reason=str(unavailable()))
def test_of_isolated_functions():
    """Advised is what their processes used and some headroom, whatever they declared."""
    with (
        LocalCluster(
            1, threads_per_worker=2, memory_limit="2GB", dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        dag = DAG("fills")
        dag.map(fill, [100, 150, 200], cost={"memory": 1500}, isolate=True)
        advice = execute(dag, client=client).advice()
    (row,) = advice.rows
    assert 200 <= row.memory.most <= row.advised["memory"] < 600
    assert advice.advised_makespan < advice.makespan
