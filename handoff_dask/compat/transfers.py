"""Transfers between workers, beyond the public API."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import psutil
from distributed import Scheduler, Worker
from distributed.comm.core import Comm, connect
from distributed.core import send_recv
from distributed.protocol.core import dumps, loads
from distributed.protocol.serialize import Serialized
from distributed.worker_state_machine import AcquireReplicasEvent, FreeKeysEvent

from handoff_dask.standins import text_of

#: Name of the connections on which a worker fetches results from another.
_TRANSFER = "Ephemeral Worker->Worker for gather"
#: Characters of an error's text that are reported.
_SHOWN = 1000
#: Prefix of the names of threads that serialize and open large values.
_OFFLOAD = "Dask-Offload"


class UnusableError(Exception):
    """A value cannot be sent from where it is, or cannot be opened where it arrived.

    `phase` is ``"sent"`` or ``"opened"``, `problem` the type and text of the exception.
    """

    def __init__(self, phase: str, problem: str) -> None:
        super().__init__(phase, problem)
        self.phase = phase
        self.problem = problem


async def fetch(worker: Worker, key: Any, peer: str) -> None:
    """Fetch a value from another worker, open it, and drop it.

    Unlike the worker's own transfers, this tells a failed connection (OSError) from a value that
    cannot be sent or opened (UnusableError): unpickling, too, may raise OSError.
    """
    comm = await connect(peer, deserialize=False, **worker.connection_args)
    try:
        answer = await send_recv(comm, op="get_data", keys=[key], who=worker.address)
        while answer["status"] == "busy":
            await asyncio.sleep(0.15)
            answer = await send_recv(comm, op="get_data", keys=[key], who=worker.address)
        await comm.write("OK")
    except OSError:
        raise
    except Exception as error:  # what the other side raised
        raise UnusableError("sent", text_of(error)[:_SHOWN]) from None
    finally:
        comm.abort()
    value = answer["data"].get(key)
    if isinstance(value, Serialized):
        await asyncio.to_thread(open_value, value)


def open_value(value: Serialized) -> Any:
    """Deserialize a value that arrived.

    Raise UnusableError if it cannot be opened, or if an error arrived instead.
    """
    try:
        return loads(dumps(value))
    except BaseException as error:  # whatever unpickling raises must not end the worker
        if not _refused(value.header):
            text = f"{type(error).__name__}: {text_of(error)}"
            raise UnusableError("opened", text[:_SHOWN]) from None
        # The text, Dask's, is a traceback of any length; its last lines are the exception.
        lines = str(error).splitlines()
        heads = [i for i, line in enumerate(lines) if re.match(r"[\w.]+(: |$)", line)]
        problem = "\n".join(lines[heads[-1] :] if heads else lines[:1])
        raise UnusableError("sent", problem[:_SHOWN]) from None


def _refused(header: Mapping[str, Any]) -> bool:
    """Whether a value that arrived is, in whole or in part, the text of an error on the sender."""
    return header.get("serializer") == "error" or any(map(_refused, header.get("sub-headers", ())))


def transfer(worker: Worker, key: Any) -> tuple[str, str | None, float] | None:
    """Return the progress of an input's transfer; None if there is nothing to wait for.

    That is the phase, the sending worker if there is one yet, and an amount that changes as long
    as the phase makes progress.
    """
    ts = worker.state.tasks.get(key)
    if ts is None or ts.state == "memory":
        return None
    if ts.coming_from is not None:
        for comm in _transfers(worker.rpc.occupied.get(ts.coming_from, ())):
            stream = getattr(comm, "stream", None)
            if stream is None:  # progress cannot be measured
                return "receiving", ts.coming_from, time.monotonic()
            if not stream.reading():
                return "opening", ts.coming_from, offload_seconds()
            return "receiving", ts.coming_from, stream._read_buffer_size
        return "receiving", ts.coming_from, 0
    if ts.state == "fetch":
        if ts.who_has & worker.state.busy_workers:
            return "refused", None, time.monotonic()
        arriving = [c for comms in worker.rpc.occupied.values() for c in _transfers(comms)]
        sizes = [getattr(getattr(c, "stream", None), "_read_buffer_size", 0) for c in arriving]
        return "queued", None, worker.state.transfer_incoming_count_total + sum(sizes)
    return "missing", None, 0


def offload_seconds() -> float:
    """Return the CPU seconds that this process has spent serializing and opening large values."""
    ids = {t.native_id for t in threading.enumerate() if t.name.startswith(_OFFLOAD)}
    spent = [t.user_time + t.system_time for t in psutil.Process().threads() if t.id in ids]
    return float(sum(spent))


def abandon_transfers(worker: Worker, peer: str) -> None:
    """Abort a worker's transfers from another; it retries by itself, from other workers first."""
    for comm in _transfers(worker.rpc.occupied.get(peer, ())):
        comm.abort()
    for cancel in list(worker.rpc._connecting.get(peer, ())):
        cancel("a transfer made no progress")


def drop_unfinished(worker: Worker) -> None:
    """Close idle connections on which a transfer may have failed halfway.

    A worker that cannot open a value does not confirm it, and the sender keeps waiting for that. So
    the next transfer on the same connection would fail.
    """
    for comms in worker.rpc.available.values():
        for comm in _transfers(comms):
            comm.abort()


def _transfers(comms: Iterable[Comm]) -> list[Comm]:
    return [comm for comm in comms if comm.name == _TRANSFER]


def refetch(worker: Worker, who_has: Mapping[Any, list[str]]) -> None:
    """Have a worker fetch failed inputs again, which it never does by itself."""
    tasks = worker.state.tasks
    nbytes = {key: tasks[key].nbytes or 1 for key in who_has}
    stimulus_id = f"handoff-refetch-{time.time()}"
    worker.handle_stimulus(
        FreeKeysEvent(keys=list(who_has), stimulus_id=stimulus_id),
        AcquireReplicasEvent(who_has=dict(who_has), nbytes=nbytes, stimulus_id=stimulus_id),
    )


# On the scheduler


def drop_replica(scheduler: Scheduler, key: Any, worker: str, stimulus_id: str) -> None:
    """Treat a value on a worker as lost. If no other worker has it, it is computed again."""
    scheduler.release_worker_data(key=key, worker=worker, stimulus_id=stimulus_id)
    # If the worker answers after all, it must not keep a value that the scheduler has forgotten.
    scheduler.worker_send(
        worker, {"op": "remove-replicas", "keys": [key], "stimulus_id": stimulus_id}
    )
