"""No resource is ever overcommitted, as the functions themselves report."""

from __future__ import annotations

import random
import time
from collections import defaultdict

import pytest
from distributed import Client, Nanny, Scheduler, SpecCluster, get_worker

from handoff_dask import DAG, Function, execute

WORKERS = {
    "a": {"cpu": 4, "memory": 4000, "gpu": 1},
    "b": {"cpu": 4, "memory": 2000},
    "c": {"cpu": 2, "memory": 8000, "licence": 2},
    "d": {"cpu": 8, "memory": 4000, "gpu": 2},
}
COSTS = [
    {"cpu": 1},
    {"cpu": 0.5, "memory": 100},
    {"cpu": 2, "memory": 1500},
    {"cpu": 4, "memory": 2000},
    {"memory": 3000},
    {"gpu": 1, "cpu": 1},
    {"gpu": 2, "memory": 500},
    {"gpu": 0.25},
    {"licence": 1, "cpu": 1},
    None,
]


def work(seconds, *inputs):
    """Work for a while; return where, and from when to when."""
    started = time.time()
    time.sleep(seconds)
    return get_worker().name, started, time.time()


@pytest.fixture(scope="module")
def client():
    """Four worker processes that have more threads than declared cores."""
    workers = {
        name: {
            "cls": Nanny,
            "options": {"nthreads": 8, "resources": resources, "memory_limit": 0},
        }
        for name, resources in WORKERS.items()
    }
    scheduler = {"cls": Scheduler, "options": {"dashboard": False, "dashboard_address": ":0"}}
    with SpecCluster(workers=workers, scheduler=scheduler) as cluster, Client(cluster) as client:
        yield client


def dag_of(seed, n):
    """Return a random DAG of n functions, most of them short, and their costs."""
    rng = random.Random(seed)
    dag, costs = DAG(), {}
    for i in range(n):
        costs[i] = rng.choice(COSTS)
        recent = range(max(0, i - 100), i)
        args = rng.sample(recent, min(i, rng.choice([0, 0, 1, 2])))
        seconds = rng.choice([0, 0, 0.001, 0.002, 0.01])
        dag.add_function(
            Function(
                id=i,
                args=args,
                code=lambda *values: work(values[-1]),
                extra_args=[seconds],
                cost=costs[i],
            )
        )
    return dag, costs


@pytest.mark.parametrize("strategy", ["packed", "load_balanced"])
def test_nothing_is_overcommitted(client, strategy):
    """2,000 functions of mixed cost: what ran at once on a worker never exceeds what it offers."""
    dag, costs = dag_of(strategy, 2000)
    result = execute(dag, client=client, allocation_strategy=strategy)
    assert len(result.results) == 2000
    events = defaultdict(list)
    for id_, (worker, started, stopped) in result.results.items():
        events[worker].append((started, 1, id_))
        events[worker].append((stopped, 0, id_))
    for worker, happened in events.items():
        used = defaultdict(float)
        for _, starts, id_ in sorted(happened):
            for name, amount in (costs[id_] or {}).items():
                used[name] += amount if starts else -amount
                assert used[name] <= WORKERS[worker].get(name, 0) + 1e-9, (worker, name, id_)
    assert len(events) == len(WORKERS)
