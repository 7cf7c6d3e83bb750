"""The GPUs of a worker: how many it may use, and which function uses which."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from distributed.diagnostics import nvml

#: Shares are compared with this much tolerance.
_EPSILON = 1e-9


def visible_devices(
    indices: tuple[int, ...], environ: Mapping[str, str] = os.environ
) -> tuple[str, ...]:
    """Return what CUDA_VISIBLE_DEVICES calls devices that this process counts from 0."""
    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return tuple(map(str, indices))
    entries = list(dict.fromkeys(filter(None, map(str.strip, named.split(",")))))
    return tuple(entries[index] for index in indices if index < len(entries))


def visible_gpus(environ: Mapping[str, str] = os.environ) -> int:
    """Count the GPUs that this process may use: those NVML finds and CUDA_VISIBLE_DEVICES names."""
    count: int = nvml.device_get_count()
    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is None or not count:
        return count
    seen: set[str] = set()
    for device in map(str.strip, named.split(",")):
        index = device.removeprefix("-")
        if index.isdigit() and not 0 <= int(device) < count:
            break  # as CUDA does: the first missing device ends the list
        if device:
            seen.add(device)
    return len(seen)


class Devices:
    """Assigns a worker's devices, numbered from 0 as CUDA numbers the visible ones.

    A function that asks for 2 has two devices to itself. One that asks for 0.5 shares a device with
    others that ask for fractions; with 1.5, it has one to itself and shares another.
    """

    def __init__(self) -> None:
        #: By index: how much of the device is free.
        self.free: list[float] = []
        self._total = 0.0
        self._changed = threading.Condition()

    def declare(self, total: float) -> None:
        """Set how much the worker offers; devices in use stay in use."""
        with self._changed:
            for index in range(max(len(self.free), math.ceil(total))):
                if index >= len(self.free):
                    self.free.append(0.0)
                before, now = self._size(index, self._total), self._size(index, total)
                self.free[index] += now - before
            self._total = total
            self._changed.notify_all()

    @staticmethod
    def _size(index: int, total: float) -> float:
        return min(1.0, max(0.0, total - index))

    @contextmanager
    def held(self, amount: float) -> Iterator[tuple[int, ...]]:
        """Hold devices, and yield their indices.

        The scheduler makes sure that the total is free. But fractions may have left it in pieces on
        several devices; then this waits for other functions to end.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._choose(amount) is not None)
            shares = self._choose(amount) or {}
            for index, share in shares.items():
                self.free[index] -= share
        try:
            yield tuple(shares)
        finally:
            with self._changed:
                for index, share in shares.items():
                    self.free[index] += share
                self._changed.notify_all()

    def _choose(self, amount: float) -> dict[int, float] | None:
        """Return {index: share}, or None if no devices are free for it."""
        count = math.floor(amount + _EPSILON)
        part = amount - count
        whole = [i for i, free in enumerate(self.free) if free >= 1 - _EPSILON]
        if len(whole) < count:
            return None
        shares = dict.fromkeys(whole[:count], 1.0)
        if part > _EPSILON:
            fitting = [
                (free, i)
                for i, free in enumerate(self.free)
                if i not in shares and free >= part - _EPSILON
            ]
            if not fitting:
                return None
            # The fullest one, so that whole devices stay whole.
            shares[min(fitting)[1]] = part
        return shares
