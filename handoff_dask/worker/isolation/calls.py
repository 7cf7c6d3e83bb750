"""What a worker and the processes of isolated functions tell each other.

Unlike the rest of this package, this module can be imported on every system.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from handoff_dask.attempts.retries import Verdict
from handoff_dask.model.attempt import Usage
from handoff_dask.wire.payload import Name

Outcome = Literal["ok", "error", "out-of-memory", "process-died", "killed"]


class World(NamedTuple):
    """What a function finds in its process."""

    #: Entries for ``CUDA_VISIBLE_DEVICES``; empty hides all devices, None changes nothing.
    devices: tuple[str, ...] | None = None
    #: How many threads numerical libraries use; None changes nothing.
    width: int | None = None


class Request(NamedTuple):
    """A call to evaluate in a child."""

    #: The pickled call and what it needs: see ``payload.opened``.
    names: tuple[Name, ...]
    call: bytes
    values: tuple[Any, ...]
    #: Whether to return the result.
    keep: bool = True
    #: The retry policy, pickled, if it contains users' code.
    policy: bytes | None = None
    #: What ``current()`` says.
    attempt: int = 1
    cost: Mapping[str, float] = {}
    #: The worker's address.
    address: str = "local"
    #: What its code must be, for ``loaded.check``, if its result is stored.
    code: bytes | None = None


class Ended(NamedTuple):
    """How a call ended."""

    outcome: Outcome
    #: The result; for ``"error"``, the ``PackedError`` to raise.
    value: Any = None
    usage: Usage = Usage()
    #: The end of what it printed.
    output: str = ""
    #: What happened to the process, in words.
    detail: str = ""
    #: What the request's policy says about the error.
    verdict: Verdict | None = None


class Place(NamedTuple):
    """Where the content of a buffer is: in which segment of the message."""

    segment: int
    offset: int
    size: int


class Surroundings(NamedTuple):
    """What a child has in common with its worker."""

    environ: Mapping[bytes, bytes]
    path: tuple[str, ...]
    folder: str


def environment() -> dict[bytes, bytes]:
    """Return a copy of this process' environment."""
    # Its own mapping, because going through ``os.environb`` takes a hundred times as long.
    return dict(getattr(os.environb, "_data", os.environb))


class Start(NamedTuple):
    """The first message to a child."""

    world: World
    surroundings: Surroundings
    #: Levels of the worker's loggers that have one of their own.
    log_levels: Mapping[str, int]


class Order(NamedTuple):
    """A message to a child: a request without its values, which are the message's data."""

    request: Request
    places: tuple[Place, ...]
    #: The level of the worker's root logger.
    log_level: int

    def dumps(self) -> bytes:
        """Pickle it; plain tuples take a tenth of the time."""
        return pickle.dumps((tuple(self.request), *self[1:]))

    @staticmethod
    def loads(data: memoryview) -> Order:
        """Unpickle it."""
        request, *fields = pickle.loads(data)
        return Order(Request(*request), *fields)


class Reply(NamedTuple):
    """A message from a child about the end of a call; the result is the message's data."""

    places: tuple[Place, ...]
    #: Its memory is that at the end.
    usage: Usage
    #: The most memory with files, and the files at the end, for `Watch.note`.
    highest: float
    files: float
    #: Seconds of processor time of the child, from its start.
    cpu_time: float
    #: Whether the child can run another call.
    reusable: bool
    #: Whether it says later if it can: it tidies up its memory first.
    settles: bool
    #: The records of the exception's ``PackedError``; None if there is a result.
    failure: tuple[Any, ...] | None = None
    verdict: Verdict | None = None

    def dumps(self) -> bytes:
        """Pickle it, as an order."""
        return pickle.dumps((self.places, tuple(self.usage), *self[2:]))

    @staticmethod
    def of(fields: Sequence[Any]) -> Reply:
        """Return a reply that was unpickled."""
        places, usage, *others = fields
        return Reply(places, Usage(*usage), *others)
