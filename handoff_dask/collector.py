"""Sparing the garbage collector what it would scan in vain."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar


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


#: Full collections that are spaced take at most this share of the time.
_SHARE = 0.01
#: Seconds between them, at most.
_LONGEST = 60.0
#: A threshold of the oldest generation that is never reached.
_NEVER = 1 << 20


class Spacing:
    """Makes full collections of this process rare while it holds many objects that live long.

    The more there are, the longer a full collection takes, and Python makes one whenever they are a
    quarter more. Unlike :class:`Sparing`, this keeps nothing: garbage is found somewhat later.

    Parameters
    ----------
    worthwhile
        Whether there are that many at present; asked after each full collection, in any thread.
    """

    #: All in this process, which has one collector.
    _open: ClassVar[list[Spacing]] = []
    #: When the last full collection began, and until when there is to be no other (monotonic s).
    _began: ClassVar[float] = 0.0
    _until: ClassVar[float] = 0.0
    #: The threshold of the oldest generation that is back then; None if it is in force.
    _replaced: ClassVar[int | None] = None

    def __init__(self, worthwhile: Callable[[], bool]) -> None:
        self._worthwhile = worthwhile
        if not self._open:
            gc.callbacks.append(Spacing._collected)
        self._open.append(self)

    def close(self) -> None:
        """Leave the collector as it was, unless another one is open."""
        self._open.remove(self)
        if not self._open:
            gc.callbacks.remove(Spacing._collected)
            Spacing._end()

    @classmethod
    def _collected(cls, phase: str, info: dict[str, int]) -> None:
        now = time.monotonic()
        if info["generation"] < 2:
            if now >= cls._until:
                cls._end()
        elif phase == "start":
            cls._began = now
        elif any(spacing._worthwhile() for spacing in cls._open):
            cls._until = now + min((now - cls._began) / _SHARE, _LONGEST)
            young, middle, old = gc.get_threshold()
            if old != _NEVER:
                cls._replaced = old
                gc.set_threshold(young, middle, _NEVER)
        else:
            cls._end()

    @classmethod
    def _end(cls) -> None:
        if cls._replaced is not None:
            young, middle, old = gc.get_threshold()
            if old == _NEVER:  # or else somebody has set it since
                gc.set_threshold(young, middle, cls._replaced)
            cls._replaced = None


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
