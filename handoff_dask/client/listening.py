"""Passes the events of a run to the log and to the user's callable."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Callable
from typing import Any

from distributed import Client

from handoff_dask.client.attempt_log import AttemptLog
from handoff_dask.client.describing import Outline
from handoff_dask.compat import client_side as compat
from handoff_dask.wire.run_events import Event, RunClosed, RunOpened, RunStopped, topic

logger = logging.getLogger(__name__)


class Callback:
    """Calls the user's callable with events. What it raises is logged once and changes nothing."""

    def __init__(self, on_event: Callable[[Event], Any] | None) -> None:
        self._on_event = on_event
        self._has_raised = False

    def __call__(self, event: Event) -> None:
        """Pass an event on."""
        if self._on_event is None:
            return
        try:
            self._on_event(event)
        except (Exception, asyncio.CancelledError):
            if not self._has_raised:
                self._has_raised = True
                logger.exception("on_event=%r failed; the run goes on", self._on_event)


class Listener:
    """Logs the events of a run and passes them to the user's callable, until the run closes.

    It is called on the client's event loop.
    """

    def __init__(
        self,
        client: Client,
        outline: Outline,
        on_event: Callable[[Event], Any] | None,
        log: AttemptLog | None,
    ) -> None:
        self._client = client
        self._outline = outline
        self._log = log
        self._call = Callback(on_event)
        #: Set once the run has closed: nothing will follow.
        self.closed = asyncio.Event()
        # The scheduler subscribes the client as it opens the run: nothing can come too early.
        compat.handle_events(client, topic(outline.run_id), self._receive)

    def _receive(self, message: tuple[float, bytes]) -> None:
        _, packed = message
        terms = map(self._in_users_terms, pickle.loads(packed))
        events = [event for event in terms if event is not None]
        if self._log is not None:
            self._log(events)
        for event in events:
            self._call(event)
        if events and isinstance(events[-1], RunClosed):
            self.closed.set()
            compat.drop_handler(self._client, topic(self._outline.run_id))

    def _in_users_terms(self, event: Event) -> Event | None:
        """Replace the scheduler's names by the user's ids; None for a transform of an argument."""
        if isinstance(event, RunOpened):
            return event._replace(dag_id=self._outline.dag_id)
        if isinstance(event, RunStopped | RunClosed):
            return event
        assert isinstance(event.function, int)
        node = self._outline.nodes[event.function]
        return event._replace(function=node.function.id) if node.kind == "function" else None
