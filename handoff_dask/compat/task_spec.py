"""Dask's representation of a task in a graph."""

from __future__ import annotations

from dask._task_spec import GraphNode, Task, TaskRef

__all__ = ["GraphNode", "Task", "TaskRef"]
