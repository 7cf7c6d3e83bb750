"""Commands that look at a DAG or a cluster and run nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable, Mapping
from pathlib import Path

import click

from handoff_dask.cli.cluster import Where, connected
from handoff_dask.cli.failing import IMPOSSIBLE, Problem
from handoff_dask.cli.output import durations, is_stdout
from handoff_dask.cli.progress import table
from handoff_dask.cli.targets import Target
from handoff_dask.client.explaining import explain
from handoff_dask.client.nodes import discover_nodes
from handoff_dask.client.planning import plan
from handoff_dask.client.results import ExecutionResult


def validate(target: Target) -> None:
    """Tell what a DAG, which loading has validated, consists of."""
    dag = target.dag
    inline = sum(f.type == "inline" for f in dag.functions.values())
    edges = sum(len(f.args) for f in dag.functions.values())
    text = f"{dag.id}: valid, {len(dag)} functions"
    if inline:
        text += f" ({inline} inline)"
    click.echo(f"{text}, {edges} dependencies")
    resources = sorted({name for f in dag.functions.values() for name in f.cost or {}})
    for name in resources:
        most = max((f.cost or {}).get(name, 0) for f in dag.functions.values())
        click.echo(f"  {name}: at most {most:g} by one function")


def explained(where: Where, target: Target, debug: bool) -> int:
    """Tell which workers could run each function; return the exit code."""
    with connected(where, debug=debug) as client:
        explanation = explain(target.dag, client)
    click.echo(str(explanation))
    return 0 if explanation.possible else IMPOSSIBLE


def planned(
    where: Where,
    target: Target,
    durations_file: Path | None,
    timeline: bool,
    debug: bool,
    *,
    allocation_strategy: str,
    max_concurrency: int | None,
    overhead: float,
) -> None:
    """Tell how a DAG would run."""
    known: Mapping[Hashable, float] | ExecutionResult | None = target.durations
    if durations_file is not None:
        known = durations(durations_file, target.dag.functions)
    if known is None:
        raise Problem(
            "how long do the functions take? Give --durations FILE: {id: seconds} in JSON, or the "
            "--output of an earlier run"
        )
    capabilities: Mapping[str, Mapping[str, float]] = where.capabilities
    if not capabilities:
        with connected(where, debug=debug) as client:
            capabilities = discover_nodes(client)
    found = plan(
        target.dag,
        capabilities,
        known,
        allocation_strategy=allocation_strategy,
        max_concurrency=max_concurrency,
        overhead=overhead,
    )
    click.echo(str(found))
    if timeline:
        for worker, slots in found.timeline.items():
            click.echo(f"{worker}:")
            for slot in slots:
                click.echo(f"  {slot.start:10.3f} s to {slot.stop:10.3f} s  {slot.id}")


def visualized(target: Target, output: Path) -> None:
    """Draw a DAG."""
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise Problem(f"cannot write {output}: there is no such folder, or it is one itself")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "dag.svg") if is_stdout(output) else output
        try:
            target.dag.visualize(filename=str(file))
        except (ImportError, RuntimeError, OSError, ValueError) as error:
            raise Problem(f"cannot draw {output}: {error}") from error
        click.echo(file.read_text(encoding="utf-8") if file is not output else str(output))


def nodes(where: Where, debug: bool) -> None:
    """Tell what each worker of a cluster offers."""
    with connected(where, embedded=False, debug=debug) as client:
        found = discover_nodes(client)
    resources = sorted({name for offered in found.values() for name in offered})
    rows = [["worker", *resources]]
    for address, offered in found.items():
        rows.append([address, *(f"{offered[n]:g}" if n in offered else "-" for n in resources)])
    table(rows)
