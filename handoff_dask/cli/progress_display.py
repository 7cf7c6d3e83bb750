"""What a run shows of its progress, and of its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import time
from collections.abc import Hashable, Mapping
from typing import IO, Any

import click

from handoff_dask.attempts.states import STATES
from handoff_dask.cli.exit_codes import Problem
from handoff_dask.cli.result_files import as_json, labels
from handoff_dask.client.explaining import RunExplanation
from handoff_dask.client.results import ExecutionResult
from handoff_dask.client.run import Run
from handoff_dask.model import jsonable
from handoff_dask.placement.events import Waiting
from handoff_dask.widgets import markup

#: Most held functions whose reasons are asked for.
_ASKED = 20
#: Largest share of the time that the scheduler may be kept busy by questions.
_SHARE = 0.02


class Display:
    """Show nothing; the base of all displays."""

    #: Seconds between updates; None for none.
    interval: float | None = None

    def start(self, dag_id: Hashable, functions: list[Hashable]) -> None:
        """Show that a run starts."""

    def update(self, counts: Mapping[str, int], why: RunExplanation, left: float | None) -> None:
        """Show the functions by state, why they are held, and the seconds left."""

    def end(self, seconds: float, result: ExecutionResult | None, problem: Problem | None) -> None:
        """Show how the run ended."""

    def note(self, text: str) -> None:
        """Show a remark."""


class Lines(Display):
    """Print a line now and then, for log files."""

    interval = 10.0

    def note(self, text: str) -> None:
        """Print a remark."""
        click.echo(text, err=True)

    def start(self, dag_id: Hashable, functions: list[Hashable]) -> None:
        """Print the size of the run."""
        self._dag_id, self._total = dag_id, len(functions)
        self.note(f"{dag_id}: {markup.count(len(functions), 'function')}")

    def update(self, counts: Mapping[str, int], why: RunExplanation, left: float | None) -> None:
        """Print the progress."""
        self.note(f"{self._dag_id}: {summary(counts, self._total, why, left)}")

    def end(self, seconds: float, result: ExecutionResult | None, problem: Problem | None) -> None:
        """Print what was done."""
        if result is None:
            return
        workers = markup.count(len(set(result.allocations.values())), "worker")
        text = (
            f"{self._dag_id}: {len(result.allocations)} of {self._total} functions done in "
            f"{markup.seconds(seconds)} on {workers}"
        )
        if more := sum(len(tried) - 1 for tried in result.attempts.values()):
            text += f", {markup.count(more, 'attempt')} repeated"
        self.note(text)


class Bar(Lines):
    """Draw a progress bar on a terminal."""

    interval = 0.25
    _text = ""

    def start(self, dag_id: Hashable, functions: list[Hashable]) -> None:
        """Print the size of the run."""
        super().start(dag_id, functions)
        columns = shutil.get_terminal_size().columns
        self._bar = click.progressbar(
            range(self._total),
            label=markup.shorten(f"{dag_id}", columns // 3),
            width=columns // 4,
            item_show_func=lambda _: self._text,
            show_eta=False,  # the scheduler's estimate is part of the text
            show_percent=False,
            file=sys.stderr,
        )

    def update(self, counts: Mapping[str, int], why: RunExplanation, left: float | None) -> None:
        """Draw the bar."""
        self._text, self._bar.pos = "", counts["done"]
        # A line that is wider than the terminal could not be overwritten.
        room = shutil.get_terminal_size().columns - len(self._bar.format_progress_line()) - 3
        text = summary(counts, self._total, why, left)
        self._text = text if len(text) <= room else f"{text[: max(room - 3, 0)]}..."
        self._bar.render_progress()

    def note(self, text: str) -> None:
        """Print a remark in the place of the bar."""
        self._clear()
        super().note(text)

    def end(self, seconds: float, result: ExecutionResult | None, problem: Problem | None) -> None:
        """Remove the bar, and print what was done."""
        self._clear()
        super().end(seconds, result, problem)

    def _clear(self) -> None:
        if self._text:
            self._text = ""
            # Erase the line, and show the cursor, which a bar hides.
            click.echo("\r\x1b[K\x1b[?25h", nl=False, err=True)


class JsonLines(Display):
    """Write an object a line, for programs: the events ``start``, ``progress`` and ``end``.

    `results` says whether ``end`` contains the results.
    """

    interval = 1.0

    def __init__(self, stream: IO[str], *, results: bool = False) -> None:
        self._stream = stream
        self._results = results

    def _event(self, event: str, **facts: Any) -> None:
        line = json.dumps(jsonable.loose({"event": event, "time": time.time(), **facts}))
        with contextlib.suppress(BrokenPipeError):  # the reader has gone; the run goes on
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def start(self, dag_id: Hashable, functions: list[Hashable]) -> None:
        """Write the event ``start``."""
        self._names = labels(functions)
        self._event("start", dag_id=jsonable.text(dag_id), functions=len(functions))

    def update(self, counts: Mapping[str, int], why: RunExplanation, left: float | None) -> None:
        """Write the event ``progress``."""
        waits = {
            self._names[id_]: {
                "reason": w.reason,
                "resources": {n: {"needed": a, "free": b} for n, (a, b) in w.resources.items()},
            }
            for id_, w in why.items()
            if isinstance(w, Waiting)
        }
        self._event("progress", **counts, waits=waits, seconds_left=left)

    def end(self, seconds: float, result: ExecutionResult | None, problem: Problem | None) -> None:
        """Write the event ``end``."""
        results: dict[str, Any] = {}
        if self._results and result is not None:
            document, _ = as_json(result)
            results = {name: document[name] for name in ("results", "left_out")}
        self._event(
            "end",
            **results,
            exit_code=0 if problem is None else problem.code,
            error=None if problem is None else problem.message,
            seconds=seconds,
            done=0 if result is None else len(result.allocations),
        )


def watch(run: Run, display: Display) -> None:
    """Wait for a run to end, and show its progress."""
    pause = display.interval
    while True:
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            run.wait(pause)
            return
        asked = time.monotonic()
        # If the scheduler has gone, the run says so.
        with contextlib.suppress(OSError):
            counts = run.progress()
            why = run.explain(held=_ASKED if counts["held"] else 0)
            display.update(counts, why, run.remaining())
        pause = max(display.interval or 0.0, (time.monotonic() - asked) / _SHARE)


def summary(counts: Mapping[str, int], total: int, why: RunExplanation, left: float | None) -> str:
    """Return the progress of a run as a line.

    Examples
    --------
    >>> from handoff_dask.client.explaining import RunExplanation
    >>> counts = {"waiting": 1, "held": 4, "running": 2, "done": 3}
    >>> summary(counts, 10, RunExplanation({}), 300.0)
    '3/10 done, 5 min 0 s left, 2 running, 4 held, 1 waiting'
    """
    parts = [f"{counts['done']}/{total} done"]
    if left is not None:
        parts.append(f"{markup.seconds(left)} left")
    for state in reversed(STATES):
        if state != "done" and (number := counts.get(state)):
            because = f" ({reasons(why)})" if state == "held" and why else ""
            parts.append(f"{number} {state}{because}")
    return ", ".join(parts)


def reasons(why: RunExplanation) -> str:
    """Return what functions are held for: each resource, with the first that needs it."""
    first: dict[str, str] = {}
    for id_, waiting in why.items():
        if not isinstance(waiting, Waiting):
            continue
        short = {
            name: f"{name}: {id_!r} needs {needed:g}, {free:g} free"
            for name, (needed, free) in waiting.resources.items()
        }
        if len(short) > 1:
            short.pop("threads", None)  # a worker has as many as cores
        for name, text in (short or {waiting.reason: waiting.reason}).items():
            first.setdefault(name, text)
    return "; ".join(first.values())
