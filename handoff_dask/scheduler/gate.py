"""The gate: it opens for a function that has a place, and for no other."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from handoff_dask.compat import scheduler as compat
from handoff_dask.placement.events import Place
from handoff_dask.scheduler.claims import Claims
from handoff_dask.scheduler.records import FunctionRecord

if TYPE_CHECKING:
    from distributed.scheduler import TaskState, WorkerState

    from handoff_dask.scheduler.plugin import HandoffPlugin

logger = logging.getLogger(__name__)


class Gate:
    """Lets the tasks of a plugin's functions run, each on the worker that it was given.

    Other changes of where they may run are undone, and logged once for each run.
    """

    def __init__(self, plugin: HandoffPlugin) -> None:
        self.plugin = plugin
        self.scheduler = plugin.scheduler
        self.claims = Claims(plugin.registry.names)

    def open(self, record: FunctionRecord, place: Place, ws: WorkerState) -> None:
        """Let a held function run where it was placed."""
        self.keep(record.key)
        ts, row = self.scheduler.tasks[record.key], record.row
        compat.release_hold(ts, *self.claims.of(place.worker, record.cost))
        ts.retries = int(record.failures < row.policy.max_retries)
        self._begin(record, ws)
        if row.source is not None or record.attempt > 1:
            self._annotate(ts, record, place)

    def keep(self, key: Any) -> None:
        """Undo changes that somebody made to a held task; other tasks are left alone."""
        record = self.plugin.records.get(key)
        if record is None or record.state not in ("waiting", "held", "cancelled"):
            return
        ts = self.scheduler.tasks[key]
        if not compat.is_held(ts):
            compat.hold(ts)
            self._overruled(record)

    def slipped(self, record: FunctionRecord) -> None:
        """Take back a function that Dask sent to a worker although it was held."""
        ts = self.scheduler.tasks[record.key]
        ws = ts.processing_on
        assert ws is not None
        self._overruled(record)
        self.plugin.engine.function_withdrawn(record.key)
        self._begin(record, ws)
        registry = self.plugin.registry
        if ws.address in registry.names and ws.address not in registry.strangers:
            # Dask sends the task after this transition: the worker must not start it.
            message = {"op": "handoff-withdraw", "number": compat.placement_number(ts)}
            self.scheduler.worker_send(ws.address, message)

        def take_back() -> None:
            stimulus_id = f"handoff-back-{time.time()}"
            self.scheduler.transitions({record.key: "released"}, stimulus_id)

        asyncio.get_running_loop().call_soon(take_back)

    def _begin(self, record: FunctionRecord, ws: WorkerState) -> None:
        record.attempt += 1
        record.worker = ws.address
        record.placed = time.time()
        record.seceded = False
        record.move("running")
        record.run.workers.setdefault(ws.address, (str(ws.name), ws.host))

    def _annotate(self, ts: TaskState, record: FunctionRecord, place: Place) -> None:
        """Annotate a task with the attempt's number and the two ends of a transform."""
        mark = {**(ts.annotations or {}).get("handoff", {}), "attempt": record.attempt}
        if record.cost is not record.row.cost:
            mark["cost"] = record.cost
        if record.row.source is not None:
            mark["source"] = record.run.functions[record.row.source].worker
            mark["target"] = place.target or place.worker
        ts.annotations = {**(ts.annotations or {}), "handoff": mark}

    def _overruled(self, record: FunctionRecord) -> None:
        run = record.run
        if not run.overruled:
            run.overruled = True
            logger.warning(
                "Somebody changed the restrictions of functions of %r, %s for example, on the "
                "scheduler. That is ignored: Handoff places them by their cost and node.",
                run.spec.dag_id,
                record.row.label,
            )
