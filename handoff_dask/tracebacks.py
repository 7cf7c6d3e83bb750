"""Tracebacks as data: the lines that users need, few even if the stack was deep."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import reduce
from types import FrameType, TracebackType
from typing import Any, NamedTuple

from tblib import Traceback  # type: ignore[import-untyped]

#: Lines kept at each end of a long traceback.
KEPT = 20

#: Packages whose frames stand between the worker's call and the user's code.
_MACHINERY = ("handoff_dask", "asyncio", "concurrent")


class Line(NamedTuple):
    """A line of a traceback."""

    filename: str
    number: int
    function: str
    module: str


def without_ours(traceback: TracebackType | None) -> TracebackType | None:
    """Return a traceback without our frames before the user's code."""
    if traceback is None or _package(traceback.tb_frame) != _MACHINERY[0]:
        return traceback
    while traceback is not None and _package(traceback.tb_frame) in _MACHINERY:
        traceback = traceback.tb_next
    return traceback


def users_frame() -> tuple[FrameType, int]:
    """Return the frame of the user's code that led to this call.

    Also its distance from the caller of this: the `stacklevel` of a warning.
    """
    frame, level = sys._getframe(2), 2
    while frame.f_back is not None and _package(frame) == _MACHINERY[0]:
        frame, level = frame.f_back, level + 1
    return frame, level


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _package(frame: FrameType) -> str:
    return _module(frame).partition(".")[0]


def lines_of(traceback: TracebackType | None) -> tuple[Line, ...]:
    """Return the lines of a traceback, outermost first; of a long one only both ends."""
    lines: list[Line] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        number = traceback.tb_lineno or code.co_firstlineno
        lines.append(Line(code.co_filename, number, code.co_name, _module(traceback.tb_frame)))
        traceback = traceback.tb_next
    left_out = len(lines) - 2 * KEPT
    if left_out > 1:
        # Stands where a file name would, so that everything that prints tracebacks shows it.
        lines[KEPT:-KEPT] = [Line(f"<{left_out:,} calls left out>", 1, "...", "")]
    return tuple(lines)


def traceback_of(lines: Iterable[Line]) -> TracebackType | None:
    """Return a traceback made of lines, for raising and printing."""

    def before(rest: dict[str, Any] | None, line: Line) -> dict[str, Any]:
        frame = {
            "f_code": {"co_filename": line.filename, "co_name": line.function},
            "f_globals": {"__name__": line.module, "__file__": line.filename},
            "f_lineno": line.number,
        }
        return {"tb_frame": frame, "tb_lineno": line.number, "tb_next": rest}

    linked = reduce(before, reversed(tuple(lines)), None)
    made: TracebackType | None = Traceback.from_dict(linked).as_traceback() if linked else None
    return made
