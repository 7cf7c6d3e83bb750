"""Dask's representation of a task in a graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dask._task_spec import (
    Alias,
    DataNode,
    GraphNode,
    NestedContainer,
    Task,
    TaskRef,
    _execute_subgraph,
    _identity_cast,
    convert_legacy_graph,
)
from dask.typing import Key
from distributed import Future

__all__ = [
    "Alias",
    "DataNode",
    "Evaluation",
    "GraphNode",
    "NestedContainer",
    "Task",
    "TaskRef",
    "container",
    "convert_legacy_graph",
    "futures_in",
    "is_subgraph",
    "referred_key",
    "without_futures",
]


#: Types that Dask calls with a list of what the container holds.
_CONTAINERS = (list, tuple, set, frozenset, dict)


def container(node: Task, parts: Sequence[Any]) -> Any:
    """Return the list, tuple, set or dict that a task makes of its arguments, which are `parts`.

    None if it does anything else, or if no such container can hold the parts.
    """
    try:
        if isinstance(node, NestedContainer):
            return node.constructor(parts)
        if node.func is _identity_cast:
            return node.kwargs["typ"](parts)
        if node.func in _CONTAINERS and [type(part) for part in parts] == [list]:
            return node.func(*parts)
    except (TypeError, ValueError):
        pass
    return None


def is_subgraph(node: Task) -> bool:
    """Whether a task runs several that were fused."""
    return node.func is _execute_subgraph


def futures_in(value: Any) -> Iterator[Future[Any]]:
    """Yield the futures in a task or another value of a graph."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, Future):
            yield value
        elif isinstance(value, Task):
            pending += [*value.args, *value.kwargs.values()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            pending += value
        elif isinstance(value, dict):
            pending += value.values()


def without_futures(task: Task) -> Task:
    """Return a task in which mere references stand for futures."""
    keys = {future.key for future in futures_in(task)}
    return _with_refs(task, {key: TaskRef(key) for key in keys}) if keys else task


def _with_refs(node: Any, refs: dict[Key, Any]) -> Any:
    if not isinstance(node, Task) or node.dependencies.isdisjoint(refs):
        return node
    changed = node.substitute(refs)
    if not is_subgraph(changed):
        return changed
    inner, *others = changed.args
    inner = {key: _with_refs(value, refs) for key, value in inner.items()}
    return Task(changed.key, changed.func, inner, *others)


def referred_key(argument: Any) -> Key | None:
    """Return the key of the task whose result an argument of a task stands for; None if none."""
    # The oldest Dask makes an alias of each reference.
    return argument.key if isinstance(argument, (TaskRef, Alias)) else None


class Evaluation:
    """Evaluates a task of Dask, such as several that were fused, when its inputs are there."""

    def __init__(self, name: str) -> None:
        self.__name__ = self.__qualname__ = name

    def __call__(self, *values: Any, task: GraphNode, keys: Sequence[Key]) -> Any:
        """Evaluate a task; the values are those of the keys."""
        return task(dict(zip(keys, values, strict=True)))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.__name__}>"
