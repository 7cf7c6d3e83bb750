"""What clients and workers may ask the scheduler's plugin."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

from handoff_dask import collector
from handoff_dask.placement.events import Waiting, WorkerSpec
from handoff_dask.records import FunctionRecord, FunctionRow, RunRecord, RunSpec, function_specs
from handoff_dask.worker import check_capabilities

if TYPE_CHECKING:
    from handoff_dask.plugin import HandoffPlugin

#: Seconds that a question waits for workers that have joined but not said what they offer.
PATIENCE = 10.0


class Service:
    """The handlers of a plugin, installed on its scheduler under ``handoff_...``."""

    def __init__(self, plugin: HandoffPlugin) -> None:
        self.plugin = plugin
        self.scheduler = plugin.scheduler
        self.engine = plugin.engine
        self._news = asyncio.Event()

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
            self.explain,
            self.why,
            self.progress,
            self.capabilities,
            self.declare,
            self.nodes,
            self.available,
        )
        return {f"handoff_{handler.__name__}": handler for handler in handlers}

    # Runs

    async def open(self, spec: bytes) -> bytes | None:
        """Take down a run; the answer is None, or a node that no worker can hold and why."""
        await self._settled()
        with collector.paused():
            run = self._opened(pickle.loads(spec))
        run_id = run.spec.run_id
        if not run.functions:
            self.plugin.forget(run)  # no graph will follow, and nothing to tell its end by
            return None
        # Without any worker, and with time to wait for one, nothing is impossible yet.
        if not run.spec.placement_timeout and self.plugin.names:
            for key, finding in self.engine.verdicts(run_id):
                if not finding.able:
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

    async def explain(self, spec: bytes) -> bytes:
        """Return which workers could run each node of a run that is not to be run."""
        await self._settled()
        run = self._opened(pickle.loads(spec))
        findings = [finding for _, finding in self.engine.verdicts(run.spec.run_id)]
        self.plugin.forget(run)
        return pickle.dumps(findings)

    async def why(self, run_id: str) -> bytes:
        """Return, for each node that does not run, what it waits for or which nodes it lacks."""
        found: dict[int, Any] = {}
        run = self.plugin.runs.get(run_id)
        for record in [] if run is None else run.functions:
            if record.state == "held":
                found[record.index] = self.engine.why(record.key)
            elif record.state == "waiting":
                found[record.index] = [
                    i for i in record.row.dependencies if record.run.functions[i].state != "done"
                ]
        return pickle.dumps(found)

    async def progress(self, run_id: str, held: int) -> bytes:
        """Return how many functions are in which state, and what the first `held` wait for."""
        run = self.plugin.runs.get(run_id)
        if run is None:
            return pickle.dumps(({}, {}))
        # Without any held one, nobody needs to be asked.
        records = run.functions if held and run.counts["held"] else []
        some = islice((r for r in records if r.state == "held" and r.row.source is None), held)
        why = {r.index: self.engine.why(r.key) or Waiting("next") for r in some}
        return pickle.dumps((dict(run.counts), why))

    async def report(self, run_id: str) -> dict[str, Any] | None:
        """Return the report of a run, and the errors of its nodes as Dask keeps them."""
        run = self.plugin.runs.get(run_id)
        if run is None:
            return None
        errors = []
        for index in run.failed:
            ts = self.scheduler.tasks.get(run.functions[index].key)
            if ts is not None and ts.exception is not None:
                errors.append((index, ts.exception, ts.traceback))
        return {"report": pickle.dumps(run.report()), "errors": errors}

    async def close(self, run_id: str) -> None:
        """Forget a run whose graph never came."""
        if run := self.plugin.runs.get(run_id):
            self.plugin.forget(run)

    def _latest(self, dag_id: str) -> RunRecord | None:
        runs = [run for run in self.plugin.runs.values() if run.spec.dag_id == dag_id]
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
        found = [
            run
            for run in self.plugin.runs.values()
            if run.spec.dag_id == dag_id and run.spec.detach
        ]
        for run in found:
            keeper = self.scheduler.clients[run.spec.keeper]
            keys = [ts.key for ts in keeper.wants_what]
            self.scheduler.client_releases_keys(keys=keys, client=run.spec.keeper)
            del self.scheduler.clients[run.spec.keeper]
        return bool(found)

    # Workers

    async def capabilities(self, worker: str, capabilities: dict[str, float]) -> None:
        """Take down what a worker offers; from then on it is given functions."""
        ws = self.scheduler.workers.get(worker)
        if ws is None:
            return
        names: dict[str, str] = {}
        offered: dict[str, float] = {}
        for name, amount in capabilities.items():
            if names.setdefault(name.lower(), name) == name:
                offered[name.lower()] = amount
        self.plugin.renamed(worker, names)
        self.engine.worker_added(
            WorkerSpec(
                address=worker,
                name=str(ws.name),
                host=ws.host,
                capacity=offered,
                slots=ws.nthreads,
                running=ws in self.scheduler.running,
            )
        )
        self._news.set()
        self.plugin.ask()

    async def _settled(self) -> None:
        """Wait until every worker has said what it offers."""
        deadline = time.monotonic() + PATIENCE
        while self.scheduler.workers.keys() - self.plugin.names.keys():
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), deadline - time.monotonic())
            except asyncio.TimeoutError:
                return

    def _resolve(self, worker: str) -> str | None:
        """Return the address of a worker called by its address or name."""
        if worker in self.scheduler.workers:
            return worker
        for address, ws in self.scheduler.workers.items():
            if str(ws.name) == worker:
                return address
        return None

    def _unknown(self) -> bytes:
        return pickle.dumps((None, [str(ws.name) for ws in self.scheduler.workers.values()]))

    async def declare(self, worker: str, capabilities: dict[str, float]) -> bytes:
        """Have a worker declare capabilities; the answer is what it offers then."""
        await self._settled()
        address = self._resolve(worker)
        if address is None:
            return self._unknown()
        offered = await self.scheduler.rpc(address).handoff_declare(
            capabilities=check_capabilities(capabilities)
        )
        return pickle.dumps((address, offered))

    async def nodes(self) -> dict[str, dict[str, Any]]:
        """Return what each worker offers, and what it answers to."""
        await self._settled()
        return {
            address: {
                "capabilities": dict(self.engine.capacity(address)),
                "names": [address, str(ws.name), ws.host],
            }
            for address, ws in self.scheduler.workers.items()
            if address in self.plugin.names
        }

    async def available(self, worker: str, cost: dict[str, float]) -> bytes:
        """Tell whether a worker has a cost free at this moment."""
        await self._settled()
        address = self._resolve(worker)
        if address is None:
            return self._unknown()
        free = self.engine.free(address)
        return pickle.dumps((address, all(free.get(n, 0) >= v for n, v in cost.items())))
