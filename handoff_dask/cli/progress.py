"""What a run shows of itself while it goes on, and at its end."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import IO, Any

import click

from handoff_dask.cli.output import as_json, labels
from handoff_dask.client.explaining import RunExplanation
from handoff_dask.client.planning import Plan
from handoff_dask.client.results import ExecutionResult
from handoff_dask.client.run import Run
from handoff_dask.model import jsonable
from handoff_dask.placement.events import Waiting

#: Of how many held functions is asked what they wait for.
_ASKED = 20
#: Share of its time that a run's scheduler may be kept busy by questions.
_SHARE = 0.02


class Forecast:
    """How long a run will still take, by its plan.

    Parameters
    ----------
    make
        Makes the plan, in a thread; an error of it means that there is no forecast.
    """

    def __init__(self, make: Callable[[], Plan] | None) -> None:
        self._stops: list[float] = []
        self._done = 0
        self._since = time.monotonic()
        if make is not None:
            threading.Thread(target=self._plan, args=(make,), daemon=True).start()

    def _plan(self, make: Callable[[], Plan]) -> None:
        # It is a courtesy: the run may end first, and take the client with it.
        with contextlib.suppress(Exception, asyncio.CancelledError):
            slots = [slot.stop for slots in make().timeline.values() for slot in slots]
            self._stops = sorted(slots)

    def left(self, done: int) -> float | None:
        """Return the seconds left when so many functions are done; None without a plan.

        As many as the plan has from the end of that many to its own, less the time since.
        """
        now = time.monotonic()
        if done != self._done:
            self._done, self._since = done, now
        stops = self._stops
        if not stops:
            return None
        reached = stops[min(done, len(stops)) - 1] if done else 0.0
        # While nothing ends, time goes by only up to the next end that is due.
        due = stops[min(bisect.bisect_right(stops, reached), len(stops) - 1)]
        return max(0.0, stops[-1] - min(reached + now - self._since, max(due, reached)))


class Display:
    """What is shown: nothing, lines, one line that changes, or JSON for programs."""

    #: Seconds from one look at the run to the next; None is one look, at the end.
    every: float | None = None

    def start(self, dag_id: Hashable, functions: list[Hashable]) -> None:
        """Show that a run starts."""

    def update(self, counts: Mapping[str, int], why: RunExplanation, left: float | None) -> None:
        """Show how far it is."""

    def end(self, seconds: float, result: ExecutionResult | None, error: Any = None) -> None:
        """Show how it ended."""

    def note(self, text: str) -> None:
        """Show a remark."""


class Lines(Display):
    """A line now and then, for log files."""

    every = 10.0

    def note(self, text: str) -> None:
        """Show a remark."""
        print(text, file=sys.stderr, flush=True)

    def start(self, dag_id: Hashable, functions: list[Hashable]) -> None:
        """Show that a run starts."""
        self._dag_id, self._total = dag_id, len(functions)
        self.note(f"{dag_id}: {len(functions)} functions")

    def update(self, counts: Mapping[str, int], why: RunExplanation, left: float | None) -> None:
        """Show how far it is."""
        self.note(f"{self._dag_id}: {summary(counts, self._total, why, left)}")

    def end(self, seconds: float, result: ExecutionResult | None, error: Any = None) -> None:
        """Show how it ended."""
        if result is None:
            return
        workers = len(set(result.allocations.values()))
        text = (
            f"{self._dag_id}: {len(result.allocations)} of {self._total} functions done in "
            f"{duration(seconds)} on {workers} worker{'' if workers == 1 else 's'}"
        )
        if more := sum(len(tried) - 1 for tried in result.attempts.values()):
            text += f", {more} attempt{'' if more == 1 else 's'} repeated"
        self.note(text)


class Terminal(Lines):
    """One line that changes."""

    every = 0.25

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._shown = False

    def update(self, counts: Mapping[str, int], why: RunExplanation, left: float | None) -> None:
        """Show how far it is."""
        text = f"{self._dag_id}: {summary(counts, self._total, why, left)}"
        width = shutil.get_terminal_size().columns - 1
        if len(text) > width:
            text = text[: max(width - 3, 0)] + "..."
        self._stream.write(f"\r\x1b[K{text}")
        self._stream.flush()
        self._shown = True

    def note(self, text: str) -> None:
        """Show a remark, on a line of its own."""
        self.clear()
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def end(self, seconds: float, result: ExecutionResult | None, error: Any = None) -> None:
        """Show how it ended."""
        self.clear()
        super().end(seconds, result, error)

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False


class JsonLines(Display):
    """An object a line, for programs: events ``start``, ``progress`` and ``end``.

    Parameters
    ----------
    stream
        Where to.
    results
        Whether ``end`` has the results.
    """

    every = 1.0

    def __init__(self, stream: IO[str], *, results: bool = False) -> None:
        self._stream = stream
        self._results = results

    def _event(self, event: str, **facts: Any) -> None:
        line = json.dumps(jsonable.loose({"event": event, "time": time.time(), **facts}))
        with contextlib.suppress(BrokenPipeError):  # nobody reads any more; the run goes on
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def start(self, dag_id: Hashable, functions: list[Hashable]) -> None:
        """Show that a run starts."""
        self._called = labels(functions)
        self._event("start", dag_id=jsonable.text(dag_id), functions=len(functions))

    def update(self, counts: Mapping[str, int], why: RunExplanation, left: float | None) -> None:
        """Show how far it is."""
        waits = {
            self._called[id_]: {
                "reason": w.reason,
                "resources": {n: {"needed": a, "free": b} for n, (a, b) in w.resources.items()},
            }
            for id_, w in why.items()
            if isinstance(w, Waiting)
        }
        self._event("progress", **counts, waits=waits, seconds_left=left)

    def end(self, seconds: float, result: ExecutionResult | None, error: Any = None) -> None:
        """Show how it ended."""
        results: dict[str, Any] = {}
        if self._results and result is not None:
            document, _ = as_json(result)
            results = {name: document[name] for name in ("results", "left_out")}
        self._event(
            "end",
            **results,
            exit_code=0 if error is None else error.code,
            error=None if error is None else error.message,
            seconds=seconds,
            done=0 if result is None else len(result.allocations),
        )


def watch(run: Run, display: Display, forecast: Forecast) -> None:
    """Wait for a run to end, and show how far it is."""
    pause = display.every
    while True:
        try:
            run.wait(pause)
            return
        except (TimeoutError, asyncio.TimeoutError):
            pass
        asked = time.monotonic()
        # A scheduler that went away is the run's to tell.
        with contextlib.suppress(OSError):
            counts = run.progress()
            # Nobody is asked where nobody waits.
            why = run.explain(held=_ASKED if counts["held"] else 0)
            display.update(counts, why, forecast.left(counts["done"]))
        pause = max(display.every or 0.0, (time.monotonic() - asked) / _SHARE)


def summary(counts: Mapping[str, int], total: int, why: RunExplanation, left: float | None) -> str:
    """Return a line on how far a run is.

    Examples
    --------
    >>> from handoff_dask.client.explaining import RunExplanation
    >>> counts = {"done": 3, "running": 2, "held": 4, "failed": 0}
    >>> summary(counts, 10, RunExplanation({}), 75.0)
    '3/10 done, 2 running, 4 held, 0 failed, 1 min 15 s left'
    """
    held = f"{counts['held']} held"
    if why:
        held += f" ({reasons(why)})"
    parts = [f"{counts['done']}/{total} done", f"{counts['running']} running", held]
    parts.append(f"{counts['failed']} failed")
    if counts.get("cancelled"):
        parts.append(f"{counts['cancelled']} cancelled")
    if left is not None:
        parts.append(f"{duration(left)} left")
    return ", ".join(parts)


def reasons(why: RunExplanation) -> str:
    """Return what held functions wait for: resources and the first of those who want them."""
    found: dict[str, tuple[Hashable, str]] = {}
    for id_, waiting in why.items():
        if not isinstance(waiting, Waiting):
            continue
        short = {
            name: f"{needed:g}, {free:g} free" for name, (needed, free) in waiting.resources.items()
        }
        if len(short) > 1:
            short.pop("threads", None)  # of which a worker has as many as cores
        if not short:
            short = {waiting.reason: ""}
        for name, amounts in short.items():
            found.setdefault(name, (id_, amounts))
    return "; ".join(
        f"{name}: {id_!r} needs {amounts}" if amounts else name
        for name, (id_, amounts) in found.items()
    )


def duration(seconds: float) -> str:
    """Return seconds for people.

    Examples
    --------
    >>> duration(1.25), duration(75), duration(7260)
    ('1.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def table(rows: list[list[str]]) -> None:
    """Print rows with their columns in line, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        click.echo("  ".join(cells).rstrip())


def ago(seconds: float) -> str:
    """Return how long ago something was."""
    return f"{duration(max(seconds, 0.0))} ago"
