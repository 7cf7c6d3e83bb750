"""What lives on each worker: its capabilities, found and declared."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from dask.system import CPU_COUNT
from distributed import Status
from distributed.system import MEMORY_LIMIT

from handoff_dask._compat import TaskEnds
from handoff_dask.model.validation import cost_problem
from handoff_dask.nanny import VARIABLE
from handoff_dask.starts import Starts
from handoff_dask.task import TOPIC

if TYPE_CHECKING:
    from distributed import Worker

#: Bytes in the unit of ``memory``.
MB = 10**6
#: Seconds that a worker that closes waits for its last word to reach the scheduler.
PATIENCE = 2.0


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
        worker.handlers["handoff_withdraw"] = self.withdraw
        await self._note_starts()
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

    async def _note_starts(self) -> None:
        """Keep a record of what is started, for a nanny to read should this process be killed."""
        worker = self.worker
        # A thread runs one function and may have 128 handed ahead: see the placement engine.
        places = 1024 + 256 * worker.state.nthreads
        path = None
        if worker.nanny:
            path = os.environ.get(VARIABLE)
            if path is None:
                # An RPC raises what the other side raised.
                with suppress(Exception):
                    asking = worker.rpc(worker.nanny).handoff_starts()
                    path = await asyncio.wait_for(asking, PATIENCE)
        self.starts = Starts(places, path, worker.id)

    async def withdraw(self, calls: list[tuple[Any, int]]) -> list[tuple[int, float, bool]]:
        """Take placements back: of the calls (key, placement), those not started never will be.

        Returns
        -------
        list
            (placement, start in s since epoch, whether it still has a thread) of those that were
            started. Of one that has, the scheduler is told when the thread is free.
        """
        assert self.starts is not None
        started = self.starts.withdraw(number for _, number in calls)
        found = []
        for key, number in calls:
            if number in started:
                busy = self.busy(self.worker, key)
                if busy:
                    self.at_end(key, partial(self._over, key, number))
                found.append((number, started[number], busy))
        return found

    def _over(self, key: Any, number: int) -> None:
        self.worker.log_event(TOPIC, {"action": "attempt-over", "key": key, "run_id": number})

    async def teardown(self, worker: Worker) -> None:
        """Leave the worker."""
        worker.handlers.pop("handoff_declare", None)
        worker.handlers.pop("handoff_withdraw", None)
        starts, self.starts = self.starts, None
        if starts is None:
            return
        if worker.status != Status.running:
            # It closes. Who runs functions here is told which of them were started.
            started = list(starts.seal().items())
            with suppress(Exception):
                await asyncio.wait_for(
                    worker.scheduler.handoff_gone(worker=worker.contact_address, started=started),
                    PATIENCE,
                )
        starts.close()


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
