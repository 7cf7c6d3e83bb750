"""Nothing is stored that old code made of a module which was edited while workers ran."""

from __future__ import annotations

import importlib
import sys

import pytest
from distributed import Client, LocalCluster

from handoff_dask import DAG, FunctionFailedError, execute
from tests.trust.test_store import entries

MODULE = """
import threading
from functools import lru_cache, wraps

FACTOR, calls, seen, held = {factor}, 0, [], threading.Lock

def kept(function):
    cache = {{}}
    @wraps(function)
    def wrapper(x):
        return cache.setdefault(x, function(x))
    return wrapper

@lru_cache
def cached(x):
    return x {operator} 1

class Scale:
    known = {{}}

    @staticmethod
    def by(x):
        return x * {scale}

@kept
def total(x, offset={offset}):
    return Scale.by(cached(x)) * FACTOR + offset

def work(x):
    global calls
    calls += 1
    seen.append(x)
    Scale.known[x] = total(x)
    return Scale.known[x]
"""


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return what writes a module, with some parts of it changed, and imports it here."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(**changes):
        parts = {"factor": 2, "operator": "+", "scale": 10, "offset": 0, **changes}
        (tmp_path / "edited_helpers.py").write_text(MODULE.format(**parts))
        importlib.invalidate_caches()
        sys.modules.pop("edited_helpers", None)
        return importlib.import_module("edited_helpers")

    yield write
    sys.modules.pop("edited_helpers", None)


@pytest.fixture
def client(tmp_path):
    """Return a client of one worker process, which finds the module and keeps it."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, dashboard_address=":0", memory_limit=0
        ) as cluster,
        Client(cluster) as client,
    ):
        client.run(find_modules_in, str(tmp_path))
        yield client


def edited(helpers, start):
    """Return a DAG of functions of the module and of others that use their results."""
    dag = DAG("edited")
    for i in range(20):
        dag.add(lambda x: -x, dag.add(helpers.work, i, id=i), id=(i, "negative"))
    dag.add(helpers.work, start, id="start")
    return dag


def find_modules_in(path):
    """Have a worker import what a test writes there."""
    sys.path.insert(0, path)
    sys.dont_write_bytecode = True


@pytest.mark.parametrize("bundle", [None, False])
def test_modules_that_were_edited(client, store, module, tmp_path, bundle):
    """No worker stores what old code has made under the name of the new; it says what to do."""

    def run(helpers, start):
        dag = edited(helpers, start)
        return execute(dag, client=client, store=store, max_retries=0, bundle=bundle)

    changes = {
        "factor": (3, "edited_helpers.FACTOR"),
        "operator": ("-", "edited_helpers.cached"),
        "scale": (11, "edited_helpers.Scale.by"),
        "offset": (1, "edited_helpers.total"),
    }
    first = run(module(), 1)
    assert first[1] == 40
    # What functions change while they run, such as caches, is no reason to fail.
    assert run(module(), 2)["start"] == 60
    before = entries(store)
    for part, (value, label) in changes.items():
        with pytest.raises(FunctionFailedError, match=rf"{label} .* client.restart\(\)"):
            run(module(**{part: value}), 3)
    assert entries(store) == before
    assert run(module(), 3)["start"] == 80
    client.restart()
    client.run(find_modules_in, str(tmp_path))
    assert run(module(factor=3), 1)[1] == 60


def test_modules_that_were_edited_in_processes(client, store, module):
    """A process that has loaded the old code is replaced: the next attempt runs the new."""
    for factor in (2, 3, 4):
        dag = edited(module(factor=factor), factor)
        result = execute(dag, client=client, store=store, isolate=True)
        assert [result[i] for i in range(20)] == [(i + 1) * 10 * factor for i in range(20)]
        again = execute(dag, client=client, store=store)
        assert dict(again.results) == dict(result.results) and not again.allocations
