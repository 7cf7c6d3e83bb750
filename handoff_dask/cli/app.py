"""The group of commands."""

from __future__ import annotations

import platform
from importlib.metadata import version

import click

from handoff_dask._version import __version__
from handoff_dask.cli import inspect_commands, kept_run_commands
from handoff_dask.cli.exit_codes import EPILOG
from handoff_dask.cli.run_command import run
from handoff_dask.cli.store_commands import store


@click.group(epilog=EPILOG)
@click.version_option(
    message=f"handoff_dask {__version__} (dask {version('dask')}, distributed "
    f"{version('distributed')}, Python {platform.python_version()})",
    version=__version__,
)
def handoff() -> None:
    """Run DAGs of functions with resource costs.

    A TARGET is module:dag, path/to/file.py:dag, path/to/file.py:make_dag with the arguments of
    the function after --, or a workflow file in WfFormat 1.5 (*.json). Workflow files are replayed:
    each task waits as long as it took.
    """


for command in (run, *inspect_commands.COMMANDS, *kept_run_commands.COMMANDS, store):
    handoff.add_command(command)
