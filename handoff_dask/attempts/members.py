"""What becomes of the functions of a bundle, by their position in it."""

from __future__ import annotations

from array import array
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

    __slots__ = ("_charged", "_number", "_stopped", "open_count", "states", "tries")

    def __init__(self, count: int) -> None:
        self.states = bytearray(count)
        self.open_count = count
        #: How many attempts of each are in the ledger.
        self.tries = array("I", bytes(4 * count))
        #: The latest placement of which a report came, and when the latest start in it ended.
        self._number = -1
        self._stopped = 0.0
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

    def reported(self, number: int, positions: Iterable[int], stopped: float) -> int:
        """Record attempts that a worker reported, in order; return how many are retries.

        `stopped` is the end of the last.
        """
        if number >= self._number:
            self._number, self._stopped = number, stopped
        return sum(map(self._count, positions))

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

    def lost(self, lost: Lost, end: End) -> Losses:
        """Decide what the loss of a placement means.

        What was running is charged, and travels alone if that killed its worker. Those behind it
        had not started. Those before it had ended: if that was not reported and their worker is
        gone, they are in the ledger, and do not count. Earlier attempts of what was running had
        failed. If nobody knows what had started, each whose end was not reported is charged once,
        and all of these travel alone.
        """
        due = charge(lost, end)
        if due is None:
            return Losses([], set())
        died = lost.worker_gone and lost.died
        if end.started is None:
            unknown = self._unreported(lost.number)
            return Losses([self._charge(lost, p, due) for p in unknown], set(unknown))
        position, started, attempt = end.started[lost.number][-1]
        had_ended = position < -1
        position = -2 - position if had_ended else position
        # A worker that is there reports the ends itself.
        unreported = [p for p in self._unreported(lost.number) if p < position and lost.worker_gone]
        if lost.worker_gone and not had_ended:
            unreported += [position] * (attempt - 1 - self.tries[position])
        since = max(lost.placed, self._stopped) if lost.number == self._number else lost.placed
        until = lost.lost if had_ended else started
        step = max(0.0, until - since) / max(1, len(unreported))
        charges = []
        for place, other in enumerate(unreported):
            begun = until - step * (len(unreported) - place)
            failed = other == position
            outcome: Outcome = "error" if failed else "worker-lost"
            message = _FAILED if failed else _ENDED
            ended = Charge(begun, begun + step, outcome, message, failed)
            charges.append(self._charge(lost, other, ended))
        if had_ended:
            # The result of one of them may have ended the worker.
            return Losses(charges, set(unreported) if died else set())
        if attempt <= self.tries[position]:
            return Losses(charges, set())  # its end was reported
        charges.append(self._charge(lost, position, due))
        return Losses(charges, {position} if died and self.states[position] == OPEN else set())

    def _unreported(self, number: int) -> list[int]:
        """Return those that are to run and are not in the ledger for a placement."""
        return [position for position in self.open if (number, position) not in self._charged]

    def _charge(self, lost: Lost, position: int, due: Charge) -> tuple[int, Charge]:
        self._charged.add((lost.number, position))
        self._count(position)
        return position, due


#: What is said of attempts that ended shortly before their worker.
_FAILED = "it had failed, and its error was lost with its worker"
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
