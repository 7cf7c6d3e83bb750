"""JSON of the scheduler's HTTP server."""

from __future__ import annotations

import math

from distributed import Event

from handoff_dask import DAG, Function, __version__, submit
from tests.dashboard.viewing import get_json, on_cluster
from tests.support import assert_clean


def hold(*_):
    Event("started").set()
    Event("go").wait()


@on_cluster()
async def test_runs(c, s, a, b):
    """Runs are there with their counts while they last, with what is held and why; then after."""
    dag = DAG("a dag")
    dag.add_function(Function(id="holds", args=[], code=hold, cost={"gpu": 1}))
    for i in range(2):
        dag.add_function(Function(id=f"f{i}", args=[], code=int, cost={"gpu": 1, "cpu": 2}))
    run = await submit(dag)
    await (await Event("started")).wait()
    state = await get_json(s, "/handoff/runs.json")
    (shown,) = state["runs"]
    assert shown["dag_id"] == "a dag"
    assert shown["closed"] is None
    counts = {"waiting": 0, "held": 2, "running": 1, "done": 0, "failed": 0, "cancelled": 0}
    assert shown["functions"] == state["functions"] == counts
    (held,) = state["held"]
    assert held.pop("why").startswith("resources: gpu 1, at most 0 free")
    assert held == {
        "functions": 2,
        "cost": {"gpu": 1, "cpu": 2},
        "example": "f0",
        "dag_id": "a dag",
    }
    assert state["resources"]["gpu"] == {"declared": 1, "claimed": 1, "asked": 2}
    assert state["recent"] == []
    await (await Event("go")).set()
    await run.result()
    del run
    await assert_clean(s, a, b)
    state = await get_json(s, "/handoff/runs.json")
    assert state["runs"] == state["held"] == []
    (over,) = state["recent"]
    assert over["functions"]["done"] == 3
    assert over["closed"] >= over["opened"]


@on_cluster()
async def test_an_endless_capacity(c, s, a, b):
    """A capacity without a limit does not make the answer something else than JSON."""
    await submit(DAG())
    registry = s.plugins["handoff"].registry
    await registry.capabilities(a.address, {"cpu": math.inf}, __version__)
    state = await get_json(s, "/handoff/runs.json")
    assert state["resources"]["cpu"] == {"declared": None, "claimed": 0, "asked": 0}
