"""What several test modules need."""

from __future__ import annotations

import asyncio

from distributed import get_worker


def where(*_):
    """Tell on which worker this runs."""
    return get_worker().address


async def assert_clean(scheduler, *workers, timeout=10):
    """Nothing of any run is left: no task, no record, no claim, no resource in use."""
    plugin = scheduler.plugins.get("handoff")

    def leftovers():
        found = {}
        if scheduler.tasks:
            found["tasks"] = {key: ts.state for key, ts in scheduler.tasks.items()}
        if plugin is not None:
            found["runs"], found["records"] = plugin.runs, plugin.records
            found["foreign"] = plugin.foreign
            for worker in workers:
                claimed = plugin.engine.claimed(worker.address)
                found[f"claimed on {worker.address}"] = {n: v for n, v in claimed.items() if v}
        for worker in workers:
            if worker.state.available_resources != worker.state.total_resources:
                found[f"resources of {worker.address}"] = worker.state.available_resources
            if worker.state.tasks:
                found[f"tasks on {worker.address}"] = worker.state.tasks
        return {what: left for what, left in found.items() if left}

    async def settle():
        while leftovers():
            await asyncio.sleep(0.01)

    try:
        await asyncio.wait_for(settle(), timeout)
    except asyncio.TimeoutError:
        raise AssertionError(f"left behind: {leftovers()}") from None
