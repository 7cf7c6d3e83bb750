"""What is ready, in queues, and which workers gained room for it."""

from __future__ import annotations

from itertools import chain

from handoff_dask.placement.costs import Cost
from handoff_dask.placement.entities import Function, Kind, Queue, Reservation, Run, Worker
from handoff_dask.placement.fleet import Fleet
from handoff_dask.placement.size_classes import SizeClasses
from handoff_dask.placement.timers import Timers

_NEVER = float("inf")

#: Workers that gained are looked at one by one up to this many, else by the index. Like the next,
#: where one way becomes cheaper than the other; what is decided is the same.
_FEW = 8

#: Queues are looked at one by one up to this many, else by size.
MANY = 64

#: Empty queues are kept for the next function of their cost, up to about this many.
_REMEMBERED = 10_000

_NONE: frozenset[str] = frozenset()


class ReadyQueues:
    """Queues of ready functions, by where they may go."""

    def __init__(self, fleet: Fleet, *, short: float) -> None:
        self.fleet = fleet
        #: Seconds below which a function is short.
        self.short = short
        self.now = 0.0
        #: Queues that hold functions: those that may go anywhere, and the others.
        self.anywhere: dict[Queue, None] = {}
        self.tied: dict[Queue, None] = {}
        #: Of those: the ones that are not closed.
        self.unclosed: dict[Queue, None] = {}
        #: The closed ones by size, while there are many.
        self.size_classes: SizeClasses | None = None
        #: Of `tied`: those to look at, as one of their workers gained.
        self.woken: dict[Queue, None] = {}
        #: Queues that no registered worker could ever serve.
        self.stuck: dict[Queue, None] = {}
        #: Queues with short functions, or that had some.
        self.short_queues: dict[Queue, None] = {}
        #: Workers kept for a queue.
        self.reserved: dict[Worker, Reservation] = {}
        #: Workers that may have more room than when the last pass ended.
        self.gains: list[Worker] = []
        #: Whether something happened for which all queues are to be looked at again.
        self.stir = False
        self.timers = Timers()
        self._checked_epoch = -1
        #: Queues that were made so far: of functions that may go anywhere by cost, as most may,
        #: and of others.
        self._plain: dict[Cost, Queue] = {}
        self._queues: dict[Kind, Queue] = {}

    def enqueue(self, function: Function) -> None:
        """Queue a ready function with those it only differs from in urgency."""
        if function.barred is not None and function.holder is None:
            at = function.barred.relent(self.now, function.seconds)
            if at is not None:
                self.timers.set(at, function)
        queue = self._queue_of(function)
        if not queue.live:
            queue.footprint = self.fleet.footprint(queue.cost)
            if queue.anywhere:
                self.anywhere[queue] = self.unclosed[queue] = None
            else:
                self.tied[queue] = None
        queue.push(function)
        if queue.closed and queue.order.heads[0].function is function:
            if self.size_classes is not None:
                self.size_classes.add(queue)
            if self._passes(queue):
                self.reopen(queue)
        if function.seconds is not None and function.seconds < self.short:
            self.short_queues[queue] = None
        if not queue.anywhere:
            self.woken[queue] = None

    def dequeue(self, function: Function) -> None:
        """Take a function out of its queue."""
        queue = function.queue
        assert queue is not None
        queue.remove(function)
        if not queue.live:
            self._emptied(queue)
            return
        for reservation in queue.reservations:
            if reservation.soft:
                # More functions may be more urgent than the head it has now.
                self.fleet.touched[reservation.worker] = None

    def requeue(self, function: Function) -> None:
        """Queue a function anew, as what decides its queue changed."""
        self.dequeue(function)
        self.enqueue(function)

    def reconsider(self, function: Function) -> None:
        """Queue a function anew, and look at all queues, as it may go to more workers."""
        self.requeue(function)
        self.stir = True

    def rekey(self, run: Run) -> None:
        """Sort the ready functions of a run anew, as their ranks changed."""
        for queue in chain(self.anywhere, self.tied):
            queue.footprint = self.fleet.footprint(queue.cost)
            if queue.rekey(run) < self.short:
                self.short_queues[queue] = None
        self.size_classes = None
        # Who is more urgent than a head that a worker is softly kept for may have changed.
        self.gains += [worker for worker, kept in self.reserved.items() if kept.soft]

    def usable(self, queue: Queue) -> bool:
        """Whether the queue's functions could be placed, given room."""
        fleet = self.fleet
        if queue.checked_epoch != fleet.epoch:
            queue.checked_epoch = fleet.epoch
            if fleet.able(queue):
                queue.stuck = False
                queue.since = None
                queue.due = _NEVER
                self.stuck.pop(queue, None)
            else:
                queue.stuck = True
                self.stuck[queue] = None
                if not fleet.workers:
                    # That is no verdict: an empty cluster is waited for.
                    queue.since = None
                    queue.due = _NEVER
                else:
                    hope = fleet.hope(queue.need, queue.answers_to)
                    if queue.since is None or hope != queue.hope:
                        queue.hope = hope
                        queue.since = self.now if queue.since is None else queue.since
                        queue.judge()
        if queue.stuck or (queue.run is not None and queue.run.saturated):
            # It is not looked at meanwhile, so it may miss workers that gain room.
            self.reopen(queue)
            return False
        return True

    def close(self, queue: Queue) -> None:
        """Note that no open worker has room for a queue: it waits for one that gains."""
        if not queue.closed:
            queue.closed = True
            self.unclosed.pop(queue, None)
            if self.size_classes is not None:
                self.size_classes.add(queue)

    def reopen(self, queue: Queue) -> None:
        """Note that any worker may have room for a queue, as far as is known."""
        if queue.closed:
            queue.closed = False
            if queue.live:
                self.unclosed[queue] = None

    def candidates(self) -> list[Queue]:
        """Return the queues of functions that may go anywhere and may find room."""
        gains = self.gains
        fleet = self.fleet
        many = len(self.anywhere) > MANY
        if not many:
            self.size_classes = None
        if self.size_classes is not None:
            self.size_classes.more = False
        if self._checked_epoch != fleet.epoch or (len(gains) > _FEW and not many):
            self._checked_epoch = fleet.epoch
            for queue in self.anywhere:
                self.reopen(queue)
        queues = list(self.unclosed)
        if len(queues) == len(self.anywhere):
            return queues
        if many:
            if self.size_classes is None:
                self.size_classes = SizeClasses(q for q in self.anywhere if q.closed)
            taken = self.size_classes.take(gains)
            for worker in gains:
                # It may not be among the most urgent, but no other queue gets this worker.
                reservation = worker.reservation
                if reservation is not None and reservation.queue.closed:
                    taken.append(reservation.queue)
            return queues + taken
        for queue in self.anywhere:
            if queue.closed:
                # As in `gained`: this is the loop that every end of a function goes through.
                items = queue.cost.items
                for worker in gains:
                    free = worker.free
                    for i, amount in items:
                        if free[i] < amount:
                            break
                    else:
                        queues.append(queue)
                        break
        fleet.index.checks += len(gains) * len(self.anywhere)
        return queues

    def gained(self, queue: Queue) -> bool:
        """Whether one of the workers that gained has room for a queue."""
        items = queue.cost.items
        for worker in self.gains:
            self.fleet.index.checks += 1
            free = worker.free
            for i, amount in items:
                if free[i] < amount:
                    break
            else:
                return True
        return False

    def reserve(self, reservation: Reservation) -> None:
        """Keep a worker for a queue, taking it from one that it was softly kept for."""
        worker = reservation.worker
        if worker.reservation is not None:
            self.cancel(worker.reservation)
        worker.reservation = reservation
        reservation.queue.reservations.append(reservation)
        self.reserved[worker] = reservation
        self.gains.append(worker)
        # It may have room already, and the pass under way may not look at the queue again.
        self.stir = True
        self.fleet.index.changed[worker] = None

    def cancel(self, reservation: Reservation) -> None:
        """Give a reserved worker back to all."""
        worker = reservation.worker
        reservation.queue.reservations.remove(reservation)
        worker.reservation = None
        del self.reserved[worker]
        self.stir = True
        if self.size_classes is not None:
            # Queues that were looked at could not use this worker; now they can.
            self.size_classes.restore()
        self.gains.append(worker)
        self.fleet.touched[worker] = None
        self.fleet.index.changed[worker] = None
        self.woken.update(worker.watchers)

    def _passes(self, queue: Queue) -> bool:
        """Whether the head of a queue is more urgent than one that a worker is softly kept for."""
        head = queue.head()
        others = (kept.queue.head() for kept in self.reserved.values() if kept.soft)
        return head is not None and any(other is not None and head < other for other in others)

    def _queue_of(self, function: Function) -> Queue:
        cost = function.cost
        run = function.run
        group = function.group
        barred = function.barred
        limited = None if run.limit is None else run
        if (
            group is None
            and not function.pin
            and (barred is None or not (barred.avoid or barred.exclude))
            and function.holder is None
            and limited is None
        ):
            plain = self._plain.get(cost)
            if plain is None:
                plain = self._plain[cost] = Queue(Kind(cost))
            return plain
        need = None
        pin = function.pin
        bound = function.holder
        if group is not None:
            if group.worker is not None:
                pin, bound = (), group.worker
            else:
                pin = group.pin
                need = self.fleet.resources.union((group.need, cost))
        avoid = exclude = _NONE
        insist = False
        if barred is not None:
            exclude = barred.exclude
            if bound is None and barred.avoid:
                avoid, insist = barred.avoid, barred.insist
        deferred = function.holder is not None
        kind = Kind(cost, need, pin, bound, deferred, avoid, exclude, insist, limited)
        queue = self._queues.get(kind)
        if queue is None:
            queue = self._queues[kind] = Queue(kind)
            if limited is not None:
                limited.queues[queue] = None
        return queue

    def _emptied(self, queue: Queue) -> None:
        for queues in (self.anywhere, self.unclosed, self.tied, self.woken, self.stuck):
            queues.pop(queue, None)
        self.short_queues.pop(queue, None)
        queue.stuck = False
        queue.since = None
        queue.closed = False
        queue.checked_epoch = -1
        queue.debt = 0.0
        while queue.reservations:
            self.cancel(queue.reservations[-1])
        self._unwatch(queue)
        if len(self._plain) > _REMEMBERED and self._plain.get(queue.cost) is queue:
            del self._plain[queue.cost]
        if self._queues.pop(queue.kind, None) is not None and queue.run is not None:
            queue.run.queues.pop(queue, None)

    def watch(self, queue: Queue) -> None:
        """Have a queue looked at when one of its workers gains."""
        if queue.able is not queue.watched:
            self._unwatch(queue)
            queue.watched = queue.able or ()
            for worker in queue.watched:
                worker.watchers[queue] = None

    def _unwatch(self, queue: Queue) -> None:
        for worker in queue.watched:
            worker.watchers.pop(queue, None)
        queue.watched = ()
