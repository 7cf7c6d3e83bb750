"""The examples and tables in the README and the documentation are correct."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from operator import attrgetter
from pathlib import Path

import pytest

import handoff_dask
from handoff_dask import Function
from tests.test_rooms import WINGS

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if BLOCK.search(page.read_text(encoding="utf-8"))
]

#: What the script of a page begins with: it checks that a statement shows what the page says.
PRELUDE = """
import contextlib, doctest, io

@contextlib.contextmanager
def shows(expected):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        yield
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if not doctest.OutputChecker().check_output(expected, out.getvalue(), flags):
        raise SystemExit(f"the page says:\\n{expected}\\nit shows:\\n{out.getvalue()}")

def show(value):
    if value is not None:
        print(repr(value))
"""


def script_of(text):
    """Return the Python of a page as one script.

    A comment right below an expression, or below a statement that prints, is what it shows; "..."
    stands for anything.
    """
    parts = [PRELUDE]
    for block in BLOCK.findall(text):
        lines = block.splitlines()
        for statement in ast.parse(block).body:
            source = ast.unparse(statement)
            shown = []
            for line in lines[statement.end_lineno :]:
                if not line.startswith("#"):
                    break
                shown.append(line.removeprefix("#").removeprefix(" ") + "\n")
            if shown and (isinstance(statement, ast.Expr) or "print(" in source):
                if isinstance(statement, ast.Expr):
                    source = f"show({source})"
                body = "\n".join("    " + line for line in source.splitlines())
                source = f"with shows({''.join(shown)!r}):\n{body}"
            parts.append(source)
    return "\n".join(parts)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("1 + 1\n# 2\n", True),
        ("1 + 1\n# 3\n", False),
        ("print('one')\n# o...\n", True),
        ("try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    print(e)\n# division ...\n", True),
        ("a = 1\n# no output, and none is expected\n", True),
        ("a = 1 / 0\n", False),
    ],
)
def test_these_tests_see(text, right):
    """Outputs that a page states are compared; other comments are ignored."""
    script = script_of(f"```python\n{text}```\n")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert (done.returncode == 0) == right


def rows_below(page, heading):
    """Return the cells of each row of the first table below a heading."""
    text = (ROOT / page).read_text(encoding="utf-8").partition(f"\n{heading}\n")[2]
    table = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    lines = table.group().splitlines()[2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def test_contributors_see_all_wings():
    """The table of wings in CONTRIBUTING.md lists those that the imports are checked against."""
    assert tuple(row[0] for row in rows_below("CONTRIBUTING.md", "## Wings")) == WINGS


@pytest.mark.parametrize(
    "row", rows_below("docs/architecture.md", "## Where is it decided?"), ids=lambda row: row[0]
)
def test_decisions_are_where_the_architecture_page_says(row):
    """Each function that the page names for a decision exists."""
    _, module, name = row
    path = module.removesuffix(".py").replace("/", ".")
    attrgetter(name)(importlib.import_module(f"handoff_dask.{path}"))


def test_each_error_is_explained():
    """The page on what goes wrong says of each error that users can meet what to do."""
    rows = rows_below("docs/what_goes_wrong.md", "## Which error means what")
    public = [getattr(handoff_dask, name) for name in handoff_dask.__all__]
    errors = {
        thing.__name__
        for thing in public
        if isinstance(thing, type) and issubclass(thing, BaseException)
    }
    assert {name for name, *_ in rows} == errors
    assert all(meaning and advice for _, meaning, advice in rows)


def test_each_field_is_explained():
    """The page on functions has each field of the record in its table."""
    rows = rows_below("docs/functions.md", "## Fields")
    names = re.findall(r"`(\w+)`", " ".join(row[0] for row in rows))
    assert sorted(names) == sorted(field.name for field in dataclasses.fields(Function))


def test_state_diagram():
    """The diagram of a table of transitions is valid XML and has every state and event."""
    spec = importlib.util.spec_from_file_location(
        "state_diagram", ROOT / "docs" / "_ext" / "state_diagram.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    life = {
        ("held", "placed"): "running",
        ("running", "failed & late"): "held",
        ("running", "seceded"): "running",
        ("running", "succeeded"): "done",
        **{(state, "dropped"): "gone" for state in ("held", "running", "done", "lost")},
    }
    texts = "".join(ElementTree.fromstring(module.drawing(life)).itertext())
    for name in {name for pair, after in life.items() for name in (*pair, after)}:
        assert name in texts


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_run_one_after_the_other(page, tmp_path):
    """The Python examples of a page, run one after the other, show what the page says."""
    script = tmp_path / "page.py"
    script.write_text(script_of(page.read_text(encoding="utf-8")), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
