"""Inputs on their way to functions that were placed: their progress, and when to give up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from handoff_dask import config
from handoff_dask.attempts.losses import Lost
from handoff_dask.compat import transfers
from handoff_dask.errors import TransferError
from handoff_dask.scheduler.records import UnitRecord
from handoff_dask.wire.keys import index_of, is_collected, is_shared, run_of

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState

#: Seconds between two looks at transfers, at most.
PERIOD = 10.0
#: How many workers may die while a value is on its way to them.
DEATHS = 2
#: How many inputs an error names besides the first.
SHOWN = 3
#: What to do, for the errors.
_UNUSABLE = (
    ". Return something that can be pickled, or run both on one worker: node=collocated({producer})"
)
_DEADLY = (
    ". Look at the logs of these workers. If opening the result ended them, return something else, "
    "or run both on one worker: node=collocated({producer})"
)
_STALLED = ". Look at that worker and the network, or raise the setting handoff.fetch-timeout"


class Progress:
    """When each input of a function last made progress.

    A transfer passes through phases, each with its own measure, and may return to an earlier one.
    Progress is a change within a phase.
    """

    def __init__(self) -> None:
        self._amounts: dict[tuple[Any, str], float] = {}
        self._since: dict[Any, float] = {}

    def idle(self, key: Any, amounts: Iterable[tuple[str, float]], now: float) -> float:
        """Record the amounts of some phases; return the seconds without progress."""
        for phase, amount in amounts:
            before = self._amounts.setdefault((key, phase), amount)
            if amount != before:
                self._amounts[key, phase] = amount
                self._since[key] = now
        return now - self._since.setdefault(key, now)

    def reset(self) -> None:
        """Start anew."""
        self._amounts.clear()
        self._since.clear()


@dataclass(frozen=True, slots=True, eq=False)
class _Watch:
    """A function that was placed where some of its inputs were not."""

    record: UnitRecord
    progress: Progress
    inputs: tuple[TaskState, ...]


@dataclass(eq=False)
class Inputs:
    """Ends the wait of functions for inputs that never arrive.

    A value that cannot be sent or opened is reported by the worker that needs it. A value that
    makes no progress on its way for ``handoff.fetch-timeout`` counts as lost: it is computed or
    sent once more, and then its consumer fails. So does who needs a value while workers that it
    was sent to have died: whatever opens it may end with that.
    """

    scheduler: Scheduler
    functions: Mapping[Any, UnitRecord]
    #: Returns the workers that could hold a function.
    able: Callable[[UnitRecord], Collection[str]]
    #: Returns the function whose result a task has, and whether that is "serialized "; None if it
    #: is of no run.
    maker: Callable[[Any], tuple[str, str] | None]

    def __post_init__(self) -> None:
        self.limit = config.seconds("fetch-timeout")
        self._period = min(PERIOD, max(self.limit / 6, 0.01))
        #: Functions that were placed where an input was not.
        self._watched: dict[Any, _Watch] = {}
        #: Of values that were on their way to workers which died: {worker: its name and end}.
        self._deaths: WeakKeyDictionary[TaskState, dict[str, str]] = WeakKeyDictionary()
        self._timer: asyncio.TimerHandle | None = None
        #: {worker: the task that asks about its transfers}
        self._looks: dict[str, asyncio.Task[None]] = {}

    def close(self) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()
        for look in self._looks.values():
            look.cancel()

    def follow(self, record: UnitRecord, finish: str) -> None:
        """Follow a function from one state to the next."""
        if finish != "processing":
            self._watched.pop(record.key, None)
            if finish == "memory":
                self.trust(record.key)
        elif missing := tuple(self._missing(record)):
            self._watched[record.key] = _Watch(record, Progress(), missing)
            self._wake()

    def _missing(self, record: UnitRecord) -> Iterator[TaskState]:
        """Yield the inputs of a function that its worker has yet to receive."""
        ts = self.scheduler.tasks.get(record.key)
        known = self.functions.get(record.key) is record
        if ts is None or ts.processing_on is None or not known:
            return
        for dependency in ts.dependencies:
            if dependency.who_has and ts.processing_on not in dependency.who_has:
                yield dependency

    def fetching(self, record: UnitRecord) -> list[tuple[int | str, tuple[str, ...]]]:
        """Return the inputs that a function waits for on its worker, and who has them.

        An input is given by the index of its node, or by its key if it is not of the run.
        """
        if record.key not in self._watched:
            return []
        inputs = list(self._missing(record))
        names = [index_of(ts.key) if _is_node(record, ts.key) else str(ts.key) for ts in inputs]
        return list(zip(names, map(_holders, inputs), strict=True))

    def _on(self, worker: str) -> list[_Watch]:
        return [watch for watch in self._watched.values() if watch.record.worker == worker]

    # Values that cannot be sent or opened

    async def unusable(self, worker: str, problems: list[tuple[Any, str]]) -> None:
        """Fail the functions of a worker whose inputs cannot be sent or opened."""
        reasons = dict(problems)
        for watch in self._on(worker):
            for ts in self._missing(watch.record):
                if ts.key in reasons:
                    self._give_up(watch.record, ts, reasons[ts.key], _UNUSABLE)
                    break

    def _give_up(self, record: UnitRecord, ts: TaskState, problem: str, advice: str) -> None:
        """Take a function back from its worker; it fails once the worker has given it up."""
        record.doom = self._error(ts, problem, advice)
        stimulus_id = f"handoff-unfetched-{time.time()}"
        self.scheduler.transitions({record.key: "waiting"}, stimulus_id)

    def _error(self, ts: TaskState, problem: str, advice: str) -> TransferError:
        """Return the error of a function that an input cannot be brought to."""
        producer, what = self._named(ts)
        if self.maker(ts.key) is None:
            advice = ""
        text = f"{what} {problem}{advice.format(producer=producer)}"
        return TransferError(producer, ts.type or "", text)

    def _named(self, ts: TaskState) -> tuple[str, str]:
        """Return who made an input, and what to call it."""
        named = self.maker(ts.key)
        if named is None:
            producer, what = str(ts.key), f"the result of the Dask task {ts.key!r}"
        else:
            producer, serialized = named
            what = f"the {serialized}result of function {producer}"
        return producer, f"{what} ({ts.type})" if ts.type else what

    # Values whose way ends with the worker

    def expected(self, record: UnitRecord) -> tuple[TaskState, ...]:
        """Return the inputs that were not on a function's worker when it was placed there."""
        watch = self._watched.get(record.key)
        return () if watch is None else watch.inputs

    def died(self, record: UnitRecord, lost: Lost, reason: str) -> None:
        """Record that a worker died before a function started there whose inputs had to be sent.

        It gets another try: opening one of them may have ended the worker, or not.
        """
        for ts in lost.inputs:
            deaths = self._deaths.setdefault(ts, {})
            deaths[lost.worker] = f"({record.run.workers[lost.worker][0]}) {reason}"
        record.doom = record.doom or self._deadly(lost.inputs)

    def refusal(self, record: UnitRecord, worker: str) -> TransferError | None:
        """Return why a function is not to be sent to a worker: the error that it ends with."""
        if not self._deaths:
            return None
        inputs = self.scheduler.tasks[record.key].dependencies
        return self._deadly(ts for ts in inputs if worker not in _holders(ts))

    def trust(self, key: Any) -> None:
        """Forget the deaths of workers on the way of a function's inputs: it has got them."""
        if self._deaths:
            for ts in self.scheduler.tasks[key].dependencies:
                self._deaths.pop(ts, None)

    def _deadly(self, inputs: Iterable[TaskState]) -> TransferError | None:
        """Return the error of a function that needs these inputs, if workers died of one."""
        deadly = [ts for ts in inputs if len(self._deaths.get(ts, ())) >= DEATHS]
        if not deadly:
            return None
        # Whose type is a class in a module comes first: opening it runs code.
        ts, *others = sorted(deadly, key=lambda ts: "." not in (ts.type or ""))
        deaths = ", ".join(f"{worker} {reason}" for worker, reason in self._deaths[ts].items())
        problem = f"does not arrive: workers died while it was on its way to them: {deaths}"
        if others:
            names = ", ".join(self._named(other)[1] for other in others[:SHOWN])
            more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
            problem += f"; on their way with it: {names}{more}"
        return self._error(ts, problem, _DEADLY)

    # Values that make no progress

    def _wake(self) -> None:
        if self._timer is None and self._watched:
            self._timer = asyncio.get_running_loop().call_later(self._period, self._look_round)

    def _look_round(self) -> None:
        """Look at all workers with functions that wait for inputs."""
        self._timer = None
        workers: set[str] = set()
        for key, watch in list(self._watched.items()):
            if any(self._missing(watch.record)) and watch.record.worker is not None:
                workers.add(watch.record.worker)
            else:
                del self._watched[key]
        for worker in workers - self._looks.keys():
            self._looks[worker] = asyncio.create_task(self._look(worker))
        self._wake()

    async def _look(self, worker: str) -> None:
        try:
            await self._judge(worker)
        finally:
            del self._looks[worker]

    async def _judge(self, worker: str) -> None:
        """Check the progress of inputs that functions on a worker wait for."""
        watches = self._on(worker)
        keys = {ts.key for watch in watches for ts in self._missing(watch.record)}
        answer = await self._ask(worker, "transfers", keys=list(keys))
        if answer is None:
            # It may be running the function already and be too busy to answer. If it is silent for
            # too long, Dask considers it lost.
            for watch in watches:
                watch.progress.reset()
            return
        states = {key: (phase, peer, amount) for key, phase, peer, amount in answer}
        # Workers that have sent nothing yet: they may be busy serializing.
        idle = {peer for _, peer, amount in states.values() if peer is not None and not amount}
        efforts = {peer: await self._ask(peer, "serializing") for peer in idle}
        now, stalled = time.monotonic(), set()
        for watch in watches:
            record, progress = watch.record, watch.progress
            for ts in list(self._missing(record)):
                if ts.key not in states or self._watched.get(record.key) is not watch:
                    continue
                phase, peer, amount = states[ts.key]
                amounts = [(phase, amount)]
                if efforts.get(peer) is not None:
                    amounts.append((f"serializing on {peer}", efforts[peer]))
                if progress.idle(ts.key, amounts, now) >= self.limit:
                    stalled.add(peer)
                    progress.reset()
                    self._stalled(record, ts, peer)
        for peer in stalled - {None}:
            await self._ask(worker, "abandon", peer=peer)

    async def _ask(self, worker: str, handler: str, **kwargs: Any) -> Any:
        """Return the answer of a worker's plugin; None if there is none in time."""
        try:
            call = getattr(self.scheduler.rpc(worker), f"handoff_{handler}")(**kwargs)
            return await asyncio.wait_for(call, max(self._period, 1))
        except Exception:  # an RPC raises what the other side raised
            return None

    def _stalled(self, record: UnitRecord, ts: TaskState, peer: str | None) -> None:
        """Consider an input lost: it gets one more try."""
        producer = self.functions.get(ts.key)
        holders = [peer] if peer in _holders(ts) else _holders(ts)
        if record.refetched or (producer is not None and producer.avoid is not None):
            problem = f"does not arrive from {', '.join(_holders(ts))}: twice it made no progress"
            self._give_up(record, ts, f"{problem} for {self.limit:g} s", _STALLED)
            return
        record.refetched = True
        if producer is not None and len(holders) == len(_holders(ts)):
            self._recompute(producer, holders)

    def _recompute(self, producer: UnitRecord, holders: Sequence[str]) -> None:
        """Have a result that cannot be fetched computed again, if another worker can do it."""
        if producer.row.collocated is not None or not set(self.able(producer)).difference(holders):
            return  # only another transfer can help
        producer.avoid = holders[0]
        for holder in holders:
            stimulus_id = f"handoff-stalled-{time.time()}"
            transfers.drop_replica(self.scheduler, producer.key, holder, stimulus_id)


def _is_node(record: UnitRecord, key: Any) -> bool:
    """Whether a key is that of a node of a function's run."""
    ours = run_of(key) == record.run.spec.run_id
    return ours and not (is_shared(key) or is_collected(key))


def _holders(ts: TaskState) -> tuple[str, ...]:
    return tuple(ws.address for ws in ts.who_has or ())
