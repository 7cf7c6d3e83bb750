"""Processes as ``/proc`` shows them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

_CHILDREN = "/proc/{0}/task/{1}/children"
#: Whether the kernel lists the children of a process; otherwise all processes are searched.
_LISTED = os.path.exists(_CHILDREN.format(os.getpid(), os.getpid()))


def children_of(pid: int) -> list[int]:
    """Return the children of a process; none if it has ended."""
    children: list[int] = []
    with suppress(OSError):
        if not _LISTED:
            return [child for child, parent in _parents() if parent == pid]
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError), open(_CHILDREN.format(pid, thread), "rb") as file:
                children += map(int, file.read().split())
    return children


def tree_of(pid: int) -> list[int]:
    """Return a process and its descendants."""
    tree = [pid]
    for member in tree:  # which grows meanwhile
        tree += children_of(member)
    return tree


def is_resource_tracker(pid: int) -> bool:
    """Whether a process cleans up after others that use multiprocessing, or joblib's loky."""
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return b"resource_tracker" in file.read()
    return False


def _parents() -> Iterator[tuple[int, int]]:
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                yield int(name), int(file.read().rpartition(b")")[2].split()[1])
