"""The ledger of a function's attempts: every start that happened, and no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from handoff_dask.model.attempt import UNKNOWN, Attempt, Outcome, Usage


class Entry(NamedTuple):
    """One start of a function."""

    #: From 1.
    number: int
    #: The worker's address.
    worker: str
    #: Seconds since the epoch.
    started: float
    stopped: float
    #: How it ended.
    outcome: Outcome
    error_type: str | None
    message: str | None
    #: What it claimed: {resource: amount}.
    cost: Mapping[str, float]
    #: Whether it uses up one of the attempts that `max_retries` allows.
    counts: bool
    usage: Usage = UNKNOWN

    def attempt(self, workers: Mapping[str, tuple[str, str]]) -> Attempt:
        """Return it as users see it; `workers` has each worker's name and host, by address."""
        return Attempt(
            self.number,
            self.worker,
            *workers[self.worker],
            self.started,
            self.stopped,
            self.cost,
            self.outcome,
            self.error_type,
            self.message,
            Usage(*self.usage),
        )
