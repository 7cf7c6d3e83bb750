"""What isolated functions of the tests do: here, because their processes import little."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import numpy

from handoff_dask import current


def where():
    return os.getpid(), os.getppid(), os.environ.get("OMP_NUM_THREADS"), current()


async def coroutine():
    return os.getpid()


def segfault():
    os.kill(os.getpid(), signal.SIGSEGV)


def leave():
    os._exit(3)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def hog(mb=1_000):
    blocks = []
    for _ in range(mb):
        blocks.append(numpy.ones(125_000))
    return len(blocks)


def hang():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        pass


def grandchildren():
    subprocess.Popen(["sleep", "100"], start_new_session=True)
    hang()


def slow():
    time.sleep(2)
    return os.getpid()


def need(mb, seconds=0.0):
    """Use some memory; return what the function claims."""
    block = numpy.ones(int(mb * 125_000))
    time.sleep(seconds)
    return current().cost["memory"] if block.sum() else None


def using(mb):
    """Use some memory; return what is claimed, and from when to when."""
    started = time.monotonic()
    return need(mb, 0.05), started, time.monotonic()


class Stuck:
    """Hangs where it is unpickled, for a while."""

    def __reduce__(self):
        return time.sleep, (5,)
