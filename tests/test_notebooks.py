"""The notebooks and the script that runs them; ``make notebooks`` runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

import nbformat
from run_notebook import NotebookError, run

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))

pytestmark = [
    # What jupyter_client and its friends warn of each other.
    pytest.mark.filterwarnings("ignore:::jupyter_client"),
    pytest.mark.filterwarnings("ignore:::zmq"),
    pytest.mark.filterwarnings("ignore:Jupyter is migrating"),
]


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a notebook of cells."""

    def write(*sources):
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        path = tmp_path / "some.ipynb"
        kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
        return path

    return write


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(path):
    """The documentation creates the outputs; in the repository they would become outdated."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert sum(cell["cell_type"] == "markdown" for cell in cells) >= 5
    for cell in cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_there_are_seven_notebooks():
    """The documentation lists them by name."""
    assert [path.stem for path in NOTEBOOKS] == [
        "distributed_image_processing",
        "existing_cluster",
        "getting_started",
        "nothing_computed_twice",
        "resource_management",
        "retries_and_failures",
        "simple_pipeline",
    ]


def test_the_copy_has_the_outputs(write, tmp_path):
    """Cells run in order in one kernel; the copy has the outputs, the notebook is unchanged."""
    source, target = write("a = 20", "print(a)\na + 1"), tmp_path / "out" / "some.ipynb"
    before = source.read_bytes()
    run(source, target)
    stream, value = nbformat.read(target, as_version=4).cells[1].outputs
    assert (stream.text, value.data["text/plain"]) == ("20\n", "21")
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import sys; print('a warning', file=sys.stderr)", "on stderr: a warning"),
        ("while True: pass", "timed out"),
        ("import os; os._exit(1)", "died"),
    ],
)
def test_what_is_wrong_names_notebook_and_cell(write, tmp_path, code, expected):
    """The error names a cell that fails, warns, hangs or kills the kernel; no copy is left."""
    source, target = write("fine = True", code), tmp_path / "copy.ipynb"
    with pytest.raises(NotebookError) as caught:
        run(source, target, seconds=10)
    assert "some.ipynb, cell 2" in str(caught.value)
    assert expected in str(caught.value)
    assert not target.exists()
