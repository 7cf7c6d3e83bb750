"""The results of a run one after another, while it goes on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Hashable, Iterator
from typing import Any

from handoff_dask.client.following import Follower
from handoff_dask.client.waiting import wait_for
from handoff_dask.errors import ClusterLostError

#: Seconds between looks at the futures. Dask would wait for each by a task of its own, 3 kB and
#: 30 us each; a look costs less than 1 us, and results that come fast are fetched together.
_SHORTEST, _LONGEST = 0.002, 0.25
#: Largest share of the time since the last result by which the next one may be late.
_LATE = 0.05
#: Least pause between looks, as a multiple of what a look takes.
_REST = 20


class AsCompleted(Iterator[tuple[Hashable, Any]], AsyncIterator[tuple[Hashable, Any]]):
    """What :meth:`Run.as_completed` returns: an iterator of pairs (function id, value).

    With an asynchronous client it is iterated by ``async for``.
    """

    def __init__(self, run: Follower, timeout: float | None) -> None:
        self._run = run
        self._timeout = timeout
        self._deadline = float("inf") if timeout is None else time.monotonic() + timeout
        #: Functions whose results are still to come, and results that were not yielded yet.
        self._left = dict.fromkeys(run.outline.wanted)
        self._ready: deque[tuple[Hashable, Any]] = deque()
        #: Held by whoever waits for more: several threads or tasks may share the iterator.
        self._filling = asyncio.Lock()

    def __next__(self) -> tuple[Hashable, Any]:
        __tracebackhide__ = True
        if self._run.client.asynchronous:
            raise TypeError("the run's client is asynchronous: iterate with `async for`, not `for`")
        while (pair := self._taken()) is None:
            if not wait_for(self._run.client, self._fill, run_id=self._run.outline.run_id):
                raise StopIteration
        return pair

    async def __anext__(self) -> tuple[Hashable, Any]:
        __tracebackhide__ = True
        if not self._run.client.asynchronous:
            raise TypeError("the run's client is synchronous: iterate with `for`, not `async for`")
        while (pair := self._taken()) is None:
            if not await wait_for(self._run.client, self._fill, run_id=self._run.outline.run_id):
                raise StopAsyncIteration
        return pair

    def _taken(self) -> tuple[Hashable, Any] | None:
        """Return the next pair that is ready; None if another thread or task has taken the last."""
        with contextlib.suppress(IndexError):
            return self._ready.popleft()
        return None

    async def _fill(self) -> bool:
        """Wait for further results, unless there are some; return whether any may be left."""
        async with self._filling:
            if not self._ready:
                await self._wait()
            # Another thread may have taken them by now.
            return bool(self._ready or self._left)

    async def _wait(self) -> None:
        """Wait for further results; there are none if the run has ended and all were yielded."""
        outcome = self._run.ending()
        began = time.monotonic()
        while self._left:
            looked = time.monotonic()
            if outcome.done():
                results = outcome.result().results
                arrived = {id_: results[id_] for id_ in self._left if id_ in results}
                self._left.clear()
            else:
                arrived = await self._arrived()
            if arrived:
                self._ready.extend(arrived.items())
                self._left = {id_: None for id_ in self._left if id_ not in arrived}
                return
            now = time.monotonic()
            if now >= self._deadline:
                raise await self._run.too_late(self._timeout)
            pause = max(min(_LATE * (now - began), _LONGEST), _REST * (now - looked), _SHORTEST)
            await asyncio.wait([outcome], timeout=min(pause, self._deadline - now))

    async def _arrived(self) -> dict[Hashable, Any]:
        try:
            return await self._run.fetched(self._left)
        except ClusterLostError:  # the run itself says so, too
            return {}
