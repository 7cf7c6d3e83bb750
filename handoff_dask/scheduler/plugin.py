"""The scheduler's plugin: it puts the parts together, and passes on what Dask tells it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

from distributed import SchedulerPlugin, Status

from handoff_dask import config
from handoff_dask.attempts.endings import Endings
from handoff_dask.attempts.losses import End, Lost
from handoff_dask.compat import scheduler as compat
from handoff_dask.errors import HandoffError
from handoff_dask.placement.engine import Engine
from handoff_dask.scheduler import dashboard
from handoff_dask.scheduler.decider import Decider
from handoff_dask.scheduler.event_stream import EventStream
from handoff_dask.scheduler.foreign import Foreign
from handoff_dask.scheduler.gate import Gate
from handoff_dask.scheduler.inputs import Inputs
from handoff_dask.scheduler.inquiries import Inquiries
from handoff_dask.scheduler.lifecycle import Lifecycle
from handoff_dask.scheduler.measurements import Measurements
from handoff_dask.scheduler.member_requests import MemberRequests
from handoff_dask.scheduler.membership import Bundles
from handoff_dask.scheduler.reasons import Reasons
from handoff_dask.scheduler.records import BundleRecord, UnitRecord
from handoff_dask.scheduler.registry import Registry
from handoff_dask.scheduler.runs import Runs
from handoff_dask.scheduler.service import Service
from handoff_dask.shipping import bootstrap
from handoff_dask.shipping.parcel import Shipped
from handoff_dask.wire.messages import FunctionRow, RunSpec, Stop
from handoff_dask.wire.run_events import Recorded
from handoff_dask.worker.task import TOPIC
from handoff_dask.worker.worker_plugin import send_plugins, take_plugins_back

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import WorkerState


class HandoffPlugin(Shipped, SchedulerPlugin):
    """Places the functions of Handoff runs, records where they ran, and enforces their retries.

    Registered by :func:`handoff_dask.execute` on first use, or by the operator's preload.
    """

    name = "handoff"
    idempotent = True

    async def start(self, scheduler: Scheduler) -> None:
        """Begin: put the parts together, and ask every worker what it offers."""
        if self.name in scheduler.plugins:  # another client, or the preload, was a moment faster
            return
        scheduler.add_plugin(self, name=self.name, idempotent=True)
        self.scheduler = scheduler
        self.engine = engine = Engine(
            horizon=config.seconds("commit-ahead"),
            lost_grace=config.seconds("lost-capacity-grace"),
        )
        #: What hears of events: the dashboard, and clients that asked for them.
        self._listeners: list[Callable[[Recorded], None]] = []
        self.endings = Endings(engine)
        self.registry = Registry(scheduler, engine, self._worker_joined, self._worker_left)
        self.runs = Runs(
            scheduler,
            engine,
            self.endings,
            self._emit,
            self._end,
            self._cancel_member,
            self._learned_seconds,
            self._remembered,
            self._ask,
        )
        self.measurements = Measurements(self.runs, engine.questions, self._claim_again)
        self.bundles = Bundles(scheduler, engine, self.runs, self.measurements.bundled, self._ask)
        self.requests = MemberRequests(scheduler, self.runs, self.bundles)
        self.functions = self.runs.functions
        self.foreign = Foreign(scheduler, engine, self.registry.names, self._ask)
        self.gate = Gate(scheduler, self.registry, self.functions, self.bundles.mark)
        self.inputs = Inputs(scheduler, self.functions, self._able, self.runs.maker)
        self.inquiries = Inquiries(scheduler, self._settle, self._ask)
        self.lifecycle = Lifecycle(
            scheduler,
            engine,
            self.endings,
            self.runs,
            self.registry,
            self.foreign,
            self.gate,
            self.inputs,
            self.inquiries,
            self.bundles,
            self.measurements,
            self._ask,
        )
        self.decider = Decider(
            scheduler,
            engine,
            self.lifecycle.lives,
            self.runs,
            self.registry,
            self.gate,
            self.inputs,
            self.bundles.dissolve,
        )
        self.reasons = Reasons(engine, self.endings, self.inquiries, self.functions)
        self.service = Service(
            scheduler,
            engine,
            self.runs,
            self.registry,
            self.endings,
            self.inputs,
            self.inquiries,
            self.reasons,
            self.requests,
            self.measurements,
            self.uninstall,
        )
        self.history = dashboard.History(self.runs)
        self.overview = dashboard.Overview(
            scheduler,
            self.history,
            self.runs,
            self.functions,
            self.registry.names,
            engine.questions,
            self.reasons.why,
            self.endings.counts,
        )
        dashboard.install(self.overview)
        self._listeners += [self.history, EventStream(scheduler, self.runs), self.measurements]
        self._limit = compat.keep_unrunnable(scheduler, self.name)
        self._unwatch = compat.watch_clients(
            scheduler, self.runs.cancelled, self._retrying, self.bundles.let_go
        )
        self._remove_handlers = compat.install_handlers(
            scheduler,
            {
                **self.registry.handlers,
                **self.service.handlers,
                "handoff_unusable": self.inputs.unusable,
                "restart": self._restart,
            },
            {
                "handoff_gone": self.service.last_word,
                "handoff-portion": self._portion,
                "handoff-members": self.bundles.reported,
                "handoff-lacking": self.bundles.lacking,
                "handoff-take": self._take,
            },
        )
        self.registry.publish()
        await send_plugins(scheduler)

    def restart(self, scheduler: Scheduler) -> None:
        """Forget all runs: the scheduler has forgotten its tasks and its metadata."""
        self._stop_all("the cluster was restarted")
        for run in list(self.runs.values()):
            self.runs.forget(run)
        self.registry.publish()

    async def _restart(self, **kwargs: Any) -> None:
        """Restart the cluster for a client; Dask releases all tasks before it tells a plugin."""
        self._stop_all("the cluster was restarted")
        await self.scheduler.restart(**kwargs)

    def _stop_all(self, reason: str) -> None:
        for run in list(self.runs.values()):
            self.runs.stop(run, Stop("cancelled", reason))

    async def uninstall(self) -> None:
        """Leave the scheduler and its workers as they were."""
        reason = "Handoff was taken off the cluster"
        for run in list(self.runs.values()):
            self.runs.stop(run, Stop("cancelled", reason))
            self.runs.release(run)
            # What tasks of others need must not wait for ever.
            for record in [r for r in run.units if r.key in self.functions]:
                ts = self.scheduler.tasks.get(record.key)
                if ts is None:
                    continue
                if ts.state == "no-worker":
                    error = HandoffError(f"function {record.row.label}: {reason}")
                    compat.fail_task(self.scheduler, record.key, error, "handoff-uninstall")
                elif ts.state == "waiting":
                    compat.free(ts)
            self.runs.forget(run)
        await self.registry.withdraw()
        await take_plugins_back(self.scheduler)
        self._remove_handlers()
        self.scheduler.task_metadata.pop(self.name, None)
        self.scheduler.remove_plugin(self.name)
        await self.close()
        bootstrap.remove()

    async def close(self) -> None:
        """Stop."""
        for part in (self.history, self.inputs, self.inquiries, self.decider, self.runs):
            part.close()
        await self.measurements.close()
        self._unwatch()
        if self._limit is not None:
            self._limit.stop()

    # What Dask calls

    def update_graph(
        self,
        scheduler: Scheduler,
        *,
        client: str,
        keys: set[Any],
        annotations: dict[str, dict[Any, Any]],
        **kwargs: Any,
    ) -> None:
        """Hold every function of a new graph, before any of them can start."""
        for run in self.runs.graph_arrived(client, keys, annotations):
            asked, run.asked = run.asked, []
            for answer in asked:
                asyncio.get_running_loop().call_soon(answer)

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Follow a task from one state to the next."""
        self.lifecycle.transition(key, start, finish, kwargs)

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """Forget a worker."""
        self._worker_left(worker)

    def log_event(self, topic: str, msg: Any) -> None:
        """Hear of failed attempts, and of workers that pause, resume or close."""
        if not isinstance(msg, dict):
            return
        action = msg.get("action")
        if topic == TOPIC and isinstance(action, str):
            self.lifecycle.reported(action, msg)
        elif action == "remove-client" and topic == "all":  # ahead of what Dask releases for it
            self.runs.client_gone(msg["client"])
        elif action in ("add-worker", "worker-status-change") and topic != "all":
            # The event comes before Dask looks for tasks that may run there.
            for ts in self.scheduler.unrunnable:
                self.gate.keep(ts.key)
                compat.let_any_worker_take(ts)
            if "status" in msg and topic in self.registry.names:
                self.engine.worker_running(topic, msg["status"] == Status.running.name)
                self.inquiries.status_changed(topic, msg["status"])
                self.registry.status_changed(topic, msg["status"])
                self._ask()

    # What the parts tell each other

    def _worker_joined(self, ws: WorkerState) -> None:
        self.inquiries.worker_joined(ws.address, ws.nanny, ws.server_id)
        self.gate.worker_changed(ws.address)
        # Plain tasks may have started before it was known what they claim.
        for ts in ws.processing:
            if ts.key not in self.functions:
                self.foreign.follow(ts.key, "processing")
        self.measurements.workers_changed()
        self._ask()

    def _worker_left(self, worker: str) -> None:
        self.gate.worker_changed(worker)
        lost_at = time.monotonic() if self.registry.may_return(worker) else None
        if self.registry.removed(worker):
            self.engine.worker_removed(worker, lost_at)
            self.endings.worker_removed(worker)
            self.inquiries.worker_removed(worker)
            self.measurements.workers_changed()
            self._ask()

    def _portion(self, client: str, run_id: str, portion: bytes) -> None:
        self.runs.portion_arrived(run_id, portion)

    def _take(self, client: str, run_id: str, indices: list[int]) -> None:
        self.requests.take(run_id, indices, client)

    def _retrying(self, keys: list[Any], client: str | None) -> None:
        self.runs.check_retried(keys)
        self.requests.retried(keys, client)

    def _cancel_member(self, record: BundleRecord, position: int) -> bool:
        return self.requests.cancel(record, position)

    def _learned_seconds(self, spec: RunSpec, prefix: str) -> float | None:
        return self.measurements.seconds(spec, prefix)

    def _remembered(
        self, spec: RunSpec, rows: Iterable[FunctionRow]
    ) -> Iterable[tuple[FunctionRow, float]]:
        return self.measurements.remembered(spec, rows)

    def _claim_again(self, record: UnitRecord) -> None:
        self.lifecycle.lives.claim_again(record, time.monotonic())
        self._ask()

    def _emit(self, event: Recorded) -> None:
        for listener in self._listeners:
            listener(event)

    def _ask(self) -> None:
        self.decider.ask()

    def _end(self, record: UnitRecord) -> None:
        self.lifecycle.end(record)

    def _settle(self, record: UnitRecord, lost: Lost, end: End) -> None:
        self.lifecycle.lives.settled(record, lost, end, time.monotonic())

    def _able(self, record: UnitRecord) -> Collection[str]:
        return self.engine.questions.feasibility(record.cost, record.row.pin).able
