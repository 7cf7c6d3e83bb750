"""What becomes of the functions of a bundle, by their position in it."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from handoff_dask.attempts.losses import Charge, End, Lost, charge
from handoff_dask.model.attempt import Outcome

#: States of a member: it is to run; it ended well, failed for good or was cancelled; or it travels
#: alone.
OPEN, DONE, FAILED, CANCELLED, LEFT = range(5)
#: The names of those in which it has ended.
ENDS: Mapping[int, str] = {DONE: "done", FAILED: "failed", CANCELLED: "cancelled"}


class Losses(NamedTuple):
    """What the loss of a bundle under way means for its members, by position."""

    #: Attempts that started and whose end nobody reported, the first first.
    charges: list[tuple[int, Charge]]
    #: Those that travel alone from here on.
    leave: set[int]


class Members:
    """The members of a bundle."""

    __slots__ = (
        "_charged",
        "_failures",
        "_number",
        "_stopped",
        "open_count",
        "states",
        "tries",
    )

    def __init__(self, count: int) -> None:
        self.states = bytearray(count)
        self.open_count = count
        #: How many attempts of each are in the ledger.
        self.tries = array("I", bytes(4 * count))
        #: The latest placement of which a report came, when the latest start in it ended, and how
        #: many of them failed.
        self._number = -1
        self._stopped = 0.0
        self._failures = 0
        #: (number of the placement, position) of starts that are charged already, or whose end was
        #: reported after the placement was lost.
        self._charged: set[tuple[int, int]] = set()

    @property
    def open(self) -> list[int]:
        """Those that are to run."""
        return [position for position, state in enumerate(self.states) if state == OPEN]

    @property
    def untried(self) -> bool:
        """Whether all are to run, and none has run before."""
        return self.open_count == len(self.states) and not any(self.tries)

    def having(self, state: int) -> list[int]:
        """Return those in a state."""
        return [position for position, own in enumerate(self.states) if own == state]

    def end(self, positions: Iterable[int], how: int) -> None:
        """Record the end of some that were to run."""
        for position in positions:
            self._set(position, how)

    def reopen(self, positions: Iterable[int]) -> None:
        """Have some run again."""
        for position in positions:
            self._set(position, OPEN)

    def leave(self, position: int) -> None:
        """Have one travel alone."""
        self._set(position, LEFT)

    def _set(self, position: int, state: int) -> None:
        self.open_count += (state == OPEN) - (self.states[position] == OPEN)
        self.states[position] = state

    def reported(
        self, number: int, positions: Iterable[int], stopped: float, *, failures: int = 0
    ) -> int:
        """Record attempts that a worker reported, in order; return how many are retries.

        `stopped` is the end of the last, and `failures` how many failed.
        """
        if number >= self._number:
            self._failures = failures + self._failures_reported(number)
            self._number, self._stopped = number, stopped
        return sum(map(self._count, positions))

    def _failures_reported(self, number: int) -> int:
        return self._failures if number == self._number else 0

    def _count(self, position: int) -> bool:
        self.tries[position] += 1
        return self.tries[position] > 1

    def uncharged(self, number: int, positions: Iterable[int]) -> list[int]:
        """Return the places among `positions` of starts that are not in the ledger already.

        A start whose end was not reported in time is.
        """
        charged = self._charged
        return [p for p, position in enumerate(positions) if (number, position) not in charged]

    def late(self, number: int, positions: Iterable[int]) -> None:
        """Record ends that were reported after their placement was lost: it charges no more."""
        self._charged.update((number, position) for position in positions)

    @property
    def has_charged(self) -> bool:
        """Whether :meth:`uncharged` may leave something out."""
        return bool(self._charged)

    def lost(self, lost: Lost, end: End, sources: Collection[Collection[int]] = ()) -> Losses:
        """Decide what the loss of a placement means; `sources` are those that each member needs.

        What was running is charged, and travels alone if that killed its worker. Those behind it
        had not started. Those before it had ended: if that was not reported and their worker is
        gone, they are in the ledger. Those that had failed count, and travel alone if no attempt
        is left, so that what needs them, which has not started, fails with them. The others do not
        count. If nobody knows what had started, each whose end was not reported is charged once,
        and all of these travel alone.
        """
        due = charge(lost, end)
        if due is None:
            return Losses([], set())
        died = lost.worker_gone and lost.died
        if end.started is None:
            unknown = self._unreported(lost.number)
            return Losses([self._charge(lost, p, due) for p in unknown], set(unknown))
        start = end.started[lost.number][-1]
        had_ended = start.position < -1
        position = -2 - start.position if had_ended else start.position
        unreported: list[tuple[int, bool]] = []  # and whether it failed
        leave: set[int] = set()
        if lost.worker_gone:  # a worker that is there reports the ends itself
            failed = start.failed_after(self._failures_reported(lost.number))
            leave = {-1 - p for p in failed if p < 0}
            had_failed = Counter(p if p >= 0 else -1 - p for p in failed)
            skipped = with_dependents(leave, sources) - leave
            for p in self._unreported(lost.number):
                if p < position and p not in skipped:
                    unreported += [(p, True)] * had_failed[p]
                    unreported += [(p, False)] * (p not in leave)
        if not had_ended:
            unreported += [(position, True)] * (start.attempt - 1 - self.tries[position])
        since = max(lost.placed, self._stopped) if lost.number == self._number else lost.placed
        until = lost.lost if had_ended else start.at
        step = max(0.0, until - since) / max(1, len(unreported))
        charges = []
        for place, (other, failed_) in enumerate(unreported):
            begun = until - step * (len(unreported) - place)
            outcome: Outcome = "error" if failed_ else "worker-lost"
            message = _FAILED if failed_ else _ENDED
            ended = Charge(begun, begun + step, outcome, message, failed_)
            charges.append(self._charge(lost, other, ended))
        if had_ended:
            # The result of one of them may have ended the worker.
            return Losses(charges, leave | {p for p, _ in unreported} if died else leave)
        if start.attempt > self.tries[position]:  # or else its end was reported
            charges.append(self._charge(lost, position, due))
            if died and self.states[position] == OPEN:
                leave.add(position)
        return Losses(charges, leave)

    def _unreported(self, number: int) -> list[int]:
        """Return those that are to run and are not in the ledger for a placement."""
        return [position for position in self.open if (number, position) not in self._charged]

    def _charge(self, lost: Lost, position: int, due: Charge) -> tuple[int, Charge]:
        self._charged.add((lost.number, position))
        self._count(position)
        return position, due


#: What is said of attempts that ended shortly before the placement was lost.
_FAILED = "it had failed, and its error was not reported"
_ENDED = "it had ended, and its result was lost with its worker; this does not count"


def with_dependents(positions: Collection[int], sources: Iterable[Collection[int]]) -> set[int]:
    """Return members and all that depend on them; `sources` are those that each one needs."""
    reached = set(positions)
    for position, needs in enumerate(sources):
        if not reached.isdisjoint(needs):
            reached.add(position)
    return reached


def with_sources(positions: Collection[int], sources: Collection[Collection[int]]) -> set[int]:
    """Return members and all that they depend on; `sources` are those that each one needs."""
    reached = set(positions)
    for position, needs in reversed(list(enumerate(sources))):
        if position in reached:
            reached.update(needs)
    return reached
