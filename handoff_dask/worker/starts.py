"""Records which functions a worker process has started; the record outlives the process."""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import psutil

#: The file's head: process id, starts that found no room, the worker's id.
_HEAD = struct.Struct("<qq128s")
#: Each place in it: position, seconds since the epoch, attempt, failures, the placement's number
#: plus 1 (0 is none). The latest failures follow, as a ring.
#: The number is written last: a process that is killed halfway leaves wrong facts only about a
#: placement that has ended.
_START = struct.Struct("<qdqqq")
#: One field, and where the failures are.
_FIELD = struct.Struct("<q")
_FAILURES = struct.calcsize("<qdq")
#: How many failures of a bundle are kept. Each is reported at once, so only those are needed whose
#: report was still in the process when that died.
_KEPT = 16
_PLACE = struct.Struct(f"<qdqqq{_KEPT}q")


class Start(NamedTuple):
    """The latest start of a placement."""

    number: int
    #: Of the function in its bundle; -1 for a function that travels alone. Below -1 if the
    #: placement has ended: see :meth:`Starts.end`.
    position: int
    #: Seconds since the epoch.
    started: float
    #: Which attempt of a bundle's function it is, the first is 1.
    attempt: int
    #: How many attempts in its bundle have failed.
    failures: int = 0
    #: The positions of the latest of these; ``-1 - position`` if no other attempt follows.
    failed: tuple[int, ...] = ()


class Starts:
    """The placements whose functions a worker has started, and those that it must not start.

    The scheduler numbers placements. A start is recorded in memory that is mapped from a file; this
    costs one store. If the process is killed, another one can read the file. A start that has
    ended is kept until its place is needed. The place that has been free for longest is used first,
    so the scheduler has long known of that end.

    The functions of a bundle are one placement and start one after the other, in the order of their
    positions. They use one place, which has the latest: those before it have been passed. It also
    has what failed lately in the bundle.

    There are as many places as starts are kept: more than run at a time, plus those whose end the
    scheduler may not know yet. Without the address of a :class:`StartsFile`, they are in memory
    only; if that file no longer exists, OSError or ValueError is raised. `owner` is the worker's
    id.
    """

    def __init__(self, places: int, address: str | None = None, owner: str = "") -> None:
        self._lock = threading.Lock()
        self._free = deque(range(places))
        self._number: list[int | None] = [None] * places
        #: {placement: (place, start)}
        self._started: dict[int, tuple[int, Start]] = {}
        self._withdrawn: set[int] = set()
        #: {placement: positions}
        self._skipped: defaultdict[int, set[int]] = defaultdict(set)
        self._sealed = False
        #: How many starts found no free place.
        self._lost = 0
        self._owner = owner.encode()
        self._memory: mmap.mmap | None = None
        if address is not None:
            self._memory = _mapped(address, _HEAD.size + places * _PLACE.size)
            self._write_head()

    def _write_head(self) -> None:
        if self._memory is not None:
            _HEAD.pack_into(self._memory, 0, os.getpid(), self._lost, self._owner)

    def begin(self, number: int, position: int = -1, attempt: int = 1) -> int | None:
        """Record that a function of a placement starts; return the place, to be passed to `end`.

        None if the function must not start. Each function of a bundle gets the same place.
        """
        now = time.time()
        with self._lock:
            if self.refuses(number) or position in self._skipped.get(number, ()):
                return None
            if number in self._started:
                place, before = self._started[number]
                start = Start(number, position, now, attempt, before.failures, before.failed)
            else:
                place, start = self._place(number), Start(number, position, now, attempt)
            self._started[number] = place, start
            if place >= 0 and self._memory is not None:
                _START.pack_into(
                    self._memory, _offset(place), position, now, attempt, start.failures, number + 1
                )
            return place

    def failed(self, number: int, position: int, final: bool) -> None:
        """Record that an attempt of a bundle's function failed, and whether it was the last."""
        with self._lock:
            place, start = self._started[number]
            failed = -1 - position if final else position
            count, latest = start.failures + 1, (*start.failed, failed)[-_KEPT:]
            self._started[number] = place, start._replace(failures=count, failed=latest)
            if place >= 0 and self._memory is not None:
                offset = _offset(place)
                slot = offset + _START.size + start.failures % _KEPT * _FIELD.size
                _FIELD.pack_into(self._memory, slot, failed)
                _FIELD.pack_into(self._memory, offset + _FAILURES, count)

    def _place(self, number: int) -> int:
        """Return a place for a placement; -1 if there is none."""
        if not self._free:  # all in use, by functions that gave up their threads
            self._lost += 1
            self._write_head()
            return -1
        place = self._free.popleft()
        before = self._number[place]
        if before is not None:
            del self._started[before]
            self._withdrawn.discard(before)
            self._skipped.pop(before, None)
        self._number[place] = number
        return place

    def end(self, place: int, after: int = 0) -> None:
        """Record that the placement at a place has ended.

        In its start, the position becomes ``-2 - after``, where `after` is the first position in
        its bundle that did not run.
        """
        if place < 0:
            return
        with self._lock:
            number = self._number[place]
            assert number is not None
            self._started[number] = place, self._started[number][1]._replace(position=-2 - after)
            if self._memory is not None:
                _FIELD.pack_into(self._memory, _offset(place), -2 - after)
            self._free.append(place)

    def withdrawn(self, number: int) -> bool:
        """Whether a placement was withdrawn."""
        return number in self._withdrawn

    def refuses(self, number: int) -> bool:
        """Whether nothing of a placement may start any more."""
        return self._sealed or number in self._withdrawn

    def withdraw(self, numbers: Iterable[int]) -> list[Start]:
        """Withdraw placements, so that nothing of them starts any more; return those started."""
        with self._lock:
            self._withdrawn.update(numbers := list(numbers))
            return _in_order(self._started[n][1] for n in numbers if n in self._started)

    def withdraw_member(self, number: int, position: int) -> None:
        """Withdraw a function of a bundle; the others are not affected."""
        with self._lock:
            self._skipped[number].add(position)

    def seal(self) -> list[Start]:
        """Allow no more starts; return those so far."""
        with self._lock:
            self._sealed = True
            return _in_order(start for _, start in self._started.values())


def _offset(place: int) -> int:
    return _HEAD.size + place * _PLACE.size


def _in_order(starts: Iterable[Start]) -> list[Start]:
    return sorted(starts, key=lambda start: start.started)


def _open(address: str) -> BinaryIO:
    path, identity = address.rsplit("|", 1)
    file = open(path, "r+b")
    if identity == _identity(file.fileno()):
        return file
    # Descriptors are reused: this one now belongs to another file.
    file.close()
    raise ValueError(f"{path} is another file")


def _mapped(address: str, size: int) -> mmap.mmap:
    with _open(address) as file:
        if os.fstat(file.fileno()).st_size < size:
            file.truncate(size)
        memory = mmap.mmap(file.fileno(), size)
    memory[:] = bytes(size)
    return memory


def _identity(file: int) -> str:
    status = os.fstat(file)
    return f"{status.st_dev}:{status.st_ino}"


@dataclass(frozen=True, slots=True)
class Left:
    """What a process has recorded in a file."""

    #: The worker's id, and that of its process.
    owner: str
    pid: int
    #: The latest ones, in order; None if the record is incomplete.
    started: list[Start] | None


#: Prefix of the files' names, on systems where they need names.
_PREFIX = "handoff-starts-"


class StartsFile:
    """A file in which the worker process of a nanny records its starts.

    If the system allows, it has no name and disappears with the nanny. Otherwise, a file left by a
    killed nanny is removed when another nanny creates its own.
    """

    def __init__(self) -> None:
        self._path: str | None = None
        if hasattr(os, "memfd_create"):
            self._file = os.memfd_create("handoff-starts")
            path = f"/proc/{os.getpid()}/fd/{self._file}"
        else:
            _remove_stale()
            self._file, path = tempfile.mkstemp(prefix=f"{_PREFIX}{os.getpid()}-")
            self._path = path
        #: What a process of the same user on this host passes to :class:`Starts`.
        self.address = f"{path}|{_identity(self._file)}"

    @staticmethod
    def exists(address: str) -> bool:
        """Whether the file still exists."""
        try:
            _open(address).close()
        except (OSError, ValueError):
            return False
        return True

    def read(self) -> Left | None:
        """Return what a process has recorded in it; None if nothing."""
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            data = file.read()
        if len(data) < _HEAD.size:
            return None
        pid, lost, owner = _HEAD.unpack_from(data)
        places = _PLACE.iter_unpack(data[_HEAD.size :])
        started = _in_order(_start(*place) for place in places if place[4])
        return Left(owner.rstrip(b"\0").decode(), pid, None if lost else started)

    def clear(self) -> None:
        """Empty it for the next process, after one has ended."""
        os.ftruncate(self._file, 0)

    def close(self) -> None:
        """Close it; a process that has it open can continue to use it."""
        os.close(self._file)
        if self._path is not None:
            with suppress(OSError):
                os.unlink(self._path)


def _start(
    position: int, started: float, attempt: int, failures: int, number: int, *ring: int
) -> Start:
    """Return the start that is recorded at a place."""
    latest = range(max(0, failures - _KEPT), failures)
    failed = tuple(ring[i % _KEPT] for i in latest)
    return Start(number - 1, position, started, attempt, failures, failed)


def _remove_stale() -> None:
    """Remove the files of processes that no longer exist."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = path.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            with suppress(OSError):
                path.unlink()
