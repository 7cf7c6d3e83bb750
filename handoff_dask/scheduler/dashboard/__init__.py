"""What the scheduler shows: panels on Dask's dashboard, metrics, and JSON.

It is fed by the plugin's events and reads the plugin's state. Without Bokeh, a dashboard or
prometheus_client, that part is missing and nothing else changes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from distributed import Scheduler

from handoff_dask.compat import dashboard as compat
from handoff_dask.scheduler.dashboard import metrics, routes
from handoff_dask.scheduler.dashboard.history import History
from handoff_dask.scheduler.dashboard.overview import Overview
from handoff_dask.scheduler.dashboard.sources import Sources

if TYPE_CHECKING:
    from bokeh.document import Document

__all__ = ["PAGES", "Sources", "install"]

logger = logging.getLogger(__name__)

#: The page with all panels.
TAB = "/handoff"
#: Panels by path. dask-labextension lists paths that begin with ``individual-`` by their names.
PAGES = {
    "/individual-handoff-allocations": "allocations",
    "/individual-handoff-resources": "resources",
    "/individual-handoff-runs": "runs",
    TAB: "all",
}


def install(scheduler: Scheduler, sources: Sources) -> History:
    """Show Handoff on a scheduler until the returned history is closed.

    The history is to be called with each event of ``handoff_dask.wire.run_events``. Handoff works
    without a dashboard, so a failure is only logged.
    """
    history = History(sources.runs)
    overview = Overview(scheduler, sources, history)
    for part in (_install_pages, routes.install, metrics.install):
        try:
            part(scheduler, overview, history.shown)
        except Exception:
            logger.warning("Handoff could not add to the dashboard", exc_info=True)
    return history


def _install_pages(scheduler: Scheduler, overview: Overview, installed: ExitStack) -> None:
    pages = {path: partial(_open, overview, name) for path, name in PAGES.items()}
    installed.callback(compat.Pages(scheduler, pages, TAB).remove)


def _open(
    overview: Overview,
    name: str,
    scheduler: Scheduler,
    variables: Mapping[str, Any],
    document: Document,
) -> None:
    # Imports Bokeh, which takes long and may be missing: only once somebody looks.
    from handoff_dask.scheduler.dashboard import pages

    pages.open_page(name, overview, variables, document)
