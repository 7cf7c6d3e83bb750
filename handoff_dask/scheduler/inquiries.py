"""Asks what had become of attempts whose end nobody reported."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distributed import Status

from handoff_dask.attempts.losses import End, Lost, by_placement, ending_of_process
from handoff_dask.compat import scheduler as compat
from handoff_dask.scheduler.records import UnitRecord

if TYPE_CHECKING:
    from distributed import Scheduler

logger = logging.getLogger(__name__)

#: Seconds for a worker or its nanny to answer, and for a nanny to accept the connection.
ANSWER = 10.0
CONNECT = 1.0
#: Seconds between questions to a worker that does not answer.
PAUSE = 0.5
#: Seconds in which a worker whose nanny knows nothing may still say that it closed in order.
LAST_WORD = 1.5


@dataclass(eq=False)
class Inquiries:
    """Finds out which lost attempts had started.

    A function handed to a worker may be lost with it before it starts. Then it has used up no
    attempt. The worker knows, if it lives or closes in order; otherwise its nanny knows. If there
    is no nanny, or the whole host is gone, nobody does.
    """

    scheduler: Scheduler
    #: Is called with each lost attempt and with what its worker had started.
    settle: Callable[[UnitRecord, Lost, End], None]
    #: Has the engine decide soon.
    ask: Callable[[], None]

    def __post_init__(self) -> None:
        #: {worker: (address of its nanny, if any, its id)}
        self._nannies: dict[str, tuple[str | None, str]] = {}
        #: Workers that said that they close.
        self._closing: set[str] = set()
        self._open: dict[str, list[tuple[UnitRecord, Lost]]] = {}
        #: The last words of workers.
        self._ends: dict[str, End] = {}
        self._last_word = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def close(self) -> None:
        """Stop asking."""
        for task in self._tasks.values():
            task.cancel()

    def add(self, record: UnitRecord, lost: Lost) -> None:
        """Ask about a lost attempt of a function."""
        self._open.setdefault(lost.worker, []).append((record, lost))
        if lost.worker not in self._tasks:
            self._tasks[lost.worker] = asyncio.create_task(self._inquire(lost.worker))

    def whom(self, lost: Lost) -> str:
        """Return who is being asked about a lost attempt, in words."""
        nanny, _ = self._nannies.get(lost.worker, (None, ""))
        if lost.worker not in self.scheduler.workers and nanny is not None:
            return f"the nanny of {lost.worker}"
        return lost.worker

    # Workers

    def worker_joined(self, worker: str, nanny: str | None, id_: str) -> None:
        """Record a worker and whom to ask about it once it is gone."""
        self._nannies[worker] = nanny, id_

    def status_changed(self, worker: str, status: str) -> None:
        """Record that a worker is closing."""
        if status in (Status.closing.name, Status.closing_gracefully.name):
            self._closing.add(worker)

    def closed(self, worker: str) -> bool:
        """Whether a worker closes, or closed, in order."""
        return worker in self._closing

    def worker_spoke(self, worker: str, end: End) -> None:
        """Record the last word of a worker."""
        if worker in self._nannies:
            self._ends[worker] = end
            self._last_word.set()
            self._last_word = asyncio.Event()

    def worker_removed(self, worker: str) -> None:
        """Forget a worker, as soon as nothing of it is to be settled."""
        if worker not in self._tasks:
            self._nannies.pop(worker, None)
            self._ends.pop(worker, None)
            self._closing.discard(worker)

    # Questions

    async def _inquire(self, worker: str) -> None:
        """Settle what is lost of a worker."""
        try:
            while worker in self._open:
                await asyncio.sleep(0)  # all that is lost with it
                lost = self._open.pop(worker)
                end = await self._answer(worker, lost)
                # What still runs first, so that none of its claims looks free meanwhile.
                for record, attempt in sorted(
                    lost, key=lambda item: item[1].number not in end.busy
                ):
                    self.settle(record, attempt, end)
                self.ask()
        finally:
            del self._tasks[worker]
            if worker not in self.scheduler.workers:
                self.worker_removed(worker)

    async def _answer(self, worker: str, lost: list[tuple[UnitRecord, Lost]]) -> End:
        """Find out what a worker had started."""
        lost_at = time.monotonic()
        deadline = lost_at + ANSWER
        while worker in self.scheduler.workers:
            # What its threads use stays claimed until it answers or is removed.
            with suppress(OSError, asyncio.TimeoutError):
                end = await asyncio.wait_for(self._ask_worker(worker, lost), ANSWER)
                if end is not None:
                    return end
                if time.monotonic() > deadline:
                    logger.warning("Worker %s does not know what it has started", worker)
                    return End()
            if worker in self.scheduler.workers:
                await asyncio.sleep(PAUSE)
            lost_at = time.monotonic()
        # The nanny knows about a process that died; a worker that closes in order reports itself.
        asking = asyncio.create_task(self._ask_nanny(worker))
        last = lost_at + LAST_WORD
        try:
            while worker not in self._ends:
                left: float | None = None
                if asking.done():
                    end = asking.result()
                    left = last - time.monotonic()
                    if end.started is not None or left <= 0:
                        return end
                word = asyncio.ensure_future(self._last_word.wait())
                waits = [word] if asking.done() else [word, asking]
                await asyncio.wait(waits, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                word.cancel()
            return self._ends[worker]
        finally:
            asking.cancel()

    async def _ask_worker(self, worker: str, lost: list[tuple[UnitRecord, Lost]]) -> End | None:
        """Return what a worker says; None if it closes, or its plugin is replaced."""
        calls = [(record.key, attempt.number) for record, attempt in lost]
        try:
            answer = await self.scheduler.rpc(worker).handoff_withdraw(calls=calls)
            return End(by_placement(answer["started"]), frozenset(answer["busy"]))
        except OSError:
            raise
        except Exception:  # an RPC raises what the other side raised
            return None

    async def _ask_nanny(self, worker: str) -> End:
        nanny, id_ = self._nannies.get(worker, (None, ""))
        if nanny is None:
            return End()
        with suppress(Exception):  # an RPC raises what the other side raised
            answer = await compat.ask_once(
                self.scheduler, nanny, CONNECT, ANSWER, op="handoff_end", worker=id_
            )
            if answer is not None:
                started = answer["started"]
                reason = ending_of_process(answer["code"], answer["memory"])
                return End(None if started is None else by_placement(started), reason=reason)
        return End()
