"""The messages between client and scheduler about a run."""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

from handoff_dask.attempts.ledger import Entry
from handoff_dask.errors import AllocationError
from handoff_dask.model.attempt import Attempt, Usage
from handoff_dask.model.expansion import Node
from handoff_dask.model.function import FunctionType
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.placement.events import Finding, FunctionSpec
from handoff_dask.wire.keys import BUNDLE, bundle_key

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

    #: Its place among the nodes of the run.
    index: int  # type: ignore[assignment] # instead of the method of tuples
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
    #: How long it should take, as its submitter says (s).
    expected: float | None = None
    #: Whether its result is asked for.
    wanted: bool = False
    #: Whether the run waits for its end: it is wanted, or runs only for its effects.
    awaited: bool = False
    #: Whether it also claims memory, as much as others of its code have used.
    learns_memory: bool = False

    @property
    def is_grouped(self) -> bool:
        """Whether where it runs depends on another node."""
        return self.collocated is not None or self.binds is not None


class BundleRow(NamedTuple):
    """Functions of a run that travel together, as one task."""

    #: Its place among the bundles of the run.
    number: int
    #: The nodes in it, in the order in which they run.
    members: tuple[int, ...]
    #: What an attempt of any of them claims.
    cost: Mapping[str, float]
    #: The nodes outside whose results they need.
    dependencies: tuple[int, ...]
    #: Added to the run's.
    priority: float
    #: How long they should take in sum, and after how long what has not started is given back (s).
    seconds: float
    patience: float
    #: The names of the members' codes, which are one if they share it.
    prefixes: tuple[str, ...]
    #: Whether the run waits for each member: a byte for each.
    awaited: bytes
    #: How messages name its first.
    label: str

    def prefix(self, position: int) -> str:
        """Return the name of the code of the member at a position."""
        return self.prefixes[position if len(self.prefixes) > 1 else 0]


def function_specs(
    rows: Sequence[FunctionRow],
    key: Callable[[int], Hashable],
    expected: Mapping[str, float] | None = None,
) -> list[FunctionSpec]:
    """Return nodes as the placement engine takes them.

    `key` returns the key of a node, and `expected` is how long each code takes, as far as that is
    known: {prefix: s}.
    """
    expected = expected or {}

    def other(index: int | None) -> Hashable:
        return None if index is None else key(index)

    return [
        FunctionSpec(
            key=key(row.index),
            cost=row.cost,
            dependencies=tuple(map(key, row.dependencies)),
            priority=row.priority,
            pin=row.pin,
            preferred=row.preferred,
            collocated=other(row.collocated),
            binds=other(row.binds),
            code=row.prefix,
            token=(row.prefix, row.label),
            expected=row.expected if row.expected is not None else expected.get(row.prefix),
        )
        for row in rows
    ]


def bundle_spec(bundle: BundleRow, run_id: str, key: Callable[[int], Hashable]) -> FunctionSpec:
    """Return a bundle as the placement engine takes it."""
    return FunctionSpec(
        key=bundle_key(run_id, bundle.number),
        cost=bundle.cost,
        dependencies=tuple(dict.fromkeys(map(key, bundle.dependencies))),
        priority=bundle.priority,
        code=BUNDLE,
        expected=bundle.seconds,
    )


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
    """A run without its functions, which follow in portions."""

    #: Distinguishes it from every other run; 32 hexadecimal digits.
    run_id: str
    #: How the scheduler calls its DAG, whose id may be of the user's own type.
    dag_id: str
    client: str
    #: One node of each kind, for which the cluster must have a worker: of its cost and its pin, and
    #: all of those that depend on where others run.
    kinds: Sequence[FunctionRow] = ()
    #: How many nodes it has, how many of them run, how many of these are functions of the user's,
    #: and how many it waits for.
    nodes: int = 0
    running: int = 0
    functions: int = 0
    awaited: int = 0
    #: How many functions do not run because their results are in a store. Which ones, for clients,
    #: pickled; the scheduler does not open it.
    stored: int = 0
    own_stored: bytes = b""
    #: {name of a code of its functions: what identifies that code in other runs as well}.
    codes: Mapping[str, str] = field(default_factory=dict)
    #: A node that is isolated, if any is.
    isolated: int | None = None
    #: Where to read and keep what is learned of them: a path or URL.
    learned: str | None = None
    #: The DAG's id as the user has it, pickled. The scheduler does not open it.
    own_id: bytes = b""
    strategy: str = "packed"
    max_concurrency: int | None = None
    placement_timeout: float = 0.0
    priority: float = 0
    #: Whether the cluster keeps the run without a client.
    detach: bool = False
    #: Seconds that the run may take.
    timeout: float | None = None
    #: The nodes whose results the user asked for, in that order; None: all that rows call wanted.
    order: tuple[int, ...] | None = None
    stops_at_failure: bool = True
    #: Key of the function that submitted the run, if one did.
    within: Any = None
    #: Whether its client subscribes to its events.
    events: bool = False

    @property
    def keeper(self) -> str:
        """Name under which the scheduler keeps results for the run itself, as for a client."""
        return f"handoff-{self.run_id}"

    def packed(self) -> bytes:
        """Return it pickled."""
        return pickle.dumps(replace(self, kinds=_plain(self.kinds)))

    @classmethod
    def unpacked(cls, packed: bytes) -> RunSpec:
        """Return what :meth:`packed` pickled."""
        spec: RunSpec = pickle.loads(packed)
        return replace(spec, kinds=_rows(spec.kinds))


class Opened(NamedTuple):
    """The scheduler's answer to the opening of a run."""

    #: A node that no worker can hold, and why.
    refused: tuple[int, Finding] | None
    #: How long each code takes (s), as far as that is known.
    seconds: Mapping[str, float]
    #: (code, digest of the label) of functions known to take far longer than others of their code.
    longer: Set[tuple[str, str]]
    #: How many threads could run each of the kinds at once, by the index of its node.
    threads: Mapping[int, int]
    #: A node that is isolated, and why workers cannot do that.
    unavailable: tuple[int, str] | None
    #: Whether all workers have nannies, which know what they had started when they died.
    nannies: bool


@dataclass(frozen=True)
class Portion:
    """Functions of a run that are sent together. The graph that follows it has their tasks."""

    run_id: str
    #: From 0.
    number: int
    #: Whether it is the last.
    last: bool
    #: The nodes that travel alone.
    rows: Sequence[FunctionRow]
    bundles: Sequence[BundleRow] = ()
    #: The rows of the nodes in bundles, in that order, pickled: only needed once one leaves.
    members: bytes = b""
    #: The fields of a :class:`FunctionOutline` for each of its functions, pickled. The scheduler
    #: does not open it.
    functions: bytes = b""

    def packed(self) -> bytes:
        """Return it pickled."""
        return pickle.dumps(replace(self, rows=_plain(self.rows), bundles=_plain(self.bundles)))

    @classmethod
    def unpacked(cls, packed: bytes) -> Portion:
        """Return what :meth:`packed` pickled."""
        portion: Portion = pickle.loads(packed)
        bundles = [BundleRow(*fields) for fields in portion.bundles]
        return replace(portion, rows=_rows(portion.rows), bundles=bundles)


def _plain(rows: Sequence[FunctionRow | BundleRow]) -> Any:
    # Pickling a named tuple takes several times as long.
    return list(map(tuple, rows))


def _rows(plain: Sequence[Any]) -> list[FunctionRow]:
    return [FunctionRow(*fields) for fields in plain]


def packed_rows(rows: Sequence[FunctionRow]) -> bytes:
    """Return rows pickled, as :attr:`Portion.members` has them."""
    return pickle.dumps(_plain(rows))


def unpacked_rows(packed: bytes) -> list[FunctionRow]:
    """Return what :func:`packed_rows` pickled."""
    return _rows(pickle.loads(packed))


class Block(NamedTuple):
    """Attempts of functions of a bundle that succeeded, in columns."""

    worker: str
    cost: Mapping[str, float]
    #: Of the nodes.
    indices: array[int]
    #: Seconds since the epoch.
    started: array[float]
    stopped: array[float]
    #: Seconds that they kept a processor busy, and bytes of their results.
    cpu_time: array[float]
    result_bytes: array[int]
    #: 1 for those whose result was read from the store.
    stored: array[int]

    def entry(self, number: int, place: int) -> Entry:
        """Return the attempt at a place of the columns, as the `number`-th of its function."""
        return Entry(
            number,
            self.worker,
            self.started[place],
            self.stopped[place],
            "stored" if self.stored[place] else "ok",
            None,
            None,
            self.cost,
            False,
            Usage(self.cpu_time[place], None, self.result_bytes[place]),
        )


@dataclass(frozen=True)
class RunReport:
    """What happened in a run, by the index of the node."""

    #: The starts of each node that have ended, the first first; of nodes in bundles only those that
    #: did not succeed.
    attempts: Mapping[int, Sequence[Entry]] = field(default_factory=dict)
    #: The attempts of nodes in bundles that succeeded.
    blocks: Sequence[Block] = ()
    #: {address: (name, host)} of every worker that ran something.
    workers: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    #: {address: {resource: amount}}: what the cluster's workers offered when the run was over.
    capabilities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    #: {index: problem} of the nodes that failed for good by themselves.
    failed: Mapping[int, str] = field(default_factory=dict)
    #: How many functions are in which state.
    counts: Mapping[str, int] = field(default_factory=dict)
    stop: Stop | None = None
    #: Whether it was stopped, or everything that it waits for has ended.
    over: bool = True
    #: Whether everything that it waits for has ended by itself, though it may have been stopped.
    ended: bool = True
    #: Whether the scheduler has its graph.
    arrived: bool = True
    #: How many tasks its functions were.
    tasks: int = 0
    #: Those of the failed nodes whose error is the scheduler's own.
    decided: frozenset[int] = frozenset()
    #: The nodes that left their bundles, and those that were cancelled by themselves.
    left: frozenset[int] = frozenset()
    cancelled: frozenset[int] = frozenset()

    @cached_property
    def _entries(self) -> Mapping[int, Sequence[Entry]]:
        """All attempts of each node, the first first."""
        if not self.blocks:
            return self.attempts
        entries: dict[int, list[Entry]] = {i: list(own) for i, own in self.attempts.items()}
        several = set(entries)
        for block in self.blocks:
            for place, index in enumerate(block.indices):
                # Those that left have all their attempts in `attempts`.
                if index not in self.left:
                    own = entries.setdefault(index, [])
                    own.append(block.entry(len(own) + 1, place))
                    if len(own) > 1:
                        several.add(index)
        for index in several - self.left:
            in_order = sorted(entries[index], key=lambda entry: entry.started)
            entries[index] = [e._replace(number=n) for n, e in enumerate(in_order, 1)]
        return entries

    @property
    def tried(self) -> Iterable[int]:
        """The nodes that have attempts."""
        return self._entries.keys()

    def attempts_of(self, node: int) -> tuple[Attempt, ...]:
        """Return the attempts of a node, the first first."""
        return tuple(entry.attempt(self.workers) for entry in self._entries.get(node, ()))

    def allocations(self, nodes: Sequence[Node]) -> dict[Hashable, str]:
        """Return the worker that made the result of each function."""
        made: list[str | None] = [None] * len(nodes)
        for block in self.blocks:
            for index, stored in zip(block.indices, block.stored, strict=True):
                if not stored:
                    made[index] = block.worker
        for index, entries in self.attempts.items():
            for entry in entries:
                if entry.outcome == "ok" and nodes[index].kind == "function":
                    made[index] = entry.worker
        return {
            node.function.id: worker
            for node, worker in zip(nodes, made, strict=True)
            if worker is not None
        }
