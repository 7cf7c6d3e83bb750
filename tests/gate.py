"""The cluster and the functions that tests of the gate share."""

from __future__ import annotations

import asyncio
from functools import partial

from distributed import Event
from distributed.utils_test import gen_cluster

from tests.support import where

WORKERS = [
    ("127.0.0.1", 4, {"resources": {"cpu": 4}}),
    ("127.0.0.1", 4, {"resources": {"cpu": 4, "gpu": 1}}),
]
on_cluster = partial(gen_cluster, nthreads=WORKERS, client=True)

#: What note() was called with, in order; workers run in this process.
SEEN = []


def note(value=None, *_):
    SEEN.append(value)
    return where()


def hold(name="go", *_):
    Event(f"started-{name}").set()
    Event(name).wait()
    return where()


#: Amounts of cpu that floats cannot take from 4 and give back.
FRACTIONS = (0.7, 0.1)

#: How many ran at once, each time a track() began.
DEPTH = []
RUNNING = []


def track(i):
    RUNNING.append(i)
    DEPTH.append(len(RUNNING))
    Event(f"never-{i}").wait(timeout=0.02)
    RUNNING.remove(i)


async def until(condition):
    """Wait until a condition holds; otherwise the test's time limit ends it."""
    while not condition():
        await asyncio.sleep(0.01)


async def one_held(run):
    """Wait until one function of a run is held."""
    while (await run.status())["held"] != 1:
        await asyncio.sleep(0.01)
