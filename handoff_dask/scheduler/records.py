"""What the scheduler remembers of a run: its functions, their attempts, what became of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from handoff_dask.attempts.states import STATES, UNENDED
from handoff_dask.model.attempt import Outcome
from handoff_dask.wire.messages import FATES, FunctionRow, RunReport, RunSpec, Stop


@dataclass(slots=True, eq=False)
class FunctionRecord:
    """One node of a run on the scheduler."""

    key: Any
    index: int
    run: RunRecord
    row: FunctionRow
    state: str = "waiting"
    #: Starts so far, and how many of them count against `max_retries`.
    attempt: int = 0
    failures: int = 0
    #: Where it was placed last, and when.
    worker: str | None = None
    placed: float = 0.0
    #: What a worker said of the attempt that failed, until Dask's own message comes.
    failure: dict[str, Any] | None = None
    #: What an attempt claims, if not the function's own cost.
    cost: Mapping[str, float] = field(default_factory=dict)
    #: Whether the attempt gave its slot back.
    seceded: bool = False
    #: What is wrong with the retry policy: the field and the problem.
    problem: tuple[str, str] | None = None
    #: Whether the next start is a retry.
    retrying: bool = False
    #: Workers where an attempt that was given up still holds a thread.
    late: tuple[str, ...] = ()
    #: Whether the next start waits for such a thread to end.
    parked: bool = False
    #: Worker and start of each attempt that made a result.
    made: tuple[tuple[str | None, float], ...] = ()
    #: The attempt whose end is not known yet.
    lost: Any = None
    #: (address and name of the worker, how it ended) of each death that counts.
    deaths: tuple[tuple[str, str], ...] = ()
    #: Whether an input that did not arrive got a second try.
    refetched: bool = False
    #: Why an input cannot reach it.
    unreachable: Exception | None = None
    #: The worker from which its result could not be fetched; it is computed again elsewhere.
    avoid: str | None = None

    def move(self, state: str) -> None:
        """Change the state, and the run's counts with it."""
        run = self.run
        if self.row.source is None:  # transforms are not what users count
            run.counts[self.state] -= 1
            run.counts[state] += 1
        if self.index in run.spec.awaited:
            run.unended += (state in UNENDED) - (self.state in UNENDED)
        self.state = state


@dataclass(eq=False)
class RunRecord:
    """A run on the scheduler."""

    spec: RunSpec
    functions: list[FunctionRecord] = field(default_factory=list)
    #: (index, number, worker, started, stopped, outcome, error type, message, cost) of each start.
    attempts: list[tuple[Any, ...]] = field(default_factory=list)
    #: address: (name, host) of every worker that ran something.
    workers: dict[str, tuple[str, str]] = field(default_factory=dict)
    #: Nodes that failed for good by themselves.
    failed: dict[int, str] = field(default_factory=dict)
    #: Those of them that failed by the plugin's decision, not by what they raised.
    decided: set[int] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    #: Nodes that Dask has not forgotten.
    alive: int = 0
    #: What stops it when its time is up.
    limit: asyncio.TimerHandle | None = None
    #: Set when the graph has come.
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    #: When it was opened (s since epoch).
    opened: float = field(default_factory=time.time)
    #: Whether somebody changed, on the scheduler, where its functions may run.
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

    def index(self, key: Any) -> int:
        """Return the index of the node with a key."""
        index: int = key[1]
        return index

    def ended(
        self,
        record: FunctionRecord,
        outcome: Outcome,
        started: float,
        stopped: float,
        error_type: str | None = None,
        message: str | None = None,
    ) -> None:
        """Record the end of an attempt."""
        self.attempts.append(
            (
                record.index,
                record.attempt,
                record.worker,
                started,
                stopped,
                outcome,
                error_type,
                message,
                record.cost,
            )
        )

    def corrected(self, record: FunctionRecord, started: float, stopped: float) -> None:
        """Record that the last attempt ended well after all: its result came and was taken."""
        for i in range(len(self.attempts) - 1, -1, -1):
            if self.attempts[i][0] == record.index:
                cost = self.attempts[i][8]
                del self.attempts[i]
                self.attempts.append(
                    (
                        record.index,
                        record.attempt,
                        record.worker,
                        started,
                        stopped,
                        "ok",
                        None,
                        None,
                        cost,
                    )
                )
                return

    def report(self) -> RunReport:
        """Return what the client is told."""
        return RunReport(
            attempts=tuple(self.attempts),
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
