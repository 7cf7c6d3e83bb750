"""The state of the engine.

Functions, the groups and runs they belong to, the queues they wait in, the workers they go to and
the reservations made for them refer to each other, so they are defined together. They only keep
themselves consistent: what happens to them is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace, nlargest
from operator import attrgetter
from typing import NamedTuple

from handoff_dask.placement.costs import SLOT, UNIT, Cost
from handoff_dask.placement.events import FunctionSpec, WorkerSpec
from handoff_dask.placement.strategies import Strategy

# States of a function.
WAITING = 0  #: not ready
DELAYED = 1  #: ready, but not before a time
FRESH = 2  #: ready, to be queued by the next poll
QUEUED = 3  #: in a queue
PLACED = 4  #: on a worker
DONE = 5  #: ended for good

_NEVER = float("inf")

#: A function is found by this many of the workers that hold most of its inputs. Bounds the cost.
_HOLDERS = 2


@dataclass(eq=False, repr=False, slots=True)
class Family:
    """The functions of a run that share their code."""

    code: str
    #: Functions of it that are not measured one by one.
    count: int = 0
    #: Seconds that the ranks in force assume; None: unknown.
    used: float | None = None


@dataclass(eq=False, repr=False, slots=True)
class Group:
    """Functions that run on one worker, whichever their first is placed on."""

    #: What a worker must be able to hold: the element-wise maximum, as they run one at a time.
    need: Cost
    members: list[Function] = field(default_factory=list)
    pin: tuple[str, ...] = ()
    preferred: tuple[str, ...] = ()
    worker: Worker | None = None


@dataclass(eq=False, repr=False, slots=True)
class Barred:
    """Workers that an attempt is not to use."""

    #: Addresses of those that it may use after it has waited long enough for others.
    avoid: frozenset[str]
    #: Addresses of those that it may never use.
    exclude: frozenset[str]
    #: Whether it waits without a limit, as long as another registered worker could hold it.
    insist: bool
    #: Seconds that it waits for others if its duration is unknown.
    patience: float
    #: When it has waited long enough (s); None: it has not begun to.
    until: float | None = None

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
        "ahead", "barred", "binds", "cost", "deferred", "dependencies", "expected", "family",
        "group", "holder", "input_total", "inputs", "key", "measured", "own_cost", "pin",
        "preferred", "priority", "queue", "rank", "ready_at", "run", "seconds", "seq", "stamp",
        "started", "state", "stuck_at", "tail", "token", "urgency", "worker",
    )  # fmt: skip

    def __init__(self, spec: FunctionSpec, run: Run, cost: Cost, family: Family, seq: int) -> None:
        self.key = spec.key
        self.run = run
        self.cost = cost
        #: The cost of an attempt that asks for nothing else.
        self.own_cost = cost
        #: The run's and its own; negated, as an entry has it.
        self.priority = -(run.priority + spec.priority)
        self.pin = spec.pin
        self.preferred = spec.preferred
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

    @property
    def guess(self) -> float:
        """Seconds it takes, or 1 if that is unknown."""
        return 1.0 if self.seconds is None else self.seconds

    @property
    def preferences(self) -> tuple[str, ...]:
        """What the workers answer to that it prefers, with those that run where it does."""
        return self.preferred if self.group is None else self.group.preferred

    @property
    def target(self) -> Group:
        """The group of the function that it binds."""
        assert self.binds is not None and self.binds.group is not None
        return self.binds.group

    def transfer(self, address: str, bandwidth: float, latency: float) -> float:
        """Seconds to bring the inputs that a worker lacks to it."""
        if self.inputs is None:
            return 0.0
        missing = self.input_total - self.inputs.get(address, 0.0)
        return missing / bandwidth + latency if missing > 0 else 0.0


@dataclass(eq=False, repr=False, slots=True)
class Work:
    """What some functions take in sum."""

    count: int = 0
    #: How long they take (s); in a family, each counts as 1.
    seconds: float = 0.0
    #: The same by cost.
    costs: dict[Cost, float] = field(default_factory=dict)

    def add(self, cost: Cost, count: int, seconds: float) -> None:
        """Add a function, or remove it with a negative count and seconds."""
        self.count += count
        if not self.count:  # rounding leaves nothing behind
            self.seconds = 0.0
            self.costs.clear()
        else:
            self.seconds += seconds
            self.costs[cost] = self.costs.get(cost, 0.0) + seconds


class Remaining:
    """Sums over the functions of a run that have not ended for good, as they were ranked."""

    __slots__ = ("families", "functions", "levels", "single")

    def __init__(self, functions: Iterable[Function]) -> None:
        #: Functions whose duration is their family's, or unknown; and the others.
        self.families: dict[Family, Work] = {}
        self.single = Work()
        #: How many functions there are of each urgency.
        self.levels: dict[float, int] = {}
        #: The sum that each function is part of.
        self.functions: dict[Function, Work] = {}
        for function in functions:
            family = function.family
            if function.measured or (function.seconds is not None and family.used is None):
                work = self.single
            else:
                work = self.families.get(family) or self.families.setdefault(family, Work())
            self.functions[function] = work
            self._count(function, work, 1)

    def remove(self, function: Function) -> None:
        """Count a function no more; ignored if it is not counted."""
        work = self.functions.pop(function, None)
        if work is not None:
            self._count(function, work, -1)

    def _count(self, function: Function, work: Work, sign: int) -> None:
        seconds = function.seconds if work is self.single else None
        work.add(function.own_cost, sign, sign * (1.0 if seconds is None else seconds))
        self.levels[function.urgency] = self.levels.get(function.urgency, 0) + sign


@dataclass(eq=False, repr=False, slots=True)
class Run:
    """A run: what its functions have in common."""

    key: Hashable
    priority: float
    strategy: Strategy
    #: Most functions placed at a time.
    limit: int | None
    #: Seconds to wait for a worker when none could ever hold a function; None: for as long as one
    #: that was lost may come back.
    patience: float | None
    functions: dict[Hashable, Function] = field(default_factory=dict)
    #: Functions that did not end, dependencies first.
    order: list[Function] = field(default_factory=list)
    families: dict[str, Family] = field(default_factory=dict)
    #: Functions that are on a worker.
    placed: dict[Function, None] = field(default_factory=dict)
    #: How many of `order` are ranked; and sums over these, if asked for since.
    ranked: int = 0
    remaining: Remaining | None = None
    #: Queues of its own; a run with a limit has some.
    queues: dict[Queue, None] = field(default_factory=dict)
    #: Whether the ranks must be computed anew.
    stale: bool = False
    #: Functions that new knowledge concerns since the last ranking; how many ended ever, and at
    #: which of them it may be ranked again.
    moved: int = 0
    ended: int = 0
    rank_after: int = 1

    @property
    def saturated(self) -> bool:
        """Whether it has as many functions placed as it may."""
        return self.limit is not None and len(self.placed) >= self.limit


@dataclass(eq=False, repr=False, slots=True)
class Shape:
    """A capacity, interned: workers of equal capacity share one."""

    capacity: tuple[int, ...]
    #: Registered workers of this shape, in no order.
    workers: dict[Worker, None] = field(default_factory=dict)


class Worker:
    """A registered worker and what is claimed of it."""

    def __init__(self, spec: WorkerSpec, shape: Shape, order: int) -> None:
        self.address = spec.address
        self.name = spec.name
        self.host = spec.host
        #: What it is known by should it restart.
        self.identity = spec.address if spec.identity is None else spec.identity
        self.running = spec.running
        self.spec_capacity = dict(spec.capacity)
        self.slots = spec.slots
        self.shape = shape
        #: Place in the stable order of registration.
        self.order = order
        self.free = list(shape.capacity)
        #: Functions here with a claim, in order of placement.
        self.placed: dict[Function, None] = {}
        #: Functions handed over ahead, without a claim, in order; all of one cost.
        self.ahead: dict[Function, None] = {}
        #: Functions that left `ahead` for a claim since the last poll.
        self.promoted: list[Function] = []
        #: Seconds of work that `ahead` stands for.
        self.ahead_work = 0.0
        #: Claims with a slot, by cost.
        self.counts: dict[Cost, int] = {}
        #: Of `placed`: those that gave their slot back.
        self.seceded: set[Function] = set()
        #: Claims of others: key -> items.
        self.foreign: dict[Hashable, tuple[tuple[int, int], ...]] = {}
        #: Collocation groups bound here.
        self.groups: dict[Group, None] = {}
        #: What groups bound here will want and have not claimed yet.
        self.promised: dict[Group, Cost] = {}
        self.reservation: Reservation | None = None
        #: Queues that can only go to a few workers, this one among them, and wait.
        self.watchers: dict[Queue, None] = {}

    def __repr__(self) -> str:
        """Name the worker."""
        return f"<Worker {self.address}>"

    @property
    def open(self) -> bool:
        """Whether it may get functions of any kind now.

        Not while functions wait on it ahead: Dask's worker looks at the head of its queue
        only, so another would wait behind what it does not compete with. Not while it has
        less than is claimed of it: what shrank must fit again first.
        """
        return (
            self.running
            and not self.ahead
            and self.reservation is None
            and self.free[SLOT] > 0
            and min(self.free) >= 0
        )

    def has_room(self, cost: Cost) -> bool:
        """Whether a function could start now, were the worker not kept for others."""
        free = self.free
        return self.running and not self.ahead and cost.fits(free) and min(free) >= 0

    def take(self, items: tuple[tuple[int, int], ...]) -> None:
        """Take these amounts from what is free."""
        free = self.free
        for i, amount in items:
            free[i] -= amount

    def give(self, items: tuple[tuple[int, int], ...]) -> None:
        """Give these amounts back."""
        free = self.free
        for i, amount in items:
            free[i] += amount

    def claim(self, function: Function) -> None:
        """Let `function` run here."""
        cost = function.cost
        free = self.free
        for i, amount in cost.items:
            free[i] -= amount
        self.placed[function] = None
        counts = self.counts
        counts[cost] = counts.get(cost, 0) + 1

    def release(self, function: Function) -> None:
        """Let `function` go, whether it had a claim or waited ahead.

        Which of the functions ahead the worker started is unknown and does not matter: they
        cost the same. So if one of them ends that we thought waiting, it swaps places with
        one that we thought running.
        """
        if function in self.ahead:
            self._unqueue(function)
            return
        del self.placed[function]
        if function in self.seceded:
            self.seceded.discard(function)
            self.give(function.cost.rest)
        else:
            self.give(function.cost.items)
            self._uncount(function.cost)
        if self.ahead:
            self.promote()

    def secede(self, function: Function) -> None:
        """Let `function` give its slot back and keep its cost."""
        if function in self.ahead:
            # It runs, so one that we thought running still waits: nothing changes in sum.
            other = next((f for f in self.placed if f.cost is function.cost), None)
            self._unqueue(function)
            if other is None or other in self.seceded:
                self.claim(function)
            else:
                del self.placed[other]
                self.placed[function] = None
                self.ahead[other] = None
                self.ahead_work += other.seconds or 0.0
            self.promoted.append(function)
        if function in self.placed and function not in self.seceded:
            self.seceded.add(function)
            self._uncount(function.cost)
            self.free[SLOT] += UNIT
            self.promote()

    def promote(self) -> None:
        """Start what waits ahead as far as it fits, as the worker itself does."""
        if not self.running or min(self.free) < 0:
            return
        while self.ahead:
            function = next(iter(self.ahead))
            if not function.cost.fits(self.free):
                return
            self._unqueue(function)
            self.claim(function)
            self.promoted.append(function)

    def reshape(self, shape: Shape) -> None:
        """Change the capacity; what is claimed stays claimed."""
        old = self.shape.capacity
        new = shape.capacity
        self.free += [0] * (len(new) - len(self.free))
        for i, amount in enumerate(new):
            self.free[i] += amount - (old[i] if i < len(old) else 0)
        self.shape = shape
        self.promote()

    def _unqueue(self, function: Function) -> None:
        # Which of them it is in truth is unknown: it stands for an average one.
        self.ahead_work -= self.ahead_work / len(self.ahead)
        del self.ahead[function]

    def _uncount(self, cost: Cost) -> None:
        left = self.counts[cost] - 1
        if left:
            self.counts[cost] = left
        else:
            del self.counts[cost]


class Entry(NamedTuple):
    """What functions are sorted by: the most urgent is the lowest."""

    #: Negated, like the next two: the higher the earlier.
    priority: float
    urgency: float
    footprint: float
    number: int
    function: Function


class Kind(NamedTuple):
    """What the functions of one queue share."""

    cost: Cost
    #: What a worker must be able to hold; None: the cost.
    need: Cost | None = None
    pin: tuple[str, ...] = ()
    #: The only worker they may go to, and whether that is for their inputs or their
    #: preference only.
    bound: Worker | None = None
    deferred: bool = False
    #: Addresses of the workers to avoid, and of those not to use; whether they insist on avoiding.
    avoid: frozenset[str] = frozenset()
    exclude: frozenset[str] = frozenset()
    insist: bool = False
    #: The run, if it has a limit.
    run: Run | None = None


class Strata:
    """Ready functions, the most urgent first, in strata of equals: of a run, priority and urgency.

    When more is known of how long functions take, most strata become more or less urgent as a
    whole: to sort anew costs little for each function. Functions that left are dropped when met.
    """

    __slots__ = ("_queue", "_size", "_strata", "heads")

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        #: A heap with the first function of each stratum, and with some that were the first.
        self.heads: list[Entry] = []
        #: Per run, priority and urgency: a heap of functions, the one added first at the top.
        self._strata: dict[tuple[Run, float, float], list[tuple[int, Function]]] = {}
        #: How many functions the strata hold, with those that left.
        self._size = 0

    def push(self, function: Function) -> None:
        """Add a function."""
        if self._size > 2 * self._queue.live + 32:
            self._compact()
        key = function.run, function.priority, function.urgency
        stratum = self._strata.setdefault(key, [])
        heappush(stratum, (function.seq, function))
        self._size += 1
        if stratum[0][1] is function:
            heappush(self.heads, self._queue.entry(function))

    def clear(self) -> None:
        """Forget all functions."""
        self.heads.clear()
        self._strata.clear()
        self._size = 0

    def head(self) -> Entry | None:
        """Return the most urgent entry."""
        heads, queue = self.heads, self._queue
        while heads:
            entry = heads[0]
            function = entry.function
            urgency = -entry.urgency
            if function.queue is queue and function.urgency == urgency:
                return entry
            key = function.run, function.priority, urgency
            stratum = self._strata.get(key)
            # If another is its first by now, that one has an entry of its own.
            if stratum is not None and stratum[0][1] is function:
                self._drop_gone(stratum, urgency)
                if stratum:
                    heapreplace(heads, queue.entry(stratum[0][1]))
                    continue
                del self._strata[key]
            heappop(heads)
        return None

    def functions(self) -> Iterator[Function]:
        """Return the functions in no order; one that left and came back may be there twice."""
        for (_, _, urgency), stratum in self._strata.items():
            for _, function in stratum:
                if function.queue is self._queue and function.urgency == urgency:
                    yield function

    def rekey(self, run: Run) -> float:
        """Sort the functions of a run anew; return the seconds that the shortest of them takes."""
        queue = self._queue
        least = _NEVER
        moved: dict[tuple[Run, float, float], list[tuple[int, Function]]] = {}
        for old in [key for key in self._strata if key[0] is run]:
            stratum = self._strata.pop(old)
            priority = old[1]
            # Those that left count as well: they are few, and to tell them apart would cost more.
            kinds = {(function.urgency, function.seconds) for _, function in stratum}
            for _, seconds in kinds:
                if seconds is not None and seconds < least:
                    least = seconds
            urgencies = {urgency for urgency, _ in kinds}
            if len(urgencies) == 1:
                key = run, priority, urgencies.pop()
                if key not in moved:
                    moved[key] = stratum
                    continue
            for item in stratum:
                if item[1].queue is queue:
                    heappush(moved.setdefault((run, priority, item[1].urgency), []), item)
                else:
                    self._size -= 1
        self._strata.update(moved)
        self._restart()
        return least

    def _drop_gone(self, stratum: list[tuple[int, Function]], urgency: float) -> None:
        while stratum:
            function = stratum[0][1]
            if function.queue is self._queue and function.urgency == urgency:
                return
            heappop(stratum)
            self._size -= 1

    def _compact(self) -> None:
        functions = sorted(set(self.functions()), key=attrgetter("seq"))
        self.clear()
        for function in functions:
            self.push(function)

    def _restart(self) -> None:
        """Find the head of each stratum anew."""
        for key, stratum in list(self._strata.items()):
            self._drop_gone(stratum, key[2])
            if not stratum:
                del self._strata[key]
        entry = self._queue.entry
        self.heads[:] = [entry(stratum[0][1]) for stratum in self._strata.values()]
        heapify(self.heads)


class Queue:
    """Functions of one cost that may go to the same workers, the most urgent first."""

    __slots__ = (
        "able", "able_epoch", "avoid", "binned", "bound", "checked_epoch", "closed", "cost", "debt",
        "deferred", "due", "exclude", "footprint", "head", "hope", "insist", "kind", "live",
        "local", "need", "opened", "order", "pin", "reservations", "run", "since", "stuck",
        "watched",
    )  # fmt: skip

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.cost, need, self.pin, self.bound, self.deferred = kind[:5]
        self.avoid, self.exclude, self.insist, self.run = kind[5:]
        self.need = need or self.cost
        #: How many functions are in it.
        self.live = 0
        self.order = Strata(self)
        #: Returns its most urgent entry. It is asked so often that a method around it would cost.
        self.head = self.order.head
        #: Those whose inputs a worker holds, by its address.
        self.local: dict[str, Strata] = {}
        #: Of how much of the cluster a function takes, the dominant share.
        self.footprint = 0.0
        #: Workers that could ever hold the need, if these are few; None: any. As of `able_epoch`.
        self.able: tuple[Worker, ...] | None = None
        self.able_epoch = -1
        #: Whether no registered worker could ever hold the need, and since when that is known;
        #: as of `checked_epoch`.
        self.checked_epoch = -1
        self.stuck = False
        self.since: float | None = None
        #: While it is stuck: until when a lost worker that could hold the need may come back, and
        #: when the first of its functions is to be refused.
        self.hope = -_NEVER
        self.due = _NEVER
        #: Shares of a worker that others got while the head was waiting.
        self.debt = 0.0
        self.reservations: list[Reservation] = []
        #: Whether no open worker has room, but those that gained since the last pass, if any.
        self.closed = False
        #: Its latest number among the size classes, if there are any.
        self.binned = 0
        #: Whether the pass under way has yet to look at it.
        self.opened = False
        #: Workers whose `watchers` it stands in.
        self.watched: tuple[Worker, ...] = ()

    def __repr__(self) -> str:
        """Name the cost and how many wait."""
        return f"<Queue {self.cost} {self.live}>"

    def bars(self, worker: Worker) -> bool:
        """Whether its functions avoid or may not use a worker."""
        return worker.address in self.avoid or worker.address in self.exclude

    @property
    def anywhere(self) -> bool:
        """Whether any worker that is able may take its functions."""
        return not self.pin and self.bound is None

    @property
    def answers_to(self) -> tuple[str, ...]:
        """What a worker must answer to in order to take its functions; empty: any may."""
        return self.pin if self.bound is None else (self.bound.address,)

    def deadline(self, function: Function) -> float:
        """Return until when one of its functions waits for a worker, while it is stuck."""
        assert self.since is not None
        patience = function.run.patience
        if patience is None:
            return max(self.since, self.hope)
        return max(self.since, function.ready_at) + patience

    def judge(self) -> None:
        """Find out when the first of its functions is to be refused."""
        self.due = min(map(self.deadline, self.order.functions()), default=_NEVER)

    def entry(self, function: Function) -> Entry:
        """Return what a function of it is sorted by."""
        # Without the detour over the keywords of `Entry`: this is done for each placement.
        urgency = -function.urgency
        values = function.priority, urgency, -self.footprint, function.seq, function
        return tuple.__new__(Entry, values)

    def push(self, function: Function) -> None:
        """Add a function."""
        function.queue = self
        function.state = QUEUED
        self.live += 1
        if self.since is not None:
            self.due = min(self.due, self.deadline(function))
        self.order.push(function)
        inputs = function.inputs
        if inputs:
            best: Iterable[str] = inputs
            if len(inputs) > _HOLDERS:
                best = nlargest(_HOLDERS, inputs, key=inputs.__getitem__)
            for address in best:
                strata = self.local.get(address)
                if strata is None:
                    strata = self.local[address] = Strata(self)
                strata.push(function)

    def remove(self, function: Function) -> None:
        """Remove a function."""
        function.queue = None
        self.live -= 1
        if not self.live:
            self.order.clear()
            self.local.clear()
            self.due = _NEVER

    def head_at(self, address: str) -> Entry | None:
        """Return the most urgent entry of those whose inputs a worker holds."""
        strata = self.local.get(address)
        if strata is None:
            return None
        entry = strata.head()
        if entry is None:
            del self.local[address]
        return entry

    def functions(self) -> list[Function]:
        """Return all its functions, the most urgent first."""
        return sorted(set(self.order.functions()), key=self.entry)

    def rekey(self, run: Run) -> float:
        """Sort the functions of a run anew; return the seconds that the shortest of them takes."""
        for strata in self.local.values():
            strata.rekey(run)
        return self.order.rekey(run)


@dataclass(eq=False, repr=False, slots=True)
class Reservation:
    """A worker kept for the head of a queue."""

    queue: Queue
    worker: Worker
    #: When it should have room (s); None: unknown.
    at: float | None
    #: What it should have free beside the reserved cost then.
    extra: list[int]
    #: {function placed since: what it took of that}
    beside: dict[Function, list[tuple[int, int]]] = field(default_factory=dict)
    #: Whether more urgent functions may delay it.
    soft: bool = False

    def take(self, function: Function) -> None:
        """Count a function that is placed on the worker."""
        taken = [(i, min(amount, self.extra[i])) for i, amount in function.cost.items]
        for i, amount in taken:
            self.extra[i] -= amount
        self.beside[function] = taken

    def settle(self) -> None:
        """Give back what functions took that have ended."""
        for function in [f for f in self.beside if f not in self.worker.placed]:
            for i, amount in self.beside.pop(function):
                self.extra[i] += amount

    def admits(self, function: Function, now: float) -> bool:
        """Whether `function` would not delay what the worker is kept for, or may do so."""
        if self.soft and function.queue is not None:
            head = self.queue.head()
            if head is None or function.queue.entry(function) < head:
                return True
        seconds = function.seconds
        if self.at is not None and seconds is not None and now + seconds <= self.at:
            return True
        return function.cost.fits(self.extra)
