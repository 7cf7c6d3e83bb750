"""Functions to look at again at a certain time."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import NamedTuple

from handoff_dask.placement.entities import Function


class _Timer(NamedTuple):
    when: float
    number: int
    function: Function
    #: The function's when the timer was set.
    stamp: int

    @property
    def valid(self) -> bool:
        return self.stamp == self.function.stamp


class Timers:
    """Timers of functions; a timer is void once the state of its function has changed."""

    def __init__(self) -> None:
        self._heap: list[_Timer] = []
        self._number = 0

    def set(self, when: float, function: Function) -> None:
        """Look at a function again at a time, unless its state changes before."""
        self._number += 1
        heappush(self._heap, _Timer(when, self._number, function, function.stamp))

    def expired(self, now: float) -> list[Function]:
        """Remove the timers whose time has come, and return their functions."""
        expired = []
        while self._heap and self._heap[0].when <= now:
            timer = heappop(self._heap)
            if timer.valid:
                expired.append(timer.function)
        return expired

    def first(self) -> float | None:
        """Return the time of the next one."""
        while self._heap and not self._heap[0].valid:
            heappop(self._heap)
        return self._heap[0].when if self._heap else None

    def functions(self) -> Iterator[Function]:
        """Return the functions that have one, in no order."""
        return (timer.function for timer in self._heap if timer.valid)

    def of(self, function: Function) -> float | None:
        """Return the time of a function's timer."""
        timers = (t.when for t in self._heap if t.function is function and t.valid)
        return next(timers, None)
