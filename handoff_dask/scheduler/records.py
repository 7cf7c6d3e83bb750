"""What the scheduler remembers of a run: its functions, and what became of them."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, cast

from handoff_dask.attempts.ledger import Entry
from handoff_dask.attempts.life import Life
from handoff_dask.attempts.members import CANCELLED, DONE, ENDS, FAILED, Members
from handoff_dask.attempts.states import STATES, STORED, UNENDED, State
from handoff_dask.errors import AllocationError
from handoff_dask.model.attempt import Attempt
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.placement.events import Finding
from handoff_dask.wire.keys import BUNDLE, Key, node_key
from handoff_dask.wire.messages import (
    FATES,
    Block,
    BundleRow,
    FunctionRow,
    Portion,
    RunReport,
    RunSpec,
    Stop,
    allocation_error,
    unpacked_rows,
)
from handoff_dask.wire.run_events import AttemptEnded, AttemptsEnded, FunctionEnded, Recorded

#: Of so many portions the rows of nodes in bundles are kept open; they are rarely asked for.
OPENED = 2
#: A bundle never fails by itself: its functions leave it instead.
ONE_RETRY = RetryPolicy(1)


class UnitRecord(Life):
    """What is placed by itself: one node of a run, or several that travel together."""

    __slots__ = ("refetched", "run")
    row: FunctionRow

    def __init__(self, key: Any, run: RunRecord, row: FunctionRow) -> None:
        super().__init__(key, row)
        #: The run.
        self.run = run
        #: Whether an input that did not arrive got a second try.
        self.refetched = False

    @property
    def index(self) -> int:
        """The index of its node in the run; of a bundle, that of its first."""
        return self.row.index

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

    @property
    def size(self) -> int:
        """How many functions it would run."""
        return 1

    def attempts_to_come(self) -> Iterator[tuple[int, int]]:
        """Yield (node, number of its next attempt) for each function that it would run."""
        yield self.index, len(self.entries) + 1


class FunctionRecord(UnitRecord):
    """One node of a run that travels alone: a function, or a transform of an argument."""

    __slots__ = ()

    def moved(self, before: State) -> None:
        """Keep the run's counts, and announce an end."""
        run, left, entered = self.run, before.shown, self.state.shown
        if left == entered:
            return
        if not self.is_transform:
            run.counts[left] -= 1
            run.counts[entered] += 1
        ended = entered not in UNENDED
        if self.row.awaited:
            run.unended += (not ended) - (left in UNENDED)
        if ended:
            problem = run.failed.get(self.index)
            run.ended_now()
            run.emit(FunctionEnded(run.spec.run_id, run.latest, self.index, entered, problem))

    def recorded(self, entry: Entry, replaced: Entry | None) -> None:
        """Announce the end of an attempt."""
        run = self.run
        if entry.number > 1 and replaced is None and not self.is_transform:
            run.retries += 1
        run.attempt_ended(self.index, entry)


class BundleRecord(UnitRecord):
    """Functions of a run that travel together, as one task."""

    __slots__ = ("blocks", "bundle", "members", "rows")
    is_bundle = True

    def __init__(self, key: Any, run: RunRecord, bundle: BundleRow) -> None:
        row = FunctionRow(
            bundle.members[0],
            BUNDLE,
            f"{bundle.label} and {len(bundle.members) - 1} more",
            bundle.cost,
            bundle.dependencies,
            priority=bundle.priority,
            policy=ONE_RETRY,
        )
        super().__init__(key, run, row)
        self.bundle = bundle
        #: What became of each.
        self.members = Members(len(bundle.members))
        #: Attempts of them that succeeded.
        self.blocks: list[Block] = []

    @property
    def size(self) -> int:
        """How many functions it would run."""
        return self.members.open_count

    def position(self, index: int) -> int:
        """Return the position of a node."""
        return self.bundle.members.index(index)

    def moved(self, before: State) -> None:
        """Keep the run's counts of those that have not ended."""
        left, entered = before.shown, self.state.shown
        if left != entered:
            self.count(left, -1)
            if entered in UNENDED or entered == "done":
                self.count(entered, 1)
            else:
                self.end(self.members.open, CANCELLED if entered == "cancelled" else FAILED)

    def count(self, shown: str, sign: int) -> None:
        """Count those that have not ended, while the bundle is in a state."""
        counts, number = self.run.counts, sign * self.members.open_count
        if shown == "running" and number:
            # One at a time; the others wait behind it.
            counts["running"] += sign
            counts["assigned"] += number - sign
        elif shown == "done":  # given back: they are about to leave
            counts["waiting"] += number
        elif shown in UNENDED:
            counts[shown] += number

    def end(self, positions: Iterable[int], how: int) -> None:
        """Record that members have ended, well or not."""
        run, shown = self.run, self.state.shown
        positions = list(positions)
        if shown in UNENDED or shown == "done":
            self.count(shown, -1)
        self.members.end(positions, how)
        if shown in UNENDED or shown == "done":
            self.count(shown, 1)
        name = ENDS[how]
        run.counts[name] += len(positions)
        awaited = self.bundle.awaited
        run.unended -= sum(awaited[position] for position in positions)
        run.ended_now()
        run.members_ended(self, positions, name)

    def reopen(self, positions: Collection[int]) -> None:
        """Record that members run again that had ended: their results are lost."""
        run, shown = self.run, self.state.shown
        for position in positions:
            run.counts[ENDS[self.members.states[position]]] -= 1
            run.unended += self.bundle.awaited[position]
        if shown in UNENDED or shown == "done":
            self.count(shown, -1)
        self.members.reopen(positions)
        if shown in UNENDED or shown == "done":
            self.count(shown, 1)

    def leave(self, position: int) -> FunctionRecord:
        """Return the record of a member that travels alone from here on."""
        run, index, shown = self.run, self.bundle.members[position], self.state.shown
        own = FunctionRecord(run.key_of(index), run, run.row(index))
        own.entries = self.entries_of(position)
        if shown in UNENDED or shown == "done":
            self.count(shown, -1)
            self.members.leave(position)
            self.count(shown, 1)
        else:
            self.members.leave(position)
        run.counts["waiting"] += 1
        run.records[index] = own
        run.left.add(index)
        return own

    def entries_of(self, position: int) -> tuple[Entry, ...]:
        """Return the attempts of a member, the first first."""
        index = self.bundle.members[position]
        entries = list(self.run.entries.pop(index, ()))
        for block in self.blocks:
            entries += [
                block.entry(0, place) for place, other in enumerate(block.indices) if other == index
            ]
        entries.sort(key=lambda entry: entry.started)
        return tuple(entry._replace(number=number) for number, entry in enumerate(entries, 1))

    def record(self, *attempt: Any, **facts: Any) -> None:
        """Record nothing: the attempts are the members'."""

    def attempts_to_come(self) -> Iterator[tuple[int, int]]:
        """Yield (node, number of its next attempt) for each function that it would run."""
        for position in self.members.open:
            yield self.bundle.members[position], self.members.tries[position] + 1


@dataclass(eq=False)
class RunRecord:
    """A run on the scheduler."""

    spec: RunSpec
    #: `spec` as it came, for clients that follow the run.
    opening: bytes
    #: Hears of what happens in it.
    emit: Callable[[Recorded], None]
    #: Returns what the cluster's workers offer: {address: {resource: amount}}.
    offers: Callable[[], Mapping[str, Mapping[str, float]]]
    #: By index: the nodes that travel alone.
    records: dict[int, FunctionRecord] = field(default_factory=dict)
    bundles: list[BundleRecord] = field(default_factory=list)
    #: The number of the bundle that each node travels in or once did, or -1.
    homes: array[int] = field(init=False)
    #: The nodes that left their bundles, and those that were cancelled by themselves.
    left: set[int] = field(default_factory=set)
    cancelled: set[int] = field(default_factory=set)
    #: Attempts of nodes in bundles that did not succeed.
    entries: dict[int, tuple[Entry, ...]] = field(default_factory=dict)
    #: {index: exception, pickled} of those of them that failed for good, and of those that left a
    #: bundle that is released.
    errors: dict[int, Any] = field(default_factory=dict)
    #: The portions that have come, packed, for clients that follow the run.
    portions: list[bytes] = field(default_factory=list)
    #: For each bundle: the portion it came in, and the place of its first among the rows there.
    bundles_in: list[tuple[int, int]] = field(default_factory=list)
    #: How many of their graphs have come, and how many there are, once that is known.
    graphs: int = 0
    #: What clients asked for of functions that have not come: it is done when they have.
    asked: list[Callable[[], None]] = field(default_factory=list)
    #: How many functions are still to come.
    unsent: int = field(init=False)
    graphs_expected: int | None = None
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
    #: Set when all graphs have arrived, or no more will.
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    #: When it was opened (s since epoch).
    opened: float = field(default_factory=time.time)
    #: When the latest of its functions ended (s since epoch).
    latest: float = 0.0
    #: What they offered when it was over.
    capabilities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
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
        self.unended = self.spec.awaited
        self.unsent = self.spec.functions
        self.homes = array("i", [-1]) * self.spec.nodes
        self.counts["waiting"] = self.spec.functions
        self._members: dict[int, list[FunctionRow]] = {}

    @property
    def units(self) -> Iterator[UnitRecord]:
        """All that is placed by itself."""
        return chain(list(self.records.values()), self.bundles)

    def bundle_of(self, index: int) -> BundleRecord | None:
        """Return the bundle that a node travels in; None if it travels alone, or has not come."""
        home = self.homes[index]
        return None if home < 0 or index in self.left else self.bundles[home]

    def row(self, index: int) -> FunctionRow:
        """Return what the run says of a node."""
        if index in self.records:
            return self.records[index].row
        home = self.homes[index]
        number, first = self.bundles_in[home]
        if number not in self._members:
            while len(self._members) >= OPENED:
                del self._members[next(iter(self._members))]
            portion = Portion.unpacked(self.portions[number])
            self._members[number] = unpacked_rows(portion.members)
        position = self.bundles[home].position(index)
        return self._members[number][first + position]

    def key_of(self, index: int) -> Key:
        """Return the key of the task that has a node's result by itself."""
        if index in self.records:
            return cast("Key", self.records[index].key)
        bundle = self.bundles[self.homes[index]]
        prefix = bundle.bundle.prefix(bundle.position(index))
        return node_key(prefix, self.spec.run_id, index)

    def unit_key(self, index: int) -> Any:
        """Return the key of what is placed when a node is; None if it has not come."""
        bundle = self.bundle_of(index)
        if bundle is not None:
            return bundle.key
        return self.records[index].key if index in self.records else None

    def is_lacking(self, index: int) -> bool:
        """Whether the result of a node is not there."""
        bundle = self.bundle_of(index)
        if bundle is not None:
            return bundle.members.states[bundle.position(index)] != DONE
        return index not in self.records or self.records[index].state.name != "done"

    def maker_of(self, index: int) -> str | None:
        """Return the worker that made a node's result."""
        return (self.bundle_of(index) or self.records[index]).worker

    def first_start(self, index: int, attempt: Attempt) -> float:
        """Return when the first attempt of a node started, given its latest (s since epoch)."""
        entries = self.records[index].entries if index in self.records else ()
        return entries[0].started if entries else attempt.started

    def pardon(self, index: int) -> None:
        """Forget that a node has failed for good: it is tried again."""
        self.failed.pop(index, None)
        self.decided.discard(index)
        self.errors.pop(index, None)

    def attempt_ended(self, index: int, entry: Entry) -> None:
        """Announce the end of an attempt."""
        attempt = entry.attempt(self.workers)
        self.emit(AttemptEnded(self.spec.run_id, time.time(), index, attempt))

    def block_ended(self, record: BundleRecord, block: Block) -> None:
        """Announce attempts of functions of a bundle that succeeded."""
        self.emit(AttemptsEnded(self.spec.run_id, time.time(), block))
        if self.spec.events:
            place = {index: p for p, index in enumerate(record.bundle.members)}
            tries = record.members.tries
            for number, index in enumerate(block.indices):
                self.attempt_ended(index, block.entry(tries[place[index]], number))

    def members_ended(self, record: BundleRecord, positions: Sequence[int], how: str) -> None:
        """Announce the ends of functions of a bundle."""
        if self.spec.events:
            now, run_id = time.time(), self.spec.run_id
            for position in positions:
                index = record.bundle.members[position]
                problem = self.failed.get(index)
                self.emit(FunctionEnded(run_id, now, index, how, problem))

    def ended_now(self) -> None:
        """Record that functions have just ended and, if nothing is waited for, the workers."""
        self.latest = time.time()
        if self.over and not self.capabilities:
            self.capabilities = self.offers()

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
            attempts={
                **{index: r.entries for index, r in self.records.items() if r.entries},
                **self.entries,
            },
            blocks=[block for record in self.bundles for block in record.blocks],
            workers=dict(self.workers),
            capabilities=self.capabilities,
            failed=dict(self.failed),
            counts=self.counted(),
            stop=self.stop,
            over=self.over,
            # What stopping it cancelled has not ended by itself.
            ended=not self.unended and self.counts["cancelled"] == len(self.cancelled),
            arrived=self.arrived.is_set(),
            decided=frozenset(self.decided),
            tasks=len(self.records) + len(self.bundles),
            left=frozenset(self.left),
            cancelled=frozenset(self.cancelled),
        )

    def counted(self) -> dict[str, int]:
        """Return how many functions are in which state."""
        counts = {state: self.counts[state] for state in STATES}
        if self.spec.stored is not None:
            counts[STORED] = self.spec.stored
        return counts
