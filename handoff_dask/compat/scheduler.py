"""The scheduler, beyond its public API.

Tested with dask and distributed 2025.1.0 and 2026.8.0.
"""

from __future__ import annotations

import asyncio
import math
import pickle
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from distributed import Scheduler
from distributed.comm.core import connect as open_comm
from distributed.core import send_recv
from distributed.scheduler import TaskState
from tornado.ioloop import PeriodicCallback

from handoff_dask.compat.task_spec import Task

#: An address that no worker has. A task restricted to it waits in ``no-worker``. All tasks share
#: one set, because one for each of 100,000 tasks would keep the garbage collector busy. It is
#: frozen, so that no change can open the gate for all of them.
_NOWHERE: Any = frozenset(("held://handoff",))
#: Initial count of workers that died while running a task: so low that Dask never gives up. The
#: plugin does.
_NEVER_SUSPICIOUS = -(2**31)


def drop_topic(scheduler: Scheduler, topic: str) -> None:
    """Forget a topic and its subscribers. Dask keeps the latest events of each topic for ever."""
    scheduler._broker._topics.pop(topic, None)


def hold(ts: TaskState) -> None:
    """Keep a task away from every worker until it is placed.

    Its resources are removed too: Dask would compare them with every worker each time one joins.
    """
    ts.worker_restrictions = _NOWHERE
    ts.host_restrictions = None
    ts.resource_restrictions = None
    # Otherwise Dask uses any worker if no allowed one exists.
    ts.loose_restrictions = False
    ts.suspicious = _NEVER_SUSPICIOUS


def is_held(ts: TaskState) -> bool:
    """Whether a task is still as :func:`hold` left it."""
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


def free_near_inputs(ts: TaskState) -> None:
    """Let a task run on any worker, rather one that has its inputs, ahead of all others there."""
    free(ts)
    # Without any restriction, Dask spreads the tasks of a large group over all workers.
    ts.worker_restrictions = _NOWHERE
    ts.loose_restrictions = True
    prioritise(ts, 2.0**40)


def let_any_worker_take(ts: TaskState) -> None:
    """Let a task of :func:`free_near_inputs` run that found no running worker.

    Dask reconsiders such a task only for workers that its restrictions name, however loose.
    """
    if ts.worker_restrictions is _NOWHERE and ts.loose_restrictions:
        ts.worker_restrictions = None


def release_hold(ts: TaskState, workers: frozenset[str], resources: dict[str, float]) -> None:
    """Let a held task run on the only worker of a set, and claim resources there."""
    ts.worker_restrictions = workers  # type: ignore[assignment] # Dask only reads it
    ts.host_restrictions = None
    ts.resource_restrictions = resources
    ts.loose_restrictions = False


def prioritise(ts: TaskState, priority: float) -> None:
    """Have the worker of a task start it before others of a lower priority."""
    assert ts.priority is not None
    # A float: the message to the worker cannot hold every whole number.
    ts.priority = (-float(priority), *ts.priority[1:])


def install_handlers(
    scheduler: Scheduler,
    handlers: Mapping[str, Callable[..., Any]],
    on_streams: Mapping[str, Callable[..., Any]],
) -> Callable[[], None]:
    """Install handlers for calls and for workers' streams; return what restores the former."""
    undo = []
    table: dict[str, Any]
    for table, new in ((scheduler.handlers, handlers), (scheduler.stream_handlers, on_streams)):
        undo.append((table, new, {name: table[name] for name in new if name in table}))
        table.update(new)

    def restore() -> None:
        for table, new, before in undo:
            for name in new:
                table.pop(name, None)
            table.update(before)

    return restore


def declare(scheduler: Scheduler, worker: str, resources: Mapping[str, float]) -> None:
    """Record on the scheduler what a worker declares; the amounts in use are unchanged.

    Dask's own ``add_resources`` resets these to 0 although tasks may be running, and does not
    reconsider tasks that wait for such a declaration.
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


def exact(amount: float) -> float:
    """Round an amount down so that a worker can add and subtract it without rounding errors.

    Workers sum claims as floats. After claims of 1.5 and 1.8 on 4 cores, 3.9999999999999996 would
    be free for the rest of the worker's life, and a function that needs 4 could never run there.
    """
    # Larger amounts have no fraction that fine, and the division could round them up.
    return amount if amount >= 2**37 else math.floor(amount * 65536) / 65536


def died_under(ts: TaskState) -> bool:
    """Whether a worker died while running a task, since the task was held."""
    return ts.suspicious != _NEVER_SUSPICIOUS


def input_sizes(ts: TaskState) -> tuple[dict[str, float], float]:
    """Return how many bytes of a task's inputs each worker has, and how many there are in total."""
    sizes: dict[str, float] = {}
    total = 0.0
    for dependency in ts.dependencies:
        if dependency.who_has:
            total += dependency.nbytes
            for ws in dependency.who_has:
                sizes[ws.address] = sizes.get(ws.address, 0) + dependency.nbytes
    return sizes, total


def noted(ts: TaskState) -> Sequence[Any]:
    """Return and forget what a worker noted about a task that ended well."""
    if not ts.metadata:
        return ()
    note: Sequence[Any] = ts.metadata.pop("handoff", ())
    ts.metadata = ts.metadata or None
    return note


def placement_number(ts: TaskState) -> int:
    """Return the scheduler's number of the latest time that a task was sent to a worker."""
    assert ts.run_id is not None
    return ts.run_id


def ended_by_worker(ts: TaskState, finish: str, facts: Mapping[str, Any], retried: bool) -> bool:
    """Whether a task left ``processing`` because its worker reported its end.

    `finish` and `facts` are its new state and the other arguments of the transition; `retried` says
    whether it failed and Dask was told to retry it once.
    """
    if finish == "memory" or "startstops" in facts:
        return True
    return retried and not ts.retries  # Dask has used up its one retry


async def ask_once(
    scheduler: Scheduler, address: str, connect: float, answer: float, **message: Any
) -> Any:
    """Send a message over a new connection; return the answer.

    A pooled connection may outlive the process on the other side. If that does not accept the
    connection within `connect` seconds, or then does not answer within `answer` seconds, OSError
    or asyncio.TimeoutError is raised.
    """
    # Dask's own time limit does not cover the handshake, which a stopped process never answers.
    opening = open_comm(address, timeout=connect, **scheduler.rpc.connection_args)
    comm = await asyncio.wait_for(opening, connect)
    try:
        return await asyncio.wait_for(send_recv(comm, reply=True, **message), answer)
    finally:
        comm.abort()


def put_task(
    scheduler: Scheduler,
    key: Any,
    spec: Task,
    like: TaskState,
    annotations: Mapping[str, Any],
) -> TaskState:
    """Add a task to the scheduler, or replace what one computes that waits for its inputs.

    The scheduler must have the tasks that it depends on. Its priority is that of another task.
    Those that depend on it stay as they are; it is left in ``released``.
    """
    ts = scheduler.tasks.get(key)
    if ts is None:
        ts = scheduler.new_task(key, spec, "released")
        ts.priority = like.priority
        if ts.group.span_id is None:  # a worker's heartbeat may name no group without one
            ts.group.span_id = like.group.span_id
    else:
        if ts.state != "released":
            scheduler.transition(key, "released", f"handoff-put-{time.time()}")
        for dependency in list(ts.dependencies):
            dependency.dependents.discard(ts)
            if dependency.waiters is not None:
                dependency.waiters.discard(ts)
        ts.dependencies.clear()
        ts.run_spec = spec
    for dependency_key in spec.dependencies:
        ts.add_dependency(scheduler.tasks[dependency_key])
    ts.annotations = dict(annotations)
    return ts


def arguments(ts: TaskState) -> tuple[Any, ...]:
    """Return the arguments of what a task computes."""
    assert isinstance(ts.run_spec, Task)
    return ts.run_spec.args


def fail_task(
    scheduler: Scheduler,
    key: Any,
    error: BaseException,
    stimulus_id: str,
    *,
    worker: str | None = None,
) -> None:
    """Fail a task that is held, or that a worker runs, with a given error."""
    where = {} if worker is None else {"worker": worker}
    recommendations = scheduler.transition(
        key, "erred", exception=pickle.dumps(error), cause=key, stimulus_id=stimulus_id, **where
    )
    # Without these, dependents and clients would not notice and wait forever.
    scheduler.transitions(recommendations, stimulus_id)


def fail_orphan(scheduler: Scheduler, key: Any, stimulus_id: str) -> None:
    """Fail a task that is to run, or again, and whose dependency has failed before.

    Dask would let it wait forever.
    """
    ts = scheduler.tasks.get(key)
    if ts is None or ts.state not in ("released", "waiting"):
        return
    for dependency in ts.dependencies:
        if dependency.state == "erred":
            ts.exception_blame = dependency.exception_blame or dependency
            scheduler.transitions({key: "erred"}, stimulus_id)
            return


def clients_wanting(ts: TaskState | None) -> set[str]:
    """Return the clients that want a task, by their id."""
    return set() if ts is None else {client.client_key for client in ts.who_wants or ()}


def cancel_for_all(scheduler: Scheduler, keys: Sequence[Any]) -> None:
    """Release tasks for all clients that want them, and tell these that they are cancelled."""
    for client in set().union(*(clients_wanting(scheduler.tasks[key]) for key in keys)):
        scheduler.client_releases_keys(keys=keys, client=client)
    if keys:
        report_cancelled(scheduler, keys)


def report_cancelled(
    scheduler: Scheduler, keys: Sequence[Any], clients: Iterable[str] | None = None
) -> None:
    """Tell clients, or all, that tasks are cancelled."""
    for client in list(scheduler.client_comms if clients is None else clients):
        comm = scheduler.client_comms.get(client)
        # Dask would log the whole message if the client has just gone.
        if comm is not None and not comm.closed():
            scheduler.report({"op": "cancelled-keys", "keys": keys}, client=client)


def watch_clients(
    scheduler: Scheduler,
    cancel: Callable[[list[Any], str, bool], list[Any]],
    retrying: Callable[[list[Any], str | None], None],
    released: Callable[[Iterable[Any]], None],
) -> Callable[[], None]:
    """Intercept the keys that clients cancel, retry or release; return what stops that.

    When Dask cancels, it follows dependents, and raises on one that no client wants. The client
    that cancelled then loses its stream, and with it everything that it has on the cluster.

    `cancel` is called with the keys, the client's id, and whether to cancel what other clients
    want, too; it returns the keys that Dask shall cancel. `retrying` is called with the keys that
    a client retries and its id, before Dask does that, and may raise. `released` is called with the
    keys that a client has released: a failed task that others depend on does not change its state
    then.
    """
    inner, retry = scheduler.stimulus_cancel, scheduler.handlers["retry"]
    release = scheduler.client_releases_keys

    def stimulus_cancel(
        keys: Iterable[Any], client: str, force: bool = False, **kwargs: Any
    ) -> None:
        if others := cancel(list(keys), client, force):
            inner(others, client, force=force, **kwargs)

    def stimulus_retry(keys: Iterable[Any], client: str | None = None) -> Any:
        keys = list(keys)
        retrying(keys, client)
        seen = retry(keys=keys, client=client)
        # The client takes all of these for its own.
        return tuple(
            key
            for key in seen
            if client is None or key in keys or client in clients_wanting(scheduler.tasks[key])
        )

    def client_releases_keys(keys: Iterable[Any], client: str, **kwargs: Any) -> None:
        keys = list(keys)
        release(keys, client, **kwargs)
        released(keys)

    def install(cancelling: Any, retried: Any, releasing: Any) -> None:
        # For dependents, Dask calls itself through the attribute.
        scheduler.stimulus_cancel = cancelling  # type: ignore[method-assign]
        scheduler.stream_handlers["cancel-keys"] = cancelling
        scheduler.handlers["retry"] = retried
        scheduler.client_releases_keys = releasing  # type: ignore[method-assign]
        scheduler.stream_handlers["client-releases-keys"] = releasing

    install(stimulus_cancel, stimulus_retry, client_releases_keys)
    return lambda: install(inner, retry, release)


def keep_unrunnable(scheduler: Scheduler, mark: str) -> PeriodicCallback | None:
    """Exempt tasks from the operator's ``distributed.scheduler.no-workers-timeout``, if it is set.

    Tasks with the annotation `mark` wait on purpose; the limit is meant for tasks that no worker
    can run. Their clock is reset periodically.
    """
    if scheduler.no_workers_timeout is None:
        return None

    def refresh() -> None:
        now = time.monotonic()
        for ts in [ts for ts in scheduler.unrunnable if mark in (ts.annotations or ())]:
            # Moves it to the end: Dask expects the oldest first.
            del scheduler.unrunnable[ts]
            scheduler.unrunnable[ts] = now

    callback = PeriodicCallback(refresh, scheduler.no_workers_timeout * 1000 / 4)
    callback.start()
    return callback
