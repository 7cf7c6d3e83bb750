"""Recorded workflows in WfFormat 1.5, and DAGs that replay them."""

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

VERSION = "1.5"
#: A percentage of CPU by this much above a step counts as the step: 100.0017 is one core.
_NOISE = 1.0
#: What JSON calls its types.
_JSON: Mapping[Any, str] = {dict: "object", list: "list", str: "string"}


@dataclass(frozen=True)
class Task:
    """A recorded task."""

    id: str
    #: The name of its program.
    code: str
    #: Ids of the tasks that it depends on.
    parents: tuple[str, ...]
    #: cpu (cores) and, if measured, memory (MB).
    cost: Mapping[str, float]
    #: How long it took.
    seconds: float


def read(path: Path) -> tuple[Task, ...]:
    """Read the tasks of a workflow instance, parents first.

    ``avgCPU`` (percent of a core) is rounded up to a tenth of a core. The least, and the default,
    is 1: a function takes a thread, and a worker has one per core. Raises ValueError if the file
    cannot be read, is of another version, lacks a field, or its tasks form a cycle.
    """
    try:
        return _ordered(_tasks(json.loads(path.read_text(encoding="utf-8"))))
    except OSError as error:
        problem = error.strerror or str(error)
    except json.JSONDecodeError as error:
        problem = f"line {error.lineno} is not JSON: {error.msg}"
    except UnicodeDecodeError:
        problem = "not JSON: it is not UTF-8 text"
    except ValueError as error:
        problem = str(error)
    raise ValueError(f"{path.name}: {problem}")


def replay(tasks: tuple[Task, ...], id: str, scale: float = 1.0) -> DAG:
    """Return a DAG whose functions wait as long as the tasks took, times a factor.

    Examples
    --------
    >>> from handoff_dask.cli.wfformat import Task, replay
    >>> task = Task("sort_1", "sort", (), {"cpu": 1}, 20.0)
    >>> replay((task,), "sorted", scale=0.1).functions["sort_1"].extra_kwargs
    {'seconds': 2.0}
    """
    dag = DAG(id)
    for task in tasks:
        code, seconds = waiting(task.code), {"seconds": task.seconds * scale}
        function = Function(task.id, task.parents, code, extra_kwargs=seconds, cost=task.cost)
        dag.add_function(function)
    return dag


@cache
def waiting(name: str) -> Callable[..., tuple[float, float]]:
    """Return a function that waits, and returns its start and end (s since epoch).

    Tasks of one program share a function, because durations are learned by the name of the code.
    """

    def work(*inputs: Any, seconds: float) -> tuple[float, float]:
        started = time.time()
        time.sleep(seconds)
        return started, time.time()

    work.__name__ = work.__qualname__ = name
    return work


def cores(percent: float | None) -> float:
    """Convert a measured percentage to cores: rounded up to tenths, at least 1."""
    if percent is None:
        return 1
    return max(1, math.ceil((percent - _NOISE) / 10) / 10)


def _tasks(document: Any) -> dict[str, Task]:
    """Return the tasks of a document by id, in its order."""
    if not isinstance(document, dict):
        raise ValueError("not a workflow: the document is not a JSON object")
    if document.get("schemaVersion") != VERSION:
        raise ValueError(f"WfFormat {document.get('schemaVersion')!r}, not {VERSION!r}")
    workflow = _field(document, "workflow", dict)
    specified, executed = (
        _field(_field(workflow, half, dict), "tasks", list, half)
        for half in ("specification", "execution")
    )
    measured = {_field(facts, "id", str): facts for facts in executed}
    tasks: dict[str, Task] = {}
    for entry in specified:
        id_ = _field(entry, "id", str)
        if id_ in tasks:
            raise ValueError(f"two tasks have the id {id_!r}")
        if id_ not in measured:
            raise ValueError(f"task {id_!r} was not executed: it has no recorded time")
        tasks[id_] = _task(id_, _field(entry, "parents", list, f"task {id_!r}"), measured[id_])
    return tasks


def _field(where: Any, name: str, kind: type, what: str = "") -> Any:
    """Return a field of an object; raise unless it is of the type that it must have."""
    value = where.get(name) if isinstance(where, dict) else None
    if not isinstance(value, kind):
        subject = f"{what}: " if what else ""
        raise ValueError(f"{subject}the field {name!r} is missing, or not a JSON {_JSON[kind]}")
    return value


def _task(id_: str, parents: list[Any], facts: Mapping[str, Any]) -> Task:
    for name in ("runtimeInSeconds", "avgCPU", "memoryInBytes"):
        value = facts.get(name)
        absent = value is None and name != "runtimeInSeconds"
        if not absent and (problem := number_problem(value)):
            raise ValueError(f"{name} of task {id_!r} {problem}")
    cost = {"cpu": cores(facts.get("avgCPU"))}
    if facts.get("memoryInBytes"):
        cost["memory"] = facts["memoryInBytes"] / 1e6
    command = facts.get("command")
    program = command.get("program") if isinstance(command, dict) else None
    code = re.sub(r"\W+", "_", program or re.sub(r"_?(ID)?\d+$", "", id_)) or "task"
    return Task(id_, code, tuple(dict.fromkeys(map(str, parents))), cost, facts["runtimeInSeconds"])


def _ordered(tasks: Mapping[str, Task]) -> tuple[Task, ...]:
    """Return the tasks level by level, parents first, each level in the order of the file."""
    for task in tasks.values():
        for parent in task.parents:
            if parent not in tasks:
                raise ValueError(f"task {task.id!r} has the parent {parent!r}, which is missing")
    levels: dict[str, int] = {}
    try:
        for id_ in TopologicalSorter({t.id: t.parents for t in tasks.values()}).static_order():
            levels[id_] = 1 + max((levels[parent] for parent in tasks[id_].parents), default=0)
    except CycleError as error:
        raise ValueError(f"its tasks form a cycle: {' -> '.join(error.args[1])}") from None
    return tuple(sorted(tasks.values(), key=lambda task: levels[task.id]))
