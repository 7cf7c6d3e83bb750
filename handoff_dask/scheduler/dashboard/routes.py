"""JSON on the scheduler's HTTP server: ``/handoff/runs.json``."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from tornado.web import Application, RequestHandler

from handoff_dask.attempts.states import STATES
from handoff_dask.compat import dashboard as compat
from handoff_dask.model import jsonable
from handoff_dask.scheduler.dashboard import overview

if TYPE_CHECKING:
    from handoff_dask.scheduler.dashboard.history import RunView
    from handoff_dask.scheduler.plugin import HandoffPlugin

PATH = "/handoff/runs.json"
#: Runs, and causes of waiting, that are listed.
RUNS = 1000
CAUSES = 100


class RunsHandler(RequestHandler):
    """Answers with the state of a plugin's runs."""

    def initialize(self, plugin: HandoffPlugin) -> None:
        """Take down whose."""
        self.plugin = plugin

    def get(self) -> None:
        """Answer."""
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.write(json.dumps(jsonable.loose(state(self.plugin)), allow_nan=False))


def install(plugin: HandoffPlugin, installed: ExitStack) -> None:
    """Add the route to a plugin's scheduler."""
    http = plugin.scheduler.http_application
    path = compat.http_prefix(plugin.scheduler) + PATH
    own = Application([(path, RunsHandler, {"plugin": plugin})])
    http.add_application(own)
    installed.callback(http.applications.remove, own)


def state(plugin: HandoffPlugin) -> dict[str, Any]:
    """Return the state of a plugin's runs. Times are seconds since the epoch."""
    return {
        "functions": overview.states(plugin),
        "runs": [_run(run) for run in overview.runs(plugin, RUNS)],
        "recent": [_run(run) for run in plugin.history.runs],
        "held": [held.as_dict() for held in overview.held(plugin, CAUSES)],
        "ending": [
            {"functions": count, "whose": whose} for whose, count in plugin.endings.counts().items()
        ],
        "resources": {
            name: {
                "declared": amounts.declared,
                "claimed": amounts.claimed,
                "asked": amounts.asked,
            }
            for name, amounts in overview.usage(plugin).total.items()
        },
    }


def _run(run: RunView) -> dict[str, Any]:
    return {
        "dag_id": run.dag_id,
        "run_id": run.run_id,
        "functions": {state: run.counts.get(state, 0) for state in STATES},
        "retries": run.retries,
        "opened": run.opened,
        "closed": run.closed,
    }
