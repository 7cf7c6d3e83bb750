"""Exit codes, and the message with which a command ends."""

from __future__ import annotations

import os
import sys
import traceback

from handoff_dask.errors import (
    AllocationError,
    ClusterLostError,
    DAGError,
    FunctionFailedError,
    HandoffError,
    RunCancelledError,
    RunTimeoutError,
    StoreError,
    UnknownFunctionError,
    UnknownRunError,
    UnknownWorkerError,
)

#: What they mean: see the epilog.
FAILED, USAGE, IMPOSSIBLE, CLUSTER, WORK_LEFT, INTERRUPTED = 1, 2, 3, 4, 75, 130

#: The first match counts.
_CODES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], int], ...] = (
    (AllocationError, IMPOSSIBLE),
    (ClusterLostError, CLUSTER),
    ((FunctionFailedError, RunTimeoutError, StoreError), FAILED),
    (RunCancelledError, INTERRUPTED),
    # The options of a run raise ValueError.
    ((DAGError, UnknownFunctionError, UnknownRunError, UnknownWorkerError, ValueError), USAGE),
    (TimeoutError, FAILED),
    # Dask raises OSError when a connection breaks.
    ((OSError, HandoffError), CLUSTER),
)

EPILOG = """\b
Exit codes:
  0    all done
  1    a function failed, the run did not end in time, or its store cannot be used
  2    wrong usage, or an invalid DAG; nothing was started
  3    no worker can hold a function
  4    the cluster cannot be reached, or was lost
  75   stopped by SIGTERM while results are stored: run the same command again
  130  interrupted
"""


class WorkLeft(KeyboardInterrupt):
    """The command was told to end, and another start of it will go on where it was."""


class Problem(Exception):
    """An error that ends a command: its message, in one paragraph, and the exit code."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.message = " ".join(message.split())
        self.code = code


def problem_of(error: BaseException) -> Problem:
    """Return the message and the exit code for an error."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, WorkLeft):
        text = "stopped by SIGTERM; what is done is stored: run the same command again to go on"
        return Problem(text, WORK_LEFT)
    if isinstance(error, KeyboardInterrupt):
        return Problem("interrupted", INTERRUPTED)
    text = str(error) or type(error).__name__
    for kind, code in _CODES:
        if isinstance(error, kind):
            if isinstance(error, FunctionFailedError) and error.__cause__ is not None:
                text += source_line(error.__cause__)
            return Problem(text, code)
    return Problem(f"unexpected {type(error).__name__}: {error}; rerun with --debug", FAILED)


def source_line(error: BaseException) -> str:
    """Return where an error was raised, as " (file, line n)".

    This is the last line in the user's own code, which lies in the first folder that Python
    imports from; without one, the last line.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(os.path.join(sys.path[0], ""))]
    for frame in (own or frames)[-1:]:
        return f" ({os.path.basename(frame.filename)}, line {frame.lineno})"
    return ""
