"""Errors in code that is pickled by value name the user's file and line."""

from __future__ import annotations

import importlib
import linecache
import sys
import traceback

import cloudpickle
import pytest
from distributed.utils_test import gen_cluster

from handoff_dask import Function, InvalidFunctionError, RetryPolicy, execute
from tests.support import dag_of

SCRIPT = """
import functools


def plain(*_):
    raise ValueError("plain")


anonymous = lambda *_: {}["anonymous"]


def make():
    def nested(*_):
        raise ValueError("nested")
    return nested


class Model:
    def method(self):
        raise ValueError("method")

    @classmethod
    def alternative(cls):
        raise ValueError("alternative")

    def __call__(self):
        raise ValueError("called")


def decorator(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)
    return wrapper


@decorator
def decorated():
    raise ValueError("decorated")


async def coroutine():
    raise ValueError("coroutine")


def calls(callback):
    return callback()


def more(attempt, cost, error):
    raise ValueError(more.__code__.co_filename)
"""

KINDS = {
    "plain": lambda s: s["plain"],
    "anonymous": lambda s: s["anonymous"],
    "nested": lambda s: s["make"](),
    "method": lambda s: s["Model"]().method,
    "alternative": lambda s: s["Model"].alternative,
    "called": lambda s: s["Model"](),
    "decorated": lambda s: s["decorated"],
    "coroutine": lambda s: s["coroutine"],
}


def run_as_main(path, source=SCRIPT):
    """Run a source as Python runs a script; return what it defines."""
    script = {"__name__": "__main__"}
    exec(compile(source, str(path), "exec"), script)
    return script


@pytest.fixture
def main(tmp_path):
    """The definitions of the user's script, ``pipeline.py``."""
    path = tmp_path / "pipeline.py"
    path.write_text(SCRIPT)
    return run_as_main(path)


def place_of(error):
    """Return file, function and source line of where an exception was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return last.filename, last.name, last.line


@gen_cluster(client=True)
async def failures(c, s, a, b, codes):
    dag = dag_of(*(Function(id=name, args=[], code=code) for name, code in codes.items()))
    result = await execute(dag, on_error="continue", max_retries=0)
    return {name: error.__cause__ for name, error in result.errors.items()}


def test_a_script(main, tmp_path):
    """File, function and source line are those of the script, whatever kind of callable it is."""
    path = str(tmp_path / "pipeline.py")
    errors = failures(codes={name: kind(main) for name, kind in KINDS.items()})
    assert errors.keys() == KINDS.keys()
    for name, error in errors.items():
        filename, function, line = place_of(error)
        assert filename == path
        assert function in (name, "<lambda>", "__call__")
        assert f'"{name}"' in line


def test_a_callable_among_the_arguments(main, tmp_path):
    """The same goes for a function's arguments."""

    @gen_cluster(client=True)
    async def run(c, s, a, b):
        function = Function(id="f", args=[], code=main["calls"], extra_args=[main["plain"]])
        result = await execute(dag_of(function), on_error="continue", max_retries=0)
        return result.errors["f"].__cause__

    path = str(tmp_path / "pipeline.py")
    assert place_of(run()) == (path, "plain", 'raise ValueError("plain")')


def test_the_code_of_a_retry_policy(main, tmp_path):
    """The same goes for a policy's code."""

    @gen_cluster(client=True)
    async def run(c, s, a, b):
        policy = RetryPolicy(escalate=main["more"])
        with pytest.raises(InvalidFunctionError, match=r"pipeline\.py"):
            await execute(dag_of(Function(id="f", args=[], code=main["plain"], retry=policy)))

    run()


def test_a_cell_of_a_notebook():
    """A cell has no file: its lines are shown in the notebook."""
    name = "/tmp/ipykernel_7/1234.py"
    linecache.cache[name] = len(SCRIPT), None, SCRIPT.splitlines(keepends=True), name
    try:
        error = failures(codes={"plain": run_as_main(name)["plain"]})["plain"]
        assert place_of(error) == (name, "plain", 'raise ValueError("plain")')
    finally:
        del linecache.cache[name]


def test_a_module_that_travels(tmp_path, monkeypatch):
    """A module registered with cloudpickle counts as the user's code."""
    path = tmp_path / "handoff_users_module.py"
    path.write_text(SCRIPT)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("handoff_users_module")
    cloudpickle.register_pickle_by_value(module)
    try:
        error = failures(codes={"method": module.Model().method})["method"]
        assert place_of(error) == (str(path), "method", 'raise ValueError("method")')
    finally:
        cloudpickle.unregister_pickle_by_value(module)
        del sys.modules["handoff_users_module"]
