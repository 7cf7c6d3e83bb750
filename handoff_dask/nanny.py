"""What lives on each nanny: it knows how its worker's process ended and what that had started."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from distributed import NannyPlugin

from handoff_dask import _compat
from handoff_dask.starts import read

if TYPE_CHECKING:
    from distributed import Nanny

#: Seconds that a nanny waits for a process to end whose worker the scheduler has lost.
PATIENCE = 5.0
#: Ends of processes that a nanny remembers.
KEPT = 16


class HandoffNannyPlugin(NannyPlugin):
    """Tells the scheduler's plugin, when a worker is lost, what became of its process."""

    name = "handoff"

    async def setup(self, nanny: Nanny) -> None:
        """Watch the worker's process, this one and those that follow it."""
        self.nanny = nanny
        #: Of the process that runs: the worker's address and the file of its starts.
        self.watched: tuple[str, str] | None = None
        #: {worker's address: how its process ended}
        self.ends: dict[str, dict[str, Any]] = {}
        self._news = asyncio.Event()
        self._unwatch: Callable[[], None] = _compat.watch_exits(nanny, self.exited)
        nanny.handlers["handoff_watch"] = self.watch
        nanny.handlers["handoff_end"] = self.end

    async def teardown(self, nanny: Nanny) -> None:
        """Leave the nanny."""
        self._unwatch()
        nanny.handlers.pop("handoff_watch", None)
        nanny.handlers.pop("handoff_end", None)

    async def watch(self, worker: str, path: str) -> None:
        """Take down who runs in the nanny's process, and where its starts stand."""
        self.watched = worker, path
        self.ends.pop(worker, None)

    def exited(self, code: int) -> None:
        """Take down how the process ended, and what it had started."""
        if self.watched is None:
            return
        (worker, path), self.watched = self.watched, None
        end: dict[str, Any] = {"code": code, "memory": False, "started": None}
        with suppress(OSError):
            pid, _, started = read(path)
            os.unlink(path)
            end["memory"] = _compat.killed_for_memory(self.nanny, pid)
            end["started"] = None if started is None else list(started.items())
        self.ends[worker] = end
        while len(self.ends) > KEPT:
            del self.ends[next(iter(self.ends))]
        self._news.set()
        self._news = asyncio.Event()

    async def end(self, worker: str) -> dict[str, Any] | None:
        """Return how the process of a worker ended; None if it does not end."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while worker not in self.ends:
            left = deadline - asyncio.get_running_loop().time()
            try:
                await asyncio.wait_for(self._news.wait(), left)
            except asyncio.TimeoutError:
                return None
        return self.ends[worker]
