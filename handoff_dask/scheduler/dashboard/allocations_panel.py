"""The panel of allocations: a bar for each attempt, by worker and time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
from bokeh.models import (
    ColumnDataSource,
    CustomJSTickFormatter,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    Range1d,
)

from handoff_dask.scheduler.dashboard.history import ATTEMPTS, AttemptId, AttemptView
from handoff_dask.scheduler.dashboard.overview import Overview
from handoff_dask.scheduler.dashboard.panel import Panel, name_axis, scrolled_figure, short, write
from handoff_dask.widgets.lanes import Lanes
from handoff_dask.widgets.markup import OUTCOME_COLOURS, STATE_COLOURS, usage

#: Seconds that are shown.
WINDOW = 60.0
#: Placed functions that are shown at most; up to how many are named next to their bars.
MOST = 800
NAMED = 40
#: Workers that the axis names.
NAMES = 40
#: Attempts that ended and are sent in one go.
NEWS = 250

#: The columns have indices into this order: strings cost more to send.
LOOKS = {state: STATE_COLOURS[state] for state in ("running", "assigned")} | OUTCOME_COLOURS
#: The edge of retries.
ORANGE = "#ef7f1a"
_CODES = {look: code for code, look in enumerate(LOOKS)}


#: An attempt that has not ended, and its state: it changes lanes when it starts.
_Placed: TypeAlias = tuple[AttemptId, str]


class Bar(NamedTuple):
    """An attempt, and the lane of its worker in which it is drawn."""

    attempt: AttemptView
    lane: int


def _tooltip(attempt: AttemptView) -> str:
    what = f"{short(attempt.label)} of {short(attempt.dag_id)}, attempt {attempt.id[-1]}"
    used = usage(attempt.usage)
    return f"{what}: {attempt.state}" + (f" ({used})" if used else "")


class AllocationsPanel(Panel):
    """Which function runs where, live, and how attempts ended."""

    title = "Handoff Allocations"
    legend: ClassVar = {**LOOKS, "retry": ORANGE}

    def __init__(self, overview: Overview) -> None:
        super().__init__(overview)
        self._lanes = Lanes()
        #: The attempts in `_ended`; how many had ended and been corrected at the last look.
        self._bars: deque[Bar] = deque(maxlen=ATTEMPTS)
        self._seen = self._corrected = 0
        #: The attempts in `_placed`.
        self._shown: list[_Placed] = []
        self._ended = ColumnDataSource(self._columns([]), name="ended")
        self._placed = ColumnDataSource(self._columns([]), name="placed")
        self._names = ColumnDataSource({"x": [], "y": [], "text": []})
        self._times = Range1d(0, 1)
        self._figure: Any = scrolled_figure(x_range=self._times)
        self.parts = [self._figure]
        self._draw()

    def _draw(self) -> None:
        plot = self._figure
        # Retries have a coloured edge.
        span = {"low": -0.5, "high": 2 * len(LOOKS) - 0.5}
        fill = LinearColorMapper(palette=2 * list(LOOKS.values()), **span)
        edges = len(LOOKS) * ["#ffffff"] + len(LOOKS) * [ORANGE]
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
        bars = [plot.hbar(source=source, **style) for source in (self._ended, self._placed)]
        write(plot, self._names)
        plot.add_tools(HoverTool(renderers=bars, tooltips="@what"))
        plot.xaxis.formatter = CustomJSTickFormatter(
            code="return new Date(1000 * tick).toLocaleTimeString()"
        )
        plot.ygrid.visible = False
        plot.yaxis.name = "workers"
        plot.yaxis.ticker = FixedTicker(ticks=[])
        plot.yaxis.major_tick_line_color = None
        plot.outline_line_color = "#e5e5e5"

    def show(self) -> str:
        """Draw what is placed, and what ended since the last look."""
        now = time.time()
        workers = set(self.overview.workers)
        corrected = self.overview.history.late_results.total()
        if corrected != self._corrected:
            # Bars that were drawn have changed: begin anew.
            self._corrected, self._seen, self._lanes = corrected, 0, Lanes()
            self._bars.clear()
            self._ended.data = self._columns([])
        for address in self.overview.workers:
            if address not in self._lanes.rows:
                self._lanes.row(address, self.overview.worker_name(address))
        news = self._news()
        placed = self._place(now)
        self._lanes.prune(set(placed), workers, now, WINDOW)
        moved = self._lanes.arrange()
        if moved:
            self._axis()
            self._ended.data.update(self._heights(self._bars))
        if news:
            self._ended.stream(self._columns(news), rollover=ATTEMPTS)
        self._bars.extend(news)
        bars = list(placed.values())
        named = 0 < len(bars) <= NAMED
        if moved or list(placed) != self._shown:
            self._shown = list(placed)
            self._placed.data = self._columns(bars)
        elif bars:
            self._placed.data["right"] = np.full(len(bars), now)
        self._name(bars if named else [], now)
        # Room for the names.
        self._times.update(start=now - WINDOW, end=now + WINDOW * (0.2 if named else 0.01))
        return self._summary(bars)

    def _summary(self, bars: Sequence[Bar]) -> str:
        overview = self.overview
        if not (overview.runs or bars or self._bars):
            return "no Handoff runs"
        states = self.overview.states()
        some = f", {len(bars)} of them drawn" if len(bars) == MOST else ""
        busy = len({bar.attempt.worker for bar in bars})
        assigned = f", {n} assigned" if (n := states["assigned"]) else ""
        ending = f", {n} still ending" if (n := sum(overview.ending().values())) else ""
        return (
            f"{states['running']} running{assigned}{some} on {busy} of {len(overview.workers)} "
            f"workers, {states['held']} held{ending}"
        )

    def _news(self) -> list[Bar]:
        """Return the attempts that ended since the last look, the latest if there are many."""
        history = self.overview.history
        new = min(history.ended - self._seen, NEWS)
        self._seen = history.ended
        latest = sorted(islice(reversed(history.attempts.values()), new), key=lambda a: a.started)
        return [
            Bar(a, self._lanes.ended((a.id, "running"), a.worker, a.started, a.stopped))
            for a in latest
        ]

    def _place(self, now: float) -> dict[_Placed, Bar]:
        """Return a bar for each attempt that is placed and has not ended."""
        bars: dict[_Placed, Bar] = {}
        for attempt in self.overview.placed(MOST, now):
            placed = attempt.id, attempt.state
            lane, since = self._lanes.begun(placed, attempt.worker, attempt.started, now)
            bars[placed] = Bar(replace(attempt, started=since), lane)
        return bars

    def _columns(self, bars: Sequence[Bar]) -> dict[str, Any]:
        """Return bars as columns."""
        attempts = [bar.attempt for bar in bars]
        codes = [_CODES[a.state] + len(LOOKS) * (a.id[-1] > 1) for a in attempts]
        return {
            "left": np.array([a.started for a in attempts]),
            "right": np.array([a.stopped for a in attempts]),
            "code": np.array(codes, dtype="int32"),
            "what": list(map(_tooltip, attempts)),
            **self._heights(bars),
        }

    def _heights(self, bars: Sequence[Bar]) -> dict[str, Any]:
        """Return where bars are drawn; those of workers that are no longer shown are nowhere."""
        rows = [(self._lanes.rows.get(bar.attempt.worker), bar.lane) for bar in bars]
        return {
            "y": np.array([np.nan if row is None else row.y(lane) for row, lane in rows]),
            "height": np.array([0.0 if row is None else row.height for row, _ in rows]),
        }

    def _name(self, bars: Sequence[Bar], now: float) -> None:
        """Write names next to bars."""
        if bars or self._names.data["text"]:
            ys = [self._lanes.rows[bar.attempt.worker].y(bar.lane) for bar in bars]
            names = [short(bar.attempt.label) for bar in bars]
            self._names.data = {"x": [now] * len(bars), "y": ys, "text": names}

    def _axis(self) -> None:
        """Name the rows, some of them if there are many."""
        rows = list(self._lanes.rows.values())
        self._figure.y_range.update(
            start=max(1, len(rows)), end=0, reset_start=max(1, len(rows)), reset_end=0
        )
        named = rows[:: 1 + len(rows) // NAMES]
        name_axis(
            self._figure.yaxis[0], [row.place + 0.5 for row in named], [row.name for row in named]
        )
