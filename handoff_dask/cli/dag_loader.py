"""From a TARGET of the command line to a DAG."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import json
import operator
import os
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from handoff_dask.cli import wfformat
from handoff_dask.cli.exit_codes import Problem, source_line
from handoff_dask.graph.collection import DAG

#: The name under which a target's file is imported. No worker has a module of that name.
_MODULE = "handoff_target"


@dataclass(frozen=True)
class Target:
    """A DAG, and how long its functions take (s) if it comes from a workflow file."""

    dag: DAG
    durations: Mapping[Hashable, float] | None = None


def load(target: str, arguments: Sequence[str] = (), scale: float | None = None) -> Target:
    """Return the DAG that a target names, validated.

    The target is ``module:dag``, ``path/to/file.py:dag``, ``...:make_dag`` with arguments as
    ``name=value``, or a workflow file, with a factor for its recorded times.
    """
    if target.endswith(".json"):
        loaded = _workflow(Path(target), arguments, 1.0 if scale is None else scale)
    elif scale is not None:
        raise Problem("--scale is for workflow files (*.json)")
    else:
        loaded = Target(_dag(target, arguments))
    loaded.dag.validate()
    return loaded


def _workflow(path: Path, arguments: Sequence[str], scale: float) -> Target:
    if arguments:
        raise Problem(f"{path} is a workflow file: it takes no arguments")
    tasks = wfformat.read(path)
    seconds: dict[Hashable, float] = {task.id: task.seconds * scale for task in tasks}
    return Target(wfformat.replay(tasks, path.stem, scale), seconds)


def _dag(target: str, arguments: Sequence[str]) -> DAG:
    where, _, name = target.rpartition(":")
    if not where or not name:
        raise Problem(
            f"{target!r} names no DAG: a target is module:dag, path/to/file.py:dag or workflow.json"
        )
    if where.endswith(".py"):
        module = _imported(where, lambda: _from_file(Path(where)))
    elif all(part.isidentifier() for part in where.split(".")):
        module = _imported(where, lambda: _from_path(where))
    else:
        raise Problem(f"{where!r} is neither a Python file (*.py) nor the name of a module")
    value = _attribute(module, where, name)
    if isinstance(value, DAG):
        if arguments:
            raise Problem(f"{target} is a DAG and takes no arguments")
        return value
    if not callable(value):
        raise Problem(f"{target} is {_described(value)}, not a DAG or a function that returns one")
    try:
        value = call(value, arguments, target)
    except (Problem, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise _raised(f"{target}()", error) from error
    if not isinstance(value, DAG):
        raise Problem(f"{target}() returned {_described(value)}, not a DAG")
    return value


def call(function: Callable[..., Any], arguments: Sequence[str], name: str) -> Any:
    """Call a function with arguments of the form ``name=value``; messages call it `name`.

    A parameter annotated `str` gets the text. Any other gets the value that the text is in JSON,
    or else the text. Raises Problem if an argument is missing, unknown or given twice, or if the
    function takes it only by position.
    """
    signature = inspect.signature(function)
    parameters = signature.parameters
    rest = next((p for p in parameters.values() if p.kind == p.VAR_KEYWORD), None)
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key.isidentifier():
            raise Problem(f"the argument {argument!r} is not of the form name=value")
        if key in values:
            raise Problem(f"the argument {key!r} of {name} is given twice")
        values[key] = text
        parameter = parameters.get(key, rest)
        if parameter is None or parameter.annotation not in (str, "str"):
            with contextlib.suppress(ValueError):
                values[key] = json.loads(text)
    try:
        signature.bind(**values)
    except TypeError as error:
        names = ", ".join(parameters) or "none"
        text = f"{name}: {error}; its arguments are {names} (after --, as name=value)"
        raise Problem(text) from None
    return function(**values)


def _described(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _attribute(module: ModuleType, where: str, name: str) -> Any:
    try:
        return operator.attrgetter(name)(module)
    except AttributeError:
        dags = [n for n, value in vars(module).items() if isinstance(value, DAG)]
        hint = f" Its DAGs are: {', '.join(dags)}." if dags else ""
        if near := difflib.get_close_matches(name, vars(module), 1):
            hint = f" Did you mean {near[0]!r}?"
        raise Problem(f"{where} has no {name!r}.{hint}") from None


def _imported(where: str, load: Callable[[], ModuleType]) -> ModuleType:
    """Import the user's module; turn whatever it raises into a problem."""
    before = set(sys.modules)
    try:
        module = load()
    except (Problem, KeyboardInterrupt):
        raise
    except SyntaxError as error:
        file = os.path.basename(error.filename or where)
        raise Problem(f"{file}, line {error.lineno}: {error.msg}") from error
    except BaseException as error:
        raise _raised(where, error) from error
    _travel(set(sys.modules) - before)
    return module


def _raised(what: str, error: BaseException) -> Problem:
    return Problem(f"{what} raised {type(error).__name__}: {error}{source_line(error)}")


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise Problem(f"there is no file {path}")
    # As for a script, imports find what lies beside the file first.
    sys.path.insert(0, str(path.absolute().parent))
    spec = importlib.util.spec_from_file_location(_MODULE, path.absolute())
    assert spec is not None and spec.loader is not None
    module = sys.modules[_MODULE] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _from_path(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise Problem(f"there is no module {error.name!r} here or installed") from None
        raise


def _travel(names: Iterable[str]) -> None:
    """Pickle the user's own modules by value, so that workers need not have them."""
    for name in names:
        module = sys.modules.get(name)
        top = sys.modules.get(name.partition(".")[0])
        # A package is a folder, with an __init__.py or without.
        places = [*getattr(top, "__path__", ()), getattr(top, "__file__", None) or ""]
        if isinstance(module, ModuleType) and os.path.dirname(places[0]) == sys.path[0]:
            cloudpickle.register_pickle_by_value(module)


def ids_by_name(ids: Iterable[Hashable]) -> dict[str, Hashable]:
    """Return {name: id}: a name is the repr of an id, or its text if that is not another's repr."""
    ids = list(ids)
    return {**{str(id_): id_ for id_ in reversed(ids)}, **{repr(id_): id_ for id_ in ids}}


def resolve(name: str, ids: Iterable[Hashable]) -> Hashable:
    """Return the id of the function that the command line refers to by a name."""
    known = ids_by_name(ids)
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise Problem(f"the DAG has no function {name!r}.{hint}")
    return known[name]
