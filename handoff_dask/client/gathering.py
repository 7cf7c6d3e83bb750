"""Fetching the results of a run, also while workers go away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Hashable, Mapping
from typing import Any, TypeAlias, TypeVar

from distributed import Client, Future

from handoff_dask.client import connection
from handoff_dask.client.waiting import outcome_of
from handoff_dask.errors import ClusterLostError

T = TypeVar("T")
#: In quotes: the oldest Dask's futures take no parameter at run time.
Futures: TypeAlias = "Mapping[Hashable, Future[Any]]"


#: Errors of values that cannot be fetched.
Problems: TypeAlias = "dict[Hashable, BaseException]"


async def finished(client: Client, futures: Futures) -> tuple[dict[Hashable, Any], Problems]:
    """Fetch the results of the functions that finished.

    A function may have raised ``CancelledError``, which must not cancel anything here.

    Returns
    -------
    tuple
        {function id: value}, and {function id: error} of those that cannot be sent or opened.
    """
    done = {id_: future for id_, future in futures.items() if future.status == "finished"}
    if not done:
        return {}, {}  # Dask would ask the scheduler, and wait for one that is gone
    asked = client.gather(list(done.values()), asynchronous=True)
    gathering = await _ended(connection.answered(client, asked))
    if not gathering.cancelled():
        error = gathering.exception()
        if error is None:
            return dict(zip(done, gathering.result(), strict=True)), {}
        _forget_frames(error)
    # Either one of them cannot be fetched, or something that others fetch at the same time.
    return await _fetch_apart(client, done)


async def _ended(waiting: Awaitable[T]) -> asyncio.Future[T]:
    """Wait until an awaitable is done and return its future; cancel it if the wait is cancelled."""
    future = outcome_of(waiting)
    try:
        await asyncio.wait([future])
    finally:
        future.cancel()
    return future


async def _fetch_apart(client: Client, futures: Futures) -> tuple[dict[Hashable, Any], Problems]:
    """Fetch results so that one that cannot be fetched does not affect the others."""
    values: dict[Hashable, Any] = {}
    problems: Problems = {}
    parts = [list(futures)]
    while parts:
        ids = parts.pop()
        if not ids:
            continue
        keys = {futures[id_].key: id_ for id_ in ids}
        # Dask's client would fetch it together with what others ask for at the same time.
        fetching = await _ended(connection.ask(client, "gather", keys=list(keys)))
        # A value may raise CancelledError when it is opened.
        cancelled = asyncio.CancelledError("raised by the value as it was opened")
        error = cancelled if fetching.cancelled() else fetching.exception()
        if isinstance(error, ClusterLostError):
            raise error
        if error is not None:
            _forget_frames(error)
            if len(ids) == 1:
                problems[ids[0]] = error
            else:
                half = len(ids) // 2
                parts += ids[half:], ids[:half]
            continue
        answer = fetching.result()
        if answer["status"] == "OK":
            values.update((keys[key], value) for key, value in answer["data"].items())
        else:  # lost with their worker, and computed again
            lost = {keys[key] for key in answer["keys"]}
            parts.append([id_ for id_ in ids if id_ not in lost])
    return values, problems


def _forget_frames(error: BaseException) -> None:
    """Drop the traceback of an exception that fetching raised.

    The client keeps the exception with its future. The frames of a traceback would keep other
    futures alive, and so their results on the cluster.
    """
    error.__traceback__ = None
