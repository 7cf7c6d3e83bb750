"""A function's life: its states, and the table that says which event leads from where to where.

A state carries its data. What the table lacks is an error that names the state and the event.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, NamedTuple, TypeAlias, Union

from handoff_dask.attempts.losses import Lost
from handoff_dask.model.attempt import UNKNOWN, Outcome, Usage

#: The states of a function as users see them, in the order of its life.
STATES = ("waiting", "held", "assigned", "running", "done", "failed", "cancelled")
#: What users see of a function that does not run because its result was in the store.
STORED = "stored"
#: Those of functions that have not ended.
UNENDED = frozenset(("waiting", "held", "assigned", "running"))


class Placement(NamedTuple):
    """Where a function was sent, and when."""

    #: The worker's address.
    worker: str
    #: Seconds since the epoch.
    at: float


class Failure(NamedTuple):
    """What a worker reported of an attempt that failed."""

    #: How it ended.
    outcome: Outcome
    #: Seconds since the epoch.
    started: float
    stopped: float
    #: What it raised.
    error_type: str | None
    message: str
    #: Whether another attempt may follow.
    retry: bool
    #: What that attempt claims; None if nothing changes.
    cost: Mapping[str, float] | None = None
    #: What is wrong with the retry policy, as a field and a text; no attempt follows then.
    problem: tuple[str, str] | None = None
    usage: Usage = UNKNOWN
    #: Whether its thread goes on: it took too long.
    late: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """Its inputs are not there."""

    name: ClassVar[str] = "waiting"
    shown: ClassVar[str] = "waiting"
    #: Whether its next start is a retry, which may have a delay.
    retry: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """Its inputs are there; it waits for a place."""

    name: ClassVar[str] = "held"
    shown: ClassVar[str] = "held"


@dataclass(frozen=True, slots=True)
class Assigned:
    """It was handed to a worker ahead, behind functions that run there. It has not started."""

    name: ClassVar[str] = "assigned"
    shown: ClassVar[str] = "assigned"
    placement: Placement


@dataclass(frozen=True, slots=True)
class Running:
    """It has a thread of a worker, or gets one as soon as its inputs have arrived there."""

    name: ClassVar[str] = "running"
    shown: ClassVar[str] = "running"
    placement: Placement
    #: Whether it gave its thread's slot back and keeps only its cost.
    seceded: bool = False


@dataclass(frozen=True, slots=True)
class Failing:
    """Its worker reported that the attempt failed; Dask's own message has yet to come."""

    name: ClassVar[str] = "failing"
    shown: ClassVar[str] = "running"
    placement: Placement
    failure: Failure
    seceded: bool = False


@dataclass(frozen=True, slots=True)
class Asking:
    """Its attempt was lost, and the worker or its nanny is asked whether it had started."""

    name: ClassVar[str] = "asking"
    shown: ClassVar[str] = "held"
    lost: Lost
    #: Whether its inputs are there.
    ready: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """It ended: done, failed for good, or cancelled."""

    name: str
    #: An attempt of it that was lost and is still being asked about.
    lost: Lost | None = None

    @property
    def shown(self) -> str:
        """The state as users see it."""
        return self.name


State: TypeAlias = Union[  # noqa: UP007 - evaluated at run time
    Waiting, Held, Assigned, Running, Failing, Asking, Ended
]
#: The states of a function that a worker has.
PLACED = (Assigned, Running, Failing)

WAITING = Waiting()
#: After a failed attempt.
RETRYING = Waiting(retry=True)
HELD = Held()
DONE = Ended("done")
FAILED = Ended("failed")

#: What can happen to a function in each state, and which state follows.
_TABLE: Mapping[str, Mapping[str, str]] = {
    "waiting": {
        "ready": "held",
        "result arrived": "done",
        "failed": "failed",
        "dropped": "cancelled",
        "taken by Dask": "assigned",
    },
    "held": {
        "handed ahead": "assigned",
        "placed": "running",
        "inputs lost": "waiting",
        "result arrived": "done",
        "failed": "failed",
        "dropped": "cancelled",
        "taken by Dask": "assigned",
    },
    "assigned": {
        "turned away": "held",
        "started": "running",
        "thread released": "running",
        "succeeded": "done",
        "failure reported": "failing",
        "failed": "failed",
        "lost": "asking",
    },
    "running": {
        "turned away": "held",
        "thread released": "running",
        "succeeded": "done",
        "failure reported": "failing",
        "failed": "failed",
        "lost": "asking",
    },
    "failing": {
        "tried again": "waiting",
        "succeeded": "done",
        "failed": "failed",
    },
    "asking": {
        "ready": "asking",
        "inputs lost": "asking",
        "answered": "waiting",
        "result arrived": "done",
        "failed": "failed",
        "dropped": "cancelled",
        "taken by Dask": "assigned",
    },
    "done": {
        "ready": "held",
        "result arrived": "done",
        "failed": "failed",
        "taken by Dask": "assigned",
    },
    "failed": {
        "pardoned": "waiting",
        "pardoned while asking": "asking",
        "answered": "failed",
        "result arrived": "done",
    },
    "cancelled": {
        "ready": "held",
        "ready while asking": "asking",
        "answered": "cancelled",
        "result arrived": "done",
        "failed": "failed",
        "taken by Dask": "assigned",
    },
}
#: {(state, event): the state that follows}.
TRANSITIONS: Mapping[tuple[str, str], str] = MappingProxyType(
    {(state, event): after for state, row in _TABLE.items() for event, after in row.items()}
)


class IllegalTransitionError(Exception):
    """An event came that a function's state does not allow."""


def check(before: State, event: str, after: State) -> None:
    """Raise IllegalTransitionError unless the table has this event for the state, leading there."""
    follows = TRANSITIONS.get((before.name, event))
    if follows != after.name:
        what = "is not expected" if follows is None else f"leads to {follows!r}, not {after.name!r}"
        raise IllegalTransitionError(f"{event!r} of a function that is {before.name!r} {what}")
