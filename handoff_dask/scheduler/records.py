"""What the scheduler remembers of a run: its functions, and what became of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from handoff_dask.attempts.ledger import Entry
from handoff_dask.attempts.life import Life
from handoff_dask.attempts.states import STATES, UNENDED, State
from handoff_dask.errors import AllocationError
from handoff_dask.placement.events import Finding
from handoff_dask.wire.messages import (
    FATES,
    FunctionRow,
    RunReport,
    RunSpec,
    Stop,
    allocation_error,
)
from handoff_dask.wire.run_events import AttemptEnded, Event, FunctionEnded


class FunctionRecord(Life):
    """One node of a run: a function, or a transform of an argument."""

    __slots__ = ("index", "refetched", "run")
    row: FunctionRow

    def __init__(self, key: Any, index: int, run: RunRecord, row: FunctionRow) -> None:
        super().__init__(key, row)
        #: Its index in the run.
        self.index = index
        #: The run.
        self.run = run
        #: Whether an input that did not arrive got a second try.
        self.refetched = False

    @property
    def whose(self) -> str:
        """Of which run it is, and what became of that run."""
        return f"of a run that {self.run.fate} ({self.run.spec.dag_id!r})"

    @property
    def is_transform(self) -> bool:
        """Whether it is a transform, which is not what users count."""
        return self.row.source is not None

    def unplaceable(self, finding: Finding) -> AllocationError:
        """Return the error for a function whose next attempt no worker can hold."""
        escalated = self.cost is not self.row.cost
        context = f"retry.escalate asked for {dict(self.cost)}: " if escalated else ""
        return allocation_error(self.row.label, self.cost, finding, context)

    def moved(self, before: State) -> None:
        """Keep the run's counts, and announce an end."""
        run, left, entered = self.run, before.shown, self.state.shown
        if left == entered:
            return
        if not self.is_transform:
            run.counts[left] -= 1
            run.counts[entered] += 1
        ended = entered not in UNENDED
        if self.index in run.spec.awaited:
            run.unended += (not ended) - (left in UNENDED)
        if ended:
            problem = run.failed.get(self.index)
            run.latest = now = time.time()
            run.emit(FunctionEnded(run.spec.run_id, now, self.index, entered, problem))

    def recorded(self, entry: Entry, replaced: Entry | None) -> None:
        """Announce the end of an attempt."""
        run = self.run
        if entry.number > 1 and replaced is None and not self.is_transform:
            run.retries += 1
        attempt = entry.attempt(run.workers)
        run.emit(AttemptEnded(run.spec.run_id, time.time(), self.index, attempt))


@dataclass(eq=False)
class RunRecord:
    """A run on the scheduler."""

    spec: RunSpec
    #: `spec` as it came, for clients that follow the run.
    opening: bytes
    #: Hears of what happens in it.
    emit: Callable[[Event], None]
    functions: list[FunctionRecord] = field(default_factory=list)
    #: {address: (name, host)} of every worker that something was sent to.
    workers: dict[str, tuple[str, str]] = field(default_factory=dict)
    #: {index: problem} of nodes that failed for good by themselves.
    failed: dict[int, str] = field(default_factory=dict)
    #: Those of them that failed by the plugin's decision, not by what they raised.
    decided: set[int] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    #: Attempts of functions that were not their first.
    retries: int = 0
    #: Nodes that Dask has not forgotten.
    alive: int = 0
    #: Stops it when its time is up.
    limit: asyncio.TimerHandle | None = None
    #: Set when the graph has arrived.
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    #: When it was opened (s since epoch).
    opened: float = field(default_factory=time.time)
    #: When the latest of its functions ended (s since epoch).
    latest: float = 0.0
    #: Whether it was logged that others changed where its functions may run.
    overruled: bool = False
    #: Why it was stopped, if it was.
    stop: Stop | None = None
    #: Nodes that the run waits for and that have not ended.
    unended: int = field(init=False)
    #: Whether the cluster keeps it without a client, and whether it did and was forgotten.
    kept: bool = field(init=False)
    forgotten: bool = False

    def __post_init__(self) -> None:
        self.kept = self.spec.detach
        self.unended = len(self.spec.awaited)

    @property
    def fate(self) -> str:
        """How it ended, as in "a run that timed out"."""
        if self.stop is not None:
            return FATES[self.stop.kind]
        if self.over:
            return "is done"
        return "goes on" if self.alive else "was let go"

    @property
    def over(self) -> bool:
        """Whether everything in it that somebody waits for has ended."""
        return self.stop is not None or not self.unended

    def report(self) -> RunReport:
        """Return what the client is told."""
        return RunReport(
            attempts={record.index: record.entries for record in self.functions if record.entries},
            workers=dict(self.workers),
            failed=dict(self.failed),
            counts=self.counted(),
            stop=self.stop,
            over=self.over,
            arrived=self.arrived.is_set(),
            decided=frozenset(self.decided),
        )

    def counted(self) -> dict[str, int]:
        """Return how many functions are in which state."""
        return {state: self.counts[state] for state in STATES}
