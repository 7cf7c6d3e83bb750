"""JSON on the scheduler's HTTP server: ``/handoff/runs.json``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from tornado.web import Application, RequestHandler

from handoff_dask.compat import dashboard as compat
from handoff_dask.model import jsonable
from handoff_dask.scheduler.dashboard.overview import Overview

PATH = "/handoff/runs.json"
#: Runs, and causes of waiting, that are listed.
RUNS = 1000
CAUSES = 100


class RunsHandler(RequestHandler):
    """Answers with the state of a scheduler's runs."""

    def initialize(self, overview: Overview) -> None:
        """Set what the answer is read from."""
        self.overview = overview

    def get(self) -> None:
        """Answer."""
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.write(json.dumps(jsonable.loose(state(self.overview)), allow_nan=False))


def install(overview: Overview) -> None:
    """Add the route to the scheduler."""
    http = overview.scheduler.http_application
    path = compat.http_prefix(overview.scheduler) + PATH
    own = Application([(path, RunsHandler, {"overview": overview})])
    http.add_application(own)
    overview.history.shown.callback(http.applications.remove, own)


def state(overview: Overview) -> dict[str, Any]:
    """Return the state of the runs. Times are seconds since the epoch."""
    return {
        "functions": overview.states(),
        "runs": [asdict(run) for run in overview.largest_runs(RUNS)],
        "recent": [asdict(run) for run in overview.history.closed_runs],
        "held": [{**asdict(held), "cost": dict(held.cost)} for held in overview.held(CAUSES)],
        "ending": [
            {"functions": count, "whose": whose} for whose, count in overview.ending().items()
        ],
        "resources": {name: asdict(amounts) for name, amounts in overview.usage().total.items()},
    }
