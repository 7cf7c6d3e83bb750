"""What commands share: how they end, options, and tables."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from handoff_dask import config
from handoff_dask.cli.exit_codes import Problem, problem_of
from handoff_dask.cli.signals import error_printed, interruptible
from handoff_dask.model.amounts import as_seconds
from handoff_dask.placement.strategies import STRATEGIES
from handoff_dask.widgets import markup

F = TypeVar("F", bound=Callable[..., Any])

#: Where a click context keeps whether --debug was given.
DEBUG = "handoff.debug"


class Command(click.Command):
    """A command with one-paragraph errors that exits promptly on signals."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(["--debug"], is_flag=True, help="Show tracebacks and Dask's log.")
        )

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        debug = ctx.meta[DEBUG] = ctx.params.pop("debug")
        error_printed.clear()
        try:
            with interruptible():
                if problems := config.problems():
                    raise Problem("; ".join(problems))
                return super().invoke(ctx)
        except (click.exceptions.Exit, click.UsageError):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if debug:
                traceback.print_exception(error)
            problem = problem_of(error)
            error_printed.set()
            click.echo(f"Error: {problem.message}", err=True)
            ctx.exit(problem.code)


def command(*examples: str, remark: str = "") -> Callable[[Callable[..., Any]], Command]:
    """Return a decorator that makes a command; its help ends with examples and a remark."""
    lines = [f"  dask handoff {example}\n" for example in examples]
    shown = "".join(["\b\nExamples:\n", *lines, "\n"]) if examples else ""
    return click.command(cls=Command, epilog=shown + remark)


class _TimeType(click.ParamType):  # type: ignore[type-arg,unused-ignore] # depends on click's version
    """Seconds, or a time with its unit."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        for read in (float, as_seconds):
            with suppress(ValueError):
                seconds: float = read(value)
                return seconds
        self.fail(f"{value!r} is not a time: write seconds, or a unit as in 5min.")


#: The type of options that take a time.
TIME = _TimeType()


def target_options(command: F) -> F:
    """Add TARGET, whose file a shell completes, the arguments after it, and --scale."""
    command = click.option(
        "--scale",
        type=click.FloatRange(min=0),
        help="Factor for the recorded times of a workflow file.",
    )(command)
    command = click.argument("arguments", nargs=-1, metavar="[-- NAME=VALUE...]")(command)
    return click.argument("target", type=click.Path(readable=False))(command)


strategy_option = click.option(
    "--strategy",
    "allocation_strategy",
    type=click.Choice(list(STRATEGIES)),
    default="packed",
    show_default=True,
    help="How workers are chosen.",
)
max_concurrency_option = click.option(
    "--max-concurrency",
    type=click.IntRange(min=1),
    help="How many functions of the run may run at once.",
)


def output_option(help: str, default: Path | None = None) -> Callable[[F], F]:
    """Return the option --output."""
    return click.option(
        "--output", type=click.Path(path_type=Path), default=default, show_default=True, help=help
    )


def print_table(rows: list[list[str]]) -> None:
    """Print rows with aligned columns: the first to the left, the others to the right."""
    click.echo(markup.aligned(rows))
