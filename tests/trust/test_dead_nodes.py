"""If a worker dies with its nanny, its functions are tried again although nobody can be asked."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
from distributed import Event, Worker
from distributed.utils_test import gen_cluster

from handoff_dask import Function, current, execute, submit
from handoff_dask.attempts.losses import End
from handoff_dask.scheduler import inquiries
from tests.gate import hold, on_cluster, until
from tests.support import assert_clean, dag_of

ONE = {"cpu": 1}


def stuck_at_first(name):
    """Wait for the test in the first attempt; return at once in the others."""
    if current().attempt == 1:
        hold(name)
    return os.getpid()


@contextmanager
def node(scheduler, name):
    """A worker and its nanny, as separate processes."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler.address]
    options = ["--nanny", "--nthreads=1", "--resources=cpu=1", f"--name={name}", "--no-dashboard"]
    with subprocess.Popen(
        [*command, *options], start_new_session=True, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("nanny", [signal.SIGKILL, signal.SIGSTOP])
@gen_cluster(
    nthreads=[], client=True, timeout=60, config={"distributed.comm.timeouts.connect": "1h"}
)
async def test_worker_and_nanny_die(c, s, nanny, monkeypatch):
    """The scheduler waits neither for a nanny that is gone nor for one that was stopped."""
    monkeypatch.setattr(inquiries, "ANSWER", 3600.0)
    with node(s, "node") as process:
        await c.wait_for_workers(1)
        run = await submit(
            dag_of(Function("f", [], stuck_at_first, extra_args=["go"], cost=ONE, max_retries=1))
        )
        await (await Event("started-go")).wait()
        (ws,) = s.workers.values()
        async with Worker(s.address, nthreads=1, resources=ONE) as spare:
            await until(lambda: spare.address in s.plugins["handoff"].registry.names)
            os.kill(process.pid, nanny)
            os.kill(ws.pid, signal.SIGKILL)
            result = await run.result()
            assert result.results == {"f": os.getpid()}
            first, second = result.attempts["f"]
            assert (first.outcome, first.worker) == ("worker-lost", ws.address)
            assert "not known" in first.message
            assert (second.outcome, second.worker) == ("ok", spare.address)
            del run, result
            await assert_clean(s, spare)


@contextmanager
def silent():
    """The address of a server that accepts calls and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        yield f"tcp://{host}:{port}"


@on_cluster()
async def test_what_is_waited_for(c, s, a, b, monkeypatch):
    """While the scheduler asks what had started, `explain` says whom it asks."""
    monkeypatch.setattr(inquiries, "LAST_WORD", 3600.0)
    await execute(dag_of(Function(0, [], int)))
    plugin = s.plugins["handoff"]
    spoke = plugin.inquiries.worker_spoke
    monkeypatch.setattr(
        plugin.inquiries, "worker_spoke", lambda worker, end: None
    )  # who is cut off
    run = await submit(
        dag_of(Function("f", [], stuck_at_first, extra_args=["go"], cost=ONE), id="etl")
    )
    await (await Event("started-go")).wait()
    (record,) = plugin.functions.values()
    lost = record.worker
    with silent() as nanny:
        plugin.inquiries.worker_joined(lost, nanny, "its id")
        await s.remove_worker(lost, stimulus_id="test")
        await until(lambda: record.state.shown == "held")
        text = f"asking the nanny of {lost} what had started"
        assert text in str(await run.explain())
        assert text in str(await run.explain(held=1))
        await (await Event("go")).set()
        spoke(lost, End({}))
        result = await run.result()
    assert [attempt.outcome for attempt in result.attempts["f"]] == ["ok"]
    del run, result
    survivor = a if lost == b.address else b
    await assert_clean(s, survivor)
