"""JSON of the scheduler's HTTP server."""

from __future__ import annotations

import asyncio
import math
from fractions import Fraction

import numpy as np
from distributed import Event

from handoff_dask import DAG, Function, __version__, submit
from handoff_dask.attempts.states import STATES
from tests.scheduler.dashboard.viewing import get_json, on_cluster
from tests.support import assert_clean


def hold(*_):
    Event("started").set()
    Event("go").wait()


@on_cluster()
async def test_runs(c, s, a, b):
    """Runs are listed with counts and what is held while they last, then as recent ones."""
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
    counts = {**dict.fromkeys(STATES, 0), "held": 2, "running": 1}
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
    """With an unlimited capacity the answer is still JSON."""
    await submit(DAG())
    registry = s.plugins["handoff"].registry
    await registry.capabilities(a.address, {"cpu": math.inf}, __version__)
    state = await get_json(s, "/handoff/runs.json")
    assert state["resources"]["cpu"] == {"declared": None, "claimed": 0, "asked": 0}


class Alike:
    """An id whose repr has odd characters."""

    def __repr__(self):
        return "<\u00e4 'like' \n \u2028>"


@on_cluster()
async def test_odd_names_and_numbers(c, s, a, b):
    """With any names of ids and resources and any types of amounts the answer is JSON."""
    cost = {'a "b" \n \u2028': Fraction(1, 3), "cpu": np.float32(0.5), "gpu": np.int64(1)}
    dag = DAG(("d", frozenset({np.int64(1)})))
    dag.add_function(Function(id=Alike(), args=[], code=int, cost=cost))
    run = await submit(dag, placement_timeout=600)
    while not (await run.status())["held"]:
        await asyncio.sleep(0.01)
    state = await get_json(s, "/handoff/runs.json")
    (held,) = state["held"]
    assert held["functions"] == 1 and "like" in held["example"]
    assert held["cost"] == {'a "b" \n \u2028': 1 / 3, "cpu": 0.5, "gpu": 1}
    assert "frozenset" in state["runs"][0]["dag_id"]
    await run.cancel()
