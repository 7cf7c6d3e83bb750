"""How a client learns that a run, or one function of it, has ended, and how it waits for that.

Dask reports the end of each task to a client in one message, which may be late or unreadable. The
scheduler's plugin knows which runs are over. So a client waits for whichever comes first
(:func:`ended`), and then asks for what it has missed (:func:`settle`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import warnings
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from distributed import Client, Future, wait

from handoff_dask.client import connection
from handoff_dask.compat import client_side as compat
from handoff_dask.tracebacks import users_frame
from handoff_dask.worker.task import seceded

T = TypeVar("T")
logger = logging.getLogger(__name__)

#: Seconds between questions to the scheduler, each for all runs of a client.
INTERVAL = 1.0
#: Seconds that a client waits for messages that should arrive soon.
PATIENCE = 2.0
#: Seconds between looks at a run that somebody waits for.
LOOK = 5.0
#: While more futures than this may be pending, the first of them is only looked at; seconds between
#: looks.
_MANY, _PAUSE = 1000, 0.1
#: Seconds without progress before the first warning, and between later ones.
FIRST, AGAIN = 10.0, 60.0


async def ended(
    client: Client,
    run_id: str,
    futures: Collection[Future[Any]],
    timeout: float | None = None,
    *,
    again: bool = False,
) -> bool:
    """Wait until all futures have ended, one was cancelled, or the run is over.

    Parameters
    ----------
    client, run_id, futures
        The client, the run, and futures of functions of it.
    timeout
        Seconds; None waits without end.
    again
        Whether to tell the scheduler repeatedly that this client wants these results. That an
        earlier future of the same key was released may reach the scheduler later than the first
        time.

    Returns
    -------
    bool
        Whether it happened in time.
    """
    loop = asyncio.get_running_loop()
    deadline = float("inf") if timeout is None else loop.time() + timeout
    is_over = over(client, run_id)
    waiting = outcome_of(_all_ended(client, futures))
    every = INTERVAL if again else float("inf")
    try:
        while True:
            if again:
                await want(client, futures)
            left = deadline - loop.time()
            pause = max(0.0, min(left, every))
            await asyncio.wait(
                [is_over, waiting],
                timeout=None if pause == float("inf") else pause,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if is_over.done():
                is_over.result()
            if is_over.done() or waiting.done():
                return True
            if left <= 0:
                return False
    finally:
        is_over.cancel()
        waiting.cancel()


def over(client: Client, run_id: str) -> asyncio.Future[None]:
    """Return a future that is done when a run is over or not known to the scheduler.

    It raises if asking fails, as when the client loses its scheduler.
    """
    return _watchers.setdefault(client, _Watcher()).add(client, run_id)


async def _all_ended(client: Client, futures: Collection[Future[Any]]) -> None:
    """Wait until all futures have ended."""
    # Dask waits for each by a task of its own: 3 kB and 30 us each, all at once.
    pending = deque(futures)
    while len(pending) > _MANY:
        if has_ended(pending[0]):
            pending.popleft()
        else:
            await asyncio.sleep(_PAUSE)
    with client.as_current():
        rest = wait(unended(pending))
    await rest


def has_ended(future: Future[Any]) -> bool:
    """Whether a future has ended, as far as this client knows."""
    return future.status not in ("pending", "lost")


def unended(futures: Iterable[Future[Any]]) -> list[Future[Any]]:
    """Return the futures that have not ended, as far as this client knows."""
    return [future for future in futures if not has_ended(future)]


async def settle(client: Client, futures: Collection[Future[Any]]) -> None:
    """Bring futures up to date with the scheduler, once their run is over.

    Messages may be late, or lost. A future whose function did not run stays as it is.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while pending := {f.key: f for f in unended(futures)}:
        states = await connection.call(client, "states", keys=list(pending))
        missed = {key: state for key, state in states if state in ("memory", "erred")}
        if not missed:
            return
        if loop.time() > deadline:
            for key, state in missed.items():
                compat.settle_future(pending[key], state)
            return
        await want(client, [pending[key] for key in missed])
        await asyncio.sleep(PATIENCE / 10)


async def want(client: Client, futures: Collection[Future[Any]]) -> None:
    """Have the scheduler keep the results of futures for a client, and send it their states."""
    await connection.call(client, "want", keys=[f.key for f in futures], client=client.id)


def outcome_of(waiting: Awaitable[T]) -> asyncio.Future[T]:
    """Return the future of an awaitable; nobody need retrieve its exception."""
    future = asyncio.ensure_future(waiting)
    future.add_done_callback(lambda f: f.cancelled() or f.exception())
    return future


class _Watcher:
    """Asks the scheduler which of a client's runs are over, while somebody waits for them."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], str] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, client: Client, run_id: str) -> asyncio.Future[None]:
        """Return a future that is done when a run is over or not known to the scheduler.

        It raises if asking fails, as when the client loses its scheduler.
        """
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiting] = run_id
        waiting.add_done_callback(self._waiting.pop)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch(client))
        return waiting

    async def _watch(self, client: Client) -> None:
        try:
            while await self._pause():
                run_ids = sorted(set(self._waiting.values()))
                over = set(await connection.call(client, "over", run_ids=run_ids))
                for waiting, run_id in list(self._waiting.items()):
                    if run_id in over and not waiting.done():
                        waiting.set_result(None)
        except Exception as error:
            for waiting in list(self._waiting):
                if not waiting.done():
                    waiting.set_exception(error)
                    waiting.exception()  # retrieved, in case nobody waits any more

    async def _pause(self) -> bool:
        await asyncio.sleep(INTERVAL)
        return bool(self._waiting)


_watchers: WeakKeyDictionary[Client, _Watcher] = WeakKeyDictionary()


def wait_for(client: Client, method: Callable[..., Awaitable[Any]], *args: Any, **run: Any) -> Any:
    """Run a coroutine function that waits for a run; with an asynchronous client, return it.

    A function of a run that waits here gives up its thread meanwhile. Whoever waits is warned if
    the run makes no progress: the run with this `run_id` or `dag_id`, as the scheduler knows it.
    """
    __tracebackhide__ = True
    frame, _ = users_frame()
    where = frame.f_code.co_filename, frame.f_lineno
    del frame

    async def watched() -> Any:
        __tracebackhide__ = True
        watch = asyncio.create_task(_warn_of_stalls(client, run, where))
        try:
            return await method(*args)
        finally:
            watch.cancel()

    return connection.sync(client, seceded(client, watched))


async def _warn_of_stalls(client: Client, run: dict[str, str], where: tuple[str, int]) -> None:
    """Warn when a run makes no progress, and again while it makes none."""
    moved, limit = time.monotonic(), FIRST
    # If the scheduler does not answer, whoever waits for the run learns that anyway.
    with contextlib.suppress(Exception):
        while True:
            await asyncio.sleep(LOOK)
            problem = await connection.call(client, "stalled", **run)
            still = time.monotonic() - moved
            if problem is None:
                moved, limit = time.monotonic(), FIRST
            elif still >= limit:
                limit = still + AGAIN
                _warn(f"nothing has moved for {still:.0f} s: {problem}", where)


def _warn(text: str, where: tuple[str, int]) -> None:
    try:
        # Not by warn(): this thread is not the one that waits.
        warnings.warn_explicit(text, RuntimeWarning, *where)
    except RuntimeWarning:  # warnings are errors here, but this must not fail the run
        logger.warning("%s", text)
