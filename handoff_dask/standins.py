"""Replacements for exceptions that cannot be sent or raised as they are."""

from __future__ import annotations

#: Characters of an exception's text that are kept.
TEXT = 2000
#: Characters of an error that a log shows.
LOGGED = 200


class HandoffError(Exception):
    """Base of every error that handoff_dask raises by itself."""


class StandInError(HandoffError):
    """Replaces an exception that cannot be raised here as it was.

    For example, it cannot be pickled or unpickled, is too large to be sent, or would end more than
    the function, as ``SystemExit`` does.

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


class Verbatim(str):
    """A text whose `repr` is the text itself, where a log would show the `repr` of a value."""

    __repr__ = str.__str__


def type_of(error: BaseException) -> str:
    """Return the name of an exception's type, whatever its metaclass does."""
    name: str = type.__dict__["__name__"].__get__(type(error))
    return name[:TEXT]


def text_of(error: BaseException) -> str:
    """Return the text of an exception, shortened; a substitute if its own code fails."""
    try:
        return shortened(str(error))
    except BaseException as problem:  # str() runs the user's code
        return f"(no text: str() raised {type_of(problem)})"


def shortened(text: str) -> str:
    """Shorten a text so that it can be sent, and escape lone surrogates."""
    plain = text[:TEXT].encode(errors="backslashreplace").decode()
    return plain if len(text) <= TEXT else f"{plain}... ({len(text):,} characters)"


def for_a_log(text: str) -> str:
    """Return a text as part of a line in a log: without line breaks, shortened."""
    line = " ".join(text.split())
    return line if len(line) <= LOGGED else f"{line[:LOGGED]}..."
