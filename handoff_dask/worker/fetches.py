"""Finds out on a worker why inputs of its functions do not arrive."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from distributed import Worker
from distributed.worker_state_machine import TaskState

from handoff_dask.compat import transfers


class Fetches:
    """Watches the transfers to a worker, and diagnoses those that fail.

    If a value cannot be opened, Dask marks everything in the same message as failed, and the tasks
    that need it wait forever. If unpickling raises an ``OSError``, Dask fetches the value again,
    forever.

    So each input in question is fetched once more, by itself. Those that cannot be sent or opened
    are reported to the scheduler's plugin; the others are left to Dask again.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._suspects: set[Any] = set()
        #: How often an input was missing, or its transfer failed for an unknown reason.
        self._failures: Counter[Any] = Counter()
        self._inquiry: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Stop the inquiry."""
        if self._inquiry is not None:
            self._inquiry.cancel()

    def follow(self, key: Any, start: str, finish: str) -> None:
        """Follow a task of the worker from one state to the next."""
        if finish == "error" and start in ("flight", "cancelled", "resumed"):
            transfers.drop_unfinished(self._worker)
        if (start, finish) == ("flight", "error"):
            self._suspect(key)
        elif finish == "missing":
            self._failures[key] += 1
            # Usually the scheduler knows a better place, and the value is fetched there.
            if self._failures[key] > 1:
                self._suspect(key)
        elif self._failures and finish in ("memory", "forgotten"):
            self._failures.pop(key, None)

    def _suspect(self, key: Any) -> None:
        self._suspects.add(key)
        if self._inquiry is None or self._inquiry.done():
            self._inquiry = asyncio.create_task(self._inquire())

    async def _inquire(self) -> None:
        while self._suspects:
            keys, self._suspects = self._suspects, set()
            by_key = self._worker.state.tasks
            tasks = [by_key[key] for key in keys if key in by_key]
            if any(map(_ours, tasks)):
                # An RPC raises what the other side raised. An input that stays unsettled counts as
                # lost when its time is up.
                with suppress(Exception):
                    await self._settle(tasks)

    async def _settle(self, tasks: Sequence[TaskState]) -> None:
        """Report inputs that cannot be sent or opened; fetch the others again."""
        scheduler = self._worker.scheduler
        who_has = await scheduler.who_has(keys=[ts.key for ts in tasks])
        # Dask itself fetches what it considers missing.
        doubtful = [ts for ts in tasks if who_has[ts.key] and (ts.state == "error" or _ours(ts))]
        problems = {ts.key: await self._problem(ts.key, who_has[ts.key]) for ts in doubtful}
        if not any(problems.values()):
            # None of them explains why the transfer failed, but this must not repeat forever.
            for ts in (ts for ts in doubtful if ts.state == "error"):
                self._failures[ts.key] += 1
                if self._failures[ts.key] > 1:
                    problems[ts.key] = f"cannot be fetched: {ts.exception_text}"
        unusable = [(ts.key, problems[ts.key]) for ts in doubtful if problems[ts.key] and _ours(ts)]
        if unusable:
            worker = self._worker.contact_address
            await scheduler.handoff_unusable(worker=worker, problems=unusable)
        again = [ts.key for ts in doubtful if ts.state == "error" and not problems[ts.key]]
        if again:
            transfers.refetch(self._worker, {key: who_has[key] for key in again})

    async def _problem(self, key: Any, peers: Sequence[str]) -> str | None:
        """Fetch a value from each worker that has it; return the problem if it fails everywhere."""
        problem = None
        for peer in peers:
            try:
                await transfers.fetch(self._worker, key, peer)
            except transfers.UnusableError as error:
                place = f"from {peer}" if error.phase == "sent" else f"on {self._worker.address}"
                problem = f"cannot be {error.phase} {place}: {error.problem}"
            except OSError:  # this says nothing about the value
                return None
            else:
                return None
        return problem

    async def transfers(self, keys: Sequence[Any]) -> list[tuple[Any, str, str | None, float]]:
        """Return the progress of the transfers of some inputs: see ``transfer``."""
        amounts = [(key, transfers.transfer(self._worker, key)) for key in keys]
        return [(key, *progress) for key, progress in amounts if progress is not None]

    async def serializing(self) -> float:
        """Return the CPU seconds spent on serializing values for other workers."""
        return transfers.offload_seconds()

    async def abandon(self, peer: str) -> None:
        """Abort transfers from another worker."""
        transfers.abandon_transfers(self._worker, peer)


def _ours(ts: TaskState) -> bool:
    """Whether a function of a run waits for a task."""
    return any("handoff" in (dependent.annotations or ()) for dependent in ts.dependents)
