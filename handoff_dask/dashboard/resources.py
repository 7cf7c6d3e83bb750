"""The panel of resources: what each worker declares, what is claimed, and what is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.layouts import column
from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, Range1d, UIElement
from bokeh.plotting import figure

from handoff_dask.dashboard import overview
from handoff_dask.dashboard.overview import Amounts
from handoff_dask.dashboard.panel import AMBER, BLUE, PALE, RED, Panel, amount_text, short

if TYPE_CHECKING:
    from distributed import Scheduler

    from handoff_dask.plugin import HandoffPlugin

#: Workers that get a row of their own, and cells that are written into.
ROWS = 250
WRITTEN = 160
#: Width of a cell's bar; the rest keeps resources apart.
WIDTH = 0.9
ALL = "all workers"


class Resources(Panel):
    """Declared, claimed and asked for, by worker and resource."""

    title = "Handoff Resources"
    legend = {"declared": PALE, "claimed": BLUE, "asked for by held functions": AMBER}

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler)
        #: What the cells stand for, as drawn: rows, resources, declared amounts.
        self._grid: tuple[Any, ...] = ()
        self._amounts: list[tuple[float, float]] = []
        self._cells = ColumnDataSource(self._columns([]))
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
        back = plot.hbar(y="y", right="end", height=0.8, fill_color="back", **style)
        plot.hbar(y="y_claimed", right="claimed_end", height=0.56, fill_color=BLUE, **style)
        plot.hbar(y="y_asked", right="asked_end", height=0.16, fill_color=AMBER, **style)
        plot.text(
            x="left",
            y="y_claimed",
            text="text",
            x_offset=5,
            text_baseline="middle",
            text_font_size="11px",
            text_color="#222222",
            source=self._cells,
        )
        plot.add_tools(
            HoverTool(
                renderers=[back],
                tooltips=[
                    ("worker", "@worker"),
                    ("resource", "@resource"),
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
        self._grid = ()
        self._amounts = []
        self._cells.data = self._columns([])
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
            for address, amounts in list(usage.workers.items())[:ROWS]
        ]
        cells = [
            (place, name, slot, resource, amounts[resource])
            for place, (name, amounts) in enumerate(rows)
            for slot, resource in enumerate(resources)
            if resource in amounts
        ]
        grid = tuple((cell[1], cell[3], cell[4].declared) for cell in cells)
        values = [(cell[4].claimed, cell[4].asked) for cell in cells]
        if grid != self._grid:
            self._grid = grid
            self._cells.data = self._columns(cells)
            self._axes([name for name, _ in rows], resources)
        elif values != self._amounts:
            self._cells.data.update(self._moving(cells))
        self._amounts = values
        shown = f", {ROWS} of them drawn" if len(usage.workers) > ROWS else ""
        return f"{len(usage.workers)} workers{shown}"

    def _columns(self, cells: Sequence[tuple[int, str, int, str, Amounts]]) -> dict[str, Any]:
        """Return cells as the source has them."""
        places = np.array([cell[0] for cell in cells], dtype=float)
        left = np.array([cell[2] for cell in cells], dtype=float)
        return {
            "y": places + 0.5,
            "y_claimed": places + 0.4,
            "y_asked": places + 0.8,
            "left": left,
            "end": left + WIDTH,
            "worker": [short(cell[1]) for cell in cells],
            "resource": [short(cell[3]) for cell in cells],
            "declared": np.array([cell[4].declared for cell in cells]),
            # Asked for, and nobody has any.
            "back": [RED if cell[4].asked and not cell[4].declared else PALE for cell in cells],
            **self._moving(cells),
        }

    def _moving(self, cells: Sequence[tuple[int, str, int, str, Amounts]]) -> dict[str, Any]:
        """Return the columns that change while functions come and go."""
        written = len(cells) <= WRITTEN
        return {
            "claimed": np.array([cell[4].claimed for cell in cells]),
            "asked": np.array([cell[4].asked for cell in cells]),
            "claimed_end": np.array(
                [cell[2] + WIDTH * _share(cell[4].claimed, cell[4].declared) for cell in cells]
            ),
            "asked_end": np.array(
                [cell[2] + WIDTH * _share(cell[4].asked, cell[4].declared) for cell in cells]
            ),
            "text": [_text(cell[4]) if written or not cell[0] else "" for cell in cells],
        }

    def _axes(self, names: Sequence[str], resources: Sequence[str]) -> None:
        """Name the rows, some of them if there are many, and the columns."""
        rows = max(1, len(names))
        plot = self._figure
        plot.y_range.update(start=rows, end=0, reset_start=rows, reset_end=0)
        plot.x_range.update(start=-0.02, end=max(1, len(resources)))
        for axis, labels in ((plot.yaxis, names), (plot.xaxis, resources)):
            step = 1 + (len(labels) - 1) // 40
            axis.major_label_overrides = {i + 0.5: short(s) for i, s in enumerate(labels)}
            axis.ticker = FixedTicker(ticks=[i + 0.5 for i in range(0, len(labels), step)])


def _share(amount: float, declared: float) -> float:
    """Return which part of what is declared an amount is; what exceeds it fills the bar."""
    if declared <= 0:
        return 1.0 if amount else 0.0
    return min(1.0, amount / declared)


def _text(amounts: Amounts) -> str:
    asked = f" · {amount_text(amounts.asked)} asked" if amounts.asked else ""
    return f"{amount_text(amounts.claimed)} of {amount_text(amounts.declared)}{asked}"
