"""How a command ends: exit codes, messages, and signals."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import click
import psutil

from handoff_dask import config
from handoff_dask.errors import (
    AllocationError,
    ClusterLostError,
    DAGError,
    FunctionFailedError,
    HandoffError,
    RunCancelledError,
    RunTimeoutError,
    UnknownFunctionError,
    UnknownRunError,
    UnknownWorkerError,
)

OK = 0
#: A function failed, or the run did not end in its time.
FAILED = 1
#: The command line, a file or the DAG is wrong; nothing was started.
USAGE = 2
#: No worker can hold a function.
IMPOSSIBLE = 3
#: The scheduler cannot be reached, takes no plugin of ours, or went away.
CLUSTER = 4
#: By a signal, or by somebody who cancelled the run.
INTERRUPTED = 130

#: Seconds from a signal to the end, whatever hangs. SLURM's own patience is often 5 s.
GRACE = 2.5

#: Whether the command has said why it ends.
_told = threading.Event()

#: The first that fits counts.
_CODES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], int], ...] = (
    (AllocationError, IMPOSSIBLE),
    (ClusterLostError, CLUSTER),
    ((FunctionFailedError, RunTimeoutError), FAILED),
    ((RunCancelledError, KeyboardInterrupt), INTERRUPTED),
    ((DAGError, UnknownFunctionError, UnknownRunError, UnknownWorkerError), USAGE),
    # The options of a run say so of themselves.
    (ValueError, USAGE),
    (TimeoutError, FAILED),
    # What Dask raises when a connection breaks; and clusters that will not have us.
    ((OSError, HandoffError), CLUSTER),
)


class Problem(Exception):
    """What ends a command: a message, and the exit code."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.message = " ".join(message.split())
        self.code = code


def problem_of(error: BaseException) -> Problem:
    """Return what to tell of an error, and the exit code."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Problem("interrupted", INTERRUPTED)
    code = next((code for kind, code in _CODES if isinstance(error, kind)), None)
    if code is None:
        return Problem(
            f"{type(error).__name__}: {error} (not foreseen: --debug shows where it comes from)",
            FAILED,
        )
    text = str(error) or type(error).__name__
    if isinstance(error, FunctionFailedError) and error.__cause__ is not None:
        text += place_of(error.__cause__)
    return Problem(text, code)


def place_of(error: BaseException) -> str:
    """Return where an error was raised: " (file, line n)".

    The last line of the user's own, which lies where imports are looked for first; else the last.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(os.path.join(sys.path[0], ""))]
    for frame in (own or frames)[-1:]:
        return f" ({os.path.basename(frame.filename)}, line {frame.lineno})"
    return ""


class Command(click.Command):
    """A command whose errors are one paragraph, and which signals end in time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(["--debug"], is_flag=True, help="Show tracebacks, and Dask's log.")
        )

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        debug = ctx.params.pop("debug")
        _told.clear()
        try:
            with interruptible():
                check_settings()
                ctx.meta["handoff.debug"] = debug
                return super().invoke(ctx)
        except (click.exceptions.Exit, click.UsageError):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if debug:
                traceback.print_exception(error)
            problem = problem_of(error)
            _told.set()
            click.echo(f"Error: {problem.message}", err=True)
            ctx.exit(problem.code)


def check_settings() -> None:
    """Raise the problem of settings that are none."""
    if problems := config.problems():
        raise Problem("; ".join(problems))


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Have SIGINT and SIGTERM raise KeyboardInterrupt once, and end the process in time."""

    def first(signum: int, frame: Any) -> None:
        # The wait ends, and the run with it, but no longer than this. A second signal is for now.
        for number in handled:
            signal.signal(number, lambda *_: leave())
        timer = threading.Timer(GRACE, leave)
        timer.daemon = True
        timer.start()
        raise KeyboardInterrupt

    handled = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, first) for number in handled}
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is first:
            for number, handler in before.items():
                signal.signal(number, handler)


def leave() -> NoReturn:
    """End this process and those that it started, now."""
    if not _told.is_set():
        os.write(2, b"Error: interrupted\n")  # a stream may be what was interrupted
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    os._exit(INTERRUPTED)
