"""Commands for the runs on a cluster."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import click
from distributed import Client

from handoff_dask.attempts.states import STATES, STORED
from handoff_dask.cli.command import TIME, command, output_option, print_table
from handoff_dask.cli.connect import Where, cluster_options, connected
from handoff_dask.cli.dag_loader import ids_by_name
from handoff_dask.cli.exit_codes import Problem
from handoff_dask.cli.result_files import OutputFile
from handoff_dask.client import kept_runs
from handoff_dask.client.kept_runs import RunInfo
from handoff_dask.model import jsonable
from handoff_dask.model.attempt import Attempt, Usage
from handoff_dask.widgets import markup


@command()
@cluster_options(workers=False)
def runs(where: Where) -> None:
    """List the runs of all clients on a cluster, the oldest first.

    A run that is kept needs no client, and stays until `dask handoff forget`.
    """
    with connected(where, embedded=False) as client:
        infos = kept_runs.list_runs(client=client)
    if not infos:
        click.echo("no runs")
        return
    states = [*STATES, STORED] if any(STORED in info.counts for info in infos) else STATES
    rows = [["run", "started", "kept", "priority", *states]]
    for info in infos:
        counts = [str(info.counts.get(state, 0)) for state in states]
        kept = "yes" if info.detached else "no"
        rows.append([str(info.dag_id), _started(info), kept, f"{info.priority:g}", *counts])
    print_table(rows)


def _started(info: RunInfo) -> str:
    return f"{markup.seconds(max(0.0, round(time.time() - info.started)))} ago"


def _known(name: str, client: Client) -> RunInfo:
    """Return the latest run that the command line refers to by a name."""
    infos = {info.dag_id: info for info in kept_runs.list_runs(stopped=True, client=client)}
    try:
        return infos[ids_by_name(infos)[name]]
    except KeyError:
        there = ", ".join(map(str, infos)) or "none"
        raise Problem(f"the cluster has no run {name!r}; its runs are: {there}") from None


@command()
@click.argument("dag_id")
@cluster_options(workers=False)
def status(where: Where, dag_id: str) -> None:
    """Show the progress of a run, what its functions wait for, and what failed.

    If several runs have the same DAG_ID, this and other commands use the latest.
    """
    with connected(where, embedded=False) as client:
        info = _known(dag_id, client)
        run = kept_runs.get_run(info.dag_id, client=client)
        facts = run.status()
        explanation = run.explain()
    click.echo(f"{info.dag_id}: started {_started(info)}")
    click.echo("  " + ", ".join(f"{facts[s]} {s}" for s in (*STATES, STORED) if s in facts))
    if used := markup.usage(_used(chain.from_iterable(facts["attempts"].values()))):
        click.echo(f"  used: {used}")
    for id_, attempts in facts["attempts"].items():
        if failed := [a for a in attempts if a.outcome not in ("ok", "stored", "cancelled")]:
            last = failed[-1]
            reason = f"{last.error_type}: {last.message}" if last.error_type else last.outcome
            click.echo(f"  {id_}: {len(failed)} of {len(attempts)} attempts failed, last {reason}")
    if explanation:
        click.echo(str(explanation))


def _used(attempts: Iterable[Attempt]) -> Usage:
    """Return what attempts used: the sums of time and sizes, and the largest peak of memory."""
    usages = [attempt.usage for attempt in attempts]
    cpu_time = [u.cpu_time for u in usages if u.cpu_time is not None]
    peaks = [u.peak_memory for u in usages if u.peak_memory is not None]
    sizes = [u.result_bytes for u in usages if u.result_bytes is not None]
    return Usage(
        sum(cpu_time) if cpu_time else None,
        max(peaks, default=None),
        sum(sizes) if sizes else None,
    )


@command(
    "result nightly total --scheduler tcp://host:8786",
    "result nightly model --output model.pkl --timeout 3600 --scheduler tcp://host:8786",
)
@click.argument("dag_id")
@click.argument("function")
@cluster_options(workers=False)
@click.option(
    "--timeout",
    type=TIME,
    default=5.0,
    show_default=True,
    help="How long to wait for the function to end: seconds, or as in 5min.",
)
@output_option(
    "Where to write it: as a pickle if the name is *.pkl, else as JSON; - is standard output."
)
def result(where: Where, dag_id: str, function: str, timeout: float, output: Path | None) -> None:
    """Fetch the result of a function of a run.

    Strings are printed as they are, other values as JSON or, where that cannot hold them, as
    Python's repr. Refer to non-string ids by their repr.
    """
    file = None if output is None else OutputFile(output)
    with connected(where, embedded=False) as client:
        own_id = _known(dag_id, client).dag_id
        ids = ids_by_name(kept_runs.get_run(own_id, client=client).futures)
        id_ = ids.get(function, function)
        value = kept_runs.get_result(own_id, id_, timeout, client=client)
    try:
        exact = value if file is not None and file.pickles else jsonable.exact(value)
    except jsonable.NotJSONError:
        if file is not None:
            kind = type(value).__name__
            raise Problem(
                f"JSON cannot hold the result, which is of type {kind}: a file named *.pkl can"
            ) from None
        click.echo(jsonable.text(value))
        return
    if file is not None:
        file.write(exact)
    else:
        click.echo(value if isinstance(value, str) else json.dumps(exact))


@command()
@click.argument("dag_id")
@cluster_options(workers=False)
def cancel(where: Where, dag_id: str) -> None:
    """Stop a run: nothing more starts, and results of what is running are dropped."""
    with connected(where, embedded=False) as client:
        kept_runs.get_run(_known(dag_id, client).dag_id, client=client).cancel()


@command()
@click.argument("dag_id")
@cluster_options(workers=False)
def forget(where: Where, dag_id: str) -> None:
    """Release the detached runs of a DAG: drop their results, and stop what still runs."""
    with connected(where, embedded=False) as client:
        info = _known(dag_id, client)
        if not info.detached:
            raise Problem(
                f"the run {dag_id!r} is not kept by the cluster but by the client that waits for "
                "it: stop it with `dask handoff cancel`"
            )
        kept_runs.forget(info.dag_id, client=client)


COMMANDS = (runs, status, result, cancel, forget)
