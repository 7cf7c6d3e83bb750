"""How a run looks while it goes on: how far it is, and what its functions are held for."""

from __future__ import annotations

import asyncio
import pickle
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from distributed.utils import is_kernel

from handoff_dask.attempts.states import STATES
from handoff_dask.client import connection
from handoff_dask.client.explaining import hold_cells
from handoff_dask.widgets import live, markup, reports

if TYPE_CHECKING:
    from handoff_dask.client.run import Run

#: Seconds that a drawing waits for the cluster.
PATIENCE = 5.0


def html(run: Run) -> str:
    """Return a run as it looks now; with an asynchronous client, as far as its futures tell."""
    client = run._client
    if client.asynchronous or client.status != "running":
        return _drawing(run, _known_counts(run))
    drawn, _ = connection.sync(client, draw, run)
    return drawn


def bundle(run: Run) -> dict[str, Any]:
    """Return what a notebook displays of a run, changing as the run goes on; else nothing."""
    if not is_kernel():
        return {}
    # Looking at the run must not keep it, and with it the results, alive.
    reference = weakref.ref(run)

    def again() -> live.Draw | None:
        found = reference()
        return None if found is None else partial(draw, found)

    loop: Any = run._client.loop
    return live.bundle(html(run), repr(run), again, loop.asyncio_loop)


async def draw(run: Run) -> tuple[str, bool]:
    """Return a run as HTML, and whether it has ended."""
    ended = run._over
    try:
        counts, answer = await asyncio.wait_for(_ask(run), PATIENCE)
    except Exception:  # whatever the cluster's trouble is, it is not shown by a look at the run
        return _drawing(run, _known_counts(run)), ended or run._client.status != "running"
    held = [
        (number, markup.cost(cost), *hold_cells(why)) for number, cost, why in pickle.loads(answer)
    ]
    # A run that was stopped is forgotten on the scheduler.
    known = counts if any(counts.values()) else _known_counts(run)
    return _drawing(run, known, held), ended


async def _ask(run: Run) -> tuple[dict[str, int], bytes]:
    counts = await run._progress()
    holds = await connection.call(run._client, "holds", run_id=run._outline.run_id)
    return counts, holds


def _known_counts(run: Run) -> dict[str, int]:
    """Return how many functions are in which state, as far as one can tell without asking."""
    if run._final:
        return dict(run._final)
    names = {"finished": "done", "error": "failed", "pending": "waiting"}
    states = [names.get(str(f.status), "cancelled") for f in run._awaited.values()]
    return {state: states.count(state) for state in STATES}


def _drawing(run: Run, counts: dict[str, int], held: list[Any] | None = None) -> str:
    remark = ""
    if run._outcome is not None and run._outcome.done():
        error = None if run._outcome.cancelled() else run._outcome.exception()
        remark = "ended" if error is None else f"{type(error).__name__}: {error}"
    return reports.progress(run.dag_id, counts, held or (), remark)
