"""What the panels have in common: when they look, what they cost, their heading."""

from __future__ import annotations

import time
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, ClassVar

from bokeh.core.properties import without_property_validation
from bokeh.models import Div, UIElement

from handoff_dask.compat import dashboard as compat
from handoff_dask.scheduler.dashboard.overview import plugin_of

if TYPE_CHECKING:
    from bokeh.document import Document
    from bokeh.models import ColumnDataSource
    from bokeh.plotting import figure
    from distributed import Scheduler

    from handoff_dask.scheduler.plugin import HandoffPlugin

#: Milliseconds between two looks at the plugin, at the least.
TICK = 500
#: Share of a core that looking and drawing may take; after a costly look a panel waits longer.
#: Bokeh takes about as much again to send it.
SHARE = 0.003
#: Names are cut to this length.
LONGEST = 60

BLUE, GREEN, RED, AMBER = "#4a90c2", "#79b78a", "#cf4a4a", "#e8b23c"
VIOLET, BLACK, GREY, PALE, ORANGE = "#8e6bb0", "#444444", "#9a9a9a", "#dddddd", "#ef7f1a"


class Panel:
    """A view of the plugin in one document; it lives as long as the document.

    Parameters
    ----------
    scheduler
        The scheduler; whether it has the plugin is looked up each time.
    """

    #: What the page is called.
    title: ClassVar[str]
    #: What the colours mean.
    legend: ClassVar[Mapping[str, str]]

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._next = 0.0
        self.heading = Div(sizing_mode="stretch_width", margin=(4, 8, 0, 8))
        self._legend = " ".join(
            '<span style="white-space:nowrap">'
            f'<span style="color:{color}">&#9632;</span> {name}</span>'
            for name, color in self.legend.items()
        )

    @property
    def root(self) -> UIElement:
        """What is drawn."""
        raise NotImplementedError

    def show(self, plugin: HandoffPlugin) -> str:
        """Draw the plugin's state; return what the heading says."""
        raise NotImplementedError

    def clear(self) -> None:
        """Draw nothing."""
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
        """Draw the plugin's state as it is now."""
        plugin = plugin_of(self.scheduler)
        if plugin is None:
            self.clear()
            self.say("Handoff is not installed on this scheduler. The first run brings it.")
        else:
            self.say(self.show(plugin))

    def say(self, text: str) -> None:
        """Set the heading."""
        style = "display:flex;flex-wrap:wrap;gap:2px 14px;font-size:12px;color:#444"
        text = f'<div style="{style}"><b>{escape(text)}</b> {self._legend}</div>'
        if text != self.heading.text:
            self.heading.text = text

    def open(self, document: Document) -> None:
        """Fill a document."""
        self.watch(document)
        document.add_root(self.root)
        document.title = f"Dask: {self.title}"
        document.theme = compat.dashboard_look()[0]

    def watch(self, document: Document) -> None:
        """Begin to look, for as long as somebody has the document open."""
        self.tick()
        document.add_periodic_callback(without_property_validation(self.tick), TICK)


def label(plot: figure, source: ColumnDataSource) -> None:
    """Write what a source says, in bars: ``text`` right of ``x``, ``y``."""
    plot.text(
        x="x",
        y="y",
        text="text",
        x_offset=6,
        text_baseline="middle",
        text_font_size="11px",
        text_color="#222222",
        source=source,
    )


def short(text: str) -> str:
    """Cut a name to what can be shown."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


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
