"""What the scheduler does not offer as public API.

Tried with dask and distributed 2025.1.0 and 2026.8.0.
"""

from __future__ import annotations

import asyncio
import math
import pickle
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from distributed.comm.core import connect as open_comm
from distributed.core import send_recv
from tornado.ioloop import PeriodicCallback

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState

__all__ = [
    "adopt_exception",
    "ask_once",
    "claimed_by_task",
    "claimed_names",
    "declare",
    "died_under",
    "ended_by_worker",
    "exact",
    "fail_orphan",
    "fail_task",
    "failed_input",
    "free",
    "hold",
    "input_sizes",
    "install_handlers",
    "is_held",
    "keep_unrunnable",
    "lacks_failed",
    "placement_number",
    "release_hold",
    "replace_exception",
    "seceded",
    "undeclare",
    "watch_clients",
]

#: The address that no worker answers to. A task restricted to it waits in ``no-worker``. One set
#: for all, since one for each of 100,000 tasks keeps the garbage collector busy; frozen, so that
#: nobody opens the gate for all.
_NOWHERE: Any = frozenset(("held://handoff",))


#: Where the count of workers that died under a task starts: Dask never gives up, the plugin does.
_NEVER_SUSPICIOUS = -(2**31)


def hold(ts: TaskState) -> None:
    """Keep a task from every worker until it is placed.

    Its resources are put aside too: Dask would compare them with every worker each time one joins.
    """
    ts.worker_restrictions = _NOWHERE
    ts.host_restrictions = None
    ts.resource_restrictions = None
    # Else Dask takes any worker where no allowed one exists.
    ts.loose_restrictions = False
    ts.suspicious = _NEVER_SUSPICIOUS


def is_held(ts: TaskState) -> bool:
    """Whether a task is as :func:`hold` left it."""
    return (
        ts.worker_restrictions is _NOWHERE
        and ts.host_restrictions is None
        and ts.resource_restrictions is None
        and not ts.loose_restrictions
    )


def free(ts: TaskState) -> None:
    """Let a task run on any worker, however many of them die."""
    ts.worker_restrictions = None
    ts.host_restrictions = None
    ts.resource_restrictions = None
    ts.suspicious = _NEVER_SUSPICIOUS


def release_hold(ts: TaskState, workers: frozenset[str], resources: dict[str, float]) -> None:
    """Let a held task run on the one worker of a set, claiming resources of it."""
    ts.worker_restrictions = workers  # type: ignore[assignment] # Dask only looks into it
    ts.host_restrictions = None
    ts.resource_restrictions = resources
    ts.loose_restrictions = False


def install_handlers(
    scheduler: Scheduler,
    handlers: Mapping[str, Callable[..., Any]],
    on_streams: Mapping[str, Callable[..., Any]],
) -> Callable[[], None]:
    """Install handlers on a scheduler, for calls and for messages on its workers' streams.

    Returns
    -------
    Callable
        Restores the former handlers.
    """
    undo = []
    known: dict[str, Any]
    for known, new in ((scheduler.handlers, handlers), (scheduler.stream_handlers, on_streams)):
        undo.append((known, new, {name: known[name] for name in new if name in known}))
        known.update(new)

    def restore() -> None:
        for known, new, before in undo:
            for name in new:
                known.pop(name, None)
            known.update(before)

    return restore


def declare(scheduler: Scheduler, worker: str, resources: Mapping[str, float]) -> None:
    """Record on the scheduler what a worker declares; the amounts in use stay as they are.

    Dask's own ``add_resources`` resets them to 0 although tasks may be running, and does not
    reconsider tasks that waited for such a declaration.
    """
    ws = scheduler.workers[worker]
    for name, amount in resources.items():
        ws.resources[name] = amount
        ws.used_resources.setdefault(name, 0)
        scheduler.resources.setdefault(name, {})[worker] = amount
    if ws in scheduler.running:
        scheduler.transitions(
            scheduler.bulk_schedule_unrunnable_after_adding_worker(ws),
            f"handoff-declared-{time.time()}",
        )


def undeclare(scheduler: Scheduler, worker: str, name: str, before: float | None) -> None:
    """Remove or reduce, on the scheduler, a resource of a worker that no task claims."""
    ws = scheduler.workers[worker]
    if before is not None:
        ws.resources[name] = scheduler.resources[name][worker] = before
        return
    del ws.resources[name], ws.used_resources[name], scheduler.resources[name][worker]
    if not scheduler.resources[name]:
        del scheduler.resources[name]


def claimed_names(ts: TaskState) -> Iterable[str]:
    """Return the names of the resources that a task claims, or will claim once it has a worker."""
    return ts.resource_restrictions or ()


def exact(amount: float) -> float:
    """Round an amount down so that a worker can add and subtract it without ever being off.

    Workers sum claims as floats. After 1.5 and 1.8 of 4 cores came and went, 3.9999999999999996
    would be free for as long as the worker lives, and a fourth core never again.
    """
    # What is larger has no more digits than that, and a division could round it up.
    return amount if amount >= 2**37 else math.floor(amount * 65536) / 65536


def seceded(ts: TaskState) -> bool:
    """Whether the function of a task that runs has given up its thread."""
    return ts.processing_on is not None and ts in ts.processing_on.long_running


def died_under(ts: TaskState) -> bool:
    """Whether a worker was lost, out of order, under a task since it was held."""
    return ts.suspicious != _NEVER_SUSPICIOUS


def input_sizes(ts: TaskState) -> tuple[dict[str, float], float]:
    """Return how many bytes of a task's inputs each worker has, and how many there are."""
    sizes: dict[str, float] = {}
    total = 0.0
    for dependency in ts.dependencies:
        if dependency.who_has:
            total += dependency.nbytes
            for ws in dependency.who_has:
                sizes[ws.address] = sizes.get(ws.address, 0) + dependency.nbytes
    return sizes, total


def placement_number(ts: TaskState) -> int:
    """Return the scheduler's number of the last time that a task was given to a worker."""
    assert ts.run_id is not None
    return ts.run_id


def ended_by_worker(ts: TaskState, finish: str, facts: Mapping[str, Any], retried: bool) -> bool:
    """Whether a task left ``processing`` because its worker reported its end.

    Parameters
    ----------
    finish, facts
        The state that it is in, and the other arguments of the transition.
    retried
        Whether it failed and Dask was told to retry it once.
    """
    if finish == "memory" or "startstops" in facts:
        return True
    return retried and not ts.retries  # Dask has used up the one it was given


def claimed_by_task(ts: TaskState) -> tuple[str, dict[str, float]] | None:
    """Return the worker of a task in processing and what it claims there, if it claims anything."""
    if ts.resource_restrictions and ts.processing_on:
        return ts.processing_on.address, ts.resource_restrictions
    return None


async def ask_once(
    scheduler: Scheduler, address: str, connect: float, answer: float, **message: Any
) -> Any:
    """Send a message over a connection of its own; return the answer.

    A pooled connection may outlive the process on the other side.

    Parameters
    ----------
    connect, answer
        Seconds for the other side to accept the connection, and then to answer.

    Raises
    ------
    OSError, asyncio.TimeoutError
        It does not.
    """
    # Dask's own limit does not cover the handshake, which a stopped process never answers.
    opening = open_comm(address, timeout=connect, **scheduler.rpc.connection_args)
    comm = await asyncio.wait_for(opening, connect)
    try:
        return await asyncio.wait_for(send_recv(comm, reply=True, **message), answer)
    finally:
        comm.abort()


def fail_task(
    scheduler: Scheduler,
    key: Any,
    error: BaseException,
    stimulus_id: str,
    *,
    worker: str | None = None,
) -> None:
    """Fail a task that is held, or that a worker runs, with an error of ours."""
    where = {} if worker is None else {"worker": worker}
    recommendations = scheduler.transition(
        key, "erred", exception=pickle.dumps(error), cause=key, stimulus_id=stimulus_id, **where
    )
    # Without these, dependents and clients hear nothing and wait for ever.
    scheduler.transitions(recommendations, stimulus_id)


def lacks_failed(ts: TaskState) -> bool:
    """Whether a task needs the result of another that failed."""
    return any(dependency.state == "erred" for dependency in ts.dependencies)


def failed_input(ts: TaskState) -> TaskState | None:
    """Return the direct dependency because of which a task erred, if there is one."""
    return ts.exception_blame if ts.exception_blame in ts.dependencies else None


def adopt_exception(ts: TaskState, culprit: TaskState) -> None:
    """Give a task that erred the exception of another."""
    ts.exception = culprit.exception
    ts.traceback = culprit.traceback
    ts.traceback_text = culprit.traceback_text


def fail_orphan(scheduler: Scheduler, key: Any, stimulus_id: str) -> None:
    """Fail a task that is to be done again and whose dependency failed since it was done.

    Dask would have it wait for ever.
    """
    ts = scheduler.tasks.get(key)
    if ts is None or ts.state not in ("released", "waiting"):
        return
    for dependency in ts.dependencies:
        if dependency.state == "erred":
            ts.exception_blame = dependency.exception_blame or dependency
            scheduler.transitions({key: "erred"}, stimulus_id)
            return


def watch_clients(
    scheduler: Scheduler,
    cancel: Callable[[list[Any], str, bool], list[Any]],
    check_retry: Callable[[list[Any]], None],
) -> Callable[[], None]:
    """Intercept the keys that clients cancel or retry.

    When Dask cancels, it follows dependents, and fails on one that no client wants. Then the client
    that cancelled loses its stream, and with it everything that it has on the cluster.

    Parameters
    ----------
    cancel
        Called with the keys, the client's id, and whether to cancel what others want, too. Returns
        the keys that Dask is to cancel.
    check_retry
        Called with the keys that a client retries; may raise.

    Returns
    -------
    Callable
        Stops intercepting.
    """
    inner, retry = scheduler.stimulus_cancel, scheduler.handlers["retry"]

    def stimulus_cancel(
        keys: Iterable[Any], client: str, force: bool = False, **kwargs: Any
    ) -> None:
        if others := cancel(list(keys), client, force):
            inner(others, client, force=force, **kwargs)

    def stimulus_retry(keys: Iterable[Any], client: str | None = None) -> Any:
        check_retry(list(keys))
        return retry(keys=keys, client=client)

    def install(cancelling: Any, retrying: Any) -> None:
        # Dask calls itself for dependents: by the attribute.
        scheduler.stimulus_cancel = cancelling  # type: ignore[method-assign]
        scheduler.stream_handlers["cancel-keys"] = cancelling
        scheduler.handlers["retry"] = retrying

    install(stimulus_cancel, stimulus_retry)
    return lambda: install(inner, retry)


def replace_exception(ts: TaskState, error: BaseException | None) -> None:
    """Have a task that erred say so with another exception."""
    ts.exception = pickle.dumps(error)  # type: ignore[assignment] # bytes are what Dask uses itself


def keep_unrunnable(scheduler: Scheduler, mark: str) -> PeriodicCallback | None:
    """Spare tasks the operator's ``distributed.scheduler.no-workers-timeout``, if it is set.

    They wait on purpose; the limit is meant for tasks that no worker can take. Their clock is reset
    periodically.

    Parameters
    ----------
    scheduler
        The scheduler.
    mark
        The annotation that marks these tasks.
    """
    if scheduler.no_workers_timeout is None:
        return None

    def refresh() -> None:
        now = time.monotonic()
        for ts in [ts for ts in scheduler.unrunnable if mark in (ts.annotations or ())]:
            # At the end again: Dask expects the oldest first.
            del scheduler.unrunnable[ts]
            scheduler.unrunnable[ts] = now

    callback = PeriodicCallback(refresh, scheduler.no_workers_timeout * 1000 / 4)
    callback.start()
    return callback
