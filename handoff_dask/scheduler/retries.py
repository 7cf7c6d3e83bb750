"""What follows when an attempt goes wrong: tried again, when, where and at what cost, or not."""

from __future__ import annotations

import pickle
import time
from random import random
from typing import TYPE_CHECKING, Any

from handoff_dask.compat import scheduler as compat
from handoff_dask.errors import InvalidFunctionError, WorkerLostError
from handoff_dask.placement.events import Finding
from handoff_dask.scheduler.records import FunctionRecord
from handoff_dask.standins import text_of
from handoff_dask.wire.messages import allocation_error
from handoff_dask.worker.task import escalated

if TYPE_CHECKING:
    from handoff_dask.scheduler.plugin import HandoffPlugin


class Retries:
    """Applies the retry policies of a plugin's runs."""

    def __init__(self, plugin: HandoffPlugin) -> None:
        self.plugin = plugin

    def heard(self, action: str, message: dict[str, Any]) -> None:
        """Record what a worker reports about a task that it runs or ran."""
        key, number = message["key"], message["run_id"]
        endings = self.plugin.endings
        if action == "attempt-over":
            endings.over(key, number)
            return
        if action == "attempt-ending":
            endings.inherit(message)
            return
        if action == "attempt-seceded":
            endings.seceded(key, number)
        record = self.plugin.records.get(key)
        ts = self.plugin.scheduler.tasks.get(key)
        if record is None or ts is None or ts.run_id != number:
            return  # the attempt, or its run, was given up
        if record.state != "running":
            return
        if action == "attempt-seceded":
            record.seceded = True
            self.plugin.engine.slot_released(key)
            self.plugin.ask()
            return
        again = message["retry"] and record.failures < record.row.policy.max_retries
        if action == "attempt-failed":
            record.failure = {**message, "outcome": "error", "retry": again}
            # Dask's own message follows; with retries left it gives the task back to us.
            ts.retries = int(again)
        elif action == "attempt-late":
            record.failure = {**message, "outcome": "timeout", "retry": False}
            self._give_up(record, again)

    def _give_up(self, record: FunctionRecord, again: bool) -> None:
        """End an attempt whose thread goes on."""
        worker = record.worker
        assert worker is not None and record.failure is not None
        stimulus_id = f"handoff-late-{time.time()}"
        if again:
            self.plugin.scheduler.transitions({record.key: "waiting"}, stimulus_id)
        else:
            error = TimeoutError(record.failure["message"])
            compat.fail_task(self.plugin.scheduler, record.key, error, stimulus_id, worker=worker)

    def parks(self, record: FunctionRecord, worker: str) -> bool:
        """Whether a function has to wait, before it is placed there, for a late attempt to end.

        The engine avoids that worker, but has no other when the rest went away.
        """
        if worker not in record.late:
            return False
        self.plugin.engine.attempt_ended(record.key, time.monotonic())
        record.parked = True
        return True

    def failed(self, record: FunctionRecord, failure: dict[str, Any]) -> None:
        """Count a failed attempt, and see to the cost of the next one."""
        record.failures += 1
        record.retrying = True
        record.cost = failure.get("cost", record.cost)
        record.problem = failure.get("problem")

    def died(self, record: FunctionRecord, reason: str) -> None:
        """Count the death of a worker as an attempt of what it ran."""
        failure: dict[str, Any] = {}
        row = record.row
        record.deaths += ((record.worker or "", reason),)
        if row.escalation is not None and record.failures < row.policy.max_retries:
            try:
                policy = pickle.loads(row.escalation)
            except BaseException as error:  # unpickling runs the user's code
                problem = f"cannot be loaded on the scheduler: {text_of(error)}"
                failure["problem"] = "retry.escalate", problem
            else:
                failure = escalated(policy, record.attempt, record.cost, self._lost(record))
        self.failed(record, failure)

    def blamed(self, record: FunctionRecord) -> None:
        """Record the failure of a function whose argument, a future, has failed."""
        ts = self.plugin.scheduler.tasks[record.key]
        culprit = compat.failed_input(ts)
        if culprit is not None and culprit.key not in self.plugin.records:
            why = f": {culprit.exception_text}" if culprit.exception_text else ""
            problem = f"its argument, the future {culprit.key!r}, failed{why}"
            self.plugin.function_failed(record, problem)
            compat.adopt_exception(ts, culprit)

    def verdict(self, record: FunctionRecord) -> Exception | None:
        """Return the error that a function ends with instead of a further attempt, if it does."""
        row = record.row
        if record.unreachable is not None:
            return record.unreachable
        if record.problem is not None:
            return InvalidFunctionError(row.label, *record.problem)
        if record.failures > row.policy.max_retries:
            return self._lost(record)
        if record.cost is not row.cost and not record.deaths:
            # After a death, the engine waits for what the cluster has lost with the worker.
            finding = self.plugin.engine.questions.feasibility(record.cost, row.pin)
            if not finding:
                return self.refused(record, finding)
        return None

    def refused(self, record: FunctionRecord, finding: Finding) -> Exception:
        """Return the error for a function that no worker can hold."""
        row = record.row
        asked = f"retry.escalate asked for {dict(record.cost)}: "
        context = asked if record.cost is not row.cost else ""
        return allocation_error(row.label, record.cost, finding, context)

    def _lost(self, record: FunctionRecord) -> WorkerLostError:
        workers = [worker for worker, _ in record.deaths]
        return WorkerLostError(
            record.row.label,
            workers,
            [record.run.workers[worker][0] for worker in workers],
            [reason for _, reason in record.deaths],
        )

    def terms(self, record: FunctionRecord, now: float) -> dict[str, Any] | None:
        """Return how the engine is to place the next attempt; None: not before a thread ends."""
        terms: dict[str, Any] = {}
        row = record.row
        if record.cost is not row.cost:
            terms["cost"] = record.cost
        if record.late:
            # On the same worker, Dask would take the old thread for the new attempt.
            able = set(self.plugin.engine.questions.feasibility(record.cost, row.pin).able)
            tied = row.collocated is not None or row.pin is not None
            if tied or len(record.late) > 1 or not able.difference(record.late):
                return None
            terms["exclude"] = record.late
        if record.avoid is not None:
            terms["avoid"] = (record.avoid,)
        if not record.retrying:
            return terms
        if row.policy.delay:
            terms["not_before"] = now + row.policy.delay_before(record.failures + 1, random())
        if row.policy.avoid_last_worker and record.worker is not None:
            terms["avoid"] = (*terms.get("avoid", ()), record.worker)
            terms["insist"] = row.policy.avoid_last_worker == "always"
        record.retrying = False
        return terms
