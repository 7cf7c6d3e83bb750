"""What the package exports."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

import handoff_dask
from handoff_dask import discover_nodes, explain, uninstall

EXPORTED = {name: getattr(handoff_dask, name) for name in handoff_dask.__all__}
#: Its methods are for Dask.
CLASSES = [v for v in EXPORTED.values() if inspect.isclass(v) and v.__name__ != "HandoffPlugin"]
FUNCTIONS = [value for value in EXPORTED.values() if inspect.isfunction(value)]


#: Names that a module imports for type checkers only are among what is exported.
hints = partial(get_type_hints, localns=EXPORTED)


def returned(call: Any) -> Any:
    """Return what a function returns, by its annotation."""
    call = inspect.unwrap(call)
    return eval(call.__annotations__.get("return", "None"), call.__globals__, EXPORTED)


def returns(cls: type) -> Iterator[Any]:
    """Yield what the public methods and attributes of a class return."""
    yield from (v for n, v in hints(cls).items() if not n.startswith("_"))
    for name, member in inspect.getmembers(cls):
        call = member.fget if isinstance(member, property) else getattr(member, "func", member)
        if not name.startswith("_") and inspect.isfunction(call):
            yield returned(call)


def classes_in(annotation: Any) -> Iterator[type]:
    """Yield the classes of ours that an annotation names; an answer stands for its value."""
    for part in get_args(annotation):
        yield from classes_in(part)
    kind = get_origin(annotation) or annotation
    if inspect.isclass(kind) and kind.__module__.startswith("handoff_dask"):
        if not kind.__name__.endswith("Answer"):
            yield kind
        elif kind.__bases__[0].__module__.startswith("handoff_dask"):
            yield kind.__bases__[0]


@pytest.mark.parametrize("public", [*FUNCTIONS, *CLASSES], ids=lambda public: public.__name__)
def test_what_public_calls_return_is_public(public):
    """Whatever a user gets hold of can be imported from the face, for annotations."""
    kinds = returns(public) if inspect.isclass(public) else [returned(public)]
    named = {kind for annotation in kinds for kind in classes_in(annotation)}
    assert named <= set(EXPORTED.values())


def test_all_that_is_public_is_documented():
    """The API pages list every name of the face."""
    pages = Path(__file__).parents[1] / "docs" / "api"
    listed = {
        line.split()[0]
        for page in pages.glob("*.md")
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.strip()
    }
    assert {*EXPORTED} - {"__version__"} <= listed


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_client_is_a_keyword(function):
    """No function takes its client by position."""
    parameter = inspect.signature(function).parameters.get("client")
    assert parameter is None or parameter.kind is parameter.KEYWORD_ONLY


@pytest.mark.parametrize(
    "function, arguments", [(discover_nodes, ()), (uninstall, ()), (explain, (handoff_dask.DAG(),))]
)
def test_a_client_by_position(function, arguments):
    """It is still taken, with a warning at the user's line that shows the new form."""
    with pytest.warns(DeprecationWarning, match=rf"{function.__name__}\(\).*client=") as caught:
        with pytest.raises(TypeError, match="client must be"):
            function(*arguments, "a client")
    assert caught[0].filename == __file__
    with pytest.raises(TypeError, match="positional"):
        function(*arguments, None, None)


def test_type_checkers_see_what_is_exported():
    """The imports for type checkers and what can be imported are the same names and objects."""
    tree = ast.parse(Path(handoff_dask.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.name: getattr(importlib.import_module(node.module), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("handoff_dask")
        for alias in node.names
    }
    assert seen == EXPORTED
    assert set(EXPORTED) <= set(dir(handoff_dask))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        handoff_dask.nothing  # noqa: B018


def test_names_are_imported_when_they_are_used():
    """What needs no Dask, such as current(), does not import it."""
    code = (
        "import sys; from handoff_dask import current, RetryPolicy, Function, HandoffError;"
        "assert not {'dask', 'distributed'} & {*sys.modules};"
        "from handoff_dask import *; execute, DAG"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
