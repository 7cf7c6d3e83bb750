"""Sparing the garbage collector what it would scan in vain."""

from __future__ import annotations

import gc
from collections.abc import Iterator
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


#: Objects that are kept frozen, by those who asked for it.
_frozen_for: set[object] = set()


def freeze(holder: object) -> None:
    """Exempt all objects that there are from collection, until `holder` is thawed.

    Many objects that live long make every full collection dear, and none of them is garbage. Those
    that are no longer referred to are still freed at once, except in cycles.
    """
    _frozen_for.add(holder)
    gc.freeze()


def thaw(holder: object) -> None:
    """End what :func:`freeze` began; ignored if it did not."""
    if holder in _frozen_for:
        _frozen_for.remove(holder)
        if not _frozen_for:
            gc.unfreeze()
