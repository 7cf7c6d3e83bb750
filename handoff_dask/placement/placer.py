"""Who runs where now: the passes that a poll makes over queues and workers."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from handoff_dask.placement.board import Board
from handoff_dask.placement.choice import Chooser
from handoff_dask.placement.events import Decision, Place, Refuse, Started
from handoff_dask.placement.keeping import Keeper
from handoff_dask.placement.queues import Entry, Queue
from handoff_dask.placement.reservations import Reserver
from handoff_dask.placement.runs import FRESH, PLACED, QUEUED, WAITING, Function, Group

if TYPE_CHECKING:
    from handoff_dask.placement.ledger import Worker

__all__ = ["Placer"]

_NEVER = float("inf")

#: A queue to look at, by the head it had when that was noted. A function that changed queues may
#: stand there twice with equal entries, so that something must come between these and the queue.
_Open = tuple[Entry, int, Queue]


class Placer:
    """Takes functions from the board and gives them to workers."""

    def __init__(self, board: Board, chooser: Chooser) -> None:
        self.board = board
        self.chooser = chooser
        self.reserver = Reserver(board)
        self.keeper = Keeper(board)
        self.cluster = board.cluster
        #: Functions whose target has no running worker that could hold it.
        self.unbound: dict[Function, None] = {}
        #: Workers that changed before this poll.
        self.changed: dict[Worker, None] = {}
        self._epoch = -1

    @property
    def due(self) -> bool:
        """Whether there is something to decide."""
        board = self.board
        cluster = self.cluster
        return bool(board.stir or board.woken or cluster.touched or self._epoch != cluster.epoch)

    def settle(self, out: list[Decision]) -> None:
        """Take over what happened to workers since the last poll."""
        board = self.board
        cluster = self.cluster
        if self._epoch != cluster.epoch:
            self._epoch = cluster.epoch
            cluster.refresh()
            board.woken.update(board.tied)
            unbound = list(self.unbound)
            self.unbound.clear()
            for function in unbound:
                board.enqueue(function)
        self.changed = cluster.touched
        cluster.touched = {}
        board.gains.clear()
        if board.bins is not None:
            board.bins.restore()
        for worker in self.changed:
            self.cluster.index.changed[worker] = None
            if worker.reservation is not None:
                worker.reservation.settle()
                self.keeper.refresh(worker)
            if worker.watchers:
                board.woken.update(worker.watchers)
            for function in worker.promoted:
                if function.ahead and function in worker.placed:
                    function.ahead = False
                    out.append(Started(function.key))
            worker.promoted.clear()
            if worker.running and not worker.ahead:
                board.gains.append(worker)

    def place(self, out: list[Decision]) -> None:
        """Place whatever fits, the most urgent first."""
        self._pass(out)
        self.place_rest(out)

    def place_rest(self, out: list[Decision]) -> None:
        """Place what fits now because of what was decided before."""
        while self.board.stir or self.board.woken:
            self._pass(out)

    def _pass(self, out: list[Decision]) -> None:
        board = self.board
        board.stir = False
        open_: list[_Open] = []
        for queue in board.candidates():
            if not queue.opened and board.usable(queue):
                head = queue.head()
                assert head is not None
                queue.opened = True
                open_.append((head, id(queue), queue))
        heapify(open_)
        self._open_woken(open_)
        while open_:
            entry, _, queue = heappop(open_)
            queue.opened = False
            if queue.closed and not board.gained(queue):
                # The more urgent took what it would have got.
                self.keeper.keep(queue)
                continue
            head = queue.head()
            if head is None or not board.usable(queue):
                continue
            if head == entry:
                function = head[4]
                worker = self.chooser.find(queue, function)
                if worker is None:
                    if queue.anywhere:
                        board.close(queue)
                        self.keeper.keep(queue)
                    else:
                        board.watch(queue)
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
            if board.woken:
                self._open_woken(open_)
        if board.vacant:
            self.keeper.refill()
        if board.bins is not None and board.bins.more:
            board.stir = True

    def assign(
        self, function: Function, worker: Worker, out: list[Decision], ahead: bool = False
    ) -> None:
        """Give a queued function to a worker."""
        queue = function.queue
        assert queue is not None
        queue.debt = 0.0
        if queue.reservations:
            mine = worker.reservation
            self.board.cancel(mine if mine in queue.reservations else queue.reservations[-1])
        self.board.dequeue(function)
        function.state = PLACED
        function.stamp += 1
        function.worker = worker
        function.holder = None
        function.started = self.board.now
        function.run.placed += 1
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
            self.keeper.refresh(worker)
        self.cluster.index.changed[worker] = None
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
                self.board.requeue(member)

    def unbind(self, group: Group) -> None:
        """Let a group be bound anew."""
        worker = group.worker
        if worker is not None:
            worker.groups.pop(group, None)
            worker.promised.pop(group, None)
            group.worker = None
            for member in group.members:
                if member.state == QUEUED:
                    self.board.requeue(member)

    def _bind_target(self, function: Function, worker: Worker) -> bool:
        """Bind the group of the function that this one binds; False if no worker is able."""
        assert function.binds is not None
        group = function.binds.group
        assert group is not None
        if group.worker is not None or group is function.group:
            return True
        chosen = self.cluster.promise(group.need, group.pin, worker)
        if chosen is None:
            self.board.dequeue(function)
            function.state = FRESH
            if self.cluster.finding(group.need, group.pin):
                function.stuck_at = None  # it is only paused
            elif function.stuck_at is None:
                function.stuck_at = self.board.now
            self.unbound[function] = None
            return False
        chosen.promised[group] = group.need
        self.bind(group, chosen)
        return True

    def refuse(self, out: list[Decision]) -> None:
        """Give up what waited long enough for a worker that could hold it."""
        now = self.board.now
        for queue in list(self.board.stuck):
            if now < queue.due:
                continue
            finding = self.cluster.finding(queue.need, queue.answers_to)
            for function in [f for f in queue.functions() if now >= queue.deadline(f)]:
                self.give_up(function)
                out.append(Refuse(function.key, finding))
            queue.judge()
        for function in list(self.unbound):
            if now >= self.unbound_until(function):
                assert function.binds is not None and function.binds.group is not None
                group = function.binds.group
                out.append(Refuse(function.key, self.cluster.finding(group.need, group.pin)))
                self.give_up(function)

    def unbound_until(self, function: Function) -> float:
        """Return until when a function waits for a worker to bind its target to."""
        since = function.stuck_at
        if since is None:
            return _NEVER
        if function.run.patience is not None:
            return since + function.run.patience
        assert function.binds is not None and function.binds.group is not None
        group = function.binds.group
        return max(since, self.cluster.hope(group.need, group.pin))

    def give_up(self, function: Function) -> None:
        """Take a ready function back: it waits for nothing any more."""
        if function.state == QUEUED:
            self.board.dequeue(function)
        self.unbound.pop(function, None)
        function.state = WAITING
        function.stamp += 1
        function.holder = None

    def forget_holder(self, worker: Worker) -> None:
        """Let functions that wait for a worker's data go elsewhere: it is gone."""
        for queue in [q for q in self.board.tied if q.deferred and q.bound is worker]:
            for function in queue.functions():
                function.holder = None
                self.board.requeue(function)

    def wake_at(self) -> float | None:
        """Return the next time at which something happens by itself."""
        timers = self.board.timers
        while timers and timers[0][2].stamp != timers[0][3]:
            heappop(timers)
        times = [timers[0][0]] if timers else []
        times += [queue.due for queue in self.board.stuck]
        times += map(self.unbound_until, self.unbound)
        first = min(times, default=_NEVER)
        return None if first == _NEVER else first

    def _open_woken(self, open_: list[_Open]) -> None:
        for queue in self.board.woken:
            if not queue.opened and queue.live and self.board.usable(queue):
                head = queue.head()
                assert head is not None
                queue.opened = True
                heappush(open_, (head, id(queue), queue))
        self.board.woken.clear()
