"""Names of calls, for the tests of naming."""

from __future__ import annotations

import sys
from types import ModuleType

from handoff_dask import DAG
from handoff_dask.model.expansion import expand
from handoff_dask.store.naming import Namer, Unnameable


def named(dag, versions="exact"):
    """Return the name of each node, or why it has none."""
    return Namer(versions).names(expand(dag.functions))


def name_of(code, *args, versions="exact", store_key=None, **keywords):
    """Return the name of one call's result; raise if it has none."""
    dag = DAG()
    dag.add(code, extra_args=args, extra_kwargs=keywords, store_key=store_key)
    (name,) = named(dag, versions)
    if isinstance(name, Unnameable):
        raise name
    return name


def key_of(code, *args, **keywords):
    """Return the key of one call's result; raise if it has none."""
    return name_of(code, *args, **keywords).key


def value_key(value):
    """Return a key that differs where the names of an argument do."""
    return key_of(len, value)


def cell(source, name="__main__", **namespace):
    """Run a cell of a notebook; return its functions as attributes."""
    module = ModuleType(name)
    vars(module).update(namespace)
    exec(source, vars(module))
    return module


def own_module(monkeypatch, name, source, file="/nowhere/helpers.py"):
    """Make a module that can be imported, as if it were in a file of the user's."""
    module = ModuleType(name)
    module.__file__ = file
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(source, file, "exec"), vars(module))
    return module
