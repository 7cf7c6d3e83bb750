"""Which runs of a client are over, according to the scheduler's plugin.

Dask reports the end of each task to a client in one message, which may be unreadable. So the client
also asks the plugin.
"""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

from distributed import Client

from handoff_dask.client import connection

#: Seconds between questions to the scheduler, each for all runs of a client.
INTERVAL = 1.0

_watchers: WeakKeyDictionary[Client, _Watcher] = WeakKeyDictionary()


def over(client: Client, run_id: str) -> asyncio.Future[None]:
    """Return a future that is done when a run is over or not known to the scheduler.

    To be called, and cancelled, on the client's loop. It raises ``ClusterLostError`` if the client
    loses its scheduler.
    """
    watcher = _watchers.get(client)
    if watcher is None:
        watcher = _watchers[client] = _Watcher()
    return watcher.add(client, run_id)


class _Watcher:
    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], str] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, client: Client, run_id: str) -> asyncio.Future[None]:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiting] = run_id
        waiting.add_done_callback(self._waiting.pop)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch(client))
        return waiting

    async def _watch(self, client: Client) -> None:
        """Ask repeatedly while somebody waits."""
        try:
            while await self._sleep():
                run_ids = sorted(set(self._waiting.values()))
                ended = set(await connection.call(client, "over", run_ids=run_ids))
                for waiting, run_id in list(self._waiting.items()):
                    if run_id in ended and not waiting.done():
                        waiting.set_result(None)
        except Exception as error:
            for waiting in list(self._waiting):
                if not waiting.done():
                    waiting.set_exception(error)
                    waiting.exception()  # retrieved, in case nobody waits any more

    async def _sleep(self) -> bool:
        await asyncio.sleep(INTERVAL)
        return bool(self._waiting)
