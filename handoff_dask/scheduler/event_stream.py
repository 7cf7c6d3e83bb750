"""Sends the events of runs to the clients that asked for them."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from handoff_dask.compat.scheduler import drop_topic
from handoff_dask.scheduler.records import RunRecord
from handoff_dask.wire.run_events import (
    AttemptsEnded,
    Event,
    Recorded,
    RunClosed,
    RunOpened,
    topic,
)

if TYPE_CHECKING:
    from distributed import Scheduler


@dataclass(eq=False)
class EventStream:
    """Passes events on, together once in each turn of the loop."""

    #: Its log is what clients subscribe to.
    scheduler: Scheduler
    runs: Mapping[str, RunRecord]

    def __post_init__(self) -> None:
        #: The runs whose events a client wants.
        self._open: set[str] = set()
        self._events: dict[str, list[Event]] = {}

    def __call__(self, event: Recorded) -> None:
        """Pass an event on."""
        if isinstance(event, RunOpened):
            spec = self.runs[event.run_id].spec
            if spec.events:
                self._open.add(event.run_id)
                # Before the first event. A message of the client's might come later.
                self.scheduler.subscribe_topic(topic(event.run_id), spec.client)
        if event.run_id not in self._open or isinstance(event, AttemptsEnded):
            return
        if isinstance(event, RunClosed):
            self._open.discard(event.run_id)
        if not self._events:
            asyncio.get_running_loop().call_soon(self._send)
        self._events.setdefault(event.run_id, []).append(event)

    def _send(self) -> None:
        events, self._events = self._events, {}
        for run_id, some in events.items():
            self.scheduler.log_event(topic(run_id), pickle.dumps(some))
            if isinstance(some[-1], RunClosed):
                drop_topic(self.scheduler, topic(run_id))
