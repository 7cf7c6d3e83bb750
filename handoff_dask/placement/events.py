"""What goes into the placement engine and what comes out of it: plain frozen records."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

#: What reports call the slots: the resource of which each function takes 1. It is not part of a
#: worker's `capacity`.
THREADS = "threads"


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """A worker as the cluster describes it."""

    #: Unique; what `Place.worker` names.
    address: str
    #: Other things a pin may call it by.
    name: str
    host: str
    #: Amount of each resource it declares. A resource not named is 0.
    capacity: Mapping[str, float]
    #: How many functions it runs at once, whatever they cost (its threads).
    slots: int
    #: False while it is paused or closing: it gets nothing.
    running: bool = True
    #: What it is recognised by if it restarts under another address; None: its address.
    identity: Hashable | None = None


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """A function of a run, as far as placing it goes."""

    #: Unique in the engine, over all runs.
    key: Hashable
    #: Amount of each resource, >= 0. Empty: it takes a slot and nothing else.
    cost: Mapping[str, float]
    #: Keys of the same run; what the remaining path is computed from.
    dependencies: tuple[Hashable, ...] = ()
    #: Added to the run's priority: of all ready functions, those of higher priority go first.
    priority: float = 0
    #: Addresses, names or hosts of the only workers that may run it; empty: any may.
    pin: tuple[str, ...] = ()
    #: Addresses, names or hosts of the workers that it rather runs on.
    preferred: tuple[str, ...] = ()
    #: Key of another function of the run: same worker as that one. Chains are fine.
    collocated: Hashable | None = None
    #: Key of another function of the run. Before this one is placed, that one's collocation group
    #: is bound to a worker, which `Place.target` names.
    binds: Hashable | None = None
    #: Duration family (Dask's key prefix).
    code: str = ""
    #: Identity of the function over runs, for learned durations: finer than `code`.
    token: Hashable | None = None
    #: Seconds, as far as the caller knows.
    expected: float | None = None


class Place(NamedTuple):
    """Run `key` on `worker`."""

    key: Hashable
    worker: str
    #: The worker that the function named by `binds` is bound to.
    target: str | None = None
    #: The worker is busy and starts it itself, once one of its functions ends.
    ahead: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """Which workers could ever hold a cost, or what is missing."""

    #: Addresses of the registered workers that could, in registration order.
    able: tuple[str, ...]
    #: The pin asked for, if any; a tuple if it names several workers.
    pin: str | tuple[str, ...] | None = None
    #: Whether a registered worker answers to the pin; True without one.
    pin_known: bool = True
    #: When no worker is able: the one that lacks the least.
    nearest: str | None = None
    #: What `nearest` lacks: resource -> (needed, offered).
    shortfall: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    #: The name of `nearest`, if it has one.
    nearest_name: str | None = None

    @property
    def pin_text(self) -> str:
        """The workers of the pin, for people."""
        if isinstance(self.pin, tuple):
            return "any of " + ", ".join(map(repr, self.pin))
        return repr(self.pin)

    def __bool__(self) -> bool:
        """Whether a worker is able."""
        return bool(self.able)

    def __str__(self) -> str:
        """Say who is able, or what is missing."""
        if self.able:
            shown = ", ".join(self.able[:4]) + (", ..." if len(self.able) > 4 else "")
            return f"can run on {shown}"
        if not self.pin_known:
            return f"no worker answers to {self.pin_text}"
        if self.nearest is None:
            return "no workers"
        lacks = ", ".join(
            f"needs {name} {needed:g}, offers {offered:g}{_slip(name, needed, offered)}"
            for name, (needed, offered) in self.shortfall.items()
        )
        where = f" (pinned to {self.pin_text})" if self.pin is not None else ""
        name = f" ({self.nearest_name})" if self.nearest_name is not None else ""
        return f"no worker can hold it{where}; nearest is {self.nearest}{name}: {lacks}"


#: Names that a resource may have, but that are more often a slip.
_MEANT = {
    **dict.fromkeys(("mem", "ram"), "memory"),
    **dict.fromkeys(("cpus", "num_cpus", "core", "cores"), "cpu"),
    **dict.fromkeys(("gpus", "num_gpus"), "gpu"),
}
#: So many MB are rather bytes.
_MUCH = 1e7


def _slip(name: str, needed: float, offered: float) -> str:
    """Return a hint at a likely slip in a cost that no worker can hold, or an empty string."""
    if not offered and name in _MEANT:
        return f" (did you mean {_MEANT[name]!r}?)"
    return " (memory is in MB, not in bytes)" if name == "memory" and needed >= _MUCH else ""


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
    """Why a ready function is not placed."""

    #: ``"delay"`` (a retry's), ``"impossible"``, ``"max_concurrency"``, ``"no workers"``,
    #: ``"binding"`` (the function it binds has no worker), ``"data"`` (waits for the worker that
    #: holds its inputs), ``"preferred"`` (waits for a worker that it prefers), ``"excluded"`` (it
    #: may not use those that could hold it, as an earlier attempt still runs there), ``"paused"``
    #: (those that could hold it don't run), ``"reserved"`` (a worker with room is kept for
    #: another), ``"ahead"`` (a worker with room works off what it was handed ahead first),
    #: ``"resources"`` or ``"next"`` (the next poll places it). On a cluster also who is being asked
    #: whether an attempt had started.
    reason: str
    #: The workers it waits for.
    workers: tuple[str, ...] = ()
    #: What these are short of now: resource -> (needed, the most that one has free).
    resources: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    #: When the wait ends by itself (s, the caller's clock), if it does.
    until: float | None = None
    #: For ``"impossible"`` and ``"binding"``: what is missing.
    finding: Finding | None = None
    #: What still uses these workers although it was given up, in words; empty if unknown.
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
    """The ready functions that are not placed, by what they ask for."""

    #: Amount of each resource that they cost in sum, but those whose retry delay is not over.
    asked: Mapping[str, float] = field(default_factory=dict)
    #: The same for a single worker, by address: of functions that may go nowhere else.
    asked_of: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    #: (how many, key of the most urgent) of those that wait for the same, the most first.
    largest: tuple[tuple[int, Hashable], ...] = ()
