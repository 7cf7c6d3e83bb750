"""Timelines as Bokeh figures."""

from __future__ import annotations

import sys

import pytest

from handoff_dask import DAG, Function, plan
from handoff_dask.client.results import ExecutionResult
from tests.widgets.test_reports import RESULT

pytest.importorskip("bokeh")

DAG_OF_FOUR = DAG()
for number in range(4):
    DAG_OF_FOUR.add_function(Function(number, [], int, cost={"cpu": 1}))
PLAN = plan(DAG_OF_FOUR, {"laptop": {"cpu": 2}}, dict.fromkeys(range(4), 1.5))


def columns(figure):
    (renderer,) = figure.renderers
    return renderer.data_source.data


def test_a_result():
    """Each attempt is a bar from start to stop, with its outcome, in a lane of its worker."""
    figure = RESULT.plot()
    data = columns(figure)
    assert data["outcome"] == ["ok", "error", "worker-lost", "timeout", "ok"]
    assert data["worker"] == ["alice"] * 4 + ["bob"]
    assert (data["left"], data["right"]) == ([0, 1, 4, 5, 2], [1, 2, 5, 6, 4])
    assert data["y"] == [0, 0, 0, 0, 2]
    assert list(figure.yaxis[0].major_label_overrides.values()) == ["alice", "bob"]
    words = {item.label.value for item in figure.legend[0].items}
    assert words == {"ok", "error", "worker-lost", "timeout"}


def test_a_plan():
    """Functions that overlap are in different lanes; the worker's name is at their middle."""
    figure = PLAN.plot()
    assert columns(figure)["y"] == [0, 1, 0, 1]
    assert figure.yaxis[0].major_label_overrides == {0.5: "laptop"}


@pytest.mark.parametrize("shown", [RESULT, PLAN, ExecutionResult("empty", {})], ids=["r", "p", "0"])
def test_figures_can_be_saved(shown, tmp_path):
    """A figure is a whole Bokeh document, whatever is in it."""
    from bokeh.io import save
    from bokeh.resources import INLINE

    path = tmp_path / "plot.html"
    save(shown.plot(), filename=str(path), resources=INLINE, title="t")
    assert "bokeh" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("shown", [RESULT, PLAN], ids=["result", "plan"])
def test_without_bokeh(monkeypatch, shown):
    """Where Bokeh is missing, the error says how to install it."""
    monkeypatch.setitem(sys.modules, "bokeh.plotting", None)
    with pytest.raises(ImportError, match=r"pip install 'handoff_dask\[notebook\]'"):
        shown.plot()
