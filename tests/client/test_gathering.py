"""Fetching results from a scheduler that goes away."""

from __future__ import annotations

import asyncio

import pytest
from distributed import Future
from distributed.utils_test import gen_cluster

from handoff_dask import ClusterLostError
from handoff_dask.client import gathering


async def never(*_, **__):
    await asyncio.get_running_loop().create_future()


@gen_cluster(client=True)
async def test_nothing_is_asked_for_what_has_not_ended(c, s, a, b, monkeypatch):
    """Without a result to fetch, no scheduler is needed."""
    monkeypatch.setattr(c, "gather", never)
    future = Future("unknown", c)
    assert await asyncio.wait_for(gathering.finished(c, {"f": future}), 10) == ({}, {})
    future.release()


@gen_cluster(client=True)
async def test_a_scheduler_that_goes_away(c, s, a, b, monkeypatch):
    """Who fetches a result learns of it, although Dask waits for the scheduler."""
    future = c.submit(int, 1)
    await future
    monkeypatch.setattr(c, "gather", never)
    fetching = asyncio.ensure_future(gathering.finished(c, {"f": future}))
    await asyncio.sleep(0)
    monkeypatch.setattr(c, "status", "connecting")
    with pytest.raises(ClusterLostError):
        await asyncio.wait_for(fetching, 10)
    monkeypatch.undo()
