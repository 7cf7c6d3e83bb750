"""What an attempt is charged whose end nobody reported: its worker died, or it was taken back."""

from __future__ import annotations

import signal
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from handoff_dask.model.attempt import Outcome


@dataclass(frozen=True, slots=True, eq=False)
class Lost:
    """An attempt whose end nobody reported."""

    #: Where it was sent, and when (s since epoch).
    worker: str
    placed: float
    #: The scheduler's number of the placement.
    number: int
    #: When it was lost (s since epoch).
    lost: float
    #: Whether its worker is gone.
    worker_gone: bool
    #: Whether the worker died, rather than closed in order.
    died: bool
    #: What was not on its worker when it was placed there.
    inputs: Sequence[Any] = ()


class KnownStart(NamedTuple):
    """A start in a placement."""

    #: Of the function in its bundle; -1 for a function that travels alone. If the placement has
    #: ended: -2 - the first position that did not run.
    position: int
    #: Seconds since the epoch.
    at: float
    #: Which attempt of a bundle's function it is, the first is 1.
    attempt: int = 1
    #: How many attempts in its bundle have failed.
    failures: int = 0
    #: The positions of the latest of these; ``-1 - position`` if no other attempt follows.
    failed: Sequence[int] = ()

    def failed_after(self, reported: int) -> Sequence[int]:
        """Return what is known of the failures after the first `reported` of them."""
        return self.failed[max(0, len(self.failed) - (self.failures - reported)) :]


@dataclass(frozen=True, slots=True)
class End:
    """What a worker had started."""

    #: {number of the placement: starts, in order}; None if this is not known.
    started: Mapping[int, tuple[KnownStart, ...]] | None = None
    #: The placements whose threads have not ended.
    busy: frozenset[int] = frozenset()
    #: How the worker ended, if it did and that is known.
    reason: str | None = None


def by_placement(starts: Iterable[Sequence[Any]]) -> dict[int, tuple[KnownStart, ...]]:
    """Arrange starts, given in order as (placement, fields of ``KnownStart``), as in ``End``."""
    arranged: defaultdict[int, tuple[KnownStart, ...]] = defaultdict(tuple)
    for number, *start in starts:
        arranged[number] += (KnownStart(*start),)
    return dict(arranged)


class Charge(NamedTuple):
    """What a lost attempt that had started is recorded as."""

    #: Seconds since the epoch.
    started: float
    stopped: float
    #: How it ended.
    outcome: Outcome
    message: str | None
    #: Whether it uses up one of the function's attempts.
    counts: bool


def charge(lost: Lost, end: End) -> Charge | None:
    """Decide what a lost attempt is charged; None: it had not started, and costs nothing.

    A worker that dies uses up one attempt of each function that it ran, but not of one that had
    ended before another started. One that closes in order uses up none. If nobody can say what a
    worker had started, everything placed on it counts as started.
    """
    if end.started is not None and lost.number not in end.started:
        return None
    position, started = -1, lost.placed
    if end.started is not None:
        position, started, *_ = end.started[lost.number][-1]
    # What started there since may have ended the worker, rather than this.
    had_ended = position < -1 and any(
        starts[-1].at > started for starts in (end.started or {}).values()
    )
    message: str | None = None
    if lost.worker_gone:
        message = end.reason or (
            "lost for an unknown reason" if lost.died else "it closed in order"
        )
        if had_ended:
            message = f"it had ended when its worker was lost: {message}"
        if had_ended or not lost.died:
            message += "; this does not count"
    if end.started is None:
        message = f"{message or 'it was taken back'}; it is not known whether it had started"
    return Charge(
        started,
        max(started, lost.lost),
        "worker-lost" if lost.worker_gone else "cancelled",
        message,
        lost.worker_gone and lost.died and not had_ended,
    )


def ending_of_process(code: int, out_of_memory: bool) -> str:
    """Describe how a worker's process ended, by its exit code: -n if signal n killed it.

    `out_of_memory` says whether its nanny killed it at its memory limit.
    """
    if out_of_memory:
        return "out of memory: its nanny ended it at its memory limit"
    if code >= 0:
        return f"exited with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return f"killed by signal {-code}"
    return f"killed by signal {-code} ({name})"
