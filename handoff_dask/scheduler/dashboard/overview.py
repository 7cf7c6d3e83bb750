"""The state of a plugin as panels, metrics and JSON show it; reading it changes nothing.

Nothing here goes through the functions of a run: there may be 100,000. Counts are kept by the
records and by the engine's queues.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import islice
from typing import TYPE_CHECKING, Any, cast, get_args

from handoff_dask.attempts.states import STATES
from handoff_dask.model.attempt import Outcome
from handoff_dask.placement.events import THREADS
from handoff_dask.scheduler.dashboard.history import RunView, plain

if TYPE_CHECKING:
    from distributed import Scheduler

    from handoff_dask.scheduler.plugin import HandoffPlugin
    from handoff_dask.scheduler.records import FunctionRecord

#: How attempts may end.
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
#: Under this name the scheduler knows the plugin.
PLUGIN = "handoff"


def plugin_of(scheduler: Scheduler) -> HandoffPlugin | None:
    """Return the plugin that a scheduler has now."""
    plugin: HandoffPlugin | None = cast(Any, scheduler.plugins.get(PLUGIN))
    return plugin


def worker_name(plugin: HandoffPlugin, address: str) -> str:
    """Return what a worker is called."""
    ws = plugin.scheduler.workers.get(address)
    return address if ws is None else str(ws.name)


# Runs


def states(plugin: HandoffPlugin) -> dict[str, int]:
    """Count the functions of all runs by state."""
    counts: Counter[str] = Counter()
    for run in plugin.runs.values():
        counts.update(run.counts)
    return {state: counts[state] for state in STATES}


def runs(plugin: HandoffPlugin, most: int) -> list[RunView]:
    """Return the runs that are there, those with most left to do first."""

    def left(item: tuple[int, Any]) -> tuple[int, int]:
        number, run = item
        counts = run.counts
        return counts["waiting"] + counts["held"] + counts["running"], number

    return [RunView.of(run) for _, run in nlargest(most, enumerate(plugin.runs.values()), left)]


@dataclass(frozen=True, slots=True)
class Held:
    """Functions that wait for the same."""

    count: int
    cost: Mapping[str, float]
    why: str
    #: One of them, and its run.
    example: str
    dag_id: str

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "functions": self.count,
            "cost": dict(self.cost),
            "why": self.why,
            "example": self.example,
            "dag_id": self.dag_id,
        }


def held(plugin: HandoffPlugin, most: int) -> list[Held]:
    """Return what holds most functions, and why."""
    found: list[Held] = []
    for count, key in plugin.engine.questions.backlog(most).largest:
        record = plugin.records.get(key)
        if record is not None:
            why = plugin.endings.why(record)
            text = str(why)
            for address in why.workers:
                text = text.replace(address, worker_name(plugin, address))
            example = plain(record.row.label)
            found.append(Held(count, record.cost, text, example, record.run.spec.dag_id))
    return found


# Workers


def running(plugin: HandoffPlugin, most: int) -> Iterator[tuple[str, FunctionRecord]]:
    """Yield functions that run and where, by worker; from each worker its share of `most`."""
    addresses = list(plugin.registry.names)
    share = max(1, most // max(1, len(addresses)))
    for address in addresses:
        records = map(plugin.records.get, plugin.engine.questions.placed(address))
        functions = (r for r in records if r is not None and r.row.source is None)
        for record in islice(functions, share):
            yield address, record


@dataclass(slots=True)
class Amounts:
    """Of one resource."""

    declared: float = 0.0
    claimed: float = 0.0
    #: By functions that are held.
    asked: float = 0.0


@dataclass(slots=True)
class Usage:
    """What is declared, claimed and asked for, by resource."""

    total: dict[str, Amounts] = field(default_factory=dict)
    #: By address; asked is what may go nowhere else.
    workers: dict[str, dict[str, Amounts]] = field(default_factory=dict)


def usage(plugin: HandoffPlugin) -> Usage:
    """Sum up what workers declare and what is claimed and asked of them."""
    found = Usage()
    engine = plugin.engine
    backlog = engine.questions.backlog(0)
    for address in plugin.registry.names:
        asked_of: Mapping[str, float] = backlog.asked_of.get(address, {})
        free, slots = engine.questions.slots(address)
        claimed = engine.questions.claimed(address)
        amounts = {THREADS: Amounts(slots, slots - free, asked_of.get(THREADS, 0.0))}
        for name, declared in engine.questions.capacity(address).items():
            amounts[name] = Amounts(declared, claimed[name], asked_of.get(name, 0.0))
        found.workers[address] = amounts
        for name, amount in amounts.items():
            total = found.total.setdefault(name, Amounts())
            total.declared += amount.declared
            total.claimed += amount.claimed
    for name, asked in backlog.asked.items():
        found.total.setdefault(name, Amounts()).asked = asked
    return found
