"""What becomes of the functions of a bundle, by their position in it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from handoff_dask.attempts.losses import Charge, End, Lost, charge

#: States of a member: it is to run; it ended well, failed for good or was cancelled; or it travels
#: alone.
OPEN, DONE, FAILED, CANCELLED, LEFT = range(5)
#: The names of those in which it has ended.
ENDS: Mapping[int, str] = {DONE: "done", FAILED: "failed", CANCELLED: "cancelled"}


class Losses(NamedTuple):
    """What the loss of a bundle under way means for its members, by position."""

    #: Attempts that started and whose end nobody reported.
    charges: list[tuple[int, Charge]]
    #: Those that travel alone from here on.
    leave: set[int]
    #: Those that had ended well and run again, as their results are lost.
    again: set[int]


class Members:
    """The members of a bundle."""

    __slots__ = ("_charged", "open_count", "states")

    def __init__(self, count: int) -> None:
        self.states = bytearray(count)
        self.open_count = count
        #: (number of the placement, position) of starts that are charged already.
        self._charged: set[tuple[int, int]] = set()

    @property
    def open(self) -> list[int]:
        """Those that are to run."""
        return [position for position, state in enumerate(self.states) if state == OPEN]

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

    def is_charged(self, number: int, position: int) -> bool:
        """Whether a start is in the ledger although its end was not reported."""
        return (number, position) in self._charged

    def lost(self, lost: Lost, end: End) -> Losses:
        """Decide what the loss of a placement means.

        Only what was running is charged, and travels alone if that killed its worker. Those before
        it had ended; those behind it had not started. If nobody knows what had started, each whose
        end was not reported is charged once, and all of these travel alone.
        """
        died = lost.worker_gone and lost.died
        again = set(self.having(DONE)) if lost.worker_gone else set()
        if end.started is None:
            due = charge(lost, end)
            assert due is not None
            unknown = self.open
            charges = [(position, due) for position in unknown]
            self._charged.update((lost.number, position) for position in unknown)
            return Losses(charges, set(unknown), again)
        starts = end.started.get(lost.number, ())
        charges = []
        leave: set[int] = set()
        for place, (position, started) in enumerate(starts):
            if self.states[position] != OPEN or (lost.number, position) in self._charged:
                continue
            last = place == len(starts) - 1
            if not last and not lost.worker_gone:
                continue  # its worker will report its end
            due = charge(lost, end)
            assert due is not None
            if not last:
                stopped = starts[place + 1][1]
                text = "it had ended, and its result was lost with its worker; this does not count"
                due = due._replace(started=started, stopped=stopped, message=text, counts=False)
            elif died:
                leave.add(position)
            charges.append((position, due))
            self._charged.add((lost.number, position))
        return Losses(charges, leave, again)


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
