"""What the panels have in common: when they look, what looking may cost, and their heading."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from bokeh.core.properties import without_property_validation
from bokeh.document import Document
from bokeh.layouts import column
from bokeh.models import ColumnDataSource, Div, FixedTicker, Range1d, UIElement
from bokeh.plotting import figure

from handoff_dask.scheduler.dashboard.overview import Overview
from handoff_dask.widgets import markup

#: Least time between two looks (ms).
TICK = 500
#: Share of a core that looking and drawing may take: the costlier a look, the longer the pause.
#: Sending takes Bokeh about as much again.
SHARE = 0.003
#: Names are shortened to this many characters.
LONGEST = 60


class Panel:
    """A view of Handoff's state in one document; it lives as long as the document."""

    #: What the page is called.
    title: ClassVar[str]
    #: What the colours mean.
    legend: ClassVar[Mapping[str, str]]
    sizing_mode: ClassVar[str] = "stretch_both"

    def __init__(self, overview: Overview) -> None:
        self.overview = overview
        self._next = 0.0
        self.heading = Div(sizing_mode="stretch_width", margin=(4, 8, 0, 8))
        #: What is drawn below the heading.
        self.parts: list[UIElement] = []

    @property
    def root(self) -> UIElement:
        """The heading and what is below it."""
        return column(self.heading, *self.parts, sizing_mode=self.sizing_mode)

    def show(self) -> str:
        """Draw the state; return what the heading says."""
        raise NotImplementedError

    def tick(self) -> None:
        """Look, unless the last look was so costly that it is not time yet."""
        now = time.monotonic()
        if now >= self._next:
            began = time.thread_time()
            self.look()
            # Ticks come a little early or late.
            self._next = now + max(0.8e-3 * TICK, (time.thread_time() - began) / SHARE)

    def look(self) -> None:
        """Draw the state as it is now."""
        if self.overview.history.closed:
            for part in self.parts:
                part.visible = False
            self.say("Handoff was uninstalled. Reload this page once it is back.")
        else:
            self.say(self.show())

    def say(self, text: str) -> None:
        """Set the heading."""
        heading = str(markup.legend(self.legend, text))
        if heading != self.heading.text:
            self.heading.text = heading

    def watch(self, document: Document) -> None:
        """Look now and then until the document is closed."""
        self.tick()
        document.add_periodic_callback(without_property_validation(self.tick), TICK)


def scrolled_figure(**options: Any) -> Any:
    """Return a figure with rows from the top, which can be zoomed and moved."""
    return figure(
        y_range=Range1d(1, 0),
        sizing_mode="stretch_both",
        tools="ywheel_zoom,ypan,reset",
        toolbar_location="right",
        min_height=80,
        **options,
    )


def write(plot: Any, source: ColumnDataSource, **place: Any) -> None:
    """Write the texts of a source, right of their places."""
    plot.text(
        text="text",
        text_baseline="middle",
        text_font_size="11px",
        text_color="#222222",
        source=source,
        **{"x": "x", "y": "y", "x_offset": 6, **place},
    )


def name_axis(axis: Any, places: Sequence[float], names: Sequence[str]) -> None:
    """Name places on an axis."""
    axis.major_label_overrides = dict(zip(places, map(short, names), strict=True))
    axis.ticker = FixedTicker(ticks=list(places))


def short(text: str) -> str:
    """Shorten a name to what can be shown."""
    return markup.shorten(text, LONGEST)
