"""What clients may ask the scheduler's plugin about runs."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

from handoff_dask import collector
from handoff_dask.losses import End
from handoff_dask.records import (
    STATES,
    FunctionRecord,
    FunctionRow,
    RunRecord,
    RunSpec,
    function_specs,
)

if TYPE_CHECKING:
    from handoff_dask.plugin import HandoffPlugin


#: How many stopped runs are remembered, for whoever asks what became of them.
OVERDUE = 1000


class Service:
    """The handlers of a plugin, installed on its scheduler under ``handoff_...``."""

    def __init__(self, plugin: HandoffPlugin) -> None:
        self.plugin = plugin
        self.scheduler = plugin.scheduler
        self.engine = plugin.engine
        #: {run: (its DAG, why)} of detached runs that were stopped because their time was up.
        self._overdue: dict[str, tuple[str, str]] = {}

    @property
    def handlers(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """The handlers by the name under which the scheduler knows them."""
        handlers = (
            self.open,
            self.close,
            self.arrived,
            self.find,
            self.want,
            self.forget,
            self.report,
            self.progress,
            self.explain,
            self.why,
            self.overdue,
            self.holds,
            self.listed,
            self.outline,
            self.cancel,
            self.uninstall,
        )
        return {f"handoff_{handler.__name__}": handler for handler in handlers}

    # Runs

    async def open(self, spec: bytes) -> bytes | None:
        """Take down a run; the answer is None, or a node that no worker can hold and why."""
        await self.plugin.registry.settled()
        with collector.paused():
            run = self._opened(pickle.loads(spec))
        run_id = run.spec.run_id
        if run.spec.timeout is not None:
            loop = asyncio.get_running_loop()
            run.limit = loop.call_later(run.spec.timeout, self._out_of_time, run)
        if not run.functions:
            self.plugin.forget(run)  # no graph will follow, and nothing to tell its end by
            return None
        # Without any worker, and with time to wait for one, nothing is impossible yet.
        if not run.spec.placement_timeout and self.plugin.registry.names:
            if hopeless := self.engine.hopeless(run_id, time.monotonic()):
                key, finding = hopeless
                self.plugin.forget(run)
                return pickle.dumps((run.index(key), finding))
        return None

    def _opened(self, spec: RunSpec) -> RunRecord:
        run = self.plugin.runs[spec.run_id] = RunRecord(spec)
        self.engine.run_opened(
            spec.run_id,
            priority=spec.priority,
            strategy=spec.strategy,
            max_concurrency=spec.max_concurrency,
            placement_timeout=spec.placement_timeout,
        )
        rows = [FunctionRow(*row) for row in run.spec.rows]
        keys = [(f"{row.prefix}-{run.spec.run_id}", index) for index, row in enumerate(rows)]
        run.functions = [
            FunctionRecord(key, index, run, row, cost=row.cost)
            for index, (key, row) in enumerate(zip(keys, rows, strict=True))
        ]
        run.counts["waiting"] = sum(row.source is None for row in rows)
        prefixes = self.scheduler.task_prefixes
        # What Dask measured of the same code, whoever ran it.
        expected = {
            name: prefixes[name].duration_average
            for name in {row.prefix for row in rows}
            if name in prefixes and prefixes[name].duration_average >= 0
        }
        self.engine.functions_added(run.spec.run_id, function_specs(rows, keys, expected))
        return run

    def _out_of_time(self, run: RunRecord) -> None:
        """Stop a run that has not ended, though its client may be gone."""
        if any(run.counts[state] for state in ("waiting", "held", "running")):
            problem = f"it did not end within {run.spec.timeout} s"
            self._overdue[run.spec.run_id] = run.spec.dag_id, problem
            while len(self._overdue) > OVERDUE:
                del self._overdue[next(iter(self._overdue))]
            self.plugin.cancel(run)

    async def overdue(self, run_id: str | None = None, dag_id: str | None = None) -> str | None:
        """Tell whether a run, or the last of a DAG, was stopped because its time was up."""
        for known, (dag, problem) in reversed(self._overdue.items()):
            if run_id == known or dag_id == dag:
                return problem
        return None

    async def explain(self, spec: bytes) -> bytes:
        """Return which workers could run each node of a run that is not to be run."""
        await self.plugin.registry.settled()
        run = self._opened(pickle.loads(spec))
        findings = [finding for _, finding in self.engine.verdicts(run.spec.run_id)]
        self.plugin.forget(run)
        return pickle.dumps(findings)

    async def why(self, run_id: str, held: int | None = None) -> bytes:
        """Return, for each node that does not run, what it waits for or which nodes it lacks.

        With a number, of so many held ones.
        """
        found: dict[int, Any] = {}
        run = self.plugin.runs.get(run_id)
        records = [] if run is None else run.functions
        if held is not None:
            records = list(islice((r for r in records if r.state == "held"), held))
        for record in records:
            if record.state == "held":
                found[record.index] = self.engine.why(record.key)
            elif record.state == "waiting":
                found[record.index] = [
                    i for i in record.row.dependencies if record.run.functions[i].state != "done"
                ]
        return pickle.dumps(found)

    async def holds(self, run_id: str) -> bytes:
        """Return what functions of a run are held for: how many, what they cost, and why."""
        if run_id not in self.plugin.runs:
            return pickle.dumps([])
        found = [
            (number, dict(self.plugin.records[key].cost), why)
            for key, number, why in self.engine.holds(run_id)
        ]
        return pickle.dumps(found)

    async def report(self, run_id: str) -> dict[str, Any] | None:
        """Return the report of a run, and the errors of its nodes as Dask keeps them."""
        run = self.plugin.runs.get(run_id)
        if run is None:
            return None
        errors = []
        for index in run.failed:
            ts = self.scheduler.tasks.get(run.functions[index].key)
            if ts is not None and ts.exception is not None:
                # A list: Dask restores what is in lists only, where nothing goes over a wire.
                errors.append([index, ts.exception, ts.traceback, ts.traceback_text or ""])
        return {"report": pickle.dumps(run.report()), "errors": errors}

    async def progress(self, run_id: str) -> dict[str, int]:
        """Return how many functions of a run are in which state; nothing of a forgotten run."""
        run = self.plugin.runs.get(run_id)
        return {} if run is None else run.counted()

    async def close(self, run_id: str) -> None:
        """Forget a run whose graph never came."""
        if run := self.plugin.runs.get(run_id):
            self.plugin.forget(run)

    def _called(self, dag_id: str) -> list[RunRecord]:
        return [run for run in self.plugin.runs.values() if run.spec.dag_id == dag_id]

    def _latest(self, dag_id: str) -> RunRecord | None:
        runs = self._called(dag_id)
        return runs[-1] if runs else None

    async def find(self, dag_id: str, label: str) -> tuple[bool, Any]:
        """Return whether a run is known, and the key of a function's result if it is kept."""
        run = self._latest(dag_id)
        if run is None:
            return False, None
        await run.arrived.wait()
        for index in run.spec.wanted:
            record = run.functions[index]
            if record.row.label == label:
                return True, record.key
        return True, None

    async def want(self, keys: list[Any], client: str) -> None:
        """Keep results for a client, and tell it on its stream what became of them."""
        self.scheduler.client_desires_keys(keys, client)

    async def arrived(self, run_id: str) -> None:
        """Answer when the graph of a run has come."""
        if run := self.plugin.runs.get(run_id):
            await run.arrived.wait()

    async def forget(self, dag_id: str) -> bool:
        """Let the detached runs of a DAG go; the answer is whether there were any."""
        found = [run for run in self._called(dag_id) if run.kept]
        for run in found:
            run.kept = False
            keeper = self.scheduler.clients[run.spec.keeper]
            keys = [ts.key for ts in keeper.wants_what]
            self.scheduler.client_releases_keys(keys=keys, client=run.spec.keeper)
            del self.scheduler.clients[run.spec.keeper]
        overdue = [run_id for run_id, (dag, _) in self._overdue.items() if dag == dag_id]
        for run_id in overdue:
            del self._overdue[run_id]
        return bool(found or overdue)

    async def cancel(self, run_id: str) -> None:
        """Stop a run, whoever wants it."""
        if run := self.plugin.runs.get(run_id):
            self.plugin.cancel(run)

    def gone(self, worker: str, started: list[tuple[int, float]]) -> None:
        """Take in, on a worker's stream, what it has started, as it closes; it starts no more."""
        self.plugin.losses.told(worker, End(dict(started)))

    async def listed(self) -> list[dict[str, Any]]:
        """Return the facts of every run, the oldest first."""
        return [
            {
                "run_id": run.spec.run_id,
                "dag_id": run.spec.dag_id,
                "own_id": run.spec.own_id,
                "started": run.opened,
                "detached": run.kept,
                "priority": run.spec.priority,
                "counts": {state: run.counts[state] for state in STATES},
            }
            for run in self.plugin.runs.values()
        ]

    async def outline(self, dag_id: str) -> bytes | None:
        """Return what it takes to follow the latest run of a DAG; None if there is none."""
        run = self._latest(dag_id)
        if run is None:
            return None
        await run.arrived.wait()
        return run.spec.outline

    async def uninstall(self, force: bool) -> list[str]:
        """Take everything off the cluster, unless runs are in the way: the answer names them."""
        busy = [run.spec.dag_id for run in self.plugin.runs.values() if run.kept or run.busy]
        if not busy or force:
            await self.plugin.uninstall()
            return []
        return busy
