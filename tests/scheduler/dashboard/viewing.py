"""A viewer: what a browser asks of a scheduler's HTTP server."""

from __future__ import annotations

import asyncio
import json
import re
from functools import partial

from distributed.utils_test import gen_cluster
from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import websocket_connect

WORKERS = [
    ("127.0.0.1", 4, {"resources": {"cpu": 4, "memory": 1000}}),
    ("127.0.0.1", 4, {"resources": {"cpu": 4, "memory": 1000, "gpu": 1}}),
]
SHOWN = {"dashboard": True, "dashboard_address": ":0"}
on_cluster = partial(gen_cluster, nthreads=WORKERS, client=True)
on_dashboard = partial(on_cluster, scheduler_kwargs=SHOWN)

INDIVIDUAL = {
    "Individual Handoff Allocations": "/individual-handoff-allocations",
    "Individual Handoff Resources": "/individual-handoff-resources",
    "Individual Handoff Runs": "/individual-handoff-runs",
}


def overview_of(scheduler):
    """Return what the dashboard of a scheduler with Handoff shows."""
    return scheduler.plugins["handoff"].overview


async def get(scheduler, path):
    """Return status and body of a page."""
    url = f"http://localhost:{scheduler.http_server.port}{path}"
    response = await AsyncHTTPClient().fetch(url, raise_error=False)
    return response.code, response.body.decode()


async def get_json(scheduler, path):
    """Return the JSON of a page, parsed as strictly as browsers do."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    status, body = await get(scheduler, path)
    assert status == 200, body
    return json.loads(body, parse_constant=refuse)


async def listed(scheduler, prefix=""):
    """Return our panels as dask-labextension would list them."""
    plots = await get_json(scheduler, f"{prefix}/individual-plots.json")
    return {title: path for title, path in plots.items() if "Handoff" in title}


async def open_page(scheduler, path):
    """Open a page as a browser does; return the socket through which it is updated."""
    url = f"localhost:{scheduler.http_server.port}{path}"
    page = await AsyncHTTPClient().fetch(f"http://{url}")
    token = re.search(rb'"token":"([^"]+)"', page.body).group(1).decode()
    return await websocket_connect(f"ws://{url}/ws", subprotocols=["bokeh", token])


async def until(condition):
    """Wait until a condition holds; the test's own time limit ends the wait."""
    while not condition():
        await asyncio.sleep(0.01)
