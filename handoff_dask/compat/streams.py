"""The logs that Dask's message streams keep of sent messages."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from distributed.batched import BatchedSend


def bound_log(stream: BatchedSend) -> None:
    """Limit the log of a stream to as many messages as Dask allows it batches.

    A batch has thousands of messages when many functions are placed at once. Between processes,
    Dask drops large batches from the log; within a process, it keeps them whatever they contain.
    """
    log = stream.recent_message_log
    if not isinstance(log, _Messages):
        stream.recent_message_log = _Messages(log, log.maxlen)


class _Messages(deque[Any]):
    """The latest batches, up to a total number of messages."""

    def __init__(self, batches: Iterable[Any], limit: int | None) -> None:
        super().__init__()
        self._limit = limit
        self._messages = 0
        for batch in batches:
            self.append(batch)

    def append(self, batch: Any) -> None:
        """Add a batch: a list of messages, or Dask's placeholder for a large one."""
        if isinstance(batch, list):
            batch = [_without_graph(message) for message in batch]
        super().append(batch)
        self._messages += _count(batch)
        while self._limit is not None and self._messages > self._limit:
            self._messages -= _count(self.popleft())


def _count(batch: Any) -> int:
    return len(batch) if isinstance(batch, list) else 1


def _without_graph(message: Any) -> Any:
    """Return a message, or Dask's placeholder for a large one if it contains a graph."""
    graph = isinstance(message, dict) and message.get("op") == "update-graph"
    return "large-message" if graph else message
