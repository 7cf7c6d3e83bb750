"""From a TARGET of the command line to a DAG."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from handoff_dask.cli import arguments, wfformat
from handoff_dask.cli.failing import Problem, place_of
from handoff_dask.graph.collection import DAG

_FORMS = "module:dag, path/to/file.py:dag or workflow.json"
#: What a file of a target is called as a module. No worker has a module of that name.
_MODULE = "handoff_target"


@dataclass(frozen=True)
class Target:
    """A DAG, and how long its functions take (s) if that is on record."""

    dag: DAG
    durations: Mapping[Hashable, float] | None = None


def load(target: str, values: Sequence[str] = (), scale: float | None = None) -> Target:
    """Return the DAG that a target names, validated.

    Parameters
    ----------
    target
        ``module:dag``, ``path/to/file.py:dag``, ``...:make_dag`` or a workflow file.
    values
        Arguments of ``make_dag``: ``name=value``.
    scale
        Factor for the recorded times of a workflow file; None is 1.

    Raises
    ------
    Problem
        There is no such DAG, or its module cannot be imported.
    DAGError
        The DAG is not valid.
    """
    if target.endswith(".json"):
        found = _workflow(Path(target), values, 1.0 if scale is None else scale)
    else:
        if scale is not None:
            raise Problem("--scale is for workflow files (*.json)")
        found = Target(_dag(target, values))
    found.dag.validate()
    return found


def _workflow(path: Path, values: Sequence[str], scale: float) -> Target:
    if values:
        raise Problem(f"{path} is a workflow file: it takes no arguments")
    try:
        tasks = wfformat.read(path)
    except ValueError as error:
        raise Problem(str(error)) from None
    return Target(
        wfformat.replay(tasks, path.stem, scale), {t.id: t.seconds * scale for t in tasks}
    )


def _dag(target: str, values: Sequence[str]) -> DAG:
    where, colon, name = target.rpartition(":")
    if not colon or not where or not name:
        raise Problem(f"{target!r} names no DAG: a target is {_FORMS}")
    if where.endswith(".py"):
        module = _imported(where, lambda: _from_file(Path(where)))
    elif all(part.isidentifier() for part in where.split(".")):
        module = _imported(where, lambda: _from_path(where))
    else:
        raise Problem(f"{where!r} is neither a Python file (*.py) nor the name of a module")
    found = _attribute(module, where, name)
    if not isinstance(found, DAG) and callable(found):
        found = _called(found, values, target)
    elif values and isinstance(found, DAG):
        raise Problem(f"{target} is a DAG and takes no arguments; a function that returns one does")
    if not isinstance(found, DAG):
        raise Problem(f"{target} is {_described(found)}, not a DAG or a function that returns one")
    return found


def _called(factory: Callable[..., Any], values: Sequence[str], target: str) -> Any:
    try:
        found = arguments.call(factory, values, target)
    except (Problem, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise _raised(f"{target}()", error) from error
    if not isinstance(found, DAG):
        raise Problem(f"{target}() returned {_described(found)}, not a DAG")
    return found


def _described(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _attribute(module: ModuleType, where: str, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            dags = [n for n, value in vars(module).items() if isinstance(value, DAG)]
            near = difflib.get_close_matches(name, vars(module), 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            if not near and dags:
                hint = f" Its DAGs are: {', '.join(dags)}."
            raise Problem(f"{where} has no {name!r}.{hint}") from None
    return found


def _imported(where: str, load: Callable[[], ModuleType]) -> ModuleType:
    """Import the user's module; whatever goes wrong in it is one problem."""
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
    return Problem(f"{what} raised {type(error).__name__}: {error}{place_of(error)}")


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise Problem(f"there is no file {path}")
    _look_in(path.absolute().parent)
    spec = importlib.util.spec_from_file_location(_MODULE, path.absolute())
    assert spec is not None and spec.loader is not None
    module = sys.modules[_MODULE] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _from_path(name: str) -> ModuleType:
    _look_in(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise Problem(f"there is no module {error.name!r} here or installed") from None
        raise


def _look_in(folder: Path) -> None:
    """Have imports find what lies beside the user's module, as Python itself would."""
    sys.path.insert(0, str(folder))


def _travel(names: Iterable[str]) -> None:
    """Send the user's own modules along, as those of a script: a worker need not have them."""
    for name in names:
        module = sys.modules.get(name)
        top = sys.modules.get(name.partition(".")[0])
        # A package is a folder, with an __init__.py or without.
        places = [*getattr(top, "__path__", ()), getattr(top, "__file__", None) or ""]
        if isinstance(module, ModuleType) and os.path.dirname(places[0]) == sys.path[0]:
            cloudpickle.register_pickle_by_value(module)


def names(ids: Iterable[Hashable]) -> dict[str, Hashable]:
    """Return what the command line may call functions: by their text or, exactly, their repr."""
    found: dict[str, Hashable] = {}
    for id_ in ids:
        found[repr(id_)] = id_
        found.setdefault(str(id_), id_)
    return found


def resolve(name: str, ids: Iterable[Hashable], what: str) -> Hashable:
    """Return the id that a name of the command line stands for.

    Raises
    ------
    Problem
        There is none.
    """
    known = names(ids)
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise Problem(f"{what} has no function {name!r}.{hint}")
    return known[name]
