"""Metrics for Prometheus."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import dask
import pytest
from distributed import Event

from handoff_dask import DAG, Function, RetryPolicy, current, execute, submit, uninstall
from handoff_dask.model.attempt import Attempt, Outcome
from handoff_dask.scheduler.dashboard.metrics import COLLECTOR
from handoff_dask.wire.run_events import AttemptEnded
from tests.scheduler.dashboard.viewing import get, on_cluster
from tests.support import assert_clean

parser = pytest.importorskip("prometheus_client.parser")


def hold(*_):
    Event("started").set()
    Event("go").wait()


def flaky():
    if current().attempt < 3:
        raise ValueError("not yet")


async def scrape(scheduler):
    """Return our metrics: {(name, *label values): value}."""
    status, body = await get(scheduler, "/metrics")
    assert status == 200
    return {
        (sample.name.removeprefix("dask_handoff_"), *sample.labels.values()): sample.value
        for family in parser.text_string_to_metric_families(body)
        for sample in family.samples
        if "handoff" in sample.name
    }


@on_cluster()
async def test_metrics(c, s, a, b):
    """Functions by state and amounts by resource are current."""
    dag = DAG()
    dag.add_function(Function(id="holds", args=[], code=hold, cost={"gpu": 1, "cpu": 1}))
    dag.add_function(Function(id="held", args=[], code=int, cost={"gpu": 1, "cpu": 2}))
    run = await submit(dag)
    await (await Event("started")).wait()
    metrics = await scrape(s)
    assert metrics["functions", "held"] == metrics["functions", "running"] == 1
    assert metrics["functions", "done"] == metrics["functions", "failed"] == 0
    assert metrics["runs",] == 1
    assert metrics["capacity", "cpu"] == 8
    assert metrics["claims", "cpu"] == metrics["claims", "gpu"] == 1
    assert metrics["asked", "cpu"] == 2
    await (await Event("go")).set()
    await run.result()
    assert (await scrape(s))["functions", "done"] == 2
    del run
    await assert_clean(s, a, b)
    metrics = await scrape(s)
    assert metrics["functions", "done"] == metrics["runs",] == 0
    assert metrics["attempts_total", "ok"] == 2
    assert {name[1] for name in metrics if name[0] == "attempts_total"} == set(get_args(Outcome))
    assert metrics["cpu_seconds_total",] > 0


@on_cluster()
async def test_counters_never_go_back(c, s, a, b):
    """The counters of retries and attempts keep their values when runs are forgotten."""
    function = Function(id="flaky", args=[], code=flaky, retry=RetryPolicy(2))
    for runs in (1, 2):
        await execute(DAG().add_function(function))
        await assert_clean(s, a, b)
        metrics = await scrape(s)
        assert metrics["retries_total",] == 2 * runs
        assert metrics["attempts_total", "error"] == 2 * runs
        assert metrics["attempts_total", "ok"] == runs
        assert metrics["functions", "failed"] == 0


@on_cluster()
async def test_a_late_result(c, s, a, b):
    """An attempt whose result came late counts once; no counter goes down."""
    function = Function(id="f", args=[], code=int, cost={"gpu": 1})
    run = await submit(DAG().add_function(function))
    await run.result()
    history = s.plugins["handoff"].history
    ((run_id, index, _),) = history.attempts
    attempt = Attempt(2, a.address, "a", "host", 1.0, 2.0, {}, "timeout")
    history(AttemptEnded(run_id, 2.0, index, attempt))
    before = await scrape(s)
    assert before["attempts_total", "timeout"] == before["retries_total",] == 1
    history(AttemptEnded(run_id, 3.0, index, replace(attempt, stopped=3.0, outcome="ok")))
    after = await scrape(s)
    assert after.pop(("late_results_total", "timeout")) == 1
    before.pop(("late_results_total", "timeout"))
    assert {key: after[key] for key in before} == before


@on_cluster()
async def test_unregistered_with_the_plugin(c, s, a, b):
    """The metrics disappear with the plugin and come back with it."""
    await execute(DAG())
    assert await scrape(s)
    await uninstall(client=c)
    assert COLLECTOR.overviews == []
    assert await scrape(s) == {}
    await execute(DAG())
    assert await scrape(s)


@on_cluster()
async def test_namespace(c, s, a, b):
    """The operator's namespace for Dask's metrics applies to ours."""
    await execute(DAG())
    with dask.config.set({"distributed.dashboard.prometheus.namespace": "team"}):
        _, body = await get(s, "/metrics")
    assert "team_handoff_retries_total 0.0" in body
    with dask.config.set({"distributed.dashboard.prometheus.namespace": ""}):
        _, body = await get(s, "/metrics")
    assert "\nhandoff_retries_total 0.0" in body
