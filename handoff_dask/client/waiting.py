"""Waiting for a run: giving up the thread meanwhile, and warning if the run makes no progress."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import warnings
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from distributed import Client

from handoff_dask.client import connection
from handoff_dask.tracebacks import users_frame
from handoff_dask.worker.task import seceded

T = TypeVar("T")
logger = logging.getLogger(__name__)

#: Seconds between looks at a run that somebody waits for.
LOOK = 5.0
#: Seconds without progress before the first warning, and between later ones.
FIRST, AGAIN = 10.0, 60.0


def wait_for(client: Client, method: Callable[..., Awaitable[T]], *args: Any, **run: Any) -> T:
    """Run a coroutine function that waits for a run; with an asynchronous client, return it.

    A function of a run that waits here gives up its thread meanwhile.

    Parameters
    ----------
    client
        The client.
    method, *args
        The coroutine function and its arguments.
    **run
        The run: its `run_id` or `dag_id`, as the scheduler knows it.
    """
    __tracebackhide__ = True
    frame, _ = users_frame()
    where = frame.f_code.co_filename, frame.f_lineno
    del frame

    async def watched() -> T:
        __tracebackhide__ = True
        watch = asyncio.create_task(_watch(client, run, where))
        try:
            return await method(*args)
        finally:
            watch.cancel()

    return connection.sync(client, seceded(client, watched))


async def _watch(client: Client, run: dict[str, str], where: tuple[str, int]) -> None:
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
