from __future__ import annotations

import functools
import operator
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import toolz

from handoff_dask.learning.identity import code_identity, code_title

HERE = __name__


class Model:
    def fit(self, x: int) -> int:
        return x

    @classmethod
    def load(cls) -> None: ...

    def __call__(self) -> None: ...


class Child(Model):
    pass


def add(x: int, y: int) -> int:
    return x + y


def logged(code: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(code)
    def wrapper(*args: Any) -> Any:
        return code(*args)

    return wrapper


@pytest.mark.parametrize(
    ("code", "identity"),
    [
        (add, f"{HERE}.add"),
        (functools.partial(add, 1), f"{HERE}.add"),
        (functools.partial(functools.partial(add, 1), 2), f"{HERE}.add"),
        (toolz.curry(add, 1), f"{HERE}.add"),
        (logged(add), f"{HERE}.add"),
        (functools.partial(logged(logged(add)), 1), f"{HERE}.add"),
        (functools.lru_cache(add), f"{HERE}.add"),
        (Model().fit, f"{HERE}.Model.fit"),
        (Child().fit, f"{HERE}.Model.fit"),
        (Child.load, f"{HERE}.Model.load"),
        (Model, f"{HERE}.Model"),
        (Model(), f"{HERE}.Model"),
        (len, "builtins.len"),
        ("{}".format, "builtins.str.format"),
        (operator.mul, "_operator.mul"),
        (operator.itemgetter(1), "operator.itemgetter"),
    ],
)
def test_what_is_called_in_the_end_has_the_name(code: Any, identity: str) -> None:
    """Partial calls, methods, wrappers and instances go by the function or class below."""
    assert code_identity(code) == identity


def test_a_function_that_wraps_itself_has_an_identity() -> None:
    """A circle of wrappers ends."""

    def code() -> None: ...

    code.__wrapped__ = code  # type: ignore[attr-defined]
    assert code_identity(code).startswith(f"{HERE}.")


def test_local_functions_and_lambdas_go_by_what_they_do() -> None:
    """Of the same name, the same code is the same, whatever it closes over; other code is not."""

    def made(n: int) -> Callable[[int], int]:
        return lambda x: x + n

    assert code_identity(made(1)) == code_identity(made(2))
    codes = [
        lambda x: x + 1,
        lambda x: x + 2,
        lambda x: x - 1,
        lambda x: x + 1.0,
        lambda x: x + True,
        lambda y: y + 1,
        lambda *x: x + 1,
        lambda x: len(x),
        lambda x: abs(x),
        lambda x: x in {1, "2"},
        lambda x: x in {"1", "2"},
        lambda x: lambda: x + 1,
        lambda x: lambda: x + 2,
        lambda x: (yield x),
        lambda x: "\udc80",
    ]
    assert len(set(map(code_identity, codes))) == len(codes)


SCRIPT = """
def clean(table, names={"a"}):
    keep = {"x", "y", "z", 1, None, (1, frozenset({"u", "v"}))}
    def inner(row):
        return f"{row!r:>10}" if row in {"p", "q", "r"} else [r for r in row]
    return [inner(row) for row in table if row in {"a", "b", "c", ("d", 1)}]

class Model:
    def __call__(self, x): return x in {"a", "b", "c"}
"""
ANOTHER = '''
# A comment.


def clean(table, names={"a"}):
    """A docstring."""
    keep = {"x", "y", "z", 1, None, (1, frozenset({"u", "v"}))}  # in other lines

    def inner(row):
        """Another."""
        return f"{row!r:>10}" if row in {"p", "q", "r"} else [r for r in row]
    return [inner(row) for row in table if row in {"a", "b", "c", ("d", 1)}]

class Model:
    """A docstring."""

    def __call__(self, x):
        """A docstring."""
        return x in {"a", "b", "c"}
'''


def identities(path: Path, source: str, seed: str) -> str:
    ends = """
    from handoff_dask.learning.identity import code_identity, code_title
    print(code_identity(clean), code_identity(Model()), code_identity(lambda: {"a"}))
    """
    path.write_text(source + dedent(ends))
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, path], env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_identities_last(tmp_path: Path) -> None:
    """Another process, hash seed, file, line, comment or docstring leaves the identity."""
    first = identities(tmp_path / "a.py", SCRIPT, "1")
    assert first.startswith("__main__.clean#")
    assert first.count("#") == 3
    assert identities(tmp_path / "b.py", ANOTHER, "2") == first
    assert identities(tmp_path / "a.py", SCRIPT.replace('"r"}', '"s"}'), "1") != first


def test_titles_say_where_a_code_is() -> None:
    """A place follows the name if that can mean something else; cells of notebooks have lines."""
    assert code_title(functools.partial(add, 1)) == f"{HERE}.add"
    code = functools.partial(lambda: 1)
    name = f"{HERE}.test_titles_say_where_a_code_is.<locals>.<lambda>"
    line = test_titles_say_where_a_code_is.__code__.co_firstlineno + 3
    assert code_title(code) == f"{name} at test_identity.py:{line}"
    in_cell: dict[str, Any] = {"__name__": "__main__"}
    exec(compile("\ndef f(): ...", "/tmp/ipykernel_7/1234.py", "exec"), in_cell)
    assert code_title(in_cell["f"]) == "__main__.f at line 2 of a cell"
