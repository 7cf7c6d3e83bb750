"""Which functions a worker process has started: a record that outlives the process."""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

__all__ = ["Left", "Starts", "read"]

#: Of the file: process id, starts so far, starts that found no room, whose they are.
_HEAD = struct.Struct("<qqq128s")
#: Of each place in it: number of the placement and 1, so that 0 is none; seconds since the epoch.
_START = struct.Struct("<qd")


class Starts:
    """The placements whose functions a worker has started, and those that it must not start.

    The scheduler numbers placements. A start is noted in memory that is also a file, at the price
    of two stores: what a killed process noted last stays there for another process to read. An
    ended start is kept until its place is needed, and the place that was left first is taken
    first, so that the scheduler has long heard of the end by then.

    Parameters
    ----------
    places
        How many starts are kept; above all that run at a time and all whose end the scheduler
        may not have heard of.
    path
        A file to keep them in; None keeps them in memory alone.
    owner
        Whose they are: the worker's id.
    """

    def __init__(self, places: int, path: str | None = None, owner: str = "") -> None:
        self._lock = threading.Lock()
        self._free = deque(range(places))
        self._number: list[int | None] = [None] * places
        #: {placement: (place, s since epoch)}
        self._started: dict[int, tuple[int, float]] = {}
        self._withdrawn: set[int] = set()
        self._sealed = False
        #: Starts so far, and how many of them found no room.
        self.count = 0
        self._lost = 0
        self.path = path
        self._owner = owner.encode()
        self._memory: mmap.mmap | None = None
        if path is not None:
            size = _HEAD.size + places * _START.size
            with open(path, "w+b") as file:
                file.truncate(size)
                self._memory = mmap.mmap(file.fileno(), size)
            self._write_head()

    def _write_head(self) -> None:
        if self._memory is not None:
            _HEAD.pack_into(self._memory, 0, os.getpid(), self.count, self._lost, self._owner)

    def begin(self, number: int) -> int | None:
        """Note that the function of a placement starts; None if it must not.

        Returns
        -------
        int or None
            What to call `end` with.
        """
        now = time.time()
        with self._lock:
            if self._sealed or number in self._withdrawn:
                return None
            self.count += 1
            if not self._free:  # all at work: functions that gave up their threads
                self._lost += 1
                self._write_head()
                self._started[number] = -1, now
                return -1
            place = self._free.popleft()
            before = self._number[place]
            if before is not None:
                del self._started[before]
            self._number[place] = number
            self._started[number] = place, now
            if self._memory is not None:
                self._write_head()
                _START.pack_into(self._memory, _HEAD.size + place * _START.size, number + 1, now)
            return place

    def end(self, place: int) -> None:
        """Note that a start has ended."""
        if place >= 0:
            self._free.append(place)

    def withdraw(self, numbers: Iterable[int]) -> dict[int, float]:
        """Take placements back: those not started never will be.

        Returns
        -------
        dict
            {placement: s since epoch} of those that were started.
        """
        with self._lock:
            found = {}
            for number in numbers:
                if number in self._started:
                    found[number] = self._started[number][1]
                else:
                    self._withdrawn.add(number)
            return found

    def seal(self) -> dict[int, float]:
        """Start nothing any more; return {placement: s since epoch} of what was started."""
        with self._lock:
            self._sealed = True
            return {number: started for number, (_, started) in self._started.items()}

    def close(self) -> None:
        """Remove the file."""
        with self._lock:
            self._memory = None
            if self.path is not None:
                with suppress(OSError):
                    os.unlink(self.path)
                self.path = None


@dataclass(frozen=True, slots=True)
class Left:
    """What a process has left.

    Attributes
    ----------
    owner, pid
        The worker's id, and that of its process.
    count
        The number of starts.
    started
        {placement: s since epoch} of the last of them; None if they are not fully known.
    """

    owner: str
    pid: int
    count: int
    started: dict[int, float] | None


def read(path: str) -> Left:
    """Read what a process has left in a file.

    Raises
    ------
    OSError, ValueError
        There is no file, or nothing was left in it.
    """
    with open(path, "rb") as file:
        data = file.read()
    if len(data) < _HEAD.size:
        raise ValueError(f"{path} holds no starts")
    pid, count, lost, owner = _HEAD.unpack_from(data)
    found = {n - 1: t for n, t in _START.iter_unpack(data[_HEAD.size :]) if n}
    return Left(owner.rstrip(b"\0").decode(), pid, count, None if lost else found)
