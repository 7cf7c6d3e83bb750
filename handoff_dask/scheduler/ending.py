"""Attempts that were given up while their threads still run: their claims last as long."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from handoff_dask.placement.events import Waiting
from handoff_dask.scheduler.records import FunctionRecord
from handoff_dask.wire.offers import claimed_resources

if TYPE_CHECKING:
    from handoff_dask.scheduler.plugin import HandoffPlugin
    from handoff_dask.scheduler.records import RunRecord


@dataclass(slots=True, eq=False)
class Ending:
    """An attempt that was given up, on its worker.

    Attributes
    ----------
    worker, cost
        Where it runs, and what it claims there.
    seceded
        Whether it gave its slot back.
    claims
        Whether it has a claim of its own. One that the engine took to wait for another of its cost
        has none until that ends, or until its worker says that it runs.
    record
        Its function, until the run is forgotten.
    whose
        How to describe it once the run is forgotten.
    """

    worker: str
    cost: Mapping[str, float]
    seceded: bool
    claims: bool = False
    record: FunctionRecord | None = None
    whose: str = "from before Handoff was installed"

    def __str__(self) -> str:
        """Say whose attempt it is."""
        return self.whose if self.record is None else _whose(self.record.run)


def _whose(run: RunRecord) -> str:
    """Say of which run an attempt is, and what became of that run."""
    return f"of a run that {run.fate} ({run.spec.dag_id!r})"


class Endings:
    """Keeps the claims of attempts that were given up until their threads have ended.

    A thread cannot be stopped: whatever happens to its function, its run or its client, the worker
    stays as busy as before.
    """

    def __init__(self, plugin: HandoffPlugin) -> None:
        self.plugin = plugin
        #: By key and number of the placement.
        self._endings: dict[tuple[Any, int], Ending] = {}

    def __len__(self) -> int:
        return len(self._endings)

    def begin(self, record: FunctionRecord, number: int) -> None:
        """Give up a function's attempt, and take over its claim without a gap."""
        engine, worker = self.plugin.engine, record.worker
        if worker in self.plugin.scheduler.workers and worker in self.plugin.registry.names:
            ending = Ending(worker, record.cost, record.seceded, record=record)
            self._endings[record.key, number] = ending
            record.late += (worker,)
            # A function handed ahead has no claim of its own: the one it waits for has it.
            if not engine.questions.waits_ahead(record.key):
                self._claim(record.key, number)
        engine.attempt_ended(record.key, time.monotonic())
        if record.seceded:
            # It may wait for a run of its own that needs what it claims.
            self.plugin.stop_within(record.key)

    def inherit(self, message: Mapping[str, Any]) -> None:
        """Take over a task that was cancelled before its worker had our plugin."""
        names = self.plugin.registry.names.get(message["worker"], {})
        cost = claimed_resources(names, message["claims"])
        at = message["key"], message["run_id"]
        if at not in self._endings:
            self._endings[at] = Ending(message["worker"], cost, message["seceded"])
            self._claim(*at)

    def _claim(self, key: Any, number: int) -> None:
        ending = self._endings[key, number]
        ending.claims = True
        self.plugin.engine.foreign_claimed(
            ("ending", key, number), ending.worker, ending.cost, slot=not ending.seceded
        )

    def pass_on(self, worker: str | None, cost: Mapping[str, float]) -> None:
        """Give a claim that ends on a worker to an attempt that may have its thread by now."""
        for (key, number), ending in self._endings.items():
            if not ending.claims and ending.worker == worker and ending.cost == cost:
                self._claim(key, number)
                return

    def confirm(self, key: Any, number: int) -> None:
        """Record that an attempt has a thread, whose end its worker will report."""
        if (key, number) in self._endings:
            self._claim(key, number)

    def seceded(self, key: Any, number: int) -> None:
        """Record that an attempt gave its slot back."""
        if ending := self._endings.get((key, number)):
            ending.seceded = True
            self._claim(key, number)
            self.plugin.ask()

    def over(self, key: Any, number: int) -> None:
        """Release the claim of an attempt whose thread has ended, or that never had one."""
        ending = self._endings.pop((key, number), None)
        if ending is None:
            return
        if ending.claims:
            self.pass_on(ending.worker, ending.cost)
        self.plugin.engine.foreign_released(("ending", key, number))
        record = ending.record
        if record is not None:
            still = list(record.late)
            still.remove(ending.worker)
            record.late = tuple(still)
            if ending.worker not in still:
                self.plugin.engine.exclusion_ended(record.key, ending.worker)
            if record.parked and record.state == "held":
                self.plugin.ready(record)
        self.plugin.ask()

    def worker_removed(self, worker: str) -> None:
        """Forget what ran on a worker that is gone."""
        for key, number in [at for at, e in self._endings.items() if e.worker == worker]:
            self.over(key, number)

    def run_over(self, run: RunRecord) -> None:
        """Forget a run, and remember only how it ended."""
        for ending in self._endings.values():
            if ending.record is not None and ending.record.run is run:
                ending.record, ending.whose = None, _whose(run)

    def why(self, record: FunctionRecord) -> Waiting:
        """Tell what a held function waits for, with what is still ending where it waits."""
        if record.lost is not None:
            return self.plugin.losses.asking(record)
        if record.parked:
            return self.noted(Waiting("last attempt", record.late))
        return self.noted(self.plugin.engine.questions.why(record.key) or Waiting("next"))

    def noted(self, why: Waiting) -> Waiting:
        """Add what is still ending on the workers that a function waits for."""
        if why.reason == "next" or not why.workers:
            return why
        return replace(why, ending=self.describe(why.workers))

    def counts(self, workers: Collection[str] | None = None) -> Mapping[str, int]:
        """Count what is still ending on these workers, or on all, by owner."""
        return Counter(
            str(ending)
            for ending in self._endings.values()
            if workers is None or ending.worker in workers
        )

    def describe(self, workers: Collection[str] | None = None) -> str:
        """Say what is still ending on these workers, or on all; empty if nothing is."""
        counts = self.counts(workers)
        if not counts:
            return ""
        whose = (f"{n} function{'s'[: n != 1]} {text}" for text, n in counts.items())
        return f"still ending: {', '.join(whose)}"
