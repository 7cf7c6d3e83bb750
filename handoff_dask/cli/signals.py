"""What SIGINT and SIGTERM do to a command."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import psutil

from handoff_dask.cli.exit_codes import INTERRUPTED

#: Seconds from a signal to the exit, whatever hangs. SLURM often sends SIGKILL after 5 s.
GRACE = 2.5

#: Set once the command has printed why it ends.
error_printed = threading.Event()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Make the first SIGINT or SIGTERM raise KeyboardInterrupt, and exit within the grace."""

    def interrupt(signum: int, frame: Any) -> None:
        # The run may take until the timer fires to clean up. A second signal ends it at once.
        for number in handled:
            signal.signal(number, lambda *_: leave())
        timer = threading.Timer(GRACE, leave)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

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
    if not error_printed.is_set():
        os.write(2, b"Error: interrupted\n")  # the signal may have interrupted a write to a stream
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    os._exit(INTERRUPTED)
