"""What a client's process, with a cluster in it or not, keeps of runs that have ended."""

from __future__ import annotations

import gc
from collections import Counter

from distributed.utils_test import gen_cluster

from handoff_dask import Function, execute
from tests.support import assert_clean, dag_of

#: How many messages Dask may keep of each stream here, for debugging.
KEPT = 100


def kept():
    """Count the tasks, and the messages that streams remember, in this process."""
    gc.collect()
    return Counter(
        type(o).__name__ for o in gc.get_objects() if type(o).__name__ in ("Task", "ToPickle")
    )


def messages(stream):
    return sum(len(batch) if isinstance(batch, list) else 1 for batch in stream.recent_message_log)


@gen_cluster(client=True, config={"distributed.admin.low-level-log-length": KEPT})
async def test_what_was_sent_is_not_kept(c, s, a, b):
    """However many functions ran, a bounded number of messages and tasks stays."""
    functions = [Function(i, [], int, extra_args=[i]) for i in range(1000)]
    await execute(dag_of(*functions[:10]), results=[])
    before = kept()
    for _ in range(2):
        await execute(dag_of(*functions), results=[])
    await assert_clean(s, a, b)
    streams = [c.scheduler_comm, *s.stream_comms.values()]
    assert [messages(stream) <= KEPT for stream in streams] == [True] * 3
    assert all(number <= 2 * KEPT + 50 for number in (kept() - before).values())
    sent = [m for batch in c.scheduler_comm.recent_message_log for m in batch]
    assert "update-graph" not in [m.get("op") for m in sent if isinstance(m, dict)]
