"""Dask's form of a task in a graph, which is not public API."""

from __future__ import annotations

from dask._task_spec import GraphNode, Task, TaskRef

__all__ = ["GraphNode", "Task", "TaskRef"]
