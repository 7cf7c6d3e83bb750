"""What a client tells the scheduler of a run, and what it is told."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from handoff_dask.errors import AllocationError
from handoff_dask.model.attempt import Attempt
from handoff_dask.model.expansion import Node
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.placement.events import Finding, FunctionSpec

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
    #: Whether the client wants to hear of its events.
    events: bool = False
    #: Key of the function that submitted the run, if any.
    within: Any = None

    @property
    def keeper(self) -> str:
        """Name of the client, so to speak, that keeps the results of a detached run."""
        return f"handoff-{self.run_id}"


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
