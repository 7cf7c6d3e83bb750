"""The panel of resources: what each worker declares, what is claimed and asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, ClassVar, NamedTuple

import numpy as np
from bokeh.models import ColumnDataSource, HoverTool, LinearColorMapper, Range1d

from handoff_dask.scheduler.dashboard.overview import Amounts, Overview
from handoff_dask.scheduler.dashboard.panel import Panel, name_axis, scrolled_figure, short, write
from handoff_dask.widgets import markup
from handoff_dask.widgets.markup import STATE_COLOURS

#: Workers that get a row of their own; and more cells than this are not written into.
ROWS = 250
WRITTEN = 160
#: Width of a cell's bar; the rest keeps resources apart.
WIDTH = 0.9
ALL = "all workers"

PALE, BLUE = "#dddddd", STATE_COLOURS["running"]
AMBER, RED = STATE_COLOURS["held"], STATE_COLOURS["failed"]


class Cell(NamedTuple):
    """A resource of a worker, or of all in the row 0."""

    row: int
    slot: int
    name: str
    resource: str
    amounts: Amounts


class ResourcesPanel(Panel):
    """Declared, claimed and asked for, by worker and resource."""

    title = "Handoff Resources"
    legend: ClassVar = {
        "declared": PALE,
        "claimed": BLUE,
        "asked for by held functions": AMBER,
        "asked for, nobody has any": RED,
    }

    def __init__(self, overview: Overview) -> None:
        super().__init__(overview)
        #: The cells as drawn: names and declared amounts; amounts claimed and asked for.
        self._grid: list[tuple[str, str, float]] = []
        self._amounts: list[tuple[float, float]] = []
        self._cells = ColumnDataSource(self._columns([]), name="cells")
        self._texts = ColumnDataSource({"x": [], "y": [], "text": []})
        self._figure: Any = scrolled_figure(x_range=Range1d(0, 1), x_axis_location="above")
        self.parts = [self._figure]
        self._draw()

    def _draw(self) -> None:
        plot = self._figure
        style: dict[str, Any] = {"left": "left", "source": self._cells, "line_color": None}
        back = plot.hbar(y="y", right="end", height=0.8, fill_color=PALE, **style)
        plot.hbar(y="y_claimed", right="claimed_end", height=0.56, fill_color=BLUE, **style)
        lacking = LinearColorMapper(palette=[AMBER, RED], low=0, high=1)
        color = {"field": "lacking", "transform": lacking}
        plot.hbar(y="y_asked", right="asked_end", height=0.16, fill_color=color, **style)
        write(plot, self._texts)
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

    def show(self) -> str:
        """Draw the amounts of the moment."""
        usage = self.overview.usage()
        resources = list(usage.total)
        rows = [(ALL, usage.total)]
        rows += [
            (self.overview.worker_name(address), amounts)
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
        return f"{markup.count(len(usage.workers), 'worker')}{shown}"

    def _columns(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """Return cells as columns."""
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
        pairs = [(cell.slot, cell.amounts) for cell in cells]
        return {
            "claimed": np.array([a.claimed for _, a in pairs]),
            "asked": np.array([a.asked for _, a in pairs]),
            # Asked for, and nobody has any.
            "lacking": np.array([int(a.asked > 0 and a.declared <= 0) for _, a in pairs]),
            "claimed_end": np.array(
                [slot + WIDTH * _share(a.claimed, a.declared) for slot, a in pairs]
            ),
            "asked_end": np.array(
                [slot + WIDTH * _share(a.asked, a.declared) for slot, a in pairs]
            ),
        }

    def _write(self, cells: Sequence[Cell]) -> None:
        """Write amounts into the cells; if there are many, only into those of all workers."""
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
        for axis, labels in ((plot.yaxis[0], names), (plot.xaxis[0], resources)):
            step = 1 + len(labels) // 40
            name_axis(axis, [i + 0.5 for i in range(0, len(labels), step)], labels[::step])


def _share(amount: float, declared: float) -> float:
    """Return an amount as a share of what is declared, at most 1."""
    return min(1.0, amount / declared) if declared > 0 else float(amount != 0)


def amount_text(amount: float) -> str:
    """Write an amount in few characters.

    Examples
    --------
    >>> [amount_text(amount) for amount in (0, 1.5, 2048, 65536, 1200000, float("inf"))]
    ['0', '1.5', '2048', '65.5k', '1.2M', '∞']
    """
    if amount > 1e30:
        return "∞"
    for limit, divisor, unit in ((1e4, 1, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M")):
        if amount < limit:
            return f"{amount / divisor:.{3 if unit else 4}g}{unit}"
    return f"{amount:.2g}"
