"""Runs that make no progress: nothing that runs can end their wait."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from handoff_dask.attempts.states import PLACED
from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import Waiting
from handoff_dask.scheduler.records import RunRecord, UnitRecord
from handoff_dask.scheduler.runs import Runs

if TYPE_CHECKING:
    from distributed import Scheduler

#: Reasons to hold a function that only a change of the cluster resolves.
LACKING = ("no workers", "impossible", "binding", "paused")
#: How many reasons a warning names.
SHOWN = 3


class Stalls:
    """A snapshot of all runs: which of them make no progress, and why.

    A function that waits for a run of its own, started by :func:`execute` or ``Run.result``, keeps
    its cost. If its run needs that cost, both wait for ever; so do functions that wait for each
    other in a circle. To find them, start from all functions that wait for a run and remove those
    whose runs can go on, until none is left to remove.
    """

    def __init__(self, scheduler: Scheduler, engine: Engine, runs: Runs) -> None:
        self._scheduler = scheduler
        self._questions = engine.questions
        self._runs = runs
        #: {run: [(key of a held function, how many are held for the same, why)]}
        self._holds: dict[str, list[tuple[list[Any], Waiting]]] = {}
        #: The runs that functions wait for: {key: (function, its runs)}.
        self._nested = self._find_nested()
        while True:
            free = [
                key
                for key, (_, runs) in self._nested.items()
                if not any(self._still(run) for run in runs)
            ]
            if not free:
                break
            for key in free:
                del self._nested[key]

    def _find_nested(self) -> dict[Hashable, tuple[UnitRecord, list[RunRecord]]]:
        nested: dict[Hashable, tuple[UnitRecord, list[RunRecord]]] = {}
        for run in self._runs.values():
            outer = self._runs.functions.get(run.spec.within)
            if outer is not None and isinstance(outer.state, PLACED):
                ts = self._scheduler.tasks[outer.key]
                if ts.processing_on is not None and ts in ts.processing_on.long_running:
                    nested.setdefault(outer.key, (outer, []))[1].append(run)
        return nested

    def reason(self, run: RunRecord) -> str | None:
        """Say why a run makes no progress; None if it makes some, or has ended."""
        if not self._still(run):
            return None
        reasons = list(dict.fromkeys(self._reasons(run)))
        more = [f"and {len(reasons) - SHOWN} reasons more"] if len(reasons) > SHOWN else []
        return "; ".join(reasons[:SHOWN] + more) or None

    def _still(self, run: RunRecord) -> bool:
        running = [record for record in run.units if isinstance(record.state, PLACED)]
        if any(record.key not in self._nested for record in running):
            return False
        holds = self._holds_of(run)
        if any(self._may_run(keys[0], why) for keys, why in holds):
            return False
        return bool(running or holds)

    def _holds_of(self, run: RunRecord) -> list[tuple[list[Any], Waiting]]:
        run_id = run.spec.run_id
        if run_id not in self._holds:
            self._holds[run_id] = self._questions.holds(run_id)
        return self._holds[run_id]

    def _may_run(self, key: Any, why: Waiting) -> bool:
        """Whether a held function can start once everything that moves has ended."""
        if why.reason in LACKING:
            return False
        return why.reason != "resources" or any(not self._short(key, w) for w in why.workers)

    def _short(self, key: Any, worker: str) -> dict[str, float]:
        """Return what a function needs but a worker lacks beside the functions that wait."""
        free = self._questions.capacity(worker)
        for outer, _ in self._nested.values():
            if outer.worker == worker:
                for name, amount in outer.cost.items():
                    free[name] = free.get(name, 0) - amount
        cost = self._runs.functions[key].cost
        return {name: needs for name, needs in cost.items() if needs > free.get(name, 0) + 1e-9}

    def _reasons(self, run: RunRecord) -> Iterator[str]:
        for keys, why in self._holds_of(run):
            key, number = keys[0], sum(self._runs.functions[key].size for key in keys)
            who = _name(self._runs.functions[key]) + (f" and {number - 1} more" * (number > 1))
            if why.reason == "no workers":
                yield self._without_workers()
            elif why.reason == "paused":
                yield f"{who}: the workers that could run it are paused: {', '.join(why.workers)}"
            elif why.reason in LACKING:
                yield f"{who}: {why.finding}"
            else:
                yield from self._blocked(who, key, why)
        for record in run.units:
            if isinstance(record.state, PLACED):
                for inner in self._nested[record.key][1]:
                    if self._still(inner):
                        yield from self._reasons(inner)

    def _without_workers(self) -> str:
        if number := len(self._scheduler.workers):
            return f"none of the cluster's {number} workers can run functions"
        return "the cluster has no workers; the run waits for one"

    def _blocked(self, who: str, key: Any, why: Waiting) -> Iterator[str]:
        lacks: dict[str, float] = {}
        for worker in why.workers:
            lacks.update(self._short(key, worker))
        needs = ", ".join(f"{name} {amount:g}" for name, amount in lacks.items())
        for outer, _ in self._nested.values():
            if outer.worker in why.workers and lacks.keys() & outer.cost.keys():
                yield (
                    f"{who} needs {needs}, and {_name(outer)} holds {_amounts(outer.cost, lacks)} "
                    f"on {outer.worker} while it waits for a run of its own: neither can go on. "
                    f"Give {outer.row.label} a lower cost, or add a worker with room"
                )


def _name(record: UnitRecord) -> str:
    return f"function {record.row.label} of {record.run.spec.dag_id!r}"


def _amounts(cost: Mapping[str, float], names: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {cost[name]:g}" for name in names if name in cost)
