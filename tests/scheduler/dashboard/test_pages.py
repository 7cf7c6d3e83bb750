"""Pages on Dask's dashboard: listed, served, and gone again."""

from __future__ import annotations

import subprocess
import sys

import pytest
from distributed import Client, Scheduler, Worker
from distributed.utils_test import gen_test

from handoff_dask import DAG, Function, execute, uninstall
from handoff_dask.scheduler.dashboard.panel import Panel
from tests.scheduler.dashboard.viewing import (
    INDIVIDUAL,
    SHOWN,
    get,
    listed,
    on_cluster,
    on_dashboard,
    open_page,
    until,
)

ONE = DAG("one").add_function(Function(id="f", args=[], code=int))


@pytest.fixture
def looks(monkeypatch):
    """Count how often panels look."""
    seen = []
    look = Panel.look
    monkeypatch.setattr(Panel, "look", lambda panel: (seen.append(panel), look(panel)))
    return seen


@on_dashboard()
async def test_a_running_scheduler_gets_the_panels(c, s, a, b):
    """dask-labextension lists the panels as soon as the plugin is there, and they are served."""
    assert await listed(s) == {}
    await execute(ONE)
    assert await listed(s) == INDIVIDUAL
    for path in (*INDIVIDUAL.values(), "/handoff"):
        status, body = await get(s, path)
        assert status == 200
        assert "token" in body
    status, body = await get(s, "/status")
    assert 'href="handoff"' in body
    assert "Handoff Allocations" in body  # in the menu


@on_dashboard()
async def test_uninstall_takes_the_panels_away(c, s, a, b):
    """Uninstalling removes everything from the dashboard; installing again brings it back."""
    await execute(ONE)
    await uninstall(client=c)
    assert await listed(s) == {}
    for path in (*INDIVIDUAL.values(), "/handoff", "/handoff/runs.json"):
        assert (await get(s, path))[0] == 404
    _, body = await get(s, "/status")
    assert "andoff" not in body
    await execute(ONE)
    assert await listed(s) == INDIVIDUAL
    assert (await get(s, "/handoff"))[0] == 200


@on_dashboard()
async def test_a_page_that_is_open_says_that_the_plugin_is_gone(c, s, a, b, looks):
    """An open page says that the plugin is gone; once it is closed, nothing keeps running."""
    await execute(ONE)
    socket = await open_page(s, "/individual-handoff-runs")
    await until(lambda: len(looks) > 1)
    panel = looks[-1]
    pages = s.http_application.applications[1]
    await uninstall(client=c)
    assert pages not in s.http_application.applications
    await until(lambda: "was uninstalled" in panel.heading.text)
    socket.close()
    context = pages.applications["/individual-handoff-runs"]
    for session in context.sessions:
        session.request_expiration()
    await until(lambda: not pages._ping_job.is_running())
    assert not list(context.sessions)


@on_dashboard()
async def test_no_cost_while_nobody_looks(c, s, a, b, looks):
    """Nothing looks at the plugin before a page is opened, nor after it was closed."""
    await execute(ONE)
    await get(s, "/individual-plots.json")
    assert looks == []
    socket = await open_page(s, "/individual-handoff-runs")
    await until(lambda: len(looks) > 1)
    socket.close()
    context = s.http_application.applications[1].applications["/individual-handoff-runs"]
    (session,) = context.sessions
    session.request_expiration()
    await until(lambda: not list(context.sessions))
    seen = len(looks)
    await execute(ONE)
    assert len(looks) == seen


@gen_test()
async def test_preloaded():
    """A scheduler that preloads the plugin lists the panels from the start."""
    async with Scheduler(**SHOWN, preload=["handoff_dask.preload"]) as s:
        assert await listed(s) == INDIVIDUAL
        assert (await get(s, "/handoff"))[0] == 200


@gen_test()
async def test_a_prefix_of_the_operator():
    """All paths have the prefix that the operator chose for Dask's."""
    async with (
        Scheduler(**SHOWN, http_prefix="/team/a") as s,
        Worker(s.address),
        Client(s.address, asynchronous=True),
    ):
        await execute(ONE)
        assert await listed(s, "/team/a") == INDIVIDUAL
        for path in (*INDIVIDUAL.values(), "/handoff", "/handoff/runs.json"):
            assert (await get(s, f"/team/a{path}"))[0] == 200


@on_cluster()
async def test_a_scheduler_without_dashboard(c, s, a, b):
    """Without a dashboard there are no panels, and everything else works."""
    result = await execute(ONE)
    assert result.results == {"f": 0}
    assert await listed(s) == {}
    assert (await get(s, "/handoff/runs.json"))[0] == 200
    await uninstall(client=c)
    assert (await get(s, "/handoff/runs.json"))[0] == 404


def test_without_bokeh_and_prometheus():
    """A run works without Bokeh and prometheus_client."""
    script = """
import sys
sys.modules["bokeh"] = sys.modules["prometheus_client"] = None
from distributed import Client, LocalCluster
from handoff_dask import DAG, Function, execute

with LocalCluster(processes=False, n_workers=1, dashboard_address=":0") as cluster:
    with Client(cluster) as client:
        dag = DAG().add_function(Function(id="f", args=[], code=int))
        print(execute(dag).results)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'f': 0}"
    assert "Traceback" not in done.stderr
