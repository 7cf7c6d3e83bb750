"""What the dashboard remembers of attempts and runs that have ended."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias
from weakref import WeakValueDictionary

from handoff_dask.model.attempt import UNKNOWN, Outcome, Usage
from handoff_dask.scheduler.records import RunRecord
from handoff_dask.wire.messages import Block, FunctionRow
from handoff_dask.wire.run_events import (
    AttemptEnded,
    AttemptsEnded,
    Recorded,
    RunClosed,
    RunOpened,
)

#: How many attempts and runs are remembered after their end.
ATTEMPTS = 1000
RUNS = 20

#: Tells an attempt from every other: the run, the function's index, the attempt's number.
AttemptId: TypeAlias = tuple[str, int, int]


def label(row: FunctionRow) -> str:
    """Return a function's id as it is shown: without the quotes of a string."""
    text = row.label
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"" else text


@dataclass(frozen=True, slots=True)
class AttemptView:
    """An attempt as the dashboard shows it. Times are seconds since the epoch."""

    id: AttemptId
    dag_id: str
    label: str
    worker: str
    started: float
    stopped: float
    #: Its outcome; ``"assigned"`` or ``"running"`` until it has ended.
    state: str
    usage: Usage = UNKNOWN


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as the dashboard shows it. Times are seconds since the epoch."""

    run_id: str
    dag_id: str
    #: How many functions are in which state.
    functions: Mapping[str, int]
    #: Attempts that ended and were not the first of their function.
    retries: int
    opened: float
    #: When the scheduler forgot the run; None while it knows it.
    closed: float | None = None

    @classmethod
    def of(cls, run: RunRecord, closed: float | None = None) -> RunView:
        """Return a run as it is now."""
        spec = run.spec
        return cls(spec.run_id, spec.dag_id, run.counted(), run.retries, run.opened, closed)


class History:
    """Totals over all runs and the latest that ended, kept up to date by the plugin's events.

    Call it with each event. The event that opens a run comes once `runs` has it.

    When the result of an attempt arrives although the attempt was given up, a second `AttemptEnded`
    replaces the first. Totals are counters for Prometheus, which must never go down, so the attempt
    stays counted under its first outcome, once, and is counted in `late_results` as well.
    """

    def __init__(self, runs: Mapping[str, RunRecord]) -> None:
        #: Removes, once closed, everything that shows the history.
        self.shown = ExitStack()
        self.closed = False
        #: Attempts that ended, by the outcome that was recorded first.
        self.outcomes: Counter[Outcome] = Counter()
        #: Those of them whose result arrived later and was used, by the same outcome.
        self.late_results: Counter[Outcome] = Counter()
        #: Attempts that ended and were not the first of their function.
        self.retries = 0
        #: What attempts that ended kept processors busy for, as far as it is known (s).
        self.cpu_seconds = 0.0
        self._attempts: dict[AttemptId, AttemptView] = {}
        #: Attempts of functions that travelled together, which are looked at only if somebody asks.
        self._blocks: deque[tuple[RunRecord, Block]] = deque()
        #: The latest runs that the scheduler has forgotten.
        self.closed_runs: deque[RunView] = deque(maxlen=RUNS)
        self._runs = runs
        #: By run: how attempts ended that a late result may still correct, and the CPU seconds that
        #: were counted of them, by function and number.
        self._unsuccessful: dict[str, dict[tuple[int, int], tuple[Outcome, float]]] = {}
        # How an attempt on a lost worker ended may be known only after its run has closed. Until
        # then, what asks about it refers to the run.
        self._known: WeakValueDictionary[str, RunRecord] = WeakValueDictionary()

    def close(self) -> None:
        """Take everything off the scheduler that was put there to show it."""
        self.closed = True
        self.shown.close()

    @property
    def attempts(self) -> dict[AttemptId, AttemptView]:
        """The latest attempts, as they ended in the end."""
        while self._blocks:
            run, block = self._blocks.popleft()
            first = max(0, len(block.indices) - ATTEMPTS)
            for place in range(first, len(block.indices)):
                index = block.indices[place]
                id_ = run.spec.run_id, index, 1
                self._attempts.pop(id_, None)
                self._attempts[id_] = AttemptView(
                    id_,
                    run.spec.dag_id,
                    label(run.row(index)),
                    block.worker,
                    block.started[place],
                    block.stopped[place],
                    "ok",
                    block.entry(1, place).usage,
                )
        self._drop_oldest()
        return self._attempts

    @property
    def ended(self) -> int:
        """How many attempts have ended, also those that are no longer remembered."""
        return self.outcomes.total()

    def __call__(self, event: Recorded) -> None:
        """Record an event."""
        if isinstance(event, RunOpened):
            self._known[event.run_id] = self._runs[event.run_id]
            self._unsuccessful[event.run_id] = {}
        elif isinstance(event, AttemptsEnded):
            self._attempts_ended(event)
        elif isinstance(event, AttemptEnded):
            self._attempt_ended(event)
        elif isinstance(event, RunClosed):
            run = self._known.get(event.run_id)
            if run is not None and run.portions:  # else no function was ever there
                self.closed_runs.append(RunView.of(run, event.at))
            if any(known is run for known, _ in self._blocks):
                _ = self.attempts  # while the run can still be asked for their names
            self._unsuccessful.pop(event.run_id, None)

    def _attempt_ended(self, event: AttemptEnded) -> None:
        run = self._known.get(event.run_id)
        if run is None:
            return
        index, attempt = event.function, event.attempt
        assert isinstance(index, int)
        row = run.row(index)
        if row.source is not None:
            return  # a transform of an argument: users do not count those
        done = attempt.outcome in ("ok", "stored")
        if run.spec.events and done and run.bundle_of(index) is not None:
            return  # counted with the others of its bundle
        unsuccessful = self._unsuccessful.get(event.run_id, {})
        first = unsuccessful.pop((index, attempt.number), None)
        id_ = event.run_id, index, attempt.number
        cpu_time = attempt.usage.cpu_time or 0.0
        if first is None:
            self.outcomes[attempt.outcome] += 1
            self.retries += attempt.number > 1
            self.cpu_seconds += cpu_time
            if not done:
                unsuccessful[index, attempt.number] = attempt.outcome, cpu_time
        else:
            outcome, counted = first
            self.late_results[outcome] += 1
            self.cpu_seconds += max(cpu_time - counted, 0.0)
            if id_ not in self._attempts:
                return  # forgotten since
        self._attempts[id_] = AttemptView(
            id_,
            run.spec.dag_id,
            label(row),
            attempt.worker,
            attempt.started,
            attempt.stopped,
            attempt.outcome,
            attempt.usage,
        )
        self._drop_oldest()

    def _attempts_ended(self, event: AttemptsEnded) -> None:
        run, block = self._known.get(event.run_id), event.block
        if run is None:
            return
        self.outcomes["ok"] += len(block.indices)
        self.cpu_seconds += math.fsum(block.cpu_time)
        self._blocks.append((run, block))
        newer = sum(len(other.indices) for _, other in self._blocks)
        while newer - len(self._blocks[0][1].indices) >= ATTEMPTS:
            newer -= len(self._blocks.popleft()[1].indices)

    def _drop_oldest(self) -> None:
        while len(self._attempts) > ATTEMPTS:
            del self._attempts[next(iter(self._attempts))]
