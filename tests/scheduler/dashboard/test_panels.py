"""What the panels draw."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from bokeh.document import Document
from distributed import Event

from handoff_dask import DAG, Function, RetryPolicy, current, execute, register_node, submit
from handoff_dask.model.attempt import Attempt
from handoff_dask.scheduler.dashboard import panel as panels
from handoff_dask.scheduler.dashboard.allocations_panel import ATTEMPTS, LOOKS, AllocationsPanel
from handoff_dask.scheduler.dashboard.history import History
from handoff_dask.scheduler.dashboard.overview import Overview
from handoff_dask.scheduler.dashboard.resources_panel import ResourcesPanel
from handoff_dask.scheduler.dashboard.routes import state
from handoff_dask.scheduler.dashboard.runs_panel import RunsPanel
from handoff_dask.widgets.lanes import SLACK
from handoff_dask.wire.run_events import AttemptEnded, RunOpened
from tests.scheduler.dashboard.test_history import fake_run
from tests.scheduler.dashboard.viewing import on_cluster, overview_of, until
from tests.support import assert_clean, dag_of


def hold(*_):
    Event("started").set()
    Event("go").wait()


def short_or_hold(holds=False):
    if holds:
        Event("go").wait()


def run_counts(scheduler):
    """Count the functions of all runs by state."""
    return overview_of(scheduler).states()


def flaky():
    if current().attempt < 2:
        raise ValueError("not yet")


def viewed(scheduler, kind):
    """Return a panel in a document, as it looks now."""
    panel = kind(overview_of(scheduler))
    panel.watch(Document())
    return panel


def rows(source):
    """Return a source's data as a list of rows."""
    data = source.data
    return [dict(zip(data, row, strict=True)) for row in zip(*data.values(), strict=True)]


async def busy(cost, *others, **options):
    """Run one function that holds on to a cost, and others; return the run once it has begun."""
    dag = DAG("<busy>")
    dag.add_function(Function(id="holds", args=[], code=hold, cost=cost))
    for function in others:
        dag.add_function(function)
    run = await submit(dag, **options)
    await (await Event("started")).wait()
    return run


@pytest.mark.parametrize("kind", [AllocationsPanel, ResourcesPanel, RunsPanel])
def test_after_the_plugin_has_gone(kind):
    """Once the plugin is uninstalled, a panel says so and hides what it drew."""
    history = History({})
    history.close()
    panel = kind(Overview(None, history, {}, {}, (), None, None, dict))
    panel.watch(Document())
    assert "was uninstalled" in panel.heading.text
    for source in panel.root.select({"type": panels_source()}):
        assert all(len(column) == 0 for column in source.data.values())


def panels_source():
    from bokeh.models import ColumnDataSource

    return ColumnDataSource


@on_cluster()
async def test_nothing_to_show_yet(c, s, a, b):
    """Without runs, panels say so."""
    await execute(DAG())
    assert "no Handoff runs" in viewed(s, RunsPanel).heading.text
    assert "no Handoff runs" in viewed(s, AllocationsPanel).heading.text
    assert "2 workers" in viewed(s, ResourcesPanel).heading.text


@on_cluster()
async def test_runs(c, s, a, b):
    """Each run has a bar of its functions by state; held functions are listed with the reason."""
    waiting = [Function(id=i, args=[], code=int, cost={"gpu": 1, "cpu": 2}) for i in range(2)]
    after = Function(id="after", args=["holds"], code=lambda _: None)
    run = await busy({"gpu": 1}, *waiting, after)
    panel = viewed(s, RunsPanel)
    (row,) = rows(panel._bars)
    assert (row["n_running"], row["n_held"], row["n_waiting"], row["n_done"]) == (1, 2, 1, 0)
    assert row["held"] == 0.5
    text = panel._held.text
    assert "gpu 1, at most 0 free" in text
    assert "&lt;busy&gt;" in text
    assert "<busy>" not in text
    await (await Event("go")).set()
    await run.result()
    panel.look()
    (row,) = rows(panel._bars)
    assert (row["n_done"], row["done"], row["held"]) == (4, 1.0, 0.0)
    assert row["text"].startswith("4 of 4 in ")
    del run
    await until(lambda: not s.plugins["handoff"].runs)
    panel.look()
    (row,) = rows(panel._bars)
    assert row["text"].endswith(", over")


@on_cluster()
async def test_runs_with_a_store(c, s, a, b, tmp_path):
    """What was in the store has a color of its own, and is not left to do."""
    store = tmp_path / "store"
    await execute(dag_of(Function("stored", [], int)), store=store)
    run = await busy({}, Function("stored", [], int), store=store)
    (row, _) = rows(viewed(s, RunsPanel)._bars)
    assert (row["n_stored"], row["n_done"], row["n_running"]) == (1, 0, 1)
    assert row["text"].startswith("1 of 2 in ")
    await (await Event("go")).set()
    await run.result()


@on_cluster()
async def test_what_is_still_ending(c, s, a, b):
    """Threads of a cancelled run keep their claims, and are named and counted, until they end."""
    run = await busy({"gpu": 1})
    await run.cancel()
    overview = overview_of(s)
    await until(lambda: not overview.runs)
    text = "still ending: 1 function of a run that was cancelled (&#39;&lt;busy&gt;&#39;)"
    assert text in viewed(s, RunsPanel).heading.text
    panel = viewed(s, AllocationsPanel)
    more = DAG().add_function(Function(id="more", args=[], code=int, cost={"gpu": 1}))
    run = await submit(more)
    await until(lambda: overview.held(1))
    panel.look()
    assert "1 still ending" in panel.heading.text
    (waiting,) = overview.held(1)
    assert waiting.why.endswith("still ending: 1 function of a run that was cancelled ('<busy>')")
    (ending,) = state(overview)["ending"]
    assert ending == {"functions": 1, "whose": "of a run that was cancelled ('<busy>')"}
    assert state(overview)["resources"]["gpu"]["claimed"] == 1
    await (await Event("go")).set()
    await run.result()
    del run
    await assert_clean(s, a, b)
    assert "still ending" not in viewed(s, RunsPanel).heading.text


@on_cluster()
async def test_allocations(c, s, a, b):
    """An attempt is drawn on its worker, first as running and then in the colour of its outcome."""
    retried = Function(id="flaky", args=[], code=flaky, retry=RetryPolicy(1), node=a.address)
    run = await busy({"gpu": 1}, retried)
    panel = viewed(s, AllocationsPanel)
    await until(lambda: s.plugins["handoff"].history.ended == 2)
    panel.look()
    (running,) = rows(panel._placed)
    assert running["what"] == "holds of <busy>, attempt 1: running"
    assert list(LOOKS)[running["code"]] == "running"
    place = {row.name: row.place for row in panel._lanes.rows.values()}
    assert int(running["y"]) == place[str(b.name)]
    assert rows(panel._names)[0]["text"] == "holds"
    first, second = rows(panel._ended)
    assert first["what"].startswith("flaky of <busy>, attempt 1: error (cpu time ")
    assert second["what"].startswith("flaky of <busy>, attempt 2: ok (cpu time ")
    assert list(LOOKS)[first["code"]] == "error"
    assert list(LOOKS)[second["code"] - len(LOOKS)] == "ok"  # with the edge of a retry
    assert {int(first["y"]), int(second["y"])} == {place[str(a.name)]}
    assert first["left"] <= first["right"] <= second["left"] <= second["right"]
    await (await Event("go")).set()
    await run.result()
    panel.look()
    assert rows(panel._placed) == []
    assert len(rows(panel._ended)) == 3


@on_cluster()
async def test_assigned_is_told_from_running(c, s, a, b):
    """A function that was handed ahead and has not started is shown as assigned everywhere."""
    await execute(DAG().add_function(Function(id="short", args=[], code=short_or_hold)))
    dag = DAG("<busy>")
    for i in range(10):
        dag.add_function(Function(id=i, args=[], code=short_or_hold, extra_args=[True]))
    run = await submit(dag)
    await until(lambda: run_counts(s)["running"] == 8)
    counts = run_counts(s)
    assert counts["assigned"] == 2
    assert counts["held"] == 0
    assert state(overview_of(s))["functions"]["assigned"] == 2
    (row,) = [row for row in rows(viewed(s, RunsPanel)._bars) if row["dag_id"] == "<busy>"]
    assert (row["n_running"], row["n_assigned"], row["assigned"]) == (8, 2, 0.2)
    panel = viewed(s, AllocationsPanel)
    assert "8 running, 2 assigned on 2 of 2 workers" in panel.heading.text
    looks = [list(LOOKS)[row["code"]] for row in rows(panel._placed)]
    assert sorted(looks) == ["assigned"] * 2 + ["running"] * 8
    await (await Event("go")).set()
    await run.result()
    panel.look()
    assert rows(panel._placed) == []


@on_cluster()
async def test_allocations_of_a_lost_worker(c, s, a, b):
    """An attempt that was lost with its worker stays visible, on the worker's row."""
    run = await busy({"gpu": 1})
    panel = viewed(s, AllocationsPanel)
    address, name = b.address, str(b.name)
    await s.remove_worker(address, stimulus_id="test", close=False)
    await until(lambda: s.plugins["handoff"].history.ended == 1)
    panel.look()
    (lost,) = rows(panel._ended)
    assert lost["what"].endswith(": worker-lost")
    row = panel._lanes.rows[address]
    assert row.name == name
    assert int(lost["y"]) == row.place
    await (await Event("go")).set()
    await run.cancel()


@on_cluster()
async def test_allocations_of_many(c, s, a, b):
    """Of very many attempts, the latest are drawn, and bars do not overlap."""
    await execute(DAG())
    run = fake_run([f"f{i}" for i in range(2 * ATTEMPTS)])
    history = History({"run": run})
    history(RunOpened("run", "dag", 0.0))
    panel = AllocationsPanel(replace(overview_of(s), history=history))
    now = time.time()
    for i in range(2 * ATTEMPTS):
        attempt = Attempt(1, a.address, "a", "host", now + i, now + i + 2.5)
        history(AttemptEnded("run", now, i, attempt))
        if i % 100 == 99:
            panel.look()
    drawn = rows(panel._ended)
    assert len(drawn) == len(panel._bars) == ATTEMPTS
    assert drawn[-1]["what"].startswith(f"f{2 * ATTEMPTS - 1} ")
    by_lane = {}
    for bar in drawn:
        assert by_lane.get(bar["y"], 0) <= bar["left"] + SLACK
        by_lane[bar["y"]] = bar["right"]
    assert len(by_lane) == 3


@on_cluster()
async def test_allocations_of_a_late_result(c, s, a, b):
    """An attempt whose result came late is drawn once, as it ended in the end."""
    await execute(DAG())
    history = History({"run": fake_run(["f", "g"])})
    history(RunOpened("run", "dag", 0.0))
    panel = AllocationsPanel(replace(overview_of(s), history=history))
    now = time.time()
    for index, outcome in ((0, "timeout"), (1, "ok"), (0, "ok")):
        attempt = Attempt(1, a.address, "a", "host", now, now + 1, {}, outcome)
        history(AttemptEnded("run", now, index, attempt))
        panel.look()
    texts = [row["what"] for row in rows(panel._ended)]
    assert sorted(texts) == ["f of dag, attempt 1: ok", "g of dag, attempt 1: ok"]


@on_cluster()
async def test_resources(c, s, a, b):
    """Each cell shows what is declared, claimed and asked for; the first row is for all workers."""
    waiting = [Function(id=i, args=[], code=int, cost={"gpu": 1, "cpu": 2}) for i in range(3)]
    run = await busy({"gpu": 1, "cpu": 1}, *waiting)
    panel = viewed(s, ResourcesPanel)
    names = {row["what"]: row for row in rows(panel._cells)}
    total = names["gpu of all workers"]
    assert (total["declared"], total["claimed"], total["asked"]) == (1, 1, 3)
    assert total["claimed_end"] - total["left"] == total["end"] - total["left"]
    cpu = names["cpu of all workers"]
    assert (cpu["declared"], cpu["claimed"], cpu["asked"]) == (8, 1, 6)
    assert names[f"cpu of {b.name}"]["claimed"] == 1
    assert names[f"cpu of {a.name}"]["claimed"] == 0
    assert f"gpu of {a.name}" not in names
    texts = panel._texts.data["text"]
    assert "1 of 8" in texts
    assert "6 asked" in texts
    assert list(panel._figure.xaxis[0].major_label_overrides.values()) == [
        "threads",
        "cpu",
        "memory",
        "gpu",
    ]
    await (await Event("go")).set()
    await run.result()
    panel.look()
    names = {row["what"]: row for row in rows(panel._cells)}
    assert {(row["claimed"], row["asked"]) for row in names.values()} == {(0, 0)}


@on_cluster()
async def test_resources_that_nobody_has(c, s, a, b):
    """A resource that is asked for and that no worker declares has a cell that says so."""
    greedy = DAG().add_function(Function(id="f", args=[], code=int, cost={"licence": 2}))
    run = await submit(greedy, placement_timeout=60)
    plugin = s.plugins["handoff"]
    await until(lambda: plugin.engine.questions.backlog(1).largest)
    panel = viewed(s, ResourcesPanel)
    cell = {row["what"]: row for row in rows(panel._cells)}["licence of all workers"]
    assert (cell["declared"], cell["asked"], cell["lacking"]) == (0, 2, 1)
    await register_node(a.address, {"licence": 2})
    await run.result()
    panel.look()
    cell = {row["what"]: row for row in rows(panel._cells)}["licence of all workers"]
    assert (cell["declared"], cell["asked"], cell["lacking"]) == (2, 0, 0)


class Clock:
    """A clock that is advanced by hand."""

    now = cpu = 0.0

    def monotonic(self):
        return self.now

    def thread_time(self):
        return self.cpu


def test_a_costly_look_is_followed_by_a_pause(monkeypatch):
    """However costly a look is, a panel takes no more than its share of a core."""
    clock = Clock()
    monkeypatch.setattr(panels, "time", clock)
    looked = []

    class Costly(RunsPanel):
        def look(self):
            looked.append(clock.now)
            clock.cpu += 0.030

    panel = Costly(Overview(None, History({}), {}, {}, (), None, None, dict))
    for _ in range(100):
        panel.tick()
        clock.now += panels.TICK / 1000
    assert len(looked) == 5
    assert clock.cpu / clock.now <= panels.SHARE
