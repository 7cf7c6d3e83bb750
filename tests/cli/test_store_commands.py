"""dask handoff store: ls, rm, verify."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from handoff_dask.cli import handoff as group
from handoff_dask.store.opened import OpenStore
from handoff_dask.store.result_store import Store
from handoff_dask.widgets import markup
from tests.store.conftest import MADE, location
from tests.store.putget import PutGet

DAY = 86_400.0


def run(*arguments: object) -> Result:
    return CliRunner().invoke(group, ["store", *map(str, arguments)])


def fill(url: object) -> OpenStore:
    """Store three results: two of one code, of different ages, and one of another."""
    store = OpenStore(Store(str(url)))
    now = time.time()
    for name, label, age in (
        ("old", "pipeline.load", 10 * DAY),
        ("new", "pipeline.load", 3 * 3600.0),
        ("other", "pipeline.train", 3 * DAY),
    ):
        made = MADE._replace(started=now - age - 1, stopped=now - age)
        store.write(location(name, label), [name], made)
    return store


def sum_of(*sizes: str) -> str:
    """Return the sum of sizes such as "345 B"."""
    return markup.size(sum(float(size.removesuffix(" B")) for size in sizes))


def damage(store: OpenStore, name: str, label: str) -> Path:
    path = Path(store._path(location(name, label)))
    path.write_bytes(path.read_bytes()[:-1])
    return path


def test_ls(tmp_path: Path) -> None:
    """A row for each code, with sizes and ages, and a total."""
    fill(tmp_path)
    done = run("ls", tmp_path)
    assert done.exit_code == 0, done.output
    head, load, train = (re.split(" {2,}", line) for line in done.stdout.splitlines()[:3])
    assert head == ["code", "results", "size", "newest", "oldest"]
    assert load == ["pipeline.load", "2", load[2], "3 h 0 min ago", "10 days ago"]
    assert train == ["pipeline.train", "1", train[2], "3 days ago", "3 days ago"]
    assert done.stdout.splitlines()[3] == f"3 results, {sum_of(load[2], train[2])}"


def test_ls_as_json(tmp_path: Path) -> None:
    """Each entry with its key, size, age and who made it."""
    fill(tmp_path)
    entries = {entry["key"]: entry for entry in json.loads(run("ls", tmp_path, "--json").stdout)}
    assert len(entries) == 3
    old = entries[location("old").key]
    assert old["label"] == "pipeline.load" and old["problem"] is None
    assert old["age"] == pytest.approx(10 * DAY, abs=100)
    assert old["made"]["user"] == "ada" and old["made"]["usage"]["cpu_time"] == 7.0


def test_ls_tells_of_entries_that_cannot_be_used(tmp_path: Path) -> None:
    """Their number, and where to look."""
    store = fill(tmp_path)
    Path(store._path(location("old"))).write_bytes(b"")
    assert "1 of them cannot be used: see `dask handoff store verify`" in run("ls", tmp_path).stdout


def test_rm(tmp_path: Path) -> None:
    """What is older goes; a dry run only says what would."""
    store = fill(tmp_path)
    arguments = ("rm", tmp_path, "--older-than", "2 days")
    assert run(*arguments, "--dry-run").stdout.startswith("would remove 2 results, ")
    assert len(list(store.entries())) == 3
    assert run(*arguments).stdout.startswith("removed 2 results, ")
    assert [entry.key for entry in store.entries()] == [location("new").key]
    assert run("rm", tmp_path, "--older-than", "0").stdout.startswith("removed 1 result, ")


def test_rm_needs_an_age(tmp_path: Path) -> None:
    """Nothing is removed by accident."""
    store = fill(tmp_path)
    assert run("rm", tmp_path).exit_code == 2
    done = run("rm", tmp_path, "--older-than", "soon")
    assert done.exit_code == 2 and "'soon' is not a time" in done.output
    assert len(list(store.entries())) == 3


def test_verify(tmp_path: Path) -> None:
    """Exit code 0 if all is well, 1 if not, with the path of each damaged entry."""
    store = fill(tmp_path)
    done = run("verify", tmp_path)
    assert done.exit_code == 0 and done.stdout.endswith(", 0 damaged\n")
    path = damage(store, "other", "pipeline.train")
    done = run("verify", tmp_path)
    assert done.exit_code == 1
    problem, total = done.stdout.splitlines()
    assert problem == f"{path}: it is too short"
    assert total.startswith("3 results, ") and total.endswith(", 1 damaged")


def test_an_empty_store(tmp_path: Path) -> None:
    """Neither a table nor an error."""
    assert run("ls", tmp_path / "new").stdout == "0 results, 0 B\n"
    assert json.loads(run("ls", tmp_path / "new", "--json").stdout) == []


def test_the_store_of_the_settings(tmp_path: Path, handoff) -> None:
    """handoff.store is the default; without it, the command says what to give."""
    fill(tmp_path / "store")
    done = handoff("store", "ls", env={"DASK_HANDOFF__STORE": str(tmp_path / "store")})
    assert done.returncode == 0 and "3 results" in done.stdout, done.stderr
    done = handoff("store", "ls")
    assert done.returncode == 2 and "which store? Give its URL" in done.stderr


def test_a_key_from_the_environment(handoff: Any, folder: Path) -> None:
    """A secret is never on a command line: the URL may be, and the key is in the settings."""
    (folder / "chain.py").write_text(CHAIN)
    key = {"DASK_HANDOFF__STORE__HMAC_KEY": "secret"}
    done = handoff("run", "chain.py:dag", "--store", "store", "--quiet", env=key)
    assert done.returncode == 0, done.stderr
    assert (
        "2 of 3 functions stored"
        in handoff("store", "why", "store", "chain.py:dag", env=key).stdout
    )
    assert ", 0 damaged" in handoff("store", "verify", "store", env=key).stdout
    other = {"DASK_HANDOFF__STORE__HMAC_KEY": "other"}
    assert ", 2 damaged" in handoff("store", "verify", "store", env=other).stdout
    assert (
        "2 results"
        in handoff("store", "ls", env={**key, "DASK_HANDOFF__STORE__URL": "store"}).stdout
    )
    assert (
        "removed 2 results" in handoff("store", "rm", "store", "--older-than", "0", env=key).stdout
    )


def test_options_for_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """They arrive as text, or as what JSON makes of them."""
    arrived = {}
    monkeypatch.setattr(
        PutGet, "__init__", lambda self, **options: arrived.update(options), raising=False
    )
    arguments = ("--option", "profile=science", "--option", "anon=true", "--option", "a=b=c")
    run("ls", "putget://bucket", *arguments)
    assert arrived == {"profile": "science", "anon": True, "a": "b=c"}
    done = run("ls", "putget://bucket", "--option", "profile")
    assert done.exit_code == 2 and "'profile' is not of the form name=value" in done.output


def test_a_store_that_cannot_be_read() -> None:
    """The error names it, in one paragraph."""
    PutGet.problem = PermissionError("no access")
    try:
        done = run("ls", "putget://bucket/x")
    finally:
        PutGet.clear()
    assert done.exit_code == 1
    assert done.output == (
        "Error: the store putget://bucket/x: cannot read it: PermissionError: no access\n"
    )
    assert run("ls", "nosuch://bucket").exit_code == 2


@pytest.mark.parametrize("command", ["ls", "rm", "verify"])
def test_help_of_store_commands(command: str) -> None:
    """Each has an example."""
    assert f"    dask handoff store {command} /scratch/results" in run(command, "--help").output
    assert f"\n  {command} " in run("--help").output


def test_why(handoff: Any, folder: Path) -> None:
    """Each function that would run is listed, with what changed since the last run."""
    why = ("store", "why", "store", "chain.py:dag")
    (folder / "chain.py").write_text(CHAIN)
    assert "0 of 3 functions stored" in handoff(*why).stdout
    done = handoff("run", "chain.py:dag", "--store", "store", "--quiet")
    assert done.returncode == 0, done.stderr
    assert handoff(*why).stdout == ("c: its result is not to be stored\n2 of 3 functions stored\n")
    changed = CHAIN.replace("2 * x", "3 * x").replace('"b"', '"b", cost={"cpu": 1}')
    (folder / "chain.py").write_text(changed)
    answer = handoff(*why, "--json")
    assert answer.returncode == 0, answer.stderr
    reasons = json.loads(answer.stdout)
    assert list(reasons) == ["b", "c"]
    assert re.fullmatch(r"code of [\w.]*helper changed", reasons["b"])


CHAIN = """
from handoff_dask import DAG


def helper(x):
    return 2 * x


def load(x):
    return x


def work(x):
    return helper(x)


dag = DAG("chain")
a = dag.add(load, 1, id="a")
b = dag.add(work, a, id="b")
c = dag.add(load, b, id="c", stored=False)
"""
