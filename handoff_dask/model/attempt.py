"""The record of one start of a function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["ok", "error", "worker-lost", "timeout", "cancelled"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One start of a function, as the scheduler saw it.

    Attributes
    ----------
    number : int
        1 for the first attempt.
    worker, worker_name, host : str
        Address, name and host of the worker that ran it.
    started, stopped : float
        Seconds since the epoch.
    cost : Mapping
        What it claimed: {resource: amount}.
    outcome : str
        ``"ok"``, ``"error"``, ``"worker-lost"``, ``"timeout"`` or ``"cancelled"``.
    error_type, message : str or None
        The failure, if any.
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

    @property
    def duration(self) -> float:
        """Seconds from start to stop."""
        return self.stopped - self.started
