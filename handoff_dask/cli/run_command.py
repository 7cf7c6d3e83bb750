"""``dask handoff run``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import IO, Any

import click
from distributed import Client

from handoff_dask.cli import signals
from handoff_dask.cli.command import (
    TIME,
    command,
    max_concurrency_option,
    output_option,
    strategy_option,
    target_options,
)
from handoff_dask.cli.connect import Where, cluster_options, connected
from handoff_dask.cli.dag_loader import load, resolve
from handoff_dask.cli.exit_codes import EPILOG, FAILED, IMPOSSIBLE, Problem, problem_of
from handoff_dask.cli.json_lines import JsonLines
from handoff_dask.cli.result_files import OutputFile, is_stdout, print_results, write_result
from handoff_dask.client import progress_display
from handoff_dask.client.execution import attended, submit
from handoff_dask.client.options import RunOptions, as_store
from handoff_dask.client.progress_display import Display
from handoff_dask.client.results import ExecutionResult
from handoff_dask.errors import AllocationError
from handoff_dask.model import jsonable
from handoff_dask.model.dag import DAG


@command(
    "run pipeline.py:dag --worker cpu=4,memory=8GB --output result.json",
    "run pipeline.py:make_dag --scheduler-file scheduler.json -- day=2026-03-01",
    "run pipeline.py:dag --store /scratch/results",
    "run package.module:dag --scheduler tcp://host:8786 --detach",
    "run trace.json --scale 0.01 --worker cpu=8,memory=16GB",
    remark=EPILOG,
)
@target_options
@cluster_options()
@click.option(
    "--max-retries",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="How often a function that fails is tried again, unless the function sets its own.",
)
@max_concurrency_option
@strategy_option
@click.option(
    "--results",
    multiple=True,
    metavar="all|sinks|none|ID",
    help="Which results to keep: all, sinks (no function depends on them), none, or a function's; "
    "repeat for several functions. The default is all with --output or --detach, else none. "
    "Without these two options, the results are printed.",
)
@click.option(
    "--on-error",
    type=click.Choice(["raise", "continue"]),
    default="raise",
    show_default=True,
    help="Whether functions that don't depend on a failed one still run.",
)
@click.option("--timeout", type=TIME, help="How long the run may take: seconds, or as in 5min.")
@click.option(
    "--placement-timeout",
    type=TIME,
    default=0.0,
    help="How long to wait for a worker that can hold a cost if none can at present.",
)
@click.option(
    "--priority", type=float, default=0.0, help="Runs of higher priority are placed first."
)
@click.option(
    "--store",
    metavar="URL",
    help="Where to keep results beyond this run, and to look for them before anything runs: a "
    "folder, or a URL that fsspec knows. The default is Dask's setting handoff.store, which also "
    "has the options of stores.",
)
@click.option(
    "--detach",
    is_flag=True,
    help="Don't wait: print the DAG's id, and keep results on the cluster.",
)
@output_option(
    "Where to write the outcome: as a pickle if the name is *.pkl, else as JSON; - is standard "
    "output."
)
@click.option("--quiet", is_flag=True, help="Show nothing but errors.")
@click.option(
    "--json-lines",
    is_flag=True,
    help="Write progress to standard output as JSON, an object a line.",
)
def run(
    where: Where,
    target: str,
    arguments: tuple[str, ...],
    scale: float | None,
    results: tuple[str, ...],
    detach: bool,
    output: Path | None,
    quiet: bool,
    json_lines: bool,
    **options: Any,
) -> None:
    """Run a DAG and wait for it.

    Without --scheduler, --scheduler-file or Dask's setting scheduler-address, the command starts an
    embedded cluster: a worker process for each --worker or, without any, one with the whole
    machine. Progress goes to standard error.
    """
    if as_store(options["store"]) is not None:
        signals.resumable.set()  # before the DAG is loaded, which may take long
    if detach and not where.remote:
        raise Problem("--detach needs a cluster that outlives this command: give --scheduler")
    if detach and (output is not None or options["timeout"] is not None):
        raise Problem(
            "--detach does not wait for the run, so --output and --timeout have no effect: fetch "
            "results with `dask handoff result`"
        )
    if json_lines and is_stdout(output):
        raise Problem("--json-lines and --output - both write to standard output: give one of them")
    printed = results not in ((), ("none",)) and output is None and not detach
    with _own_stdout(json_lines or printed or is_stdout(output)) as stdout:
        file = None if output is None else OutputFile(output, stdout)
        dag = load(target, arguments, scale).dag
        default = "all" if detach or file is not None else "none"
        options["results"] = _selection(results or (default,), list(dag.functions))
        checked = RunOptions(**options, detach=detach)
        if json_lines:
            display: Display = JsonLines(stdout, results=printed)
        elif quiet:
            display = Display()
        else:
            display = progress_display.chosen()
        with connected(where, processes=True) as client:
            if detach:
                submit(dag, client=client, detach=True, **options)
                click.echo(dag.id)
                return
            result, failure = _attended(client, dag, checked, display, file)
            if printed and not json_lines and result is not None:
                print_results(stdout, result)
            if failure is not None:
                raise failure


def _selection(results: tuple[str, ...], ids: list[Hashable]) -> Any:
    """Convert ``--results`` to what :func:`~handoff_dask.execute` takes."""
    if results == ("none",):
        return []
    if results in (("all",), ("sinks",)):
        return results[0]
    for word in ("all", "sinks", "none"):
        if word in results and word not in ids:
            raise Problem(f"--results {word} cannot be combined with another --results")
    return [resolve(name, ids) for name in results]


@contextlib.contextmanager
def _own_stdout(own: bool) -> Iterator[IO[str]]:
    """Reserve standard output for this command if asked to; what functions print goes to stderr."""
    if not own:
        yield sys.stdout
        return
    sys.stdout.flush()
    stdout = os.fdopen(os.dup(1), "w", errors="backslashreplace")
    os.dup2(2, 1)
    try:
        yield stdout
    finally:
        with contextlib.suppress(OSError):  # writing to it has raised the same error
            stdout.close()


def _attended(
    client: Client, dag: DAG, options: RunOptions, display: Display, file: OutputFile | None
) -> tuple[ExecutionResult | None, BaseException | None]:
    """Run a DAG, show its progress, write the outcome, and return it."""
    result: ExecutionResult | None = None
    failure: BaseException | None
    try:
        result = attended(dag, options, client, display)
        failure = _summed_up(result)
    except Exception as error:
        result = getattr(error, "partial", None)
        failure = error
    if file is not None and result is not None:
        try:
            _written(file, result, display)
        except Problem as error:
            failure = failure or error
    display.end(result, failure)
    return result, failure


def _written(file: OutputFile, result: ExecutionResult, display: Display) -> None:
    if left_out := write_result(file, result):
        some = ", ".join(map(jsonable.shown, left_out[:3])) + (", ..." if len(left_out) > 3 else "")
        which = f"{len(left_out)} of the results ({some})"
        if file.pickles:
            display.note(f"{which} cannot be pickled here")
        else:
            display.note(f"JSON cannot hold {which}; a file named *.pkl can")


def _summed_up(result: ExecutionResult) -> Problem | None:
    """Return the failures of a run with ``--on-error continue`` as one problem."""
    errors = list(dict.fromkeys(result.errors.values()))
    if not errors:
        return None
    text = "; ".join(problem_of(error).message for error in errors[:3])
    if len(errors) > 3:
        text += f"; and {len(errors) - 3} more"
    impossible = all(isinstance(error, AllocationError) for error in errors)
    text = f"{len(result.errors)} functions failed or were not run: {text}"
    return Problem(text, IMPOSSIBLE if impossible else FAILED)
