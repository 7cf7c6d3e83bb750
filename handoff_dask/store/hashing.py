"""Digests of bytes and of arrays."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

#: Bytes that one thread hashes at a time. Other values would change the names of results.
_CHUNK = 2**23


def digest(data: Any) -> bytes:
    """Return a digest of 20 bytes; large data is hashed by several threads."""
    view = memoryview(data)
    if view.nbytes <= _CHUNK:
        return _sha(view)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        chunks = (view[i : i + _CHUNK] for i in range(0, view.nbytes, _CHUNK))
        return digest_of((b"%d:" % view.nbytes, *pool.map(_sha, chunks)))


def digest_of(parts: Iterable[bytes]) -> bytes:
    """Return a digest of parts, each of which shows where it ends."""
    return _sha(b"".join(parts))


def array_digest(array: Any) -> bytes:
    """Return a digest of the elements of a numpy array, in the order of their indices."""
    if not array.nbytes:
        return digest(b"")
    contiguous = array if array.flags.c_contiguous else array.copy(order="C")
    return digest(contiguous.reshape(-1).view("u1").data)


def _sha(data: Any) -> bytes:
    return hashlib.sha256(data).digest()[:20]
