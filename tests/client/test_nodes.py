"""register_node, register_local_node, discover_nodes and resources_available."""

from __future__ import annotations

from datetime import timedelta

import pytest
from distributed.utils_test import gen_cluster

from handoff_dask import (
    DAG,
    Function,
    RetryPolicy,
    UnknownWorkerError,
    current,
    discover_nodes,
    execute,
    get_result,
    register_local_node,
    register_node,
    resources_available,
    submit,
)


@gen_cluster(client=True)
async def test_a_worker_that_is_not_there(c, s, a, b):
    """A worker that nobody knows is an error that names it and those there are."""
    for ask in (register_node, resources_available):
        with pytest.raises(UnknownWorkerError, match="nobody") as caught:
            await ask("nobody", {"gpu": 1})
        assert set(caught.value.known) == {"0", "1"}


@gen_cluster(client=True)
async def test_by_name_and_by_address(c, s, a, b):
    """A worker answers to its address and to its name."""
    await register_node(a.address, {"gpu": 1})
    await register_node("1", {"gpu": 2})
    nodes = await discover_nodes()
    assert (nodes[a.address]["gpu"], nodes[b.address]["gpu"]) == (1, 2)
    assert await resources_available("0", {"GPU": 1})
    assert not await resources_available("0", {"GPU": 2})
    assert await resources_available(b.address, {"GPU": 2})


def fail_once():
    if current().attempt == 1:
        raise ValueError
    return current().cost["memory"]


@gen_cluster(client=True)
async def test_amounts_and_times_with_units(c, s, a, b):
    """Memory may be text wherever it is declared or claimed, times wherever something is waited."""
    offered = await register_node(a.address, {"memory": "3 GB"})
    assert offered["memory"] == 3000
    await register_node(b.address, {"memory": "2048 kB"})
    assert await resources_available(a.address, {"memory": "3GB"})
    assert not await resources_available(a.address, {"memory": "3 GiB"})
    policy = RetryPolicy(1, delay="1 ms", escalate=lambda *_: {"memory": "2.5 GB"})
    dag = DAG("units").add_function(
        Function("f", code=fail_once, cost={"memory": "1 GB"}, retry=policy, timeout="1h")
    )
    run = await submit(dag, timeout=timedelta(hours=1), placement_timeout="1 min")
    await run.wait("1 min")
    assert (await run.result(timedelta(minutes=1))).results == {"f": 2500.0}
    assert await get_result("units", "f", timeout="30 s") == 2500.0
    for wait in (run.wait, run.result):
        with pytest.raises(ValueError, match=r"timeout must be .* '5 min'"):
            await wait("a while")


@gen_cluster(client=True)
async def test_bad_capabilities(c, s, a, b):
    """A capability or cost that is no number >= 0 is an error before anything is sent."""
    with pytest.raises(ValueError, match="gpu"):
        await register_node(a.address, {"gpu": -1})
    with pytest.raises(ValueError, match="cost"):
        await resources_available(a.address, {"gpu": "many"})
    assert "handoff" not in s.plugins


@gen_cluster(client=True)
async def test_from_code_on_a_worker(c, s, a, b):
    """register_local_node declares what the worker that it runs on offers."""
    f = Function(id=1, args=[], code=register_local_node, extra_args=[{"gpu": 4}], node="1")
    result = await execute(DAG().add_function(f))
    assert result.results[1]["gpu"] == 4
    nodes = await discover_nodes()
    assert "gpu" not in nodes[a.address]
    assert nodes[b.address]["gpu"] == 4


@gen_cluster(client=True)
async def test_a_worker_without_the_plugin(c, s, a, b):
    """Before Handoff came to a cluster, register_local_node says so."""
    with pytest.raises(ValueError, match="plugin"):
        await c.submit(register_local_node, {"gpu": 1})


def test_outside_of_a_cluster():
    """Without a client or a worker, each says what is missing."""
    with pytest.raises(ValueError, match="no client"):
        discover_nodes()
    with pytest.raises(ValueError, match="worker"):
        register_local_node({"gpu": 1})
