"""Has the engine decide, and does what it decides."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from handoff_dask.attempts.life import Life
from handoff_dask.attempts.lives import Lives
from handoff_dask.compat import scheduler as compat
from handoff_dask.errors import HandoffError
from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import Place, Refuse, Started
from handoff_dask.scheduler.gate import Gate
from handoff_dask.scheduler.inputs import Inputs
from handoff_dask.scheduler.records import BundleRecord, UnitRecord
from handoff_dask.scheduler.registry import Registry
from handoff_dask.scheduler.runs import Runs
from handoff_dask.wire.run_events import FunctionPlaced

if TYPE_CHECKING:
    from distributed import Scheduler

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Decider:
    """Carries decisions out, all of a turn of the loop together."""

    scheduler: Scheduler
    engine: Engine
    lives: Lives
    runs: Runs
    registry: Registry
    gate: Gate
    inputs: Inputs
    #: Has all functions of a bundle travel alone.
    dissolve: Callable[[BundleRecord], None]

    def __post_init__(self) -> None:
        self._asked = False
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Decide nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    def ask(self) -> None:
        """Have the engine decide once, when the events of this turn of the loop are in."""
        if not self._asked:
            self._asked = True
            asyncio.get_running_loop().call_soon(self._decide)

    def _decide(self) -> None:
        self._asked = False
        stimulus_id = f"handoff-{time.time()}"
        doomed, self.lives.doomed = self.lives.doomed, []
        for life, error in doomed:
            self._fail(life, error, stimulus_id)
        placed: dict[Any, Any] = {}
        for decision in self._poll(stimulus_id):
            record = self.runs.functions.get(decision.key)
            if isinstance(decision, Place):
                if self._place(record, decision):
                    placed[decision.key] = "processing"
            elif record is None:
                continue
            elif isinstance(decision, Started):
                self.lives.started(record)
            else:
                self._fail(record, record.unplaceable(decision.finding), stimulus_id)
        if placed:
            # Dask takes the last one first, and a worker starts the first one that arrives.
            self.scheduler.transitions(dict(reversed(placed.items())), stimulus_id)
        self._wake()

    def _poll(self, stimulus_id: str) -> list[Place | Refuse | Started]:
        """Ask the engine. Should it break, the functions that wait for it fail: nothing hangs."""
        try:
            return self.engine.poll(time.monotonic())
        except Exception as error:
            logger.exception("The placement engine failed")
            problem = HandoffError(f"the placement engine failed, which is a bug: {error!r}")
            for record in list(self.runs.functions.values()):
                self._fail(record, problem, stimulus_id, dissolve=False)
            return []

    def _place(self, record: UnitRecord | None, place: Place) -> bool:
        """Send a function to a worker; False if that cannot be."""
        now = time.monotonic()
        ws = self.scheduler.workers.get(place.worker)
        if record is None or ws is None or ws not in self.scheduler.running:
            # The worker changed without a word.
            if place.worker in self.registry.names:
                self.engine.worker_running(place.worker, False)
            if record is None:
                self.engine.attempt_ended(place.key, now)
            else:
                self.lives.place_again(record, now)
            self.ask()
            return False
        refusal = self.inputs.refusal(record, place.worker)
        if refusal is not None:
            record.doom = refusal
            self.lives.place_again(record, now)
            self.ask()
            return False
        placement = self.gate.open(record, place, ws)
        self.lives.placed(record, placement, ahead=place.ahead)
        run = record.run
        if run.spec.events or not record.is_bundle:
            for index, attempt in record.attempts_to_come():
                run.emit(
                    FunctionPlaced(
                        run.spec.run_id, placement.at, index, attempt, place.worker, place.ahead
                    )
                )
        return True

    def _fail(
        self, life: Life, error: Exception, stimulus_id: str, *, dissolve: bool = True
    ) -> None:
        assert isinstance(life, UnitRecord)
        ts = self.scheduler.tasks.get(life.key)
        if ts is None or ts.state != "no-worker" or life.key not in self.runs.functions:
            return  # cancelled meanwhile
        if isinstance(life, BundleRecord) and dissolve:
            self.dissolve(life)
            return
        life.run.decided.add(life.index)
        self.runs.function_failed(life.run, life.index, str(error))
        compat.fail_task(self.scheduler, life.key, error, stimulus_id)

    def _wake(self) -> None:
        """Be called again when the engine has to act without an event."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (at := self.engine.wake_at()) is not None:
            delay = max(0.0, at - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._decide)
