"""Writes results into the store on the worker that made them, and reads those that are needed."""

from __future__ import annotations

import getpass
import pickle
import platform
from functools import lru_cache
from typing import Any

from handoff_dask.compat import worker as compat
from handoff_dask.errors import StoredResultMissing
from handoff_dask.model.attempt import UNKNOWN, Usage
from handoff_dask.store import loaded
from handoff_dask.store.entries import Made
from handoff_dask.store.opened import OpenStore, opened
from handoff_dask.wire.stored_as import Place, StoredAs

#: Stands for a result that is not in the store.
ABSENT: Any = object()


@lru_cache(maxsize=8)
def _opened(store: bytes) -> OpenStore:
    return opened(pickle.loads(store))


class Saver:
    """Reads the result of a function from the store, or writes it there."""

    def __init__(self, stored: StoredAs) -> None:
        self._store = _opened(stored.store)
        self._code = stored.code
        self._place = Place(*pickle.loads(stored.place))

    def check(self) -> None:
        """Raise StoreError if results must not be stored, since other code makes them."""
        loaded.check(self._code)

    def result(self) -> Any:
        """Return the result if it is in the store, ABSENT if not."""
        try:
            return self._store.read(self._place.location)
        except StoredResultMissing:
            return ABSENT

    def save(self, value: Any, started: float, stopped: float, usage: Usage = UNKNOWN) -> None:
        """Write a result; raise StoreError if that fails and is required."""
        made = Made(
            dag=self._place.dag,
            function=self._place.function,
            worker=compat.worker_address(),
            host=platform.node(),
            user=_user(),
            started=started,
            stopped=stopped,
            usage=usage,
        )
        self._store.write(self._place.location, value, made)


@lru_cache(maxsize=1)
def _user() -> str:
    try:
        return getpass.getuser()
    except Exception:  # a container without an entry for its user
        return ""
