"""The scheduler's half: scheduler events in, engine events out, and the engine's decisions back.

An adapter. It keeps the records of the runs; who runs where and when is decided in
``handoff_dask.placement``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distributed import SchedulerPlugin, Status

from handoff_dask import _bootstrap, _compat, config, dashboard
from handoff_dask.claims import Claims, annotate
from handoff_dask.errors import HandoffError
from handoff_dask.foreign import Foreign
from handoff_dask.losses import Losses
from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import Place, Refuse
from handoff_dask.records import FunctionRecord, RunRecord
from handoff_dask.registry import Registry
from handoff_dask.retries import Retries
from handoff_dask.service import Service
from handoff_dask.shipping import Shipped
from handoff_dask.task import TOPIC
from handoff_dask.worker import send_plugins, take_plugins_back

if TYPE_CHECKING:
    from distributed import Scheduler

logger = logging.getLogger(__name__)


class HandoffPlugin(Shipped, SchedulerPlugin):
    """Places the functions of Handoff runs, records where they ran, and enforces their retries.

    Registered by :func:`handoff_dask.execute` on first use, or by the operator's preload.
    """

    name = "handoff"
    idempotent = True

    async def start(self, scheduler: Scheduler) -> None:
        """Begin: install the handlers and ask every worker what it offers."""
        if self.name in scheduler.plugins:  # another client, or the preload, was a moment faster
            return
        scheduler.add_plugin(self, name=self.name, idempotent=True)
        self.scheduler = scheduler
        self.engine = Engine(
            horizon=config.seconds("commit-ahead"),
            lost_grace=config.seconds("lost-capacity-grace"),
        )
        self.runs: dict[str, RunRecord] = {}
        #: Every node that Dask knows, by key.
        self.records: dict[Any, FunctionRecord] = {}
        #: Held functions that are not tried again, and why.
        self.doomed: list[tuple[FunctionRecord, Exception]] = []
        self.retries = Retries(self)
        self.losses = Losses(self)
        self.foreign = Foreign(self)
        self._asked = False
        self._timer: asyncio.TimerHandle | None = None
        self._limit = _compat.keep_unrunnable(
            scheduler, lambda: [key for key, r in self.records.items() if r.state == "held"]
        )
        self.registry = Registry(self)
        self.claims = Claims(self.registry.names)
        self.service = Service(self)
        self.history = dashboard.install(self)
        self._remove_handlers = _compat.install_handlers(
            scheduler,
            {**self.registry.handlers, **self.service.handlers},
            {"handoff_gone": self.service.gone},
        )
        self.registry.publish()
        await send_plugins(scheduler)

    def restart(self, scheduler: Scheduler) -> None:
        """Forget all runs: the scheduler has forgotten all tasks, and what is known of it."""
        for run in list(self.runs.values()):
            self.forget(run)
        self.registry.publish()

    async def uninstall(self) -> None:
        """Leave the scheduler and its workers as they were."""
        for run in list(self.runs.values()):
            self.cancel(run)
            self.forget(run)
        await self.registry.withdraw()
        await take_plugins_back(self.scheduler)
        self._remove_handlers()
        self.scheduler.task_metadata.pop(self.name, None)
        self.scheduler.remove_plugin(self.name)
        await self.close()
        _bootstrap.remove()

    async def close(self) -> None:
        """Stop."""
        self.history.close()
        if self._limit is not None:
            self._limit.stop()
        if self._timer is not None:
            self._timer.cancel()
        self.losses.close()

    # Workers

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """Forget a worker."""
        self.claims.changed(worker)
        lost_at = time.monotonic() if self.registry.may_return(worker) else None
        if self.registry.removed(worker):
            self.engine.worker_removed(worker, lost_at)
            self.retries.worker_removed(worker)
            self.losses.worker_removed(worker)
            self.ask()

    # Runs

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Forget the runs of a client that went away."""
        for run in list(self.runs.values()):
            if run.spec.client == client and not run.spec.detach:
                self.forget(run)

    def cancel(self, run: RunRecord) -> None:
        """Stop a run, whoever wants it; its tasks are forgotten, and it with them."""
        tasks = [ts for r in run.functions if (ts := self.scheduler.tasks.get(r.key)) is not None]
        keys = [ts.key for ts in tasks]
        for client in {cs.client_key for ts in tasks for cs in ts.who_wants or ()}:
            self.scheduler.client_releases_keys(keys=keys, client=client)
        self.scheduler.clients.pop(run.spec.keeper, None)
        self.scheduler.report({"op": "cancelled-keys", "keys": keys})

    def forget(self, run: RunRecord) -> None:
        """Drop all there is of a run."""
        if self.runs.pop(run.spec.run_id, None) is None:
            return
        # Later: the scheduler may be going through its clients.
        loop = asyncio.get_running_loop()
        loop.call_soon(self.scheduler.clients.pop, run.spec.keeper, None)
        self.history.run_closed(run)
        self.engine.run_closed(run.spec.run_id)
        if run.limit is not None:
            run.limit.cancel()
        for record in run.functions:
            self.records.pop(record.key, None)
        self.ask()

    # The gate

    def update_graph(
        self,
        scheduler: Scheduler,
        *,
        keys: set[Any],
        annotations: dict[str, dict[Any, Any]],
        **kwargs: Any,
    ) -> None:
        """Hold every function of a new graph, before any of them can start."""
        run: RunRecord | None = None
        for key, mark in annotations.get("handoff", {}).items():
            run = self.runs.get(mark["run"])
            if run is None or key in self.records:
                continue
            self.records[key] = run.functions[mark["index"]]
            run.alive += 1
            _compat.hold(scheduler.tasks[key])
        if run is not None:
            if run.spec.detach:
                scheduler.client_desires_keys(keys, run.spec.keeper)
            run.arrived.set()

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Follow a task from one state to the next."""
        record = self.records.get(key)
        if record is None:
            if start == "processing" or finish == "processing":
                self.foreign.follow(key, finish)
            return
        if finish == "no-worker":
            self.ready(record)
        elif start == "processing" or finish == "memory":
            self._left(record, start, finish, kwargs)
        elif start == "no-worker" and finish != "processing":
            self.engine.function_withdrawn(key)
            record.move("waiting")
        elif start == "memory" and finish == "released":
            # Should its result be asked for again, it passes the gate again.
            _compat.hold(self.scheduler.tasks[key])
        if finish in ("released", "waiting") and record.run.failed:
            self._orphan(key)
        if finish == "forgotten":
            del self.records[key]
            record.run.alive -= 1
            if not record.run.alive:
                self.forget(record.run)
        elif finish == "erred" and record.state != "failed":
            record.move("failed")

    def _orphan(self, key: Any) -> None:
        """Fail, after this, what lost its result and cannot have it again."""
        if _compat.lacks_failed(self.scheduler.tasks[key]):
            asyncio.get_running_loop().call_soon(
                _compat.fail_orphan, self.scheduler, key, f"handoff-orphan-{time.time()}"
            )

    def ready(self, record: FunctionRecord) -> None:
        """Ask the engine for a place: the function's inputs are there."""
        record.move("held")
        self.ask()
        if record.lost is not None:
            return  # not before it is known what became of the attempt before
        now = time.monotonic()
        terms: dict[str, Any] = {}
        if record.attempt:
            error = self.retries.verdict(record)
            if error is not None:
                self.doomed.append((record, error))
                return
            found = self.retries.terms(record, now)
            record.parked = found is None
            if found is None:
                return
            terms = found
        inputs: dict[str, float] = {}
        for dependency in self.scheduler.tasks[record.key].dependencies:
            for ws in dependency.who_has or ():
                inputs[ws.address] = inputs.get(ws.address, 0) + dependency.nbytes
        self.engine.function_ready(record.key, now, inputs=inputs, **terms)

    def _left(
        self, record: FunctionRecord, start: str, finish: str, facts: Mapping[str, Any]
    ) -> None:
        """Take down how an attempt ended."""
        ts = self.scheduler.tasks[record.key]
        failure, record.failure = record.failure, None
        spans = [s for s in facts.get("startstops") or () if s["action"] == "compute"]
        run, started, stopped = record.run, record.placed, time.time()
        if spans:
            started, stopped = spans[-1]["start"], spans[-1]["stop"]
        self.engine.attempt_ended(
            record.key,
            time.monotonic(),
            duration=stopped - started if spans and finish == "memory" else None,
            done=finish == "memory",
        )
        if finish == "memory":
            if not spans or (record.worker, started) in record.made:
                # The worker had the result already, which was lost to the scheduler: no start.
                record.attempt -= 1
                record.move("done")
                self._after(record, finish)
                return
            record.made += ((record.worker, started),)
            if start == "processing" or record.lost is not None:
                run.ended(record, "ok", started, stopped)
            else:
                run.corrected(record, started, stopped)
            record.lost = None
            record.move("done")
        elif failure is not None:
            run.ended(
                record,
                failure["outcome"],
                failure["started"],
                failure["stopped"],
                failure["error_type"],
                failure["message"],
            )
            self.retries.failed(record, failure)
            if finish == "erred":
                run.failed[record.index] = failure["message"]
                if record.problem is not None:
                    _compat.replace_exception(ts, self.retries.verdict(record))
        elif finish == "erred":
            # Of something before the function itself: what it runs in could not be loaded.
            error, _, message = (ts.exception_text or "").partition("(")
            run.ended(record, "error", started, stopped, error, message.rstrip(")"))
            run.failed[record.index] = ts.exception_text or "it erred"
        else:
            self.losses.add(record, _compat.placement_number(ts), _compat.died_under(ts))
            self._after(record, finish)
            return
        self.history.attempt_ended(record)
        self._after(record, finish)

    def _after(self, record: FunctionRecord, finish: str) -> None:
        if record.state == "running":
            record.move("waiting")
        if finish != "memory":
            _compat.hold(self.scheduler.tasks[record.key])
        self.ask()

    def log_event(self, topic: str, msg: Any) -> None:
        """Hear of failed attempts, and of workers that pause, resume or close."""
        if not isinstance(msg, dict):
            return
        action = msg.get("action")
        if topic == TOPIC and isinstance(action, str):
            self.retries.heard(action, msg)
        elif action == "worker-status-change" and topic in self.registry.names:
            # The event comes before Dask has taken the change in.
            self.engine.worker_running(topic, msg["status"] == Status.running.name)
            self.losses.status_changed(topic, msg["status"])
            self.registry.status_changed(topic, msg["status"])
            self.ask()

    def ask(self) -> None:
        """Have the engine decide once, when the events of this tick of the loop are in."""
        if not self._asked:
            self._asked = True
            asyncio.get_running_loop().call_soon(self._decide)

    def _decide(self) -> None:
        self._asked = False
        stimulus_id = f"handoff-{time.time()}"
        doomed, self.doomed = self.doomed, []
        for record, error in doomed:
            self._fail(record, error, stimulus_id)
        placed: dict[Any, Any] = {}
        for decision in self._poll(stimulus_id):
            if isinstance(decision, Place):
                if self._place(decision):
                    placed[decision.key] = "processing"
            else:
                self._refuse(decision, stimulus_id)
        if placed:
            self.scheduler.transitions(placed, stimulus_id)
        self._wake()

    def _poll(self, stimulus_id: str) -> list[Place | Refuse]:
        """Ask the engine. Should it break, the functions that wait for it fail: nothing hangs."""
        try:
            return self.engine.poll(time.monotonic())
        except Exception as error:
            logger.exception("The placement engine failed")
            problem = HandoffError(f"the placement engine failed, which is a bug: {error!r}")
            for record in [r for r in self.records.values() if r.state == "held"]:
                self._fail(record, problem, stimulus_id)
            return []

    def _place(self, place: Place) -> bool:
        record = self.records.get(place.key)
        if record is not None and self.retries.parks(record, place.worker):
            return False
        ws = self.scheduler.workers.get(place.worker)
        if record is None or ws is None or ws not in self.scheduler.running:
            # The worker changed without a word.
            self.engine.attempt_ended(place.key, time.monotonic())
            if place.worker in self.registry.names:
                self.engine.worker_running(place.worker, False)
            if record is not None:
                self.ready(record)
            return False
        ts, row = self.scheduler.tasks[record.key], record.row
        if not _compat.is_held(ts):
            self.engine.attempt_ended(record.key, time.monotonic())
            problem = "somebody changed its cost or restrictions on the scheduler while it was held"
            self.doomed.append((record, HandoffError(f"function {row.label}: {problem}")))
            self.ask()
            return False
        _compat.release_hold(ts, *self.claims.of(place.worker, record.cost))
        ts.retries = int(record.failures < row.policy.max_retries)
        record.attempt += 1
        record.worker = place.worker
        record.placed = time.time()
        record.move("running")
        if place.worker not in record.run.workers:
            record.run.workers[place.worker] = (str(ws.name), ws.host)
        if row.source is not None or record.attempt > 1:
            annotate(ts, record, place)
        return True

    def _refuse(self, refuse: Refuse, stimulus_id: str) -> None:
        record = self.records.get(refuse.key)
        if record is not None:
            self._fail(record, self.retries.refused(record, refuse.finding), stimulus_id)

    def _fail(self, record: FunctionRecord, error: Exception, stimulus_id: str) -> None:
        if record.state != "held" or record.key not in self.records:
            return  # cancelled meanwhile
        record.run.failed[record.index] = str(error)
        _compat.fail_task(self.scheduler, record.key, error, stimulus_id)

    def _wake(self) -> None:
        """Be called again when the engine has to act without an event."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = self.engine.wake_at()
        if at is not None:
            delay = max(0.0, at - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._decide)
