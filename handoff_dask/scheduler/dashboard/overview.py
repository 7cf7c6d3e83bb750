"""What panels, metrics and JSON show, summed up from the self.

Nothing here goes through the functions of a run: there may be 100,000. Records and queues keep
the counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import islice

from distributed import Scheduler

from handoff_dask.attempts.states import PLACED, STATES, UNENDED
from handoff_dask.placement.events import THREADS, Waiting
from handoff_dask.placement.questions import Questions
from handoff_dask.scheduler.dashboard.history import AttemptView, History, RunView, label
from handoff_dask.scheduler.records import RunRecord, UnitRecord


@dataclass(frozen=True, slots=True)
class Held:
    """Functions that wait for the same thing."""

    #: How many.
    functions: int
    #: What each costs, and what they wait for.
    cost: Mapping[str, float]
    why: str
    #: One of the functions, and the DAG it belongs to.
    example: str
    dag_id: str


@dataclass(slots=True)
class Amounts:
    """Of one resource: declared by workers, claimed, and asked for by held functions."""

    declared: float = 0.0
    claimed: float = 0.0
    asked: float = 0.0


@dataclass(slots=True)
class Usage:
    """Amounts by resource: in total, and by worker's address.

    What a worker is asked for is what may go nowhere else.
    """

    total: dict[str, Amounts] = field(default_factory=dict)
    workers: dict[str, dict[str, Amounts]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Overview:
    """The state of Handoff on one scheduler; reading it changes nothing."""

    scheduler: Scheduler
    history: History
    runs: Mapping[str, RunRecord]
    #: The nodes that Dask knows, by key.
    functions: Mapping[Hashable, UnitRecord]
    #: The addresses of the registered workers.
    workers: Collection[str]
    questions: Questions
    #: Returns what a held function waits for.
    why: Callable[[UnitRecord], Waiting]
    #: Counts the attempts that were given up and whose threads still run, by whose they are.
    ending: Callable[[], Mapping[str, int]]

    def worker_name(self, address: str) -> str:
        """Return a worker's name; its address once it is gone."""
        ws = self.scheduler.workers.get(address)
        return address if ws is None else str(ws.name)

    def states(self) -> dict[str, int]:
        """Count the functions of all runs by state."""
        counts: Counter[str] = Counter()
        for run in self.runs.values():
            counts.update(run.counts)
        return {state: counts[state] for state in STATES}

    def largest_runs(self, most: int) -> list[RunView]:
        """Return the runs on the scheduler, those with most left to do first."""

        def left(item: tuple[int, RunRecord]) -> tuple[int, int]:
            number, run = item
            return sum(run.counts[state] for state in UNENDED), number

        largest = nlargest(most, enumerate(self.runs.values()), left)
        return [RunView.of(run) for _, run in largest]

    def held(self, most: int) -> list[Held]:
        """Return what holds most functions, and why."""
        causes: list[Held] = []
        for count, key in self.questions.backlog(most).largest:
            record = self.functions.get(key)
            if record is not None:
                why = self.why(record)
                text = str(why)
                for address in why.workers:
                    text = text.replace(address, self.worker_name(address))
                causes.append(
                    Held(count, record.cost, text, label(record.row), record.run.spec.dag_id)
                )
        return causes

    def placed(self, most: int, now: float) -> Iterator[AttemptView]:
        """Yield attempts that are placed, by worker; of each worker its share of `most`."""
        share = max(1, most // max(1, len(self.workers)))
        for address in list(self.workers):
            records = map(self.functions.get, self.questions.placed(address))
            functions = (r for r in records if r is not None and not r.is_transform)
            for record in islice(functions, share):
                spec, state = record.run.spec, record.state
                if isinstance(state, PLACED):  # else its end is known, but not yet to the engine
                    id_ = spec.run_id, record.index, len(record.entries) + 1
                    since, name = state.placement.at, label(record.row)
                    yield AttemptView(id_, spec.dag_id, name, address, since, now, state.shown)

    def usage(self) -> Usage:
        """Sum up what workers declare and what is claimed and asked of them."""
        usage = Usage()
        questions = self.questions
        backlog = questions.backlog(0)
        for address in self.workers:
            asked_of: Mapping[str, float] = backlog.asked_of.get(address, {})
            free, slots = questions.slots(address)
            claimed = questions.claimed(address)
            amounts = {THREADS: Amounts(slots, slots - free, asked_of.get(THREADS, 0.0))}
            for name, declared in questions.capacity(address).items():
                amounts[name] = Amounts(declared, claimed[name], asked_of.get(name, 0.0))
            usage.workers[address] = amounts
            for name, amount in amounts.items():
                total = usage.total.setdefault(name, Amounts())
                total.declared += amount.declared
                total.claimed += amount.claimed
        for name, asked in backlog.asked.items():
            usage.total.setdefault(name, Amounts()).asked = asked
        return usage
