"""What notebooks show of results, plans, explanations and runs."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import get_args
from xml.etree import ElementTree

import pytest

from handoff_dask import DAG, Explanation, Function, RunExplanation, execute_local, plan
from handoff_dask.client.explaining import Unready
from handoff_dask.client.results import ExecutionResult
from handoff_dask.model.attempt import Attempt, Outcome, Usage
from handoff_dask.placement.events import Finding, Waiting
from handoff_dask.widgets import reports
from handoff_dask.widgets.markup import OUTCOME_COLOURS

SVG = "{http://www.w3.org/2000/svg}"
EVIL = "<script>alert('x')</script>"


def parsed(html):
    return ElementTree.fromstring(html.replace("&ensp;", " ").replace("details open", "details"))


def table(html, which=0):
    """Return the rows of a table, as texts."""
    tables = list(parsed(html).iter("table"))[which]
    return [["".join(cell.itertext()) for cell in row] for row in tables.iter("tr")]


def attempt(number=1, start=0.0, stop=1.0, outcome="ok", worker="tcp://1", name="alice"):
    error = (None, None) if outcome == "ok" else ("ValueError", EVIL)
    return Attempt(
        number, worker, name, "host", 1e9 + start, 1e9 + stop, {"cpu": 1}, outcome, *error
    )


def result_of(attempts, errors=()):
    allocations = {i: tried[-1].worker for i, tried in attempts.items()}
    return ExecutionResult("d", {}, allocations, attempts, dict(errors))


RESULT = result_of(
    {
        EVIL: (attempt(),),
        "b": (attempt(1, 1, 2, "error"), attempt(2, 2, 4, worker="tcp://2", name="bob")),
        "c": (attempt(1, 4, 5, "worker-lost"), attempt(2, 5, 6, "timeout")),
    },
    {"c": ValueError(EVIL), "d": ValueError("because of c")},
)


def test_a_result_shows_each_attempt():
    """Each attempt is a bar on its worker, in the colour of its outcome, with a tooltip."""
    root = parsed(RESULT._repr_html_())
    bars = list(root.iter(f"{SVG}rect"))
    outcomes = ["ok", "error", "worker-lost", "timeout", "ok"]  # alice's, then bob's
    assert [bar.get("fill") for bar in bars] == [OUTCOME_COLOURS[o] for o in outcomes]
    tips = [bar[0].text for bar in bars]
    assert tips[0].startswith(f"{EVIL}: ok, 1 s\non alice tcp://1\ncpu 1")
    assert tips[1].endswith(f"ValueError: {EVIL}")
    assert tips[4].startswith("b #2: ok, 2 s")


def test_the_table_of_a_result():
    """Each function has a row: where and when it ran last, how often, and what went wrong."""
    head, *rows = table(RESULT._repr_html_())
    assert head == ["function", "worker", "attempts", "start", "duration", "outcome", "error"]
    assert rows == [
        [EVIL, "alice", "1", "0 s", "1 s", "ok", ""],
        ["b", "bob", "2", "2 s", "2 s", "ok", f"ValueError: {EVIL}"],
        ["c", "alice", "2", "5 s", "1 s", "timeout", f"ValueError: {EVIL}"],
        ["d", "", "0", "", "", "not run", "ValueError: because of c"],
    ]
    summary = "3 functions, 6 s on 2 workers, 2 further attempts, 2 failed or not run"
    assert summary in "".join(parsed(RESULT._repr_html_()).itertext())


def test_what_attempts_used_is_shown():
    """Tooltips and the table have what is known: unknown columns are left out."""
    used = replace(attempt(), usage=Usage(0.5, 812.25, 1_200_000))
    killed = replace(attempt(1, 0, 1, "out-of-memory"), usage=Usage(peak_memory=2000.0))
    html = result_of({"a": (used,), "b": (killed,)})._repr_html_()
    tips = [bar[0].text for bar in parsed(html).iter(f"{SVG}rect")]
    assert tips[0].endswith("cpu time 500 ms · peak memory 812.2 MB · result 1.2 MB")
    head, *rows = table(html)
    assert head[5:9] == ["cpu time", "peak memory", "result", "outcome"]
    assert rows[0][5:9] == ["500 ms", "812.2 MB", "1.2 MB", "ok"]
    assert rows[1][5:9] == ["", "2,000 MB", "", "out-of-memory"]
    assert "cpu time" not in RESULT._repr_html_()


def test_each_outcome_has_a_colour():
    """No two outcomes look the same."""
    assert set(OUTCOME_COLOURS) == set(get_args(Outcome))
    assert len(set(OUTCOME_COLOURS.values())) == len(OUTCOME_COLOURS)


def test_users_text_in_a_result():
    """Ids and messages of errors are escaped."""
    assert "<script" not in RESULT._repr_html_()
    assert "&lt;script&gt;" in RESULT._repr_html_()


def test_thousands_of_functions():
    """A long table is cut: failed and slow functions come first, and the rest is counted."""
    attempts = {i: (attempt(1, i / 10, i / 10 + (i == 777)),) for i in range(5000)}
    attempts[4321] = (attempt(1, 0, 1, "error"),)
    html = result_of(attempts, {4321: ValueError("no")})._repr_html_()
    rows = table(html)[1:]
    assert len(rows) == reports.MOST_ROWS
    assert [row[0] for row in rows[:2]] == ["4321", "777"]
    text = "".join(parsed(html).itertext())
    assert f"{5000 - reports.MOST_ROWS:,} functions more" in text
    assert "5,000 spans" in text
    assert len(html) < 60_000


def test_workers_of_one_name():
    """Workers that share a name are told apart by their addresses."""
    both = {"a": (attempt(),), "b": (attempt(worker="tcp://2"),)}
    rows, length = reports.attempt_bars(both)
    assert list(rows) == ["tcp://1", "tcp://2"]
    assert length == 1


def test_results_without_attempts():
    """A result without attempts can be shown."""
    assert "Result of d" in ExecutionResult("d", {})._repr_html_()


def test_a_local_result():
    """The result of execute_local is drawn like any other."""
    dag = DAG("local").add_function(Function("f", [], int))
    assert table(execute_local(dag)._repr_html_())[1][0] == "f"


def test_a_plan():
    """A plan shows a timeline, how much of each resource is used, and the work of each worker."""
    dag = DAG().add_function(Function(EVIL, [], int, cost={"cpu": 1}))
    for i in range(3):
        dag.add_function(Function(i, [EVIL], int, cost={"cpu": 1}, extra_args=[]))
    shown = plan(dag, {"<b>laptop": {"cpu": 2}, "idle": {"gpu": 1}}, {EVIL: 1, 0: 2, 1: 1, 2: 1})
    html = shown._repr_html_()
    bars = list(parsed(html).iter(f"{SVG}rect"))
    assert len(bars) == 4
    assert bars[0][0].text.startswith(f"{EVIL}: 0 s to 1 s\ntakes 1 s on <b>laptop")
    assert table(html) == [["resource", "used"], ["cpu", " 83.3%"], ["gpu", " 0.0%"]]
    assert table(html, 1)[1:] == [["<b>laptop", "4", "5 s", "3 s"], ["idle", "0", "0 s", "0 s"]]
    assert "4 functions on 2 workers, 3 s" in "".join(parsed(html).itertext())
    assert "<script" not in html


def test_an_explanation():
    """Functions that cannot run come first; those with the same verdict share a row."""
    shown = Explanation(
        {
            **{f"f{i}": Finding(("tcp://1", "tcp://2")) for i in range(9)},
            "gpu": Finding((), None, True, "tcp://1", {"gpu": (1.0, 0.0)}),
            EVIL: Finding((), EVIL, False),
            "pinned": Finding((), "bob", True, "tcp://2", {"cpu": (3.0, 2.0)}),
            "none": Finding(()),
        }
    )
    html = shown._repr_html_()
    assert table(html)[1:] == [
        ["gpu", "1", "no", "tcp://1", "gpu: 1 needed, offers 0"],
        [EVIL, "1", "no", "", f"no worker answers to {EVIL!r}"],
        ["pinned", "1", "no", "tcp://2 (pinned to 'bob')", "cpu: 3 needed, offers 2"],
        ["none", "1", "no", "", "no workers"],
        ["f0, f1, f2 and 6 more", "9", "yes", "2 workers: tcp://1, tcp://2", ""],
    ]
    assert "4 of 13 functions cannot run" in html
    assert "<script" not in html
    assert "nothing to place" in Explanation({})._repr_html_()
    busy = Explanation({}, f"still ending: {EVIL}")
    assert f"still ending: {EVIL}" in "".join(parsed(busy._repr_html_()).itertext())
    assert "<script" not in busy._repr_html_()


def test_an_explanation_of_a_run():
    """Each reason has a row: what is lacking, where, and the functions that wait for it."""
    shown = RunExplanation(
        {
            **{i: Waiting("resources", ("tcp://1",), {"gpu": (1, 0.5)}) for i in range(5)},
            "after": Unready((EVIL,)),
            "later": Waiting("delay", until=5.0),
            "lost": Waiting("impossible", finding=Finding((), "bob", False)),
            "busy": Waiting("resources", ("tcp://2",), {"gpu": (1, 0)}, ending=EVIL),
        }
    )
    html = shown._repr_html_()
    assert table(html)[1:] == [
        ["0, 1, 2 and 2 more", "5", "gpu: 1 needed, at most free 0.5", "tcp://1"],
        ["after", "1", f"waits for {EVIL!r}", ""],
        ["later", "1", "delay", ""],
        ["lost", "1", "impossible: no worker answers to 'bob'", ""],
        ["busy", "1", f"gpu: 1 needed, at most free 0; {EVIL}", "tcp://2"],
    ]
    assert "9 functions wait" in html
    assert "nothing waits" in RunExplanation({})._repr_html_()


def test_very_many_verdicts():
    """Functions that do not fit into the table are counted."""
    shown = Explanation({i: Finding((), f"w{i}", False) for i in range(70)})
    html = shown._repr_html_()
    assert len(table(html)) == 1 + reports.MOST_ROWS
    assert f"and {70 - reports.MOST_ROWS} functions more" in html


def test_progress():
    """The bar has a part for each state; each kind of held function has a row with the reason."""
    html = reports.progress(
        EVIL,
        {"done": 3, "held": 1, "waiting": 0},
        [(1, "gpu 1", "gpu: 1 needed", "tcp://1")],
        "ended",
    )
    root = parsed(html)
    parts = {d.get("title"): d.get("style") for d in root.iter("div") if d.get("title")}
    assert list(parts) == ["3 done", "1 held"]
    assert "width:75.0000%" in parts["3 done"]
    assert table(html)[1] == ["1", "gpu 1", "gpu: 1 needed", "tcp://1"]
    text = "".join(root.itertext())
    assert "3 of 4 functions done" in text
    assert "ended" in text
    assert "<script" not in html
    reports.progress("d", {})


@pytest.mark.parametrize("shown", [RESULT, plan(DAG(), {"w": {}}, {})], ids=["result", "plan"])
def test_looking_changes_nothing(shown):
    """An object that was shown can still be pickled."""
    assert pickle.loads(pickle.dumps(shown))._repr_html_() == shown._repr_html_()
