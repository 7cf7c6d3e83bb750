"""Ready functions, in queues of those that only differ in urgency."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from handoff_dask.placement.runs import QUEUED

if TYPE_CHECKING:
    from handoff_dask.placement.index import View
    from handoff_dask.placement.ledger import Cost, Worker
    from handoff_dask.placement.reservations import Reservation
    from handoff_dask.placement.runs import Function, Run
    from handoff_dask.placement.strategies import Strategy

__all__ = ["Entry", "Kind", "Queue"]

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


class Queue:
    """Functions of one cost that may go to the same workers, the most urgent first."""

    __slots__ = (
        "able", "able_epoch", "avoid", "binned", "bound", "checked_epoch", "closed", "cost", "debt",
        "deferred", "due", "exclude", "heap", "hope", "insist", "kind", "live", "local", "need",
        "opened", "pin", "reservations", "run", "since", "stuck", "views", "watched",
    )  # fmt: skip

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.cost, need, self.pin, self.bound, self.deferred = kind[:5]
        self.avoid, self.exclude, self.insist, self.run = kind[5:]
        self.need = need or self.cost
        self.heap: list[Entry] = []
        #: Functions in it; the heap may hold more entries, of functions that left.
        self.live = 0
        #: The same entries by address of a worker that holds inputs.
        self.local: dict[str, list[Entry]] = {}
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
        functions = (entry[4] for entry in self.heap if entry[4].entry is entry)
        self.due = min(map(self.deadline, functions), default=_NEVER)

    def push(self, function: Function, footprint: float) -> None:
        """Take a function in."""
        run = function.run
        entry = (-run.priority, -function.urgency, -footprint, function.seq, function)
        function.entry = entry
        function.queue = self
        function.state = QUEUED
        self.live += 1
        if self.since is not None:
            self.due = min(self.due, self.deadline(function))
        heap = self.heap
        if len(heap) > 2 * self.live + 32:
            self._tidy(heap)
        heappush(heap, entry)
        if function.inputs:
            self._push_local(function, entry)

    def remove(self, function: Function) -> None:
        """Let a function go; its entries are dropped when met."""
        function.entry = None
        function.queue = None
        self.live -= 1
        if not self.live:
            self.heap.clear()
            self.local.clear()
            self.due = _NEVER

    def head(self) -> Entry | None:
        """Return the most urgent entry."""
        return _top(self.heap)

    def head_at(self, address: str) -> Entry | None:
        """Return the most urgent entry of those whose inputs a worker holds."""
        heap = self.local.get(address)
        if heap is None:
            return None
        entry = _top(heap)
        if entry is None:
            del self.local[address]
        return entry

    def functions(self) -> list[Function]:
        """Return all its functions, the most urgent first."""
        return [entry[4] for entry in sorted(e for e in self.heap if e[4].entry is e)]

    def rekey(self, run: Run, footprint: float) -> float:
        """Sort the functions of a run anew; return the seconds that the shortest takes."""
        least = float("inf")
        entries = [entry for entry in self.heap if entry[4].entry is entry]
        if not any(entry[4].run is run for entry in entries):
            return least
        self.heap.clear()
        self.local.clear()
        for entry in entries:
            function = entry[4]
            if function.run is run:
                entry = (-run.priority, -function.urgency, -footprint, function.seq, function)
                function.entry = entry
                if function.seconds is not None and function.seconds < least:
                    least = function.seconds
            self.heap.append(entry)
            if function.inputs:
                self._push_local(function, entry)
        heapify(self.heap)
        return least

    def _push_local(self, function: Function, entry: Entry) -> None:
        inputs = function.inputs
        assert inputs is not None
        if len(inputs) > _HOLDERS:
            best = sorted(inputs, key=lambda address: -inputs[address])[:_HOLDERS]
        else:
            best = list(inputs)
        for address in best:
            heap = self.local.setdefault(address, [])
            heappush(heap, entry)
            if len(heap) > 2 * self.live + 32:
                self._tidy(heap)

    @staticmethod
    def _tidy(heap: list[Entry]) -> None:
        heap[:] = [entry for entry in heap if entry[4].entry is entry]
        heapify(heap)


def _top(heap: list[Entry]) -> Entry | None:
    while heap:
        entry = heap[0]
        if entry[4].entry is entry:
            return entry
        heappop(heap)
    return None
