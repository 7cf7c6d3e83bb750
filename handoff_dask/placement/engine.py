"""The placement engine: events go in, decisions come out."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from itertools import chain

from handoff_dask.placement import admission, ranking
from handoff_dask.placement.ahead import Ahead
from handoff_dask.placement.choice import Chooser
from handoff_dask.placement.durations import Durations
from handoff_dask.placement.entities import (
    DELAYED,
    DONE,
    FRESH,
    PLACED,
    QUEUED,
    WAITING,
    Barred,
    Function,
    Group,
    Run,
    Worker,
)
from handoff_dask.placement.events import Decision, FunctionSpec, WorkerSpec
from handoff_dask.placement.fleet import Fleet
from handoff_dask.placement.placer import Placer
from handoff_dask.placement.preferences import Preferences
from handoff_dask.placement.questions import Questions
from handoff_dask.placement.ready_queues import ReadyQueues
from handoff_dask.placement.strategies import strategy as strategy_of


class Engine:
    """Decides which function runs where, and when.

    A state machine without a clock: whoever drives it says what happened and when, asks `poll`
    what to do, and does it. Times are seconds of one clock of the caller's choice.

    Parameters
    ----------
    horizon
        Seconds of short functions a worker may be handed ahead. Short is what takes less than
        a quarter of it: of longer ones the round trip is a small part.
    max_ahead
        How many functions may be handed ahead for each of their kind that the worker runs.
    bandwidth, latency
        Bytes per second, and seconds, of moving a function's inputs to a worker.
    lost_grace
        Seconds in which a lost worker may come back: a ready function that only such a worker
        could hold waits for it before it is refused.

    Examples
    --------
    >>> from handoff_dask.placement.events import FunctionSpec, WorkerSpec
    >>> engine = Engine()
    >>> engine.worker_added(WorkerSpec("tcp://a", "a", "host", {"cpu": 2}, slots=4))
    >>> engine.run_opened("run")
    >>> specs = [FunctionSpec("f", {"cpu": 2}), FunctionSpec("g", {"cpu": 1})]
    >>> engine.functions_added("run", specs)
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
        max_ahead: int = 128,
        bandwidth: float = 100e6,
        latency: float = 0.005,
        lost_grace: float = 60.0,
    ) -> None:
        self._runs: dict[Hashable, Run] = {}
        self._functions: dict[Hashable, Function] = {}
        self._durations = Durations()
        self._fleet = Fleet(grace=lost_grace)
        self._ready = ReadyQueues(self._fleet, short=horizon / 4)
        chooser = Chooser(self._ready, bandwidth=bandwidth, latency=latency, worth=horizon)
        self._placer = Placer(self._ready, chooser)
        self._preferences = Preferences(self._ready, bandwidth=bandwidth)
        self._ahead = Ahead(self._placer, horizon, max_ahead)
        self.questions = Questions(self._runs, self._functions, self._durations, self._placer)
        #: What others use, by key: the worker.
        self._foreign: dict[Hashable, Worker] = {}
        #: Ready functions that the next poll queues.
        self._fresh: list[Function] = []
        #: Runs to rank anew.
        self._stale: dict[Run, None] = {}
        self._seq = 0
        #: Workers when all were ranked; a function's footprint depends on them.
        self._sized_for = 0

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
        priority
            Functions of higher priority go first: the run's and their own, added.
        strategy
            How workers are chosen: a name in `strategies.STRATEGIES`.
        max_concurrency
            Most functions placed at a time.
        placement_timeout
            Seconds to wait for a worker that could hold a function, in place of the engine's
            `lost_grace`, if above 0.

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
        patience = placement_timeout or None
        if not self._fleet.workers:
            patience = patience or self._fleet.grace  # workers join one by one
        self._runs[run] = Run(run, priority, chosen, max_concurrency, patience)

    def functions_added(self, run: Hashable, functions: Iterable[FunctionSpec]) -> None:
        """Add functions to a run.

        Raises
        ------
        ValueError
            A key that the engine has already, or a `collocated` or `binds` that names no
            function of the run, or an impossible cost. Nothing was added.
        """
        owner = self._runs.get(run)
        if owner is None:
            raise KeyError(f"no run {run!r}")
        specs = list(functions)
        new = admission.admit(owner, specs, self._functions, self._placer, self._seq)
        self._seq += len(new)
        self._functions.update(new)
        owner.functions.update(new)
        ranking.add(owner, new.values())
        self._stale[owner] = None
        admission.tie(owner, specs, self._placer)

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
        self._preferences.forget(owner.functions.values())
        self._stale.pop(owner, None)

    # -- the life of a function

    def function_ready(
        self,
        key: Hashable,
        now: float,
        *,
        inputs: Mapping[str, float] | None = None,
        input_total: float = 0.0,
        not_before: float | None = None,
        cost: Mapping[str, float] | None = None,
        avoid: Collection[str] = (),
        insist: bool = False,
        exclude: Collection[str] = (),
    ) -> None:
        """Record that a function could start: everything it depends on is there.

        Parameters
        ----------
        key
            The function. If it is placed, that attempt has ended.
        inputs
            Bytes of its inputs that each worker holds, by address.
        input_total
            Bytes of all its inputs, each counted once however many workers hold it.
        not_before
            When it may start at the earliest: a retry's delay.
        cost
            The cost of this attempt, if not the function's own.
        avoid
            Addresses of workers to use only if no other running worker could hold it, or after it
            has waited for as long as it is expected to run. If that is unknown, it waits for as
            long as its last attempt took.
        insist
            Wait for other workers without that limit, as long as any registered one could hold it.
        exclude
            Addresses of workers not to use, whatever others there are, until `exclusion_ended`.

        Raises
        ------
        KeyError
            No such function.
        ValueError
            An impossible cost, or a worker that holds more than `input_total`.
        """
        function = self._functions.get(key)
        if function is None:
            raise KeyError(f"no function {key!r}")
        if inputs and max(inputs.values()) > input_total:
            raise ValueError(f"a worker holds more than all the inputs of {key!r}: {input_total!r}")
        state = function.state
        new_cost = function.own_cost if cost is None else self._fleet.cost(cost)
        if state == PLACED:
            self._release(function)
        elif state != WAITING:
            self._placer.give_up(function)
        function.cost = new_cost
        function.stamp += 1
        function.ready_at = now
        function.deferred = False
        function.stuck_at = None
        function.barred = None
        if avoid or exclude:
            patience = max(0.0, now - function.started)
            function.barred = Barred(frozenset(avoid), frozenset(exclude), insist, patience)
        if inputs:
            function.inputs = dict(inputs)
            function.input_total = input_total
        else:
            function.inputs = None
        if not_before is not None and not_before > now:
            function.state = DELAYED
            self._ready.timers.set(not_before, function)
        else:
            function.state = FRESH
            self._fresh.append(function)

    def exclusion_ended(self, key: Hashable, worker: str) -> None:
        """Record that a ready function may use an excluded worker again; ignored if it was not."""
        function = self._functions.get(key)
        if function is None or function.barred is None:
            return
        function.barred.exclude -= {worker}
        if function.state == QUEUED:
            self._ready.reconsider(function)

    def function_withdrawn(self, key: Hashable) -> None:
        """Record that a function is no longer ready.

        Ignored if it was not ready. A placed one keeps its claim until `attempt_ended`.
        """
        function = self._functions.get(key)
        if function is not None and function.state in (DELAYED, FRESH, QUEUED):
            self._placer.give_up(function)

    def attempt_ended(
        self, key: Hashable, now: float, *, duration: float | None = None, done: bool = False
    ) -> None:
        """Release the claim of an attempt that ended, well or not. Ignored if there was none.

        Parameters
        ----------
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
                ranking.learned(run, function.family, mean)
                if run.stale:
                    self._stale[run] = None
        elif done:
            self._placer.give_up(function)
        if done:
            function.state = DONE
            if function.run.remaining is not None:
                function.run.remaining.remove(function)

    def slot_released(self, key: Hashable) -> None:
        """Give the slot of a running function back, which seceded; it keeps its cost."""
        function = self._functions.get(key)
        if function is not None and function.worker is not None:
            function.worker.secede(function)
            self._fleet.touched[function.worker] = None

    def duration_known(self, token: Hashable, seconds: float) -> None:
        """Record how long a function took elsewhere, for functions added from now on."""
        self._durations.know(token, seconds)

    def duration_remembered(self, token: Hashable, seconds: float) -> None:
        """Record how long a function took on another cluster, unless it has been measured here."""
        if self._durations.of_token(token) is None:
            self._durations.know(token, seconds)

    def duration_learned(self, code: str, seconds: float) -> None:
        """Record how long functions of a code took that were not placed one by one."""
        self._durations.learn(None, code, seconds)

    # -- workers, and what others use of them

    def worker_added(self, spec: WorkerSpec) -> None:
        """Register a worker, or update what a registered one declares."""
        known = spec.address in self._fleet.workers
        worker = self._fleet.add(spec)
        if known:
            self._reshaped(worker)

    def worker_running(self, address: str, running: bool) -> None:
        """Record that a worker paused or is closing (False), or resumed (True)."""
        worker = self._fleet.worker(address)
        if worker.running != running:
            worker.running = running
            self._reshaped(worker)
            worker.promote()
            self._fleet.changed(worker)

    def worker_removed(self, address: str, lost_at: float | None = None) -> None:
        """Forget a worker that is gone, and all claims on it. Unknown addresses are ignored.

        `lost_at` is the time, if it may come back; None if it left for good.
        """
        worker = self._fleet.workers.get(address)
        if worker is None:
            return
        placer = self._placer
        if worker.reservation is not None:
            self._ready.cancel(worker.reservation)
        self._fleet.remove(worker, lost_at)
        if not self._fleet.workers:
            # Workers will join one by one: the first ones do not decide what is impossible.
            for run in self._runs.values():
                run.patience = run.patience or self._fleet.grace
        for function in chain(worker.placed, worker.ahead):
            self._left(function)
        for key in worker.foreign:
            del self._foreign[key]
        for group in list(worker.groups):
            placer.unbind(group)
        placer.forget_holder(worker)

    def foreign_claimed(
        self, key: Hashable, worker: str, cost: Mapping[str, float], *, slot: bool = False
    ) -> None:
        """Count what something that the engine did not place uses of a worker.

        With `slot`, that includes a thread. It may exceed the capacity; then nothing is placed
        there.
        """
        # What waits there ahead must not start between the old claim and the new one.
        before = self._give_back(key)
        used = self._fleet.workers.get(worker)
        if used is not None:
            amounts = self._fleet.cost(cost)
            items = amounts.items if slot else amounts.rest
            used.foreign[key] = items
            used.take(items)
            self._foreign[key] = used
            self._fleet.touched[used] = None
        if before is not None:
            before.promote()

    def foreign_released(self, key: Hashable) -> None:
        """Give back what something that is not ours used. Unknown keys are ignored."""
        worker = self._give_back(key)
        if worker is not None:
            worker.promote()

    def _give_back(self, key: Hashable) -> Worker | None:
        worker = self._foreign.pop(key, None)
        if worker is not None:
            worker.give(worker.foreign.pop(key))
            self._fleet.touched[worker] = None
        return worker

    # -- decisions

    def poll(self, now: float) -> list[Decision]:
        """Decide all that can be decided now."""
        decisions: list[Decision] = []
        placer = self._placer
        self._ready.now = now
        for function in self._ready.timers.expired(now):
            self._wake(function)
        came = bool(self._fresh)
        if came or placer.due:
            placer.settle(decisions)
            self._rank()
            self._preferences.refresh()
            if came:
                self._queue()
            placer.place(decisions)
            self._ahead.commit(came, decisions)
            # Who was handed ahead needs no worker kept for it any more.
            placer.place(decisions)
        placer.refuse(decisions)
        return decisions

    def wake_at(self) -> float | None:
        """When `poll` must be called next even if nothing happens; None: never."""
        return self._placer.wake_at()

    # -- inside

    def _wake(self, function: Function) -> None:
        """Look again at a function whose time has come."""
        if function.state == DELAYED:
            function.state = FRESH
            self._fresh.append(function)
            return
        # It has waited long enough for the worker that holds its inputs, or for a worker other
        # than those it avoids.
        function.holder = None
        if function.state == QUEUED:
            self._ready.reconsider(function)

    def _queue(self) -> None:
        """Queue the functions that became ready."""
        for function in self._fresh:
            if function.state == FRESH and function not in self._placer.unbound:
                if function.preferences:
                    self._preferences.weigh(function)
                self._ready.enqueue(function)
        self._fresh.clear()

    def _release(self, function: Function) -> None:
        worker = function.worker
        assert worker is not None
        worker.release(function)
        self._fleet.touched[worker] = None
        self._left(function)

    def _rank(self) -> None:
        """Rank the runs of which more is known now, and sort their functions anew."""
        workers = len(self._fleet.workers)
        if not self._sized_for <= 2 * workers <= 4 * self._sized_for:
            self._sized_for = workers
            self._stale.update(dict.fromkeys(self._runs.values()))
        if not self._stale:
            return
        for run in self._stale:
            ranking.rank(run, self._durations)
            self._ready.rekey(run)
        self._stale.clear()

    def _left(self, function: Function) -> None:
        """Note that a function is no longer on its worker."""
        function.worker = None
        function.state = WAITING
        function.stamp += 1
        run = function.run
        del run.placed[function]
        if run.limit is not None:
            self._ready.woken.update(run.queues)

    def _reshaped(self, worker: Worker) -> None:
        """Take back what a changed worker may be unable to keep.

        That is its reservation, groups that do not fit it, and functions that wait for its data.
        """
        placer = self._placer
        placer.forget_holder(worker)
        if worker.reservation is not None:
            self._ready.cancel(worker.reservation)
        for group in list(worker.groups):
            answers = not group.pin or worker in self._fleet.answering(group.pin)
            if not answers or not group.need.fits(worker.shape.capacity):
                placer.unbind(group)
