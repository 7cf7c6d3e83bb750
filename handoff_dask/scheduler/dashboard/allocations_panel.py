"""The panel of what runs where: a bar for each attempt, by worker and time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from bokeh.layouts import column
from bokeh.models import (
    ColumnDataSource,
    CustomJSTickFormatter,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    Range1d,
    UIElement,
)
from bokeh.plotting import figure

from handoff_dask.scheduler.dashboard import overview
from handoff_dask.scheduler.dashboard.history import ATTEMPTS, plain
from handoff_dask.scheduler.dashboard.panel import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    VIOLET,
    Panel,
    label,
    short,
)
from handoff_dask.widgets.lanes import Lanes

if TYPE_CHECKING:
    from distributed import Scheduler

    from handoff_dask.scheduler.plugin import HandoffPlugin

#: Seconds that are shown.
WINDOW = 60.0
#: Running functions that are shown; and how many of them are named next to their bars.
RUNNING = 800
NAMED = 40
#: Workers that the axis names.
NAMES = 40
#: Attempts that ended and are sent in one go.
NEWS = 250

#: The sources have their places in this order: strings cost more to send.
OUTCOMES = {
    "running": BLUE,
    "ok": GREEN,
    "error": RED,
    "timeout": VIOLET,
    "worker-lost": BLACK,
    "cancelled": GREY,
}
_CODES = {outcome: code for code, outcome in enumerate(OUTCOMES)}


@dataclass(slots=True)
class Bar:
    """An attempt: where it is drawn, and what the pointer shows of it."""

    worker: str
    lane: int
    started: float
    stopped: float
    label: str
    dag_id: str
    number: int
    outcome: str


class Allocations(Panel):
    """Which function runs where, live, and how attempts ended."""

    title = "Handoff Allocations"
    legend: ClassVar = {**OUTCOMES, "retry": ORANGE}

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler)
        self._lanes = Lanes()
        #: The attempts in `_ended`, and how many had ended at the last look.
        self._bars: deque[Bar] = deque(maxlen=ATTEMPTS)
        self._seen = 0
        #: Of which attempts the columns of `_running` are.
        self._shown: list[Any] = []
        self._ended = ColumnDataSource(self._columns([]), name="ended")
        self._running = ColumnDataSource(self._columns([]), name="running")
        self._names = ColumnDataSource({"x": [], "y": [], "text": []})
        self._times = Range1d(0, 1)
        self._figure: Any = figure(
            x_range=self._times,
            y_range=Range1d(1, 0),
            sizing_mode="stretch_both",
            tools="ywheel_zoom,ypan,reset",
            toolbar_location="right",
            min_height=80,
        )
        self._draw()

    def _draw(self) -> None:
        plot = self._figure
        # Retries have an edge that one sees.
        span = {"low": -0.5, "high": 2 * len(OUTCOMES) - 0.5}
        fill = LinearColorMapper(palette=2 * list(OUTCOMES.values()), **span)
        edges = len(OUTCOMES) * ["#ffffff"] + len(OUTCOMES) * [ORANGE]
        edge = LinearColorMapper(palette=edges, **span)
        style = {
            "y": "y",
            "left": "left",
            "right": "right",
            "height": "height",
            "fill_color": {"field": "code", "transform": fill},
            "line_color": {"field": "code", "transform": edge},
            "line_width": 1.5,
        }
        bars = [plot.hbar(source=source, **style) for source in (self._ended, self._running)]
        label(plot, self._names)
        plot.add_tools(
            HoverTool(
                renderers=bars,
                tooltips="@what",
            )
        )
        plot.xaxis.formatter = CustomJSTickFormatter(
            code="return new Date(1000 * tick).toLocaleTimeString()"
        )
        plot.ygrid.visible = False
        plot.yaxis.name = "workers"
        plot.yaxis.ticker = FixedTicker(ticks=[])
        plot.yaxis.major_tick_line_color = None
        plot.outline_line_color = "#e5e5e5"

    @property
    def root(self) -> UIElement:
        """The heading and the bars."""
        return column(self.heading, self._figure, sizing_mode="stretch_both")

    def clear(self) -> None:
        """Draw nothing."""
        self._lanes = Lanes()
        self._bars.clear()
        self._seen = 0
        self._shown = []
        self._ended.data = self._columns([])
        self._running.data = self._columns([])
        self._name([], 0.0)
        self._axis()

    def show(self, plugin: HandoffPlugin) -> str:
        """Draw what runs, and what ended since the last look."""
        now = time.time()
        for address in plugin.registry.names.keys() - self._lanes.rows.keys():
            self._lanes.row(address, overview.worker_name(plugin, address))
        news = self._news(plugin)
        running = self._runs(plugin, now)
        self._lanes.prune(set(running), set(plugin.registry.names), now, WINDOW)
        moved = self._lanes.arrange()
        if moved:
            self._axis()
            self._ended.data.update(self._heights(self._bars))
        if news:
            self._ended.stream(self._columns(news), rollover=ATTEMPTS)
        self._bars.extend(news)
        bars = list(running.values())
        named = 0 < len(bars) <= NAMED
        if moved or list(running) != self._shown:
            self._shown = list(running)
            self._running.data = self._columns(bars)
        elif bars:
            self._running.data["right"] = np.full(len(bars), now)
        self._name(bars if named else [], now)
        # Room for the names.
        self._times.update(start=now - WINDOW, end=now + WINDOW * (0.2 if named else 0.01))
        return self._summary(plugin, bars)

    def _summary(self, plugin: HandoffPlugin, bars: Sequence[Bar]) -> str:
        if not (plugin.runs or bars or self._bars):
            return "no Handoff runs"
        states = overview.states(plugin)
        workers = len({bar.worker for bar in bars})
        some = f", {len(bars)} of them drawn" if len(bars) == RUNNING else ""
        known = len(plugin.registry.names)
        ending = f", {len(plugin.endings)} still ending" if len(plugin.endings) else ""
        return (
            f"{states['running']} running{some} on {workers} of {known} workers, "
            f"{states['held']} held{ending}"
        )

    def _news(self, plugin: HandoffPlugin) -> list[Bar]:
        """Return the attempts that ended since the last look, the latest if there are many."""
        history = plugin.history
        new = min(history.ended - self._seen, len(history.attempts), NEWS)
        self._seen = history.ended
        if new <= 0:
            return []
        return [
            Bar(
                ended.worker,
                self._lanes.ended(
                    (ended.key, ended.number), ended.worker, ended.started, ended.stopped
                ),
                ended.started,
                ended.stopped,
                short(ended.label),
                short(ended.dag_id),
                ended.number,
                ended.outcome,
            )
            for ended in sorted(list(history.attempts)[-new:], key=lambda ended: ended.started)
        ]

    def _runs(self, plugin: HandoffPlugin, now: float) -> dict[Any, Bar]:
        """Return a bar for each attempt that runs."""
        bars: dict[Any, Bar] = {}
        for address, record in overview.running(plugin, RUNNING):
            attempt = record.key, record.attempt
            lane, since = self._lanes.begun(attempt, address, record.placed, now)
            bars[attempt] = Bar(
                address,
                lane,
                since,
                now,
                short(plain(record.row.label)),
                short(record.run.spec.dag_id),
                record.attempt,
                "running",
            )
        return bars

    def _columns(self, bars: Sequence[Bar]) -> dict[str, Any]:
        """Return bars as a source has them."""
        return {
            "left": np.array([bar.started for bar in bars]),
            "right": np.array([bar.stopped for bar in bars]),
            "code": np.array(
                [_CODES[bar.outcome] + len(OUTCOMES) * (bar.number > 1) for bar in bars],
                dtype="int32",
            ),
            "what": [
                f"{bar.label} of {bar.dag_id}, attempt {bar.number}: {bar.outcome}" for bar in bars
            ],
            **self._heights(bars),
        }

    def _heights(self, bars: Sequence[Bar]) -> dict[str, Any]:
        """Return where bars are drawn; those of workers that are out of sight are nowhere."""
        rows = [self._lanes.rows.get(bar.worker) for bar in bars]
        return {
            "y": np.array(
                [
                    np.nan if row is None else row.y(bar.lane)
                    for row, bar in zip(rows, bars, strict=True)
                ]
            ),
            "height": np.array([0.0 if row is None else row.height for row in rows]),
        }

    def _name(self, bars: Sequence[Bar], now: float) -> None:
        """Write names next to bars."""
        if bars or self._names.data["text"]:
            ys = [self._lanes.rows[bar.worker].y(bar.lane) for bar in bars]
            names = [bar.label for bar in bars]
            self._names.data = {"x": [now] * len(bars), "y": ys, "text": names}

    def _axis(self) -> None:
        """Name the rows, some of them if there are many."""
        rows = list(self._lanes.rows.values())
        self._figure.y_range.update(
            start=max(1, len(rows)), end=0, reset_start=max(1, len(rows)), reset_end=0
        )
        named = rows[:: 1 + len(rows) // NAMES]
        self._figure.yaxis.major_label_overrides = {
            row.place + 0.5: short(row.name) for row in named
        }
        self._figure.yaxis.ticker = FixedTicker(ticks=[row.place + 0.5 for row in named])
