"""Fetching the results of a run, also while workers go away."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from distributed import CancelledError, Client, Future, wait

from handoff_dask.errors import HandoffError

Futures = Mapping[Hashable, Future[Any]]


async def ended(client: Client, futures: Futures) -> dict[Hashable, Any]:
    """Gather the results of all that did not fail, once everything has ended."""
    while True:
        # It asks for the current client, which need not be ours.
        with client.as_current():
            await wait(list(futures.values()))
        values = await finished(client, futures)
        # A worker that was lost meanwhile took results with it; these are made again.
        if values.keys() | _failed(futures) == futures.keys():
            return values


async def finished(client: Client, futures: Futures) -> dict[Hashable, Any]:
    """Gather the results that there are.

    Raises
    ------
    HandoffError
        There are results that do not arrive.
    """
    while True:
        failed = _failed(futures)
        done = {id_: future for id_, future in futures.items() if future.status == "finished"}
        try:
            values = await client.gather(list(done.values()), asynchronous=True)
        except CancelledError:
            raise
        except Exception as error:
            if _failed(futures) == failed:
                raise unfetched(error) from error
            continue  # one was lost, made again, and failed
        return dict(zip(done, values, strict=True))


def _failed(futures: Futures) -> set[Hashable]:
    return {id_ for id_, future in futures.items() if future.status == "error"}


def unfetched(error: Exception) -> HandoffError:
    """Return the error for results that exist but do not arrive: they cannot be unpickled here."""
    return HandoffError(f"the results cannot be fetched: {type(error).__name__}: {error}")
