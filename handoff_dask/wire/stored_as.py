"""Where the result of a function is stored, as a worker is told."""

from __future__ import annotations

import pickle
from typing import NamedTuple

from handoff_dask.store.entries import Location


class StoredAs(NamedTuple):
    """Where the result of a function is stored. The scheduler opens none of this."""

    #: The store, pickled; one object for all functions of a run.
    store: bytes
    #: What the worker's code must be, for ``loaded.check``; one object for functions of one code.
    code: bytes
    #: The fields of a :class:`Place`, pickled.
    place: bytes


class Place(NamedTuple):
    """Where in the store, and whose result it is, as its entry says."""

    location: Location
    dag: str
    function: str

    def packed(self) -> bytes:
        """Return it pickled."""
        return pickle.dumps(tuple(self), protocol=pickle.HIGHEST_PROTOCOL)
