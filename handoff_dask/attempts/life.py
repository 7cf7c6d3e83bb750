"""One function's life: its state, its ledger, and what decides about its next attempt."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Protocol

from handoff_dask.attempts.ledger import Entry
from handoff_dask.attempts.losses import Lost
from handoff_dask.attempts.states import PLACED, WAITING, Asking, Ended, Failure, State, check
from handoff_dask.model.attempt import UNKNOWN, Outcome, Usage
from handoff_dask.model.retry import RetryPolicy


class Row(Protocol):
    """What a run says of a function."""

    @property
    def label(self) -> str:
        """The function as errors name it."""

    @property
    def cost(self) -> Mapping[str, float]:
        """What an attempt claims, unless its policy escalates."""

    @property
    def policy(self) -> RetryPolicy:
        """The numbers of its retry policy."""

    @property
    def learns_memory(self) -> bool:
        """Whether it also claims memory, as much as others of its code have used."""


class Life:
    """A function, from the arrival of its run to its end."""

    #: Whether it stands for several functions, which keep their attempts themselves.
    is_bundle = False
    __slots__ = (
        "avoid",
        "cost",
        "doom",
        "entries",
        "exceeded",
        "forgiven",
        "key",
        "late",
        "row",
        "state",
    )

    def __init__(self, key: Hashable, row: Row) -> None:
        #: The name of its task.
        self.key: Any = key
        #: What its run says of it.
        self.row = row
        #: What its next attempt claims.
        self.cost: Mapping[str, float] = row.cost
        #: Where it is in its life, with the data that belongs to that; see ``states``.
        self.state: State = WAITING
        #: Its ledger: each start that happened, the first first.
        self.entries: tuple[Entry, ...] = ()
        #: Workers where an attempt that was given up still has a thread, once for each.
        self.late: tuple[str, ...] = ()
        #: A worker from which its result could not be fetched: it is computed again elsewhere.
        self.avoid: str | None = None
        #: Why there is no further attempt, whatever retries are left.
        self.doom: Exception | None = None
        #: The most memory that attempts are known to have needed more than (MB).
        self.exceeded = 0.0
        #: Entries that count no more, because somebody had a function that had failed tried again.
        self.forgiven = 0

    @property
    def whose(self) -> str:
        """Whose it is, in words."""
        return ""

    def claimed_too_little(self, failure: Failure) -> bool:
        """Whether an attempt failed because of what it claimed by others' use: not its fault."""
        return self.row.learns_memory and failure.outcome == "out-of-memory"

    # What subclasses may react to

    def moved(self, before: State) -> None:
        """React to a change of the state."""

    def recorded(self, entry: Entry, replaced: Entry | None) -> None:
        """React to a change of the ledger."""

    # The state

    def enter(self, event: str, state: State) -> None:
        """Go to another state; raise IllegalTransitionError if the table has no such transition."""
        before = self.state
        check(before, event, state)
        self.state = state
        self.moved(before)

    @property
    def worker(self) -> str | None:
        """The worker that has it, or else the one that had its last attempt."""
        state = self.state
        if isinstance(state, PLACED):
            return state.placement.worker
        if isinstance(state, Asking):
            return state.lost.worker
        return self.entries[-1].worker if self.entries else None

    @property
    def lost(self) -> Lost | None:
        """The attempt that is being asked about, if any."""
        return self.state.lost if isinstance(self.state, (Asking, Ended)) else None

    # The ledger

    @property
    def untried(self) -> bool:
        """Whether its next attempt is like a first one."""
        return not (self.entries or self.late or self.avoid or self.doom)

    @property
    def failures(self) -> int:
        """How many attempts count against `max_retries`."""
        return sum(entry.counts for entry in self.entries[self.forgiven :])

    @property
    def deaths(self) -> list[Entry]:
        """The attempts that ended with their workers, and count."""
        return [e for e in self.entries[self.forgiven :] if e.counts and e.outcome == "worker-lost"]

    def has_result_of(self, worker: str, started: float) -> bool:
        """Whether an attempt is known as the one that made the result."""
        return any(
            e.outcome in ("ok", "stored") and e.worker == worker and e.started == started
            for e in self.entries
        )

    def record(
        self,
        worker: str,
        started: float,
        stopped: float,
        outcome: Outcome = "ok",
        message: str | None = None,
        counts: bool = False,
        error_type: str | None = None,
        usage: Usage = UNKNOWN,
    ) -> None:
        """Enter an attempt that started into the ledger."""
        number = len(self.entries) + 1
        entry = Entry(
            number, worker, started, stopped, outcome, error_type, message, self.cost, counts, usage
        )
        self.entries += (entry,)
        self.recorded(entry, None)

    def correct(self, started: float, stopped: float, usage: Usage) -> None:
        """Record that the last attempt ended well: its result came after it was given up."""
        last = self.entries[-1]
        entry = Entry(
            last.number, last.worker, started, stopped, "ok", None, None, last.cost, False, usage
        )
        self.entries = (*self.entries[:-1], entry)
        self.recorded(entry, last)
