"""What the scheduler remembers of a run: its functions, their attempts, what became of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from handoff_dask.errors import AllocationError
from handoff_dask.model.attempt import Attempt, Outcome
from handoff_dask.model.expansion import Node
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.placement.events import Finding, FunctionSpec

#: States of a function: not ready, ready but without a place, on a worker, and the three ends.
STATES = ("waiting", "held", "running", "done", "failed", "cancelled")
#: States of functions that have not ended.
UNENDED = frozenset(("waiting", "held", "running"))

#: Why a run was stopped: a function failed for good, it was cancelled, its time was up, or its
#: client went away.
StopKind = Literal["failed", "cancelled", "timeout", "abandoned"]
#: How messages describe such a run.
FATES: Mapping[StopKind, str] = {
    "failed": "failed",
    "cancelled": "was cancelled",
    "timeout": "timed out",
    "abandoned": "lost its client",
}


class Stop(NamedTuple):
    """Why a run was stopped before all its functions had ended, as a kind and in words."""

    kind: StopKind
    problem: str


ONE_ATTEMPT = RetryPolicy(0)


@dataclass(frozen=True, slots=True)
class FunctionRow:
    """One node of a run, as it travels to the scheduler. Other nodes go by their index.

    Rows are built from tuples in this order, since there are many.
    """

    prefix: str
    label: str
    cost: Mapping[str, float]
    dependencies: tuple[int, ...] = ()
    pin: str | None = None
    collocated: int | None = None
    binds: int | None = None
    source: int | None = None
    target: int | None = None
    policy: RetryPolicy = ONE_ATTEMPT
    timeout: float | None = None
    #: The policy with the user's code, pickled, if it escalates: asked when a worker died.
    escalation: bytes | None = None


def function_specs(
    rows: Sequence[FunctionRow],
    keys: Sequence[Hashable],
    expected: Mapping[str, float] | None = None,
) -> list[FunctionSpec]:
    """Return nodes as the placement engine takes them.

    Parameters
    ----------
    rows, keys
        The nodes, and what the engine is to call them.
    expected
        {prefix: s}, what is known of how long they take.
    """
    expected = expected or {}

    def key(index: int | None) -> Hashable:
        return None if index is None else keys[index]

    return [
        FunctionSpec(
            key=keys[index],
            cost=row.cost,
            dependencies=tuple(keys[i] for i in row.dependencies),
            pin=row.pin,
            collocated=key(row.collocated),
            binds=key(row.binds),
            code=row.prefix,
            token=(row.prefix, row.label),
            expected=expected.get(row.prefix),
        )
        for index, row in enumerate(rows)
    ]


def allocation_error(
    function_id: Hashable, cost: Mapping[str, float], finding: Finding, context: str = ""
) -> AllocationError:
    """Return the error for a function that no worker can hold; `context` precedes the finding."""
    return AllocationError(
        function_id,
        cost,
        f"{context}{finding}",
        finding.nearest,
        finding.shortfall,
        finding.pin,
    )


@dataclass(frozen=True)
class RunSpec:
    """What a client tells the scheduler of a run before its graph arrives."""

    run_id: str
    dag_id: str
    client: str
    rows: tuple[tuple[Any, ...], ...]
    #: For clients that look at the run later: the DAG's id as the user has it, and the outline.
    own_id: bytes = b""
    outline: bytes = b""
    strategy: str = "packed"
    max_concurrency: int | None = None
    placement_timeout: float = 0.0
    priority: float = 0
    detach: bool = False
    #: Seconds that the run may take.
    timeout: float | None = None
    #: Nodes whose results are kept for who asked for them.
    wanted: frozenset[int] = frozenset()
    #: Nodes whose end the run waits for: these, and those that run only for their effects.
    awaited: frozenset[int] = frozenset()
    #: Whether the first function that fails for good stops the run.
    stops_at_failure: bool = True
    #: Key of the function that submitted the run, if any.
    within: Any = None

    @property
    def keeper(self) -> str:
        """Name of the client, so to speak, that keeps the results of a detached run."""
        return f"handoff-{self.run_id}"


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
    #: Attempts of functions that were not their first.
    retries: int = 0
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


@dataclass(frozen=True)
class RunReport:
    """What happened in a run, by the index of the node."""

    attempts: tuple[tuple[Any, ...], ...] = ()
    workers: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    failed: Mapping[int, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    stop: Stop | None = None
    over: bool = True
    arrived: bool = True
    decided: frozenset[int] = frozenset()

    def attempts_by_index(self) -> dict[int, list[Attempt]]:
        """Return the attempts of each node, the first first."""
        found: dict[int, list[Attempt]] = {}
        for index, number, worker, started, stopped, outcome, error, message, cost in self.attempts:
            name, host = self.workers[worker]
            found.setdefault(index, []).append(
                Attempt(
                    number,
                    worker,
                    name,
                    host,
                    started,
                    stopped,
                    cost,
                    outcome,
                    error,
                    message,
                )
            )
        return found

    def allocations(self, nodes: Sequence[Node]) -> dict[Hashable, str]:
        """Return the worker that made the result of each function."""
        return {
            nodes[a[0]].function.id: a[2]
            for a in self.attempts
            if a[5] == "ok" and nodes[a[0]].kind == "function"
        }


class Attempts(Mapping[Hashable, tuple[Attempt, ...]]):
    """The attempts of each function, made from a report when somebody looks."""

    def __init__(self, report: RunReport, nodes: Sequence[Node]) -> None:
        self._source: tuple[RunReport, Sequence[Node]] | None = report, nodes
        self._made: dict[Hashable, tuple[Attempt, ...]] = {}

    @property
    def _all(self) -> dict[Hashable, tuple[Attempt, ...]]:
        if self._source is not None:
            report, nodes = self._source
            self._made = {
                nodes[i].function.id: tuple(tried)
                for i, tried in report.attempts_by_index().items()
                if nodes[i].kind == "function"
            }
            self._source = None
        return self._made

    def __getitem__(self, function_id: Hashable) -> tuple[Attempt, ...]:
        return self._all[function_id]

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __repr__(self) -> str:
        return repr(self._all)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return dict, (self._all,)
