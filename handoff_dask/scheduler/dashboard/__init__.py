"""What the scheduler shows: panels on Dask's dashboard, metrics, and JSON.

All of it only reads the plugin's state. Without Bokeh, without a dashboard or without
prometheus_client, that part is not there and nothing else changes.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from handoff_dask.compat import dashboard as compat
from handoff_dask.scheduler.dashboard.history import History

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bokeh.document import Document
    from distributed import Scheduler

    from handoff_dask.scheduler.plugin import HandoffPlugin

__all__ = ["PAGES", "install"]

logger = logging.getLogger(__name__)

#: The page with all panels.
TAB = "/handoff"


def _allocations(scheduler: Scheduler, extra: Mapping[str, Any], document: Document) -> None:
    from handoff_dask.scheduler.dashboard.allocations_panel import Allocations

    Allocations(scheduler).open(document)


def _resources(scheduler: Scheduler, extra: Mapping[str, Any], document: Document) -> None:
    from handoff_dask.scheduler.dashboard.resources_panel import Resources

    Resources(scheduler).open(document)


def _runs(scheduler: Scheduler, extra: Mapping[str, Any], document: Document) -> None:
    from handoff_dask.scheduler.dashboard.runs_panel import Runs

    Runs(scheduler).open(document)


def _all(scheduler: Scheduler, extra: Mapping[str, Any], document: Document) -> None:
    from handoff_dask.scheduler.dashboard.page import open_all

    open_all(scheduler, extra, document)


#: Pages by path. dask-labextension lists those that begin with ``individual-`` by their names.
PAGES: dict[str, compat.Page] = {
    "/individual-handoff-allocations": _allocations,
    "/individual-handoff-resources": _resources,
    "/individual-handoff-runs": _runs,
    TAB: _all,
}


def install(plugin: HandoffPlugin) -> History:
    """Show the state of a plugin on its scheduler, until the history that is returned is closed.

    The plugin works without it, so that a failure is logged and no more.
    """
    from handoff_dask.scheduler.dashboard import metrics, routes

    history = History()
    for part in (_pages, routes.install, metrics.install):
        try:
            part(plugin, history.shown)
        except Exception:
            logger.warning("Handoff could not add to the dashboard", exc_info=True)
    return history


def _pages(plugin: HandoffPlugin, installed: ExitStack) -> None:
    pages = compat.Pages(plugin.scheduler, PAGES, TAB)
    installed.callback(pages.remove)
