"""Runs, their functions, and how urgent each function is."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

from handoff_dask.placement.durations import NOTHING, Durations
from handoff_dask.placement.events import FunctionSpec

if TYPE_CHECKING:
    from handoff_dask.placement.ledger import Cost, Worker
    from handoff_dask.placement.queues import Queue
    from handoff_dask.placement.strategies import Strategy

__all__ = ["DELAYED", "DONE", "FRESH", "PLACED", "QUEUED", "WAITING", "Function", "Group", "Run"]

# States of a function.
WAITING = 0  #: not ready
DELAYED = 1  #: ready, but not before a time
FRESH = 2  #: ready, to be queued by the next poll
QUEUED = 3  #: in a queue
PLACED = 4  #: on a worker
DONE = 5  #: ended for good

#: Rank anew once new knowledge concerns this share of the run's functions.
_MOVED_SHARE = 0.1
#: Remaining paths are compared in steps of this part of the run's longest: to measure the same
#: functions again changes them by as much.
_STEP = 0.01


class Group:
    """Functions that run on one worker, whichever their first is placed on."""

    __slots__ = ("members", "need", "pin", "worker")

    def __init__(self, need: Cost) -> None:
        self.members: list[Function] = []
        #: What a worker must be able to hold: the element-wise maximum, as they run in turns.
        self.need = need
        self.pin: str | None = None
        self.worker: Worker | None = None


class Family:
    """The functions of a run that share their code."""

    __slots__ = ("code", "count", "used")

    def __init__(self, code: str) -> None:
        self.code = code
        #: Functions of it that are not measured one by one.
        self.count = 0
        #: Seconds that the ranks in force assume; None: unknown.
        self.used: float | None = None


class Barred:
    """Workers that an attempt is not to use.

    Parameters
    ----------
    avoid
        Addresses of those that it may use after it has waited long enough for others.
    exclude
        Addresses of those that it may never use.
    insist
        Whether it waits without a limit, as long as another registered worker could hold it.
    patience
        Seconds that it waits for others if its duration is unknown.
    """

    __slots__ = ("avoid", "exclude", "insist", "patience", "until")

    def __init__(
        self, avoid: frozenset[str], exclude: frozenset[str], insist: bool, patience: float
    ) -> None:
        self.avoid = avoid
        self.exclude = exclude
        self.insist = insist
        self.patience = patience
        #: When it has waited long enough (s); None: it has not begun to.
        self.until: float | None = None

    def relent(self, now: float, seconds: float | None) -> float | None:
        """Stop avoiding workers after waiting long enough; return when to ask again, if at all.

        Waiting for another worker is worthwhile for as long as the function would run: by then it
        would have ended on the one that it avoids.
        """
        if self.insist or not self.avoid:
            return None
        if self.until is None:
            self.until = now + (self.patience if seconds is None else seconds)
        if now < self.until:
            return self.until
        self.avoid = frozenset()
        return None


class Function:
    """A function of a run and where it is."""

    __slots__ = (
        "ahead", "barred", "binds", "cost", "deferred", "dependencies", "expected",
        "family", "group", "holder", "input_total", "inputs", "key", "measured", "own_cost", "pin",
        "queue", "rank", "ready_at", "run", "seconds", "seq", "stamp", "started", "state",
        "stuck_at", "tail", "token", "urgency", "worker",
    )  # fmt: skip

    def __init__(self, spec: FunctionSpec, run: Run, cost: Cost, family: Family, seq: int) -> None:
        self.key = spec.key
        self.run = run
        self.cost = cost
        #: The cost of an attempt that asks for nothing else.
        self.own_cost = cost
        self.pin = spec.pin
        self.token = spec.token
        self.expected = spec.expected
        self.family = family
        self.seq = seq
        self.dependencies: Sequence[Function] = ()
        self.group: Group | None = None
        self.binds: Function | None = None
        self.state = WAITING
        #: Seconds from its start to the end of the run, and the part after its own end.
        self.rank = 1.0
        self.tail = 0.0
        #: The rank in whole steps: of functions that are as urgent the widest goes first.
        self.urgency = 1.0
        #: Seconds it takes, as of the last ranking; None: unknown.
        self.seconds: float | None = None
        #: Whether that was measured of this very function, not of others of its code.
        self.measured = False
        self.queue: Queue | None = None
        self.worker: Worker | None = None
        #: Whether it was handed to its worker ahead and is not taken to run yet.
        self.ahead = False
        self.started = 0.0
        self.ready_at = 0.0
        #: Bytes of its inputs per worker address, and all of them.
        self.inputs: dict[str, float] | None = None
        self.input_total = 0.0
        #: Workers that this attempt is not to use; None: it may use all.
        self.barred: Barred | None = None
        #: The worker it waits for because of its inputs; and whether it ever did for this attempt.
        self.holder: Worker | None = None
        self.deferred = False
        #: Since when the function it binds has no worker.
        self.stuck_at: float | None = None
        #: Changes with each state, so that a timer knows whether it still applies.
        self.stamp = 0

    def __repr__(self) -> str:
        """Name the function."""
        return f"<Function {self.key!r}>"

    def transfer(self, address: str, bandwidth: float, latency: float) -> float:
        """Seconds to bring the inputs that a worker lacks to it."""
        if self.inputs is None:
            return 0.0
        missing = self.input_total - self.inputs.get(address, 0.0)
        return missing / bandwidth + latency if missing > 0 else 0.0


class Run:
    """A run: what its functions have in common."""

    __slots__ = (
        "_ended", "_moved", "_next", "families", "functions", "key", "limit", "order", "patience",
        "placed", "priority", "queues", "stale", "strategy",
    )  # fmt: skip

    def __init__(
        self,
        key: Hashable,
        priority: float,
        strategy: Strategy,
        limit: int | None,
        patience: float | None,
    ) -> None:
        self.key = key
        self.priority = priority
        self.strategy = strategy
        #: Most functions placed at a time.
        self.limit = limit
        #: Seconds to wait for a worker when none could ever hold a function; None: for as long as
        #: one that was lost may come back.
        self.patience = patience
        self.functions: dict[Hashable, Function] = {}
        #: Functions that did not end, dependencies first.
        self.order: list[Function] = []
        self.families: dict[str, Family] = {}
        self.placed = 0
        #: Queues of its own; a run with a limit has some.
        self.queues: dict[Queue, None] = {}
        #: Whether the ranks must be computed anew.
        self.stale = False
        #: Functions that new knowledge concerns since the last ranking; how many ended ever,
        #: and at which of them it may be ranked again.
        self._moved = 0
        self._ended = 0
        self._next = 1

    @property
    def saturated(self) -> bool:
        """Whether it has as many functions placed as it may."""
        return self.limit is not None and self.placed >= self.limit

    def add(self, functions: Iterable[Function]) -> None:
        """Take functions in whose dependencies are linked."""
        self.order += _dependencies_first(list(functions))
        self.stale = True

    def learned(self, family: Family, seconds: float) -> None:
        """Note that one of a family ended and what the family takes on average now."""
        self._ended += 1
        used = family.used
        if used is None or (
            abs(seconds - used) > NOTHING and not seconds / 2 <= used <= 2 * seconds
        ):
            # A family counts once until the next ranking, by how many it concerns.
            family.used = seconds
            self._moved += family.count
        if self._ended >= self._next and self._moved > _MOVED_SHARE * len(self.order):
            self.stale = True

    def rank(self, durations: Durations) -> None:
        """Compute the remaining paths: from a function's start to the end of the run.

        A function of unknown duration is taken for an average one of the run; when nothing
        is known, hops are counted.
        """
        order = self.order = [f for f in self.order if f.state != DONE]
        for family in self.families.values():
            family.used = durations.of_code(family.code)
            family.count = 0
        known = 0
        total = 0.0
        for f in order:
            f.tail = 0.0
            seconds = durations.of_token(f.token)
            f.measured = seconds is not None
            if seconds is None:
                f.family.count += 1
                seconds = f.family.used
                if seconds is None:
                    seconds = f.expected
            f.seconds = seconds
            if seconds is not None:
                known += 1
                total += seconds
        mean = total / known if known else 1.0
        longest = 0.0
        for f in reversed(order):
            seconds = f.seconds
            rank = f.rank = f.tail + (mean if seconds is None else seconds)
            for dependency in f.dependencies:
                if dependency.tail < rank:
                    dependency.tail = rank
            if rank > longest:
                longest = rank
        step = _STEP * longest
        for f in order:
            f.urgency = step * round(f.rank / step) if step else f.rank
        self.stale = False
        self._moved = 0
        # Often in the beginning, as little is known; later ranking may only cost so much.
        self._next = self._ended + min(max(1, self._ended), 1 + len(order) // 16)


def _dependencies_first(functions: list[Function]) -> list[Function]:
    """Sort functions so that dependencies come first; keeps an order that is fine already."""
    place = {f: i for i, f in enumerate(functions)}
    if all(place.get(d, -1) < i for i, f in enumerate(functions) for d in f.dependencies):
        return functions
    missing = {f: sum(d in place for d in f.dependencies) for f in functions}
    dependents: dict[Function, list[Function]] = {}
    for f in functions:
        for d in f.dependencies:
            dependents.setdefault(d, []).append(f)
    done = [f for f in functions if not missing[f]]
    for f in done:  # grows while it is walked
        for after in dependents.get(f, ()):
            missing[after] -= 1
            if not missing[after]:
                done.append(after)
    # What is left lies on a cycle and can never be ready; it only needs some rank.
    return done + [f for f in functions if missing[f]]
