"""Every touch of Dask that is not public API, and nothing else.

Tried with dask and distributed 2025.1.0 and 2026.8.0.
"""

from __future__ import annotations

import asyncio
import math
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import dask.config
from dask._task_spec import GraphNode, Task, TaskRef
from distributed.comm.core import connect as open_comm
from distributed.core import send_recv
from tornado.ioloop import IOLoop, PeriodicCallback

from handoff_dask.compat.worker import (
    WORKER_ANY_RUNNING,
    NotStarted,
    TaskEnds,
    ThisTask,
    close_clients,
    end_workers,
    failures_shown,
    killed_for_memory,
    on_loop,
    process_client,
    set_resource,
    silence_failure,
    started,
    task_annotations,
    task_nearby,
    this_task,
    watch_exits,
    worker_address,
)

if TYPE_CHECKING:
    from distributed import Future, Scheduler
    from distributed.scheduler import TaskState

__all__ = [
    "WORKER_ANY_RUNNING",
    "GraphNode",
    "NotStarted",
    "Pages",
    "Task",
    "TaskEnds",
    "TaskRef",
    "ThisTask",
    "adopt_exception",
    "ask_once",
    "claimed_by_task",
    "claimed_names",
    "close_clients",
    "dashboard_look",
    "declare",
    "died_under",
    "end_workers",
    "ended_by_worker",
    "exact",
    "fail_orphan",
    "fail_task",
    "failed_input",
    "failures_shown",
    "free",
    "hold",
    "http_prefix",
    "input_sizes",
    "install_handlers",
    "is_held",
    "keep_unrunnable",
    "killed_for_memory",
    "lacks_failed",
    "metric_name",
    "on_loop",
    "placement_number",
    "process_client",
    "release_hold",
    "replace_exception",
    "seceded",
    "set_resource",
    "settle_future",
    "silence_failure",
    "started",
    "task_annotations",
    "task_nearby",
    "this_task",
    "undeclare",
    "watch_clients",
    "watch_exits",
    "worker_address",
]

#: The address that no worker answers to. A task restricted to it waits in ``no-worker``. One set
#: for all, since one for each of 100,000 tasks keeps the garbage collector busy; frozen, so that
#: nobody opens the gate for all.
_NOWHERE: Any = frozenset(("held://handoff",))
#: Where the count of workers that died under a task starts: Dask never gives up, the plugin does.
_NEVER_SUSPICIOUS = -(2**31)


# On the scheduler


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


def input_sizes(ts: TaskState) -> dict[str, float]:
    """Return how many bytes of a task's inputs each worker has."""
    sizes: dict[str, float] = {}
    for dependency in ts.dependencies:
        for ws in dependency.who_has or ():
            sizes[ws.address] = sizes.get(ws.address, 0) + dependency.nbytes
    return sizes


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


# At a client


def settle_future(future: Future[Any], state: str) -> None:
    """Set a future to the state that its task has on the scheduler.

    Parameters
    ----------
    state
        ``"memory"`` or ``"erred"``; any other changes nothing.
    """
    known = future._state
    if known is not None and state == "memory":
        known.finish()
    elif known is not None and state == "erred":
        known.set_error(RuntimeError("its error could not be read"), None)


# On the scheduler's dashboard

#: A function that fills a Bokeh document: called with scheduler, template variables, document.
Page = Callable[["Scheduler", dict[str, Any], Any], None]


class Pages:
    """Pages on the dashboard of a scheduler that was started without them.

    They are a Bokeh application of their own. The first one, Dask's, gets to know their paths,
    since that is where dask-labextension looks.

    Parameters
    ----------
    pages
        By path. A scheduler without a dashboard shows none.
    tab
        The path of the page that the navigation bar names.
    """

    def __init__(self, scheduler: Scheduler, pages: Mapping[str, Page], tab: str) -> None:
        self._scheduler = scheduler
        self._own: Any = None
        self._first = _dashboard(scheduler)
        if self._first is None:
            return
        from distributed.dashboard.core import BokehApplication
        from distributed.dashboard.scheduler import template_variables

        variables = template_variables(scheduler)
        self._tabs: list[str] = variables["pages"]
        self._menu: list[dict[str, str]] = variables["plots"]
        self._entries = [
            {"url": path.strip("/"), "name": " ".join(path.split("-")[1:]).title()}
            for path in pages
            if path.startswith("/individual-")
        ]
        self._tab = tab.strip("/")
        self._tabs.append(self._tab)
        self._menu += self._entries
        self._menu.sort(key=lambda entry: entry["name"])
        self._own = BokehApplication(
            pages, scheduler, prefix=self._first.prefix, template_variables=variables
        )
        scheduler.http_application.add_application(self._own)
        self._own.initialize(IOLoop.current())
        self._own.start()
        self._first._applications.update(self._own.applications)

    def remove(self) -> None:
        """Take the pages away. One that is open stays until it is closed."""
        if self._own is None:
            return
        own = self._own
        self._scheduler.http_application.applications.remove(own)
        for path in own.applications:
            self._first._applications.pop(path, None)
        for entry in self._entries:
            self._menu.remove(entry)
        self._tabs.remove(self._tab)
        _stop_unwatched(own)


def _dashboard(scheduler: Scheduler) -> Any:
    """Return the Bokeh application of a scheduler, if it has one."""
    module = sys.modules.get("bokeh.server.tornado")
    if module is None:
        return None
    applications = scheduler.http_application.applications
    return next((app for app in applications if isinstance(app, module.BokehTornado)), None)


def _stop_unwatched(application: Any) -> None:
    """Stop a Bokeh application once its last session has ended."""
    if any(context.sessions for context in application.applications.values()):
        IOLoop.current().call_later(1, _stop_unwatched, application)
    else:
        # No session is left to wait for, and the loop is running: newer Bokeh refuses to wait.
        application.stop(wait=False)


def dashboard_look() -> tuple[Any, Any]:
    """Return Dask's Bokeh theme, and its template for a page with the navigation bar."""
    from distributed.dashboard.components.scheduler import BOKEH_THEME, env

    return BOKEH_THEME, env.get_template("simple.html")


def http_prefix(scheduler: Scheduler) -> str:
    """Return what the operator put before the paths of a scheduler's pages: ``""`` or ``"/x"``."""
    page = "/individual-plots.json$"
    for rule in scheduler.http_application.wildcard_router.rules:
        regex = getattr(rule.matcher, "regex", None)
        if regex is not None and regex.pattern.endswith(page):
            return str(regex.pattern.removesuffix(page))
    return ""


def metric_name(name: str) -> str:
    """Return the full name of a metric, in the operator's namespace for Dask's."""
    namespace = dask.config.get("distributed.dashboard.prometheus.namespace", "dask")
    return f"{namespace}_handoff_{name}" if namespace else f"handoff_{name}"
