"""The main promises on real worker processes."""

from __future__ import annotations

import asyncio
import operator
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from distributed import Client, Event, get_worker

from handoff_dask import (
    AllocationError,
    Argument,
    Function,
    FunctionFailedError,
    RunCancelledError,
    WorkerLostError,
    collocated,
    discover_nodes,
    execute,
    register_local_node,
    resources_available,
    submit,
)
from tests.support import dag_of


def where(*_):
    return get_worker().name


def wait_until(condition, timeout=30):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def tasks_on(client):
    return client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))


def test_three_functions(client):
    """The seeds' example gives its results, and allocations that are workers' addresses."""
    dag = dag_of(
        Function(id="source", args=[], code=lambda x: x, extra_args=[42]),
        Function(id="transform", args=["source"], code=operator.mul, extra_args=[2]),
        Function(id="sink", args=["transform"], code="The final answer is: {}".format),
    )
    result = execute(dag)
    assert result.results["sink"] == "The final answer is: 84"
    assert set(result.allocations.values()) <= set(discover_nodes())


def test_costs_pins_and_collocation(client):
    """Cost, pin and collocation decide in which process a function runs."""
    dag = dag_of(
        Function(id="gpu", args=[], code=where, cost={"gpu": 1}),
        Function(id="beside", args=["gpu"], code=where, node=collocated("gpu")),
        Function(id="big", args=[], code=where, cost={"memory": 3000, "cpu": 3}),
        Function(id="pinned", args=[], code=where, node="plain"),
    )
    assert execute(dag).results == {
        "gpu": "gpu",
        "beside": "gpu",
        "big": "large",
        "pinned": "plain",
    }


def test_transforms_run_at_both_ends(client):
    """The serializer runs in the producer's process, the deserializer in the consumer's."""

    def pack(data, source, target, by):
        return [*data, ("packed", source, target, get_worker().address, by)]

    def unpack(data, source, target):
        return [*data, ("unpacked", source, target, get_worker().address)]

    dag = dag_of(
        Function(id="make", args=[], code=list, node="plain"),
        Function(
            id="use", args=[Argument("make", (pack, ["me"]), unpack)], code=list, cost={"gpu": 1}
        ),
    )
    result = execute(dag)
    source, target = result.allocations["make"], result.allocations["use"]
    assert source != target
    assert result.results["use"] == [
        ("packed", source, target, source, "me"),
        ("unpacked", source, target, target),
    ]


def test_inline_functions(client):
    """Inline functions are evaluated in the process of each function that uses them."""
    dag = dag_of(
        Function(id="pid", args=[], code=os.getpid, type="inline"),
        Function(id="a", args=["pid"], code=lambda pid: (pid, os.getpid()), node="plain"),
        Function(id="b", args=["pid"], code=lambda pid: (pid, os.getpid()), node="large"),
    )
    results = execute(dag).results
    assert results["a"][0] == results["a"][1]
    assert results["b"][0] == results["b"][1]
    assert results["a"] != results["b"]


def test_large_values_stay_where_they_are(client):
    """With results="sinks" 100 MB arrays are neither kept nor moved: workers hold only the sums."""

    def make(value):
        return np.full(12_500_000, value, dtype=float)

    dag = dag_of(
        *(Function(id=("make", i), args=[], code=make, extra_args=[i]) for i in range(4)),
        *(
            Function(id=("sum", i), args=[("make", i)], code=lambda a: float(a.sum()))
            for i in range(4)
        ),
    )
    run = submit(dag, results="sinks")
    assert run.result().results == {("sum", i): i * 12_500_000.0 for i in range(4)}

    def held(dask_worker):
        return [getattr(value, "nbytes", 0) for value in dask_worker.data.values()]

    def moved(dask_worker):
        return sum(entry["total"] for entry in dask_worker.transfer_incoming_log)

    wait_until(lambda: not any(sum(sizes) for sizes in client.run(held).values()))
    assert sum(len(sizes) for sizes in client.run(held).values()) >= 4  # the sums are kept
    assert sum(client.run(moved).values()) < 1e6


def test_results_as_they_come(client):
    """Values arrive one by one from the workers' processes; leaving the block ends the run."""
    started, go = Event("started", client), Event("go", client)

    def hold():
        Event("started").set()
        Event("go").wait()

    dag = dag_of(Function("array", [], np.arange, extra_args=[5]), Function("held", [], hold))
    with submit(dag) as run:
        pairs = run.as_completed(timeout=60)
        id_, value = next(pairs)
        assert id_ == "array" and value.sum() == 10
        go.set()
        assert [id_ for id_, _ in pairs] == ["held"]
    assert run.result()["array"] is value
    go.clear()
    started.clear()
    with pytest.raises(ZeroDivisionError), submit(dag) as run:
        started.wait()
        1 / 0  # noqa: B018
    with pytest.raises(RunCancelledError):
        list(run.as_completed())
    go.set()
    del run, pairs
    wait_until(lambda: not tasks_on(client))


def test_impossible_cost(client):
    """An impossible cost is an AllocationError at once; it names what the nearest worker lacks."""
    with pytest.raises(AllocationError) as caught:
        execute(dag_of(Function(id="f", args=[], code=where, cost={"gpu": 2})))
    assert client.scheduler_info(n_workers=-1)["workers"][caught.value.nearest]["name"] == "gpu"
    assert caught.value.shortfall == {"gpu": (2, 1)}


def test_exception_with_its_traceback(client):
    """FunctionFailedError carries the original exception, raised in the user's own function."""

    def inner():
        raise LookupError("nowhere")

    def outer():
        inner()

    with pytest.raises(FunctionFailedError, match="'f' failed after 2 attempts") as caught:
        execute(dag_of(Function(id="f", args=[], code=outer, max_retries=1)))
    cause = caught.value.__cause__
    assert isinstance(cause, LookupError)
    names = []
    frame = cause.__traceback__
    while frame is not None:
        names.append(frame.tb_frame.f_code.co_name)
        frame = frame.tb_next
    assert names[-2:] == ["outer", "inner"]
    wait_until(lambda: tasks_on(client) == 0)


@pytest.mark.parametrize("max_retries", [0, 1])
def test_death_of_the_worker_counts(client, tmp_path, max_retries):
    """A function that kills its worker starts max_retries + 1 times, then fails with a reason."""

    def die():
        fd = os.open(tmp_path / f"{time.time_ns()}", os.O_CREAT)
        os.close(fd)
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(FunctionFailedError, match="worker") as caught:
        execute(dag_of(Function(id="f", args=[], code=die, max_retries=max_retries)))
    assert len(list(tmp_path.iterdir())) == max_retries + 1
    assert [a.outcome for a in caught.value.attempts] == ["worker-lost"] * (max_retries + 1)
    assert isinstance(caught.value.__cause__, WorkerLostError)
    wait_until(lambda: tasks_on(client) == 0)
    client.wait_for_workers(3, timeout=60)


def test_a_lost_worker_is_made_up_for(client, tmp_path):
    """A function whose worker dies runs again, and so do functions whose results are lost."""
    marker = tmp_path / "died"

    def die_once(x):
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x + 1

    dag = dag_of(
        Function(id="first", args=[], code=int, extra_args=["1"]),
        Function(id="second", args=["first"], code=die_once, node=collocated("first")),
    )
    result = execute(dag)
    assert result.results == {"first": 1, "second": 2}
    assert [a.outcome for a in result.attempts["second"]] == ["worker-lost", "ok"]
    client.wait_for_workers(3, timeout=60)


def test_register_local_node(client):
    """Code on a worker declares what the worker offers; costs then find it."""
    execute(dag_of(Function(id=1, args=[], code=where)))  # the plugin is there from now on
    plain = _address(client, "plain")
    offered = client.run(register_local_node, {"licence": 1}, workers=[plain])
    assert offered[plain]["licence"] == 1
    declare = Function(
        id=1, args=[], code=register_local_node, extra_args=[{"licence": 2}], node="plain"
    )
    assert execute(dag_of(declare)).results[1] == {**offered[plain], "licence": 2}
    assert resources_available("plain", {"licence": 2})
    assert not resources_available("large", {"licence": 1})
    assert execute(dag_of(Function(id=1, args=[], code=where, cost={"licence": 1}))).results == {
        1: "plain"
    }


def _address(client, name):
    workers = client.scheduler_info(n_workers=-1)["workers"]
    (address,) = (address for address, worker in workers.items() if worker["name"] == name)
    return address


def test_asynchronous_client(cluster):
    """With an asynchronous client, execute and submit are awaited."""

    async def main():
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            dag = dag_of(Function(id=1, args=[], code=operator.add, extra_args=[1, 2]))
            result = await execute(dag, client=client)
            run = await submit(dag, client=client)
            return result.results, (await run.result()).results

    assert asyncio.run(main()) == ({1: 3}, {1: 3})


def run_script(tmp_path, text, *args):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(text))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, str(script), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_plain_script_without_a_cluster(tmp_path):
    """A script without client, cluster or main guard runs on an embedded cluster and ends."""
    process = run_script(
        tmp_path,
        """
        from handoff_dask import DAG, Function, execute

        def answer(x):
            return x * 2

        dag = DAG().add_function(Function(id="a", args=[], code=answer, extra_args=[21]))
        print(execute(dag).results)
        """,
    )
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "{'a': 42}\n", "")


def test_script_functions_reach_the_workers(client, tmp_path):
    """Functions of a script that no worker can import run on an existing cluster."""
    process = run_script(
        tmp_path,
        """
        import sys
        from distributed import Client
        from handoff_dask import DAG, Function, execute

        class Id(str):
            pass

        def answer(x):
            return Id(x * 2)

        if __name__ == "__main__":
            with Client(sys.argv[1]):
                f = Function(id=Id("a"), args=[], code=answer, extra_args=["x"])
                print(execute(DAG().add_function(f)).results)
        """,
        client.scheduler.address,
    )
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "{'a': 'xx'}\n", "")


def test_ctrl_c_cancels_the_run(client, tmp_path):
    """SIGINT in a blocking execute() ends it with KeyboardInterrupt and clears the cluster."""
    process = run_script(
        tmp_path,
        """
        import signal, sys, time
        from pathlib import Path
        from distributed import Client
        from handoff_dask import DAG, Function, execute

        def work(path):
            Path(path).touch()
            time.sleep(1)

        if __name__ == "__main__":
            # What runs in the background, as these tests may, ignores it from the start.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with Client(sys.argv[1]) as client:
                dag, path = DAG(), sys.argv[2]
                for i in range(1000):
                    f = Function(id=i, args=[], code=work, extra_args=[path], cost={"gpu": 1})
                    dag.add_function(f)
                try:
                    execute(dag)
                except KeyboardInterrupt:
                    count = lambda dask_scheduler: len(dask_scheduler.tasks)
                    print("interrupted", client.run_on_scheduler(count))
        """,
        client.scheduler.address,
        str(tmp_path / "started"),
    )
    wait_until((tmp_path / "started").exists)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (out, err) == ("interrupted 0\n", "")
    wait_until(lambda: tasks_on(client) == 0)
