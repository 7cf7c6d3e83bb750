"""A run as a notebook shows it while it goes on."""

from __future__ import annotations

import asyncio
import weakref
from functools import partial
from typing import Any

from distributed.utils import is_kernel

from handoff_dask.client import connection
from handoff_dask.client.explaining import hold_cells
from handoff_dask.client.following import Follower
from handoff_dask.widgets import live, markup, reports

#: Seconds that a drawing waits for the cluster.
PATIENCE = 5.0


def html(run: Follower) -> str:
    """Return a run as it looks now; with an asynchronous client, as far as its futures tell."""
    if run.client.asynchronous or run.client.status != "running":
        return _drawing(run, run.known_counts())
    drawn: str = connection.sync(run.client, draw, run)[0]
    return drawn


def bundle(run: Follower, text: str) -> dict[str, Any]:
    """Return what a notebook displays of a run, changing as the run goes on; else nothing."""
    if not is_kernel():
        return {}
    # Looking at the run must not keep it, and with it the results, alive.
    reference = weakref.ref(run)

    def again() -> live.Draw | None:
        alive = reference()
        return None if alive is None else partial(draw, alive)

    loop: Any = run.client.loop
    return live.bundle(html(run), text, again, loop.asyncio_loop)


async def draw(run: Follower) -> tuple[str, bool]:
    """Return a run as HTML, and whether it has ended."""
    over = run.over

    async def ask() -> tuple[dict[str, int], float | None, Any]:
        return *await run.progress(), await run.holds()

    try:
        counts, left, holds = await asyncio.wait_for(ask(), PATIENCE)
    except Exception:  # a look at a run must not fail, whatever is wrong with the cluster
        return _drawing(run, run.known_counts()), over or run.client.status != "running"
    held = [(number, markup.cost(cost), *hold_cells(why)) for number, cost, why in holds]
    # A run that was stopped is forgotten on the scheduler.
    known = counts if any(counts.values()) else run.known_counts()
    return _drawing(run, known, held, left), over


def _drawing(
    run: Follower, counts: dict[str, int], held: list[Any] | None = None, left: float | None = None
) -> str:
    remark = run.remark or ("" if left is None else f"{markup.seconds(left)} left")
    return reports.progress(run.outline.dag_id, counts, held or (), remark)
