"""The plugin of nannies: it reports how a worker's process ended and what it had started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from distributed import Nanny, NannyPlugin

from handoff_dask.compat import worker as compat
from handoff_dask.shipping import bootstrap
from handoff_dask.shipping.parcel import Shipped
from handoff_dask.worker.starts import StartsFile

#: Seconds that a nanny waits for the process of a lost worker to end.
PATIENCE = 5.0
#: Ends of processes that a nanny remembers.
KEPT = 16
#: Environment variable with the address of the file in which a worker records its starts.
VARIABLE = "HANDOFF_STARTS"


class HandoffNannyPlugin(Shipped, NannyPlugin):
    """Tells the scheduler's plugin how the process of a lost worker ended."""

    name = "handoff"
    base = "NannyPlugin"

    async def setup(self, nanny: Nanny) -> None:
        """Watch the worker's process, this one and those that follow it."""
        self.nanny = nanny
        self.file = StartsFile()
        #: {worker's id: how its process ended}
        self.ends: dict[str, dict[str, Any]] = {}
        self._news = asyncio.Event()
        self._unwatch: Callable[[], None] = compat.watch_exits(nanny, self.exited)
        # A process that already runs asks for the address. One that is starting cannot ask before
        # the nanny is up, so it gets it from the environment.
        nanny.env[VARIABLE] = self.file.address
        nanny.handlers["handoff_starts"] = self.starts
        nanny.handlers["handoff_end"] = self.end

    async def teardown(self, nanny: Nanny) -> None:
        """Remove everything from the nanny."""
        self._unwatch()
        nanny.env.pop(VARIABLE, None)
        nanny.handlers.pop("handoff_starts", None)
        nanny.handlers.pop("handoff_end", None)
        self.file.close()
        bootstrap.remove()

    async def starts(self) -> str:
        """Return where the worker's process records its starts."""
        return self.file.address

    def exited(self, code: int) -> None:
        """Record how the process ended, and what it had started."""
        left = self.file.read()
        self.file.clear()
        if left is None:
            return  # it ended before it had recorded anything
        self.ends[left.owner] = {
            "code": code,
            "memory": compat.killed_for_memory(self.nanny, left.pid),
            "started": None if left.started is None else [tuple(start) for start in left.started],
        }
        while len(self.ends) > KEPT:
            del self.ends[next(iter(self.ends))]
        self._news.set()
        self._news = asyncio.Event()

    async def end(self, worker: str) -> dict[str, Any] | None:
        """Return how the process of a worker ended, by the worker's id; None if it still runs."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while worker not in self.ends:
            remaining = deadline - asyncio.get_running_loop().time()
            try:
                await asyncio.wait_for(self._news.wait(), remaining)
            except asyncio.TimeoutError:
                return None
        return self.ends[worker]
