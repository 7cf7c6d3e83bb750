"""Isolated functions on real GPUs; skipped where there are none."""

from __future__ import annotations

import time

import pytest
from distributed import Client, LocalCluster
from distributed.diagnostics import nvml

from handoff_dask import DAG, Function, FunctionFailedError, current, execute
from tests.support import dag_of

torch = pytest.importorskip("torch")
if not nvml.device_get_count() or not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=4, processes=True, dashboard_address=":0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def work(seconds=0.5):
    """Compute on the device of this process; return the device, from when to when, the result."""
    import os

    import torch

    started = time.time()
    (index,) = current().gpus
    matrix = torch.ones((2048, 2048), device=f"cuda:{index}")
    product = matrix @ matrix
    while time.time() < started + seconds:
        product = matrix @ matrix
    torch.cuda.synchronize()
    seen = os.environ["CUDA_VISIBLE_DEVICES"], torch.cuda.device_count()
    return seen, started, time.time(), float(product[0, 0])


def overlap(first, second):
    return first[1] < second[2] and second[1] < first[2]


def test_whole_devices(client):
    """Each function has its device to itself: another one, or the same one after the other."""
    dag = DAG()
    dag.map(work, [0.5] * 2, cost={"gpu": 1}, isolate=True, id="f")
    first, second = execute(dag, client=client).results.values()
    for (visible, count), _, _, value in (first, second):
        assert (count, value) == (1, 2048)
        assert visible.isdigit()
    assert first[0] != second[0] or not overlap(first, second)
    if nvml.device_get_count() > 1:
        assert first[0] != second[0] and overlap(first, second)


def test_fractions(client):
    """Functions that claim parts share one device at the same time."""
    warm = DAG()
    warm.map(work, [0.1] * 2, cost={"gpu": 0.5}, isolate=True)
    execute(warm, client=client)
    dag = DAG()
    dag.map(work, [2.0] * 2, cost={"gpu": 0.5}, isolate=True, id="f")
    first, second = execute(dag, client=client).results.values()
    assert first[0] == second[0]
    assert overlap(first, second)


def test_without_a_device(client):
    """A function that claims none sees none."""

    def seen():
        import torch

        return torch.cuda.is_available(), torch.cuda.device_count()

    assert execute(dag_of(Function("f", code=seen, isolate=True)), client=client).results == {
        "f": (False, 0)
    }


def test_out_of_memory_on_the_device(client):
    """It is an ordinary error; process, worker and device go on."""

    def fill():
        import torch

        blocks = []
        while True:
            blocks.append(torch.empty(2**30, dtype=torch.uint8, device="cuda"))

    dag = dag_of(Function("f", code=fill, cost={"gpu": 1}, isolate=True, max_retries=0))
    with pytest.raises(FunctionFailedError) as caught:
        execute(dag, client=client)
    (attempt,) = caught.value.attempts
    assert attempt.outcome == "error"
    assert "OutOfMemory" in attempt.error_type
    after = dag_of(Function("f", code=work, cost={"gpu": 1}, isolate=True))
    assert execute(after, client=client).results["f"][3] == 2048


def test_killed_with_a_context(client):
    """A function that is killed while it computes leaves nothing on the device."""

    def hang():
        work(1000)

    def used():
        import torch

        free, total = torch.cuda.mem_get_info()
        return total - free

    idle = Function("f", code=used, cost={"gpu": 1}, isolate=True)
    before = execute(dag_of(idle), client=client).results["f"]
    dag = dag_of(Function("f", code=hang, cost={"gpu": 1}, isolate=True, timeout=8, max_retries=0))
    with pytest.raises(FunctionFailedError, match="timeout"):
        execute(dag, client=client)
    assert execute(dag_of(idle), client=client).results["f"] <= before + 2**26


def test_memory_limits_ignore_the_device(client):
    """What CUDA reserves of the address space counts for nothing; a large claim is not needed."""
    dag = dag_of(Function("f", code=work, cost={"gpu": 1, "memory": "4 GB"}, isolate=True))
    result = execute(dag, client=client)
    (attempt,) = result.attempts["f"]
    assert attempt.usage.peak_memory < 4000
    print("peak of a process with a CUDA context:", attempt.usage.peak_memory, "MB")
