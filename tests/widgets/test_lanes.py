"""Where the bars of attempts go."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from handoff_dask.widgets.lanes import RECENT, SLACK, Lanes

times = st.floats(0, 100).map(lambda t: round(t, 1))


@given(st.lists(st.tuples(times, times).filter(lambda span: span[1] - span[0] > 2 * SLACK)))
def test_bars_do_not_overlap(spans):
    """Attempts that overlap are in different lanes, and there are no more lanes than needed."""
    lanes = Lanes()
    by_lane = {}
    for i, (started, stopped) in enumerate(sorted(spans)):
        lane = lanes.ended(i, "a", started, stopped)
        by_lane.setdefault(lane, []).append((started, stopped))
    for bars in by_lane.values():
        for (_, stopped), (started, _) in pairwise(bars):
            assert stopped <= started + SLACK
    most = max((sum(b <= a < e for b, e in spans) for a, _ in spans), default=0)
    assert len(by_lane) <= most


def test_who_looks_late_sees_a_long_attempt_whole():
    """An attempt that started before others ended has a lane of its own, from its start on."""
    lanes = Lanes()
    lanes.ended("short", "a", started=90.0, stopped=99.0)
    assert lanes.begun("long", "a", placed=10.0, now=100.0) == (1, 10.0)
    assert lanes.begun("long", "a", placed=10.0, now=101.0) == (1, 10.0)


def test_handed_ahead():
    """A function handed ahead is drawn from the end of the one before it."""
    lanes = Lanes()
    lanes.begun("first", "a", placed=0.0, now=0.0)
    lanes.ended("first", "a", started=0.0, stopped=1.0)
    assert lanes.begun("second", "a", placed=0.5, now=0.5 + RECENT) == (0, 1.0)


def test_lanes_go_away():
    """Lanes and rows out of sight are dropped; the rows of registered workers stay."""
    lanes = Lanes()
    for i in range(5):
        lanes.ended(i, "a", started=0.0, stopped=1.0 + i)
    lanes.ended("gone", "b", started=0.0, stopped=1.0)
    assert lanes.arrange()
    assert lanes.row("a").lanes == 6
    lanes.prune(set(), {"a"}, now=4.5, window=2.0)
    assert len(lanes.row("a").until) == 5
    lanes.prune(set(), {"a"}, now=10.0, window=2.0)
    assert lanes.row("a").until == []
    assert list(lanes.rows) == ["a"]


def test_an_attempt_that_left_without_a_word():
    """The lane of an attempt that disappeared without an end is free again."""
    lanes = Lanes()
    lanes.begun("f", "a", placed=0.0, now=0.0)
    lanes.prune(set(), {"a"}, now=5.0, window=60.0)
    assert lanes.begun("g", "a", placed=5.0, now=5.0) == (0, 5.0)
