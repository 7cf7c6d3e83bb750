"""The commands, their options and their help."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from handoff_dask._version import __version__
from handoff_dask.cli import keeping, looking, running
from handoff_dask.cli.cluster import Where, cluster_options
from handoff_dask.cli.failing import Command
from handoff_dask.cli.targets import load
from handoff_dask.placement.strategies import STRATEGIES

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])

EXIT_CODES = """\b
Exit codes:
  0    all done
  1    a function failed, or the run did not end in time
  2    wrong usage, or an invalid DAG; nothing was started
  3    no worker can hold a function
  4    the cluster cannot be reached, or was lost
  130  interrupted
"""


class _Group(click.Group):
    command_class = Command


class _TargetType(click.ParamType):  # type: ignore[type-arg,unused-ignore] # as click may be
    """A target; a shell completes its file."""

    name = "target"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


@click.group(cls=_Group, epilog=EXIT_CODES)
@click.version_option(
    message=f"handoff_dask {__version__} (dask {version('dask')}, distributed "
    f"{version('distributed')}, Python {platform.python_version()})",
    version=__version__,
)
def handoff() -> None:
    """Run DAGs of functions with resource costs.

    A TARGET is module:dag, path/to/file.py:dag, path/to/file.py:make_dag with the function's
    arguments after --, or a workflow file in WfFormat 1.5 (*.json), whose tasks are replayed: each
    waits as long as it took.
    """


def target_options(command: F) -> F:
    """Give a command TARGET, the arguments after it, and --scale."""
    command = click.option(
        "--scale",
        type=click.FloatRange(min=0),
        help="Factor for the recorded times of a workflow file.",
    )(command)
    command = click.argument("arguments", nargs=-1, metavar="[-- NAME=VALUE...]")(command)
    return click.argument("target", type=_TargetType())(command)


_durations = click.option(
    "--durations",
    "durations_file",
    type=click.Path(path_type=Path),
    help="How long functions take: {id: seconds} in JSON, or the --output of an earlier run.",
)
_strategy = click.option(
    "--strategy",
    "allocation_strategy",
    type=click.Choice(list(STRATEGIES)),
    default="packed",
    show_default=True,
    help="How workers are chosen.",
)
_max_concurrency = click.option(
    "--max-concurrency",
    type=click.IntRange(min=1),
    help="How many functions of the run may run at once.",
)


def _debug() -> bool:
    debug: bool = click.get_current_context().meta["handoff.debug"]
    return debug


@handoff.command(
    epilog="""\b
Examples:
  dask handoff run pipeline.py:dag --worker cpu=4,memory=8000 --output result.json
  dask handoff run pipeline.py:make_dag --scheduler-file scheduler.json -- day=2026-03-01
  dask handoff run package.module:dag --scheduler tcp://host:8786 --detach
  dask handoff run trace.json --scale 0.01 --worker cpu=8,memory=16000

"""
    + EXIT_CODES
)
@target_options
@cluster_options()
@click.option(
    "--max-retries",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Further attempts of a function that fails, unless it says otherwise.",
)
@_max_concurrency
@_strategy
@click.option(
    "--results",
    multiple=True,
    metavar="all|sinks|none|ID",
    help="Which results are kept: all, sinks (those that no function needs), none, or a "
    "function's, once for each. Without --output or --detach, none by default, and those asked for "
    "are printed; else all.",
)
@click.option(
    "--on-error",
    type=click.Choice(["raise", "continue"]),
    default="raise",
    show_default=True,
    help="Whether to go on with what does not depend on a function that failed.",
)
@click.option("--timeout", type=float, help="Seconds that the run may take.")
@click.option(
    "--placement-timeout",
    type=float,
    default=0.0,
    help="Seconds to wait for a worker that can hold a cost which none can at present.",
)
@click.option(
    "--priority", type=float, default=0.0, help="Runs of higher priority are placed first."
)
@click.option(
    "--detach",
    is_flag=True,
    help="Don't wait: print the DAG's id, and keep results on the cluster.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Where to write what came out: JSON or, if it is called *.pkl, a pickle; - is standard "
    "output.",
)
@_durations
@click.option("--quiet", is_flag=True, help="Show nothing but errors.")
@click.option(
    "--json-lines", is_flag=True, help="Show progress as JSON, an object a line, on stdout."
)
def run(target: str, arguments: tuple[str, ...], where: Where, **options: Any) -> None:
    """Run a DAG and wait for it.

    Without --scheduler, --scheduler-file or Dask's own setting scheduler-address, an embedded
    cluster runs it: a worker process for each --worker or, without any, one that has the whole
    machine. How far the run is stands on standard error.
    """
    running.run(where, target, arguments, **options)


@handoff.command(
    epilog="""\b
Examples:
  dask handoff validate pipeline.py:dag
  dask handoff validate pipeline.py:make_dag -- day=2026-03-01
"""
)
@target_options
def validate(target: str, arguments: tuple[str, ...], scale: float | None) -> None:
    """Check a DAG, without any cluster."""
    looking.validate(load(target, arguments, scale))


@handoff.command(
    epilog="""\b
Examples:
  dask handoff explain pipeline.py:dag --scheduler tcp://host:8786
  dask handoff explain pipeline.py:dag --worker cpu=4,memory=8000 --worker cpu=2,gpu=1

The exit code is 3 if a function cannot run.
"""
)
@target_options
@cluster_options()
def explain(where: Where, target: str, arguments: tuple[str, ...], scale: float | None) -> None:
    """Tell which workers could run each function, or what is missing."""
    code = looking.explained(where, load(target, arguments, scale), _debug())
    click.get_current_context().exit(code)


@handoff.command(
    epilog="""\b
Examples:
  dask handoff plan trace.json --worker cpu=8,memory=16000 --worker cpu=4,memory=8000
  dask handoff plan pipeline.py:dag --durations result.json --scheduler tcp://host:8786
"""
)
@target_options
@cluster_options()
@_durations
@_strategy
@_max_concurrency
@click.option(
    "--overhead",
    type=float,
    default=0.0,
    help="Seconds that starting a function takes; 0.003 suits a cluster on one machine.",
)
@click.option("--timeline", is_flag=True, help="Show when and where each function would run.")
def plan(
    where: Where, target: str, arguments: tuple[str, ...], scale: float | None, **options: Any
) -> None:
    """Predict how long a DAG takes, by simulation.

    On the workers of a cluster or, with --worker, on imagined ones.
    """
    looking.planned(where, load(target, arguments, scale), debug=_debug(), **options)


@handoff.command(
    epilog="""\b
Examples:
  dask handoff visualize pipeline.py:dag
  dask handoff visualize trace.json --output trace.png
"""
)
@target_options
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("dag.svg"),
    show_default=True,
    help="Where to draw it; the ending says how. - is standard output, SVG.",
)
def visualize(target: str, arguments: tuple[str, ...], scale: float | None, output: Path) -> None:
    """Draw a DAG."""
    looking.visualized(load(target, arguments, scale), output)


@handoff.command(
    epilog="""\b
Examples:
  dask handoff nodes --scheduler tcp://host:8786
"""
)
@cluster_options(workers=False)
def nodes(where: Where) -> None:
    """Show what each worker of a cluster offers."""
    looking.nodes(where, _debug())


@handoff.command()
@cluster_options(workers=False)
def runs(where: Where) -> None:
    """List the runs on a cluster, everybody's, the oldest first.

    A run that is kept needs no client, and stays until `dask handoff forget`.
    """
    keeping.runs(where, _debug())


@handoff.command()
@click.argument("dag_id")
@cluster_options(workers=False)
def status(where: Where, dag_id: str) -> None:
    """Show how far a run is, what its functions wait for, and what failed.

    Of several runs of one DAG_ID, the latest is meant, here and elsewhere.
    """
    keeping.status(where, dag_id, _debug())


@handoff.command(
    epilog="""\b
Examples:
  dask handoff result nightly total --scheduler tcp://host:8786
  dask handoff result nightly model --output model.pkl --timeout 3600 --scheduler tcp://host:8786
"""
)
@click.argument("dag_id")
@click.argument("function")
@cluster_options(workers=False)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    help="Seconds to wait for the function to end.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Where to write it: JSON or, if it is called *.pkl, a pickle; - is standard output.",
)
def result(where: Where, dag_id: str, function: str, timeout: float, output: Path | None) -> None:
    """Fetch the result of a function of a run.

    Text is printed as it is, other values as JSON or, where that cannot hold them, as Python shows
    them. A function whose id is no text goes by its repr.
    """
    keeping.result(where, dag_id, function, timeout, output, _debug())


@handoff.command()
@click.argument("dag_id")
@cluster_options(workers=False)
def cancel(where: Where, dag_id: str) -> None:
    """Stop a run: what has not started never does, what runs finishes unseen."""
    keeping.cancel(where, dag_id, _debug())


@handoff.command()
@click.argument("dag_id")
@cluster_options(workers=False)
def forget(where: Where, dag_id: str) -> None:
    """Let the kept runs of a DAG go: their results, and whatever of them still runs."""
    keeping.let_go(where, dag_id, _debug())
