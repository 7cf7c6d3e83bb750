"""Files with the outcome of a run: writing them, and reading what later runs can learn."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import reprlib
import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, Any

import cloudpickle

from handoff_dask.cli.dag_loader import ids_by_name
from handoff_dask.cli.exit_codes import Problem
from handoff_dask.client.function_facts import from_facts
from handoff_dask.client.results import ExecutionResult
from handoff_dask.model import jsonable
from handoff_dask.model.amounts import Seconds
from handoff_dask.model.attempt import Attempt, Usage
from handoff_dask.standins import text_of

#: Most characters of a result that is printed, and most items of each list or dict in it.
_WIDTH, _ITEMS = 500, 20
_ABRIDGED = reprlib.Repr()
_ABRIDGED.maxlevel = 3
_ABRIDGED.maxlist = _ABRIDGED.maxtuple = _ABRIDGED.maxdict = _ITEMS
_ABRIDGED.maxset = _ABRIDGED.maxfrozenset = _ABRIDGED.maxdeque = _ABRIDGED.maxarray = _ITEMS
_ABRIDGED.maxstring = _ABRIDGED.maxlong = _ABRIDGED.maxother = _WIDTH


class OutputFile:
    """Where ``--output`` writes: a file, device or pipe, or standard output (``-``).

    A file named ``*.pkl`` or ``*.pickle`` is a pickle, any other JSON.
    """

    def __init__(self, path: Path, stdout: IO[str] | None = None) -> None:
        self.pickles = path.suffix in (".pkl", ".pickle")
        self._stdout = (stdout or sys.stdout) if is_stdout(path) else None
        self._name = path if self._stdout is None else "to standard output"
        self._path = path
        #: Replaces the file in one step; None for what is written in place.
        self._draft: Path | None = None
        if self._stdout is None:
            with self._writing():
                self._check()

    def _check(self) -> None:
        if self._path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if self._path.exists() and not self._path.is_file():
            # A pipe is not opened before there is something to write: its reader takes the first
            # close for the end. Nor is it resolved: one that a shell made is a link to no path.
            if not os.access(self._path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return
        # A link stays, and its target is replaced.
        self._path = self._path.resolve()
        self._draft = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        if self._path.exists():
            self._path.open("ab").close()
        self._draft.open("xb").close()
        self._draft.unlink()

    def write(self, value: Any) -> None:
        """Write a value, which must be exact JSON unless this is a pickle."""
        if self.pickles:
            data = cloudpickle.dumps(value)
        else:
            data = f"{json.dumps(value, indent=1, allow_nan=False)}\n".encode()
        with self._writing():
            if self._stdout is not None:
                self._stdout.write(data.decode())
                self._stdout.flush()
                return
            if self._draft is None:
                self._path.write_bytes(data)
                return
            try:
                self._draft.write_bytes(data)
                os.replace(self._draft, self._path)
            except OSError:
                with contextlib.suppress(OSError):
                    self._draft.unlink(missing_ok=True)
                raise

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:  # links may form a circle
            why = getattr(error, "strerror", None) or error
            raise Problem(f"cannot write {self._name}: {why}") from None


def is_stdout(path: Path | None) -> bool:
    """Whether ``--output`` is standard output."""
    return str(path) == "-"


def write_result(output: OutputFile, result: ExecutionResult) -> list[Hashable]:
    """Write the result of a run; return the ids of the results that the format cannot hold."""
    if not output.pickles:
        document, left_out = as_json(result)
        output.write(document)
        return left_out
    document = result.as_dict()
    try:
        output.write(document)
    except Problem:
        raise
    except Exception:
        # A value that a worker could pickle may be impossible to pickle here.
        left_out = [id_ for id_, value in result.results.items() if not _pickles(value)]
        lost = {id_: type(document["results"].pop(id_)).__name__ for id_ in left_out}
        output.write({**document, "left_out": lost})
        return left_out
    return []


def _pickles(value: Any) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:
        return False
    return True


def print_results(stream: IO[str], result: ExecutionResult) -> None:
    """Print the results, one a line: the function and its abridged value."""
    names = labels(result.results)
    with contextlib.suppress(BrokenPipeError):  # the reader has gone
        for id_, value in result.results.items():
            text = " ".join(_ABRIDGED.repr(value).split())
            if len(text) > _WIDTH:
                text = f"{text[: _WIDTH - 3]}..."
            stream.write(f"{names[id_]}: {text}\n")
        stream.flush()


def as_json(result: ExecutionResult) -> tuple[dict[str, Any], list[Hashable]]:
    """Return a result as a JSON document, and the ids of the results that JSON cannot hold."""
    facts = result.as_dict()
    exact: dict[Hashable, Any] = {}
    left_out: dict[Hashable, str] = {}
    for id_, value in result.results.items():
        try:
            exact[id_] = jsonable.exact(value)
        except jsonable.NotJSONError:
            left_out[id_] = type(value).__name__
    errors = {id_: f"{type(e).__name__}: {text_of(e)}" for id_, e in result.errors.items()}
    parts = {
        "results": exact,
        "allocations": facts["allocations"],
        "attempts": {id_: jsonable.loose(tried) for id_, tried in facts["attempts"].items()},
        "errors": errors,
        "left_out": left_out,
    }
    names = labels(dict.fromkeys(chain(result.dag_functions, *parts.values())))
    document = {
        "dag_id": jsonable.text(facts["dag_id"]),
        "tasks": facts["tasks"],
        "makespan": facts["makespan"],
        **{part: {names[id_]: v for id_, v in values.items()} for part, values in parts.items()},
        "functions": {
            names[id_]: jsonable.loose(_labelled(function, names))
            for id_, function in facts["functions"].items()
        },
        "capabilities": jsonable.loose(facts["capabilities"]),
    }
    return document, list(left_out)


def _labelled(function: Mapping[str, Any], names: Mapping[Hashable, str]) -> dict[str, Any]:
    """Return the facts about a function with the text of each id that they refer to."""

    def label(id_: Hashable) -> str:
        return names.get(id_) or jsonable.text(id_)

    node = function["node"]
    if isinstance(node, dict):
        node = {"collocated": label(node["collocated"])}
    return {**function, "args": list(map(label, function["args"])), "node": node}


def labels(ids: Iterable[Hashable]) -> dict[Hashable, str]:
    """Return a text for each id: strings unchanged, unless another id reads the same."""
    ids = list(ids)
    plain = {id_: jsonable.text(id_) for id_ in ids}
    if len(set(plain.values())) == len(ids):
        return plain
    labelled: dict[str, Hashable] = {}
    for id_ in ids:
        shown = label = jsonable.shown(id_)
        number = 2
        while label in labelled:
            label, number = f"{shown} ({number})", number + 1
        labelled[label] = id_
    return {id_: label for label, id_ in labelled.items()}


def read_durations(
    path: Path, ids: Iterable[Hashable]
) -> Mapping[Hashable, Seconds] | ExecutionResult:
    """Read how long functions take: ``{id: seconds}`` in JSON, or a run's attempts."""
    document = _read(path)
    attempts = document.get("attempts") if isinstance(document, dict) else None
    if isinstance(attempts, dict):
        document = _attempts(path, attempts)
    if not isinstance(document, dict):
        raise Problem(f"{path} is neither a JSON object of seconds by function nor a run's output")
    known = ids_by_name(ids)
    # A pickle has the ids themselves, JSON their text.
    values = {known.get(k, k) if isinstance(k, str) else k: v for k, v in document.items()}
    return ExecutionResult(None, {}, attempts=values) if isinstance(attempts, dict) else values


def read_result(path: Path) -> ExecutionResult:
    """Read what a run left, except its results and errors, for :meth:`ExecutionResult.advice`."""
    document = _read(path)
    if not isinstance(document, dict) or not isinstance(document.get("attempts"), dict):
        raise Problem(f"{path} is not the output of a run")
    if not isinstance(document.get("functions"), dict):
        raise Problem(f"{path} does not say what the functions cost: an older version wrote it")
    try:
        functions = {id_: from_facts(id_, facts) for id_, facts in document["functions"].items()}
        return ExecutionResult(
            document["dag_id"],
            {},
            attempts=_attempts(path, document["attempts"]),
            dag_functions=functions,
            capabilities=document["capabilities"],
        )
    except (LookupError, TypeError, ValueError):
        raise Problem(f"{path} is not the output of a run") from None


def _read(path: Path) -> Any:
    try:
        data = path.read_bytes()
        return pickle.loads(data) if path.suffix in (".pkl", ".pickle") else json.loads(data)
    except OSError as error:
        raise Problem(f"{path}: {error.strerror or error}") from None
    except Exception:
        raise Problem(f"{path} is neither JSON nor the output of a run") from None


def _attempts(path: Path, document: Mapping[Hashable, Any]) -> dict[Hashable, tuple[Attempt, ...]]:
    try:
        return {id_: tuple(map(_attempt, tried)) for id_, tried in document.items()}
    except Exception:
        raise Problem(f"{path} is neither JSON nor the output of a run") from None


def _attempt(fields: Mapping[str, Any]) -> Attempt:
    """Return an attempt from a file; older ones do not have what it used."""
    return Attempt(**{**fields, "usage": Usage(**fields.get("usage", {}))})
