"""The gate: it opens for a function that has a place, and for no other."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from handoff_dask.attempts.retries import may_retry
from handoff_dask.attempts.states import PLACED, Placement
from handoff_dask.compat import scheduler as compat
from handoff_dask.placement.events import Place
from handoff_dask.scheduler.records import BundleRecord, UnitRecord
from handoff_dask.scheduler.registry import Registry

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState, WorkerState

logger = logging.getLogger(__name__)

#: A set of one worker, and a cost under the worker's own names.
Restrictions: TypeAlias = tuple[frozenset[str], dict[str, float]]


@dataclass(eq=False)
class Gate:
    """Lets the tasks of functions run, each on the worker that it was given.

    Other changes of where they may run are undone, and logged once for each run.
    """

    scheduler: Scheduler
    registry: Registry
    functions: Mapping[Any, UnitRecord]
    #: Returns what the worker of a bundle is told.
    mark: Callable[[BundleRecord, TaskState], Mapping[str, Any]]

    def __post_init__(self) -> None:
        #: By worker and cost: the restrictions of a task, which tasks share; see ``release_hold``.
        self._restrictions: defaultdict[str, dict[Any, Restrictions]] = defaultdict(dict)

    def open(self, record: UnitRecord, place: Place, ws: WorkerState) -> Placement:
        """Let a held function run where the engine placed it."""
        self.keep(record.key)
        ts, row = self.scheduler.tasks[record.key], record.row
        compat.release_hold(ts, *self._restrictions_of(place.worker, record.cost))
        if row.priority:  # the run's is in the graph
            compat.prioritise(ts, record.run.spec.priority + row.priority)
        ts.retries = int(may_retry(record))
        if isinstance(record, BundleRecord):
            mark = (ts.annotations or {}).get("handoff", {})
            mark = {"run": mark.get("run"), **self.mark(record, ts)}
            ts.annotations = {**(ts.annotations or {}), "handoff": mark}
        elif row.source is not None or record.entries or record.cost is not row.cost:
            self._annotate(ts, record, place)
        return self.placement(record, ws)

    def _restrictions_of(self, worker: str, cost: Mapping[str, float]) -> Restrictions:
        """Return the restrictions of a task that claims a cost of a worker."""
        shared = self._restrictions[worker]
        amounts = tuple(cost.items())
        if amounts not in shared:
            names = self.registry.names[worker]
            claim = {own: compat.exact(amount) for name, amount in amounts for own in names[name]}
            shared[amounts] = frozenset((worker,)), claim
        return shared[amounts]

    def worker_changed(self, worker: str) -> None:
        """Forget what was derived from a worker's resources."""
        self._restrictions.pop(worker, None)

    def placement(self, record: UnitRecord, ws: WorkerState) -> Placement:
        """Record which worker a function is sent to now."""
        record.run.workers.setdefault(ws.address, (str(ws.name), ws.host))
        return Placement(ws.address, time.time())

    def keep(self, key: Any) -> None:
        """Undo changes that somebody made to a held task; other tasks are left alone."""
        record = self.functions.get(key)
        if record is None or record.state.name in ("done", "failed"):
            return
        ts = self.scheduler.tasks[key]
        if not isinstance(record.state, PLACED) and not compat.is_held(ts):
            compat.hold(ts)
            self._overruled(record)

    def refuse(self, record: UnitRecord, ts: TaskState, ws: WorkerState) -> None:
        """Take back a function that Dask sends to a worker although it was held."""
        self._overruled(record)
        if ws.address in self.registry.names and ws.address not in self.registry.strangers:
            # Dask sends the task after this transition: the worker must not start it.
            message = {"op": "handoff-withdraw", "number": compat.placement_number(ts)}
            self.scheduler.worker_send(ws.address, message)

        def take_back() -> None:
            stimulus_id = f"handoff-back-{time.time()}"
            self.scheduler.transitions({record.key: "released"}, stimulus_id)

        asyncio.get_running_loop().call_soon(take_back)

    def _annotate(self, ts: TaskState, record: UnitRecord, place: Place) -> None:
        """Annotate a task with its attempt, and with the two ends of a transform."""
        mark = {**(ts.annotations or {}).get("handoff", {})}
        mark["attempt"] = attempt = len(record.entries) + 1
        # Dask's messages hold no larger numbers.
        mark["most"] = min(attempt + record.row.policy.max_retries - record.failures, 2**31)
        mark.pop("cost", None)  # of an attempt before
        if record.cost is not record.row.cost:
            mark["cost"] = record.cost
        if record.row.source is not None:
            mark["source"] = record.run.maker_of(record.row.source)
            mark["target"] = place.target or place.worker
        ts.annotations = {**(ts.annotations or {}), "handoff": mark}

    def _overruled(self, record: UnitRecord) -> None:
        run = record.run
        if not run.overruled:
            run.overruled = True
            logger.warning(
                "Somebody changed the restrictions of functions of %r, %s for example, on the "
                "scheduler. That is ignored: Handoff places them by their cost and node.",
                run.spec.dag_id,
                record.row.label,
            )
