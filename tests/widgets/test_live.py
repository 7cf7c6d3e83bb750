"""What keeps changing in a notebook."""

from __future__ import annotations

import asyncio
import sys

import pytest

from handoff_dask.widgets import live


class Widget:
    """A stand-in for ipywidgets' HTML."""

    def __init__(self, value=""):
        self.value = value
        self.comm = object()

    def _repr_mimebundle_(self):
        return {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "HTML()"}


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(live, "PAUSE", 0.0)
    monkeypatch.setattr(live, "SHARE", 0.0)


def drawings(*shown):
    """Return a function that draws these one after the other."""
    left = iter(shown)

    async def draw():
        return next(left)

    return lambda: draw


def test_it_follows_to_the_end():
    """Each drawing is shown, and drawing stops after the final one."""
    widget, seen = Widget(), []
    draw = drawings(("1", False), ("2", False), ("3", True))

    async def noting():
        seen.append(widget.value)
        return await draw()()

    asyncio.run(live.follow(widget, lambda: noting))
    assert [*seen, widget.value] == ["", "1", "2", "3"]


def test_it_stops_when_the_widget_is_closed():
    """A closed widget is neither drawn nor changed any more."""
    widget = Widget("as it was")

    async def draw():
        widget.comm = None
        return "too late", False

    asyncio.run(live.follow(widget, lambda: draw))
    assert widget.value == "as it was"


def test_it_stops_when_there_is_nothing_left_to_draw():
    """After the object is gone, its last drawing stays."""
    widget = Widget("the last")
    asyncio.run(live.follow(widget, lambda: None))
    assert widget.value == "the last"


def test_it_asks_rarely_what_answers_slowly(monkeypatch):
    """The pause is many times as long as the drawing took."""
    monkeypatch.setattr(live, "PAUSE", 0.25)
    monkeypatch.setattr(live, "SHARE", 20.0)
    clock, pauses = iter([0.0, 2.0, 10.0, 10.001, 20.0, 20.0]), []
    monkeypatch.setattr(live.time, "perf_counter", lambda: next(clock))

    async def sleep(seconds):
        pauses.append(seconds)

    monkeypatch.setattr(live.asyncio, "sleep", sleep)
    asyncio.run(live.follow(Widget(), drawings(("1", False), ("2", False), ("3", True))))
    assert pauses == [0.25, 40.0, 0.25]


def test_without_ipywidgets(monkeypatch):
    """Without ipywidgets there is nothing to change: the notebook shows the HTML."""
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert live.bundle("<p/>", "p", lambda: None, None) == {}


def test_the_bundle(monkeypatch):
    """The widget is displayed, with HTML and text where no widget can be; drawing goes on."""
    made = []

    class Module:
        @staticmethod
        def HTML(value):
            made.append(Widget(value))
            return made[0]

    monkeypatch.setitem(sys.modules, "ipywidgets", Module)

    async def show():
        draw = drawings(("<p>2</p>", True))
        bundle = live.bundle("<p>1</p>", "1", draw, asyncio.get_running_loop())
        while made[0].value == "<p>1</p>" or live._following:
            await asyncio.sleep(0)
        return bundle

    assert asyncio.run(show()) == {
        "application/vnd.jupyter.widget-view+json": {},
        "text/html": "<p>1</p>",
        "text/plain": "1",
    }
    assert made[0].value == "<p>2</p>"
