"""Timelines as Bokeh figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from handoff_dask.widgets import markup
from handoff_dask.widgets.timeline import Bar, lanes

#: Height of a lane, and of the lowest and the highest figure (pixels).
_LANE, _LOW, _HIGH = 18, 160, 900


def figure(rows: Mapping[str, Sequence[Bar]], title: str, legend: Mapping[str, str]) -> Any:
    """Return a timeline, {worker: its bars}, as a Bokeh figure; the legend is {word: colour}.

    Raise ImportError if Bokeh is not installed.
    """
    try:
        from bokeh.models import ColumnDataSource, DataRange1d, FixedTicker, HoverTool, Range1d
        from bokeh.plotting import figure as new_figure
    except ImportError as error:
        raise ImportError(
            "plot() needs bokeh: pip install 'handoff_dask[notebook]' (or bokeh itself)"
        ) from error

    words = {colour: word for word, colour in legend.items()}
    names = ("left", "right", "y", "colour", "outcome", "function", "worker", "detail")
    cells: list[tuple[object, ...]] = []
    middles: dict[float, str] = {}
    top = 0
    for worker, bars in rows.items():
        at = lanes(bars)
        for bar, lane in zip(bars, at, strict=True):
            word, detail = words.get(bar.colour, ""), markup.shorten(bar.tooltip, 300)
            cells.append(
                (bar.start, bar.stop, top + lane, bar.colour, word, bar.label, worker, detail)
            )
        deep = max(at, default=0) + 1
        middles[top + (deep - 1) / 2] = worker
        top += deep + 1
    columns = {name: [cell[i] for cell in cells] for i, name in enumerate(names)}
    plot: Any = new_figure(
        title=title,
        height=min(max(_LANE * top + 90, _LOW), _HIGH),
        sizing_mode="stretch_width",
        tools="xpan,xwheel_zoom,box_zoom,reset,save",
        active_scroll="xwheel_zoom",
        x_axis_label="seconds",
        x_range=DataRange1d(start=0),
        y_range=Range1d(start=max(top - 1, 1) - 0.3, end=-0.7),
    )
    bars_drawn = plot.hbar(
        y="y",
        left="left",
        right="right",
        height=0.86,
        color="colour",
        line_color="white",
        source=ColumnDataSource(columns),
        **({"legend_group": "outcome"} if legend and top else {}),
    )
    plot.add_tools(
        HoverTool(
            renderers=[bars_drawn],
            tooltips=[("function", "@function"), ("worker", "@worker"), ("", "@detail")],
        )
    )
    plot.yaxis.ticker = FixedTicker(ticks=list(middles))
    plot.yaxis.major_label_overrides = middles
    plot.ygrid.visible = False
    if plot.legend:
        plot.legend.orientation = "horizontal"
        plot.legend.location = "top_left"
        plot.add_layout(plot.legend[0], "below")
    return plot
