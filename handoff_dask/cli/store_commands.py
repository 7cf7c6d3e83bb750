"""``dask handoff store``: what a store of results holds, and what it holds no longer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

from handoff_dask.cli.command import TIME, command, print_table, target_options
from handoff_dask.cli.dag_loader import load
from handoff_dask.cli.exit_codes import FAILED, Problem
from handoff_dask.client.options import as_store
from handoff_dask.client.stored_results import explain
from handoff_dask.store.opened import Entry, OpenStore
from handoff_dask.store.result_store import Store
from handoff_dask.widgets import markup

F = TypeVar("F", bound=Callable[..., Any])


def _option(ctx: Any, param: Any, values: Sequence[str]) -> dict[str, Any]:
    """Return the options of a driver; values that are JSON are read as such."""
    options: dict[str, Any] = {}
    for text in values:
        name, separator, value = text.partition("=")
        if not name or not separator:
            raise click.BadParameter(f"{text!r} is not of the form name=value")
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


_driver_option = click.option(
    "--option",
    "storage_options",
    multiple=True,
    callback=_option,
    metavar="NAME=VALUE",
    help="An option for the driver of the URL, such as profile=science; repeat for each.",
)


def _store_options(command: F) -> F:
    """Add URL, which the setting handoff.store replaces, and --option."""
    return click.argument("url", required=False)(_driver_option(command))


def _chosen(url: str | None, storage_options: dict[str, Any]) -> Store:
    given = {"storage_options": storage_options} if storage_options else {}
    store = as_store(url, **given)
    if store is None:
        raise Problem("which store? Give its URL, or set DASK_HANDOFF__STORE")
    return store


def _opened(url: str | None, storage_options: dict[str, Any]) -> OpenStore:
    return OpenStore(_chosen(url, storage_options))


@command(
    "store ls /scratch/results", "store ls s3://bucket/results --option profile=science --json"
)
@_store_options
@click.option("--json", "as_json", is_flag=True, help="Write each entry as JSON, in a list.")
def ls(url: str | None, storage_options: dict[str, Any], as_json: bool) -> None:
    """List what a store holds, by code.

    URL is a folder, or a URL that fsspec understands; the setting handoff.store is the default.
    """
    entries = list(_opened(url, storage_options).entries())
    if as_json:
        click.echo(json.dumps([_as_dict(entry) for entry in entries], indent=1))
        return
    codes: dict[str, list[Entry]] = {}
    for entry in entries:
        codes.setdefault(entry.label, []).append(entry)
    rows = [["code", "results", "size", "newest", "oldest"]]
    for code, of_code in sorted(codes.items()):
        ages = sorted(entry.age for entry in of_code)
        rows.append(
            [code, str(len(of_code)), _size(of_code), *(_ago(age) for age in (ages[0], ages[-1]))]
        )
    if entries:
        print_table(rows)
    click.echo(_total(entries))
    if unreadable := [entry for entry in entries if entry.problem]:
        click.echo(f"{len(unreadable)} of them cannot be used: see `dask handoff store verify`")


@command(
    'store rm /scratch/results --older-than "7 days"', "store rm /scratch/results --older-than 0"
)
@_store_options
@click.option(
    "--older-than",
    type=TIME,
    required=True,
    help="How old a result must be to be removed: seconds, or as in '7 days'.",
)
@click.option("--dry-run", is_flag=True, help="Remove nothing; only say what would be.")
def rm(url: str | None, storage_options: dict[str, Any], older_than: float, dry_run: bool) -> None:
    """Remove old results from a store.

    The age of a result counts from the end of the function that made it, even if it was read since.
    What killed writers left behind is removed, too.
    """
    removed = list(_opened(url, storage_options).remove(older_than, dry_run))
    click.echo(f"{'would remove' if dry_run else 'removed'} {_total(removed)}")


@command("store verify /scratch/results")
@_store_options
def verify(url: str | None, storage_options: dict[str, Any]) -> None:
    """Check that no result of a store is damaged.

    Every result is read.

    The exit code is 1 if one is damaged. Damaged results count as missing in runs, and are replaced
    when they are computed again. What killed writers left behind is removed.
    """
    entries = []
    for entry in _opened(url, storage_options).verify():
        entries.append(entry)
        if entry.problem:
            click.echo(f"{entry.path}: {entry.problem}")
    damaged = sum(entry.problem is not None for entry in entries)
    click.echo(f"{_total(entries)}, {damaged} damaged")
    if damaged:
        click.get_current_context().exit(FAILED)


@command(
    "store why /scratch/results pipeline.py:dag",
    "store why /scratch/results pipeline.py:make_dag -- day=2026-03-01",
)
@click.argument("url")
@_driver_option
@target_options
@click.option("--json", "as_json", is_flag=True, help="Write {function: reason} as JSON.")
def why(url: str, storage_options: dict[str, Any], as_json: bool, **target: Any) -> None:
    """Say which functions of a DAG would run, and why.

    Nothing runs. Each function without a stored result is listed: with what changed since the last
    run of the DAG in its code, its arguments or the results that it needs, or with why its result
    cannot be stored.
    """
    reasons = explain(load(**target).dag, _chosen(url, storage_options))
    would_run = {str(id): reason for id, reason in reasons.items() if reason is not None}
    if as_json:
        click.echo(json.dumps(would_run, indent=1))
        return
    if would_run:
        click.echo("\n".join(f"{id}: {reason}" for id, reason in would_run.items()))
    total = markup.count(len(reasons), "function")
    click.echo(f"{len(reasons) - len(would_run)} of {total} stored")


def _total(entries: Sequence[Entry]) -> str:
    return f"{markup.count(len(entries), 'result')}, {_size(entries)}"


def _size(entries: Iterable[Entry]) -> str:
    return markup.size(sum(entry.size for entry in entries))


def _ago(age: float) -> str:
    age = max(0.0, round(age))
    if age >= 2 * 86_400:
        return f"{markup.count(int(age // 86_400), 'day')} ago"
    return f"{markup.seconds(age)} ago"


def _as_dict(entry: Entry) -> dict[str, Any]:
    made = entry.made
    facts = made and {**made._asdict(), "usage": made.usage._asdict()}
    return {**entry._asdict(), "made": facts}


@click.group()
def store() -> None:
    """Look after a store of results.

    A key and other options of the store are taken from Dask's setting handoff.store.
    """


for subcommand in (ls, why, rm, verify):
    store.add_command(subcommand)
