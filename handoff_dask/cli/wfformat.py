"""Workflow instances in WfFormat 1.5, and DAGs that replay them."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from handoff_dask.graph.collection import DAG
from handoff_dask.model.function import Function
from handoff_dask.model.retry import number_problem

__all__ = ["Task", "read", "replay", "waiting"]

VERSION = "1.5"
#: A percentage of CPU this much over a step counts as on it: 100.0017 is one core.
_NOISE = 1.0
#: What JSON calls its types.
_JSON: Mapping[Any, str] = {dict: "object", list: "list", str: "text"}


@dataclass(frozen=True)
class Task:
    """What a trace tells of a task.

    Attributes
    ----------
    id : str
        Unique in its workflow.
    code : str
        The program it ran, as a name.
    parents : tuple of str
        Ids of the tasks it waited for.
    cost : Mapping
        cpu (cores) and, if it was measured, memory (MB).
    seconds : float
        How long it took.
    """

    id: str
    code: str
    parents: tuple[str, ...]
    cost: Mapping[str, float]
    seconds: float


def read(path: Path) -> tuple[Task, ...]:
    """Read the tasks of a workflow instance, parents first.

    ``avgCPU`` (percent of a core) is rounded up to a tenth of a core and is at least 1, as a
    function takes a thread and a worker has one per core; missing, it is 1. ``memoryInBytes``
    becomes MB.

    Raises
    ------
    ValueError
        The file cannot be read, is of another version, lacks a fact, or its tasks form a cycle.
    """
    try:
        return _ordered(_tasks(json.loads(path.read_text(encoding="utf-8"))))
    except OSError as error:
        raise ValueError(f"{path.name}: {error.strerror or error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name}: line {error.lineno} is not JSON: {error.msg}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} is not JSON: it is no text in UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def replay(tasks: tuple[Task, ...], id: str, scale: float = 1.0) -> DAG:
    """Return a DAG whose functions wait as long as the tasks took.

    Parameters
    ----------
    tasks
        What :func:`read` returns.
    id
        Name of the DAG.
    scale
        Factor for the seconds.

    Examples
    --------
    >>> from handoff_dask.cli.wfformat import Task, replay
    >>> task = Task("sort_1", "sort", (), {"cpu": 1}, 20.0)
    >>> replay((task,), "sorted", scale=0.1).functions["sort_1"].extra_kwargs
    {'seconds': 2.0}
    """
    dag = DAG(id)
    for task in tasks:
        dag.add_function(
            Function(
                id=task.id,
                args=task.parents,
                code=waiting(task.code),
                extra_kwargs={"seconds": task.seconds * scale},
                cost=task.cost,
            )
        )
    return dag


@cache
def waiting(name: str) -> Callable[..., tuple[float, float]]:
    """Return a function of that name that waits, and tells from when to when (s since epoch).

    Dask averages the durations of functions with one name.
    """

    def work(*inputs: Any, seconds: float) -> tuple[float, float]:
        started = time.time()
        time.sleep(seconds)
        return started, time.time()

    work.__name__ = work.__qualname__ = name
    return work


def cores(percent: float | None) -> float:
    """Return the cores of a measured percentage: tenths, rounded up, at least 1."""
    if percent is None:
        return 1
    return max(1, math.ceil((percent - _NOISE) / 10) / 10)


def _tasks(document: Any) -> dict[str, Task]:
    """Return the tasks of a document by id, in its order."""
    if not isinstance(document, dict):
        raise ValueError("not a workflow: the document is no JSON object")
    if document.get("schemaVersion") != VERSION:
        raise ValueError(f"WfFormat {document.get('schemaVersion')!r}, not {VERSION!r}")
    workflow = _field(document, "workflow", dict)
    measured = {}
    for facts in _entries(workflow, "execution"):
        measured[_field(facts, "id", str)] = facts
    tasks: dict[str, Task] = {}
    for entry in _entries(workflow, "specification"):
        id_ = _field(entry, "id", str)
        if id_ in tasks:
            raise ValueError(f"two tasks have the id {id_!r}")
        if id_ not in measured:
            raise ValueError(f"task {id_!r} was not executed: it has no recorded time")
        tasks[id_] = _task(id_, _field(entry, "parents", list, f"task {id_!r}"), measured[id_])
    return tasks


def _entries(workflow: Mapping[str, Any], half: str) -> list[Any]:
    found: list[Any] = _field(_field(workflow, half, dict), "tasks", list, half)
    return found


def _field(where: Any, name: str, kind: type, what: str = "") -> Any:
    """Return a field of an object, of the type that it must have."""
    found = where.get(name) if isinstance(where, dict) else None
    if not isinstance(found, kind):
        subject = f"{what}: " if what else ""
        raise ValueError(f"{subject}the field {name!r} is missing, or no {_JSON[kind]}")
    return found


def _task(id_: str, parents: list[Any], facts: Mapping[str, Any]) -> Task:
    for name in ("runtimeInSeconds", "avgCPU", "memoryInBytes"):
        value = facts.get(name)
        if value is None and name != "runtimeInSeconds":
            continue
        if problem := number_problem(value):
            raise ValueError(f"{name} of task {id_!r} {problem}")
    cost = {"cpu": cores(facts.get("avgCPU"))}
    if facts.get("memoryInBytes"):
        cost["memory"] = facts["memoryInBytes"] / 1e6
    return Task(
        id=id_,
        code=_program(facts, id_),
        parents=tuple(dict.fromkeys(map(str, parents))),
        cost=cost,
        seconds=facts["runtimeInSeconds"],
    )


def _program(facts: Mapping[str, Any], id_: str) -> str:
    command = facts.get("command")
    program = command.get("program") if isinstance(command, dict) else None
    return re.sub(r"\W+", "_", program or re.sub(r"_?(ID)?\d+$", "", id_)) or "task"


def _ordered(tasks: Mapping[str, Task]) -> tuple[Task, ...]:
    """Return the tasks parents first, level by level, each level in the order of the file."""
    for task in tasks.values():
        for parent in task.parents:
            if parent not in tasks:
                raise ValueError(f"task {task.id!r} has the parent {parent!r}, which is missing")
    sorter = TopologicalSorter({task.id: task.parents for task in tasks.values()})
    try:
        sorter.prepare()
    except CycleError as error:
        raise ValueError(f"its tasks form a cycle: {' -> '.join(error.args[1])}") from None
    place = {id_: number for number, id_ in enumerate(tasks)}
    ordered: list[Task] = []
    while sorter.is_active():
        level = sorted(sorter.get_ready(), key=place.__getitem__)
        ordered += (tasks[id_] for id_ in level)
        sorter.done(*level)
    return tuple(ordered)
