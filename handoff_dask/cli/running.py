"""``dask handoff run``."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import click
from distributed import Client

from handoff_dask.cli.cluster import Where, connected
from handoff_dask.cli.failing import FAILED, IMPOSSIBLE, Problem, problem_of
from handoff_dask.cli.output import (
    Output,
    durations,
    is_stdout,
    list_results,
    opened,
    write_result,
)
from handoff_dask.cli.progress import Display, Forecast, JsonLines, Lines, Terminal, watch
from handoff_dask.cli.targets import Target, load, resolve
from handoff_dask.client.execution import submit
from handoff_dask.client.nodes import discover_nodes
from handoff_dask.client.options import RunOptions
from handoff_dask.client.planning import Plan, plan
from handoff_dask.client.results import ExecutionResult
from handoff_dask.errors import AllocationError, HandoffError
from handoff_dask.model import jsonable

#: No plan is made of bigger DAGs: it would take from the time of the run.
_PLANNED = 2000


def selection(given: tuple[str, ...], default: str, ids: list[Hashable]) -> Any:
    """Return what ``--results`` asks for, as :func:`~handoff_dask.execute` takes it."""
    given = given or (default,)
    if given == ("none",):
        return []
    if len(given) == 1 and given[0] in ("all", "sinks"):
        return given[0]
    return [resolve(name, ids, "the DAG") for name in given]


def run(
    where: Where,
    target: str,
    arguments: tuple[str, ...],
    *,
    scale: float | None,
    results: tuple[str, ...],
    detach: bool,
    output: Path | None,
    durations_file: Path | None,
    quiet: bool,
    json_lines: bool,
    **options: Any,
) -> None:
    """Run a DAG and wait for it, or not."""
    debug = click.get_current_context().meta["handoff.debug"]
    if detach and not where.remote:
        raise Problem("--detach needs a cluster that outlives this command: say --scheduler")
    if detach and (output is not None or options["timeout"] is not None):
        raise Problem(
            "--detach does not wait for the run, so that --output and --timeout have no use: fetch "
            "results with `dask handoff result`"
        )
    if json_lines and is_stdout(output):
        raise Problem("--json-lines and --output - both write to standard output: give one of them")
    shown = results not in ((), ("none",)) and output is None and not detach
    with own_stdout(json_lines or shown or is_stdout(output)) as stdout:
        file = None if output is None else opened(output, stdout)
        loaded = load(target, arguments, scale)
        ids = list(loaded.dag.functions)
        default = "all" if detach or file is not None else "none"
        options["results"] = selection(results, default, ids)
        RunOptions(**options, detach=detach)
        known: Mapping[Hashable, float] | ExecutionResult | None = loaded.durations
        if durations_file is not None:
            known = durations(durations_file, ids)
        display = _display(quiet, json_lines, stdout, shown)
        listing = stdout if shown and not json_lines else None
        with connected(where, processes=True, debug=debug) as client:
            if detach:
                submit(loaded.dag, client=client, detach=True, **options)
                click.echo(loaded.dag.id)
                return
            _attended(client, loaded, known, options, display, file, listing)


@contextlib.contextmanager
def own_stdout(own: bool) -> Iterator[IO[str]]:
    """Keep standard output for this command, if asked to; what functions print goes to stderr."""
    if not own:
        yield sys.stdout
        return
    sys.stdout.flush()
    stdout = os.fdopen(os.dup(1), "w", errors="backslashreplace")
    os.dup2(2, 1)
    try:
        yield stdout
    finally:
        with contextlib.suppress(OSError):  # told when it was written
            stdout.close()


def _display(quiet: bool, json_lines: bool, stdout: IO[str], shown: bool) -> Display:
    if json_lines:
        return JsonLines(stdout, results=shown)
    if quiet:
        return Display()
    return Terminal(sys.stderr) if sys.stderr.isatty() else Lines()


def _attended(
    client: Client,
    target: Target,
    known: Mapping[Hashable, float] | ExecutionResult | None,
    options: dict[str, Any],
    display: Display,
    file: Output | None,
    listing: IO[str] | None,
) -> None:
    """Run a DAG, show how far it is, and write what came out."""
    dag = target.dag
    display.start(dag.id, [f.id for f in dag.functions.values() if f.type == "regular"])
    started = time.monotonic()
    result: ExecutionResult | None = None
    failure: BaseException | None
    run = None
    try:
        run = submit(dag, client=client, **options)
        watch(run, display, Forecast(_planner(client, target, known, options)))
        result = run.result()
        failure = _first_failure(result)
    except KeyboardInterrupt as interrupt:
        # First this: for what follows there may be no time.
        display.end(time.monotonic() - started, None, problem_of(interrupt))
        if run is not None:
            with contextlib.suppress(HandoffError, OSError):
                run.cancel()
        raise
    except Exception as error:
        result = result or getattr(error, "partial", None)
        failure = error
    if file is not None and result is not None:
        try:
            _written(file, result, display)
        except Problem as problem:
            failure = failure or problem
    took = time.monotonic() - started
    display.end(took, result, None if failure is None else problem_of(failure))
    if listing is not None and result is not None:
        list_results(listing, result)
    if failure is not None:
        raise failure


def _written(file: Output, result: ExecutionResult, display: Display) -> None:
    if left_out := write_result(file, result):
        some = ", ".join(map(jsonable.shown, left_out[:3])) + (", ..." if len(left_out) > 3 else "")
        which = f"{len(left_out)} of the results ({some})"
        if file.pickles:
            display.note(f"{which} cannot be pickled here")
        else:
            display.note(f"JSON cannot hold {which}; a file named *.pkl can")


def _first_failure(result: ExecutionResult) -> BaseException | None:
    """Return what to tell of a run with ``--on-error continue``, some of which failed."""
    errors = list(dict.fromkeys(result.errors.values()))
    if not errors:
        return None
    text = "; ".join(problem_of(error).message for error in errors[:3])
    if len(errors) > 3:
        text += f"; and {len(errors) - 3} more"
    impossible = all(isinstance(error, AllocationError) for error in errors)
    return Problem(
        f"{len(result.errors)} functions failed or were not run: {text}",
        IMPOSSIBLE if impossible else FAILED,
    )


def _planner(
    client: Client,
    target: Target,
    known: Mapping[Hashable, float] | ExecutionResult | None,
    options: Mapping[str, Any],
) -> Callable[[], Plan] | None:
    if known is None or len(target.dag) > _PLANNED:
        return None
    return lambda: plan(
        target.dag,
        discover_nodes(client),
        known,
        allocation_strategy=options["allocation_strategy"],
        max_concurrency=options["max_concurrency"],
    )
