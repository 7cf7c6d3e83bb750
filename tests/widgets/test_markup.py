"""Text, numbers and tables."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handoff_dask.widgets import markup
from handoff_dask.widgets.markup import Html

#: Any text, also what no encoding can hold.
TEXTS = st.text(st.characters(exclude_categories=()))


class Nameless:
    def __repr__(self):
        return "<Nameless & 'quoted'>"


@given(TEXTS)
def test_no_text_is_markup(text):
    """Any text becomes well-formed XML without elements."""
    root = ElementTree.fromstring(f'<a b="{markup.escaped(text)}">{markup.escaped(text)}</a>')
    assert not list(root)
    shown = markup.shorten(text, 300).replace("\r\n", "\n").replace("\r", "\n")
    clean = markup._UNSPEAKABLE.sub("\N{REPLACEMENT CHARACTER}", shown)
    assert (root.text or "") == clean
    markup.escaped(text).encode()


def test_escaped_once():
    """Markup stays as it is; ids that are not strings are shown by their repr."""
    assert markup.escaped(Html("<b>&amp;</b>")) == "<b>&amp;</b>"
    assert markup.escaped(Nameless()) == "&lt;Nameless &amp; &#39;quoted&#39;&gt;"
    assert markup.escaped(("a", 1)) == "(&#39;a&#39;, 1)"


@given(TEXTS, st.integers(2, 50))
def test_shorten(text, limit):
    """A text longer than the limit is shortened to it, in its middle."""
    short = markup.shorten(text, limit)
    assert len(short) == min(len(text), limit)
    if len(text) <= limit:
        assert short == text
    else:
        head, tail = short.split("\N{HORIZONTAL ELLIPSIS}")[0], limit // 3
        assert text.startswith(head)
        assert text.endswith(short[len(short) - tail :])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"),
        (2.5e-6, "2.5 \N{MICRO SIGN}s"),
        (0.0123, "12.3 ms"),
        (1, "1 s"),
        (99.9, "99.9 s"),
        (99.99, "1 min 40 s"),
        (125, "2 min 5 s"),
        (3600, "1 h 0 min"),
        (7199, "2 h 0 min"),
    ],
)
def test_seconds(value, text):
    """Durations have a suitable unit and number of digits."""
    assert markup.seconds(value) == text


def test_costs():
    """A cost is one line; many costs are one line of ranges."""
    assert markup.cost({"cpu": 2, "memory": 2048.0}) == "cpu 2 \N{MIDDLE DOT} memory 2,048 MB"
    costs = [{"cpu": 2}, {"cpu": 0.5, "gpu": 1}, {"gpu": 1}]
    assert markup.cost_range(costs) == "cpu 0.5\N{EN DASH}2 \N{MIDDLE DOT} gpu 1"
    assert markup.cost_range([]) == ""


def test_sorting_of_workers():
    """worker-10 comes after worker-9, and any name can be sorted."""
    names = ["worker-10", "", "9", "worker-9", "a", "10", "worker-9b"]
    ordered = ["", "9", "10", "a", "worker-9", "worker-9b", "worker-10"]
    assert sorted(names, key=markup.natural) == ordered


def test_table():
    """Cells are escaped unless they are markup; numbers are aligned right."""
    rows = ElementTree.fromstring(
        markup.table(("a", "<n>"), [("<b>", 12), (Html("<i/>"), 1)], " r")
    )
    assert [cell.text for cell in rows.iter("th")] == ["a", "<n>"]
    cells = list(rows.iter("td"))
    assert cells[0].text == "<b>"
    assert cells[2][0].tag == "i"
    left, right = (cell.get("style") for cell in cells[:2])
    assert left == "text-align:left"
    assert "text-align:right" in right


def test_names():
    """The first few of many are named, and the rest counted."""
    assert markup.names(["a", ("b", 1)]) == "a, ('b', 1)"
    assert markup.names(range(2000), 2) == "0, 1 and 1,998 more"
