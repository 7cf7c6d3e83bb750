"""What a run shows of its progress, and of its end."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any, NamedTuple

import click
from distributed.utils import is_kernel

from handoff_dask.attempts.states import STATES, STORED
from handoff_dask.client.explaining import RunExplanation
from handoff_dask.client.following import Follower
from handoff_dask.client.results import ExecutionResult
from handoff_dask.client.waiting import wait_for
from handoff_dask.errors import ClusterLostError
from handoff_dask.model.attempt import count_earlier
from handoff_dask.model.dag import DAG
from handoff_dask.placement.events import Waiting
from handoff_dask.widgets import markup, reports

#: Most held functions whose reasons are asked for.
_ASKED = 20
#: Largest share of the time that the scheduler may be kept busy by questions.
_SHARE = 0.02


def _print(text: str) -> None:
    # A terminal that went away does not end the run.
    with contextlib.suppress(OSError):
        click.echo(text, nl=False, err=True)


class Display:
    """Show nothing; the base of all displays."""

    #: Seconds between updates; None for none.
    interval: float | None = None

    def start(self, dag: DAG) -> None:
        """Show that a run of a DAG starts."""
        self.dag_id = dag.id
        self.ids = [f.id for f in dag.functions.values() if f.type == "regular"]
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def update(self, counts: Mapping[str, int], why: RunExplanation, left: float | None) -> None:
        """Show the functions by state, why they are held, and the seconds left."""

    def end(self, result: ExecutionResult | None, failure: BaseException | None) -> None:
        """Show how the run ended: what it has of a result, and its error."""

    def note(self, text: str) -> None:
        """Show a remark."""


class Lines(Display):
    """Print a line now and then, for log files."""

    interval = 10.0

    def note(self, text: str) -> None:
        """Print a remark."""
        _print(f"{text}\n")

    def start(self, dag: DAG) -> None:
        """Print the size of the run."""
        super().start(dag)
        text = str(dag.id)
        # In one line, and without what a terminal would obey.
        self._title = text if text.isprintable() else repr(text)
        self.note(f"{self._title}: {markup.count(len(self.ids), 'function')}")

    def update(self, counts: Mapping[str, int], why: RunExplanation, left: float | None) -> None:
        """Print the progress."""
        self.note(f"{self._title}: {summary(counts, why, left)}")

    def end(self, result: ExecutionResult | None, failure: BaseException | None) -> None:
        """Print what was done."""
        if result is None:
            return
        workers = markup.count(len(set(result.allocations.values())), "worker")
        stored, total = count_earlier(result.attempts), len(self.ids)
        some = ""
        if stored:  # what only stored ones need is not even looked at
            some, total = f" ({stored} of them stored)", len({*result.attempts, *result.errors})
        text = (
            f"{self._title}: {len(result.allocations) + stored} of {total} functions done{some} in "
            f"{markup.seconds(self.seconds)} on {workers}"
        )
        if more := sum(len(tried) - 1 for tried in result.attempts.values()):
            text += f", {markup.count(more, 'attempt')} repeated"
        self.note(text)


class Bar(Lines):
    """Draw a progress bar on a terminal."""

    interval = 0.25
    _text = ""

    def start(self, dag: DAG) -> None:
        """Print the size of the run."""
        super().start(dag)
        columns = shutil.get_terminal_size().columns
        self._bar = click.progressbar(
            range(len(self.ids)),
            label=markup.shorten(self._title, columns // 3),
            width=columns // 4,
            item_show_func=lambda _: self._text,
            show_eta=False,  # the scheduler's estimate is part of the text
            show_percent=False,
            file=sys.stderr,
        )

    def update(self, counts: Mapping[str, int], why: RunExplanation, left: float | None) -> None:
        """Draw the bar."""
        self._text, self._bar.pos = "", counts["done"] + counts.get(STORED, 0)
        self._bar.length = sum(counts.values())
        # A line that is wider than the terminal could not be overwritten.
        room = shutil.get_terminal_size().columns - len(self._bar.format_progress_line()) - 3
        text = summary(counts, why, left)
        self._text = text if len(text) <= room else f"{text[: max(room - 3, 0)]}..."
        self._bar.render_progress()

    def note(self, text: str) -> None:
        """Print a remark in the place of the bar."""
        self._clear()
        super().note(text)

    def end(self, result: ExecutionResult | None, failure: BaseException | None) -> None:
        """Remove the bar, and print what was done."""
        self._clear()
        super().end(result, failure)

    def _clear(self) -> None:
        if self._text:
            self._text = ""
            # Erase the line, and show the cursor, which a bar hides.
            _print("\r\x1b[K\x1b[?25h")


class Cell(Display):
    """Draw the progress in the output of a notebook's cell."""

    interval = 0.5

    def start(self, dag: DAG) -> None:
        """Draw that nothing has ended."""
        from IPython.display import display

        super().start(dag)
        self._counts: Mapping[str, int] = {"waiting": len(self.ids)}
        self._handle: Any = display(self._drawing(""), display_id=True)

    def update(self, counts: Mapping[str, int], why: RunExplanation, left: float | None) -> None:
        """Draw the progress."""
        self._counts = counts
        known = [] if left is None else [f"{markup.seconds(left)} left"]
        held = [f"held: {reasons(why)}"] if why else []
        self._handle.update(self._drawing(", ".join(known + held)))

    def end(self, result: ExecutionResult | None, failure: BaseException | None) -> None:
        """Draw the outcome."""
        if result is not None:
            done = {"done": len(result.allocations), STORED: count_earlier(result.attempts)}
            self._counts = {**done, "failed": len(result.errors)}
        problem = "" if failure is None else f"{type(failure).__name__}: {failure}"
        self._handle.update(self._drawing(problem or f"ended after {markup.seconds(self.seconds)}"))

    def _drawing(self, remark: str) -> Any:
        from IPython.display import HTML

        counts = {**dict.fromkeys(STATES, 0), **self._counts}
        return HTML(reports.progress(self.dag_id, counts, (), remark))


def chosen() -> Display:
    """Return the display for where this runs: a notebook, a terminal or a log file."""
    if is_kernel():
        return Cell()
    return Bar() if sys.stderr.isatty() else Lines()


class Look(NamedTuple):
    """The functions of a run by state, why some of them are held, and the seconds left."""

    counts: Mapping[str, int]
    why: RunExplanation
    left: float | None


def watch(run: Follower, display: Display) -> None:
    """Show the progress of a run until it has ended."""
    looks = _looks(run, display)
    while (look := wait_for(run.client, anext, looks, None, run_id=run.outline.run_id)) is not None:
        _show(look, display)


async def watch_async(run: Follower, display: Display) -> None:
    """Show the progress of a run until it has ended; on the client's event loop."""
    async for look in _looks(run, display):
        _show(look, display)


def _show(look: Look, display: Display) -> None:
    with contextlib.suppress(OSError):
        display.update(*look)


async def _looks(run: Follower, display: Display) -> AsyncGenerator[Look, None]:
    """Look at a run at a display's intervals until it has ended."""
    pause, outcome = display.interval, run.ending()
    while not (await asyncio.wait([outcome], timeout=pause))[0]:
        asked = time.monotonic()
        # If the scheduler has gone, the run says so.
        with contextlib.suppress(OSError, ClusterLostError):
            counts, left = await run.progress()
            why = await run.explain(_ASKED) if counts["held"] else RunExplanation({})
            yield Look(counts, why, left)
        pause = max(display.interval or 0.0, (time.monotonic() - asked) / _SHARE)


def summary(counts: Mapping[str, int], why: RunExplanation, left: float | None) -> str:
    """Return the progress of a run as a line.

    Examples
    --------
    >>> from handoff_dask.client.explaining import RunExplanation
    >>> counts = {"waiting": 1, "held": 4, "running": 2, "done": 3}
    >>> summary(counts, RunExplanation({}), 300.0)
    '3/10 done, 5 min 0 s left, 2 running, 4 held, 1 waiting'
    """
    parts = [f"{counts['done']}/{sum(counts.values())} done"]
    if left is not None:
        parts.append(f"{markup.seconds(left)} left")
    for state in (STORED, *reversed(STATES)):
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
