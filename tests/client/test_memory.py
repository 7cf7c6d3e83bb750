"""What a client's process, with a cluster in it or not, keeps of runs that have ended."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter

import pytest
from distributed.utils_test import gen_cluster

from handoff_dask import Function, execute, submit, uninstall
from handoff_dask.scheduler import runs
from tests.support import assert_clean, dag_of
from tests.trust.test_declarations import until

#: How many messages Dask may keep of each stream here, for debugging.
KEPT = 100


def kept():
    """Count the tasks, and the messages that streams remember, in this process."""
    gc.collect()
    return Counter(
        type(o).__name__ for o in gc.get_objects() if type(o).__name__ in ("Task", "ToPickle")
    )


def ints(n):
    return dag_of(*(Function(i, [], int, extra_args=[i]) for i in range(n)))


def messages(stream):
    return sum(len(batch) if isinstance(batch, list) else 1 for batch in stream.recent_message_log)


@gen_cluster(client=True, config={"distributed.admin.low-level-log-length": KEPT})
async def test_what_was_sent_is_not_kept(c, s, a, b):
    """However many functions ran, a bounded number of messages and tasks stays."""
    await execute(ints(10), results=[])
    before = kept()
    for _ in range(2):
        await execute(ints(1000), results=[])
    await assert_clean(s, a, b)
    streams = [c.scheduler_comm, *s.stream_comms.values()]
    assert [messages(stream) <= KEPT for stream in streams] == [True] * 3
    assert all(number <= 2 * KEPT + 50 for number in (kept() - before).values())
    sent = [m for batch in c.scheduler_comm.recent_message_log for m in batch]
    assert "update-graph" not in [m.get("op") for m in sent if isinstance(m, dict)]


@pytest.mark.parametrize("end", ["forgotten", "over for long", "uninstalled", "closed"])
@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_a_large_run_is_kept_from_the_collector(c, s, a, monkeypatch, end):
    """It is scanned by one full collection; soon after its end all is as it was before."""
    monkeypatch.setattr(runs, "_LARGE", 10)
    small = await submit(ints(9))
    gc.collect()
    assert gc.get_freeze_count() == 0
    large = await submit(ints(10))
    await asyncio.gather(small.wait(), large.wait())
    gc.collect()
    assert gc.get_freeze_count() > 0
    if end == "forgotten":
        del large
    elif end == "uninstalled":
        await uninstall(client=c)
    elif end == "closed":
        await s.plugins["handoff"].close()
    else:
        monkeypatch.setattr(runs, "_AFTERWARDS", -60)
        gc.collect()
    await until(lambda: gc.get_freeze_count() == 0)
