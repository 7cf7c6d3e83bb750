"""What clients may ask the scheduler's plugin about runs."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from handoff_dask import collector
from handoff_dask.scheduler.losses import End
from handoff_dask.scheduler.records import FunctionRecord, RunRecord
from handoff_dask.scheduler.stalls import Stalls
from handoff_dask.wire.events import RunOpened
from handoff_dask.wire.messages import (
    FunctionRow,
    RunReport,
    RunSpec,
    Stop,
    StopKind,
    function_specs,
)

if TYPE_CHECKING:
    from handoff_dask.scheduler.plugin import HandoffPlugin


#: How many functions in all the stopped runs may have whose reports are kept.
REMEMBERED = 100_000


@dataclass(frozen=True)
class StoppedRun:
    """What is remembered of a run that was stopped and has no tasks left."""

    spec: RunSpec
    opened: float
    report: RunReport


class Service:
    """The handlers of a plugin, installed on its scheduler under ``handoff_...``."""

    def __init__(self, plugin: HandoffPlugin) -> None:
        self.plugin = plugin
        self.scheduler = plugin.scheduler
        self.engine = plugin.engine
        #: By run_id, the latest last.
        self._stopped: dict[str, StoppedRun] = {}

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
            self.over,
            self.states,
            self.progress,
            self.explain,
            self.why,
            self.stalled,
            self.holds,
            self.known,
            self.outline,
            self.stop,
            self.uninstall,
        )
        return {f"handoff_{handler.__name__}": handler for handler in handlers}

    # Runs

    async def open(self, spec: bytes) -> bytes | None:
        """Record a run; the answer is None, or a node that no worker can hold and why."""
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
            if hopeless := self.engine.questions.hopeless(run_id, time.monotonic()):
                key, finding = hopeless
                self.plugin.forget(run)
                return pickle.dumps((run.index(key), finding))
        return None

    def _opened(self, spec: RunSpec) -> RunRecord:
        run = self.plugin.runs[spec.run_id] = RunRecord(spec)
        self.plugin.history(RunOpened(spec.run_id, spec.dag_id, run.opened))
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
        self.plugin.stop(run, Stop("timeout", f"it did not end within {run.spec.timeout} s"))

    def remember(self, run: RunRecord) -> None:
        """Remember what became of a run that was stopped."""
        # The rows are not needed any more.
        spec = replace(run.spec, rows=())
        self._stopped[run.spec.run_id] = StoppedRun(spec, run.opened, run.report())
        while len(self._stopped) > 1 and self._remembered() > REMEMBERED:
            del self._stopped[next(iter(self._stopped))]

    def stopped_by(self, key: Any) -> Stop | None:
        """Return why a run that has no tasks left was stopped, given one of its keys."""
        name = key[0] if isinstance(key, tuple) and key else ""
        past = self._stopped.get(name.rpartition("-")[2]) if isinstance(name, str) else None
        return None if past is None else past.report.stop

    def _remembered(self) -> int:
        return sum(1 + sum(past.report.counts.values()) for past in self._stopped.values())

    async def explain(self, spec: bytes) -> bytes:
        """Return which workers could run each node of a run that is not to be started.

        Also what is still ending on the cluster, in words.
        """
        await self.plugin.registry.settled()
        run = self._opened(pickle.loads(spec))
        findings = [finding for _, finding in self.engine.questions.verdicts(run.spec.run_id)]
        self.plugin.forget(run)
        return pickle.dumps((findings, self.plugin.endings.describe()))

    async def why(self, run_id: str, held: int | None = None) -> bytes:
        """Return, for each node that does not run, what it waits for or which nodes it lacks.

        For a node that waits for its inputs on a worker: these, and who has them. With `held`, only
        at most that many held nodes.
        """
        found: dict[int, Any] = {}
        run = self.plugin.runs.get(run_id)
        records = [] if run is None else run.functions
        if held is not None:
            records = list(islice((r for r in records if r.state == "held"), held))
        for record in records:
            if record.state == "held":
                found[record.index] = self.plugin.endings.why(record)
            elif record.state == "running" and (inputs := self.plugin.inputs.fetching(record)):
                found[record.index] = tuple(inputs)
            elif record.state == "waiting":
                found[record.index] = [
                    i for i in record.row.dependencies if record.run.functions[i].state != "done"
                ]
        return pickle.dumps(found)

    async def holds(self, run_id: str) -> bytes:
        """Return what functions of a run are held for: how many, what they cost, and why."""
        run = self.plugin.runs.get(run_id)
        if run is None:
            return pickle.dumps([])
        found = [
            (number, dict(self.plugin.records[key].cost), self.plugin.endings.noted(why))
            for key, number, why in self.engine.questions.holds(run_id)
        ]
        # The engine does not know those whose last attempt has not ended.
        found += [
            (1, dict(record.cost), self.plugin.endings.why(record))
            for record in run.functions
            if record.state == "held" and (record.parked or record.lost is not None)
        ]
        return pickle.dumps(found)

    async def stalled(self, run_id: str | None = None, dag_id: str = "") -> str | None:
        """Say why a run, or the latest of a DAG, makes no progress; None if it makes some."""
        runs = self.plugin.runs
        called = [run for run in runs.values() if run.spec.dag_id == dag_id]
        run = runs.get(run_id) if run_id is not None else called[-1] if called else None
        return None if run is None else Stalls(self.plugin).reason(run)

    async def report(self, run_id: str) -> dict[str, Any] | None:
        """Return the report of a run, and the errors of its nodes as Dask keeps them."""
        run = self.plugin.runs.get(run_id)
        if run is None:
            past = self._stopped.get(run_id)
            return None if past is None else {"report": pickle.dumps(past.report), "errors": []}
        errors = []
        for index in run.failed:
            ts = self.scheduler.tasks.get(run.functions[index].key)
            if ts is not None and ts.exception is not None:
                # A list: Dask restores what is in lists only, where nothing goes over a wire.
                errors.append([index, ts.exception, ts.traceback, ts.traceback_text or ""])
        return {"report": pickle.dumps(run.report()), "errors": errors}

    async def over(self, run_ids: list[str]) -> list[str]:
        """Return which of these runs are over or unknown."""
        runs = self.plugin.runs
        return [run_id for run_id in run_ids if (run := runs.get(run_id)) is None or run.over]

    async def states(self, keys: list[Any]) -> list[tuple[Any, str]]:
        """Return (key, state) of those tasks that Dask knows."""
        tasks = self.scheduler.tasks
        return [(key, ts.state) for key in keys if (ts := tasks.get(key)) is not None]

    async def progress(self, run_id: str) -> dict[str, int]:
        """Count the functions of a run by state; empty for an unknown run."""
        if run := self.plugin.runs.get(run_id):
            return run.counted()
        past = self._stopped.get(run_id)
        return {} if past is None else dict(past.report.counts)

    async def close(self, run_id: str) -> None:
        """Forget a run whose graph never came."""
        if run := self.plugin.runs.get(run_id):
            self.plugin.forget(run)

    async def find(self, run_id: str, label: str) -> Any:
        """Return the key of a function's result; None if the run does not keep it."""
        if run := self.plugin.runs.get(run_id):
            await run.arrived.wait()
            for index in run.spec.wanted:
                record = run.functions[index]
                if record.row.label == label:
                    return record.key
        return None

    async def want(self, keys: list[Any], client: str) -> None:
        """Keep results for a client, and report their states on its stream."""
        known = [key for key in keys if key in self.scheduler.tasks]
        self.scheduler.client_desires_keys(known, client)
        if len(known) < len(keys):
            gone = list(set(keys).difference(known))
            self.scheduler.report({"op": "cancelled-keys", "keys": gone}, client=client)

    async def arrived(self, run_id: str) -> bool:
        """Wait until the graph of a run has come, or will not; return whether it has."""
        run = self.plugin.runs.get(run_id)
        if run is None:
            return False
        await run.arrived.wait()
        return run.spec.run_id in self.plugin.runs

    async def forget(self, run_ids: list[str]) -> None:
        """Let detached runs go."""
        for run_id in run_ids:
            self._stopped.pop(run_id, None)
            if run := self.plugin.runs.get(run_id):
                self.let_go(run)

    def let_go(self, run: RunRecord) -> None:
        """Stop keeping the results of a detached run."""
        run.kept, run.forgotten = False, True
        keeper = self.scheduler.clients.get(run.spec.keeper)
        if keeper is not None:
            keys = [ts.key for ts in keeper.wants_what]
            self.scheduler.client_releases_keys(keys=keys, client=run.spec.keeper)
            del self.scheduler.clients[run.spec.keeper]

    async def stop(self, run_id: str, kind: StopKind, problem: str) -> None:
        """Stop a run, whoever wants it."""
        if run := self.plugin.runs.get(run_id):
            self.plugin.stop(run, Stop(kind, problem))

    def gone(self, worker: str, started: list[tuple[int, float]]) -> None:
        """Record the last word of a worker that closes: what it has started."""
        self.plugin.losses.told(worker, End(dict(started)))

    async def known(self) -> list[dict[str, Any]]:
        """Return facts about all runs, the oldest first, stopped detached ones included."""
        facts: list[tuple[RunRecord | StoppedRun, dict[str, Any]]] = [
            (run, {"alive": True, "detached": run.kept, "forgotten": run.forgotten})
            for run in self.plugin.runs.values()
        ]
        facts += [
            (past, {"alive": False, "detached": True, "forgotten": False})
            for past in self._stopped.values()
            if past.spec.detach
        ]
        return [
            {
                "run_id": run.spec.run_id,
                "dag_id": run.spec.dag_id,
                "own_id": run.spec.own_id,
                "started": run.opened,
                "priority": run.spec.priority,
                "counts": run.report.counts if isinstance(run, StoppedRun) else run.counted(),
                **state,
            }
            for run, state in sorted(facts, key=lambda fact: fact[0].opened)
        ]

    async def outline(self, run_id: str) -> bytes | None:
        """Return what it takes to follow a run; None if it is not known."""
        if run := self.plugin.runs.get(run_id):
            await run.arrived.wait()
            return run.spec.outline
        past = self._stopped.get(run_id)
        return None if past is None else past.spec.outline

    async def uninstall(self, force: bool) -> list[str]:
        """Take everything off the cluster, unless runs are in the way: the answer names them."""
        runs = self.plugin.runs.values()
        busy = [run.spec.dag_id for run in runs if run.kept or not run.over]
        if not busy or force:
            await self.plugin.uninstall()
            return []
        return busy
