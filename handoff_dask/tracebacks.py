"""Tracebacks: what users need of them, as data that is small however deep the stack was."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from types import TracebackType
from typing import Any, NamedTuple

from tblib import Traceback  # type: ignore[import-untyped]

__all__ = ["Line", "lines_of", "traceback_of", "without_ours"]

#: How many of the first and of the last lines of a long traceback are kept.
KEPT = 20

#: What lies between a worker's call of us and the user's code: first of all, us.
_MACHINERY = ("handoff_dask", "asyncio", "concurrent")


class Line(NamedTuple):
    """A line of a traceback."""

    filename: str
    number: int
    function: str
    module: str


def without_ours(traceback: TracebackType | None) -> TracebackType | None:
    """Return what a traceback that begins with ours has from the user's code on."""
    if traceback is None or _package(traceback) != _MACHINERY[0]:
        return traceback
    while traceback is not None and _package(traceback) in _MACHINERY:
        traceback = traceback.tb_next
    return traceback


def _module(traceback: TracebackType) -> str:
    return str(traceback.tb_frame.f_globals.get("__name__", ""))


def _package(traceback: TracebackType) -> str:
    return _module(traceback).partition(".")[0]


def lines_of(traceback: TracebackType | None) -> tuple[Line, ...]:
    """Return the lines of a traceback, the outermost first; of a long one, both ends."""
    lines: list[Line] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        number = traceback.tb_lineno or code.co_firstlineno
        lines.append(Line(code.co_filename, number, code.co_name, _module(traceback)))
        traceback = traceback.tb_next
    left_out = len(lines) - 2 * KEPT
    if left_out > 1:
        # Where a file's name would stand, so that whatever prints tracebacks shows it.
        lines[KEPT:-KEPT] = [Line(f"<{left_out:,} calls left out>", 1, "...", "")]
    return tuple(lines)


def traceback_of(lines: Iterable[Line]) -> TracebackType | None:
    """Return a traceback of lines, for raising and printing."""

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
