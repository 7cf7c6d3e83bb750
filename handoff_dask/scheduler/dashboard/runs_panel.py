"""The panel of runs: the progress of each, what is held, and why."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

from bokeh.models import ColumnDataSource, Div, HoverTool, Range1d
from bokeh.plotting import figure

from handoff_dask.scheduler.dashboard.history import RunView
from handoff_dask.scheduler.dashboard.overview import Held, Overview
from handoff_dask.scheduler.dashboard.panel import Panel, name_axis, short, write
from handoff_dask.widgets import markup
from handoff_dask.widgets.markup import STATE_COLOURS

#: Runs that are drawn, and causes that are listed.
RUNS = 20
CAUSES = 8
#: Height of a run, in pixels.
ROW = 28
#: Seconds for which a closed run stays in sight, and between two looks at what is held.
LINGER = 60.0
PAUSE = 2.0

#: In the order of their parts of a bar.
STATES = ("done", "stored", "failed", "cancelled", "running", "assigned", "held", "waiting")
TABLE_STYLE = "th, td {padding: 2px 10px 2px 0; vertical-align: top; font-size: 12px}"


class RunsPanel(Panel):
    """Progress by run, and what functions are held for."""

    title = "Handoff Runs"
    sizing_mode = "stretch_width"
    legend: ClassVar = {state: STATE_COLOURS[state] for state in STATES}

    def __init__(self, overview: Overview) -> None:
        super().__init__(overview)
        self._listed = 0.0
        self._bars = ColumnDataSource(_columns([]), name="runs")
        self._held = Div(
            sizing_mode="stretch_width", margin=(4, 8, 8, 8), stylesheets=[TABLE_STYLE]
        )
        self._figure: Any = figure(
            x_range=Range1d(0, 1.5),
            y_range=Range1d(1, 0),
            sizing_mode="stretch_width",
            height=ROW,
            tools="",
            toolbar_location=None,
        )
        self.parts = [self._figure, self._held]
        self._draw()

    def _draw(self) -> None:
        plot = self._figure
        bars = plot.hbar_stack(
            list(STATES),
            y="y",
            height=0.7,
            color=list(self.legend.values()),
            line_color=None,
            source=self._bars,
        )
        write(plot, self._bars, x=1, x_offset=8)
        plot.add_tools(
            HoverTool(
                renderers=bars,
                tooltips=[
                    ("run", "@dag_id"),
                    *((state, f"@n_{state}") for state in STATES),
                    ("retries", "@retries"),
                ],
            )
        )
        plot.grid.visible = False
        plot.outline_line_color = None
        plot.xaxis.visible = False
        plot.yaxis.axis_line_color = None
        plot.yaxis.major_tick_line_color = None

    def show(self) -> str:
        """Draw the runs on the scheduler and those that closed lately."""
        now = time.time()
        overview = self.overview
        there = sorted(overview.largest_runs(RUNS), key=lambda run: run.opened)
        closed = [run for run in overview.history.closed_runs if (run.closed or 0.0) > now - LINGER]
        shown = (there + closed[::-1])[:RUNS]
        self._put(shown, now)
        if now >= self._listed + PAUSE:
            self._listed = now
            self._held.text = held_table(overview.held(CAUSES))
        ending = overview.ending()
        if not (shown or ending):
            return "no Handoff runs"
        number = len(overview.runs)
        some = f", {len(there)} of them drawn" if len(there) < number else ""
        held = markup.count(overview.states()["held"], "function")
        heading = f"{markup.count(number, 'run')}{some}, {held} held"
        if ending:
            whose = (f"{markup.count(n, 'function')} {text}" for text, n in ending.items())
            heading += f"; still ending: {', '.join(whose)}"
        return heading

    def _put(self, runs: Sequence[RunView], now: float) -> None:
        columns = _columns(runs, now)
        if columns == self._bars.data:
            return
        self._bars.data = columns
        rows = max(1, len(runs))
        self._figure.y_range.start = rows
        self._figure.height = ROW * rows + 10
        name_axis(self._figure.yaxis[0], columns["y"], columns["dag_id"])


def _columns(runs: Sequence[RunView], now: float = 0.0) -> dict[str, Any]:
    """Return runs as columns: counts and shares by state, and the text next to the bar."""
    totals = [max(1, sum(run.functions.values())) for run in runs]
    columns: dict[str, Any] = {
        "y": [place + 0.5 for place in range(len(runs))],
        "dag_id": [short(run.dag_id) for run in runs],
        "retries": [run.retries for run in runs],
        "text": [_text(run, total, now) for run, total in zip(runs, totals, strict=True)],
    }
    for state in STATES:
        counts = [run.functions.get(state, 0) for run in runs]
        columns[f"n_{state}"] = counts
        columns[state] = [n / total for n, total in zip(counts, totals, strict=True)]
    return columns


def _text(run: RunView, total: int, now: float) -> str:
    """Return the progress of a run in words."""
    seconds = markup.seconds(max(0, int((run.closed or now) - run.opened)))
    done = run.functions["done"] + run.functions.get("stored", 0)
    text = f"{done} of {total} in {seconds}"
    if failed := run.functions["failed"]:
        text += f", {failed} failed"
    if run.retries:
        text += f", {run.retries} retries"
    return text if run.closed is None else f"{text}, over"


def held_table(causes: Sequence[Held]) -> str:
    """Return a table of what functions are held for."""
    if not causes:
        return ""
    rows = [
        (
            held.functions,
            markup.cost(held.cost) or "none",
            held.why,
            f"{short(held.example)} of {short(held.dag_id)}",
        )
        for held in causes
    ]
    return str(markup.table(("held", "cost", "why", "such as"), rows, "r"))
