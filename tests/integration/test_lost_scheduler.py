"""The loss of a scheduler that is a separate process."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path

import pytest
from distributed import Client

from handoff_dask import (
    DAG,
    ClusterLostError,
    Function,
    execute,
    get_result,
    list_runs,
    submit,
)
from tests.integration.separate import Processes

#: Seconds within which everybody is told.
PROMISED = 30


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and a worker."""
    here = {"PYTHONPATH": str(Path(__file__).parents[2])}
    with Processes(sys.executable, tmp_path, environ=here) as cluster:
        cluster.worker("alice", "--nthreads", "2")
        yield cluster


def long_dag():
    return DAG("long").add_function(Function(id="f", args=[], code=time.sleep, extra_args=[600]))


def end(cluster, how):
    for process in cluster._processes[::-1]:  # and the worker, which would wait for another one
        process.send_signal(how)


def until_running(run):
    while not run.status()["running"]:
        time.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_everybody_is_told(cluster, how):
    """Every call that waits or asks gets a ClusterLostError in time."""
    with Client(cluster.address) as client:
        client.wait_for_workers(1, timeout=60)
        run = submit(long_dag())
        until_running(run)
        end(cluster, how)
        started = time.monotonic()
        with pytest.raises(ClusterLostError, match="'long'"):
            run.result(timeout=600)
        run.wait(timeout=600)
        for ask in (
            run.status,
            run.counts,
            lambda: run.attempts,
            lambda: list(run.as_completed()),
            run.explain,
            list_runs,
            lambda: get_result("long", "f", timeout=600),
            lambda: execute(long_dag(), client=client),
            lambda: submit(long_dag(), client=client),
        ):
            with pytest.raises(ClusterLostError):
                ask()
        run.cancel()
        assert time.monotonic() - started < PROMISED


def test_execute_is_told(cluster):
    """A blocking execute() or get_result() ends, too, if the scheduler is lost meanwhile."""
    with Client(cluster.address) as client:
        client.wait_for_workers(1, timeout=60)
        submit(long_dag(), detach=True)

        async def wait(ask):
            loop = asyncio.get_running_loop()
            asking = [loop.run_in_executor(None, one) for one in ask]
            await asyncio.sleep(2)
            end(cluster, signal.SIGKILL)
            return await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), PROMISED)

        ends = asyncio.run(
            wait(
                [
                    lambda: execute(long_dag(), client=client),
                    lambda: get_result("long", "f", timeout=600, client=client),
                ]
            )
        )
        assert [type(error) for error in ends] == [ClusterLostError] * 2, ends


def test_asynchronous_clients_are_told(cluster):
    """The same with an asynchronous client."""

    async def main():
        async with Client(cluster.address, asynchronous=True) as client:
            await client.wait_for_workers(1, timeout=60)
            run = await submit(long_dag(), client=client)
            waiting = asyncio.ensure_future(run.result())
            while not (await run.status())["running"]:
                await asyncio.sleep(0.05)
            end(cluster, signal.SIGKILL)
            with pytest.raises(ClusterLostError):
                await asyncio.wait_for(waiting, PROMISED)
            with pytest.raises(ClusterLostError):
                await asyncio.wait_for(run.status(), PROMISED)

    asyncio.run(main())
