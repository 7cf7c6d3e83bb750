"""Ready functions, in queues of those that only differ in urgency."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush, nlargest
from typing import TYPE_CHECKING

from handoff_dask.placement.runs import QUEUED

if TYPE_CHECKING:
    from handoff_dask.placement.index import View
    from handoff_dask.placement.ledger import Cost, Worker
    from handoff_dask.placement.reservations import Reservation
    from handoff_dask.placement.runs import Function, Run
    from handoff_dask.placement.strategies import Strategy

__all__ = ["Entry", "Kind", "Queue", "Strata"]

#: What functions are sorted by, the most urgent lowest: priority, remaining path, footprint, order.
Entry = tuple[float, float, float, int, "Function"]

#: What functions of one queue share: cost, what a worker must be able to hold (None: the cost),
#: pin, the worker it is bound to, whether that is for its inputs only, the workers to avoid, those
#: that are excluded, whether it insists on avoiding, the run if it has a limit.
Kind = tuple[
    "Cost",
    "Cost | None",
    "str | None",
    "Worker | None",
    bool,
    frozenset[str],
    frozenset[str],
    bool,
    "Run | None",
]

_NEVER = float("inf")

#: A function is looked up by the workers that hold most of its inputs; this many of them.
_HOLDERS = 2


class Strata:
    """Ready functions, the most urgent first, in strata of those of a run that are as urgent.

    When more is known of how long functions take, most strata become more or less urgent as a
    whole: to sort anew costs little for each function. Functions that left are dropped when met.

    Parameters
    ----------
    queue
        Whose functions these are.
    """

    __slots__ = ("_queue", "_size", "_strata", "heads")

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        #: A heap with the first function of each stratum, and with some that were the first.
        self.heads: list[Entry] = []
        #: Per run and urgency: a heap of functions, the one added first at the top.
        self._strata: dict[tuple[Run, float], list[tuple[int, Function]]] = {}
        #: How many functions the strata hold, with those that left.
        self._size = 0

    def push(self, function: Function) -> None:
        """Add a function."""
        if self._size > 2 * self._queue.live + 32:
            self._compact()
        stratum = self._strata.setdefault((function.run, function.urgency), [])
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
            function = entry[4]
            if function.queue is queue and function.urgency == -entry[1]:
                return entry
            heappop(heads)
            key = function.run, -entry[1]
            stratum = self._strata.get(key)
            # If another is its first by now, that one has an entry of its own.
            if stratum is not None and stratum[0][1] is function:
                self._drop_gone(stratum, key[1])
                if stratum:
                    heappush(heads, queue.entry(stratum[0][1]))
                else:
                    del self._strata[key]
        return None

    def functions(self) -> Iterator[Function]:
        """Return the functions in no order; one that left and came back may be there twice."""
        for (_, urgency), stratum in self._strata.items():
            for _, function in stratum:
                if function.queue is self._queue and function.urgency == urgency:
                    yield function

    def rekey(self, run: Run) -> float:
        """Sort the functions of a run anew; return the seconds that the shortest of them takes."""
        queue = self._queue
        least = _NEVER
        moved: dict[float, list[tuple[int, Function]]] = {}
        for key in [key for key in self._strata if key[0] is run]:
            stratum = self._strata.pop(key)
            # Those that left count as well: they are few, and to tell them apart would cost more.
            kinds = {(function.urgency, function.seconds) for _, function in stratum}
            for _, seconds in kinds:
                if seconds is not None and seconds < least:
                    least = seconds
            urgencies = {urgency for urgency, _ in kinds}
            if len(urgencies) == 1 and (urgency := urgencies.pop()) not in moved:
                moved[urgency] = stratum
                continue
            for item in stratum:
                if item[1].queue is queue:
                    heappush(moved.setdefault(item[1].urgency, []), item)
                else:
                    self._size -= 1
        for urgency, stratum in moved.items():
            self._strata[run, urgency] = stratum
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
        functions = set(self.functions())
        self.clear()
        for function in functions:
            self._strata.setdefault((function.run, function.urgency), []).append(
                (function.seq, function)
            )
        self._size = len(functions)
        for stratum in self._strata.values():
            heapify(stratum)
        self._restart()

    def _restart(self) -> None:
        """Find the head of each stratum anew."""
        for key, stratum in list(self._strata.items()):
            self._drop_gone(stratum, key[1])
            if not stratum:
                del self._strata[key]
        entry = self._queue.entry
        self.heads[:] = [entry(stratum[0][1]) for stratum in self._strata.values()]
        heapify(self.heads)


class Queue:
    """Functions of one cost that may go to the same workers, the most urgent first."""

    __slots__ = (
        "able", "able_epoch", "avoid", "binned", "bound", "checked_epoch", "closed", "cost", "debt",
        "deferred", "due", "exclude", "footprint", "hope", "insist", "kind", "live", "local",
        "need", "opened", "order", "pin", "reservations", "run", "since", "stuck", "views",
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
        #: Those whose inputs a worker holds, by its address.
        self.local: dict[str, Strata] = {}
        #: Of how much of the cluster a function takes, the dominant share.
        self.footprint = 0.0
        self.views: dict[Strategy, View] = {}
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
        #: Its place in a bin, if there are bins.
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
        return self.pin is None and self.bound is None

    @property
    def answers_to(self) -> str | None:
        """What a worker must answer to in order to take its functions; None: any may."""
        return self.pin if self.bound is None else self.bound.address

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
        priority = function.run.priority
        return -priority, -function.urgency, -self.footprint, function.seq, function

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

    def head(self) -> Entry | None:
        """Return the most urgent entry."""
        return self.order.head()

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
