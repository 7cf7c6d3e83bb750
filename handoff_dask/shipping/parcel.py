"""Objects that carry a copy of the package to clusters that lack it."""

from __future__ import annotations

import pickle
import pkgutil
import zlib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from handoff_dask._version import __version__
from handoff_dask.shipping import bootstrap

#: What runs on the other side; its names are the keys of the scope that is sent along.
_UNPACK = "exec(bootstrap, globals()) or unpack(files, parcel, version, base)"


class Shipped:
    """Pickles in a form that can be loaded where the package is not installed.

    An installed package is used if there is one. Subclasses list their constructor's arguments in
    `arguments`, and may name a `base` in distributed: see ``bootstrap.unpack``.
    """

    arguments: tuple[Any, ...] = ()
    base: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        scope = {
            "__name__": bootstrap.__name__,
            "bootstrap": _source(),
            "files": _package(),
            "parcel": pickle.dumps((type(self), self.arguments)),
            "version": __version__,
            "base": self.base,
        }
        # Text, because code objects differ between versions of Python.
        return eval, (_UNPACK, scope)


def _source() -> str:
    source = pkgutil.get_data(bootstrap.NAME, "shipping/bootstrap.py")
    assert source is not None
    return source.decode()


@cache
def _package() -> bytes:
    """Return the files of this package, even if it was itself shipped here."""
    for finder in bootstrap.shipped():
        return zlib.compress(pickle.dumps(finder.files))
    return zlib.compress(pickle.dumps(dict(_files(files(bootstrap.NAME), bootstrap.NAME))))


def _files(folder: Any, path: str) -> Iterator[tuple[str, bytes]]:
    for entry in folder.iterdir():
        where = f"{path}/{entry.name}"
        if entry.is_dir():
            if entry.name != "__pycache__":
                yield from _files(entry, where)
        elif entry.is_file():
            yield where, entry.read_bytes()
