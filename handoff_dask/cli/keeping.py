"""Commands for the runs on a cluster."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click
from distributed import Client

from handoff_dask.cli.cluster import Where, connected
from handoff_dask.cli.failing import Problem
from handoff_dask.cli.output import opened
from handoff_dask.cli.progress import ago, table
from handoff_dask.client.kept_runs import RunInfo, forget, get_result, get_run, list_runs
from handoff_dask.errors import UnknownFunctionError
from handoff_dask.model import jsonable

_STATES = ("waiting", "held", "running", "done", "failed", "cancelled")


def runs(where: Where, debug: bool) -> None:
    """Tell which runs there are."""
    with connected(where, embedded=False, debug=debug) as client:
        found = list_runs(client=client)
    if not found:
        click.echo("no runs")
        return
    rows = [["run", "started", "kept", "priority", *_STATES]]
    for info in found:
        counts = [str(info.counts.get(state, 0)) for state in _STATES]
        kept = "yes" if info.detached else "no"
        since = ago(time.time() - info.started)
        rows.append([str(info.dag_id), since, kept, f"{info.priority:g}", *counts])
    table(rows)


def known(name: str, client: Client) -> RunInfo:
    """Return the run, the latest of its name, that the command line calls so.

    Raises
    ------
    Problem
        There is none.
    """
    found = list_runs(stopped=True, client=client)
    for exactly in (repr, str):
        for info in reversed(found):
            if exactly(info.dag_id) == name:
                return info
    there = ", ".join(dict.fromkeys(str(info.dag_id) for info in found)) or "none"
    raise Problem(f"the cluster has no run {name!r}; its runs are: {there}")


def status(where: Where, name: str, debug: bool) -> None:
    """Tell how far a run is, what waits for what, and what failed."""
    with connected(where, embedded=False, debug=debug) as client:
        info = known(name, client)
        run = get_run(info.dag_id, client=client)
        facts = run.status()
        waits = str(run.explain())
    click.echo(f"{info.dag_id}: started {ago(time.time() - info.started)}")
    click.echo("  " + ", ".join(f"{facts[state]} {state}" for state in _STATES))
    for id_, attempts in facts["attempts"].items():
        bad = [attempt for attempt in attempts if attempt.outcome != "ok"]
        if bad:
            last = bad[-1]
            reason = f"{last.error_type}: {last.message}" if last.error_type else last.outcome
            click.echo(f"  {id_}: {len(bad)} of {len(attempts)} attempts failed, last {reason}")
    if facts["held"] or facts["waiting"]:
        click.echo(waits)


def result(
    where: Where,
    name: str,
    function: str,
    timeout: float,
    output: Path | None,
    debug: bool,
) -> None:
    """Fetch one result of a run."""
    file = None if output is None else opened(output, sys.stdout)
    with connected(where, embedded=False, debug=debug) as client:
        dag_id = known(name, client).dag_id
        try:
            value = get_result(dag_id, function, timeout, client=client)
        except UnknownFunctionError:
            # An id of another type goes by its repr.
            ids = [id_ for id_ in get_run(dag_id, client=client).futures if repr(id_) == function]
            if not ids:
                raise
            value = get_result(dag_id, ids[0], timeout, client=client)
    if file is None:
        click.echo(value if isinstance(value, str) else text(value))
    elif file.pickles:
        file.write(value)
    else:
        try:
            file.write(jsonable.exact(value))
        except jsonable.NotJSONError:
            raise Problem(
                f"JSON cannot hold the result, which is of type {type(value).__name__}: a file "
                "named *.pkl can"
            ) from None


def text(value: Any) -> str:
    """Return a value as JSON if that can hold it, else as Python shows it."""
    try:
        return json.dumps(jsonable.exact(value))
    except jsonable.NotJSONError:
        return jsonable.text(value)


def cancel(where: Where, name: str, debug: bool) -> None:
    """Stop a run."""
    with connected(where, embedded=False, debug=debug) as client:
        run = get_run(known(name, client).dag_id, client=client)
        run.cancel()


def let_go(where: Where, name: str, debug: bool) -> None:
    """Have the cluster keep the runs of a DAG no longer."""
    with connected(where, embedded=False, debug=debug) as client:
        info = known(name, client)
        if not info.detached:
            raise Problem(
                f"the run {name!r} is not kept by the cluster but by the client that waits for it: "
                "`dask handoff cancel` stops it"
            )
        forget(info.dag_id, client=client)
