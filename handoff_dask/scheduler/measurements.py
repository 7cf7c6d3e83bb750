"""What functions have used, by code: measured, kept in files, and turned into claims."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeVar

from handoff_dask.attempts.states import Held
from handoff_dask.learning.uses import Uses, digest
from handoff_dask.model.attempt import Attempt
from handoff_dask.placement.durations import FAR
from handoff_dask.placement.questions import Questions
from handoff_dask.scheduler.learned_file import LearnedFile
from handoff_dask.scheduler.records import FunctionRecord, RunRecord, UnitRecord
from handoff_dask.wire.messages import FunctionRow, RunSpec
from handoff_dask.wire.run_events import AttemptEnded, Recorded, RunClosed

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two times that a file is written while runs go on.
PAUSE = 10.0
#: Seconds that a run waits for its file, and the end of the scheduler for what is saved.
PATIENCE = 30.0
#: What a function claims (MB) while no worker is known that could run it.
_NOTHING = 1.0
#: For how many costs and pins it is remembered what their workers have.
_KINDS = 256

#: Where a code is kept, and what identifies it.
_Code = tuple[str | None, str]


class _Kind(NamedTuple):
    """Functions of a code and a run that claim the same."""

    run_id: str
    cost: tuple[tuple[str, float], ...]
    pin: tuple[str, ...]
    exceeded: float

    @classmethod
    def of(cls, record: FunctionRecord) -> _Kind:
        row = record.row
        return cls(record.run.spec.run_id, tuple(row.cost.items()), row.pin, record.exceeded)


@dataclass(eq=False)
class Measurements:
    """Learns from the attempts of all runs; runs that name the same file share what it holds."""

    runs: Mapping[str, RunRecord]
    questions: Questions
    #: Has a held function claim what has been learned by now.
    claim_again: Callable[[UnitRecord], None]

    def __post_init__(self) -> None:
        #: By the path or URL of the file; None: in memory only.
        self._uses: dict[str | None, Uses] = {None: Uses()}
        self._files: dict[str, LearnedFile] = {}
        #: The functions that wait with a learned claim. Those that wait no more, or claim something
        #: else since they were killed, are removed when they are noticed.
        self._held: defaultdict[_Code, defaultdict[_Kind, set[FunctionRecord]]] = defaultdict(
            lambda: defaultdict(set)
        )
        #: The files with unsaved measurements, those of them that should not wait for the next
        #: pause, when each was saved, and the saves under way.
        self._unsaved: set[str] = set()
        self._urgent: set[str] = set()
        self._saved: dict[str, float] = {}
        self._saves: dict[str, asyncio.Task[None]] = {}
        # To look at all workers for each function takes too long if there are many.
        self._limits = lru_cache(_KINDS)(self._limits_now)

    # Files

    async def open(self, url: str | None) -> None:
        """Read a file, unless that has been done."""
        if url is None or url in self._files:
            return
        file = LearnedFile(url)
        opening = _in_thread(file.open)
        await asyncio.wait([opening], timeout=PATIENCE)
        if url in self._files:  # another run may have been faster
            return
        if not opening.done():
            logger.warning("Reading what was learned takes too long; the run starts without it")
        # What the file has gets lost in no case: saving merges it.
        self._files[url] = file
        self._uses[url] = opening.result() if opening.done() else Uses()

    async def close(self) -> None:
        """Save what has not been saved."""
        for url in self._unsaved:
            self._save_soon(url, at_once=True)
        if self._saves:
            _, late = await asyncio.wait(self._saves.values(), timeout=PATIENCE)
            if late:
                logger.warning("Saving what was learned takes too long; some of it is lost")

    def _save_soon(self, url: str, *, at_once: bool) -> None:
        self._unsaved.add(url)
        if at_once:
            self._urgent.add(url)
        due = time.monotonic() - self._saved.get(url, -PAUSE) >= PAUSE
        if (due or at_once) and url not in self._saves:
            self._saves[url] = asyncio.create_task(self._save(url))

    async def _save(self, url: str) -> None:
        while True:
            self._unsaved.discard(url)
            self._urgent.discard(url)
            self._saved[url] = time.monotonic()
            await _in_thread(self._files[url].save, self._uses[url].copy())
            if url not in self._urgent:
                break
        del self._saves[url]

    # Measurements

    def __call__(self, event: Recorded) -> None:
        """Learn from the end of an attempt; save what was learned when a run closes."""
        if isinstance(event, RunClosed):
            self._forget(event.run_id)
            for url in list(self._unsaved):
                self._save_soon(url, at_once=True)
            return
        run = self.runs.get(event.run_id)
        if run is not None and isinstance(event, AttemptEnded):
            assert isinstance(event.function, int)
            self._ended(run, event.function, event.attempt)

    def _ended(self, run: RunRecord, index: int, attempt: Attempt) -> None:
        url, peak = run.spec.learned, attempt.usage.peak_memory
        if url is None and peak is None:
            return  # the engine has learned how long it takes
        row = run.row(index)
        code, uses = run.spec.codes[row.prefix], self._uses[url]
        if attempt.outcome == "ok":
            first = run.first_start(index, attempt)
            uses.record(
                code, started=first, seconds=attempt.duration, peak=peak, function=row.label
            )
        elif attempt.outcome == "out-of-memory":
            exceeded = max(attempt.cost.get("memory", 0.0), peak or 0.0)
            uses.record_kill(code, exceeded=exceeded)
        else:
            return
        if url is not None:
            self._save_soon(url, at_once=False)
        if self._held.get((url, code)):
            self._revise((url, code))

    def bundled(self, run: RunRecord, prefix: str, seconds: float, started: float) -> None:
        """Record the average of functions that travelled together: each alone would cost too much.

        `prefix` names their code, and `started` is when the first started (s since the epoch).
        """
        url = run.spec.learned
        if url is not None:
            self._uses[url].record(run.spec.codes[prefix], started=started, seconds=seconds)
            self._save_soon(url, at_once=False)

    def seconds(self, spec: RunSpec, prefix: str) -> float | None:
        """Return how long functions of a code take (s), if that was learned."""
        code = spec.codes.get(prefix)
        return None if code is None else self._uses[spec.learned].seconds(code)

    def remembered(
        self, spec: RunSpec, rows: Iterable[FunctionRow]
    ) -> Iterator[tuple[FunctionRow, float]]:
        """Yield each function of a run of which it is known how long it takes (s)."""
        if spec.learned is not None:
            uses = self._uses[spec.learned]
            for row in rows:
                seconds = uses.seconds_of(spec.codes.get(row.prefix, ""), row.label)
                if seconds is not None:
                    yield row, seconds

    def longer(self, spec: RunSpec, seconds: Mapping[str, float]) -> set[tuple[str, str]]:
        """Return the functions that are known to take far longer than others of their code.

        `seconds` says how long those take (s), by the names of the codes of a run. Of each function
        there is the name of its code and the digest of its label.
        """
        known = {(name, digest(label)) for name, label in self.questions.longer(seconds)}
        if spec.learned is not None:
            uses = self._uses[spec.learned]
            for name, mean in seconds.items():
                known.update((name, own) for own in uses.longer(spec.codes[name], FAR * mean))
        return known

    # Claims

    def claim(self, record: FunctionRecord) -> float | None:
        """Return how much memory the next attempt of a function claims (MB).

        None if no worker has more than it is known to need.
        """
        row, spec = record.row, record.run.spec
        code = spec.learned, spec.codes[row.prefix]
        self._held[code][_Kind.of(record)].add(record)
        return self._claim(code, record)

    def _claim(self, code: _Code, record: FunctionRecord) -> float | None:
        row = record.row
        limits = self._limits(tuple(row.cost.items()), row.pin)
        if limits is None:
            return max(_NOTHING, record.exceeded)
        least, most = limits
        return self._uses[code[0]].claim(
            code[1],
            worker_memory=most,
            cpu_share=least / most if most else 0.0,
            exceeded=record.exceeded,
        )

    def _limits_now(
        self, cost: tuple[tuple[str, float], ...], pin: tuple[str, ...]
    ) -> tuple[float, float] | None:
        """Return the least and the most memory to claim (MB) beside a cost.

        None if no worker can hold the cost.
        """
        workers = self.questions.able(dict(cost), pin)
        cpu = dict(cost).get("cpu", 0.0)
        memory, least = 0.0, math.inf
        for threads, capacity in workers:
            # With claims below this share of its memory, a worker would run no more at once.
            share = cpu / capacity["cpu"] if cpu and capacity.get("cpu") else 1 / threads
            least = min(least, capacity.get("memory", 0.0) * min(share, 1.0))
            memory = max(memory, capacity.get("memory", 0.0))
        return (least, memory) if workers else None

    def workers_changed(self) -> None:
        """Have functions claim what fits the workers that there are now."""
        self._limits.cache_clear()
        for code in list(self._held):
            self._revise(code)

    def _revise(self, code: _Code) -> None:
        """Have held functions claim what was learned meanwhile, if that has changed."""
        for kind, records in list(self._held[code].items()):
            while records:
                sample = next(iter(records))
                if isinstance(sample.state, Held) and _Kind.of(sample) == kind:
                    break
                records.discard(sample)
            if not records:
                del self._held[code][kind]
            elif self._claim(code, sample) != sample.cost.get("memory"):
                for record in list(records):
                    self.claim_again(record)
        if not self._held[code]:
            del self._held[code]

    def _forget(self, run_id: str) -> None:
        for code, kinds in list(self._held.items()):
            for kind in [kind for kind in kinds if kind.run_id == run_id]:
                del kinds[kind]
            if not kinds:
                del self._held[code]


def _in_thread(function: Callable[..., T], *args: object) -> asyncio.Future[T]:
    """Call a function that raises nothing in a thread that keeps no process from ending.

    The threads of asyncio do, so a file system that hangs would keep a scheduler alive.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def call() -> None:
        result = function(*args)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(future.set_result, result)

    threading.Thread(target=call, name="handoff-learned", daemon=True).start()
    return future
