"""The messages between client and scheduler about a run."""

from __future__ import annotations

import pickle
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from handoff_dask.attempts.ledger import Entry
from handoff_dask.errors import AllocationError
from handoff_dask.model.attempt import Attempt
from handoff_dask.model.expansion import Node
from handoff_dask.model.function import FunctionType
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.placement.events import Finding, FunctionSpec
from handoff_dask.wire.keys import Key, node_key

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


class FunctionRow(NamedTuple):
    """A node of a run; it refers to others by their index."""

    #: The name of its code.
    prefix: str
    #: How messages name its function, whose id may be of the user's own type.
    label: str
    cost: Mapping[str, float]
    #: The nodes whose results it needs.
    dependencies: tuple[int, ...] = ()
    #: Names, addresses or hosts of the only workers that may run it; empty: any may.
    pin: tuple[str, ...] = ()
    #: Names, addresses or hosts of the workers that it rather runs on.
    preferred: tuple[str, ...] = ()
    #: Added to the run's.
    priority: float = 0
    #: The node whose worker it shares.
    collocated: int | None = None
    #: For a serializer: the node that must have a worker before it may start.
    binds: int | None = None
    #: For a transform: the producer and the consumer.
    source: int | None = None
    target: int | None = None
    #: How it is retried, without the user's code.
    policy: RetryPolicy = ONE_ATTEMPT
    #: Seconds that an attempt may take.
    timeout: float | None = None
    #: The policy with the user's code, pickled, if it escalates: asked when a worker died.
    escalation: bytes | None = None


def function_specs(
    rows: Sequence[FunctionRow],
    keys: Sequence[Hashable],
    expected: Mapping[str, float] | None = None,
) -> list[FunctionSpec]:
    """Return nodes as the placement engine takes them, under these keys.

    `expected` is how long each code takes, as far as that is known: {prefix: s}.
    """
    expected = expected or {}

    def key(index: int | None) -> Hashable:
        return None if index is None else keys[index]

    return [
        FunctionSpec(
            key=keys[index],
            cost=row.cost,
            dependencies=tuple(keys[i] for i in row.dependencies),
            priority=row.priority,
            pin=row.pin,
            preferred=row.preferred,
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
        function_id, cost, f"{context}{finding}", finding.nearest, finding.shortfall, finding.pin
    )


class FunctionOutline(NamedTuple):
    """A function of the user's, without what only workers need: code and arguments."""

    id: Hashable
    #: Ids of the functions whose results are its arguments.
    args: tuple[Hashable, ...]
    #: The name of its code.
    code: str
    cost: Mapping[str, float] | None
    node: Any
    type: FunctionType


@dataclass(frozen=True)
class RunSpec:
    """A run, described once: for the scheduler and for clients that follow the run."""

    #: Distinguishes it from every other run; 32 hexadecimal digits.
    run_id: str
    #: How the scheduler calls its DAG, whose id may be of the user's own type.
    dag_id: str
    client: str
    rows: Sequence[FunctionRow]
    #: The DAG's id as the user has it, pickled. The scheduler does not open it.
    own_id: bytes = b""
    #: The fields of a :class:`FunctionOutline` for each function of the DAG, pickled. The scheduler
    #: does not open it. Those that are nodes come in the order of the first rows.
    functions: bytes = b""
    strategy: str = "packed"
    max_concurrency: int | None = None
    placement_timeout: float = 0.0
    priority: float = 0
    #: Whether the cluster keeps the run without a client.
    detach: bool = False
    #: Seconds that the run may take.
    timeout: float | None = None
    #: Nodes whose results the user asked for, in that order.
    wanted: tuple[int, ...] = ()
    #: Nodes whose end the run waits for: these, and those that run only for their effects.
    awaited: frozenset[int] = frozenset()
    stops_at_failure: bool = True
    #: Key of the function that submitted the run, if one did.
    within: Any = None
    #: Whether its client subscribes to its events.
    events: bool = False

    @property
    def keeper(self) -> str:
        """Name under which the scheduler keeps the results of a detached run, as for a client."""
        return f"handoff-{self.run_id}"

    def packed(self) -> bytes:
        """Return it pickled."""
        # Rows go as plain tuples: pickling a named tuple takes several times as long.
        rows: Any = [tuple(row) for row in self.rows]
        return pickle.dumps(replace(self, rows=rows))

    @classmethod
    def unpacked(cls, packed: bytes) -> RunSpec:
        """Return what :meth:`packed` pickled."""
        spec: RunSpec = pickle.loads(packed)
        return replace(spec, rows=[FunctionRow(*fields) for fields in spec.rows])

    @property
    def keys(self) -> list[Key]:
        """The key of each node."""
        return [node_key(row.prefix, self.run_id, index) for index, row in enumerate(self.rows)]


@dataclass(frozen=True)
class RunReport:
    """What happened in a run, by the index of the node."""

    #: The starts of each node that have ended, the first first.
    attempts: Mapping[int, Sequence[Entry]] = field(default_factory=dict)
    #: {address: (name, host)} of every worker that ran something.
    workers: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    #: {index: problem} of the nodes that failed for good by themselves.
    failed: Mapping[int, str] = field(default_factory=dict)
    #: How many functions are in which state.
    counts: Mapping[str, int] = field(default_factory=dict)
    stop: Stop | None = None
    #: Whether everything that it waits for has ended.
    over: bool = True
    #: Whether the scheduler has its graph.
    arrived: bool = True
    #: Those of the failed nodes whose error is the scheduler's own.
    decided: frozenset[int] = frozenset()

    def attempts_of(self, node: int) -> tuple[Attempt, ...]:
        """Return the attempts of a node, the first first."""
        return tuple(entry.attempt(self.workers) for entry in self.attempts.get(node, ()))

    def allocations(self, nodes: Sequence[Node]) -> dict[Hashable, str]:
        """Return the worker that made the result of each function."""
        return {
            nodes[index].function.id: entry.worker
            for index, entries in self.attempts.items()
            for entry in entries
            if entry.outcome == "ok" and nodes[index].kind == "function"
        }
