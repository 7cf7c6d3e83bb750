"""Functions whose results are stored; each start is noted in a file."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from handoff_dask import current
from handoff_dask.errors import StoredResultMissing


def note(log, what):
    """Append a line to a file."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{what}\n".encode())
    os.close(file)


def noted(log):
    """Return the lines of a file."""
    return sorted(Path(log).read_text().split()) if Path(log).exists() else []


def add(log, *values):
    """Note that this starts; return a sum."""
    note(log, current().id)
    return sum(values)


def array(log, size, value):
    """Return an array."""
    note(log, current().id)
    return np.full(size, float(value))


def fail_at_first(log, value):
    """Raise at the first attempt."""
    note(log, current().id)
    if current().attempt == 1:
        raise ValueError("at first")
    return value


def never(log):
    """Raise at each attempt."""
    note(log, current().id)
    raise ValueError("never")


def miss(log):
    """Raise what a run of its own, or a future, may raise."""
    note(log, current().id)
    raise StoredResultMissing("0" * 40, "it is gone", "elsewhere")


def fail_later(path, log):
    """Wait for a file and raise."""
    until(path, log, None)
    never(os.devnull)


def until(path, log, value):
    """Wait for a file."""
    note(log, current().id)
    while not os.path.exists(path):
        time.sleep(0.01)
    return value


def pack(value, source, target, note):
    """Serialize."""
    return (note, value)


def unpack(data, source, target):
    """Open what ``pack`` returns."""
    assert data[0] == "packed"
    return data[1]
