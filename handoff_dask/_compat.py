"""Every touch of Dask that is not public API, and nothing else.

Tried with dask and distributed 2025.1.0 and 2026.8.0.
"""

from __future__ import annotations

import math
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import dask.config
from dask._task_spec import GraphNode, Task, TaskRef
from tornado.ioloop import IOLoop, PeriodicCallback

from handoff_dask._compat_worker import (
    WORKER_ANY_RUNNING,
    NotStarted,
    TaskEnds,
    killed_for_memory,
    set_resource,
    started,
    task_annotations,
    this_task,
    watch_exits,
    worker_address,
)

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState

__all__ = [
    "WORKER_ANY_RUNNING",
    "GraphNode",
    "NotStarted",
    "Pages",
    "Task",
    "TaskEnds",
    "TaskRef",
    "claimed_by_task",
    "claimed_names",
    "dashboard_look",
    "declare",
    "died_under",
    "exact",
    "fail_orphan",
    "fail_task",
    "hold",
    "http_prefix",
    "install_handlers",
    "is_held",
    "keep_unrunnable",
    "killed_for_memory",
    "lacks_failed",
    "metric_name",
    "placement_number",
    "release_hold",
    "replace_exception",
    "set_resource",
    "started",
    "task_annotations",
    "this_task",
    "undeclare",
    "watch_exits",
    "worker_address",
]

#: The address that no worker answers to. A task restricted to it waits in ``no-worker``. One set
#: for all: nobody changes it, and one for each of 100,000 tasks keeps the garbage collector busy.
_NOWHERE = {"held://handoff"}
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
    ts.suspicious = _NEVER_SUSPICIOUS


def is_held(ts: TaskState) -> bool:
    """Whether a task is as :func:`hold` left it."""
    return (
        ts.worker_restrictions is _NOWHERE
        and ts.host_restrictions is None
        and ts.resource_restrictions is None
    )


def release_hold(ts: TaskState, workers: set[str], resources: dict[str, float]) -> None:
    """Let a held task run on the one worker of a set, claiming resources of it."""
    ts.worker_restrictions = workers
    ts.resource_restrictions = resources


def install_handlers(
    scheduler: Scheduler,
    handlers: Mapping[str, Callable[..., Any]],
    on_streams: Mapping[str, Callable[..., Any]],
) -> Callable[[], None]:
    """Have a scheduler answer calls, and messages on its workers' streams, with these.

    Returns
    -------
    Callable
        Has it answer as before.
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
    """Have the scheduler take in what a worker declares; what is used of it stays in the books.

    Dask's own ``add_resources`` starts these at 0, though tasks may be running. Nor does it look
    at the tasks that waited for such a declaration.
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
    """Have the scheduler forget a resource of a worker that no task claims, or know less of it."""
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
    return math.floor(amount * 65536) / 65536


def died_under(ts: TaskState) -> bool:
    """Whether a worker was lost, out of order, under a task since it was held."""
    return ts.suspicious != _NEVER_SUSPICIOUS


def placement_number(ts: TaskState) -> int:
    """Return the scheduler's number of the last time that a task was given to a worker."""
    assert ts.run_id is not None
    return ts.run_id


def claimed_by_task(ts: TaskState) -> tuple[str, dict[str, float]] | None:
    """Return the worker of a task in processing and what it claims there, if it claims anything."""
    if ts.resource_restrictions and ts.processing_on:
        return ts.processing_on.address, ts.resource_restrictions
    return None


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


def replace_exception(ts: TaskState, error: BaseException | None) -> None:
    """Have a task that erred say so with another exception."""
    ts.exception = pickle.dumps(error)  # type: ignore[assignment] # bytes are what Dask uses itself


def keep_unrunnable(
    scheduler: Scheduler, held: Callable[[], Iterable[Any]]
) -> PeriodicCallback | None:
    """Spare held tasks the operator's ``distributed.scheduler.no-workers-timeout``, if it is set.

    They wait on purpose; the limit is meant for tasks that no worker can take. Their clock is set
    back in time, again and again.
    """
    if scheduler.no_workers_timeout is None:
        return None

    def refresh() -> None:
        now = time.monotonic()
        for key in held():
            ts = scheduler.tasks.get(key)
            if ts is not None and ts in scheduler.unrunnable:
                # At the end again: Dask expects the oldest first.
                del scheduler.unrunnable[ts]
                scheduler.unrunnable[ts] = now

    callback = PeriodicCallback(refresh, scheduler.no_workers_timeout * 1000 / 4)
    callback.start()
    return callback


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
