"""Where the boxes of a graph go."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handoff_dask.widgets import layout
from handoff_dask.widgets.layout import BOX_GAP, arrange, levels, spread

BOX = (100.0, 40.0)


@st.composite
def graphs(draw, cyclic=True):
    """Draw (number of nodes, edges)."""
    count = draw(st.integers(0, 12))
    if not count:
        return 0, []
    node = st.integers(0, count - 1)
    edges = draw(st.lists(st.tuples(node, node), max_size=30))
    if not cyclic:
        edges = [(min(e), max(e)) for e in edges if e[0] != e[1]]
    return count, edges


@given(graphs(cyclic=False))
def test_levels(graph):
    """A node's level is one more than the highest of what it depends on, or 0."""
    count, edges = graph
    depths = levels(count, edges)
    for node in range(count):
        below = [depths[a] for a, b in edges if b == node]
        assert depths[node] == (max(below) + 1 if below else 0)


def test_levels_where_there_is_a_circle():
    """A cycle has levels too: what leads to it comes before it, what follows comes after it."""
    edges = [(0, 1), (1, 2), (2, 3), (3, 1), (3, 4), (5, 5)]
    depths = levels(6, edges)
    assert depths[0] == depths[5] == 0
    assert len(set(depths[1:4])) == 3
    assert depths[4] > depths[3]


@given(graphs(), st.sampled_from([50.0, 1e6]))
def test_layout(graph, view):
    """No boxes overlap, all are inside, and each line leads from box to box along the flow."""
    count, edges = graph
    arranged = arrange(count, edges, BOX, view)
    wide, high = BOX
    for (x, y), (p, q) in itertools.combinations(arranged.centres, 2):
        assert abs(x - p) > wide - 1e-6 or abs(y - q) > high - 1e-6
    for x, y in arranged.centres:
        assert wide / 2 - 1e-6 <= x <= arranged.size[0] - wide / 2 + 1e-6
        assert high / 2 - 1e-6 <= y <= arranged.size[1] - high / 2 + 1e-6
    assert set(arranged.lines) == set(edges)
    half = (high if arranged.downwards else wide) / 2
    for (a, b), points in arranged.lines.items():
        if a == b:
            continue
        for node, end in ((a, points[0]), (b, points[-1])):
            x, y = arranged.centres[node]
            along, across = (y, x) if arranged.downwards else (x, y)
            there, beside = (end[1], end[0]) if arranged.downwards else end
            assert abs(along - there) == pytest.approx(half)
            assert across == pytest.approx(beside)


def test_long_lines_pass_between_the_boxes():
    """A line over several layers does not run through the boxes there."""
    edges = [(0, 1), (1, 2), (2, 3), (0, 3)]
    arranged = arrange(4, edges, BOX)
    height = {y for _, y in arranged.lines[0, 3][1:-1]}
    for node in (1, 2):
        assert all(abs(y - arranged.centres[node][1]) > BOX[1] / 2 for y in height)


def test_no_needless_crossings():
    """Two interleaved chains are drawn without a crossing."""
    arranged = arrange(6, [(0, 3), (1, 2), (2, 4), (3, 5)], BOX)
    across = [y for _, y in arranged.centres]
    first = across[0] < across[1]
    assert (across[3] < across[2]) == (across[5] < across[4]) == first


def test_chains_flow_downwards():
    """A graph that is too wide for the view flows downwards, others to the right."""
    chain = [(i, i + 1) for i in range(20)]
    assert arrange(21, chain, BOX).downwards
    assert not arrange(4, chain[:3], BOX).downwards


def test_more_bends_than_one_can_follow(monkeypatch):
    """If lines would have too many bends, they are straight."""
    monkeypatch.setattr(layout, "_BENDS", 0)
    arranged = arrange(4, [(0, 1), (1, 2), (2, 3), (0, 3)], BOX)
    assert len(arranged.lines[0, 3]) == 2


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(1, 100)), max_size=8))
def test_spread(items):
    """Places keep their order and their distance, and their mean where weights are equal."""
    wanted = [w for w, _ in items]
    breadths = [b for _, b in items]
    places = spread(wanted, [1.0] * len(items), breadths)
    for i, (p, q) in enumerate(itertools.pairwise(places)):
        assert q - p >= (breadths[i] + breadths[i + 1]) / 2 + BOX_GAP - 1e-6
    assert sum(places) == pytest.approx(sum(wanted), abs=1e-6)


def test_spread_leaves_alone_what_has_room():
    """Places that do not overlap stay as they are."""
    assert spread([0, 100, 300], [1, 1, 1], [10, 10, 10]) == [0, 100, 300]
