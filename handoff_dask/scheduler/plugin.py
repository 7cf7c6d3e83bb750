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

from handoff_dask import config
from handoff_dask.attempts.states import UNENDED
from handoff_dask.compat import scheduler as compat
from handoff_dask.errors import HandoffError
from handoff_dask.model.attempt import Attempt
from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import Place, Refuse
from handoff_dask.scheduler import dashboard
from handoff_dask.scheduler.ending import Endings
from handoff_dask.scheduler.foreign import Foreign
from handoff_dask.scheduler.gate import Gate
from handoff_dask.scheduler.inputs import Inputs
from handoff_dask.scheduler.losses import Losses
from handoff_dask.scheduler.records import FunctionRecord, RunRecord
from handoff_dask.scheduler.registry import Registry
from handoff_dask.scheduler.retries import Retries
from handoff_dask.scheduler.service import Service
from handoff_dask.shipping import bootstrap
from handoff_dask.shipping.parcel import Shipped
from handoff_dask.wire.events import AttemptEnded, RunClosed
from handoff_dask.wire.messages import Stop
from handoff_dask.worker.task import TOPIC
from handoff_dask.worker.worker_plugin import send_plugins, take_plugins_back

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
        self.endings = Endings(self)
        self.losses = Losses(self)
        self.foreign = Foreign(self)
        self.inputs = Inputs(self)
        self._asked = False
        self._timer: asyncio.TimerHandle | None = None
        self._limit = compat.keep_unrunnable(scheduler, self.name)
        self._unwatch = compat.watch_clients(scheduler, self.cancelled, self.check_retried)
        self.registry = Registry(self)
        self.gate = Gate(self)
        self.service = Service(self)
        self.history = dashboard.install(
            scheduler,
            dashboard.Sources(
                runs=self.runs,
                functions=self.records,
                workers=self.registry.names,
                questions=self.engine.questions,
                why=self.endings.why,
                ending=self.endings.counts,
            ),
        )
        self._remove_handlers = compat.install_handlers(
            scheduler,
            {**self.registry.handlers, **self.service.handlers, **self.inputs.handlers},
            {"handoff_gone": self.service.gone},
        )
        self.registry.publish()
        await send_plugins(scheduler)

    def restart(self, scheduler: Scheduler) -> None:
        """Forget all runs: the scheduler has forgotten its tasks and its metadata."""
        for run in list(self.runs.values()):
            self.stop(run, Stop("cancelled", "the cluster was restarted"))
            self.forget(run)
        self.registry.publish()

    async def uninstall(self) -> None:
        """Leave the scheduler and its workers as they were."""
        reason = "Handoff was taken off the cluster"
        for run in list(self.runs.values()):
            self.stop(run, Stop("cancelled", reason))
            self.service.let_go(run)
            # What tasks of others need must not wait for ever.
            for record in [r for r in run.functions if r.key in self.records]:
                if record.state == "held":
                    error = HandoffError(f"function {record.row.label}: {reason}")
                    compat.fail_task(self.scheduler, record.key, error, "handoff-uninstall")
                elif record.state == "waiting":
                    compat.free(self.scheduler.tasks[record.key])
            self.forget(run)
        await self.registry.withdraw()
        await take_plugins_back(self.scheduler)
        self._remove_handlers()
        self.scheduler.task_metadata.pop(self.name, None)
        self.scheduler.remove_plugin(self.name)
        await self.close()
        bootstrap.remove()

    async def close(self) -> None:
        """Stop."""
        for part in (self.history, self.inputs, self.losses):
            part.close()
        self._unwatch()
        if self._limit is not None:
            self._limit.stop()
        if self._timer is not None:
            self._timer.cancel()

    # Workers

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """Forget a worker."""
        self.gate.claims.changed(worker)
        lost_at = time.monotonic() if self.registry.may_return(worker) else None
        if self.registry.removed(worker):
            self.engine.worker_removed(worker, lost_at)
            self.endings.worker_removed(worker)
            self.losses.worker_removed(worker)
            self.ask()

    # Runs

    def _client_gone(self, client: str) -> None:
        """Stop the runs of a client that goes away, except those that the cluster keeps."""
        for run in list(self.runs.values()):
            if run.spec.client == client and not (run.spec.detach and run.arrived.is_set()):
                came = "" if run.arrived.is_set() else " before its functions had arrived"
                self.stop(run, Stop("abandoned", f"its client went away{came}"))

    def stop_within(self, key: Any) -> None:
        """Stop the runs that an attempt, now given up, has submitted; after the current event."""
        problem = "the function that submitted it was given up"
        for run in self.runs.values():
            if run.spec.within == key and not run.spec.detach:
                stop = Stop("cancelled", problem)
                asyncio.get_running_loop().call_soon(self.stop, run, stop)

    def stop(self, run: RunRecord, stop: Stop) -> None:
        """End a run that is not over. Only what plain tasks need is still computed.

        Finished results stay with whoever holds them.
        """
        if run.stop is not None or (run.over and stop.kind != "failed"):
            return
        run.stop = stop
        keys = []
        clients: set[str] = set()
        for record in run.functions:
            if record.state not in UNENDED:
                continue
            ts = self.scheduler.tasks.get(record.key)
            if ts is None:
                record.move("cancelled")
            else:
                keys.append(record.key)
                clients.update(cs.client_key for cs in ts.who_wants or ())
        for client in clients:
            self.scheduler.client_releases_keys(keys=keys, client=client)
        if keys:
            self.scheduler.report({"op": "cancelled-keys", "keys": keys})
        if not run.alive:
            self.forget(run)

    def cancelled(self, keys: list[Any], client: str, force: bool) -> list[Any]:
        """Stop the runs whose functions a client cancels; return the keys that are not ours."""
        scheduler = self.scheduler
        others: list[Any] = []
        ours: list[Any] = []
        gone: list[Any] = []
        releasing = {client}
        runs: dict[RunRecord, FunctionRecord] = {}
        for key in keys:
            record = self.records.get(key)
            if record is None:
                others.append(key)
                continue
            ours.append(key)
            wanting = {cs.client_key for cs in scheduler.tasks[key].who_wants or ()}
            if force or wanting <= {client}:
                runs.setdefault(record.run, record)
                gone.append(key)
                releasing |= wanting
        for run, record in runs.items():
            problem = f"function {record.row.label} was cancelled on the cluster"
            self.stop(run, Stop("cancelled", problem))
        for name in releasing & scheduler.clients.keys():
            scheduler.client_releases_keys(keys=ours if name == client else gone, client=name)
        if gone:
            scheduler.report({"op": "cancelled-keys", "keys": gone})
        return others

    def check_retried(self, keys: list[Any]) -> None:
        """Raise if a client may not retry these keys.

        Raises
        ------
        HandoffError
            The run of a function was stopped.
        """
        for key in keys:
            record = self.records.get(key)
            stopped = record.run.stop if record else self.service.stopped_by(key)
            if stopped is not None:
                raise HandoffError(
                    f"{key!r} cannot be tried again: its run was stopped ({stopped.problem}). "
                    'Submit the DAG again, or with on_error="continue".'
                )

    def forget(self, run: RunRecord) -> None:
        """Drop all there is of a run."""
        if self.runs.pop(run.spec.run_id, None) is None:
            return
        # Later: the scheduler may be going through its clients.
        loop = asyncio.get_running_loop()
        loop.call_soon(self.scheduler.clients.pop, run.spec.keeper, None)
        if run.stop is not None and not run.forgotten:
            self.service.remember(run)
        for record in run.functions:
            if record.state == "running" and record.key in self.scheduler.tasks:
                self.losses.add(record)  # its tasks are about to be released
            self.records.pop(record.key, None)
        self.endings.run_over(run)
        self.history(RunClosed(run.spec.run_id, time.time()))
        run.arrived.set()  # nobody needs to wait for its graph any more
        self.engine.run_closed(run.spec.run_id)
        if run.limit is not None:
            run.limit.cancel()
        self.ask()

    # The gate

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
        run: RunRecord | None = None
        late = []
        for key, mark in annotations.get("handoff", {}).items():
            if not isinstance(mark, dict) or "run" not in mark:
                continue  # a plain task, which somebody annotated with our name
            run = self.runs.get(mark["run"])
            if run is None:
                if self.service.stopped_by(key):
                    compat.hold(scheduler.tasks[key])
                    late.append(key)
            elif "index" not in mark:  # data that functions share: Dask moves it, not the engine
                compat.free(scheduler.tasks[key])
            elif key not in self.records:
                self.records[key] = run.functions[mark["index"]]
                run.alive += 1
                compat.hold(scheduler.tasks[key])
        if late:
            # The run was stopped before its graph arrived.
            loop = asyncio.get_running_loop()
            loop.call_soon(lambda: scheduler.client_releases_keys(keys=late, client=client))
            scheduler.report({"op": "cancelled-keys", "keys": late})
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
        if finish == "processing" and record.state != "running":
            self.gate.slipped(record)
        elif finish == "no-worker":
            self.ready(record)
        elif start == "processing" or finish == "memory":
            self._left(record, start, finish, kwargs)
        elif start == "no-worker" and finish != "processing":
            self.engine.function_withdrawn(key)
            record.move("waiting")
        elif start == "memory" and finish == "released":
            # Should its result be asked for again, it passes the gate again.
            compat.hold(self.scheduler.tasks[key])
        self.inputs.follow(record, finish)
        if finish == "waiting":
            self.gate.keep(key)
        elif finish == "memory":
            for ts in self.scheduler.tasks[key].dependents:  # about which Dask decides now
                self.gate.keep(ts.key)
        if finish in ("released", "waiting") and record.run.failed:
            self._orphan(key)
        if finish == "forgotten":
            if record.state in UNENDED:
                record.move("cancelled")
            del self.records[key]
            record.run.alive -= 1
            if not record.run.alive:
                self.forget(record.run)
        elif finish == "erred" and record.state != "failed":
            self.retries.blamed(record)
            record.move("failed")
        elif finish == "waiting" and record.state == "failed":
            # Somebody retries a function that had failed for good: with all its attempts.
            record.run.failed.pop(record.index, None)
            record.run.decided.discard(record.index)
            record.failures, record.problem, record.retrying, record.deaths = 0, None, False, ()
            record.unreachable, record.refetched = None, False
            self.inputs.trust(key)
            record.move("waiting")
        elif finish == "released" and record.state in UNENDED:
            ts = self.scheduler.tasks[key]
            if not ts.waiters and not ts.who_wants:
                record.move("cancelled")  # what needed it has failed or was cancelled

    def _orphan(self, key: Any) -> None:
        """Fail, after this, what lost its result and cannot have it again."""
        if compat.lacks_failed(self.scheduler.tasks[key]):
            asyncio.get_running_loop().call_soon(
                compat.fail_orphan, self.scheduler, key, f"handoff-orphan-{time.time()}"
            )

    def ready(self, record: FunctionRecord) -> None:
        """Ask the engine for a place: the function's inputs are there."""
        record.move("held")
        self.ask()
        if record.lost is not None:
            return  # not before it is known what became of the attempt before
        now = time.monotonic()
        terms: dict[str, Any] = {}
        if record.attempt or record.unreachable:
            error = self.retries.verdict(record)
            if error is not None:
                self.doomed.append((record, error))
                return
            found = self.retries.terms(record, now)
            record.parked = found is None
            if found is None:
                return
            terms = found
        inputs = compat.input_sizes(self.scheduler.tasks[record.key])
        self.engine.function_ready(record.key, now, inputs=inputs, **terms)

    def _left(
        self, record: FunctionRecord, start: str, finish: str, facts: Mapping[str, Any]
    ) -> None:
        """Record how an attempt ended."""
        ts = self.scheduler.tasks[record.key]
        failure, record.failure = record.failure, None
        spans = [s for s in facts.get("startstops") or () if s["action"] == "compute"]
        run, started, stopped = record.run, record.placed, time.time()
        if spans:
            started, stopped = spans[-1]["start"], spans[-1]["stop"]
        retried = failure is not None and failure["retry"]
        if compat.ended_by_worker(ts, finish, facts, retried):
            self.endings.pass_on(record.worker, record.cost)
            self.engine.attempt_ended(
                record.key,
                time.monotonic(),
                duration=stopped - started if spans and finish == "memory" else None,
                done=finish == "memory",
            )
        elif failure is not None and failure["outcome"] == "timeout":
            self.endings.begin(record, compat.placement_number(ts))  # its end will be reported
        else:
            self.losses.add(record, settled=failure is not None or finish == "erred")
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
                self.function_failed(record, failure["message"])
                if record.problem is not None:
                    run.decided.add(record.index)
                    compat.replace_exception(ts, self.retries.verdict(record))
        elif finish == "erred":
            # Of something before the function itself: what it runs in could not be loaded.
            error, _, message = (ts.exception_text or "").partition("(")
            run.ended(record, "error", started, stopped, error, message.rstrip(")"))
            self.function_failed(record, ts.exception_text or "it erred")
        else:
            self._after(record, finish)
            return
        self.attempt_ended(record)
        self._after(record, finish)

    def attempt_ended(self, record: FunctionRecord) -> None:
        """Tell of the attempt that was recorded last."""
        run = record.run
        index, number, worker, started, stopped, outcome, error, message, cost = run.attempts[-1]
        where = worker, *run.workers[worker]
        attempt = Attempt(number, *where, started, stopped, cost, outcome, error, message)
        self.history(AttemptEnded(run.spec.run_id, time.time(), index, attempt))

    def _after(self, record: FunctionRecord, finish: str) -> None:
        if record.state == "running":
            record.move("waiting")
        if finish != "memory":
            compat.hold(self.scheduler.tasks[record.key])
        self.ask()

    def log_event(self, topic: str, msg: Any) -> None:
        """Hear of failed attempts, and of workers that pause, resume or close."""
        if not isinstance(msg, dict):
            return
        action = msg.get("action")
        if topic == TOPIC and isinstance(action, str):
            self.retries.heard(action, msg)
        elif action == "remove-client" and topic == "all":  # ahead of what Dask lets go for it
            self._client_gone(msg["client"])
        elif action in ("add-worker", "worker-status-change") and topic != "all":
            # The event comes before Dask looks for tasks that may run there.
            for ts in self.scheduler.unrunnable:
                self.gate.keep(ts.key)
            if "status" in msg and topic in self.registry.names:
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
        record.unreachable = self.inputs.refusal(record, place.worker)
        if record.unreachable is not None:
            self.engine.attempt_ended(place.key, time.monotonic())
            self.ready(record)
            return False
        self.gate.open(record, place, ws)
        return True

    def _refuse(self, refuse: Refuse, stimulus_id: str) -> None:
        if (record := self.records.get(refuse.key)) is not None:
            self._fail(record, self.retries.refused(record, refuse.finding), stimulus_id)

    def _fail(self, record: FunctionRecord, error: Exception, stimulus_id: str) -> None:
        if record.state != "held" or record.key not in self.records:
            return  # cancelled meanwhile
        record.run.decided.add(record.index)
        self.function_failed(record, str(error))
        compat.fail_task(self.scheduler, record.key, error, stimulus_id)

    def function_failed(self, record: FunctionRecord, problem: str) -> None:
        """Record that a function failed for good; that may stop its run after this event."""
        run = record.run
        run.failed[record.index] = problem
        if run.spec.stops_at_failure:
            stop = Stop("failed", f"function {record.row.label} failed: {problem}")
            asyncio.get_running_loop().call_soon(self.stop, run, stop)

    def _wake(self) -> None:
        """Be called again when the engine has to act without an event."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (at := self.engine.wake_at()) is not None:
            delay = max(0.0, at - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._decide)
