"""What SIGINT and SIGTERM do to a command."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import psutil

from handoff_dask.cli.exit_codes import WorkLeft, problem_of

#: Seconds from a signal to the exit, whatever hangs. SLURM often sends SIGKILL after 5 s.
GRACE = 2.5

#: Set once the command has printed why it ends.
error_printed = threading.Event()
#: Set if what is done is stored, so that SIGTERM leaves work for another start of the command.
resumable = threading.Event()
#: Why the process ends, once a signal has come.
_reason = KeyboardInterrupt()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Make the first SIGINT or SIGTERM raise KeyboardInterrupt, and exit within the grace."""

    def interrupt(signum: int, frame: Any) -> None:
        global _reason
        # First, as a second signal may come at any moment.
        if signum == signal.SIGTERM and resumable.is_set():
            _reason = WorkLeft()
        # The run may take until the timer fires to clean up. A second signal ends it at once.
        for number in handled:
            signal.signal(number, lambda *_: leave())
        timer = threading.Timer(GRACE, leave)
        timer.daemon = True
        timer.start()
        raise _reason

    handled = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, interrupt) for number in handled}
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            for number, handler in before.items():
                signal.signal(number, handler)


def leave() -> NoReturn:
    """End this process and its children immediately."""
    problem = problem_of(_reason)
    if not error_printed.is_set():
        # The signal may have interrupted a write to a stream.
        os.write(2, f"Error: {problem.message}\n".encode())
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    os._exit(problem.code)
