"""The engine under simulated time."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from random import Random

from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import Finding, FunctionSpec, Refuse, Started, WorkerSpec

_RUN = "simulated"


@dataclass(frozen=True, slots=True)
class Simulated:
    """Where and when a function runs: a worker's address; seconds from the start of the run."""

    worker: str
    start: float
    stop: float


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """What a simulation found."""

    #: By function key, in order of start.
    placements: Mapping[Hashable, Simulated]
    #: Seconds until the last function ends.
    makespan: float
    #: Per resource: the share of what all workers offer over the makespan that is used.
    utilisation: Mapping[str, float]
    #: Functions that no worker could hold; what depends on them did not run either.
    refused: Mapping[Hashable, Finding]


@dataclass
class _Simulation:
    engine: Engine
    functions: Sequence[FunctionSpec]
    durations: Mapping[Hashable, float]
    sizes: Mapping[Hashable, float]
    overhead: float
    bandwidth: float
    latency: float
    jitter: float
    random: Random

    def __post_init__(self) -> None:
        self.specs = {f.key: f for f in self.functions}
        self.dependents: dict[Hashable, list[Hashable]] = {}
        self.missing: dict[Hashable, int] = {}
        for f in self.functions:
            inside = {d for d in f.dependencies if d in self.specs}
            self.missing[f.key] = len(inside)
            for d in inside:
                self.dependents.setdefault(d, []).append(f.key)
        self.now = 0.0
        self.placements: dict[Hashable, Simulated] = {}
        self.refused: dict[Hashable, Finding] = {}
        self._ends: list[tuple[float, int, Hashable]] = []
        self._count = 0
        #: Functions handed to a worker ahead, which starts them as the engine says.
        self._ahead: dict[Hashable, str] = {}

    def run(self) -> None:
        engine = self.engine
        for key, missing in self.missing.items():
            if not missing:
                self._ready(key)
        self._poll()
        while True:
            wake = engine.wake_at()
            if self._ends and (wake is None or self._ends[0][0] <= wake):
                self.now = self._ends[0][0]
                while self._ends and self._ends[0][0] <= self.now:
                    self._end(heappop(self._ends)[2])
            elif wake is not None:
                self.now = max(self.now, wake)
            else:
                break
            self._poll()

    def _ready(self, key: Hashable) -> None:
        inputs: dict[str, float] = {}
        total = 0.0
        for dependency in self.specs[key].dependencies:
            size = self.sizes.get(dependency, 0.0)
            if size and dependency in self.placements:
                worker = self.placements[dependency].worker
                inputs[worker] = inputs.get(worker, 0.0) + size
                total += size
        self.engine.function_ready(key, self.now, inputs=inputs, input_total=total)

    def _start(self, key: Hashable, worker: str, overhead: float) -> None:
        missing = sum(
            self.sizes.get(d, 0.0)
            for d in self.specs[key].dependencies
            if d in self.placements and self.placements[d].worker != worker
        )
        start = self.now + overhead
        stop = start + self.durations[key]
        if missing:
            stop += missing / self.bandwidth + self.latency
        if self.jitter:
            stop += self.jitter * self.random.random()
        self.placements[key] = Simulated(worker, start, stop)
        self._count += 1
        heappush(self._ends, (stop, self._count, key))

    def _end(self, key: Hashable) -> None:
        done = self.placements[key]
        self.engine.attempt_ended(key, self.now, duration=done.stop - done.start, done=True)
        for after in self.dependents.get(key, ()):
            self.missing[after] -= 1
            if not self.missing[after]:
                self._ready(after)

    def _poll(self) -> None:
        for decision in self.engine.poll(self.now):
            if isinstance(decision, Refuse):
                self.refused[decision.key] = decision.finding
            elif isinstance(decision, Started):
                self._start(decision.key, self._ahead.pop(decision.key), 0.0)
            elif decision.ahead:
                self._ahead[decision.key] = decision.worker
            else:
                self._start(decision.key, decision.worker, self.overhead)


def simulate(
    functions: Sequence[FunctionSpec],
    workers: Iterable[WorkerSpec],
    durations: Mapping[Hashable, float],
    *,
    strategy: str = "packed",
    known: bool = True,
    max_concurrency: int | None = None,
    sizes: Mapping[Hashable, float] | None = None,
    overhead: float = 0.0,
    bandwidth: float = 100e6,
    latency: float = 0.005,
    jitter: float = 0.0,
    seed: int = 0,
    bundles: Iterable[Sequence[Hashable]] = (),
    engine: Engine | None = None,
) -> SimulatedRun:
    """Run a DAG on workers without running it.

    Parameters
    ----------
    durations
        Seconds of each function, by key.
    strategy, max_concurrency
        As for `Engine.run_opened`.
    known
        Whether the engine knows the durations in advance; else it learns them as functions
        end, by their `code`.
    sizes
        Bytes of each function's result, by key; where to move them takes time.
    overhead
        Seconds from the decision to place a function to its start.
    bandwidth, latency
        Bytes per second, and seconds, of moving results.
    jitter, seed
        The most seconds that are added to a duration, at random for each start. Without it, equal
        functions end at the same instant and take each other's place, unlike on a cluster.
    bundles
        Keys of functions that run as one, in this order. Together they claim what the first one
        claims; their result is as large as the last one's.
    engine
        The one to drive, with what it learned before; it must have no workers.

    Raises
    ------
    KeyError
        A function without a duration.
    """
    if engine is None:
        engine = Engine(bandwidth=bandwidth, latency=latency, lost_grace=0.0)
    bundle_of = {keys[0]: keys for keys in bundles}
    if bundle_of:
        functions = _with_bundles(functions, bundle_of)
    taken = dict(durations)
    result_sizes = dict(sizes or {})
    for first, keys in bundle_of.items():
        taken[first] = sum(durations[key] for key in keys)
        result_sizes[first] = result_sizes.get(keys[-1], 0.0)
    workers = list(workers)
    for worker in workers:
        engine.worker_added(worker)
    engine.run_opened(_RUN, strategy=strategy, max_concurrency=max_concurrency)
    if known:
        for f in functions:
            engine.duration_known((_RUN, f.key), taken[f.key])
        specs = [replace(f, token=(_RUN, f.key)) for f in functions]
    else:
        specs = list(functions)
    engine.functions_added(_RUN, specs)
    simulation = _Simulation(
        engine, specs, taken, result_sizes, overhead, bandwidth, latency, jitter, Random(seed)
    )
    simulation.run()
    engine.run_closed(_RUN)
    for worker in workers:
        engine.worker_removed(worker.address)
    placements = simulation.placements
    makespan = max((p.stop for p in placements.values()), default=0.0)
    offered: dict[str, float] = {}
    for worker in workers:
        for name, amount in worker.capacity.items():
            offered[name] = offered.get(name, 0.0) + amount
    used = dict.fromkeys(offered, 0.0)
    for key, place in placements.items():
        for name, amount in simulation.specs[key].cost.items():
            if name in used:
                used[name] += amount * (place.stop - place.start)
    utilisation = {
        name: used[name] / (total * makespan) if total * makespan else 0.0
        for name, total in offered.items()
    }
    if bundle_of:
        members = _of_members(placements, bundle_of, durations)
        placements = dict(sorted(members, key=lambda item: item[1].start))
    return SimulatedRun(placements, makespan, utilisation, simulation.refused)


def _with_bundles(
    functions: Sequence[FunctionSpec], bundle_of: Mapping[Hashable, Sequence[Hashable]]
) -> Sequence[FunctionSpec]:
    """Return the functions with each bundle, by its first key, as one function."""
    first_of = {key: first for first, keys in bundle_of.items() for key in keys}
    sources: dict[Hashable, dict[Hashable, None]] = {}
    for f in functions:
        # The keys of a dict are a set that keeps its order.
        sources.setdefault(first_of.get(f.key, f.key), {}).update(
            dict.fromkeys(first_of.get(key, key) for key in f.dependencies)
        )
    return [
        replace(f, dependencies=tuple(key for key in sources[f.key] if key != f.key))
        for f in functions
        if f.key in sources
    ]


def _of_members(
    placements: Mapping[Hashable, Simulated],
    bundle_of: Mapping[Hashable, Sequence[Hashable]],
    durations: Mapping[Hashable, float],
) -> Iterator[tuple[Hashable, Simulated]]:
    """Yield where each function runs; those of a bundle run one after the other."""
    for first, place in placements.items():
        keys = bundle_of.get(first, (first,))
        # The first member fetches the inputs of all; each of the others just takes its time.
        stops = [place.stop]
        for key in keys[:0:-1]:
            stops.append(stops[-1] - durations[key])
        start = place.start
        for key, stop in zip(keys, reversed(stops), strict=True):
            yield key, Simulated(place.worker, start, stop)
            start = stop
