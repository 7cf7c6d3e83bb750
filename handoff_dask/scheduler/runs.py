"""All runs of a scheduler: how they begin, how they are stopped, and when they are forgotten."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from handoff_dask import collector
from handoff_dask.attempts.endings import Endings
from handoff_dask.attempts.states import UNENDED
from handoff_dask.compat import scheduler as compat
from handoff_dask.errors import HandoffError
from handoff_dask.placement.engine import Engine
from handoff_dask.scheduler.records import FunctionRecord, RunRecord
from handoff_dask.wire.keys import index_of, is_shared, run_of
from handoff_dask.wire.messages import RunReport, RunSpec, Stop, function_specs
from handoff_dask.wire.run_events import Event, RunClosed, RunOpened, RunStopped

if TYPE_CHECKING:
    from distributed import Scheduler

#: How many functions in all the stopped runs may have whose reports are kept.
REMEMBERED = 100_000

#: From this many functions on, the garbage collector is kept from scanning what a run consists of
#: again and again, which would be a fifth of what a function costs.
_LARGE = 5_000
#: Also for these seconds after its end, while results are gathered and released.
_AFTERWARDS = 60.0


@dataclass(frozen=True)
class StoppedRun:
    """What is remembered of a run that was stopped and has no tasks left."""

    spec: RunSpec
    opened: float
    report: RunReport
    #: The message that opened it, for clients that follow it.
    opening: bytes


@dataclass(eq=False, repr=False)
class Runs(Mapping[str, RunRecord]):
    """The runs by their ids, and every function that Dask knows by its key."""

    scheduler: Scheduler
    engine: Engine
    endings: Endings
    #: Is called with each event.
    emit: Callable[[Event], None]
    #: Gives a function up.
    end: Callable[[FunctionRecord], None]
    #: Has the engine decide soon.
    ask: Callable[[], None]

    def __post_init__(self) -> None:
        self._runs: dict[str, RunRecord] = {}
        self._sparing = collector.Sparing(self._large)
        #: Every node that Dask knows, by key.
        self.functions: dict[Any, FunctionRecord] = {}
        #: By run_id: those that were stopped and have no tasks left, the latest last.
        self.stopped: dict[str, StoppedRun] = {}

    def __getitem__(self, run_id: str) -> RunRecord:
        return self._runs[run_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._runs)

    def __len__(self) -> int:
        return len(self._runs)

    # How a run begins

    def open(self, opening: bytes) -> RunRecord:
        """Record a run, given the message that opens it, and add its functions to the engine."""
        run = self.record(opening)
        spec = run.spec
        self.emit(RunOpened(spec.run_id, spec.dag_id, run.opened))
        if spec.timeout is not None:
            loop = asyncio.get_running_loop()
            run.limit = loop.call_later(spec.timeout, self._out_of_time, run)
        return run

    def record(self, opening: bytes) -> RunRecord:
        """Record a run that may only be asked about."""
        # What the scheduler does not open stays in the message only.
        spec = replace(RunSpec.unpacked(opening), functions=b"")
        run = self._runs[spec.run_id] = RunRecord(spec, opening, self.emit)
        self.engine.run_opened(
            spec.run_id,
            priority=spec.priority,
            strategy=spec.strategy,
            max_concurrency=spec.max_concurrency,
            placement_timeout=spec.placement_timeout,
        )
        rows, keys = spec.rows, spec.keys
        run.functions = [
            FunctionRecord(key, index, run, row)
            for index, (key, row) in enumerate(zip(keys, rows, strict=True))
        ]
        run.counts["waiting"] = sum(row.source is None for row in rows)
        prefixes = self.scheduler.task_prefixes
        # What Dask measured of the same code, whatever ran it.
        expected = {
            name: prefixes[name].duration_average
            for name in {row.prefix for row in rows}
            if name in prefixes and prefixes[name].duration_average >= 0
        }
        self.engine.functions_added(run.spec.run_id, function_specs(rows, keys, expected))
        return run

    def graph_arrived(
        self, client: str, keys: set[Any], annotations: Mapping[str, Mapping[Any, Any]]
    ) -> None:
        """Hold every function of a new graph, before any of them can start."""
        run: RunRecord | None = None
        late = []
        tasks = self.scheduler.tasks
        for key, mark in annotations.get("handoff", {}).items():
            if not isinstance(mark, dict) or "run" not in mark:
                continue  # a plain task, which somebody annotated with our name
            run = self._runs.get(mark["run"])
            if run is None:
                if self.stopped_by(key):
                    compat.hold(tasks[key])
                    late.append(key)
            elif is_shared(key):  # data that functions share: Dask moves it, not the engine
                compat.free(tasks[key])
            elif key not in self.functions:
                self.functions[key] = run.functions[index_of(key)]
                run.alive += 1
                compat.hold(tasks[key])
        if late:
            # The run was stopped before its graph arrived.
            loop = asyncio.get_running_loop()
            loop.call_soon(lambda: self.scheduler.client_releases_keys(keys=late, client=client))
            self.scheduler.report({"op": "cancelled-keys", "keys": late})
        if run is not None:
            if run.spec.detach:
                self.scheduler.client_desires_keys(keys, run.spec.keeper)
            run.arrived.set()

    # How it is stopped

    def stop(self, run: RunRecord, stop: Stop) -> None:
        """End a run that is not over. Only what plain tasks need is still computed.

        Finished results stay with whoever holds them.
        """
        if run.stop is not None or (run.over and stop.kind != "failed"):
            return
        run.stop = stop
        self.emit(RunStopped(run.spec.run_id, time.time(), stop.kind, stop.problem))
        keys = []
        clients: set[str] = set()
        for record in run.functions:
            if record.state.shown not in UNENDED:
                continue
            ts = self.scheduler.tasks.get(record.key)
            if ts is None:
                self.end(record)
            else:
                keys.append(record.key)
                clients.update(cs.client_key for cs in ts.who_wants or ())
        for client in clients:
            self.scheduler.client_releases_keys(keys=keys, client=client)
        if keys:
            self.scheduler.report({"op": "cancelled-keys", "keys": keys})
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

    def function_failed(self, record: FunctionRecord, problem: str) -> None:
        """Record that a function failed for good; that may stop its run after this event."""
        run = record.run
        run.failed[record.index] = problem
        if run.spec.stops_at_failure:
            self.stop_soon(run, Stop("failed", f"function {record.row.label} failed: {problem}"))

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
        runs: dict[RunRecord, FunctionRecord] = {}
        for key in keys:
            record = self.functions.get(key)
            if record is None:
                others.append(key)
                continue
            ours.append(key)
            wanting = {cs.client_key for cs in scheduler.tasks[key].who_wants or ()}
            if force or wanting <= {client}:
                runs.setdefault(record.run, record)
                gone.append(key)
                releasing |= wanting
        for run, record in runs.items():
            problem = f"function {record.row.label} was cancelled on the cluster"
            self.stop(run, Stop("cancelled", problem))
        for name in releasing & scheduler.clients.keys():
            scheduler.client_releases_keys(keys=ours if name == client else gone, client=name)
        if gone:
            scheduler.report({"op": "cancelled-keys", "keys": gone})
        return others

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
        for record in run.functions:
            self.end(record)  # its tasks are about to be released
            self.functions.pop(record.key, None)
        self.endings.forget(run.functions)
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
        if not run.functions:
            self.forget(run)  # it has no tasks whose end would do this

    def close(self) -> None:
        """Leave nothing of the runs behind in this process."""
        self._sparing.close()

    def _large(self) -> bool:
        ended_after = time.time() - _AFTERWARDS
        return any(
            len(run.functions) >= _LARGE and (not run.over or run.latest > ended_after)
            for run in list(self._runs.values())
        )

    # What is remembered

    def _remember(self, run: RunRecord) -> None:
        spec = replace(run.spec, rows=())
        self.stopped[spec.run_id] = StoppedRun(spec, run.opened, run.report(), run.opening)
        while len(self.stopped) > 1 and self._remembered() > REMEMBERED:
            del self.stopped[next(iter(self.stopped))]

    def _remembered(self) -> int:
        return sum(1 + sum(past.report.counts.values()) for past in self.stopped.values())

    def stopped_by(self, key: Any) -> Stop | None:
        """Return why a run that has no tasks left was stopped, given one of its keys."""
        past = self.stopped.get(run_of(key) or "")
        return None if past is None else past.report.stop
