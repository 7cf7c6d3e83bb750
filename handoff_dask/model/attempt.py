"""The record of one start of a function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Outcome = Literal[
    "ok", "stored", "error", "worker-lost", "timeout", "cancelled", "out-of-memory", "process-died"
]


class Usage(NamedTuple):
    """What an attempt used; None where that is unknown.

    Attributes
    ----------
    cpu_time : float or None
        Seconds that it kept processors busy: of an isolated function, with all its threads and
        child processes; of any other, in the thread that called it.
    peak_memory : float or None
        The most memory of its process at one time, in MB, without its inputs; None if it was not
        isolated, since a process does not know how much of its memory belongs to which thread.
    result_bytes : int or None
        Size of its result, in bytes, as the worker measured it; None without a result.
    """

    cpu_time: float | None = None
    peak_memory: float | None = None
    result_bytes: int | None = None


#: Nothing is known.
UNKNOWN = Usage()


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a function, as the scheduler saw it.

    Attributes
    ----------
    number : int
        1 for the first attempt; 0 for a result that was in the store before the run began.
    worker, worker_name, host : str
        Address, name and host of the worker that ran it.
    started, stopped : float
        Seconds since the epoch.
    cost : Mapping
        What it claimed: {resource: amount}.
    outcome : str
        ``"ok"``, ``"error"``, ``"worker-lost"``, ``"timeout"`` or ``"cancelled"``; of an isolated
        function also ``"out-of-memory"`` (it used more than it claims) or ``"process-died"``.
        ``"stored"``: nothing ran, its result was in the store. Then the other fields say who made
        it, when, and what that took; `message` says where it is.
    error_type, message : str or None
        The failure, if any.
    usage : Usage
        The processor time, memory and size of the result, as far as they are known.
    """

    number: int
    worker: str
    worker_name: str
    host: str
    started: float
    stopped: float
    cost: Mapping[str, float] = field(default_factory=dict)
    outcome: Outcome = "ok"
    error_type: str | None = None
    message: str | None = None
    usage: Usage = UNKNOWN

    @property
    def earlier(self) -> bool:
        """Whether it was made before the run, whose store had its result."""
        return not self.number

    @property
    def duration(self) -> float:
        """Seconds from start to stop."""
        return self.stopped - self.started


def count_earlier(attempts: Mapping[Any, Iterable[Attempt]]) -> int:
    """Return how many functions did not run because their results were in the store."""
    return sum(attempt.earlier for tried in attempts.values() for attempt in tried)
