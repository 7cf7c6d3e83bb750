"""What workers detect and declare."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from dask.system import CPU_COUNT
from distributed import Worker
from distributed.system import MEMORY_LIMIT
from distributed.utils_test import gen_cluster

from handoff_dask import DAG, Function, discover_nodes, execute, register_node, submit
from handoff_dask.wire.offers import check_capabilities
from handoff_dask.worker.isolation import unavailable
from handoff_dask.worker.worker_plugin import HandoffWorkerPlugin
from tests.support import assert_clean, dag_of, where


@gen_cluster(nthreads=[("127.0.0.1", 3, {"memory_limit": 0})], client=True)
async def test_memory_without_a_limit(c, s, a):
    """Without a limit a worker offers its share of the host's memory, in MB, by its threads."""
    share = MEMORY_LIMIT * min(1, 3 / CPU_COUNT)
    assert await discover_nodes() == {a.address: {"cpu": 3, "memory": share // 10**6}}


@gen_cluster(nthreads=[("127.0.0.1", 3, {"memory_limit": "300 MB"})], client=True)
async def test_workers_that_join_later(c, s, a):
    """A worker that joins after the plugin declares what it has, too."""
    assert await discover_nodes() == {a.address: {"cpu": 3, "memory": 300}}
    async with Worker(s.address, nthreads=5, memory_limit="500 MB") as b:
        assert (await discover_nodes())[b.address] == {"cpu": 5, "memory": 500}


@gen_cluster(
    nthreads=[("127.0.0.1", 3, {"resources": {"CPU": 1, "Memory": 50, "GPU": 2}})], client=True
)
async def test_what_an_operator_declared_stays(c, s, a):
    """Declared resources keep the operator's names; costs match them regardless of case."""
    assert await discover_nodes() == {a.address: {"cpu": 1, "memory": 50, "gpu": 2}}
    assert a.state.total_resources == {"CPU": 1, "Memory": 50, "GPU": 2}
    f = Function(id=1, args=[], code=where, cost={"cpu": 1, "gpu": 2, "MEMORY": 50})
    assert (await execute(DAG().add_function(f))).results == {1: a.address}
    await assert_clean(s, a)


@gen_cluster(nthreads=[("127.0.0.1", 1, {"resources": {"GPU": 1}})], client=True)
async def test_declaring_anew(c, s, a):
    """register_node changes only the named resources, under the worker's own names."""
    offered = await register_node("0", {"gpu": 3, "licence": 1})
    assert offered == (await discover_nodes())[a.address]
    assert (offered["gpu"], offered["licence"]) == (3, 1)
    declared = {n: v for n, v in a.state.total_resources.items() if not n.startswith("handoff-")}
    assert declared == {"GPU": 3, "licence": 1}


@pytest.mark.parametrize(
    "capabilities", [{"cpu": -1}, {"cpu": float("nan")}, {"": 1}, 5, {"a": "1"}]
)
def test_capabilities_that_are_none(capabilities):
    """Capabilities map names to finite numbers >= 0; the error names anything else."""
    with pytest.raises(ValueError, match="capabilities"):
        check_capabilities(capabilities)


@pytest.mark.skipif(bool(unavailable()), reason=str(unavailable()))
@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_cancel_before_it_starts(c, s, a):
    """What is given up while its process is being prepared never starts."""
    waiting, go = threading.Event(), threading.Event()

    def processes():
        waiting.set()
        go.wait(60)
        return HandoffWorkerPlugin.processes(plugin)

    await execute(dag_of(Function("first", code=int)))
    plugin = a.plugins["handoff"]
    plugin.processes = processes
    run = await submit(dag_of(Function("hang", code=time.sleep, extra_args=[1000], isolate=True)))
    await asyncio.to_thread(waiting.wait)
    await run.cancel()
    while any(ts.state == "executing" for ts in a.state.tasks.values()):
        await asyncio.sleep(0.01)
    go.set()
    del plugin.processes
    result = await execute(dag_of(Function("next", code=int, isolate=True)))
    assert result.results == {"next": 0}
    del run
