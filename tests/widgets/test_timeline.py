"""Bars by worker."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handoff_dask.widgets import timeline
from handoff_dask.widgets.timeline import Bar, draw, lanes, ticks

SVG = "{http://www.w3.org/2000/svg}"
COLOURS = {"ok": "#00ff00", "error": "#ff0000", "other": "#0000ff"}


def parsed(html):
    return ElementTree.fromstring(f"<div>{html.replace('&ensp;', ' ')}</div>")


def bars(n, colour="#00ff00"):
    return [Bar(f"f{i}", i, i + 1, colour, f"tip {i}") for i in range(n)]


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 10)), max_size=20))
def test_lanes(spans):
    """Bars in a lane do not overlap, and there are no more lanes than bars at one time."""
    given_bars = [Bar("", start, start + length, "") for start, length in spans]
    placed = lanes(given_bars)
    for (a, i), (b, j) in itertools.combinations(zip(given_bars, placed, strict=True), 2):
        assert i != j or a.stop <= b.start or b.stop <= a.start
    at_once = [sum(b.start <= t < max(b.stop, b.start + 1) for b in given_bars) for t in range(31)]
    assert max(placed, default=-1) < max(at_once) + 1


@given(st.floats(1e-9, 1e9))
def test_ticks(length):
    """There are a few round times from 0 up to the length."""
    times = list(ticks(length))
    assert times[0] == 0
    assert 2 <= len(times) <= 10
    assert times[-1] <= length * (1 + 1e-9)


def test_each_span_is_a_bar():
    """Every bar is drawn with its tooltip, beside the name of its worker, escaped."""
    html = draw({"<alice>": bars(3), "bob": [Bar("<g>", 0, 9, "#ff0000", "<t>")]}, 9, COLOURS)
    root = parsed(html)
    tips = [title.text for title in root.iter(f"{SVG}title")]
    assert [tip for tip in tips if tip.startswith("tip")] == ["tip 0", "tip 1", "tip 2"]
    assert {"<alice>", "bob", "<t>"} < set(tips)
    assert "<g>" in [text.text for text in root.iter(f"{SVG}text")]
    words = "".join(root.itertext())
    assert "ok" in words
    assert "error" in words
    assert "other" not in words


def test_bars_stand_where_they_belong():
    """Twice the time is twice the width, and a bar that overlaps is below."""
    root = parsed(
        draw({"w": [Bar("a", 0, 10, "#00ff00"), Bar("b", 5, 25, "#ff0000")]}, 25, COLOURS)
    )
    first, second = (
        {k: float(r.get(k)) for k in ("x", "y", "width")} for r in root.iter(f"{SVG}rect")
    )
    assert second["width"] / first["width"] == pytest.approx(2, abs=0.05)
    assert second["x"] - first["x"] == pytest.approx(first["width"] / 2, abs=1)
    assert second["y"] > first["y"]


@pytest.mark.parametrize("n", [timeline.MOST_BARS + 1, 20_000])
def test_many_spans_become_a_profile(n):
    """Thousands of bars are drawn as the number that run at a time, with a note."""
    spans = [Bar("", i % 50, i % 50 + 1, "#00ff00") for i in range(n)]
    html = draw({"w": spans, "v": bars(2, "#ff0000")}, 51, COLOURS)
    root = parsed(html)
    assert not list(root.iter(f"{SVG}rect"))
    assert f"{n + 2:,} spans" in "".join(root.itertext())
    tips = [title.text for title in root.iter(f"{SVG}title")]
    assert "at most 1 at a time" in tips
    assert {"#00ff00", "#ff0000"} <= {path.get("fill") for path in root.iter(f"{SVG}path")}
    assert len(html) < 40_000


def test_the_area_of_a_profile_is_the_time_worked():
    """The profile of a worker that is busy half of the time is half full."""
    spans = [Bar("", i / 1000, i / 1000 + 0.001, "#00ff00") for i in range(1000)]
    root = parsed(draw({"w": spans}, 2, COLOURS))
    (path,) = (p for p in root.iter(f"{SVG}path") if p.get("fill") == "#00ff00")
    (start,) = path.get("d").split("M")[1:]
    left, right = float(start.split()[0]), float(start.split("H")[1].split("V")[0])
    (axis,) = (p for p in root.iter(f"{SVG}path") if "H888" in p.get("d"))
    begin = float(axis.get("d")[1:].split()[0])
    assert left == pytest.approx(begin, abs=0.2)
    assert (right - left) / (888 - begin) == pytest.approx(0.5, abs=0.01)


def test_many_workers_share_a_row():
    """If there are too many workers, the last share a row, with a note."""
    rows = {f"w{i}": bars(1) for i in range(timeline.MOST_ROWS + 160)}
    text = "".join(parsed(draw(rows, 1, COLOURS)).itertext())
    assert "160 other workers" in text
    assert "the last 160 workers share the last row" in text


@pytest.mark.parametrize("rows", [{}, {"w": []}])
def test_nothing(rows):
    """Without any work there is no timeline."""
    assert draw(rows, 0, COLOURS) == ""


def test_no_time_at_all():
    """Spans of no length are visible."""
    root = parsed(draw({"w": [Bar("a", 0, 0, "#00ff00")]}, 0, COLOURS))
    (rect,) = root.iter(f"{SVG}rect")
    assert float(rect.get("width")) > 1
