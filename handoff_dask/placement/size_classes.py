"""Queues by the size of their cost, for when there are many different costs.

If every function has its own cost, each function is a queue. To avoid looking at all of them
whenever one ends, queues of about the same size form a class, the most urgent first. Classes too
big for what became free are skipped as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from handoff_dask.placement.costs import SLOT, UNIT, Cost
from handoff_dask.placement.entities import Entry, Queue, Worker

#: No more queues of a class are looked at, and no more of them taken, at a time. These bound what
#: an end costs.
_SCAN = 16
_HITS = 4

_Size = tuple[tuple[int, int], ...]
#: The head a queue had, a number that says whether this is its latest, the queue.
_Item = tuple[Entry, int, Queue]


@dataclass(slots=True)
class _SizeClass:
    #: Each cost in it is at least this.
    least: Cost
    heap: list[_Item] = field(default_factory=list)


class SizeClasses:
    """Closed queues that may go anywhere."""

    def __init__(self, queues: Iterable[Queue]) -> None:
        self._classes: dict[_Size, _SizeClass] = {}
        #: What was looked at since `restore`.
        self._aside: list[tuple[_Size, _Item]] = []
        self._number = 0
        #: Whether another `take` is likely to find more.
        self.more = False
        for queue in queues:
            self.add(queue)

    def add(self, queue: Queue) -> None:
        """Add a queue, or note that its head is more urgent now."""
        head = queue.head()
        if head is not None:
            self._number = queue.binned = self._number + 1
            heappush(self._class(_size(queue.cost)).heap, (head, self._number, queue))

    def take(self, gains: Sequence[Worker]) -> list[Queue]:
        """Return urgent queues that fit one of some workers; different ones with each call.

        Of a class in which none of the first few fits, no more are looked at.
        """
        self.more = False
        taken: list[Queue] = []
        for size, size_class in list(self._classes.items()):
            if not any(size_class.least.fits(worker.free) for worker in gains):
                continue
            looked = hits = 0
            heap = size_class.heap
            while heap and hits < _HITS and looked < _SCAN:
                entry, number, queue = heappop(heap)
                head = queue.head()
                if number != queue.binned or head is None or not queue.closed:
                    continue
                if head != entry:
                    heappush(heap, (head, number, queue))
                    continue
                looked += 1
                self._aside.append((size, (entry, number, queue)))
                room = [worker for worker in gains if queue.cost.fits(worker.free)]
                if room:
                    taken.append(queue)
                    # One that has to stay away must not keep others from what is free.
                    hits += any(w.open and not queue.bars(w) for w in room)
            if hits and heap:
                self.more = True
            if not heap:
                del self._classes[size]
        return taken

    def restore(self) -> None:
        """Let `take` begin with the most urgent again."""
        for size, item in self._aside:
            heappush(self._class(size).heap, item)
        self._aside.clear()

    def _class(self, size: _Size) -> _SizeClass:
        size_class = self._classes.get(size)
        if size_class is None:
            least = ((SLOT, UNIT), *((i, 1 << (bits - 1)) for i, bits in size))
            size_class = self._classes[size] = _SizeClass(Cost(least, {}))
        return size_class


def _size(cost: Cost) -> _Size:
    """Round each amount down to a power of two."""
    return tuple((i, amount.bit_length()) for i, amount in cost.rest)
