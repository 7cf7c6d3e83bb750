"""Helpers of several test modules."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import contextmanager

from distributed import Client, LocalCluster, get_worker

from handoff_dask import DAG


def dag_of(*functions, id="a dag"):
    """Return a DAG of functions."""
    dag = DAG(id)
    for function in functions:
        dag.add_function(function)
    return dag


@contextmanager
def gpu_client():
    """Start two workers in this process, each with two threads and a GPU; yield a client."""
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=2,
            processes=False,
            dashboard_address="localhost:0",
            resources={"gpu": 1},
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def shown(value):
    """Name a value in the id of a test: its repr, without what differs between processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def where(*_):
    """Return the worker that this runs on."""
    return get_worker().address


async def assert_clean(scheduler, *workers, timeout=10):
    """Check that nothing of any run is left: no task, record, claim or resource in use."""
    plugin = scheduler.plugins.get("handoff")

    def leftovers():
        remains = {}
        if scheduler.tasks:
            remains["tasks"] = {key: ts.state for key, ts in scheduler.tasks.items()}
        if plugin is not None:
            remains["runs"], remains["records"] = plugin.runs, plugin.functions
            remains["foreign"], remains["ending"] = plugin.foreign, plugin.endings
            for worker in workers:
                claimed = plugin.engine.questions.claimed(worker.address)
                remains[f"claimed on {worker.address}"] = {n: v for n, v in claimed.items() if v}
        for worker in workers:
            if worker.state.available_resources != worker.state.total_resources:
                remains[f"resources of {worker.address}"] = worker.state.available_resources
            if worker.state.tasks:
                remains[f"tasks on {worker.address}"] = worker.state.tasks
        return {what: left for what, left in remains.items() if left}

    async def settle():
        while leftovers():
            await asyncio.sleep(0.01)

    try:
        await asyncio.wait_for(settle(), timeout)
    except asyncio.TimeoutError:
        raise AssertionError(f"left behind: {leftovers()}") from None


def write_trace(folder, *, version="1.5", **changes):
    """Write a workflow instance of two tasks, in WfFormat, and return its path."""
    facts = {
        "first": {"runtimeInSeconds": 2.5, "command": {"program": "sort"}, "avgCPU": 175.2},
        "then_ID0007": {"runtimeInSeconds": 0.5, "memoryInBytes": 1_500_000},
    }
    parents = {"then_ID0007": ["first"], "first": [], **changes.pop("parents", {})}
    for id_, change in changes.items():
        facts[id_] |= change
    tasks = [{"id": id_, "name": id_, "parents": parents[id_]} for id_ in ("then_ID0007", "first")]
    document = {
        "schemaVersion": version,
        "workflow": {
            "specification": {"tasks": tasks},
            "execution": {"tasks": [{"id": id_, **fact} for id_, fact in facts.items()]},
        },
    }
    path = folder / "small-chameleon-001.json"
    path.write_text(json.dumps(document))
    return path
