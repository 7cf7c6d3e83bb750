"""What the makespan suite runs: workflow traces and random DAGs, on four unequal workers."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from handoff_dask.cli.wfformat import Task, read

__all__ = ["TRACES", "WORKERS", "Workload", "load_trace", "random_dag", "workloads"]

#: Where the WfCommons instances lie; the project does not need them.
TRACES = Path(__file__).resolve().parents[3] / "shared" / "data" / "wfinstances"

#: Capacity of each worker by name. One thread per core. Every resource is named, so that none is
#: detected on the machine that the suite runs on.
WORKERS: Mapping[str, Mapping[str, float]] = {
    "a": {"cpu": 8, "memory": 16000, "gpu": 1},
    "b": {"cpu": 8, "memory": 16000, "gpu": 0},
    "c": {"cpu": 4, "memory": 8000, "gpu": 0},
    "d": {"cpu": 8, "memory": 32000, "gpu": 1},
}


@dataclass(frozen=True)
class Workload:
    """A DAG of tasks, parents first."""

    name: str
    tasks: tuple[Task, ...]

    def scaled(self, factor: float) -> Workload:
        """Return the workload with every duration times `factor`."""
        return Workload(
            self.name, tuple(replace(t, seconds=t.seconds * factor) for t in self.tasks)
        )


def workloads(names: Sequence[str] = (), folder: Path = TRACES) -> list[Workload]:
    """Return the suite: the traces that are there, and the random DAGs.

    Parameters
    ----------
    names
        Only workloads whose name starts with one of these; all if there are none.
    folder
        Where the traces lie.
    """
    loaded = [load_trace(path) for path in sorted(folder.glob("*.json"))]
    loaded += [random_dag(seed, layered=layered) for layered in (False, True) for seed in (0, 1)]
    if not names:
        return loaded
    return [workload for workload in loaded if workload.name.startswith(tuple(names))]


def load_trace(path: Path) -> Workload:
    """Load a workflow instance; a task that is bigger than the largest worker is cut down to that.

    Raises
    ------
    ValueError
        As :func:`handoff_dask.cli.wfformat.read`.
    """
    tasks = tuple(replace(task, cost=_cut(task.cost)) for task in read(path))
    return Workload(re.sub(r"-chameleon\b|\.json$", "", path.name), tasks)


def random_dag(seed: int, *, layered: bool, size: int = 300) -> Workload:
    """Return independent tasks, or layered ones that take up to three of the 40 before them.

    A quarter are wide (half a worker or more), a third want memory of their own, a tenth a gpu.
    All share one code, so that durations say nothing of a task before it was measured itself.
    """
    rng = random.Random(seed)
    tasks: list[Task] = []
    for i in range(size):
        wide = rng.random() < 0.25
        cost: dict[str, float] = {"cpu": rng.choice((4, 6, 8) if wide else (1, 1, 2))}
        hungry = rng.random() < 0.3
        cost["memory"] = rng.choice((500, 1000, 8000, 12000) if hungry else (100, 500))
        if rng.random() < 0.1:
            cost["gpu"] = 1
        seconds = rng.choice((0.05, 0.1, 0.2, 0.5))
        parents: list[int] = []
        if layered and i and rng.random() < 0.8:
            parents = rng.sample(range(max(0, i - 40), i), min(i, rng.choice((1, 1, 2, 3))))
        tasks.append(
            Task(f"{i:03}", "work", tuple(f"{p:03}" for p in parents), _cut(cost), seconds)
        )
    return Workload(f"random-{'layered' if layered else 'flat'}-{seed}", tuple(tasks))


def _cut(cost: Mapping[str, float]) -> dict[str, float]:
    """Cut a cost down to the worker that needs the least cut."""

    def cut(capacity: Mapping[str, float]) -> dict[str, float]:
        return {name: min(amount, capacity.get(name, 0)) for name, amount in cost.items()}

    return max(map(cut, WORKERS.values()), key=lambda c: sum(c[n] / cost[n] for n in c if cost[n]))
