"""The panel of resources: what each worker declares, what is claimed, and what is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from bokeh.layouts import column
from bokeh.models import (
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    Range1d,
    UIElement,
)
from bokeh.plotting import figure

from handoff_dask.scheduler.dashboard import overview
from handoff_dask.scheduler.dashboard.overview import Amounts
from handoff_dask.scheduler.dashboard.panel import (
    AMBER,
    BLUE,
    PALE,
    RED,
    Panel,
    amount_text,
    label,
    short,
)

if TYPE_CHECKING:
    from distributed import Scheduler

    from handoff_dask.scheduler.plugin import HandoffPlugin

#: Workers that get a row of their own; and cells that are written into, unless there are more.
ROWS = 250
WRITTEN = 160
#: Width of a cell's bar; the rest keeps resources apart.
WIDTH = 0.9
ALL = "all workers"


class Cell(NamedTuple):
    """A resource of a worker, or of all in the row 0."""

    row: int
    slot: int
    name: str
    resource: str
    amounts: Amounts


class Resources(Panel):
    """Declared, claimed and asked for, by worker and resource."""

    title = "Handoff Resources"
    legend: ClassVar = {
        "declared": PALE,
        "claimed": BLUE,
        "asked for by held functions": AMBER,
        "asked for, nobody has any": RED,
    }

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler)
        #: What the cells stand for, as drawn: names and declared amounts; what moves in them.
        self._grid: list[tuple[str, str, float]] = []
        self._amounts: list[tuple[float, float]] = []
        self._cells = ColumnDataSource(self._columns([]), name="cells")
        self._texts = ColumnDataSource({"x": [], "y": [], "text": []})
        self._figure: Any = figure(
            x_range=Range1d(0, 1),
            y_range=Range1d(1, 0),
            x_axis_location="above",
            sizing_mode="stretch_both",
            tools="ywheel_zoom,ypan,reset",
            toolbar_location="right",
            min_height=80,
        )
        self._draw()

    def _draw(self) -> None:
        plot = self._figure
        style: dict[str, Any] = {"left": "left", "source": self._cells, "line_color": None}
        back = plot.hbar(y="y", right="end", height=0.8, fill_color=PALE, **style)
        plot.hbar(y="y_claimed", right="claimed_end", height=0.56, fill_color=BLUE, **style)
        lacking = LinearColorMapper(palette=[AMBER, RED], low=0, high=1)
        color = {"field": "lacking", "transform": lacking}
        plot.hbar(y="y_asked", right="asked_end", height=0.16, fill_color=color, **style)
        label(plot, self._texts)
        plot.add_tools(
            HoverTool(
                renderers=[back],
                tooltips=[
                    ("resource", "@what"),
                    ("declared", "@declared{0.[000]}"),
                    ("claimed", "@claimed{0.[000]}"),
                    ("asked for", "@asked{0.[000]}"),
                ],
            )
        )
        plot.grid.visible = False
        plot.outline_line_color = None
        plot.axis.axis_line_color = None
        plot.axis.major_tick_line_color = None
        plot.axis.minor_tick_line_color = None
        plot.xaxis.major_label_text_font_size = "12px"
        plot.xaxis.major_label_text_font_style = "bold"

    @property
    def root(self) -> UIElement:
        """The heading and the grid."""
        return column(self.heading, self._figure, sizing_mode="stretch_both")

    def clear(self) -> None:
        """Draw nothing."""
        self._grid = []
        self._amounts = []
        self._cells.data = self._columns([])
        self._write([])
        self._axes([], [])

    def show(self, plugin: HandoffPlugin) -> str:
        """Draw the amounts of the moment."""
        usage = overview.usage(plugin)
        if not usage.workers:
            self.clear()
            return "no workers"
        resources = list(usage.total)
        rows = [(ALL, usage.total)]
        rows += [
            (overview.worker_name(plugin, address), amounts)
            for address, amounts in islice(usage.workers.items(), ROWS)
        ]
        cells = [
            Cell(row, slot, name, resource, amounts[resource])
            for row, (name, amounts) in enumerate(rows)
            for slot, resource in enumerate(resources)
            if resource in amounts
        ]
        grid = [(cell.name, cell.resource, cell.amounts.declared) for cell in cells]
        values = [(cell.amounts.claimed, cell.amounts.asked) for cell in cells]
        if grid != self._grid:
            self._grid = grid
            self._cells.data = self._columns(cells)
            self._axes([name for name, _ in rows], resources)
            self._write(cells)
        elif values != self._amounts:
            self._cells.data.update(self._moving(cells))
            self._write(cells)
        self._amounts = values
        shown = f", {ROWS} of them drawn" if len(usage.workers) > ROWS else ""
        return f"{len(usage.workers)} workers{shown}"

    def _columns(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """Return cells as the source has them."""
        return {
            "y": np.array([cell.row + 0.5 for cell in cells]),
            "y_claimed": np.array([cell.row + 0.4 for cell in cells]),
            "y_asked": np.array([cell.row + 0.8 for cell in cells]),
            "left": np.array([float(cell.slot) for cell in cells]),
            "end": np.array([cell.slot + WIDTH for cell in cells]),
            "what": [f"{short(cell.resource)} of {short(cell.name)}" for cell in cells],
            "declared": np.array([cell.amounts.declared for cell in cells]),
            **self._moving(cells),
        }

    def _moving(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """Return the columns that change while functions come and go."""
        all_amounts = [(cell.slot, cell.amounts) for cell in cells]
        return {
            "claimed": np.array([amounts.claimed for _, amounts in all_amounts]),
            "asked": np.array([amounts.asked for _, amounts in all_amounts]),
            # Asked for, and nobody has any.
            "lacking": np.array([int(a.asked > 0 and a.declared <= 0) for _, a in all_amounts]),
            "claimed_end": np.array(
                [slot + WIDTH * _share(a.claimed, a.declared) for slot, a in all_amounts]
            ),
            "asked_end": np.array(
                [slot + WIDTH * _share(a.asked, a.declared) for slot, a in all_amounts]
            ),
        }

    def _write(self, cells: Sequence[Cell]) -> None:
        """Write amounts into the cells, into those of all workers only if there are many."""
        if len(cells) > WRITTEN:
            cells = [cell for cell in cells if not cell.row]
        lines = []
        for cell in cells:
            amounts = cell.amounts
            text = f"{amount_text(amounts.claimed)} of {amount_text(amounts.declared)}"
            lines.append((cell.slot, cell.row + 0.4, text))
            if amounts.asked and len(cells) <= WRITTEN // 4:
                lines.append((cell.slot, cell.row + 0.8, f"{amount_text(amounts.asked)} asked"))
        columns = {
            "x": [line[0] for line in lines],
            "y": [line[1] for line in lines],
            "text": [line[2] for line in lines],
        }
        if columns != self._texts.data:
            self._texts.data = columns

    def _axes(self, names: Sequence[str], resources: Sequence[str]) -> None:
        """Name the rows, some of them if there are many, and the columns."""
        rows = max(1, len(names))
        plot = self._figure
        plot.y_range.update(start=rows, end=0, reset_start=rows, reset_end=0)
        plot.x_range.update(start=-0.02, end=max(1, len(resources)))
        for axis, labels in ((plot.yaxis, names), (plot.xaxis, resources)):
            step = 1 + len(labels) // 40
            axis.major_label_overrides = {i + 0.5: short(s) for i, s in enumerate(labels)}
            axis.ticker = FixedTicker(ticks=[i + 0.5 for i in range(0, len(labels), step)])


def _share(amount: float, declared: float) -> float:
    """Return which part of what is declared an amount is; what exceeds it fills the bar."""
    if declared <= 0:
        return 1.0 if amount else 0.0
    return min(1.0, amount / declared)
