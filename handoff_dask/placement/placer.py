"""Who runs where now: the passes that a poll makes over queues and workers."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from itertools import chain, islice
from typing import TYPE_CHECKING

from handoff_dask.placement import reservations
from handoff_dask.placement.events import Place, Refuse
from handoff_dask.placement.queues import Entry, Kind, Queue
from handoff_dask.placement.runs import FRESH, PLACED, QUEUED, WAITING, Function, Group, Run

if TYPE_CHECKING:
    from handoff_dask.placement.cluster import Cluster
    from handoff_dask.placement.index import View
    from handoff_dask.placement.ledger import Worker

__all__ = ["Placer"]

#: A queue's head is bypassed until others got this much of what it lacks, in whole workers;
#: less where there are few workers.
_PATIENCE = 8.0
_PATIENCE_PER_WORKER = 2.0
#: Of the more urgent functions every so-manieth adds to that, too: urgency delays only so long.
_URGENT = 8
#: No more of those that wait are looked at per placement, the longest waiting first.
_CHARGED = 64
#: No more workers than this are kept for somebody at a time.
_RESERVED = 32

#: Workers that gained are looked at one by one up to this many, else by the index.
_FEW = 8

_NEVER = float("inf")

#: A queue to look at, by the head it had when that was noted. A function that changed queues may
#: stand there twice with equal entries, so that something must come between these and the queue.
_Open = tuple[Entry, int, Queue]


class Placer:
    """Queues of ready functions, and the workers they go to.

    Parameters
    ----------
    short
        Seconds. Shorter functions may be committed ahead; functions wait for the worker that
        holds their inputs only if that saves more.
    bandwidth, latency
        Bytes per second, and seconds, of moving inputs.
    """

    def __init__(
        self, cluster: Cluster, *, short: float, bandwidth: float, latency: float
    ) -> None:
        self.cluster = cluster
        self.index = cluster.index
        self.bandwidth = bandwidth
        self.latency = latency
        self.now = 0.0
        #: (when, number, function, its stamp): a function to look at again.
        self.timers: list[tuple[float, int, Function, int]] = []
        #: Queues that hold functions: those that may go anywhere, and the others.
        self.anywhere: dict[Queue, None] = {}
        self.tied: dict[Queue, None] = {}
        #: Of `tied`: those to look at, as one of their workers gained.
        self.woken: dict[Queue, None] = {}
        #: Queues that no registered worker could ever serve.
        self.stuck: dict[Queue, None] = {}
        #: Functions whose target has no running worker that could hold it.
        self.unbound: dict[Function, None] = {}
        self.reserved: dict[Worker, reservations.Reservation] = {}
        #: Workers that may have more room than when the last pass ended.
        self.gains: list[Worker] = []
        #: Queues with functions that take less than `short` seconds, or that had some.
        self.short_queues: dict[Queue, None] = {}
        self._queues: dict[Kind, Queue] = {}
        self.short = short
        #: Whether something happened for which all queues are to be looked at again.
        self.stir = False
        #: Workers that changed before this poll.
        self.gained: dict[Worker, None] = {}
        self._timer = 0
        self._charged = 0
        self._epoch = -1

    @property
    def due(self) -> bool:
        """Whether there is something to decide."""
        cluster = self.cluster
        return bool(self.stir or self.woken or cluster.touched or self._epoch != cluster.epoch)

    # -- into and out of the queues

    def enqueue(self, function: Function) -> None:
        """Queue a ready function with those it only differs from in urgency."""
        queue = self._queue_of(function)
        if not queue.live:
            (self.anywhere if queue.anywhere else self.tied)[queue] = None
        queue.push(function, self.cluster.footprint(function.cost))
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

    def requeue(self, function: Function) -> None:
        """Queue a function anew, as what decides its queue changed."""
        self.dequeue(function)
        self.enqueue(function)

    def at(self, when: float, function: Function) -> None:
        """Look at a function again at a time, unless its state changed till then."""
        self._timer += 1
        heappush(self.timers, (when, self._timer, function, function.stamp))

    def _queue_of(self, function: Function) -> Queue:
        cost = function.cost
        run = function.run
        group = function.group
        limited = None if run.limit is None else run
        if (
            group is None
            and function.pin is None
            and function.avoid is None
            and function.holder is None
            and limited is None
        ):
            if cost.queue is None:
                cost.queue = Queue((cost, None, None, None, False, None, None))
            return cost.queue
        need = None
        pin = function.pin
        bound = function.holder
        if group is not None:
            if group.worker is not None:
                pin, bound = None, group.worker
            else:
                pin = group.pin
                need = self.cluster.resources.union((group.need, cost))
        avoid = function.avoid if bound is None else None
        kind = (cost, need, pin, bound, function.holder is not None, avoid, limited)
        queue = self._queues.get(kind)
        if queue is None:
            queue = self._queues[kind] = Queue(kind)
            if limited is not None:
                limited.queues[queue] = None
        return queue

    def _emptied(self, queue: Queue) -> None:
        self.anywhere.pop(queue, None)
        self.tied.pop(queue, None)
        self.woken.pop(queue, None)
        self.stuck.pop(queue, None)
        self.short_queues.pop(queue, None)
        queue.stuck = False
        queue.since = None
        queue.closed = False
        queue.able_epoch = -1
        queue.debt = 0.0
        while queue.reservations:
            self.cancel(queue.reservations[-1])
        self._unwatch(queue)
        if self._queues.pop(queue.kind, None) is not None and queue.run is not None:
            queue.run.queues.pop(queue, None)

    def _watch(self, queue: Queue) -> None:
        if queue.able is not queue.watched:
            self._unwatch(queue)
            queue.watched = queue.able or ()
            for worker in queue.watched:
                worker.watchers[queue] = None

    def _unwatch(self, queue: Queue) -> None:
        for worker in queue.watched:
            worker.watchers.pop(queue, None)
        queue.watched = ()

    # -- the poll's passes

    def settle(self, now: float) -> None:
        """Take over what happened to workers since the last poll."""
        self.now = now
        cluster = self.cluster
        if self._epoch != cluster.epoch:
            self._epoch = cluster.epoch
            cluster.refresh()
            self.woken.update(self.tied)
            unbound = list(self.unbound)
            self.unbound.clear()
            for function in unbound:
                self.enqueue(function)
        self.gained = cluster.touched
        cluster.touched = {}
        self.gains.clear()
        for worker in self.gained:
            self.index.sync(worker)
            if worker.watchers:
                self.woken.update(worker.watchers)
            if worker.running and not worker.ahead:
                self.gains.append(worker)

    def place(self, out: list[Place | Refuse]) -> None:
        """Place whatever fits, the most urgent first."""
        self.stir = False
        open_: list[_Open] = []
        gains = self.gains
        few = len(gains) <= _FEW
        for queue in self.anywhere:
            if not few:
                queue.closed = False
            if (queue.closed and not self._gained(queue)) or not self.usable(queue):
                continue
            head = queue.head()
            assert head is not None
            queue.opened = True
            open_.append((head, id(queue), queue))
        heapify(open_)
        self._open_woken(open_)
        while open_:
            entry, _, queue = heappop(open_)
            queue.opened = False
            if queue.closed and not self._gained(queue):
                continue
            head = queue.head()
            if head is None or not self.usable(queue):
                continue
            if head is entry:
                function = head[4]
                worker = self._find(queue, function)
                if worker is None:
                    if queue.anywhere:
                        queue.closed = True
                    else:
                        self._watch(queue)
                    continue
                function = self.suited(queue, function, worker)
                if (
                    not (function.inputs and self._defers(function, worker))
                    and not self._charge(function, queue, worker)
                    and (function.binds is None or self._bind_target(function, worker))
                ):
                    self.assign(function, worker, out)
                head = queue.head()
            if head is not None:
                queue.opened = True
                heappush(open_, (head, id(queue), queue))
            if self.woken:
                self._open_woken(open_)

    def usable(self, queue: Queue) -> bool:
        """Whether the queue's functions could be placed, given room."""
        cluster = self.cluster
        if queue.able_epoch != cluster.epoch:
            if cluster.able(queue):
                queue.stuck = False
                queue.since = None
                self.stuck.pop(queue, None)
            else:
                queue.stuck = True
                self.stuck[queue] = None
                if not cluster.workers:
                    # That is no verdict: an empty cluster is waited for.
                    queue.since = None
                elif queue.since is None:
                    queue.since = self.now
        if queue.stuck or (queue.run is not None and queue.run.saturated):
            # It is not looked at, so that it misses who gains.
            queue.closed = False
            return False
        return True

    def suited(self, queue: Queue, function: Function, worker: Worker) -> Function:
        """Choose between the head and the most urgent function whose inputs a worker holds.

        A function is as much less urgent on a worker as its inputs take to get there.
        """
        entry = queue.head_at(worker.address) if queue.local else None
        if entry is None or entry[4] is function:
            return function
        other = entry[4]
        bandwidth, latency = self.bandwidth, self.latency
        if other.run.priority == function.run.priority and other.rank - other.transfer(
            worker.address, bandwidth, latency
        ) >= function.rank - function.transfer(worker.address, bandwidth, latency):
            return other
        return function

    def assign(
        self, function: Function, worker: Worker, out: list[Place | Refuse], ahead: bool = False
    ) -> None:
        """Give a queued function to a worker."""
        queue = function.queue
        assert queue is not None
        queue.debt = 0.0
        if queue.reservations:
            mine = worker.reservation
            self.cancel(mine if mine in queue.reservations else queue.reservations[-1])
        queue.remove(function)
        if not queue.live:
            self._emptied(queue)
        function.state = PLACED
        function.stamp += 1
        function.worker = worker
        function.started = self.now
        function.run.placed += 1
        group = function.group
        if group is not None:
            if group.worker is None:
                self.bind(group, worker)
            worker.promised.pop(group, None)
        if ahead:
            seconds = function.seconds or 0.0
            worker.ahead[function] = None
            worker.ahead_work += seconds
        else:
            reservation = worker.reservation
            if reservation is not None:
                extra = reservation.extra
                for i, amount in function.cost.items:
                    extra[i] = max(0, extra[i] - amount)
            worker.claim(function)
        self.index.sync(worker)
        target = None
        if function.binds is not None:
            bound = function.binds.group
            assert bound is not None and bound.worker is not None
            target = bound.worker.address
        out.append(Place(function.key, worker.address, target, ahead))

    def bind(self, group: Group, worker: Worker) -> None:
        """Tie a group to a worker; its ready functions queue for that one."""
        group.worker = worker
        worker.groups[group] = None
        for member in group.members:
            if member.state == QUEUED:
                self.requeue(member)

    def unbind(self, group: Group) -> None:
        """Let a group be bound anew."""
        worker = group.worker
        if worker is not None:
            worker.groups.pop(group, None)
            worker.promised.pop(group, None)
            group.worker = None
            for member in group.members:
                if member.state == QUEUED:
                    self.requeue(member)

    def cancel(self, reservation: reservations.Reservation) -> None:
        """Give a reserved worker back to all."""
        worker = reservation.worker
        reservation.queue.reservations.remove(reservation)
        worker.reservation = None
        del self.reserved[worker]
        self.stir = True
        self.gains.append(worker)
        self.cluster.touched[worker] = None
        self.index.sync(worker)
        self.woken.update(worker.watchers)

    # -- inside

    def _open_woken(self, open_: list[_Open]) -> None:
        for queue in self.woken:
            if not queue.opened and queue.live and self.usable(queue):
                head = queue.head()
                assert head is not None
                queue.opened = True
                heappush(open_, (head, id(queue), queue))
        self.woken.clear()

    def _gained(self, queue: Queue) -> bool:
        """Whether one of the workers that gained has room for a queue."""
        items = queue.cost.items
        for worker in self.gains:
            self.index.checks += 1
            free = worker.free
            for i, amount in items:
                if free[i] < amount:
                    break
            else:
                return True
        return False

    def _view(self, queue: Queue, function: Function) -> View:
        strategy = function.run.strategy
        view = queue.views.get(strategy)
        if view is None:
            view = self.index.view(strategy, queue.cost, queue.need)
            queue.views[strategy] = view
        return view

    def _find(self, queue: Queue, function: Function) -> Worker | None:
        """Choose a worker that has room."""
        cost = queue.cost
        for reservation in queue.reservations:
            worker = reservation.worker
            if worker.running and not worker.ahead and cost.fits(worker.free) and min(worker.free) >= 0:
                return worker
        found: Worker | None = None
        avoid = self._avoided(queue)
        if queue.able is None and not queue.closed:
            view = self._view(queue, function)
            bucket = view.best()
            if bucket is not None:
                found = bucket.first()
                if avoid is not None and found.address == avoid:
                    found = next(
                        (w for b in view.buckets() for w in b.members() if w.address != avoid), None
                    )
                if found is not None and function.inputs:
                    found = self._near(function, queue, found, avoid)
        else:
            score_of = function.run.strategy.score
            least = 0.0
            for worker in self.gains if queue.able is None else queue.able:
                self.index.checks += 1
                if (
                    cost.fits(worker.free)
                    and worker.open
                    and worker.address != avoid
                    and queue.need.fits(worker.shape.capacity)
                ):
                    if score_of is None:
                        score = float(worker.order)
                    else:
                        score = score_of(cost, worker.shape.capacity, worker.free, self.index.scarce)
                    if found is None or score < least:
                        found, least = worker, score
            if found is not None and function.inputs:
                found = self._near(function, queue, found, avoid)
        if found is None and self.reserved:
            found = self._beside(queue, function, avoid)
        return found

    def _avoided(self, queue: Queue) -> str | None:
        """The worker to avoid, if another could do it."""
        avoid = queue.avoid
        if avoid is None:
            return None
        candidates = self.cluster.workers.values() if queue.able is None else queue.able
        return avoid if self.cluster.others_able(queue.need, avoid, candidates) else None

    def _near(
        self, function: Function, queue: Queue, found: Worker, avoid: str | None
    ) -> Worker:
        """Choose a worker with room that holds the inputs, if that is worth it."""
        bandwidth, latency = self.bandwidth, self.latency
        inputs = function.inputs
        assert inputs is not None
        least = function.transfer(found.address, bandwidth, latency)
        if not least:
            return found
        scarce = self.index.scarce
        strategy = function.run.strategy
        seconds = 1.0 if function.seconds is None else function.seconds
        here = found.shape.capacity
        used = {i for i, _ in queue.cost.items}
        chosen = found
        for address in inputs:
            worker = self.cluster.workers.get(address)
            if worker is None or not worker.open or address == avoid:
                continue
            moving = function.transfer(address, bandwidth, latency)
            if moving >= least or not queue.cost.fits(worker.free):
                continue
            there = worker.shape.capacity
            if not queue.need.fits(there) or (queue.able is not None and worker not in queue.able):
                continue
            # What the strategy is for comes first, unless moving takes longer than running.
            spares = any(there[i] and not here[i] and i not in used for i in scarce)
            if (spares or not strategy.local) and least - moving < seconds:
                continue
            chosen, least = worker, moving
        return chosen

    def _defers(self, function: Function, worker: Worker) -> bool:
        """Let a function wait for the worker that holds its inputs, if that is faster.

        It waits no longer than moving them would take, and once per attempt.
        """
        inputs = function.inputs
        assert inputs is not None
        queue = function.queue
        assert queue is not None
        if function.deferred or not queue.anywhere:
            return False
        bandwidth, latency = self.bandwidth, self.latency
        here = function.transfer(worker.address, bandwidth, latency)
        if here <= self.short:
            return False
        address = max(inputs, key=lambda a: inputs[a])
        holder = self.cluster.workers.get(address)
        if (
            holder is None
            or holder is worker
            or not holder.running
            or address == function.avoid
            or not queue.need.fits(holder.shape.capacity)
        ):
            return False
        saved = here - function.transfer(address, bandwidth, latency)
        if saved <= self.short:
            return False
        found = reservations.drain(holder, queue.cost, self.now)
        if found is None:
            return False
        at, _, _ = found
        if at is not None:
            # Others that wait for it go first.
            ahead = sum(
                (q.heap[0][4].seconds or 0.0) * q.live for q in holder.watchers if q.deferred
            )
            if at - self.now + ahead >= saved:
                return False
        self.dequeue(function)
        function.deferred = True
        function.holder = holder
        function.stamp += 1
        self.enqueue(function)
        self.at(self.now + saved, function)
        return True

    def _beside(self, queue: Queue, function: Function, avoid: str | None) -> Worker | None:
        """Choose a reserved worker that the function would not delay anybody on."""
        for worker in self.gains if queue.able is None else queue.able:
            reservation = worker.reservation
            if (
                reservation is not None
                and worker.running
                and not worker.ahead
                and worker.address != avoid
                and queue.cost.fits(worker.free)
                and min(worker.free) >= 0
                and queue.need.fits(worker.shape.capacity)
                and reservation.admits(function, self.now)
            ):
                return worker
        return None

    def _charge(self, function: Function, queue: Queue, worker: Worker) -> bool:
        """Count a placement as a debt to those it bypasses; True if the worker goes to one.

        A head that others bypass for too long gets a worker reserved.
        """
        if worker.reservation is not None:
            return False
        entry = function.entry
        assert entry is not None
        self._charged += 1
        # The more urgent are counted now and then: they, too, may only delay so long.
        aged = self._charged % _URGENT == 0
        taken = dict(function.cost.items)
        gone = False
        patience = min(_PATIENCE, _PATIENCE_PER_WORKER * len(self.cluster.workers))
        for other in chain(islice(self.anywhere, _CHARGED), islice(worker.watchers, _CHARGED)):
            if other.opened or other is queue or not (aged or other.heap[0] < entry):
                continue
            part = reservations.share(taken, other.cost, worker)
            if not part:
                continue
            head = other.head()
            if head is None or head[0] > entry[0] or not (aged or head < entry):
                continue
            if other.need.fits(worker.shape.capacity):
                other.debt += part
                if other.debt >= patience and self._reserve(other):
                    other.debt = 0.0
                    gone = gone or worker.reservation is not None
        return gone

    def _reserve(self, queue: Queue) -> bool:
        room = min(_RESERVED, (len(self.cluster.workers) + 1) // 2)
        if (
            len(self.reserved) >= room
            or len(queue.reservations) >= queue.live
            or not self.usable(queue)
        ):
            return False
        workers = self.cluster.sample() if queue.able is None else queue.able
        reservation = reservations.choose(queue, workers, self.now)
        if reservation is None:
            return False
        worker = reservation.worker
        worker.reservation = reservation
        queue.reservations.append(reservation)
        self.reserved[worker] = reservation
        self.gains.append(worker)
        self.index.sync(worker)
        return True

    def _bind_target(self, function: Function, worker: Worker) -> bool:
        """Bind the group of the function that this one binds; False if no worker is able."""
        assert function.binds is not None
        group = function.binds.group
        assert group is not None
        if group.worker is not None or group is function.group:
            return True
        chosen = self.cluster.promise(group.need, group.pin, worker)
        if chosen is None:
            self.dequeue(function)
            function.state = FRESH
            if self.cluster.finding(group.need, group.pin):
                function.stuck_at = None  # it is only paused
            elif function.stuck_at is None:
                function.stuck_at = self.now
            self.unbound[function] = None
            return False
        chosen.promised[group] = group.need
        self.bind(group, chosen)
        return True

    def refuse(self, out: list[Place | Refuse]) -> None:
        """Give up what waited long enough for a worker that could hold it."""
        for queue in list(self.stuck):
            if queue.since is None or self.now < queue.since + queue.patience:
                continue
            pin = queue.pin if queue.bound is None else queue.bound.address
            finding = self.cluster.finding(queue.need, pin)
            for function in queue.functions():
                if self.now >= queue.since + function.run.patience:
                    self.give_up(function)
                    out.append(Refuse(function.key, finding))
            queue.patience = min((f.run.patience for f in queue.functions()), default=_NEVER)
        for function in list(self.unbound):
            since = function.stuck_at
            if since is not None and self.now >= since + function.run.patience:
                assert function.binds is not None and function.binds.group is not None
                group = function.binds.group
                out.append(Refuse(function.key, self.cluster.finding(group.need, group.pin)))
                self.give_up(function)

    def give_up(self, function: Function) -> None:
        """Take a ready function back: it waits for nothing any more."""
        if function.state == QUEUED:
            self.dequeue(function)
        self.unbound.pop(function, None)
        function.state = WAITING
        function.stamp += 1
        function.holder = None

    def rekey(self, run: Run) -> None:
        """Sort the ready functions of a run anew, as their ranks changed."""
        for queue in chain(self.anywhere, self.tied):
            least = queue.rekey(run, self.cluster.footprint(queue.cost))
            if least < self.short:
                self.short_queues[queue] = None

    def forget_holder(self, worker: Worker) -> None:
        """Let functions that wait for a worker's data go elsewhere: it is gone."""
        for queue in [q for q in self.tied if q.deferred and q.bound is worker]:
            for function in queue.functions():
                function.holder = None
                self.requeue(function)

    def wake_at(self) -> float | None:
        """The next time at which something happens by itself."""
        timers = self.timers
        while timers and timers[0][2].stamp != timers[0][3]:
            heappop(timers)
        times = [timers[0][0]] if timers else []
        times += [q.since + q.patience for q in self.stuck if q.since is not None]
        times += [f.stuck_at + f.run.patience for f in self.unbound if f.stuck_at is not None]
        return min(times, default=None)
