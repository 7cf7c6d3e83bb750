"""What the dashboard remembers beyond what the plugin needs: little, and a fixed amount of it."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from handoff_dask.model.attempt import Outcome

if TYPE_CHECKING:
    from handoff_dask.scheduler.records import FunctionRecord, RunRecord

#: Attempts, and runs, that are remembered after their end.
ATTEMPTS = 1000
RUNS = 20


def plain(label: str) -> str:
    """Drop the quotes around an id that is a string: what is shown needs none."""
    return label[1:-1] if len(label) > 2 and label[0] == label[-1] and label[0] in "'\"" else label


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt of a function that ended."""

    key: Any
    dag_id: str
    label: str
    number: int
    worker: str
    started: float
    stopped: float
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as the dashboard shows it."""

    run_id: str
    dag_id: str
    #: Functions by state.
    counts: Mapping[str, int]
    #: Attempts of functions that were not their first.
    retries: int
    #: s since epoch; None while it is there.
    opened: float
    closed: float | None = None

    @classmethod
    def of(cls, run: RunRecord, closed: float | None = None) -> RunView:
        """Take a picture of a run."""
        counts = {state: count for state, count in run.counts.items() if count}
        return cls(run.spec.run_id, run.spec.dag_id, counts, run.retries, run.opened, closed)


class History:
    """Sums over all runs, which only grow, and the latest that ended."""

    def __init__(self) -> None:
        #: What shows the history and the rest of the plugin's state; closed, it is gone.
        self.shown = ExitStack()
        #: Attempts that ended, by outcome, and how many of them were not the first.
        self.outcomes: Counter[str] = Counter()
        self.retries = 0
        self.attempts: deque[Ended] = deque(maxlen=ATTEMPTS)
        self.runs: deque[RunView] = deque(maxlen=RUNS)

    def close(self) -> None:
        """Take everything off the scheduler that was put there to show it."""
        self.shown.close()

    @property
    def ended(self) -> int:
        """How many attempts ended, more than are remembered."""
        return self.outcomes.total()

    def attempt_ended(self, record: FunctionRecord) -> None:
        """Take in that a function's attempt was recorded."""
        if record.row.source is not None:
            return  # transforms are not what users count
        run = record.run
        _, number, worker, started, stopped, outcome, *_ = run.attempts[-1]
        self.outcomes[outcome] += 1
        if number > 1:
            self.retries += 1
            run.retries += 1
        self.attempts.append(
            Ended(
                record.key,
                run.spec.dag_id,
                plain(record.row.label),
                number,
                worker,
                started,
                stopped,
                outcome,
            )
        )

    def run_closed(self, run: RunRecord) -> None:
        """Take in that a run was forgotten."""
        if run.arrived.is_set():  # else it never began
            self.runs.append(RunView.of(run, time.time()))
