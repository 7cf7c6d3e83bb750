"""The wheel, in an environment that has nothing but it and what it pulls in."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import handoff_dask
from tests.test_pages import BLOCK, script_of

pytestmark = pytest.mark.dist

ROOT = Path(__file__).parents[2]
DIST = ROOT / "dist"
VERSION = handoff_dask.__version__
WHEEL = DIST / f"handoff_dask-{VERSION}-py3-none-any.whl"
SDIST = DIST / f"handoff_dask-{VERSION}.tar.gz"
#: The Python of the bare environment.
BARE = ROOT / os.environ.get("BARE", "")

#: What runs in the bare environment, and must work there or name what is missing.
WITHOUT_EXTRAS = """
import importlib.util
for name in ("bokeh", "numpy", "pandas", "IPython", "ipywidgets", "graphviz"):
    assert importlib.util.find_spec(name) is None, name

from handoff_dask import *
import handoff_dask

assert "site-packages" in handoff_dask.__file__

def fails(call, *words):
    try:
        call()
    except Exception as error:
        assert all(word in str(error) for word in words), error
    else:
        raise SystemExit(f"{call} did not fail")

dag = DAG("d").add_function(Function("a", [], int)).add_function(Function("b", ["a"], str))
assert dag.compute() == {"a": 0, "b": "0"}
assert execute_local(dag).results == {"a": 0, "b": "0"}
assert "<svg" in dag._repr_svg_() and "<svg" in dag._repr_html_()
dag.visualize("dag.svg")
fails(lambda: dag.visualize(engine="graphviz"), "graphviz", "pip install")

if __name__ == "__main__":
    run = submit(dag)
    result = run.result()
    assert "<table" in result._repr_html_() and repr(run) and run._repr_html_()
    assert run._repr_mimebundle_() == {}
    fails(result.plot, "bokeh", "handoff_dask[notebook]")
    print(plan(dag, {"w": {"cpu": 1}}, {"a": 1, "b": 1}))
"""


def bare(folder, *command):
    """Run a command in the bare environment, away from the sources; return what it prints."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "DASK"))}
    done = subprocess.run(
        [BARE, "-W", "error::DeprecationWarning:handoff_dask", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def contents(path):
    """Return the files in the package's folder of the sources, but for what Python leaves there."""
    return {
        str(file.relative_to(path.parent))
        for file in path.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_contents():
    """The wheel holds the package, its metadata and its licence, and nothing else."""
    names = set(zipfile.ZipFile(WHEEL).namelist())
    info = f"handoff_dask-{VERSION}.dist-info"
    metadata = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt"}
    assert names == contents(ROOT / "handoff_dask") | {
        f"{info}/{name}" for name in (*metadata, "licenses/LICENSE")
    }
    kinds = {Path(name).suffix for name in names if name.startswith("handoff_dask/")}
    assert kinds == {".py", ".yaml", ".typed"}


def test_sdist():
    """The sdist holds what the wheel is made from, and no tests."""
    with tarfile.open(SDIST) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= contents(ROOT / "handoff_dask") | {"pyproject.toml", "setup.cfg", "LICENSE"}
    assert not any(name.startswith("tests") for name in names)


def test_the_same_again(tmp_path):
    """Whoever builds a commit gets the same wheel."""
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, ROOT],
        env={"SOURCE_DATE_EPOCH": done.stdout.decode().strip(), **os.environ},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    assert (tmp_path / WHEEL.name).read_bytes() == WHEEL.read_bytes()


def test_readme(tmp_path):
    """The README's first example runs."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    example = f"```python\n{BLOCK.findall(text)[0]}```\n"
    script = tmp_path / "example.py"
    script.write_text(script_of(example), encoding="utf-8")
    bare(tmp_path, str(script))


def test_without_extras(tmp_path):
    """Without extras everything works, or says what to install."""
    script = tmp_path / "script.py"
    script.write_text(WITHOUT_EXTRAS, encoding="utf-8")
    assert "makespan" in bare(tmp_path, str(script))


def test_command(tmp_path):
    """The command is there, and types are declared."""
    assert VERSION in bare(tmp_path, "-m", "dask", "handoff", "--version")
