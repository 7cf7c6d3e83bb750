"""Two different workers, and functions that record that they ran."""

from __future__ import annotations

from functools import partial

from distributed.utils_test import gen_cluster

WORKERS = [
    ("127.0.0.1", 2, {"resources": {"cpu": 2, "memory": 1000}}),
    ("127.0.0.1", 2, {"resources": {"cpu": 2, "memory": 1000, "gpu": 1}}),
]
on_cluster = partial(gen_cluster, nthreads=WORKERS, client=True)


#: What note() was called with; workers run in this process.
RAN = []


def note(*args):
    RAN.append(args)
    return len(args)


def note_and_fail(*args):
    RAN.append(args)
    raise ValueError("always")
