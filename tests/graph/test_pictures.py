"""Pictures of DAGs in files."""

from __future__ import annotations

import operator
import shutil
from xml.etree import ElementTree

import dask
import pytest

from handoff_dask import DAG, Function, MissingFunctionError
from handoff_dask.graph import pictures

SVG = "{http://www.w3.org/2000/svg}"


def make_dag():
    return (
        DAG("d")
        .add_function(Function("<a>\\n", [], int, extra_args=["20"], cost={"cpu": 2}))
        .add_function(Function("i", ["<a>\\n"], operator.add, extra_args=[1], type="inline"))
        .add_function(Function(("b", 1), ["i"], operator.mul, extra_args=[2]))
    )


@pytest.fixture
def installed(monkeypatch):
    """Pretend that these engines are installed, beside our own."""

    def pretend(*engines):
        monkeypatch.setattr(pictures, "_installed", lambda engine: engine in (*engines, "handoff"))

    return pretend


@pytest.mark.parametrize(
    ("filename", "format", "engines", "chosen"),
    [
        ("x", None, [], "handoff"),
        ("x.svg", None, [], "handoff"),
        (None, None, [], "handoff"),
        ("x", "svg", ["cytoscape"], "handoff"),
        ("x", None, ["cytoscape"], "cytoscape"),
        ("x.html", None, ["cytoscape", "graphviz"], "cytoscape"),
        ("x", None, ["cytoscape", "graphviz"], "graphviz"),
        ("x.v2", None, ["graphviz"], "graphviz"),
        ("x.PDF", None, ["graphviz"], "graphviz"),
        ("x.svg", None, ["graphviz"], "graphviz"),
    ],
)
def test_who_draws(installed, filename, format, engines, chosen):
    """The first installed engine that can write the format draws; SVG can always be written."""
    installed(*engines)
    assert pictures.choose_engine(filename, format, None) == chosen


@pytest.mark.parametrize(
    ("filename", "format", "engine", "error", "told"),
    [
        ("x.png", None, None, RuntimeError, "cannot write png.*notebook.*apt install graphviz"),
        ("x.pdf", None, "graphviz", RuntimeError, "apt install graphviz"),
        ("x", None, "cytoscape", RuntimeError, "pip install ipycytoscape"),
        ("x.html", None, None, RuntimeError, "pip install ipycytoscape"),
        ("x.png", None, "handoff", ValueError, "handoff engine writes svg, not png"),
        ("x", "gif", None, ValueError, "format must be one of .*'gif'"),
        ("x", None, "paint", ValueError, "engine must be one of .*'paint'"),
    ],
)
def test_who_cannot(installed, filename, format, engine, error, told):
    """What is missing is named with the commands that install it; a wrong word with the words."""
    installed()
    with pytest.raises(error, match=told):
        pictures.choose_engine(filename, format, engine)


def test_the_setting_of_dask(installed):
    """An engine in Dask's configuration is taken, under both of its names."""
    installed("graphviz", "cytoscape")
    with dask.config.set({"visualization.engine": "ipycytoscape"}):
        assert pictures.choose_engine("x", None, None) == "cytoscape"
        assert pictures.choose_engine("x", None, "graphviz") == "graphviz"


@pytest.mark.parametrize("filename", ["dag", "dag.svg"])
def test_our_own_drawing(tmp_path, filename):
    """The handoff engine writes well-formed SVG, of a DAG that is not valid too."""
    dag = make_dag().add_function(Function("lost", ["nobody"], max))
    dag.visualize(str(tmp_path / filename), engine="handoff")
    root = ElementTree.parse(tmp_path / "dag.svg").getroot()
    texts = {text.text for text in root.iter(f"{SVG}text")}
    assert {"<a>\\n", "i", "('b', 1)", "nobody"} <= texts


@pytest.mark.parametrize("engine", ["graphviz", "cytoscape"])
def test_engines_draw_valid_dags_only(installed, engine):
    """Dask's engines draw what would run: a DAG that is not valid fails by its own error."""
    installed(engine)
    with pytest.raises(MissingFunctionError):
        DAG().add_function(Function("a", ["nobody"], max)).visualize(None, engine=engine)


@pytest.mark.parametrize(
    ("ending", "start"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")]
)
def test_graphviz(tmp_path, ending, start):
    """Graphviz writes SVG, PNG and PDF, of regular functions under their ids with their costs."""
    pytest.importorskip("graphviz")
    if shutil.which("dot") is None:
        pytest.skip("needs Graphviz: apt install graphviz")
    path = tmp_path / f"dag.{ending}"
    make_dag().visualize(str(path))
    assert path.read_bytes().startswith(start)
    if ending == "svg":
        texts = [t.text for t in ElementTree.parse(path).getroot().iter(f"{SVG}text")]
        assert texts == ["<a>\\n", "cpu 2", "('b', 1)"]


def test_dask_colours(tmp_path):
    """Colouring is Dask's: what it needs is passed on."""
    pytest.importorskip("graphviz")
    pytest.importorskip("matplotlib")
    if shutil.which("dot") is None:
        pytest.skip("needs Graphviz: apt install graphviz")
    make_dag().visualize(str(tmp_path / "dag.svg"), color="order")
    assert (tmp_path / "dag.svg").stat().st_size
