"""The page with all panels, in Dask's frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bokeh.layouts import column, row

from handoff_dask.compat import dashboard as compat
from handoff_dask.scheduler.dashboard.allocations_panel import Allocations
from handoff_dask.scheduler.dashboard.resources_panel import Resources
from handoff_dask.scheduler.dashboard.runs_panel import Runs

if TYPE_CHECKING:
    from bokeh.document import Document
    from distributed import Scheduler


def open_all(scheduler: Scheduler, extra: Mapping[str, Any], document: Document) -> None:
    """Show all panels in a document."""
    panels = Allocations(scheduler), Runs(scheduler), Resources(scheduler)
    for panel in panels:
        panel.watch(document)
    top, left, right = (panel.root for panel in panels)
    below = row(left, right, sizing_mode="stretch_both")
    document.add_root(column(top, below, sizing_mode="stretch_both"))
    document.title = "Dask: Handoff"
    document.theme, document.template = compat.dashboard_look()
    document.template_variables.update(extra)
