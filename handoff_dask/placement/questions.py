"""Questions to an engine. Asking changes nothing."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from heapq import nlargest
from itertools import chain
from operator import attrgetter

from handoff_dask.placement import remaining
from handoff_dask.placement.costs import SLOT, UNIT, Cost
from handoff_dask.placement.durations import Durations
from handoff_dask.placement.entities import DELAYED, FRESH, QUEUED, Function, Run
from handoff_dask.placement.events import Backlog, Finding, Waiting
from handoff_dask.placement.placer import Placer


class Questions:
    """Everything that can be read off an engine's state."""

    def __init__(
        self,
        runs: Mapping[Hashable, Run],
        functions: Mapping[Hashable, Function],
        durations: Durations,
        placer: Placer,
    ) -> None:
        self._runs = runs
        self._functions = functions
        self._durations = durations
        self._placer = placer
        self._fleet = placer.fleet

    def feasibility(self, cost: Mapping[str, float], pin: tuple[str, ...] = ()) -> Finding:
        """Which registered workers could ever hold a cost, by what they declare."""
        return self._fleet.finding(self._fleet.cost(cost), pin)

    def verdicts(self, run: Hashable) -> Iterator[tuple[Hashable, Finding]]:
        """For each function of a run: which registered workers could ever hold it.

        Functions that are collocated are judged as the one they must be.
        """
        findings: dict[object, Finding] = {}
        for key, function in self._runs[run].functions.items():
            needs = _needs(function)
            finding = findings.get(needs)
            if finding is None:
                finding = findings[needs] = self._fleet.finding(*needs)
            yield key, finding

    def hopeless(self, run: Hashable, now: float) -> tuple[Hashable, Finding] | None:
        """Return a function of a run that neither a worker nor one that may come back can hold."""
        for key, finding in self.verdicts(run):
            if not finding and self._fleet.hope(*_needs(self._functions[key])) <= now:
                return key, finding
        return None

    def able(
        self, cost: Mapping[str, float], pin: tuple[str, ...] = ()
    ) -> list[tuple[float, Mapping[str, float]]]:
        """Return the threads and the capacities of each worker that can hold a cost."""
        need = self._fleet.cost(cost)
        return [
            (worker.slots, worker.spec_capacity)
            for worker in self._fleet.candidates(pin, None)
            if need.fits(worker.shape.capacity)
        ]

    @property
    def has_workers(self) -> bool:
        """Whether any worker is registered."""
        return bool(self._fleet.workers)

    def threads(self, cost: Mapping[str, float]) -> int:
        """Return how many functions of a cost the registered workers could run at once."""
        items = self._fleet.cost(cost).items
        return sum(
            min(worker.shape.capacity[i] // amount for i, amount in items if amount)
            for worker in self._fleet.workers.values()
        )

    def seconds_of(self, codes: Iterable[str]) -> dict[str, float]:
        """Return how long functions of some codes take on average (s), as far as that is known."""
        known = ((code, self._durations.of_code(code)) for code in codes)
        return {code: seconds for code, seconds in known if seconds is not None}

    def is_settled(self, code: str) -> bool:
        """Whether what is known of how long functions of a code take is from many of them."""
        return self._durations.is_settled(code)

    def longer(self, seconds: Mapping[str, float]) -> set[tuple[str, str]]:
        """Return the tokens of functions known to take far longer than others of their code."""
        return self._durations.longer(seconds)

    def free(self, worker: str) -> dict[str, float]:
        """Return what is free of each resource a worker declares; below 0 if it shrank."""
        state, index = self._fleet.worker(worker), self._fleet.resources.index
        return {name: state.free[index[name]] / UNIT for name in state.spec_capacity}

    def claimed(self, worker: str) -> dict[str, float]:
        """Return what is claimed of each resource a worker declares, by us and others."""
        state, index = self._fleet.worker(worker), self._fleet.resources.index
        return {
            name: (state.shape.capacity[index[name]] - state.free[index[name]]) / UNIT
            for name in state.spec_capacity
        }

    def capacity(self, worker: str) -> dict[str, float]:
        """Return what a worker declares."""
        return dict(self._fleet.worker(worker).spec_capacity)

    def offers(self) -> dict[str, dict[str, float]]:
        """Return what each worker declares and, as ``"threads"``, how many slots it has."""
        return {
            address: {**worker.spec_capacity, "threads": worker.slots}
            for address, worker in self._fleet.workers.items()
        }

    def slots(self, worker: str) -> tuple[int, int]:
        """Return how many slots of a worker are free, and how many it has."""
        registered = self._fleet.worker(worker)
        return registered.free[SLOT] // UNIT, registered.slots

    def placed(self, worker: str) -> list[Hashable]:
        """Return the keys of the functions that run on a worker, then of those handed ahead."""
        state = self._fleet.worker(worker)
        return [function.key for function in chain(state.placed, state.ahead)]

    def backlog(self, most: int) -> Backlog:
        """Return what is ready and not placed, with the `most` largest groups of it.

        Goes through queues, not through functions.
        """
        ready, fleet = self._placer.ready, self._fleet
        names = fleet.resources.names
        sums = [0] * len(names)
        asked_of: dict[str, dict[str, float]] = {}
        for queue in chain(ready.anywhere, ready.tied):
            for i, amount in queue.cost.items:
                sums[i] += queue.live * amount
        for queue in ready.tied:
            only = list(fleet.candidates(queue.pin, queue.bound))
            if len(only) == 1:
                sums_of = asked_of.setdefault(only[0].address, {})
                for i, amount in queue.cost.items:
                    sums_of[names[i]] = sums_of.get(names[i], 0) + queue.live * amount / UNIT
        largest = [
            (queue.live, head.function.key)
            for queue in nlargest(most, chain(ready.anywhere, ready.tied), key=attrgetter("live"))
            if (head := queue.head()) is not None
        ]
        delayed = [f for f in ready.timers.functions() if f.state == DELAYED]
        for waiting in (delayed, list(self._placer.unbound)):
            if waiting:
                largest.append((len(waiting), waiting[0].key))
        largest.sort(key=lambda entry: -entry[0])
        asked = {name: amount / UNIT for name, amount in zip(names, sums, strict=True) if amount}
        return Backlog(asked, asked_of, tuple(largest[:most]))

    def waits_ahead(self, key: Hashable) -> bool:
        """Whether a placed function waits on its worker, as far as one can know from here."""
        function = self._functions.get(key)
        worker = None if function is None else function.worker
        return worker is not None and function in worker.ahead

    def why(self, key: Hashable) -> Waiting | None:
        """Why a ready function is not placed; None if it is not ready, or placed."""
        function = self._functions.get(key)
        return None if function is None else _why(function, self._placer)

    def holds(self, run: Hashable) -> list[tuple[list[Hashable], Waiting]]:
        """Why functions of a run are not placed: the keys of each kind, and the reason.

        Functions of one queue wait for the same: only one of them is asked about.
        """
        kinds: dict[tuple[object, ...], list[Function]] = {}
        for function in self._runs[run].functions.values():
            state = function.state
            if state == QUEUED:
                kinds.setdefault((state, function.queue), []).append(function)
            elif state in (DELAYED, FRESH):
                kinds.setdefault((state, function.cost, function.binds), []).append(function)
        held = []
        for alike in kinds.values():
            why = _why(alike[0], self._placer)
            if why is not None:
                held.append(([function.key for function in alike], why))
        return held

    def remaining(self, run: Hashable, now: float) -> float | None:
        """Estimate how long a run still takes (s); None while too little is known.

        As if it had the workers to itself. Costs as much as the run has codes, not functions.
        """
        return remaining.estimate(self._runs[run], self._fleet, self._durations, now)


def _needs(function: Function) -> tuple[Cost, tuple[str, ...]]:
    """Return what a worker must be able to hold, and what it must answer to."""
    group = function.group
    return (group.need, group.pin) if group else (function.own_cost, function.pin)


def _why(function: Function, placer: Placer) -> Waiting | None:
    """Say why a ready function is not placed; None if it is not ready, or placed."""
    if function.state not in (DELAYED, FRESH, QUEUED):
        return None
    fleet = placer.fleet
    if function.state == DELAYED:
        return Waiting("delay", until=placer.ready.timers.of(function))
    if not fleet.workers:
        return Waiting("no workers")
    if function in placer.unbound:
        group = function.target
        return Waiting(
            "binding",
            until=None if function.stuck_at is None else placer.unbound_until(function),
            finding=fleet.finding(group.need, group.pin),
        )
    queue = function.queue
    if queue is None:
        return Waiting("next")
    if not fleet.able(queue):
        until = None if queue.since is None else queue.deadline(function)
        finding = fleet.finding(queue.need, queue.answers_to)
        return Waiting("impossible", until=until, finding=finding)
    if function.run.saturated:
        return Waiting("max_concurrency")
    candidates = fleet.workers.values() if queue.able is None else queue.able
    barred = fleet.barred(queue)
    able = [w for w in candidates if queue.need.fits(w.shape.capacity)]
    if all(w.address in barred for w in able):
        return Waiting("excluded", tuple(w.address for w in able))
    able = [w for w in able if w.address not in barred]
    addresses = tuple(w.address for w in able)
    if queue.deferred:
        preferred = queue.bound in fleet.answering(function.preferences)
        reason = "preferred" if preferred else "data"
        return Waiting(reason, addresses, until=placer.ready.timers.of(function))
    running = [w for w in able if w.running]
    if not running:
        return Waiting("paused", addresses)
    roomy = [w for w in running if queue.cost.fits(w.free) and min(w.free) >= 0]
    if any(w.open for w in roomy):
        return Waiting("next", tuple(w.address for w in roomy if w.open))
    if roomy:
        reason = "reserved" if any(w.reservation is not None for w in roomy) else "ahead"
        return Waiting(reason, tuple(w.address for w in roomy))
    names = fleet.resources.names
    short = {
        names[i]: (amount / UNIT, max(0, *(w.free[i] for w in running)) / UNIT)
        for i, amount in queue.cost.items
        if all(w.free[i] < amount for w in running)
    }
    return Waiting("resources", addresses, short)
