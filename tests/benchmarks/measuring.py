"""Makespans of a workload: on Dask, with Handoff, with Ray, and in simulation.

All real ones are measured alike, by the functions' own clock: from the first start to the last
stop.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple
from uuid import uuid4

from handoff_dask.cli.wfformat import replay, waiting
from tests.benchmarks.workloads import WORKERS, Workload

__all__ = [
    "Measured",
    "Span",
    "dask_cluster",
    "handoff",
    "has_ray",
    "plain",
    "planned",
    "ray",
    "ray_cluster",
    "simulated",
]

#: When a function started and stopped (s since epoch).
Span = tuple[float, float]
#: Makespans (s) by column of the table, one per round.
Columns = dict[str, list[float]]


#: Seconds of overhead that `plan` is told of: what suits a cluster on one machine.
OVERHEAD = 0.002


class Measured(NamedTuple):
    """A run.

    Parameters
    ----------
    makespan
        Seconds from the first start to the last stop.
    late
        Seconds that one in ten functions overslept by, or more. Tells whether something else kept
        the machine busy: sleeping needs no core, waking up in time does.
    """

    makespan: float
    late: float


def measured(workload: Workload, spans: Iterable[Span]) -> Measured:
    """Return the figures of a run, given the spans in the order of the tasks."""
    starts, stops = zip(*(spans := list(spans)), strict=True)
    asked = [task.seconds for task in workload.tasks]
    late = sorted(stop - start - s for (start, stop), s in zip(spans, asked, strict=True))
    return Measured(max(stops) - min(starts), late[int(0.9 * len(late))])


# Dask and Handoff


@contextmanager
def dask_cluster() -> Iterator[Any]:
    """Start each worker as a process of its own."""
    from distributed import Client, Nanny, Scheduler, SpecCluster

    workers = {
        name: {
            "cls": Nanny,
            "options": {
                "nthreads": int(offer["cpu"]),
                "resources": dict(offer),
                "memory_limit": 0,
                "dashboard": False,
                "silence_logs": logging.CRITICAL,
            },
        }
        for name, offer in WORKERS.items()
    }
    scheduler = {
        "cls": Scheduler,
        "options": {"dashboard": False, "dashboard_address": ":0", "port": 0},
    }
    with (
        SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(len(workers))
        client.run(import_module, waiting.__module__)
        yield client


def plain(client: Any, workload: Workload) -> Measured:
    """Run the very graph that `execute` sends, which nothing holds where no run was opened."""
    from handoff_dask import RetryPolicy
    from handoff_dask.graph.translation import translate
    from handoff_dask.model.expansion import expand

    nodes = expand(replay(workload.tasks, workload.name).functions)
    translation = translate(nodes, uuid4().hex, policy=RetryPolicy(3))
    return measured(workload, client.get(translation.graph, list(translation.keys)))


def handoff(client: Any, workload: Workload) -> Measured:
    """Run it with `execute`."""
    from handoff_dask import execute

    result = execute(replay(workload.tasks, workload.name), client=client)
    return measured(workload, [result.results[task.id] for task in workload.tasks])


# Ray


def has_ray() -> bool:
    """Whether Ray can be imported."""
    return find_spec("ray") is not None


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """Start one Ray node per worker."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        # To start a process takes longer than most functions: those that are there stay.
        options = {"_system_config": {"idle_worker_killing_time_threshold_ms": 10**9}}
        for offer in WORKERS.values():
            custom = {f"my_{name}": offer[name] for name in ("memory", "gpu") if offer[name]}
            cluster.add_node(num_cpus=int(offer["cpu"]), resources=custom, **options)
            options = {}  # the other nodes have them from the first
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        cluster.wait_for_nodes()
        _warm_up(ray)
        yield ray
    finally:
        ray.shutdown()
        cluster.shutdown()


def _warm_up(ray: Any) -> None:
    """Have Ray start its processes, one per core, before anything is measured."""
    total = sum(int(offer["cpu"]) for offer in WORKERS.values())
    for _ in range(3):
        sleep = ray.remote(num_cpus=1)(waiting("warm_up"))
        ray.get([sleep.remote(seconds=2) for _ in range(total)])


def ray(module: Any, workload: Workload) -> Measured:
    """Run it with Ray: the same requests, memory and gpu as resources of our own."""
    refs: dict[str, Any] = {}
    remotes = {name: module.remote(waiting(name)) for name in {t.code for t in workload.tasks}}
    for task in workload.tasks:
        asked = {f"my_{n}": v for n, v in task.cost.items() if n != "cpu" and v}
        remote = remotes[task.code].options(num_cpus=task.cost["cpu"], resources=asked)
        refs[task.id] = remote.remote(*map(refs.get, task.parents), seconds=task.seconds)
    return measured(workload, module.get(list(refs.values())))


# Simulation


def planned(workload: Workload) -> float:
    """Return what `plan` predicts from the true durations."""
    from handoff_dask import plan

    seconds = {task.id: task.seconds for task in workload.tasks}
    return plan(replay(workload.tasks, workload.name), WORKERS, seconds, overhead=OVERHEAD).makespan


def simulated(workload: Workload, *, overhead: float = 0.0, rounds: int = 5) -> Columns:
    """Return the engine's makespans in simulated time, one per round.

    Parameters
    ----------
    overhead
        Seconds from a decision to the start of the function, on average. It is never twice the
        same: functions of equal length would end together, and leave room that they never leave
        on a cluster.

    Returns
    -------
    dict
        ``first``: nothing is known at first. ``second``: by the engine that saw that run.
        ``plan``: as `planned`.
    """
    from handoff_dask.placement.engine import Engine
    from handoff_dask.placement.events import FunctionSpec, WorkerSpec
    from handoff_dask.placement.simulation import simulate

    specs = [
        FunctionSpec(t.id, t.cost, t.parents, code=t.code, token=(t.code, t.id))
        for t in workload.tasks
    ]
    workers = [
        WorkerSpec(name, name, "here", offer, int(offer["cpu"])) for name, offer in WORKERS.items()
    ]
    # The engine is told where inputs lie, as on a cluster, however small they are.
    sizes = {task.id: 64.0 for task in workload.tasks}
    found: Columns = {"first": [], "second": [], "plan": [planned(workload)]}
    for number in range(rounds):
        rng = random.Random(number)
        engine = Engine()
        for column in ("first", "second"):
            seconds = {
                task.id: task.seconds + (rng.expovariate(1 / overhead) if overhead else 0.0)
                for task in workload.tasks
            }
            run = simulate(specs, workers, seconds, known=False, sizes=sizes, engine=engine)
            found[column].append(run.makespan)
    return found
