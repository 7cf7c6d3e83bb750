"""The placement engine: events go in, decisions come out."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from heapq import heappop
from itertools import chain

from handoff_dask.placement import questions
from handoff_dask.placement.ahead import Ahead
from handoff_dask.placement.cluster import Cluster
from handoff_dask.placement.durations import Durations
from handoff_dask.placement.events import (
    Counts,
    Finding,
    FunctionSpec,
    Place,
    Refuse,
    Waiting,
    WorkerSpec,
)
from handoff_dask.placement.ledger import UNIT, Worker
from handoff_dask.placement.placer import Placer
from handoff_dask.placement.runs import (
    DELAYED,
    DONE,
    FRESH,
    PLACED,
    QUEUED,
    WAITING,
    Family,
    Function,
    Group,
    Run,
)
from handoff_dask.placement.strategies import strategy as strategy_of

__all__ = ["Engine"]


class Engine:
    """Decides which function runs where, and when.

    A state machine without a clock: whoever drives it says what happened and when, asks `poll`
    what to do, and does it. Times are seconds of one clock of the caller's choice.

    Parameters
    ----------
    horizon
        Seconds of short functions a worker may be handed ahead.
    max_ahead
        Most functions handed ahead, per function of their kind that the worker runs.
    bandwidth, latency
        Bytes per second, and seconds, of moving a function's inputs to a worker.
    lost_grace
        Seconds a ready function waits when no registered worker could ever hold it, before it
        is refused.

    Examples
    --------
    >>> engine = Engine()
    >>> engine.worker_added(WorkerSpec("tcp://a", "a", "host", {"cpu": 2}, slots=4))
    >>> engine.run_opened("run")
    >>> engine.functions_added("run", [FunctionSpec("f", {"cpu": 2}), FunctionSpec("g", {"cpu": 1})])
    >>> engine.function_ready("f", now=0.0)
    >>> engine.function_ready("g", now=0.0)
    >>> [(place.key, place.worker) for place in engine.poll(now=0.0)]
    [('f', 'tcp://a')]
    >>> engine.attempt_ended("f", now=1.0, done=True)
    >>> [(place.key, place.worker) for place in engine.poll(now=1.0)]
    [('g', 'tcp://a')]
    """

    def __init__(
        self,
        *,
        horizon: float = 0.05,
        max_ahead: int = 64,
        bandwidth: float = 100e6,
        latency: float = 0.005,
        lost_grace: float = 60.0,
    ) -> None:
        self._cluster = Cluster()
        self._durations = Durations()
        self._placer = Placer(
            self._cluster, short=horizon, bandwidth=bandwidth, latency=latency
        )
        self._ahead = Ahead(self._placer, horizon=horizon, most=max_ahead)
        self._lost_grace = lost_grace
        self._runs: dict[Hashable, Run] = {}
        self._functions: dict[Hashable, Function] = {}
        self._foreign: dict[Hashable, Worker] = {}
        #: Ready functions that the next poll queues.
        self._fresh: list[Function] = []
        #: Runs to rank anew.
        self._stale: dict[Run, None] = {}
        self._seq = 0
        #: Workers when all were ranked; a function's footprint depends on them.
        self._sized_for = 0

    # -- workers

    def worker_added(self, spec: WorkerSpec) -> None:
        """A worker joined, or is back; one that is registered is updated."""
        known = spec.address in self._cluster.workers
        worker = self._cluster.add(spec)
        if known:
            self._reshaped(worker)

    def worker_changed(
        self,
        address: str,
        *,
        capacity: Mapping[str, float] | None = None,
        slots: int | None = None,
    ) -> None:
        """A worker declares something else now.

        What it runs keeps its claims. If these exceed the new capacity, nothing is placed
        there until they fit again.
        """
        worker = self._worker(address)
        if capacity is not None:
            worker.spec_capacity = dict(capacity)
        if slots is not None:
            worker.slots = slots
        self._cluster.reshape(worker)
        self._reshaped(worker)

    def worker_running(self, address: str, running: bool) -> None:
        """A worker paused or is closing (False), or goes on (True)."""
        worker = self._worker(address)
        if worker.running != running:
            worker.running = running
            self._reshaped(worker)
            worker.promote()
            self._cluster.changed(worker)

    def worker_removed(self, address: str) -> None:
        """A worker is gone, and all claims on it. Unknown addresses are ignored."""
        worker = self._cluster.workers.get(address)
        if worker is None:
            return
        placer = self._placer
        if worker.reservation is not None:
            placer.cancel(worker.reservation)
        self._cluster.remove(worker)
        for function in chain(worker.placed, worker.ahead):
            function.state = WAITING
            function.stamp += 1
            function.worker = None
            self._left(function.run)
        for key in worker.foreign:
            del self._foreign[key]
        for group in list(worker.groups):
            placer.unbind(group)
        placer.forget_holder(worker)

    # -- runs

    def run_opened(
        self,
        run: Hashable,
        *,
        priority: float = 0,
        strategy: str = "packed",
        max_concurrency: int | None = None,
        placement_timeout: float = 0.0,
    ) -> None:
        """Open a run.

        Parameters
        ----------
        run
            Its identity.
        priority
            Functions of a run of higher priority go first.
        strategy
            How workers are chosen: a name in `strategies.STRATEGIES`.
        max_concurrency
            Most functions placed at a time.
        placement_timeout
            Seconds to wait for a worker that could hold a function, if more than the
            engine's `lost_grace`.

        Raises
        ------
        ValueError
            The run is open already, or a value is out of range; nothing changed.
        """
        if run in self._runs:
            raise ValueError(f"run {run!r} is open already")
        chosen = strategy_of(strategy)
        if max_concurrency is not None and max_concurrency < 1:
            raise ValueError(f"max_concurrency of run {run!r} is {max_concurrency!r}, less than 1")
        patience = max(self._lost_grace, placement_timeout)
        self._runs[run] = Run(run, priority, chosen, max_concurrency, patience)

    def functions_added(self, run: Hashable, functions: Iterable[FunctionSpec]) -> None:
        """Add functions to a run.

        Raises
        ------
        ValueError
            A key that the engine has already, or a `collocated` or `binds` that names no
            function of the run, or an impossible cost. Nothing was added.
        """
        owner = self._run(run)
        specs = list(functions)
        new: dict[Hashable, Function] = {}
        known = self._functions
        families = owner.families
        for spec in specs:
            key = spec.key
            if key in new or key in known:
                raise ValueError(f"function {key!r} was added before")
            family = families.get(spec.code)
            if family is None:
                family = families[spec.code] = Family(spec.code)
            self._seq += 1
            try:
                cost = self._cluster.cost(spec.cost)
            except ValueError as error:
                raise ValueError(f"cost of function {key!r}: {error}") from None
            new[key] = Function(spec, owner, cost, family, self._seq)
        old = owner.functions
        tied: list[tuple[Function, Function | None, Function | None]] = []
        for spec in specs:
            function = new[spec.key]
            if spec.dependencies:
                function.dependencies = [
                    found
                    for key in spec.dependencies
                    if (found := new.get(key) or old.get(key)) is not None
                ]
            if spec.collocated is not None or spec.binds is not None:
                pair: list[Function | None] = []
                for key in (spec.collocated, spec.binds):
                    other = None if key is None else new.get(key) or old.get(key)
                    if key is not None and other is None:
                        raise ValueError(f"function {spec.key!r} names {key!r}, which is not in the run")
                    pair.append(other)
                tied.append((function, pair[0], pair[1]))
        known.update(new)
        old.update(new)
        owner.add(new.values())
        self._stale[owner] = None
        for function, with_, binds in tied:
            if with_ is not None:
                self._collocate(function, with_)
        for function, _, binds in tied:
            if binds is not None:
                function.binds = binds
                if binds.group is None:
                    self._collocate(binds, binds)

    def run_closed(self, run: Hashable) -> None:
        """Forget a run and release what it still holds. Unknown runs are ignored."""
        owner = self._runs.pop(run, None)
        if owner is None:
            return
        placer = self._placer
        groups: dict[Group, None] = {}
        for key, function in owner.functions.items():
            if function.state == PLACED:
                self._release(function)
            else:
                placer.give_up(function)
            if function.group is not None:
                groups[function.group] = None
            del self._functions[key]
        for group in groups:
            placer.unbind(group)
        self._stale.pop(owner, None)

    # -- the life of a function

    def function_ready(
        self,
        key: Hashable,
        now: float,
        *,
        inputs: Mapping[str, float] | None = None,
        input_total: float | None = None,
        not_before: float | None = None,
        cost: Mapping[str, float] | None = None,
        avoid: str | None = None,
    ) -> None:
        """A function could start: all it depends on is there.

        Parameters
        ----------
        key
            The function. If it is placed, that attempt has ended.
        now
            The time.
        inputs
            Bytes of its inputs that each worker holds, by address.
        input_total
            Bytes of all its inputs; without it, the sum over `inputs`, which is too much if
            several workers hold the same.
        not_before
            When it may start at the earliest: a retry's delay.
        cost
            The cost of this attempt, if not the function's own.
        avoid
            Address of a worker not to use if another could do it.

        Raises
        ------
        KeyError
            No such function.
        ValueError
            An impossible cost.
        """
        function = self._functions.get(key)
        if function is None:
            raise KeyError(f"no function {key!r}")
        state = function.state
        new_cost = function.own_cost if cost is None else self._cluster.cost(cost)
        if state == PLACED:
            self._release(function)
        elif state != WAITING:
            self._placer.give_up(function)
        function.cost = new_cost
        function.stamp += 1
        function.ready_at = now
        function.deferred = False
        function.stuck_at = None
        function.avoid = avoid
        if inputs:
            function.inputs = dict(inputs)
            function.input_total = sum(inputs.values()) if input_total is None else input_total
        else:
            function.inputs = None
        if not_before is not None and not_before > now:
            function.state = DELAYED
            self._placer.at(not_before, function)
        else:
            function.state = FRESH
            self._fresh.append(function)

    def function_withdrawn(self, key: Hashable) -> None:
        """A function that was ready is not any more.

        Ignored if it was not. A placed one keeps its claim till `attempt_ended`.
        """
        function = self._functions.get(key)
        if function is not None and function.state in (DELAYED, FRESH, QUEUED):
            self._placer.give_up(function)

    def attempt_ended(
        self, key: Hashable, now: float, *, duration: float | None = None, done: bool = False
    ) -> None:
        """An attempt ended, well or not; its claim is released. Ignored if there was none.

        Parameters
        ----------
        key, now
            The function, the time.
        duration
            Seconds it ran; teaches how long such functions take.
        done
            It ended for good: it counts no more in what remains.
        """
        function = self._functions.get(key)
        if function is None:
            return
        if function.state == PLACED:
            self._release(function)
            if duration is not None:
                mean = self._durations.learn(function.token, function.family.code, duration)
                run = function.run
                run.learned(function.family, mean)
                if run.stale:
                    self._stale[run] = None
        elif done:
            self._placer.give_up(function)
        if done:
            function.state = DONE

    def slot_released(self, key: Hashable) -> None:
        """A running function seceded: it keeps its cost and gives its slot back."""
        function = self._functions.get(key)
        if function is not None and function.worker is not None:
            function.worker.secede(function)
            self._cluster.touched[function.worker] = None

    def duration_known(self, token: Hashable, seconds: float) -> None:
        """Take over how long a function took elsewhere, for functions added from now on."""
        self._durations.know(token, seconds)

    # -- what others use

    def foreign_claimed(self, key: Hashable, worker: str, cost: Mapping[str, float]) -> None:
        """Something that is not ours uses resources of a worker; it takes no slot.

        It may exceed the capacity; then nothing of ours is placed there.
        """
        self.foreign_released(key)
        found = self._cluster.workers.get(worker)
        if found is not None:
            items = self._cluster.cost(cost).rest
            found.foreign[key] = items
            found.take(items)
            self._foreign[key] = found
            self._cluster.touched[found] = None

    def foreign_released(self, key: Hashable) -> None:
        """It uses them no more. Unknown keys are ignored."""
        worker = self._foreign.pop(key, None)
        if worker is not None:
            worker.give(worker.foreign.pop(key))
            worker.promote()
            self._cluster.touched[worker] = None

    # -- decisions

    def poll(self, now: float) -> list[Place | Refuse]:
        """Decide all that can be decided now."""
        out: list[Place | Refuse] = []
        placer = self._placer
        timers = placer.timers
        while timers and timers[0][0] <= now:
            _, _, function, stamp = heappop(timers)
            if function.stamp == stamp:
                if function.state == DELAYED:
                    function.state = FRESH
                    self._fresh.append(function)
                elif function.holder is not None:
                    function.holder = None
                    placer.requeue(function)
                    placer.stir = True
        came = bool(self._fresh)
        if came or placer.due:
            placer.settle(now)
            self._rank()
            for function in self._fresh:
                if function.state == FRESH and function not in placer.unbound:
                    placer.enqueue(function)
            self._fresh.clear()
            placer.place(out)
            while placer.stir or placer.woken:
                placer.place(out)
            self._ahead.commit(came, out)
        placer.now = now
        placer.refuse(out)
        return out

    def wake_at(self) -> float | None:
        """When `poll` must be called next even if nothing happens; None: never."""
        return self._placer.wake_at()

    # -- questions

    def feasibility(self, cost: Mapping[str, float], pin: str | None = None) -> Finding:
        """Which registered workers could ever hold a cost, by what they declare."""
        return self._cluster.finding(self._cluster.cost(cost), pin)

    def verdicts(self, run: Hashable) -> Iterator[tuple[Hashable, Finding]]:
        """For each function of a run: which registered workers could ever hold it.

        Functions that are collocated are judged as the one they must be.
        """
        findings: dict[object, Finding] = {}
        for key, function in self._run(run).functions.items():
            group = function.group
            what: object = group or (function.own_cost, function.pin)
            finding = findings.get(what)
            if finding is None:
                cost, pin = (group.need, group.pin) if group else (function.own_cost, function.pin)
                finding = findings[what] = self._cluster.finding(cost, pin)
            yield key, finding

    def free(self, worker: str) -> dict[str, float]:
        """What is free of each resource that a worker declares; less than 0 if it shrank."""
        found = self._worker(worker)
        index = self._cluster.resources.index
        return {name: found.free[index[name]] / UNIT for name in found.spec_capacity}

    def capacity(self, worker: str) -> dict[str, float]:
        """What a worker declares."""
        return dict(self._worker(worker).spec_capacity)

    def claimed(self, worker: str) -> dict[str, float]:
        """What is claimed of each resource that a worker declares, by us and others."""
        found = self._worker(worker)
        index = self._cluster.resources.index
        capacity = found.shape.capacity
        claimed: dict[str, float] = {}
        for name in found.spec_capacity:
            i = index[name]
            claimed[name] = (capacity[i] - found.free[i]) / UNIT
        return claimed

    def slots(self, worker: str) -> tuple[int, int]:
        """How many slots of a worker are free, and how many it has."""
        found = self._worker(worker)
        return found.free[0] // UNIT, found.slots

    def waits_ahead(self, key: Hashable) -> bool:
        """Whether a placed function waits on its worker, as far as one can know from here."""
        function = self._functions.get(key)
        return (
            function is not None
            and function.worker is not None
            and function in function.worker.ahead
        )

    def why(self, key: Hashable) -> Waiting | None:
        """Why a ready function is not placed; None if it is not ready, or placed."""
        function = self._functions.get(key)
        return None if function is None else questions.why(function, self._placer)

    def counts(self, run: Hashable) -> Counts:
        """How many functions of a run are where."""
        return questions.counts(self._run(run))

    # -- inside

    def _worker(self, address: str) -> Worker:
        worker = self._cluster.workers.get(address)
        if worker is None:
            raise KeyError(f"no worker {address!r}")
        return worker

    def _run(self, run: Hashable) -> Run:
        found = self._runs.get(run)
        if found is None:
            raise KeyError(f"no run {run!r}")
        return found

    def _release(self, function: Function) -> None:
        worker = function.worker
        assert worker is not None
        worker.release(function)
        self._cluster.touched[worker] = None
        function.worker = None
        function.state = WAITING
        function.stamp += 1
        self._left(function.run)

    def _left(self, run: Run) -> None:
        run.placed -= 1
        if run.limit is not None:
            self._placer.woken.update(run.queues)

    def _reshaped(self, worker: Worker) -> None:
        """Take back what a changed worker can't keep: its reservation, groups too big for it."""
        placer = self._placer
        if worker.reservation is not None:
            placer.cancel(worker.reservation)
        for group in list(worker.groups):
            if not group.need.fits(worker.shape.capacity) and not any(
                member.state == PLACED for member in group.members
            ):
                placer.unbind(group)

    def _collocate(self, function: Function, with_: Function) -> None:
        """Put two functions into one group."""
        group = with_.group
        if group is None:
            group = with_.group = Group(with_.own_cost)
            group.members.append(with_)
            group.pin = with_.pin
        other = function.group
        if other is group:
            return
        if other is None:
            joining = [function]
            pin = function.pin
        else:
            joining = other.members
            pin = other.pin
            self._placer.unbind(other)
        group.pin = group.pin or pin
        for member in joining:
            member.group = group
            group.members.append(member)
        needs = [group.need, *(member.own_cost for member in joining)]
        group.need = self._cluster.resources.union(needs)

    def _rank(self) -> None:
        """Rank the runs of which more is known now, and sort their functions anew."""
        workers = len(self._cluster.workers)
        if not self._sized_for <= 2 * workers <= 4 * self._sized_for:
            self._sized_for = workers
            self._stale.update(dict.fromkeys(self._runs.values()))
        if not self._stale:
            return
        placer = self._placer
        for run in self._stale:
            run.rank(self._durations)
            placer.rekey(run)
        self._stale.clear()
