"""What lives on each worker: its capabilities, found and declared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dask.system import CPU_COUNT
from distributed.system import MEMORY_LIMIT

from handoff_dask._compat import TaskEnds
from handoff_dask.model.validation import cost_problem

if TYPE_CHECKING:
    from distributed import Worker

#: Bytes in the unit of ``memory``.
MB = 10**6


class HandoffWorkerPlugin(TaskEnds):
    """Declares what a worker offers, as Dask resources, and tells the scheduler's plugin.

    A worker that declares no ``cpu`` or ``memory`` offers its threads and its memory limit in MB;
    without a limit, its share of the host's memory by threads. What an operator declared stays.
    """

    async def setup(self, worker: Worker) -> None:
        """Declare what the worker has and its operator did not declare."""
        self.worker = worker
        self.found: dict[str, float] = {}
        worker.handlers["handoff_declare"] = self.declare
        declared = {name.lower() for name in worker.state.total_resources}
        self.found = {n: v for n, v in find_capabilities(worker).items() if n not in declared}
        await self.declare(self.found)

    async def declare(self, capabilities: Mapping[str, float]) -> dict[str, float]:
        """Declare resources, under the names that the worker has for them if it has any."""
        own = {name.lower(): name for name in self.worker.state.total_resources}
        await self.worker.set_resources(
            **{own.get(name.lower(), name.lower()): value for name, value in capabilities.items()}
        )
        total = dict(self.worker.state.total_resources)
        await self.worker.scheduler.handoff_capabilities(
            worker=self.worker.contact_address, capabilities=total
        )
        return total

    async def teardown(self, worker: Worker) -> None:
        """Leave the worker."""
        worker.handlers.pop("handoff_declare", None)


def find_capabilities(worker: Worker) -> dict[str, float]:
    """Find what a worker offers: cores, and memory in MB."""
    threads = worker.state.nthreads
    # Without a limit, by Dask's own rule for workers that share a host: by their threads.
    share = MEMORY_LIMIT * min(1, threads / CPU_COUNT)
    limit = worker.memory_manager.memory_limit or share
    return {"cpu": threads, "memory": int(limit // MB)}


def check_capabilities(capabilities: Any) -> dict[str, float]:
    """Return capabilities with lower case names.

    Raises
    ------
    ValueError
        They are not a mapping of names to finite numbers >= 0.
    """
    if problem := cost_problem(capabilities):
        raise ValueError(f"capabilities: {problem}")
    return {name.lower(): value for name, value in capabilities.items()}
