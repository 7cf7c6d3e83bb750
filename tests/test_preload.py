"""The preload and clients: whoever comes first, the other does no harm."""

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
    """It stands in Dask's configuration; a client's first run finds the plugin there."""
    plugin = s.plugins["handoff"]
    assert (await execute(small())).results == {"f": 42}
    assert s.plugins["handoff"] is plugin


@gen_cluster(client=True)
async def test_after_a_client(c, s, a, b):
    """Preloading a scheduler that has the plugin changes nothing; on a worker it does nothing."""
    await execute(small())
    plugin = s.plugins["handoff"]
    await dask_setup(s)
    await dask_setup(a)
    assert s.plugins["handoff"] is plugin
    assert (await execute(small())).results == {"f": 42}


@gen_cluster(client=True)
async def test_clients_at_the_same_time(c, s, a, b):
    """First runs of several clients at one moment share one plugin."""
    async with Client(s.address, asynchronous=True) as other:
        runs = [execute(small(), client=client) for client in (c, other, c, other)]
        results = await asyncio.gather(*runs, dask_setup(s))
    assert [r.results["f"] for r in results[:4]] == [42] * 4
    (handlers,) = {s.handlers["handoff_open"].__self__}
    assert handlers is s.plugins["handoff"].service
    assert sum(isinstance(p, HandoffPlugin) for p in s.plugins.values()) == 1
