"""The ledger of a function's attempts: every start that happened, and no other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from handoff_dask.model.attempt import Attempt, Outcome


class Entry(NamedTuple):
    """One start of a function.

    Parameters
    ----------
    number
        From 1.
    worker
        The worker's address.
    started, stopped
        Seconds since the epoch.
    outcome, error_type, message
        How it ended.
    cost
        What it claimed: {resource: amount}.
    counts
        Whether it uses up one of the attempts that `max_retries` allows.
    """

    number: int
    worker: str
    started: float
    stopped: float
    outcome: Outcome
    error_type: str | None
    message: str | None
    cost: Mapping[str, float]
    counts: bool

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
        )
