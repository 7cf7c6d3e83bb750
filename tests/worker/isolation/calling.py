"""Calls functions in processes of their own, without a cluster."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

from handoff_dask.pickling import dumps
from handoff_dask.worker.isolation.calls import Ended, Request, World
from handoff_dask.worker.isolation.pool import Pool

#: Seconds until a test gives up: far more than anything takes.
DEADLINE = 20.0
_keys = count()


def request_for(function: Callable[..., Any], *values: Any, **fields: Any) -> Request:
    """Return a request to call a function with values."""
    positions = tuple(range(len(values)))
    call = dumps((("f", "a dag"), function, positions, (), {}))
    return Request((), call, values, **fields)


def run(
    pool: Pool,
    function: Callable[..., Any],
    *values: Any,
    world: World = World(),  # noqa: B008 - never changed
    limit: float | None = None,
    **fields: Any,
) -> Ended:
    """Call a function in a process."""
    return pool.run(request_for(function, *values, **fields), world, limit=limit, key=next(_keys))


def value(ended: Ended) -> Any:
    """Return the result of a call that must succeed."""
    assert ended.outcome == "ok", ended
    return ended.value


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; fail after the deadline."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def few_descriptors(free: int) -> Iterator[None]:
    """Leave this process only so many descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 10, hard))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(free):
            os.close(taken.pop())
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def alive(pid: int) -> bool:
    """Whether a process exists, and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
