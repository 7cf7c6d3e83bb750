"""What a run leaves in a file, and reading it again."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import cloudpickle

from handoff_dask.cli.failing import Problem
from handoff_dask.cli.targets import names
from handoff_dask.model.attempt import Attempt
from handoff_dask.results import ExecutionResult


class File:
    """The file of ``--output``: a pickle if it is called so, else JSON.

    Parameters
    ----------
    path
        Where it is to be.

    Raises
    ------
    Problem
        It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        # What a link points to, so that the link stays.
        self._path = path.resolve()
        self._draft = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        if self._path.is_dir():
            raise Problem(f"cannot write {path}: it is a folder")
        try:
            if self._path.exists():
                self._path.open("ab").close()
            if self._replaces:
                self._draft.open("xb").close()
                self._draft.unlink()
        except OSError as error:
            raise Problem(f"cannot write {path}: {error.strerror or error}") from None

    @property
    def _replaces(self) -> bool:
        """Whether the file is complete or not there; devices and pipes are written as they are."""
        return self._path.is_file() or not self._path.exists()

    @property
    def pickles(self) -> bool:
        """Whether it is to be a pickle."""
        return self._path.suffix in (".pkl", ".pickle")

    def write(self, value: Any) -> None:
        """Write a value, which JSON must be able to hold if that is what the file is to be."""
        if self.pickles:
            data = cloudpickle.dumps(value)
        else:
            data = (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
        try:
            if self._replaces:
                self._draft.write_bytes(data)
                os.replace(self._draft, self._path)
            else:
                self._path.write_bytes(data)
        except OSError as error:
            self._draft.unlink(missing_ok=True)
            raise Problem(f"cannot write {self._path}: {error.strerror or error}") from None


def write_result(file: File, result: ExecutionResult) -> list[Hashable]:
    """Write what came out of a run; return the ids of the results that JSON cannot hold."""
    if file.pickles:
        file.write(result.as_dict())
        return []
    document, left_out = as_json(result)
    file.write(document)
    return left_out


def as_json(result: ExecutionResult) -> tuple[dict[str, Any], list[Hashable]]:
    """Return a result as JSON holds it, and the ids of the results that it cannot hold."""
    facts = result.as_dict()
    called = labels(result.dag_functions)
    held = {id_: value for id_, value in facts["results"].items() if holds(value)}
    left_out = [id_ for id_ in facts["results"] if id_ not in held]

    def named(values: Mapping[Hashable, Any]) -> dict[str, Any]:
        return {called[id_]: value for id_, value in values.items()}

    document = {
        **facts,
        "dag_id": facts["dag_id"] if isinstance(facts["dag_id"], str) else repr(facts["dag_id"]),
        "results": named(held),
        "allocations": named(facts["allocations"]),
        "attempts": named(facts["attempts"]),
        "errors": {
            called[id_]: f"{type(error).__name__}: {error}" for id_, error in result.errors.items()
        },
        "left_out": {called[id_]: type(facts["results"][id_]).__name__ for id_ in left_out},
    }
    return document, left_out


def labels(ids: Iterable[Hashable]) -> dict[Hashable, str]:
    """Return a text for each id: strings as they are, unless another id reads the same."""
    ids = list(ids)
    plain = {id_: id_ if isinstance(id_, str) else repr(id_) for id_ in ids}
    if len(set(plain.values())) == len(ids):
        return plain
    return {id_: repr(id_) for id_ in ids}


def holds(value: Any) -> bool:
    """Whether JSON can hold a value: lists, tuples, dicts by text, and what is in them.

    Examples
    --------
    >>> holds({"size": [1, 2.5, None]}), holds({1: "a"}), holds(float("nan"))
    (True, False, False)
    """
    try:
        return _holds(value)
    except RecursionError:
        return False


def _holds(value: Any) -> bool:
    if value is None or type(value) in (str, bool, int):
        return True
    if type(value) is float:
        return math.isfinite(value)
    if type(value) in (list, tuple):
        return all(map(_holds, value))
    if type(value) is dict:
        return all(type(key) is str for key in value) and all(map(_holds, value.values()))
    return False


def durations(path: Path, ids: Iterable[Hashable]) -> Mapping[Hashable, float] | ExecutionResult:
    """Read how long functions take: ``{id: seconds}`` in JSON, or the output of a run.

    Of the latter the attempts are returned, in a result that holds nothing else.

    Raises
    ------
    Problem
        The file cannot be read, or is neither.
    """
    try:
        data = path.read_bytes()
        found = pickle.loads(data) if path.suffix in (".pkl", ".pickle") else json.loads(data)
        attempts = found.get("attempts") if isinstance(found, dict) else None
        if isinstance(attempts, dict):
            found = {id_: tuple(Attempt(**a) for a in tried) for id_, tried in attempts.items()}
    except OSError as error:
        raise Problem(f"{path}: {error.strerror or error}") from None
    except Exception:
        raise Problem(f"{path} is neither JSON nor the output of a run") from None
    if not isinstance(found, dict):
        raise Problem(f"{path} is no JSON object of seconds by function, and no output of a run")
    known = names(ids)
    # From a pickle the ids are themselves, from JSON they are text.
    found = {known.get(id_, id_) if isinstance(id_, str) else id_: v for id_, v in found.items()}
    return ExecutionResult(None, {}, attempts=found) if isinstance(attempts, dict) else found
