"""The preload and clients can install the plugin in either order."""

from __future__ import annotations

import asyncio

from distributed import Client
from distributed.utils_test import gen_cluster

from handoff_dask import DAG, Function, execute
from handoff_dask.preload import dask_setup
from handoff_dask.scheduler.plugin import HandoffPlugin


def small():
    return DAG().add_function(Function(id="f", args=[], code=int, extra_args=["42"]))


@gen_cluster(client=True, config={"distributed.scheduler.preload": ["handoff_dask.preload"]})
async def test_in_the_configuration(c, s, a, b):
    """The preload can be set in Dask's configuration; a client's first run finds the plugin."""
    plugin = s.plugins["handoff"]
    assert (await execute(small())).results == {"f": 42}
    assert s.plugins["handoff"] is plugin


@gen_cluster(client=True)
async def test_after_a_client(c, s, a, b):
    """Preloading does nothing on a worker, or on a scheduler that already has the plugin."""
    await execute(small())
    plugin = s.plugins["handoff"]
    await dask_setup(s)
    await dask_setup(a)
    assert s.plugins["handoff"] is plugin
    assert (await execute(small())).results == {"f": 42}


@gen_cluster(client=True)
async def test_clients_at_the_same_time(c, s, a, b):
    """Simultaneous first runs of several clients share one plugin."""
    async with Client(s.address, asynchronous=True) as other:
        runs = [execute(small(), client=client) for client in (c, other, c, other)]
        results = await asyncio.gather(*runs, dask_setup(s))
    assert [r.results["f"] for r in results[:4]] == [42] * 4
    (handlers,) = {s.handlers["handoff_open"].__self__}
    assert handlers is s.plugins["handoff"].service
    assert sum(isinstance(p, HandoffPlugin) for p in s.plugins.values()) == 1
