"""What a run leaves in a file, and reading it again."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pickle
import reprlib
from collections.abc import Hashable, Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import IO, Any

import cloudpickle

from handoff_dask.cli.failing import Problem
from handoff_dask.cli.targets import names
from handoff_dask.client.results import ExecutionResult
from handoff_dask.model import jsonable
from handoff_dask.model.attempt import Attempt
from handoff_dask.standins import text_of

#: Characters of a result that is printed, and items of each list or dict in it.
_WIDTH, _ITEMS = 500, 20
_ABRIDGED = reprlib.Repr()
_ABRIDGED.maxlevel = 3
_ABRIDGED.maxlist = _ABRIDGED.maxtuple = _ABRIDGED.maxdict = _ITEMS
_ABRIDGED.maxset = _ABRIDGED.maxfrozenset = _ABRIDGED.maxdeque = _ABRIDGED.maxarray = _ITEMS
_ABRIDGED.maxstring = _ABRIDGED.maxlong = _ABRIDGED.maxother = _WIDTH


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
        try:
            if path.is_dir():
                raise Problem(f"cannot write {path}: it is a folder")
            #: None for devices and pipes, which are written as they are.
            self._draft: Path | None = None
            if path.exists() and not path.is_file():
                # A pipe as the shell has it is a link to no path. Not opened before there is
                # something to write: its reader takes the first close for the end.
                self._path = path
                if not os.access(path, os.W_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                return
            # The target of a link, so that the link stays.
            self._path = path.resolve()
            self._draft = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
            if self._path.exists():
                self._path.open("ab").close()
            self._draft.open("xb").close()
            self._draft.unlink()
        except (OSError, RuntimeError, ValueError) as error:  # links may go round in a circle
            raise _unwritable(path, error) from None

    @property
    def pickles(self) -> bool:
        """Whether it is to be a pickle."""
        return self._path.suffix in (".pkl", ".pickle")

    def write(self, value: Any) -> None:
        """Write a value, which JSON must be able to hold if that is what the file is to be."""
        data = cloudpickle.dumps(value) if self.pickles else _json(value).encode()
        try:
            (self._draft or self._path).write_bytes(data)
            if self._draft is not None:
                os.replace(self._draft, self._path)
        except OSError as error:
            if self._draft is not None:
                with contextlib.suppress(OSError):
                    self._draft.unlink(missing_ok=True)
            raise _unwritable(self._path, error) from None


class Stream:
    """Standard output in the place of a file: JSON."""

    pickles = False

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, value: Any) -> None:
        """Write a value, which JSON must be able to hold."""
        try:
            self._stream.write(_json(value))
            self._stream.flush()
        except OSError as error:
            raise _unwritable("to standard output", error) from None


Output = File | Stream


def opened(path: Path, stdout: IO[str]) -> Output:
    """Return where ``--output`` says to write: a file or, by the name ``-``, standard output.

    Raises
    ------
    Problem
        The file cannot be written.
    """
    return Stream(stdout) if is_stdout(path) else File(path)


def is_stdout(path: Path | None) -> bool:
    """Whether ``--output`` is standard output."""
    return str(path) == "-"


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def _unwritable(path: Path | str, error: Exception) -> Problem:
    return Problem(f"cannot write {path}: {getattr(error, 'strerror', None) or error}")


def write_result(output: Output, result: ExecutionResult) -> list[Hashable]:
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
        # Not every value that a worker could pickle can be pickled here.
        left_out = [id_ for id_, value in result.results.items() if not _pickles(value)]
        lost = {id_: type(document["results"].pop(id_)).__name__ for id_ in left_out}
        output.write({**document, "left_out": lost})
        return left_out
    return []


def list_results(stream: IO[str], result: ExecutionResult) -> None:
    """Print the results, one a line: the function and its abridged value."""
    called = labels(result.results)
    with contextlib.suppress(BrokenPipeError):  # nobody reads any more
        for id_, value in result.results.items():
            shown = " ".join(_ABRIDGED.repr(value).split())
            if len(shown) > _WIDTH:
                shown = f"{shown[: _WIDTH - 3]}..."
            stream.write(f"{called[id_]}: {shown}\n")
        stream.flush()


def _pickles(value: Any) -> bool:
    try:
        cloudpickle.dumps(value)
    except Exception:
        return False
    return True


def as_json(result: ExecutionResult) -> tuple[dict[str, Any], list[Hashable]]:
    """Return a result as JSON holds it, and the ids of the results that it cannot hold."""
    facts = result.as_dict()
    held: dict[Hashable, Any] = {}
    left_out: dict[Hashable, str] = {}
    for id_, value in result.results.items():
        try:
            held[id_] = jsonable.exact(value)
        except jsonable.NotJSONError:
            left_out[id_] = type(value).__name__
    errors = {
        id_: f"{type(error).__name__}: {text_of(error)}" for id_, error in result.errors.items()
    }
    parts = {
        "results": held,
        "allocations": facts["allocations"],
        "attempts": {id_: jsonable.loose(tried) for id_, tried in facts["attempts"].items()},
        "errors": errors,
    }
    called = labels(dict.fromkeys(chain(result.dag_functions, left_out, *parts.values())))

    def named(values: Mapping[Hashable, Any]) -> dict[str, Any]:
        return {called[id_]: value for id_, value in values.items()}

    document = {
        "dag_id": jsonable.text(facts["dag_id"]),
        **{part: named(values) for part, values in parts.items()},
        "makespan": facts["makespan"],
        "left_out": named(left_out),
    }
    return document, list(left_out)


def labels(ids: Iterable[Hashable]) -> dict[Hashable, str]:
    """Return a text for each id: strings as they are, unless another id reads the same."""
    ids = list(ids)
    plain = {id_: jsonable.text(id_) for id_ in ids}
    if len(set(plain.values())) == len(ids):
        return plain
    found: dict[str, Hashable] = {}
    for id_ in ids:
        exactly = unique = jsonable.shown(id_)
        number = 2
        while unique in found:
            unique, number = f"{exactly} ({number})", number + 1
        found[unique] = id_
    return {id_: label for label, id_ in found.items()}


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
