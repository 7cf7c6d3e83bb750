"""The scheduler's dashboard, beyond its public API."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import dask.config
from distributed import Scheduler
from tornado.ioloop import IOLoop

#: A function that fills a Bokeh document; called with scheduler, template variables, document.
Page = Callable[["Scheduler", dict[str, Any], Any], None]


def add_pages(scheduler: Scheduler, pages: Mapping[str, Page], tab: str) -> Callable[[], None]:
    """Add pages, by path, to a dashboard that was started without them; return what removes them.

    They form a separate Bokeh application. Their paths are also entered into Dask's application,
    where dask-labextension looks for them. `tab` is the path of the page that appears in the
    navigation bar. A scheduler without a dashboard shows none. After the removal, an open page
    stays until it is closed.
    """
    dashboard = _dashboard(scheduler)
    if dashboard is None:
        return lambda: None
    from distributed.dashboard.core import BokehApplication
    from distributed.dashboard.scheduler import template_variables

    variables = template_variables(scheduler)
    tabs: list[str] = variables["pages"]
    menu: list[dict[str, str]] = variables["plots"]
    entries = [
        {"url": path.strip("/"), "name": " ".join(path.split("-")[1:]).title()}
        for path in pages
        if path.startswith("/individual-")
    ]
    tabs.append(tab.strip("/"))
    menu += entries
    menu.sort(key=lambda entry: entry["name"])
    own: Any = BokehApplication(pages, scheduler, dashboard.prefix, template_variables=variables)
    scheduler.http_application.add_application(own)
    own.initialize(IOLoop.current())
    own.start()
    dashboard._applications.update(own.applications)

    def remove() -> None:
        scheduler.http_application.applications.remove(own)
        for path in own.applications:
            dashboard._applications.pop(path, None)
        for entry in entries:
            menu.remove(entry)
        tabs.remove(tab.strip("/"))
        _stop_unwatched(own)

    return remove


def _dashboard(scheduler: Scheduler) -> Any:
    """Return the Bokeh application of a scheduler, if any."""
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
        # There is no session to wait for, and newer Bokeh refuses to wait on a running loop.
        application.stop(wait=False)


def dashboard_look() -> tuple[Any, Any]:
    """Return Dask's Bokeh theme, and its template of a page with the navigation bar."""
    from distributed.dashboard.components.scheduler import BOKEH_THEME, env

    return BOKEH_THEME, env.get_template("simple.html")


def http_prefix(scheduler: Scheduler) -> str:
    """Return the operator's prefix of the paths of a scheduler's pages: ``""`` or ``"/x"``."""
    page = "/individual-plots.json$"
    for rule in scheduler.http_application.wildcard_router.rules:
        regex = getattr(rule.matcher, "regex", None)
        if regex is not None and regex.pattern.endswith(page):
            return str(regex.pattern.removesuffix(page))
    return ""


def metric_name(name: str) -> str:
    """Return the full name of a metric, in the namespace that the operator set for Dask."""
    namespace = dask.config.get("distributed.dashboard.prometheus.namespace", "dask")
    return f"{namespace}_handoff_{name}" if namespace else f"handoff_{name}"
