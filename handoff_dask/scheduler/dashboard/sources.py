"""What the dashboard reads of the scheduler's half. It changes none of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass

from handoff_dask.placement.events import Waiting
from handoff_dask.placement.questions import Questions
from handoff_dask.scheduler.records import FunctionRecord, RunRecord


@dataclass(frozen=True, slots=True)
class Sources:
    """Live views of the scheduler's half: what they hold when they are read is shown."""

    #: The runs on the scheduler, by ``run_id``. Of each: ``spec.run_id``, ``spec.dag_id``,
    #: ``functions``, ``counts``, ``counted()``, ``retries``, ``opened`` and ``arrived``.
    runs: Mapping[str, RunRecord]
    #: The nodes that Dask knows, by key. Of each: ``run``, ``index``, ``is_transform``,
    #: ``row.label``, ``state``, ``entries`` and ``cost``.
    functions: Mapping[Hashable, FunctionRecord]
    #: The addresses of the registered workers.
    workers: Collection[str]
    #: Questions to the placement engine.
    questions: Questions
    #: Returns what a held function waits for.
    why: Callable[[FunctionRecord], Waiting]
    #: Counts the attempts that were given up and whose threads still run, by whose they are.
    ending: Callable[[], Mapping[str, int]]
