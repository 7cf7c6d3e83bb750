"""What clients may ask the scheduler's plugin about runs."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from inspect import iscoroutinefunction
from itertools import islice
from typing import TYPE_CHECKING, Any

from handoff_dask.attempts.endings import Endings
from handoff_dask.attempts.losses import End, by_placement
from handoff_dask.attempts.states import PLACED, Waiting
from handoff_dask.compat import scheduler as compat
from handoff_dask.placement.engine import Engine
from handoff_dask.scheduler.inputs import Inputs
from handoff_dask.scheduler.inquiries import Inquiries
from handoff_dask.scheduler.measurements import Measurements
from handoff_dask.scheduler.member_requests import MemberRequests
from handoff_dask.scheduler.reasons import Reasons
from handoff_dask.scheduler.records import BundleRecord, RunRecord, UnitRecord
from handoff_dask.scheduler.registry import Registry
from handoff_dask.scheduler.runs import Runs, StoppedRun
from handoff_dask.scheduler.stalls import Stalls
from handoff_dask.wire.messages import Opened, RunSpec, Stop, StopKind

if TYPE_CHECKING:
    from distributed import Scheduler

#: Seconds between looks at whether durations are known that a client waits for.
LOOK = 0.005


@dataclass(eq=False)
class Service:
    """The handlers about runs, installed on the scheduler under ``handoff_...``."""

    scheduler: Scheduler
    engine: Engine
    runs: Runs
    registry: Registry
    endings: Endings
    inputs: Inputs
    inquiries: Inquiries
    reasons: Reasons
    requests: MemberRequests
    measurements: Measurements
    #: Takes everything of Handoff off the cluster.
    uninstall_all: Callable[[], Awaitable[None]]

    @property
    def handlers(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """All coroutine methods, by the name under which the scheduler knows them."""
        names = [name for name, method in vars(Service).items() if iscoroutinefunction(method)]
        return {f"handoff_{name}": getattr(self, name) for name in names}

    # Runs

    async def open(self, spec: bytes) -> bytes:
        """Record a run; the answer is an :class:`Opened`, pickled."""
        await self.registry.settled()
        described = RunSpec.unpacked(spec)
        await self.measurements.open(described.learned)
        refused, run = self.runs.open(described, spec)
        if run is None:
            return pickle.dumps(Opened(refused, {}, set(), {}, None, False))
        if not run.spec.functions:  # no graph will follow, and nothing to tell its end by
            if run.kept:
                run.arrived.set()
            else:
                self.runs.forget(run)
        return pickle.dumps(self._opened(described))

    def _opened(self, spec: RunSpec) -> Opened:
        questions = self.engine.questions
        seconds = self.runs.seconds_of(spec, spec.codes)
        threads = {row.index: questions.threads(row.cost) for row in spec.kinds if not row.pin}
        longer = self.measurements.longer(spec, seconds)
        nannies = all(ws.nanny for ws in self.scheduler.workers.values())
        unavailable = None
        if spec.isolated is not None and (problems := self.registry.unavailable):
            worker, problem = next(iter(problems.items()))
            unavailable = spec.isolated, f"worker {worker} cannot do that: {problem}"
        return Opened(None, seconds, longer, threads, unavailable, nannies)

    async def learned(self, run_id: str, prefixes: list[str], portions: int) -> dict[str, float]:
        """Return how long codes take (s), as soon as that is known well, or more is wanted.

        `portions` is how many were sent of the run; they may come later than this question.
        """
        settled = self.engine.questions.is_settled
        while (run := self.runs.get(run_id)) is not None and run.stop is None:
            if all(map(settled, prefixes)) or self.runs.is_low(run, portions):
                break
            await asyncio.sleep(LOOK)
        return {} if run is None else self.runs.seconds_of(run.spec, prefixes)

    async def explain(self, spec: bytes) -> bytes:
        """Return which workers could run each node of a run that is not to be started.

        Also what is still ending on the cluster, in words.
        """
        await self.registry.settled()
        with self.runs.imagined(RunSpec.unpacked(spec)) as run_id:
            findings = [finding for _, finding in self.engine.questions.verdicts(run_id)]
        return pickle.dumps((findings, self.endings.describe()))

    async def why(self, run_id: str, held: int | None = None) -> bytes:
        """Return, for each node that does not run, what it waits for or which nodes it lacks.

        For a node that waits for its inputs on a worker: these, and who has them. With `held`, only
        at most that many held nodes.
        """
        reasons: dict[int, Any] = {}
        why: Any
        run = self.runs.get(run_id)
        records: Iterable[UnitRecord] = () if run is None else run.units
        if held is not None:
            records = islice((r for r in records if r.state.shown == "held"), held)
        for record in records:
            state, why = record.state, None
            if state.shown == "held":
                why = self.reasons.why(record)
            elif isinstance(state, PLACED) and (inputs := self.inputs.fetching(record)):
                why = tuple(inputs)
            elif isinstance(state, Waiting):
                lacking = record.run.is_lacking
                why = [index for index in record.row.dependencies if lacking(index)]
            if why is not None:
                for index, _ in islice(record.attempts_to_come(), held):
                    reasons[index] = why
        # A transform comes after its function, and has the last word on what that waits for.
        return pickle.dumps(dict(sorted(reasons.items())))

    async def holds(self, run_id: str) -> bytes:
        """Return what functions of a run are held for: how many, what they cost, and why."""
        run = self.runs.get(run_id)
        return pickle.dumps([] if run is None else self.reasons.holds(run))

    async def stalled(self, run_id: str | None = None, dag_id: str = "") -> str | None:
        """Say why a run, or the latest of a DAG, makes no progress; None if it makes some."""
        runs = self.runs
        called = [run for run in runs.values() if run.spec.dag_id == dag_id]
        run = runs.get(run_id) if run_id is not None else called[-1] if called else None
        return None if run is None else Stalls(self.scheduler, self.engine, self.runs).reason(run)

    async def report(self, run_id: str) -> dict[str, Any] | None:
        """Return the report of a run, and the errors of its nodes as Dask keeps them."""
        run = self.runs.get(run_id)
        if run is None:
            past = self.runs.stopped.get(run_id)
            if past is None:
                return None
            kept = [[index, error, None, ""] for index, error in past.errors.items()]
            return {"report": pickle.dumps(past.report), "errors": kept}
        errors = []
        for index in run.failed:
            if index in run.errors:
                errors.append([index, run.errors[index], None, ""])
                continue
            ts = self.scheduler.tasks.get(run.unit_key(index))
            if ts is not None and ts.exception is not None:
                # A list: Dask restores what is in lists only, where nothing goes over a wire.
                errors.append([index, ts.exception, ts.traceback, ts.traceback_text or ""])
        return {"report": pickle.dumps(run.report()), "errors": errors}

    async def over(self, run_ids: list[str]) -> list[str]:
        """Return which of these runs are over or unknown."""
        runs = self.runs
        return [run_id for run_id in run_ids if (run := runs.get(run_id)) is None or run.over]

    async def states(self, keys: list[Any]) -> list[tuple[Any, str]]:
        """Return (key, state) of those tasks that Dask knows."""
        tasks = self.scheduler.tasks
        return [(key, ts.state) for key in keys if (ts := tasks.get(key)) is not None]

    async def progress(self, run_id: str) -> dict[str, Any]:
        """Return the functions of a run by state, and the seconds that it will still take.

        For an unknown run there are no counts.
        """
        if run := self.runs.get(run_id):
            remaining = self.engine.questions.remaining(run_id, time.monotonic())
            return {"counts": run.counted(), "remaining": remaining}
        past = self.runs.stopped.get(run_id)
        return {"counts": {} if past is None else dict(past.report.counts), "remaining": None}

    async def close(self, run_id: str) -> None:
        """Forget a run whose graph never came."""
        if run := self.runs.get(run_id):
            self.runs.forget(run)

    async def find(self, run_id: str, label: str) -> Any:
        """Return the key of a function's result; None if the run does not keep it."""
        if run := self.runs.get(run_id):
            await run.arrived.wait()
            for record in run.units:
                if isinstance(record, BundleRecord):
                    rows = map(run.row, record.bundle.members)
                    index = next((r.index for r in rows if r.wanted and r.label == label), None)
                    if index is not None:
                        return run.key_of(index)
                elif record.row.wanted and record.row.label == label:
                    return record.key
        return None

    async def want(self, keys: list[Any], client: str) -> None:
        """Keep results for a client, and report their states on its stream."""
        for key in keys:
            self.requests.take_by_key(key, client)
        known = [key for key in keys if key in self.scheduler.tasks]
        self.scheduler.client_desires_keys(known, client)
        if len(known) < len(keys):
            gone = list(set(keys).difference(known))
            compat.report_cancelled(self.scheduler, gone, [client])

    async def arrived(self, run_id: str, portion: int | None = None) -> bool:
        """Wait until all of a run has come or a portion has, or will not; return whether it has."""
        run = self.runs.get(run_id)
        if run is None:
            return False
        if portion is None:
            await run.arrived.wait()
        else:
            while run.graphs <= portion and run.stop is None and run_id in self.runs:
                await asyncio.sleep(LOOK)
        return run_id in self.runs and run.stop is None

    async def sent(self, keys: list[Any]) -> None:
        """Wait for functions of runs that are still being sent, given the keys of their results."""
        for key in keys:
            while key not in self.scheduler.tasks and self.runs.run_to_bring(key):
                await asyncio.sleep(LOOK)

    async def forget(self, run_ids: list[str]) -> None:
        """Let detached runs go."""
        for run_id in run_ids:
            self.runs.stopped.pop(run_id, None)
            if run := self.runs.get(run_id):
                self.runs.release(run)

    async def stop(self, run_id: str, kind: StopKind, problem: str) -> None:
        """Stop a run, whoever wants it."""
        if run := self.runs.get(run_id):
            self.runs.stop(run, Stop(kind, problem))

    def last_word(self, worker: str, started: list[Sequence[Any]]) -> None:
        """Record the last word of a worker that closes: what it has started."""
        self.inquiries.worker_spoke(worker, End(by_placement(started)))

    async def known(self) -> list[dict[str, Any]]:
        """Return facts about all runs, the oldest first, stopped detached ones included."""
        facts: list[tuple[RunRecord | StoppedRun, dict[str, Any]]] = [
            (run, {"alive": True, "detached": run.kept, "forgotten": run.forgotten})
            for run in self.runs.values()
        ]
        facts += [
            (past, {"alive": False, "detached": True, "forgotten": False})
            for past in self.runs.stopped.values()
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

    async def described(self, run_id: str) -> tuple[bytes, list[bytes]] | None:
        """Return the messages that opened a run and brought its functions; None if unknown."""
        if run := self.runs.get(run_id):
            await run.arrived.wait()
            return run.opening, run.portions
        past = self.runs.stopped.get(run_id)
        return None if past is None else past.described

    async def uninstall(self, force: bool) -> list[str]:
        """Take everything off the cluster, unless runs are in the way: the answer names them."""
        runs = self.runs.values()
        busy = [run.spec.dag_id for run in runs if run.kept or not run.over]
        if not busy or force:
            await self.uninstall_all()
            return []
        return busy
