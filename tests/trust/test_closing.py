"""What workers report when they close, and what their processes leave behind."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import threading
from unittest import mock

import pytest
from distributed import Nanny, Worker
from distributed.utils_test import gen_cluster

import handoff_dask.worker.nanny_plugin
import handoff_dask.worker.worker_plugin
from handoff_dask import Function, execute, submit
from tests.support import dag_of, where
from tests.trust.test_declarations import until

TWO = [("127.0.0.1", 1, {"resources": {"cpu": 1}})] * 2


class Unreachable:
    """A blocked scheduler: it accepts calls and never answers."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        async def never(**kwargs):
            self.calls.append(name)
            await asyncio.Event().wait()

        return never


def sent(worker):
    """Record the operations that a worker sends on its stream."""
    operations = []
    send = worker.batched_send

    def note(message):
        operations.append(message["op"])
        send(message)

    worker.batched_send = note
    return operations


@mock.patch.object(handoff_dask.worker.worker_plugin, "PATIENCE", 3600)
@gen_cluster(client=True, nthreads=TWO)
async def test_closing_waits_for_nobody(c, s, a, b):
    """A worker that started functions closes even if its scheduler does not answer."""
    await execute(dag_of(*(Function(id=i, args=[], code=where, cost={"cpu": 1}) for i in range(9))))
    for worker in (a, b):
        worker.scheduler = unreachable = Unreachable()
        await asyncio.wait_for(worker.close(), 20)
        assert not unreachable.calls


@gen_cluster(client=True, nthreads=TWO)
async def test_who_has_nothing_to_say(c, s, a, b):
    """A worker that never had a function sends nothing; one that had reports before it is gone."""
    await execute(dag_of(Function(id=1, args=[], code=where, node=a.address)))
    of_a, of_b = sent(a), sent(b)
    connected = []
    s.stream_handlers["handoff_gone"] = lambda **facts: connected.append(a.address in s.workers)
    await a.close()
    await b.close()
    assert of_a.index("handoff_gone") < of_a.index("close-stream")
    assert not any(operation.startswith("handoff") for operation in of_b)
    assert connected == [True]


@gen_cluster(client=True, nthreads=TWO[:1])
async def test_an_orderly_end_uses_up_nothing(c, s, a):
    """The ledger has what a closing worker had started, and not what was waiting there."""
    dag = dag_of(*(Function(id=i, args=[], code=wait, cost={"cpu": 1}) for i in range(40)))
    STOP.set()
    await execute(dag, results=[])  # from now on these are known to be short
    STOP.clear()
    run = await submit(dag, max_retries=0)
    await until(lambda: len(a.state.tasks) > 3 and a.state.executing)
    async with Worker(s.address, nthreads=1, resources={"cpu": 1}):
        await a.close(executor_wait=False)
        STOP.set()
        attempts = (await run.result()).attempts
    outcomes = sorted(tuple(attempt.outcome for attempt in tried) for tried in attempts.values())
    assert outcomes == [("ok",)] * 39 + [("worker-lost", "ok")]
    (lost,) = (tried[0] for tried in attempts.values() if len(tried) > 1)
    assert lost.message == "it closed in order; this does not count"


STOP = threading.Event()


def wait():
    STOP.wait(30)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="files need names here")
@gen_cluster(client=True, nthreads=[], timeout=120)
async def test_nothing_is_left_in_the_temporary_folder(c, s, tmp_path):
    """However workers and nannies end, no file of ours is left behind."""

    def ours():
        return list(tmp_path.rglob("*handoff*"))

    own = {"TMPDIR": str(tmp_path)}
    with mock.patch.object(tempfile, "tempdir", str(tmp_path)), mock.patch.dict(os.environ, own):
        async with Nanny(s.address, nthreads=1) as nanny:
            result = await execute(dag_of(Function(id=1, args=[], code=os.getpid, max_retries=0)))
            pid = result.results[1]
            assert ours() == []
            plugin = nanny.plugins["handoff"]
            left = plugin.file.read()
            assert left.pid == pid and len(left.started) == 1
            os.kill(pid, signal.SIGKILL)
            await until(lambda: plugin.ends)
            (end,) = plugin.ends.values()
            assert end["code"] == -signal.SIGKILL and len(end["started"]) == 1
            # The process that follows uses it, too.
            result = await execute(dag_of(Function(id=1, args=[], code=os.getpid)))
            assert plugin.file.read().pid == result.results[1] != pid
            assert ours() == []
        assert ours() == []
