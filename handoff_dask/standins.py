"""What arrives of an exception that cannot be sent, or not be raised, as it is."""

from __future__ import annotations

import pickle
import traceback

import cloudpickle

__all__ = ["HandoffError", "StandInError", "sendable", "text_of"]


class HandoffError(Exception):
    """Base of every error that handoff_dask raises by itself."""


class StandInError(HandoffError):
    """Stands in for an exception that cannot be raised here as it was.

    It cannot be pickled or unpickled, for example, or would end the worker, as ``SystemExit`` does.

    Parameters
    ----------
    type_name, message
        The exception's type and text.
    traceback_text
        Its traceback, as Python prints it.
    """

    def __init__(self, type_name: str, message: str, traceback_text: str = "") -> None:
        super().__init__(type_name, message, traceback_text)
        self.type_name = type_name
        self.message = message
        self.traceback_text = traceback_text

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message}"

    @classmethod
    def of(cls, error: BaseException) -> StandInError:
        """Return one for an exception, with its traceback."""
        if isinstance(error, cls):
            return error
        frames = "".join(traceback.format_tb(error.__traceback__))
        return cls(type(error).__name__, text_of(error), frames).with_traceback(error.__traceback__)


def text_of(error: BaseException) -> str:
    """Return the text of an exception, also of one that cannot be made text."""
    try:
        return str(error)
    except Exception as problem:
        return f"(its text cannot be had: {type(problem).__name__})"


def sendable(error: BaseException, seen: frozenset[int] = frozenset()) -> Exception:
    """Return an exception as it arrives in another process: itself, or what stands in for it.

    Parameters
    ----------
    error
        The exception.
    seen
        Exceptions that it is a cause of, by their ids: some go round in circles.
    """
    seen |= {id(error)}
    if not isinstance(error, Exception) or id(error.__cause__) in seen:
        return StandInError.of(error)
    # First, since they may travel with it.
    context, suppressed = error.__context__, error.__suppress_context__
    if error.__cause__ is not None:
        error.__cause__ = sendable(error.__cause__, seen)
    if context is not None and id(context) not in seen:
        error.__context__ = error.__cause__ if suppressed else sendable(context, seen)
    error.__suppress_context__ = suppressed
    try:
        repr(error)
        str(error)
        pickle.loads(cloudpickle.dumps(error))
    except Exception:
        return StandInError.of(error)
    return error
