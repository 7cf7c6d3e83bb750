"""Sparing the garbage collector what it would scan in vain."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """Pause the collector while many objects are created and none becomes garbage.

    Otherwise it would scan all of them again and again, at a third of the cost of creating them.
    """
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


class Sparing:
    """Spares what survives a full collection from the following ones, while that is worthwhile.

    Many objects that live long make each full collection dear, and it finds no garbage among them.
    Those that are no longer referred to are freed at once all the same; only cycles are not, until
    the sparing ends.

    Parameters
    ----------
    worthwhile
        Whether there are that many at present; asked after each full collection, in any thread.
    """

    def __init__(self, worthwhile: Callable[[], bool]) -> None:
        self._worthwhile = worthwhile
        self._spares = False
        gc.callbacks.append(self._collected)

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        if phase == "stop" and info["generation"] == 2:
            if self._worthwhile():
                self._spares = True
                gc.freeze()
            else:
                self._end()

    def look(self) -> None:
        """End the sparing if it is not worthwhile any more."""
        if self._spares and not self._worthwhile():
            self._end()

    def close(self) -> None:
        """Leave the collector as it was."""
        gc.callbacks.remove(self._collected)
        self._end()

    def _end(self) -> None:
        if self._spares:
            self._spares = False
            gc.unfreeze()
