"""The panel of runs: how far each one is, what is held, and why."""

from __future__ import annotations

import time
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar

from bokeh.layouts import column
from bokeh.models import ColumnDataSource, Div, FixedTicker, HoverTool, Range1d, UIElement
from bokeh.plotting import figure

from handoff_dask.scheduler.dashboard import overview
from handoff_dask.scheduler.dashboard.overview import Held
from handoff_dask.scheduler.dashboard.panel import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    PALE,
    RED,
    Panel,
    amount_text,
    short,
)

if TYPE_CHECKING:
    from distributed import Scheduler

    from handoff_dask.scheduler.dashboard.history import RunView
    from handoff_dask.scheduler.plugin import HandoffPlugin

#: Runs that are drawn, and causes that are listed.
RUNS = 20
CAUSES = 8
#: Height of a run, in pixels.
ROW = 28
#: Seconds for which a run that is over stays in sight, and between two looks at what is held.
LINGER = 60.0
PAUSE = 2.0

STATES = {
    "done": GREEN,
    "failed": RED,
    "cancelled": GREY,
    "running": BLUE,
    "held": AMBER,
    "waiting": PALE,
}


class Runs(Panel):
    """Progress by run, and what functions are held for."""

    title = "Handoff Runs"
    legend: ClassVar = STATES

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler)
        self._drawn: list[RunView] = []
        self._names: list[str] = []
        self._listed = 0.0
        self._bars = ColumnDataSource(_columns([]), name="runs")
        self._held = Div(sizing_mode="stretch_width", margin=(4, 8, 8, 8))
        self._figure: Any = figure(
            x_range=Range1d(0, 1.5),
            y_range=Range1d(1, 0),
            sizing_mode="stretch_width",
            height=ROW,
            tools="",
            toolbar_location=None,
        )
        self._draw()

    def _draw(self) -> None:
        plot = self._figure
        bars = plot.hbar_stack(
            list(STATES),
            y="y",
            height=0.7,
            color=list(STATES.values()),
            line_color=None,
            source=self._bars,
        )
        plot.text(
            x=1,
            y="y",
            text="text",
            x_offset=8,
            text_baseline="middle",
            text_font_size="11px",
            text_color="#333333",
            source=self._bars,
        )
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

    @property
    def root(self) -> UIElement:
        """The heading, the bars and the list of what is held."""
        return column(self.heading, self._figure, self._held, sizing_mode="stretch_width")

    def clear(self) -> None:
        """Draw nothing."""
        self._put([], 0.0)
        self._held.text = ""
        self._listed = 0.0

    def show(self, plugin: HandoffPlugin) -> str:
        """Draw the runs that are there and those that were until lately."""
        now = time.time()
        there = overview.runs(plugin, RUNS)
        there.sort(key=lambda run: run.opened)
        over = [
            run
            for run in plugin.history.runs
            if run.closed is not None and run.closed > now - LINGER
        ]
        shown = (there + over[::-1])[:RUNS]
        if shown != self._drawn or any(run.closed is None for run in shown):
            self._put(shown, now)
        if now >= self._listed + PAUSE:
            self._listed = now
            text = held_table(overview.held(plugin, CAUSES))
            if text != self._held.text:
                self._held.text = text
        if not (shown or len(plugin.endings)):
            return "no Handoff runs"
        states = overview.states(plugin)
        some = f", {len(there)} of them drawn" if len(there) < len(plugin.runs) else ""
        text = f"{len(plugin.runs)} runs{some}, {states['held']} functions held"
        ending = plugin.endings.describe()
        return f"{text}; {ending}" if ending else text

    def _put(self, runs: Sequence[RunView], now: float) -> None:
        columns = _columns(runs, now)
        known: Any = self._bars.data
        if len(runs) != len(known["y"]):
            self._bars.data = columns
        else:
            changed = {name: column for name, column in columns.items() if column != known[name]}
            if changed:
                known.update(changed)
        self._drawn = list(runs)
        names = [short(run.dag_id) for run in runs]
        if names != self._names:
            self._names = names
            self._figure.y_range.update(start=max(1, len(names)), end=0)
            self._figure.height = ROW * max(1, len(names)) + 10
            axis = self._figure.yaxis
            axis.major_label_overrides = {i + 0.5: name for i, name in enumerate(names)}
            axis.ticker = FixedTicker(ticks=[i + 0.5 for i in range(len(names))])


def _columns(runs: Sequence[RunView], now: float = 0.0) -> dict[str, Any]:
    """Return runs as the source has them: shares by state, and what is written next to them."""
    totals = [max(1, sum(run.counts.values())) for run in runs]
    columns: dict[str, Any] = {
        "y": [place + 0.5 for place in range(len(runs))],
        "dag_id": [short(run.dag_id) for run in runs],
        "retries": [run.retries for run in runs],
        "text": [_text(run, total, now) for run, total in zip(runs, totals, strict=True)],
    }
    for state in STATES:
        counts = [run.counts.get(state, 0) for run in runs]
        columns[f"n_{state}"] = counts
        columns[state] = [n / total for n, total in zip(counts, totals, strict=True)]
    return columns


def _text(run: RunView, total: int, now: float) -> str:
    """Say how far a run is."""
    seconds = max(0, int((run.closed or now) - run.opened))
    text = f"{run.counts.get('done', 0)} of {total} in {seconds // 60}:{seconds % 60:02}"
    if run.counts.get("failed"):
        text += f", {run.counts['failed']} failed"
    if run.retries:
        text += f", {run.retries} retries"
    return text if run.closed is None else f"{text}, over"


def held_table(causes: Sequence[Held]) -> str:
    """Write a table of what functions are held for; ids come from users and are escaped."""
    if not causes:
        return ""
    cell = "padding:2px 10px 2px 0;text-align:left;vertical-align:top"
    head = "".join(f'<th style="{cell}">{name}</th>' for name in ("held", "cost", "why", "such as"))
    lines = []
    for held in causes:
        cost = ", ".join(f"{name} {amount_text(amount)}" for name, amount in held.cost.items())
        of = f"{short(held.example)} of {short(held.dag_id)}"
        cells = (str(held.count), cost or "none", held.why, of)
        lines.append("".join(f'<td style="{cell}">{escape(text)}</td>' for text in cells))
    rows = "".join(f"<tr>{line}</tr>" for line in (head, *lines))
    style = "font-size:12px;color:#333;border-collapse:collapse"
    return f'<table style="{style}">{rows}</table>'
