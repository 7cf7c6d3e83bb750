"""The drawing of a DAG, valid or not, small or large."""

from __future__ import annotations

import operator
import re
from functools import partial
from xml.etree import ElementTree

import pytest

from handoff_dask import AUTO, DAG, Argument, Function, collocated
from handoff_dask.errors import DAGError
from handoff_dask.graph.translation import code_names
from handoff_dask.widgets import boxes
from handoff_dask.widgets.markup import WRONG
from tests import support

SVG = "{http://www.w3.org/2000/svg}"


def load(*args):
    return args


def mix(*args):
    return args


def pack(data, source, target):
    return data


dag_of = partial(support.dag_of, id="d")


def pictured(dag):
    try:
        dag.validate()
    except DAGError as error:
        fault = error
    else:
        fault = None
    codes = code_names(f.code for f in dag.functions.values())
    return boxes.picture(dag.functions, codes, fault)


def drawn(dag):
    """Return the texts, tooltips and elements of a drawing, which must be well-formed."""
    root = ElementTree.fromstring(dag._repr_svg_())
    texts = [text.text for text in root.iter(f"{SVG}text")]
    tips = [title.text for title in root.iter(f"{SVG}title")]
    return texts, tips, root


def by_title(image):
    return {box.title: box for box in image.boxes}


def test_what_a_function_shows():
    """Id, code, cost, pin and collocation are in the box; the tooltip has the rest."""
    dag = dag_of(
        Function("a", [], load, cost={"cpu": 2, "memory": 2048}, node="alice", timeout=60),
        Function(("b", 1), ["a"], mix, [[Argument("c")]], node=collocated("a"), max_retries=5),
        Function("c", code=load),
        Function("d", code=load, node=("bob", 1), allow_other_workers=True, priority=3),
    )
    texts, tips, _ = drawn(dag)
    assert texts[:4] == ["a", "load", "cpu 2 \N{MIDDLE DOT} memory 2,048 MB", "@ alice"]
    assert texts[4:7] == ["('b', 1)", "mix", "with a"]
    assert "timeout: 60 s" in tips[0]
    assert "takes a, c" in tips[1]
    assert "max_retries: 5" in tips[1]
    assert "@ bob or 1" in texts
    assert "node: ('bob', 1) (preferred)\npriority: 3" in tips[3]
    assert {"pinned", "same colour: same worker"} < set(texts)


def test_inline_functions_and_transforms_can_be_seen():
    """Inline functions have a dashed frame and transformed arguments a dot, as the legend says."""
    dag = dag_of(
        Function("a", [], load),
        Function("i", ["a"], mix, type="inline"),
        Function("b", ["i", Argument("a", pack)], mix),
    )
    texts, _, root = drawn(dag)
    assert "inline: runs inside each function that uses it" in texts
    assert "transformed argument" in texts
    dashed = [r for r in root.iter(f"{SVG}rect") if r.get("stroke-dasharray")]
    assert len(dashed) == 2  # the function, and the legend
    assert len(list(root.iter(f"{SVG}circle"))) == 2


def test_no_legend_where_there_is_nothing_to_explain():
    """The legend has only the looks that occur."""
    texts, _, _ = drawn(dag_of(Function("a", [], load)))
    assert texts == ["a", "load"]


def test_collocated_functions_share_a_colour():
    """Functions of a chain of collocations share a place; other chains have another."""
    dag = dag_of(
        *(Function(i, [], load) for i in "ax"),
        Function("b", ["a"], mix, node=collocated("a")),
        Function("c", ["b"], mix, node=collocated("b")),
        Function("y", ["x"], mix, node=collocated("x")),
        Function("z", ["x"], mix),
    )
    places = {title: box.place for title, box in by_title(pictured(dag)).items()}
    assert places == {"a": "a", "b": "a", "c": "a", "x": "x", "y": "x", "z": None}


@pytest.mark.parametrize(
    ("functions", "wrong", "lines"),
    [
        ([Function("a", ["lost"], load)], {"a", "lost"}, 0),
        ([Function("a", [], load), Function("b", ["a"], 12)], {"b"}, 0),
        ([Function("a", [], load, cost={"cpu": -1})], {"a"}, 0),
        ([Function("a", [], load, cost="much")], {"a"}, 0),
        ([Function("a", ["a"], load)], {"a"}, 1),
        ([Function("a", ["c"], mix), Function("b", ["a"], mix), Function("c", ["b"], mix)],
         {"a", "b", "c"}, 3),
        ([Function("a", [], load, node=collocated("b")),
          Function("b", [], load, node=collocated("a"))], {"a", "b"}, 0),
        ([Function("a", [], load, node=collocated(["b"]))], {"a"}, 0),
        ([Function("a", [["b"]], load)], {"a", "['b']"}, 0),
        ([Function("a", "bc", load)], {"a"}, 0),
        ([Function("a", 5, load)], {"a"}, 0),
        ([Function("a", [], load, type=["odd"])], {"a"}, 0),
    ],
)  # fmt: skip
def test_what_is_wrong_is_marked(functions, wrong, lines):
    """An invalid DAG is drawn too, with its error; culprits and cycles are red."""
    dag = dag_of(*functions)
    image = pictured(dag)
    assert {box.title for box in image.boxes if box.wrong} == wrong
    assert sum(line.wrong for line in image.lines.values()) == lines
    with pytest.raises(DAGError) as caught:
        dag.validate()
    html = ElementTree.fromstring(dag._repr_html_().replace("&ensp;", " "))
    assert str(caught.value) in "".join(html.itertext())
    assert WRONG in dag._repr_html_()


def test_what_users_write_is_no_markup():
    """Ids, names of DAGs, pins and the errors that quote them are escaped."""
    evil = "<script>alert('x')</script>"
    dag = dag_of(
        Function(evil, [], load, node=evil, cost={evil: 1}),
        Function((evil,), [evil, evil + "?"], mix, node=collocated(evil)),
        id=evil,
    )
    for text in (dag._repr_html_(), dag._repr_svg_()):
        assert "<script" not in text
        assert "&lt;script&gt;" in text


def test_an_empty_dag():
    """An empty DAG can be drawn."""
    ElementTree.fromstring(DAG("d")._repr_svg_())
    assert "0 functions" in DAG("d")._repr_html_()


def many(n):
    dag = DAG("many")
    for i in range(n):
        dag.add_function(Function(("load", i), [], load, cost={"cpu": 1 + i % 3}))
        dag.add_function(Function(("mix", i), [("load", i)], mix, node=collocated(("load", i))))
    dag.add_function(Function("sum", [("mix", i) for i in range(n)], mix, node="alice"))
    return dag


def test_large_dags_collapse():
    """Functions with the same code and depth share a box; lines have their number."""
    dag = many(2500)
    image = pictured(dag)
    assert image.collapsed
    assert [(box.title, box.size) for box in image.boxes] == [
        ("load", 2500), ("mix", 2500), ("mix", 1),
    ]  # fmt: skip
    assert {edge: line.size for edge, line in image.lines.items()} == {(0, 1): 2500, (1, 2): 2500}
    assert image.boxes[0].lines == ["cpu 1\N{EN DASH}3"]
    assert image.boxes[1].lines == ["2,500 collocated"]
    assert image.boxes[2].lines == ["1 pinned"]
    texts, tips, _ = drawn(dag)
    assert texts.count("load \N{MULTIPLICATION SIGN} 2,500") == 1
    assert texts.count("2,500") == 2
    assert tips[0].startswith("2,500 functions: ('load', 0), ('load', 1)")
    assert len(dag._repr_html_()) < 10_000


def test_up_to_a_hundred_functions_are_drawn_one_by_one():
    """Functions share boxes only where single boxes would be too many to read."""
    dag = dag_of(*(Function(i, [], load) for i in range(boxes.MOST_SINGLE)))
    assert len(pictured(dag).boxes) == boxes.MOST_SINGLE
    dag.add_function(Function("one more", [], load))
    assert len(pictured(dag).boxes) == 1


def test_deep_dags_collapse_by_code_alone():
    """A long chain of two codes is two boxes that lead to each other."""
    chain = dag_of(*(Function(i, [i - 1] if i else [], (load, mix)[i % 2]) for i in range(1001)))
    image = pictured(chain)
    assert {box.title: box.size for box in image.boxes} == {"load": 501, "mix": 500}
    assert {edge: line.size for edge, line in image.lines.items()} == {(0, 1): 500, (1, 0): 500}
    drawn(chain)


def test_dags_of_many_codes_collapse_into_the_most_frequent():
    """If there are too many codes, the rarest share one box."""
    codes = [type(f"Code{i}", (), {"__call__": load})() for i in range(200)]
    functions = [Function(i, [], code) for i, code in enumerate(codes)]
    functions += [Function((i, "again"), [], codes[7]) for i in range(5)]
    image = pictured(dag_of(*functions))
    assert len(image.boxes) == boxes.MOST_GROUPS
    assert sum(box.size for box in image.boxes) == 205
    assert by_title(image)["Code7"].size == 6
    assert any(re.fullmatch(r"\d+ other codes", box.title) for box in image.boxes)


def test_very_many_lines_between_groups(monkeypatch):
    """The thickest lines and those in error are drawn, and the rest is counted."""
    monkeypatch.setattr(boxes, "MOST_LINES", 2)
    dag = many(100).add_function(Function("p", [("load", 0)], max))
    dag.add_function(Function("q", ["q", "p"], min))
    image = pictured(dag)
    titles = [box.title for box in image.boxes]
    assert [(titles[a], titles[b]) for a, b in image.lines] == [("min", "min"), ("load", "mix")]
    assert image.hidden == 3
    assert "the thinnest 3 lines are left out" in dag._repr_html_()


def test_what_is_wrong_with_a_large_dag():
    """A box that contains a culprit is marked, and missing ids have a box."""
    dag = many(100).add_function(Function("bad", ["x", "y"], operator.add))
    image = pictured(dag)
    assert [box.title for box in image.boxes if box.wrong] == ["add", "not in the DAG"]
    assert image.boxes[-1].size == 2
    circle = (
        many(100).add_function(Function("p", ["q"], max)).add_function(Function("q", ["p"], min))
    )
    image = pictured(circle)
    assert {box.title for box in image.boxes if box.wrong} == {"max", "min"}
    assert sum(line.wrong for line in image.lines.values()) == 2


def test_memory_that_is_learned():
    """Boxes of one function and of many say AUTO, as do pictures in files."""
    dag = DAG("learned").add_function(Function("f", [], int, cost={"memory": AUTO, "cpu": 1}))
    assert "memory AUTO · cpu 1" in dag._repr_html_()
    dag.map(float, range(500), cost={"memory": AUTO})
    dag.map(float, range(500), cost={"memory": 500}, id="fixed")
    assert "memory 500 MB or AUTO" in dag._repr_html_()
