"""From Dask's tasks to functions' lives: what happens to them, and what these need to know."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from handoff_dask.attempts.endings import Endings
from handoff_dask.attempts.life import Life
from handoff_dask.attempts.lives import Departure, Lives
from handoff_dask.attempts.losses import End, Lost
from handoff_dask.attempts.retries import Verdict, escalated
from handoff_dask.attempts.states import (
    PLACED,
    Asking,
    Assigned,
    Failing,
    Failure,
    Held,
    Running,
)
from handoff_dask.compat import scheduler as compat
from handoff_dask.errors import WorkerLostError
from handoff_dask.model.attempt import Usage
from handoff_dask.placement.engine import Engine
from handoff_dask.scheduler.foreign import Foreign
from handoff_dask.scheduler.gate import Gate
from handoff_dask.scheduler.inputs import Inputs
from handoff_dask.scheduler.inquiries import Inquiries
from handoff_dask.scheduler.measurements import Measurements
from handoff_dask.scheduler.membership import Bundles
from handoff_dask.scheduler.records import BundleRecord, FunctionRecord, UnitRecord
from handoff_dask.scheduler.registry import Registry
from handoff_dask.scheduler.runs import Runs
from handoff_dask.standins import text_of
from handoff_dask.wire.keys import run_of
from handoff_dask.wire.offers import claimed_resources

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState


@dataclass(eq=False)
class Lifecycle:
    """Follows the tasks of functions."""

    scheduler: Scheduler
    engine: Engine
    endings: Endings
    runs: Runs
    registry: Registry
    foreign: Foreign
    gate: Gate
    inputs: Inputs
    inquiries: Inquiries
    bundles: Bundles
    measurements: Measurements
    ask: Callable[[], None]

    def __post_init__(self) -> None:
        #: Takes the functions from state to state.
        self.lives = Lives(self.engine, self.endings, self)

    # Dask's transitions

    def transition(self, key: Any, start: str, finish: str, facts: Mapping[str, Any]) -> None:
        """Follow a task from one state to the next."""
        if finish == "erred":
            self.bundles.input_failed(self.scheduler.tasks[key])
        record = self.runs.functions.get(key)
        if record is None:
            if start == "processing" or finish == "processing":
                self.foreign.follow(key, finish)
            return
        ts = self.scheduler.tasks[key]
        if finish == "processing":
            if not isinstance(record.state, PLACED):
                self._taken(record, ts)
        elif finish == "no-worker":
            if isinstance(record.state, PLACED):
                self._turned_away(record, ts)
            else:
                if isinstance(record, BundleRecord) and record.state.name == "done":
                    self.bundles.reopen(record)
                self.lives.ready(record, time.monotonic())
            self.ask()
        elif finish == "memory":
            self._succeeded(record, ts, facts)
        elif isinstance(record.state, PLACED):
            self._left(record, ts, finish, facts)
        elif start == "no-worker" and isinstance(record.state, (Held, Asking)):
            self.lives.inputs_lost(record)
        elif start == "memory" and finish == "released":
            # Should its result be asked for again, it passes the gate again.
            compat.hold(ts)
        self.inputs.follow(record, finish)
        if finish == "waiting":
            self.gate.keep(key)
        elif finish == "memory":
            for dependent in ts.dependents:  # about which Dask decides now
                self.gate.keep(dependent.key)
        if finish in ("released", "waiting") and record.run.failed:
            self._orphan(ts)
        if finish == "forgotten":
            if isinstance(record, BundleRecord):
                self.bundles.released(record)
            self.lives.dropped(record)
            del self.runs.functions[key]
            record.run.alive -= 1
            if not record.run.alive and record.run.arrived.is_set():
                self.runs.forget(record.run)
        elif finish == "erred" and record.state.name != "failed":
            if isinstance(record, BundleRecord):
                self.bundles.reopen(record)  # lost results fail with it
            self._blame(record, ts)
            self.lives.failed(record)
        elif finish == "waiting" and record.state.name == "failed":
            self._pardon(record)
        elif finish == "released" and not ts.waiters and not ts.who_wants:
            self.lives.dropped(record)  # what needed it has failed or was cancelled

    def _succeeded(self, record: UnitRecord, ts: TaskState, facts: Mapping[str, Any]) -> None:
        worker = facts.get("worker") or record.worker
        if worker is None:  # a result from nowhere: somebody put it there
            worker = next(ws.address for ws in ts.who_has or ())
        record.run.workers.setdefault(worker, (worker, worker))
        departure = self._departure(ts, facts, reported=True)
        if record.row.awaited and not record.row.wanted:  # what Dask has is None in its place
            unknown = departure.usage._replace(result_bytes=None)
            departure = departure._replace(usage=unknown)
        self.lives.succeeded(record, worker, departure)
        if isinstance(record, BundleRecord):
            self.bundles.ended(record)
        self.ask()

    def _left(
        self, record: UnitRecord, ts: TaskState, finish: str, facts: Mapping[str, Any]
    ) -> None:
        """Record that an attempt ended without a result."""
        state = record.state
        failure = state.failure if isinstance(state, Failing) else None
        retried = failure is not None and not failure.late and failure.retry
        reported = compat.ended_by_worker(ts, finish, facts, retried)
        departure = self._departure(ts, facts, reported=reported, record=record)
        if finish == "erred":
            text = ts.exception_text or "it erred"
            error_type, _, message = text.partition("(")
            message = text if failure is None else failure.message
            raised = error_type if failure is None else failure.error_type
            self.runs.function_failed(record.run, record.index, message, raised)
            lost = self.lives.erred(record, departure, error_type, message.rstrip(")"))
            if record.doom is not None:
                record.run.decided.add(record.index)
                # Dask uses bytes, too.
                ts.exception = pickle.dumps(record.doom)  # type: ignore[assignment]
        else:
            lost = self.lives.returned(record, departure)
        if lost is not None:
            self.inquiries.add(record, lost)
        compat.hold(ts)
        self.ask()

    def _departure(
        self,
        ts: TaskState,
        facts: Mapping[str, Any],
        *,
        reported: bool,
        record: UnitRecord | None = None,
    ) -> Departure:
        """Collect what Dask says of the end of an attempt."""
        spans = [s for s in facts.get("startstops") or () if s["action"] == "compute"]
        span = (spans[-1]["start"], spans[-1]["stop"]) if spans else None
        at, now = time.time(), time.monotonic()
        if reported or record is None:
            # What it used, as far as that is known, and "stored" if its result was in the store.
            *known, stored = (*compat.noted(ts), None, None, None, None)[:4]
            usage = Usage(*known)._replace(result_bytes=facts.get("nbytes"))
            return Departure(
                ts.run_id or 0, at, now, True, span, usage=usage, stored=stored == "stored"
            )
        worker = record.worker
        assert worker is not None
        gone = worker not in self.scheduler.workers
        return Departure(
            compat.placement_number(ts),
            at,
            now,
            False,
            span,
            worker_known=not gone and worker in self.registry.names,
            worker_gone=gone,
            worker_died=gone and compat.died_under(ts) and not self.inquiries.closed(worker),
            inputs=self.inputs.expected(record),
        )

    def _turned_away(self, record: UnitRecord, ts: TaskState) -> None:
        """Hold a function again that Dask did not send: its worker now declares too little."""
        worker = record.worker
        assert worker is not None
        # Until the worker tells the plugin as well.
        self.engine.worker_running(worker, False)
        compat.hold(ts)
        self.lives.turned_away(record, time.monotonic())

    def _taken(self, record: UnitRecord, ts: TaskState) -> None:
        """Take back a function that Dask sent to a worker although it was held."""
        ws = ts.processing_on
        assert ws is not None
        self.lives.taken(record, self.gate.placement(record, ws))
        self.gate.refuse(record, ts, ws)

    def _orphan(self, ts: TaskState) -> None:
        """Fail, after this, what lost its result and cannot have it again."""
        if any(dependency.state == "erred" for dependency in ts.dependencies):
            asyncio.get_running_loop().call_soon(
                compat.fail_orphan, self.scheduler, ts.key, f"handoff-orphan-{time.time()}"
            )

    def _blame(self, record: UnitRecord, ts: TaskState) -> None:
        """Record the failure of a function whose argument, a future, has failed."""
        culprit = ts.exception_blame
        ours = culprit is None or run_of(culprit.key) == record.run.spec.run_id
        if culprit in ts.dependencies and not ours:
            why = f": {culprit.exception_text}" if culprit.exception_text else ""
            problem = f"its argument, the future {culprit.key!r}, failed{why}"
            self.runs.function_failed(record.run, record.index, problem)
            ts.exception, ts.traceback = culprit.exception, culprit.traceback
            ts.traceback_text = culprit.traceback_text

    def _pardon(self, record: UnitRecord) -> None:
        """Try a function again that had failed for good, since a client asks for that."""
        if isinstance(record, BundleRecord):
            self.bundles.pardon(record)
        else:
            record.run.pardon(record.index)
        record.refetched = False
        self.inputs.trust(record.key)
        self.lives.pardoned(record)

    # What workers report

    def reported(self, action: str, message: Mapping[str, Any]) -> None:
        """Handle what a worker reports of a task that it runs or ran."""
        key, number = message["key"], message["run_id"]
        if action == "attempt-over":
            if self.endings.over(key, number):
                self.ask()
            return
        if action == "attempt-ending":
            worker = message["worker"]
            cost = claimed_resources(self.registry.names.get(worker, {}), message["claims"])
            self.endings.inherit(key, number, worker, cost, seceded=message["seceded"])
            return
        if action == "attempt-seceded" and self.endings.seceded(key, number):
            self.ask()
            return
        record = self.runs.functions.get(key)
        ts = self.scheduler.tasks.get(key)
        if record is None or ts is None or ts.run_id != number:
            return  # the attempt, or its run, was given up
        if not isinstance(record.state, (Assigned, Running)):
            return
        if action == "attempt-seceded":
            self.lives.thread_released(record)
            self.ask()
        elif action == "attempt-failed":
            again = self.lives.failure_reported(record, _failure(message))
            # Dask's own message follows; with retries left it gives the task back to us.
            ts.retries = int(again)
        elif action == "attempt-late":
            again = self.lives.failure_reported(
                record, _failure({**message, "outcome": "timeout", "late": True})
            )
            self._give_up(record, again, message["message"])

    def _give_up(self, record: UnitRecord, again: bool, message: str) -> None:
        """End an attempt whose thread goes on."""
        stimulus_id = f"handoff-late-{time.time()}"
        if again:
            self.scheduler.transitions({record.key: "waiting"}, stimulus_id)
        else:
            error = TimeoutError(message)
            compat.fail_task(self.scheduler, record.key, error, stimulus_id, worker=record.worker)

    def end(self, record: UnitRecord) -> None:
        """Give up a function whose run ends."""
        ts = self.scheduler.tasks.get(record.key)
        if isinstance(record.state, PLACED) and ts is not None:
            departure = self._departure(ts, {}, reported=False, record=record)
            if (lost := self.lives.returned(record, departure)) is not None:
                self.inquiries.add(record, lost)
        self.lives.dropped(record)

    # What the functions' lives have to know

    def input_sizes(self, life: Life) -> tuple[Mapping[str, float], float]:
        """Return the bytes of a function's inputs that each worker has, and those of all inputs."""
        return compat.input_sizes(self.scheduler.tasks[life.key])

    def learned_claim(self, life: Life) -> float | None:
        """Return how much memory the next attempt claims (MB); None if no worker has enough."""
        assert isinstance(life, FunctionRecord)
        return self.measurements.claim(life)

    def refusal(self, life: Life) -> Exception | None:
        """Return why no worker could hold what an escalated attempt claims."""
        assert isinstance(life, UnitRecord)
        finding = self.engine.questions.feasibility(life.cost, life.row.pin)
        return None if finding else life.unplaceable(finding)

    def worker_lost(self, life: Life) -> WorkerLostError:
        """Return the error of a function that is out of attempts because workers died."""
        assert isinstance(life, UnitRecord)
        # If none, it failed, and the error was lost with its worker.
        deaths = life.deaths or life.entries[-1:]
        workers = [entry.worker for entry in deaths]
        names = [life.run.workers[worker][0] for worker in workers]
        reasons = [entry.message or "" for entry in deaths]
        return WorkerLostError(life.row.label, workers, names, reasons)

    def escalate(self, life: Life) -> Verdict:
        """Ask a policy with code what to claim after a worker's death."""
        assert isinstance(life, UnitRecord)
        if life.row.escalation is None or life.failures > life.row.policy.max_retries:
            return Verdict(retry=True)
        try:
            policy = pickle.loads(life.row.escalation)
        except BaseException as error:  # unpickling runs the user's code
            problem = f"cannot be loaded on the scheduler: {text_of(error)}"
            return Verdict(False, problem=("retry.escalate", problem))
        return escalated(policy, len(life.entries), life.cost, self.worker_lost(life))

    def died_unstarted(self, life: Life, lost: Lost, reason: str) -> None:
        """Learn that a worker died before a function could start there."""
        assert isinstance(life, UnitRecord)
        self.inputs.died(life, lost, reason)

    def bundle_lost(self, life: Life, lost: Lost, end: End) -> None:
        """Charge the functions of a bundle that was lost."""
        assert isinstance(life, BundleRecord)
        self.bundles.lost(life, lost, end)

    def given_up(self, life: Life) -> None:
        """Stop the runs that a function waits for whose attempt was given up."""
        self.runs.stop_submitted_by(life.key)


def _failure(message: Mapping[str, Any]) -> Failure:
    """Return what a worker reported of a failure."""
    facts = {name: message[name] for name in Failure._fields if name in message}
    return Failure(**{**facts, "usage": Usage(*message.get("usage", ()))})
