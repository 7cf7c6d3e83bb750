"""The passes that a poll makes over queues and workers to decide who runs where."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from handoff_dask.placement.choice import Chooser
from handoff_dask.placement.entities import (
    FRESH,
    PLACED,
    QUEUED,
    WAITING,
    Entry,
    Function,
    Group,
    Queue,
    Worker,
)
from handoff_dask.placement.events import Decision, Place, Refuse, Started
from handoff_dask.placement.ready_queues import ReadyQueues
from handoff_dask.placement.reservations import Reserver
from handoff_dask.placement.soft_reservations import SoftReserver

_NEVER = float("inf")

#: A queue to look at, by the head it had when that was noted. A function that changed queues may
#: stand there twice with equal entries, so that something must come between these and the queue.
_Open = tuple[Entry, int, Queue]


class Placer:
    """Takes functions from the queues and gives them to workers."""

    def __init__(self, ready: ReadyQueues, chooser: Chooser) -> None:
        self.ready = ready
        self.chooser = chooser
        self.reserver = Reserver(ready)
        self.soft_reserver = SoftReserver(ready)
        self.fleet = ready.fleet
        #: Functions whose target has no running worker that could hold it.
        self.unbound: dict[Function, None] = {}
        #: Workers that changed before this poll.
        self.changed: dict[Worker, None] = {}
        self._epoch = -1

    @property
    def due(self) -> bool:
        """Whether there is something to decide."""
        ready = self.ready
        fleet = self.fleet
        return bool(ready.stir or ready.woken or fleet.touched or self._epoch != fleet.epoch)

    def settle(self, out: list[Decision]) -> None:
        """Bring queues and reservations up to date with what happened to workers."""
        ready = self.ready
        fleet = self.fleet
        if self._epoch != fleet.epoch:
            self._epoch = fleet.epoch
            fleet.refresh()
            ready.woken.update(ready.tied)
            unbound = list(self.unbound)
            self.unbound.clear()
            for function in unbound:
                ready.enqueue(function)
        self.changed = fleet.touched
        fleet.touched = {}
        ready.gains.clear()
        if ready.size_classes is not None:
            ready.size_classes.restore()
        for worker in self.changed:
            self.fleet.index.changed[worker] = None
            if worker.reservation is not None:
                worker.reservation.settle()
                self.soft_reserver.refresh(worker)
            if worker.watchers:
                ready.woken.update(worker.watchers)
            if worker.promoted:
                for function in worker.promoted:
                    if function.ahead and function in worker.placed:
                        function.ahead = False
                        out.append(Started(function.key))
                worker.promoted.clear()
            if worker.running and not worker.ahead:
                ready.gains.append(worker)

        ready.stir = True

    def place(self, out: list[Decision]) -> None:
        """Place whatever fits since something changed, the most urgent first."""
        while self.ready.stir or self.ready.woken:
            self._pass(out)

    def _pass(self, out: list[Decision]) -> None:
        ready = self.ready
        ready.stir = False
        open_: list[_Open] = []
        for queue in ready.candidates():
            if not queue.opened and ready.usable(queue):
                head = queue.head()
                assert head is not None
                queue.opened = True
                open_.append((head, id(queue), queue))
        heapify(open_)
        self._open_woken(open_)
        while open_:
            entry, _, queue = heappop(open_)
            queue.opened = False
            if queue.closed and not ready.gained(queue):
                # More urgent functions took what it would have got.
                self.soft_reserver.keep(queue)
                continue
            head = queue.head()
            if head is None or not ready.usable(queue):
                continue
            if head == entry:
                function = head.function
                worker = self.chooser.find(queue, function)
                if worker is None:
                    if queue.anywhere:
                        ready.close(queue)
                        self.soft_reserver.keep(queue)
                    else:
                        ready.watch(queue)
                    continue
                function = self.chooser.suited(queue, function, worker)
                if (
                    not (function.inputs and self.chooser.defers(function, worker))
                    and not self.reserver.charge(function, queue, worker)
                    and (function.binds is None or self._bind_target(function, worker))
                ):
                    self.assign(function, worker, out)
                head = queue.head()
            if head is not None:
                queue.opened = True
                heappush(open_, (head, id(queue), queue))
            if ready.woken:
                self._open_woken(open_)
        if ready.size_classes is not None and ready.size_classes.more:
            ready.stir = True

    def assign(
        self, function: Function, worker: Worker, out: list[Decision], ahead: bool = False
    ) -> None:
        """Give a queued function to a worker."""
        queue = function.queue
        assert queue is not None
        queue.debt = 0.0
        if queue.reservations:
            mine = worker.reservation
            self.ready.cancel(mine if mine in queue.reservations else queue.reservations[-1])
        self.ready.dequeue(function)
        function.state = PLACED
        function.stamp += 1
        function.worker = worker
        function.holder = None
        function.started = self.ready.now
        function.run.placed[function] = None
        function.ahead = ahead
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
                reservation.take(function)
            worker.claim(function)
            self.soft_reserver.refresh(worker)
        self.fleet.index.changed[worker] = None
        target = None
        if function.binds is not None:
            bound = function.target.worker
            assert bound is not None
            target = bound.address
        out.append(Place(function.key, worker.address, target, ahead))

    def bind(self, group: Group, worker: Worker) -> None:
        """Tie a group to a worker; its ready functions queue for that one."""
        group.worker = worker
        worker.groups[group] = None
        for member in group.members:
            if member.state == QUEUED:
                self.ready.requeue(member)

    def unbind(self, group: Group) -> None:
        """Let a group be bound anew."""
        worker = group.worker
        if worker is not None:
            worker.groups.pop(group, None)
            worker.promised.pop(group, None)
            group.worker = None
            for member in group.members:
                if member.state == QUEUED:
                    self.ready.requeue(member)

    def _bind_target(self, function: Function, worker: Worker) -> bool:
        """Bind the group of the function that this one binds; False if no worker is able."""
        group = function.target
        if group.worker is not None or group is function.group:
            return True
        chosen = self.fleet.promise(group, worker)
        if chosen is None:
            self.ready.dequeue(function)
            function.state = FRESH
            if self.fleet.finding(group.need, group.pin):
                function.stuck_at = None  # it is only paused
            elif function.stuck_at is None:
                function.stuck_at = self.ready.now
            self.unbound[function] = None
            return False
        chosen.promised[group] = group.need
        self.bind(group, chosen)
        return True

    def refuse(self, out: list[Decision]) -> None:
        """Refuse functions that waited long enough for a worker that could hold them."""
        now = self.ready.now
        for queue in list(self.ready.stuck):
            if now < queue.due:
                continue
            finding = self.fleet.finding(queue.need, queue.answers_to)
            for function in [f for f in queue.functions() if now >= queue.deadline(f)]:
                self.give_up(function)
                out.append(Refuse(function.key, finding))
            queue.judge()
        for function in list(self.unbound):
            if now >= self.unbound_until(function):
                group = function.target
                out.append(Refuse(function.key, self.fleet.finding(group.need, group.pin)))
                self.give_up(function)

    def unbound_until(self, function: Function) -> float:
        """Return until when a function waits for a worker to bind its target to."""
        since = function.stuck_at
        if since is None:
            return _NEVER
        if function.run.patience is not None:
            return since + function.run.patience
        group = function.target
        return max(since, self.fleet.hope(group.need, group.pin))

    def give_up(self, function: Function) -> None:
        """Remove a ready function from where it waits."""
        if function.state == QUEUED:
            self.ready.dequeue(function)
        self.unbound.pop(function, None)
        function.state = WAITING
        function.stamp += 1
        function.holder = None

    def forget_holder(self, worker: Worker) -> None:
        """Let functions that wait for a worker's data go elsewhere."""
        for queue in [q for q in self.ready.tied if q.deferred and q.bound is worker]:
            for function in queue.functions():
                function.holder = None
                self.ready.requeue(function)

    def wake_at(self) -> float | None:
        """Return the next time at which something happens by itself."""
        first = self.ready.timers.first()
        times = [] if first is None else [first]
        times += [queue.due for queue in self.ready.stuck]
        times += map(self.unbound_until, self.unbound)
        first = min(times, default=_NEVER)
        return None if first == _NEVER else first

    def _open_woken(self, open_: list[_Open]) -> None:
        for queue in self.ready.woken:
            if not queue.opened and queue.live and self.ready.usable(queue):
                head = queue.head()
                assert head is not None
                queue.opened = True
                heappush(open_, (head, id(queue), queue))
        self.ready.woken.clear()
