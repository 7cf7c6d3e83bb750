"""Clients and local clusters, beyond their public API."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dask.config
from dask import base
from dask.utils import parse_timedelta
from distributed import Client, Future, LocalCluster, Nanny, Worker

#: Seconds for worker processes to end by themselves.
GRACE = 2.0


def settle_future(future: Future[Any], state: str) -> None:
    """Set a future to its task's state on the scheduler, if that is "memory" or "erred"."""
    future_state = future._state
    if future_state is not None and state == "memory":
        future_state.finish()
    elif future_state is not None and state == "erred":
        future_state.set_error(RuntimeError("its error could not be read"), None)


async def connected(client: Client) -> None:
    """Wait for the first connection of a client, which another thread may just be making.

    The functions of a worker share the client that the first of them makes.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"))
    while client._handle_report_task is None and client.status in ("newly-created", "connecting"):
        if loop.time() > deadline:
            return
        await asyncio.sleep(0.01)


def send(client: Client, message: dict[str, Any]) -> None:
    """Send a message on a client's stream, behind what it has sent before."""
    client._send_to_scheduler(message)


def handle_events(client: Client, topic: str, handler: Callable[[Any], None]) -> None:
    """Set what a client does with the events of a topic to which the scheduler subscribed it."""
    client._event_handlers[topic] = handler


def drop_handler(client: Client, topic: str) -> None:
    """Remove the handler of a topic, once nothing will follow: Dask fails if it finds none."""
    client._event_handlers.pop(topic, None)


def on_loop(client: Client) -> bool:
    """Whether this thread runs the event loop of a client."""
    loop: Any = client.loop
    try:
        return asyncio.get_running_loop() is loop.asyncio_loop
    except RuntimeError:
        return False


def close_clients(cluster: LocalCluster) -> None:
    """Close the clients that the workers of an in-process cluster created for their functions.

    These are default clients of this process, and keep the event loop's thread alive.
    """
    for worker in cluster.workers.values():
        client = getattr(worker, "_client", None)
        if client is not None and client in Worker._initialized_clients:
            client.close()


async def end_workers(cluster: LocalCluster) -> None:
    """Close the workers of a cluster without waiting for their running functions."""
    log = logging.getLogger("distributed.worker.state_machine")
    log.addFilter(_is_news)
    try:
        await asyncio.gather(*map(_end_worker, cluster.workers.values()))
    finally:
        log.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return "ended with CancelledError" not in record.msg


async def _end_worker(worker: Any) -> None:
    if isinstance(worker, Nanny):
        worker.close_gracefully()  # otherwise it starts another process
        if worker.process is not None:
            await worker.process.kill(timeout=GRACE, executor_wait=False)
    elif worker.active_threads:
        await worker.close(executor_wait=False)


@contextmanager
def only_annotations(annotations: Mapping[str, Any]) -> Iterator[None]:
    """Replace the annotations around; Dask can only add some."""
    token = base._annotations.set(dict(annotations))
    try:
        yield
    finally:
        base._annotations.reset(token)
