"""What goes into the placement engine and what comes out of it: plain frozen records."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

#: The name under which reports show the resource that every worker offers and every function
#: takes one of. It is no part of a worker's `capacity`.
THREADS = "threads"


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """A worker as the cluster describes it.

    Parameters
    ----------
    address
        Unique; what `Place.worker` names.
    name, host
        Other things a pin may call it by.
    capacity
        Amount of each resource it declares. A resource not named is 0.
    slots
        How many functions it runs at once, whatever they cost (its threads).
    running
        False while it is paused or closing: it gets nothing.
    identity
        What it is recognised by if it restarts under another address; None: its address.
    """

    address: str
    name: str
    host: str
    capacity: Mapping[str, float]
    slots: int
    running: bool = True
    identity: Hashable | None = None


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """A function of a run, as far as placing it goes.

    Parameters
    ----------
    key
        Unique in the engine, over all runs.
    cost
        Amount of each resource, >= 0. Empty: it takes a slot and nothing else.
    dependencies
        Keys of the same run; what the remaining path is computed from.
    pin
        A worker's address, name or host.
    collocated
        Key of another function of the run: same worker as that one. Chains are fine.
    binds
        Key of another function of the run. Before this one is placed, that one's
        collocation group is bound to a worker, which `Place.target` names.
    code
        Duration family (Dask's key prefix).
    token
        Identity of the function over runs, for learned durations: finer than `code`.
    expected
        Seconds, as far as the caller knows.
    """

    key: Hashable
    cost: Mapping[str, float]
    dependencies: tuple[Hashable, ...] = ()
    pin: str | None = None
    collocated: Hashable | None = None
    binds: Hashable | None = None
    code: str = ""
    token: Hashable | None = None
    expected: float | None = None


class Place(NamedTuple):
    """Run `key` on `worker`.

    Parameters
    ----------
    target
        The worker that the function named by `binds` is bound to.
    ahead
        The worker is busy and starts it itself, once one of its functions ends.
    """

    key: Hashable
    worker: str
    target: str | None = None
    ahead: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """Which workers could ever hold a cost, or what is missing.

    Parameters
    ----------
    able
        Addresses of the registered workers that could, in registration order.
    pin
        The pin asked for, if any.
    pin_known
        Whether a registered worker answers to the pin; True without one.
    nearest
        When no worker is able: the one that lacks the least.
    shortfall
        What `nearest` lacks: resource -> (needed, offered).
    nearest_name
        The name of `nearest`, if it has one.
    """

    able: tuple[str, ...]
    pin: str | None = None
    pin_known: bool = True
    nearest: str | None = None
    shortfall: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    nearest_name: str | None = None

    def __bool__(self) -> bool:
        """Whether a worker is able."""
        return bool(self.able)

    def __str__(self) -> str:
        """Say who is able, or what is missing."""
        if self.able:
            shown = ", ".join(self.able[:4]) + (", ..." if len(self.able) > 4 else "")
            return f"can run on {shown}"
        if not self.pin_known:
            return f"no worker answers to {self.pin!r}"
        if self.nearest is None:
            return "no workers"
        lacks = ", ".join(
            f"needs {name} {needed:g}, offers {offered:g}"
            for name, (needed, offered) in self.shortfall.items()
        )
        where = f" (pinned to {self.pin!r})" if self.pin is not None else ""
        name = f" ({self.nearest_name})" if self.nearest_name is not None else ""
        return f"no worker can hold it{where}; nearest is {self.nearest}{name}: {lacks}"


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nothing can place `key` any more; `finding` says why."""

    key: Hashable
    finding: Finding


class Started(NamedTuple):
    """`key`, which was handed ahead, has a claim now: its worker is taken to run it."""

    key: Hashable


#: What a poll decides.
Decision = Place | Refuse | Started


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a ready function is not placed.

    Parameters
    ----------
    reason
        ``"delay"`` (a retry's), ``"impossible"``, ``"max_concurrency"``, ``"no workers"``,
        ``"binding"`` (the function it binds has no worker), ``"data"`` (waits for the worker
        that holds its inputs), ``"excluded"`` (it may not use those that could hold it, as
        an earlier attempt still runs there),
        ``"paused"`` (those that could hold it don't run), ``"reserved"`` (a worker with room
        is kept for another), ``"ahead"`` (a worker with room works off what it was handed
        ahead first), ``"resources"`` or ``"next"`` (the next poll places it). On a cluster also
        who is being asked whether an attempt had started.
    workers
        The workers it waits for.
    resources
        What these are short of now: resource -> (needed, the most that one has free).
    until
        When the wait ends by itself (s, the caller's clock), if it does.
    finding
        For ``"impossible"`` and ``"binding"``: what is missing.
    ending
        What still uses these workers although it was given up, in words; empty if unknown.
    """

    reason: str
    workers: tuple[str, ...] = ()
    resources: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    until: float | None = None
    finding: Finding | None = None
    ending: str = ""

    @property
    def words(self) -> str:
        """The reason, for people."""
        if self.reason == "excluded":
            return "excluded: no other worker is left, and an earlier attempt still runs"
        return self.reason

    def __str__(self) -> str:
        """Say what is waited for."""
        text = self.words
        if self.resources:
            text += ": " + ", ".join(
                f"{name} {needed:g}, at most {free:g} free"
                for name, (needed, free) in self.resources.items()
            )
        if self.workers:
            shown = ", ".join(self.workers[:4]) + (", ..." if len(self.workers) > 4 else "")
            text += f" on {shown}"
        if self.finding is not None:
            text += f": {self.finding}"
        return f"{text}; {self.ending}" if self.ending else text


@dataclass(frozen=True, slots=True)
class Backlog:
    """The ready functions that are not placed, by what they ask for.

    Parameters
    ----------
    asked
        Amount of each resource that they cost in sum, but those whose retry delay is not over.
    asked_of
        The same for a single worker, by address: of functions that may go nowhere else.
    largest
        (how many, key of the most urgent) of those that wait for the same, the most first.
    """

    asked: Mapping[str, float] = field(default_factory=dict)
    asked_of: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    largest: tuple[tuple[int, Hashable], ...] = ()
