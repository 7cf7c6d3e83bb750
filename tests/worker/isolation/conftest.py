"""Pools of processes that leave nothing behind."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from handoff_dask.worker.isolation import unavailable

if unavailable():
    collect_ignore_glob = ["*"]
else:
    from handoff_dask.worker.isolation.pool import Pool
    from handoff_dask.worker.isolation.process_tree import tree_of


@pytest.fixture
def pool() -> Iterator[Pool]:
    """A pool that keeps two idle processes; nothing may be left of it."""
    fds = set(os.listdir("/proc/self/fd"))
    before = set(tree_of(os.getpid()))
    pool = Pool(2)
    yield pool
    pool.close()
    assert set(tree_of(os.getpid())) <= before
    assert len(os.listdir("/proc/self/fd")) <= len(fds)
