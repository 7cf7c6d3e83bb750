"""Commands that inspect a DAG or a cluster and run nothing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import click

from handoff_dask.cli.command import (
    TIME,
    command,
    max_concurrency_option,
    output_option,
    print_table,
    strategy_option,
    target_options,
)
from handoff_dask.cli.connect import Where, cluster_options, connected
from handoff_dask.cli.dag_loader import load
from handoff_dask.cli.exit_codes import IMPOSSIBLE, Problem
from handoff_dask.cli.result_files import is_stdout, read_durations, read_result
from handoff_dask.client.explaining import explain as explain_dag
from handoff_dask.client.nodes import discover_nodes
from handoff_dask.client.planning import plan as plan_dag
from handoff_dask.client.results import ExecutionResult
from handoff_dask.model.amounts import AUTO, Amounts, Seconds
from handoff_dask.model.function import dependencies
from handoff_dask.widgets import markup


@command("validate pipeline.py:dag", "validate pipeline.py:make_dag -- day=2026-03-01")
@target_options
def validate(**target: Any) -> None:
    """Check a DAG without a cluster."""
    dag = load(**target).dag
    functions = dag.functions.values()
    inline = sum(f.type == "inline" for f in functions)
    edges = sum(len(dependencies(f)) for f in functions)
    size = markup.count(len(dag), "function") + (f" ({inline} inline)" if inline else "")
    click.echo(f"{dag.id}: valid, {size}, {edges} dependencies")
    for name in sorted({name for f in functions for name in f.cost or {}}):
        amounts = [f.cost[name] for f in functions if f.cost and name in f.cost]
        numbers = [amount for amount in amounts if isinstance(amount, int | float)]
        parts = [f"at most {max(numbers):g} by one function"] if numbers else []
        if learned := amounts.count(AUTO):
            parts.append(f"{AUTO} for {markup.count(learned, 'function')}")
        click.echo(f"  {name}: {', '.join(parts)}")


@command(
    "explain pipeline.py:dag --scheduler tcp://host:8786",
    "explain pipeline.py:dag --worker cpu=4,memory=8GB --worker cpu=2,gpu=1",
    remark="The exit code is 3 if a function cannot run.",
)
@target_options
@cluster_options()
def explain(where: Where, **target: Any) -> None:
    """Show which workers could run each function, or what they lack."""
    dag = load(**target).dag
    with connected(where) as client:
        explanation = explain_dag(dag, client=client)
    click.echo(str(explanation))
    if not explanation.possible:
        click.get_current_context().exit(IMPOSSIBLE)


@command(
    "plan trace.json --worker cpu=8,memory=16GB --worker cpu=4,memory=8GB",
    "plan pipeline.py:dag --durations result.json --scheduler tcp://host:8786",
)
@target_options
@cluster_options()
@click.option(
    "--durations",
    "durations_file",
    type=click.Path(path_type=Path),
    help="How long functions take: {id: seconds} in JSON, or the --output of an earlier run.",
)
@strategy_option
@max_concurrency_option
@click.option(
    "--overhead",
    type=TIME,
    default=0.0,
    help="How long starting a function takes; 3ms is typical on one machine.",
)
@click.option("--timeline", is_flag=True, help="Show when and where each function would run.")
def plan(
    where: Where,
    target: str,
    arguments: tuple[str, ...],
    scale: float | None,
    durations_file: Path | None,
    timeline: bool,
    **options: Any,
) -> None:
    """Predict how long a DAG takes, by simulation.

    The simulation uses the workers of a cluster or, with --worker, imagined ones.
    """
    loaded = load(target, arguments, scale)
    durations: Mapping[Hashable, Seconds] | ExecutionResult | None = loaded.durations
    if durations_file is not None:
        durations = read_durations(durations_file, loaded.dag.functions)
    if durations is None:
        raise Problem(
            "how long do the functions take? Give --durations FILE: {id: seconds} in JSON, or the "
            "--output of an earlier run"
        )
    capabilities: Mapping[str, Amounts] = where.capabilities
    if not capabilities:
        with connected(where) as client:
            capabilities = discover_nodes(client=client)
    planned = plan_dag(loaded.dag, capabilities, durations, **options)
    click.echo(str(planned))
    if timeline:
        for worker, slots in planned.timeline.items():
            click.echo(f"{worker}:")
            for slot in slots:
                click.echo(f"  {slot.start:10.3f} s to {slot.stop:10.3f} s  {slot.id}")


@command("advise result.json", "advise result.json --json")
@click.argument("result", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Write JSON instead of a table.")
def advise(result: Path, as_json: bool) -> None:
    """Show what functions should declare, by what they used in a run.

    RESULT is the --output of `dask handoff run`. The table has a row for each code and cost: what
    was declared, what was used (the median, the 95th percentile and the maximum), and what to
    declare. Memory is only known of isolated functions.
    """
    advice = read_result(result).advice()
    click.echo(json.dumps(advice.as_dict(), indent=1) if as_json else str(advice))


@command("visualize pipeline.py:dag", "visualize trace.json --output trace.png")
@target_options
@output_option(
    "The file to draw; its suffix is the format. - is standard output, as SVG.", Path("dag.svg")
)
def visualize(output: Path, **target: Any) -> None:
    """Draw a DAG."""
    dag = load(**target).dag
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise Problem(f"cannot write {output}: its folder does not exist, or it is a folder itself")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "dag.svg") if is_stdout(output) else output
        try:
            dag.visualize(filename=str(file))
        except (ImportError, RuntimeError, OSError, ValueError) as error:
            raise Problem(f"cannot draw {output}: {error}") from error
        click.echo(file.read_text(encoding="utf-8") if file is not output else str(output))


@command("nodes --scheduler tcp://host:8786")
@cluster_options(workers=False)
def nodes(where: Where) -> None:
    """Show what each worker of a cluster offers."""
    with connected(where, embedded=False) as client:
        workers = discover_nodes(client=client)
    resources = sorted({name for offered in workers.values() for name in offered})
    rows = [["worker", *resources]]
    for address, offered in workers.items():
        rows.append([address, *(f"{offered[n]:g}" if n in offered else "-" for n in resources)])
    print_table(rows)


COMMANDS = (validate, explain, plan, advise, visualize, nodes)
