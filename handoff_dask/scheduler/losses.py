"""What became of attempts whose end nobody reported: of lost workers, and those Dask took back."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distributed import Status

from handoff_dask.compat import scheduler as compat
from handoff_dask.model.attempt import Outcome
from handoff_dask.placement.events import Waiting
from handoff_dask.scheduler.records import FunctionRecord

if TYPE_CHECKING:
    from distributed.scheduler import TaskState

    from handoff_dask.scheduler.plugin import HandoffPlugin

logger = logging.getLogger(__name__)

#: Seconds for a worker or its nanny to answer, and for a nanny to accept the connection.
ANSWER = 10.0
CONNECT = 1.0
#: Seconds between questions to a worker that does not answer.
PAUSE = 0.5
#: Seconds in which a worker whose nanny knows nothing may still say that it closed in order.
LAST_WORD = 1.5


@dataclass(slots=True, eq=False)
class Lost:
    """An attempt whose end nobody reported.

    Attributes
    ----------
    record
        The function, which has no other attempt until this one is settled.
    worker, number
        Where it was placed, and the scheduler's number of the placement.
    stopped
        When it was lost (s since epoch).
    outcome
        What it is called if it was started.
    counts
        Whether it then counts against the function's retries.
    settled
        Whether it is in the ledger already, and only the end of its thread is unknown.
    inputs
        What was not on its worker when it was placed there.
    """

    record: FunctionRecord
    worker: str
    number: int
    stopped: float
    outcome: Outcome
    counts: bool
    settled: bool
    inputs: Sequence[TaskState] = ()


@dataclass(frozen=True, slots=True)
class End:
    """What a worker had started.

    Attributes
    ----------
    started
        {number of the placement: s since epoch}; None if nobody knows: then everything placed
        there counts as started.
    busy
        Those whose threads have not ended.
    reason
        How the worker ended, if it did and that is known.
    """

    started: Mapping[int, float] | None = None
    busy: frozenset[int] = frozenset()
    reason: str | None = None


class Losses:
    """Settles lost attempts: each that was started is in the ledger, and no other.

    A function handed to a worker may be lost with it before it starts. Then it has used up no
    attempt. Who knows is the worker, if it lives or closes in order, and otherwise its nanny. Of a
    worker without a nanny, or whose whole host is gone, nobody knows.
    """

    def __init__(self, plugin: HandoffPlugin) -> None:
        self.plugin = plugin
        #: {worker: address of its nanny, if any, and its id}
        self.nannies: dict[str, tuple[str | None, str]] = {}
        #: Workers that said that they close.
        self.closing: set[str] = set()
        self._open: dict[str, list[Lost]] = {}
        #: The last words of workers.
        self._ends: dict[str, End] = {}
        self._heard = asyncio.Event()
        self._inquiries: dict[str, asyncio.Task[None]] = {}

    def close(self) -> None:
        """Stop asking."""
        for inquiry in self._inquiries.values():
            inquiry.cancel()

    def add(self, record: FunctionRecord, *, settled: bool = False) -> None:
        """Give up a function's attempt, and settle it once it is known what happened to it.

        Parameters
        ----------
        settled
            Whether it is in the ledger already.
        """
        worker = record.worker
        assert worker is not None
        ts = self.plugin.scheduler.tasks[record.key]
        number, died = compat.placement_number(ts), compat.died_under(ts)
        self.plugin.endings.begin(record, number)
        gone = worker not in self.plugin.scheduler.workers
        lost = Lost(
            record,
            worker,
            number,
            time.time(),
            "worker-lost" if gone else "cancelled",
            died and gone and worker not in self.closing,
            settled,
            self.plugin.inputs.expected(record),
        )
        if not settled:
            record.lost = lost
        self._open.setdefault(worker, []).append(lost)
        if worker not in self._inquiries:
            self._inquiries[worker] = asyncio.create_task(self._inquire(worker))

    def status_changed(self, worker: str, status: str) -> None:
        """Record that a worker is closing."""
        if status in (Status.closing.name, Status.closing_gracefully.name):
            self.closing.add(worker)

    def told(self, worker: str, end: End) -> None:
        """Record the last word of a worker."""
        if worker in self.nannies:
            self._ends[worker] = end
            self._heard.set()
            self._heard = asyncio.Event()

    def worker_removed(self, worker: str) -> None:
        """Forget a worker, as soon as nothing of it is to be settled."""
        if worker not in self._inquiries:
            self._forget(worker)

    def _forget(self, worker: str) -> None:
        self.nannies.pop(worker, None)
        self._ends.pop(worker, None)
        self.closing.discard(worker)

    async def _inquire(self, worker: str) -> None:
        """Settle what is lost of a worker."""
        try:
            while worker in self._open:
                await asyncio.sleep(0)  # all that is lost with it
                lost = self._open.pop(worker)
                end = await self._ask(worker, lost)
                # What still runs first, so that none of its claims looks free meanwhile.
                for one in sorted(lost, key=lambda one: one.number not in end.busy):
                    self._settle(one, end)
                self.plugin.ask()
        finally:
            del self._inquiries[worker]
            if worker not in self.plugin.scheduler.workers:
                self._forget(worker)

    def asking(self, record: FunctionRecord) -> Waiting:
        """Say who is being asked what a lost worker had started."""
        worker = record.worker
        nanny, _ = self.nannies.get(worker or "", (None, ""))
        who = worker
        if worker not in self.plugin.scheduler.workers and nanny is not None:
            who = f"the nanny of {worker}"
        return Waiting(f"asking {who} what had started")

    async def _ask(self, worker: str, lost: list[Lost]) -> End:
        """Find out what a worker had started."""
        lost_at = time.monotonic()
        deadline = lost_at + ANSWER
        while worker in self.plugin.scheduler.workers:
            # What its threads use stays claimed until it answers or is removed.
            with suppress(OSError, asyncio.TimeoutError):
                end = await asyncio.wait_for(self._ask_worker(worker, lost), ANSWER)
                if end is not None:
                    return end
                if time.monotonic() > deadline:
                    logger.warning("Worker %s does not know what it has started", worker)
                    return End()
            if worker in self.plugin.scheduler.workers:
                await asyncio.sleep(PAUSE)
            lost_at = time.monotonic()
        # The nanny tells of a process that died; one that closes in order speaks for itself.
        asked = asyncio.create_task(self._ask_nanny(worker))
        last = lost_at + LAST_WORD
        try:
            while worker not in self._ends:
                left: float | None = None
                if asked.done():
                    found = asked.result()
                    left = last - time.monotonic()
                    if found.started is not None or left <= 0:
                        return found
                heard = asyncio.ensure_future(self._heard.wait())
                waits = [heard] if asked.done() else [heard, asked]
                await asyncio.wait(waits, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                heard.cancel()
            return self._ends[worker]
        finally:
            asked.cancel()

    async def _ask_worker(self, worker: str, lost: list[Lost]) -> End | None:
        """Return what a worker says; None if it closes, or its plugin is replaced."""
        calls = [(one.record.key, one.number) for one in lost]
        try:
            answer = await self.plugin.scheduler.rpc(worker).handoff_withdraw(calls=calls)
            return End(
                {number: started for number, started, _ in answer if started is not None},
                frozenset(number for number, _, busy in answer if busy),
            )
        except OSError:
            raise
        except Exception:  # an RPC raises what the other side raised
            return None

    async def _ask_nanny(self, worker: str) -> End:
        nanny, id_ = self.nannies.get(worker, (None, ""))
        if nanny is None:
            return End()
        with suppress(Exception):  # an RPC raises what the other side raised
            answer = await compat.ask_once(
                self.plugin.scheduler, nanny, CONNECT, ANSWER, op="handoff_end", worker=id_
            )
            if answer is not None:
                started = answer["started"]
                reason = _reason(answer["code"], answer["memory"])
                return End(None if started is None else dict(started), reason=reason)
        return End()

    def _settle(self, lost: Lost, end: End) -> None:
        record = lost.record
        if lost.number in end.busy:
            self.plugin.endings.confirm(record.key, lost.number)
        else:
            self.plugin.endings.over(record.key, lost.number)
        if record.lost is not lost:
            return
        record.lost = None
        if end.started is not None and lost.number not in end.started:
            record.attempt -= 1
            if lost.counts:
                self.plugin.inputs.died(record, lost.inputs, end.reason or "for a reason unknown")
        else:
            started = record.placed if end.started is None else end.started[lost.number]
            message = None
            if lost.outcome == "worker-lost":
                message = end.reason or ("it was lost" if lost.counts else "it closed in order")
                if not lost.counts:
                    message += "; this does not count"
            if end.started is None:
                message = f"{message or 'it was taken back'}; nobody knows whether it had started"
            record.run.ended(
                record, lost.outcome, started, max(started, lost.stopped), message=message
            )
            self.plugin.attempt_ended(record)
            if lost.counts:
                self.plugin.retries.died(record, end.reason or "for a reason unknown")
        if record.state == "held" and record.key in self.plugin.records:
            self.plugin.ready(record)


def _reason(code: int, memory: bool) -> str:
    """Say how a process ended."""
    if memory:
        return "out of memory: its nanny ended it at its memory limit"
    if code >= 0:
        return f"exited with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return f"killed by signal {-code}"
    return f"killed by signal {-code} ({name})"
