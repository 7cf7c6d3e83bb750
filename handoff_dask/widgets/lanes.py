"""Where the bars of attempts go: a row for each worker, and lanes in it for what runs at once."""

from __future__ import annotations

from collections.abc import Hashable

__all__ = ["Lanes", "Row"]

#: Share of a row's height that stays empty above its bars, and below.
GAP = 0.08
#: Seconds by which two attempts in a lane may seem to overlap: clocks are not exact.
SLACK = 0.1
#: Seconds within which an attempt may have begun later than it was placed.
RECENT = 2.0
#: How many lanes a row may be divided into.
STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class Row:
    """A worker's row.

    Parameters
    ----------
    name
        What the worker is called.
    """

    __slots__ = ("lanes", "name", "place", "until")

    def __init__(self, name: str) -> None:
        self.name = name
        #: When each lane becomes free (s since epoch).
        self.until: list[float] = []
        #: As drawn: the row's number from the top, and how many lanes it is divided into.
        self.place = 0
        self.lanes = 1

    def free(self, now: float) -> list[int]:
        """Return the lanes that are free at a time."""
        return [lane for lane, until in enumerate(self.until) if until <= now + SLACK]

    def take(self, started: float, stopped: float) -> int:
        """Return the first lane that is free at a time, new if need be, and take it."""
        lane = next(iter(self.free(started)), len(self.until))
        self.until[lane : lane + 1] = [stopped]
        return lane

    def y(self, lane: int) -> float:
        """Return where the middle of a lane is drawn."""
        return self.place + GAP + (1 - 2 * GAP) * (lane + 0.5) / self.lanes

    @property
    def height(self) -> float:
        """How high a lane is drawn."""
        return 0.9 * (1 - 2 * GAP) / self.lanes


class Lanes:
    """The rows of all workers.

    Examples
    --------
    >>> lanes = Lanes()
    >>> row = lanes.row("tcp://a", "a")
    >>> lanes.begun("f", "tcp://a", placed=0.0, now=0.1)
    (0, 0.0)
    >>> lanes.begun("g", "tcp://a", placed=0.0, now=0.1)
    (1, 0.0)
    >>> lanes.ended("f", "tcp://a", started=0.0, stopped=1.0)
    0
    >>> lanes.begun("h", "tcp://a", placed=0.5, now=2.0)
    (0, 1.0)
    >>> lanes.arrange(), row.lanes
    (True, 2)
    """

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        #: Where the attempts are that run: (worker, lane, since when).
        self.taken: dict[Hashable, tuple[str, int, float]] = {}

    def row(self, worker: str, name: str | None = None) -> Row:
        """Return the row of a worker, new if need be."""
        row = self.rows.get(worker)
        if row is None:
            row = self.rows[worker] = Row(worker if name is None else name)
        return row

    def begun(self, attempt: Hashable, worker: str, placed: float, now: float) -> tuple[int, float]:
        """Return the lane of an attempt that runs, and since when it runs as far as is known.

        What a worker was handed ahead is placed before it begins: not before its lane was free.
        Only short functions are, so that it cannot have been long ago.
        """
        found = self.taken.get(attempt)
        if found is None:
            row = self.row(worker)
            since = placed
            if now <= placed + RECENT and not row.free(placed) and (free := row.free(now)):
                since = max(placed, row.until[free[0]])
            found = self.taken[attempt] = worker, row.take(since, float("inf")), since
        return found[1], found[2]

    def ended(self, attempt: Hashable, worker: str, started: float, stopped: float) -> int:
        """Return the lane of an attempt that ended, which may not have been seen running."""
        row = self.row(worker)
        found = self.taken.pop(attempt, None)
        if found is None or found[1] >= len(row.until):
            return row.take(started, stopped)
        row.until[found[1]] = stopped
        return found[1]

    def prune(self, here: set[Hashable], workers: set[str], now: float, window: float) -> None:
        """Free the lanes of attempts that do not run any more, and drop what is out of sight."""
        for attempt in self.taken.keys() - here:
            worker, lane, _ = self.taken.pop(attempt)
            if worker in self.rows:
                self.rows[worker].until[lane] = now
        for worker, row in list(self.rows.items()):
            while row.until and row.until[-1] < now - window:
                row.until.pop()
            if not row.until and worker not in workers:
                del self.rows[worker]

    def arrange(self) -> bool:
        """Give each row its place; return whether one changed."""
        changed = False
        for place, row in enumerate(self.rows.values()):
            # In steps, so that it seldom changes.
            lanes = next((n for n in STEPS if n >= len(row.until)), len(row.until))
            if (row.place, row.lanes) != (place, lanes):
                row.place, row.lanes = place, lanes
                changed = True
        return changed
