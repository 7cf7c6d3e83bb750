"""All runs of a scheduler: how they begin, how they are stopped, and when they are forgotten."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from handoff_dask import collector
from handoff_dask.attempts.endings import Endings
from handoff_dask.attempts.states import UNENDED
from handoff_dask.compat import scheduler as compat
from handoff_dask.errors import HandoffError, StoredResultMissing
from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import Finding
from handoff_dask.scheduler.records import BundleRecord, FunctionRecord, RunRecord, UnitRecord
from handoff_dask.wire.keys import (
    bundle_key,
    index_of,
    is_bundle,
    is_collected,
    is_shared,
    node_key,
    run_of,
)
from handoff_dask.wire.messages import (
    FunctionRow,
    Portion,
    RunReport,
    RunSpec,
    Stop,
    bundle_spec,
    function_specs,
)
from handoff_dask.wire.run_events import Recorded, RunClosed, RunOpened, RunStopped

if TYPE_CHECKING:
    from distributed import Scheduler

#: How many functions in all the stopped runs may have whose reports are kept.
REMEMBERED = 100_000

#: From this many functions on, the garbage collector is kept from scanning what a run consists of
#: again and again, which would be a fifth of what a function costs.
_LARGE = 5_000
#: Functions for each thread of the cluster, of which fewer left to place are few.
LOW = 2
#: Also for these seconds after its end, while results are gathered and released.
_AFTERWARDS = 60.0


@dataclass(frozen=True)
class StoppedRun:
    """What is remembered of a run that was stopped and has no tasks left."""

    spec: RunSpec
    opened: float
    report: RunReport
    #: The messages that opened it and that brought its functions, for clients that follow it.
    described: tuple[bytes, list[bytes]]
    #: {index: exception, pickled} of functions in bundles, if their failure stopped it.
    errors: Mapping[int, Any]


@dataclass(eq=False, repr=False)
class Runs(Mapping[str, RunRecord]):
    """The runs by their ids, and every function that Dask knows by its key."""

    scheduler: Scheduler
    engine: Engine
    endings: Endings
    #: Is called with each event.
    emit: Callable[[Recorded], None]
    #: Gives a function up.
    end: Callable[[UnitRecord], None]
    #: Cancels a function in a bundle; False if it cannot be cancelled alone.
    cancel_member: Callable[[BundleRecord, int], bool]
    #: Returns how long a code of a run, given by its name, takes (s), if that was learned.
    learned_seconds: Callable[[RunSpec, str], float | None]
    #: Returns functions of a run with how long they take (s), as far as that was learned.
    remembered: Callable[[RunSpec, Iterable[FunctionRow]], Iterable[tuple[FunctionRow, float]]]
    #: Has the engine decide soon.
    ask: Callable[[], None]

    def __post_init__(self) -> None:
        self._runs: dict[str, RunRecord] = {}
        self._sparing = collector.Sparing(self._large)
        self._offers: Mapping[str, Mapping[str, float]] = {}
        #: Every node that Dask knows, by key.
        self.functions: dict[Any, UnitRecord] = {}
        #: By run_id: those that were stopped and have no tasks left, the latest last.
        self.stopped: dict[str, StoppedRun] = {}

    def __getitem__(self, run_id: str) -> RunRecord:
        return self._runs[run_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    # How a run begins

    def open(
        self, described: RunSpec, opening: bytes
    ) -> tuple[tuple[int, Finding] | None, RunRecord | None]:
        """Record a run, given the message that opens it, unpacked and as it came.

        The answer is a node that no worker can hold and why, or the run.
        """
        spec = replace(described, kinds=())
        run = self._runs[spec.run_id] = RunRecord(spec, opening, self.emit, self._offered)
        self.engine.run_opened(
            spec.run_id,
            priority=spec.priority,
            strategy=spec.strategy,
            max_concurrency=spec.max_concurrency,
            placement_timeout=spec.placement_timeout,
        )
        self.emit(RunOpened(spec.run_id, spec.dag_id, run.opened))
        if spec.timeout is not None:
            loop = asyncio.get_running_loop()
            run.limit = loop.call_later(spec.timeout, self._out_of_time, run)
        # Without any worker, and with time to wait for one, nothing is impossible yet.
        if not spec.placement_timeout and self.engine.questions.has_workers:
            with self.imagined(described) as run_id:
                hopeless = self.engine.questions.hopeless(run_id, time.monotonic())
            if hopeless:
                key, finding = hopeless
                self.forget(run)
                return (index_of(key), finding), None
        return None, run

    @contextmanager
    def imagined(self, spec: RunSpec) -> Iterator[str]:
        """Have the engine judge the kinds of a run, as functions of a run of its own."""
        run_id = f"imagined-{spec.run_id}"
        self.engine.run_opened(run_id)
        try:
            kinds = {row.index: row for row in spec.kinds}
            keys = {index: (run_id, index) for index in kinds}
            specs = function_specs(
                [row._replace(dependencies=()) for row in spec.kinds], keys.__getitem__
            )
            self.engine.functions_added(run_id, specs)
            yield run_id
        finally:
            self.engine.run_closed(run_id)

    def seconds_of(self, spec: RunSpec, prefixes: Iterable[str]) -> dict[str, float]:
        """Return how long functions of some codes of a run take, as far as that is known (s)."""
        seconds = self.engine.questions.seconds_of(prefixes)
        known = self.scheduler.task_prefixes
        for name in prefixes:
            if name in seconds:
                continue
            # What Dask measured of the same code, whatever ran it.
            if name in known and known[name].duration_average >= 0:
                seconds[name] = known[name].duration_average
            elif (learned := self.learned_seconds(spec, name)) is not None:
                seconds[name] = learned
        return seconds

    def maker(self, key: Any) -> tuple[str, str] | None:
        """Return the function whose result a task has; and "serialized " if it is serialized.

        None if it is of no run.
        """
        run = self._runs.get(run_of(key) or "")
        if run is None or is_shared(key):
            return None
        index = index_of(key)
        if is_collected(key):
            index = compat.arguments(self.scheduler.tasks[key])[0][0]
        row = run.row(index)
        if row.source is None:
            return row.label, ""
        return run.row(row.source).label, "serialized "

    def is_low(self, run: RunRecord, portions: int) -> bool:
        """Whether the cluster soon has nothing to do for a run, unless more of it comes.

        `portions` is how many were sent.
        """
        if run.graphs < portions:
            return False
        left = run.counts["held"] + run.counts["waiting"] - run.unsent
        return left < LOW * max(1, self.scheduler.total_nthreads)

    def portion_arrived(self, run_id: str, portion: bytes) -> None:
        """Record functions of a run whose tasks are about to come."""
        run = self._runs.get(run_id)
        if run is None or run.stop is not None:
            return
        with collector.paused():
            self._add(run, portion)

    def _add(self, run: RunRecord, packed: bytes) -> None:
        portion, run_id = Portion.unpacked(packed), run.spec.run_id
        run.portions.append(packed)
        if portion.last:
            run.graphs_expected = portion.number + 1
        rows = portion.rows
        run.unsent -= sum(row.source is None for row in rows)
        for row in rows:
            key = node_key(row.prefix, run_id, row.index)
            run.records[row.index] = FunctionRecord(key, run, row)
        first = 0
        for bundle in portion.bundles:
            run.unsent -= len(bundle.members)
            for index in bundle.members:
                run.homes[index] = bundle.number
            run.bundles_in.append((portion.number, first))
            first += len(bundle.members)
            key = bundle_key(run_id, bundle.number)
            run.bundles.append(BundleRecord(key, run, bundle))
        expected = self.seconds_of(run.spec, {row.prefix for row in rows})
        for row, seconds in self.remembered(run.spec, rows):
            self.engine.duration_remembered((row.prefix, row.label), seconds)
        specs = function_specs(rows, run.unit_key, expected)
        specs += [bundle_spec(bundle, run_id, run.unit_key) for bundle in portion.bundles]
        self.engine.functions_added(run_id, specs)

    def graph_arrived(
        self, client: str, keys: set[Any], annotations: Mapping[str, Mapping[Any, Any]]
    ) -> Sequence[RunRecord]:
        """Hold every function of a new graph, before any of them can start; return its run."""
        run: RunRecord | None = None
        late = []
        tasks = self.scheduler.tasks
        for key, mark in annotations.get("handoff", {}).items():
            if not isinstance(mark, dict) or "run" not in mark:
                continue  # a plain task, which somebody annotated with our name
            run = self._runs.get(mark["run"])
            if run is None or run.stop is not None:
                if run is not None or self.stopped_by(key):
                    compat.hold(tasks[key])
                    late.append(key)
                continue
            unit: UnitRecord | None = None
            if is_bundle(key):
                unit = run.bundles[index_of(key)]
            elif not (is_shared(key) or is_collected(key)):
                unit = run.records.get(index_of(key))
            if unit is None:
                # Data that functions share, or a result that is taken out of a bundle's: Dask moves
                # it, not the engine.
                (compat.free if is_shared(key) else compat.free_near_inputs)(tasks[key])
            elif key not in self.functions:
                self.functions[key] = unit
                run.alive += 1
                compat.hold(tasks[key])
        if late:
            # The run was stopped before its graph arrived.
            loop = asyncio.get_running_loop()
            loop.call_soon(lambda: self.scheduler.client_releases_keys(keys=late, client=client))
            compat.report_cancelled(self.scheduler, late)
        if run is not None and run.stop is None:
            if run.spec.detach:
                kept = [key for key in keys if self._is_kept(run, key)]
                self.scheduler.client_desires_keys(kept, run.spec.keeper)
            run.graphs += 1
            if run.graphs == run.graphs_expected:
                run.arrived.set()
        return () if run is None else (run,)

    def _is_kept(self, run: RunRecord, key: Any) -> bool:
        """Whether a detached run keeps a task that its client asked for."""
        unit = self.functions.get(key)
        return unit is not None and (unit.is_bundle or unit.row.awaited)

    # How it is stopped

    def stop(self, run: RunRecord, stop: Stop) -> None:
        """End a run that is not over. Only what plain tasks need is still computed.

        Finished results stay with whoever holds them.
        """
        if run.stop is not None or (run.over and stop.kind != "failed"):
            return
        run.stop = stop
        self.emit(RunStopped(run.spec.run_id, time.time(), stop.kind, stop.problem))
        run.counts["waiting"] -= run.unsent
        run.counts["cancelled"] += run.unsent
        run.unsent = 0
        run.arrived.set()  # no more will come
        keys = []
        for record in run.units:
            if record.state.shown not in UNENDED:
                continue
            if record.key in self.scheduler.tasks:
                keys.append(record.key)
            else:
                self.end(record)
        compat.cancel_for_all(self.scheduler, keys)
        if not run.alive:
            self.forget(run)

    def stop_soon(self, run: RunRecord, stop: Stop) -> None:
        """Stop a run after the event that is being handled."""
        asyncio.get_running_loop().call_soon(self.stop, run, stop)

    def stop_submitted_by(self, key: Any) -> None:
        """Stop the runs that a function, whose attempt was given up, has submitted."""
        for run in self._runs.values():
            if run.spec.within == key and not run.spec.detach:
                self.stop_soon(
                    run, Stop("cancelled", "the function that submitted it was given up")
                )

    def _out_of_time(self, run: RunRecord) -> None:
        self.stop(run, Stop("timeout", f"it did not end within {run.spec.timeout} s"))

    def function_failed(
        self, run: RunRecord, index: int, problem: str, error_type: str | None = None
    ) -> None:
        """Record that a function failed for good; that may stop its run after this event."""
        run.failed[index] = problem
        # For what a store has lost, the client runs a part again: the rest goes on meanwhile.
        lost = run.spec.stored is not None and error_type == StoredResultMissing.__name__
        if run.spec.stops_at_failure and not lost:
            label = run.row(index).label
            self.stop_soon(run, Stop("failed", f"function {label} failed: {problem}"))

    def member(self, key: Any) -> tuple[BundleRecord, int] | None:
        """Return the bundle of a member and its position, given the key of its result."""
        run_ = self._runs.get(run_of(key) or "")
        if run_ is None or key in self.functions:
            return None
        index = index_of(key)
        record = run_.bundle_of(index) if index < len(run_.homes) else None
        if record is None or run_.key_of(index) != key:
            return None
        return record, record.position(index)

    def client_gone(self, client: str) -> None:
        """Stop the runs of a client that goes away, except those that the cluster keeps."""
        for run in list(self._runs.values()):
            if run.spec.client == client and not (run.spec.detach and run.arrived.is_set()):
                came = "" if run.arrived.is_set() else " before its functions had arrived"
                self.stop(run, Stop("abandoned", f"its client went away{came}"))

    def cancelled(self, keys: list[Any], client: str, force: bool) -> list[Any]:
        """Stop the runs whose functions a client cancels; return the keys that are not ours."""
        scheduler = self.scheduler
        others: list[Any] = []
        ours: list[Any] = []
        gone: list[Any] = []
        releasing = {client}
        runs: dict[RunRecord, UnitRecord] = {}
        for key in keys:
            record = self.functions.get(key)
            if record is None and (coming := self.run_to_bring(key)):
                coming.asked.append(partial(self._cancel_late, key, client, force))
                continue
            member = self.member(key) if record is None else None
            if member is not None:
                record = member[0]
            if record is None:
                others.append(key)
                continue
            own, home = map(scheduler.tasks.get, (key, record.key))
            wanting = compat.clients_wanting(own) | compat.clients_wanting(home)
            if not record.run.spec.detach:
                wanting.discard(record.run.spec.keeper)
            unwanted = force or wanting <= {client}  # by anybody else
            # A function in a bundle is cancelled alone, unless others outside depend on it.
            if unwanted and member is not None and self.cancel_member(*member):
                continue
            ours.append(key)
            if unwanted:
                runs.setdefault(record.run, record)
                gone.append(key)
                releasing |= wanting
        for run, record in runs.items():
            problem = f"function {record.row.label} was cancelled on the cluster"
            self.stop(run, Stop("cancelled", problem))
        for name in releasing & scheduler.clients.keys():
            scheduler.client_releases_keys(keys=ours if name == client else gone, client=name)
        if gone:
            compat.report_cancelled(scheduler, gone)
        return others

    def run_to_bring(self, key: Any) -> RunRecord | None:
        """Return the run of a function that has not come yet, given its key.

        Or that is in a bundle, while others may come that depend on it.
        """
        run = self._runs.get(run_of(key) or "")
        if run is None or run.arrived.is_set() or index_of(key) >= len(run.homes):
            return None
        alone = run.bundle_of(index_of(key)) is None
        return None if alone and run.unit_key(index_of(key)) in self.scheduler.tasks else run

    def _cancel_late(self, key: Any, client: str, force: bool) -> None:
        others = self.cancelled([key], client, force)
        if others and client in self.scheduler.clients:
            self.scheduler.client_releases_keys(keys=others, client=client)

    def check_retried(self, keys: list[Any]) -> None:
        """Raise HandoffError if a client may not retry these keys, as their run was stopped."""
        for key in keys:
            record = self.functions.get(key)
            stopped = record.run.stop if record else self.stopped_by(key)
            if stopped is not None:
                raise HandoffError(
                    f"{key!r} cannot be tried again: its run was stopped ({stopped.problem}). "
                    'Submit the DAG again, or with on_error="continue".'
                )

    # How it is forgotten

    def forget(self, run: RunRecord) -> None:
        """Drop all there is of a run, except what became of it if it was stopped."""
        run_id = run.spec.run_id
        if self._runs.pop(run_id, None) is None:
            return
        self._sparing.look()
        # Later: the scheduler may be going through its clients.
        loop = asyncio.get_running_loop()
        loop.call_soon(self.scheduler.clients.pop, run.spec.keeper, None)
        if run.stop is not None and not run.forgotten:
            self._remember(run)
        units = list(run.units)
        for record in units:
            self.end(record)  # its tasks are about to be released
            self.functions.pop(record.key, None)
        self.endings.forget(units)
        self.emit(RunClosed(run_id, time.time()))
        run.arrived.set()  # nobody needs to wait for its graph any more
        self.engine.run_closed(run_id)
        if run.limit is not None:
            run.limit.cancel()
        self.ask()

    def release(self, run: RunRecord) -> None:
        """Stop keeping the results of a detached run."""
        run.kept, run.forgotten = False, True
        keeper = self.scheduler.clients.get(run.spec.keeper)
        if keeper is not None:
            keys = [ts.key for ts in keeper.wants_what]
            self.scheduler.client_releases_keys(keys=keys, client=run.spec.keeper)
            del self.scheduler.clients[run.spec.keeper]
        if not run.alive:
            self.forget(run)  # it has no tasks whose end would do this

    def close(self) -> None:
        """Leave nothing of the runs behind in this process."""
        self._sparing.close()

    def _large(self) -> bool:
        ended_after = time.time() - _AFTERWARDS
        return any(
            len(run.records) + len(run.bundles) >= _LARGE
            and (not run.over or run.latest > ended_after)
            for run in list(self._runs.values())
        )

    # What is remembered

    def _offered(self) -> Mapping[str, Mapping[str, float]]:
        """Return what workers offer; one object for all runs in which that was the same."""
        offers = self.engine.questions.offers()
        if offers != self._offers:
            self._offers = offers
        return self._offers

    def _remember(self, run: RunRecord) -> None:
        assert run.stop is not None
        described = run.opening, run.portions
        errors = run.errors if run.stop.kind == "failed" else {}
        self.stopped[run.spec.run_id] = StoppedRun(
            run.spec, run.opened, run.report(), described, errors
        )
        while len(self.stopped) > 1 and self._remembered() > REMEMBERED:
            del self.stopped[next(iter(self.stopped))]

    def _remembered(self) -> int:
        return sum(1 + sum(past.report.counts.values()) for past in self.stopped.values())

    def stopped_by(self, key: Any) -> Stop | None:
        """Return why a run was stopped, given a key of it that Dask may have forgotten."""
        run_id = run_of(key) or ""
        if run_id in self._runs:
            return self._runs[run_id].stop
        past = self.stopped.get(run_id)
        return None if past is None else past.report.stop
