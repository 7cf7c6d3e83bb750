"""What the dashboard reads of the scheduler's half. It changes none of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from handoff_dask.placement.events import Waiting
    from handoff_dask.placement.questions import Questions
    from handoff_dask.scheduler.records import FunctionRecord, RunRecord


@dataclass(frozen=True, slots=True)
class Sources:
    """Live views of the scheduler's half: what they hold when they are read is shown.

    Attributes
    ----------
    runs
        The runs on the scheduler, by ``run_id``. Of each: ``spec.run_id``, ``spec.dag_id``,
        ``functions``, ``counts``, ``counted()``, ``retries``, ``opened`` and ``arrived``.
    functions
        The nodes that Dask knows, by key. Of each: ``run``, ``index``, ``is_transform``,
        ``row.label``, ``state``, ``entries`` and ``cost``.
    workers
        The addresses of the registered workers.
    questions
        Questions to the placement engine.
    why
        Returns what a held function waits for.
    ending
        Counts the attempts that were given up and whose threads still run, by whose they are.
    """

    runs: Mapping[str, RunRecord]
    functions: Mapping[Hashable, FunctionRecord]
    workers: Collection[str]
    questions: Questions
    why: Callable[[FunctionRecord], Waiting]
    ending: Callable[[], Mapping[str, int]]
