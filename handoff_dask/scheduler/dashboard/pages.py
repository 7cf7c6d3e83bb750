"""The pages of the dashboard: one for each panel, and one with all of them in Dask's frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bokeh.document import Document
from bokeh.layouts import column, row
from distributed import Scheduler

from handoff_dask.compat import dashboard as compat
from handoff_dask.scheduler.dashboard.allocations_panel import AllocationsPanel
from handoff_dask.scheduler.dashboard.overview import Overview
from handoff_dask.scheduler.dashboard.panel import Panel
from handoff_dask.scheduler.dashboard.resources_panel import ResourcesPanel
from handoff_dask.scheduler.dashboard.runs_panel import RunsPanel

PANELS: dict[str, type[Panel]] = {
    "allocations": AllocationsPanel,
    "resources": ResourcesPanel,
    "runs": RunsPanel,
}


def open_page(
    name: str,
    overview: Overview,
    scheduler: Scheduler,
    variables: Mapping[str, Any],
    document: Document,
) -> None:
    """Fill a document with the panel of that name, or with all."""
    theme, frame = compat.dashboard_look()
    document.theme = theme
    if name in PANELS:
        panel = PANELS[name](overview)
        panel.watch(document)
        document.add_root(panel.root)
        document.title = f"Dask: {panel.title}"
        return
    panels = {name: kind(overview) for name, kind in PANELS.items()}
    for panel in panels.values():
        panel.watch(document)
    below = row(panels["runs"].root, panels["resources"].root, sizing_mode="stretch_both")
    document.add_root(column(panels["allocations"].root, below, sizing_mode="stretch_both"))
    document.title = "Dask: Handoff"
    document.template = frame
    document.template_variables.update(variables)
