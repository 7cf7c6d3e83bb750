"""Pickles whose large buffers travel in shared memory.

A buffer of a mebibyte or more is written to memory that has no name (a memfd), whose descriptor is
sent along. The receiver maps it. So it is copied once, nothing is left if a process is killed, and
a result that arrived that way is passed on to the next child without being copied.
"""

from __future__ import annotations

import errno
import os
import pickle
import resource
import threading
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from cloudpickle import list_registry_pickle_by_value

from handoff_dask.pickling import dumps
from handoff_dask.worker.isolation.calls import Place
from handoff_dask.worker.isolation.channel import MOST_FDS
from handoff_dask.worker.isolation.libc import address_of, mapped, memory_file

#: Bytes from which on a buffer is not part of the pickle.
LARGE = 1 << 20
#: Descriptors that this process may have; negative: any number.
_ALLOWED, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
#: Most results whose descriptors are kept, so that they can be passed on without a copy.
KEPT = min(128, _ALLOWED // 8) if _ALLOWED > 0 else 128
#: Buffers start at multiples of this in their segment.
_ALIGNED = 64


class Packed(NamedTuple):
    """A pickled value."""

    data: bytes
    places: tuple[Place, ...]
    #: Descriptors of the segments.
    fds: list[int]

    @property
    def size(self) -> int:
        """Bytes of the value."""
        return len(self.data) + sum(place.size for place in self.places)

    def close(self) -> None:
        """Close the descriptors; call this once they are sent."""
        for fd in self.fds:
            os.close(fd)


def pack(value: Any) -> Packed:
    """Pickle a value."""
    buffers: list[memoryview] = []

    def stays(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if raw.nbytes < LARGE:
            return True
        buffers.append(raw)
        return False

    packed = Packed(_dumps(value, buffers, stays), (), [])
    return _in_segments(packed, buffers) if buffers else packed


def _dumps(
    value: Any, buffers: list[memoryview], stays: Callable[[pickle.PickleBuffer], bool]
) -> bytes:
    # Our own pickler takes longer, and is needed only for what cannot be imported.
    if not list_registry_pickle_by_value():
        with suppress(Exception):
            data = pickle.dumps(value, protocol=5, buffer_callback=stays)
            if b"__main__" not in data:
                return data
    buffers.clear()
    return dumps(value, stays)


def _in_segments(packed: Packed, buffers: Sequence[memoryview]) -> Packed:
    """Add the segments that hold the buffers."""
    places: list[Place] = []
    #: {descriptor that is kept: the segment's number}
    kept: dict[int, int] = {}
    own: int | None = None
    end = 0
    try:
        for raw in buffers:
            place = None if len(packed.fds) > MOST_FDS - 2 else _kept_place(raw, kept, packed.fds)
            if place is None:
                if own is None:
                    own = len(packed.fds)
                    packed.fds.append(memory_file())
                place = Place(own, end, raw.nbytes)
                _write(packed.fds[own], raw, end)
                end += -(-raw.nbytes // _ALIGNED) * _ALIGNED
            places.append(place)
    except BaseException:
        packed.close()
        raise
    return packed._replace(places=tuple(places))


def _write(fd: int, raw: memoryview, offset: int) -> None:
    while raw:
        written = os.pwrite(fd, raw, offset)
        raw, offset = raw[written:], offset + written


def unpack(data: Any, places: Sequence[Place], fds: Sequence[int], *, shared: bool) -> Any:
    """Unpickle a value, and close the descriptors; its arrays can be written to.

    `shared`: in a worker, where a result stays in its segment, to be passed on. In a child, only
    the child sees what it writes.
    """
    segments = []
    try:
        if any(place.segment >= len(fds) for place in places):
            # The kernel drops what this process has no descriptors for.
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        for fd in fds:
            address, content = mapped(fd, shared=shared)
            if shared:
                _keep(fd, address, content)
            segments.append(content)
    finally:
        for fd in fds:
            os.close(fd)
    buffers = [segments[p.segment][p.offset : p.offset + p.size] for p in places]
    return pickle.loads(data, buffers=buffers)


#: {address: (size, descriptor)} of mapped results, oldest first.
_results: dict[int, tuple[int, int]] = {}
#: Reentrant, because a result can be freed at any time.
_lock = threading.RLock()


def _keep(fd: int, address: int, content: memoryview) -> None:
    """Keep the descriptor of a result for as long as it is mapped, unless there are too many."""
    with _lock:
        while len(_results) >= KEPT:
            _forget(next(iter(_results)))
        try:
            _results[address] = len(content), os.dup(fd)
        except OSError:
            return
    weakref.finalize(content.obj, _forget, address).atexit = False


def _forget(address: int) -> None:
    with _lock:
        _, fd = _results.pop(address, (0, None))
        if fd is not None:
            os.close(fd)


def _kept_place(raw: memoryview, kept: dict[int, int], fds: list[int]) -> Place | None:
    """Return the place of a buffer that lies in a result; add its descriptor if it is new."""
    address = address_of(raw) if _results else None
    if address is None:
        return None
    with _lock:
        for start, (size, fd) in list(_results.items()):
            if start <= address and address + raw.nbytes <= start + size:
                if fd not in kept:
                    kept[fd] = len(fds)
                    fds.append(os.dup(fd))
                return Place(kept[fd], address - start, raw.nbytes)
    return None
