"""Lanes for bars by time: what overlaps gets lanes of its own.

`lay_out` places the bars of a finished timeline; `Lanes` those of one that goes on.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

#: Share of a row's height that stays empty above its bars, and below.
GAP = 0.08
#: Seconds that two bars in a lane may overlap: clocks are not exact, and times are rounded. In a
#: timeline that goes on, starts come from the scheduler's clock and ends from the workers'.
ROUNDING = 1e-6
SLACK = 0.1
#: Seconds after its placement within which an attempt may have waited for another to end.
RECENT = 2.0
#: How many lanes a row may be divided into.
STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


class Row:
    """The lanes of one worker."""

    def __init__(self, name: str = "", slack: float = SLACK) -> None:
        self.name = name
        #: Seconds that two bars in a lane may overlap.
        self.slack = slack
        #: When each lane becomes free.
        self.until: list[float] = []
        #: As drawn: the row's number from the top, and how many lanes it is divided into.
        self.place = 0
        self.lanes = 1

    def free(self, now: float) -> int | None:
        """Return the first lane that is free at a time."""
        limit = now + self.slack
        return next((lane for lane, until in enumerate(self.until) if until <= limit), None)

    def take(self, started: float, stopped: float) -> int:
        """Return the first lane that is free at a time, new if need be, and take it."""
        lane = self.free(started)
        if lane is None:
            lane = len(self.until)
        self.until[lane : lane + 1] = [stopped]
        return lane

    def y(self, lane: int) -> float:
        """Return where the middle of a lane is drawn."""
        return self.place + GAP + (1 - 2 * GAP) * (lane + 0.5) / self.lanes

    @property
    def height(self) -> float:
        """How high a lane is drawn."""
        return 0.9 * (1 - 2 * GAP) / self.lanes


def lay_out(spans: Sequence[tuple[float, float]]) -> list[int]:
    """Return a lane for each span (start, stop): the lowest that is free when it starts.

    Examples
    --------
    >>> lay_out([(0, 2), (1, 3), (2, 4)])
    [0, 1, 0]
    """
    row = Row(slack=ROUNDING)
    lanes = [0] * len(spans)
    for i in sorted(range(len(spans)), key=spans.__getitem__):
        lanes[i] = row.take(*spans[i])
    return lanes


class Lanes:
    """The rows of all workers, as attempts begin and end.

    Examples
    --------
    >>> lanes = Lanes()
    >>> lanes.begun("f", "tcp://a", placed=0.0, now=0.1)
    (0, 0.0)
    >>> lanes.ended("f", "tcp://a", started=0.0, stopped=1.0)
    0
    """

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        #: Attempts that go on: (worker, lane, since when).
        self._taken: dict[Hashable, tuple[str, int, float]] = {}

    def row(self, worker: str, name: str = "") -> Row:
        """Return the row of a worker, new if need be."""
        row = self.rows.get(worker)
        if row is None:
            row = self.rows[worker] = Row(name or worker)
        return row

    def begun(self, attempt: Hashable, worker: str, placed: float, now: float) -> tuple[int, float]:
        """Return the lane of an attempt that goes on, and since when, as far as is known.

        An attempt handed ahead is placed before it starts. It cannot have started before its lane
        was free. Only short functions are handed ahead, so that was not long ago.
        """
        taken = self._taken.get(attempt)
        if taken is None:
            row = self.row(worker)
            since = placed
            if now <= placed + RECENT and row.free(placed) is None:
                lane = row.free(now)
                if lane is not None:
                    since = max(placed, row.until[lane])
            taken = self._taken[attempt] = worker, row.take(since, float("inf")), since
        return taken[1], taken[2]

    def ended(self, attempt: Hashable, worker: str, started: float, stopped: float) -> int:
        """Return the lane of an attempt that ended, whether it was seen going on or not."""
        row = self.row(worker)
        _, lane, _ = self._taken.pop(attempt, (worker, len(row.until), started))
        if lane >= len(row.until):
            return row.take(started, stopped)
        row.until[lane] = stopped
        return lane

    def prune(self, here: set[Hashable], workers: set[str], now: float, window: float) -> None:
        """Free the lanes of attempts that no longer go on, and drop what is out of sight."""
        for attempt in self._taken.keys() - here:
            worker, lane, _ = self._taken.pop(attempt)
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
