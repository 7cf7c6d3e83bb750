"""What the scheduler shows: panels on Dask's dashboard, metrics, and JSON.

It is fed by the plugin's events and reads the plugin's state. Without Bokeh, a dashboard or
prometheus_client, that part is missing and nothing else changes.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from handoff_dask.compat import dashboard as compat
from handoff_dask.scheduler.dashboard import metrics, routes
from handoff_dask.scheduler.dashboard.history import History
from handoff_dask.scheduler.dashboard.overview import Overview

__all__ = ["PAGES", "History", "Overview", "install"]

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


def install(overview: Overview) -> None:
    """Show Handoff on its scheduler until the overview's history is closed.

    Handoff works without a dashboard, so a failure is only logged.
    """
    for part in (_install_pages, routes.install, metrics.install):
        try:
            part(overview)
        except Exception:
            logger.warning("Handoff could not add to the dashboard", exc_info=True)


def _install_pages(overview: Overview) -> None:
    pages = {path: partial(_open, name, overview) for path, name in PAGES.items()}
    overview.history.shown.callback(compat.add_pages(overview.scheduler, pages, TAB))


def _open(*args: Any) -> None:
    # Imports Bokeh, which takes long and may be missing: only once somebody looks.
    from handoff_dask.scheduler.dashboard import pages

    pages.open_page(*args)
