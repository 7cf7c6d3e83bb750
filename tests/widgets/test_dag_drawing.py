"""The drawing of a DAG, valid or not, small or large."""

from __future__ import annotations

import operator
import re
from functools import partial
from xml.etree import ElementTree

import pytest

from handoff_dask import DAG, Argument, Function, collocated
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


def by_title(found):
    return {box.title: box for box in found.boxes}


def test_what_a_function_shows():
    """Id, code, cost, pin and collocation can be read; the rest is told to who points at it."""
    dag = dag_of(
        Function("a", [], load, cost={"cpu": 2, "memory": 2048}, node="alice", timeout=60),
        Function(("b", 1), ["a"], mix, node=collocated("a"), max_retries=5),
    )
    texts, tips, _ = drawn(dag)
    assert texts[:4] == ["a", "load", "cpu 2 \N{MIDDLE DOT} memory 2,048 MB", "@ alice"]
    assert texts[4:7] == ["('b', 1)", "mix", "with a"]
    assert "timeout: 60 s" in tips[0]
    assert "takes a" in tips[1]
    assert "max_retries: 5" in tips[1]
    assert {"pinned", "same colour: same worker"} < set(texts)


def test_inline_functions_and_transforms_can_be_seen():
    """Inline functions are framed otherwise, transformed arguments have a dot; the legend says."""
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
    """The legend holds only what occurs."""
    texts, _, _ = drawn(dag_of(Function("a", [], load)))
    assert texts == ["a", "load"]


def test_collocated_functions_share_a_colour():
    """Chains of collocations have one place, others another."""
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
    """A DAG that is not valid is drawn all the same: culprits and circles are red, and why."""
    dag = dag_of(*functions)
    found = pictured(dag)
    assert {box.title for box in found.boxes if box.wrong} == wrong
    assert sum(line.wrong for line in found.lines.values()) == lines
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
    """There is a picture of nothing, too."""
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
    """Functions of one code at one depth are one box; lines tell how many they stand for."""
    dag = many(2500)
    found = pictured(dag)
    assert found.collapsed
    assert [(box.title, box.size) for box in found.boxes] == [
        ("load", 2500), ("mix", 2500), ("mix", 1),
    ]  # fmt: skip
    assert {edge: line.size for edge, line in found.lines.items()} == {(0, 1): 2500, (1, 2): 2500}
    assert found.boxes[0].lines == ["cpu 1\N{EN DASH}3"]
    assert found.boxes[1].lines == ["2,500 collocated"]
    assert found.boxes[2].lines == ["1 pinned"]
    texts, tips, _ = drawn(dag)
    assert texts.count("load \N{MULTIPLICATION SIGN} 2,500") == 1
    assert texts.count("2,500") == 2
    assert tips[0].startswith("2,500 functions: ('load', 0), ('load', 1)")
    assert len(dag._repr_html_()) < 10_000


def test_up_to_a_hundred_functions_are_drawn_one_by_one():
    """The collapse begins where single boxes can no longer be read."""
    one = dag_of(*(Function(i, [], load) for i in range(boxes.MOST_SINGLE)))
    assert len(pictured(one).boxes) == boxes.MOST_SINGLE
    one.add_function(Function("one more", [], load))
    assert len(pictured(one).boxes) == 1


def test_deep_dags_collapse_by_code_alone():
    """A long chain of two codes is two boxes that lead to each other."""
    chain = dag_of(*(Function(i, [i - 1] if i else [], (load, mix)[i % 2]) for i in range(1001)))
    found = pictured(chain)
    assert {box.title: box.size for box in found.boxes} == {"load": 501, "mix": 500}
    assert {edge: line.size for edge, line in found.lines.items()} == {(0, 1): 500, (1, 0): 500}
    drawn(chain)


def test_dags_of_many_codes_collapse_into_the_most_frequent():
    """What is left of too many codes is one box."""
    codes = [type(f"Code{i}", (), {"__call__": load})() for i in range(200)]
    functions = [Function(i, [], code) for i, code in enumerate(codes)]
    functions += [Function((i, "again"), [], codes[7]) for i in range(5)]
    found = pictured(dag_of(*functions))
    assert len(found.boxes) == boxes.MOST_GROUPS
    assert sum(box.size for box in found.boxes) == 205
    assert by_title(found)["Code7"].size == 6
    assert any(re.fullmatch(r"\d+ other codes", box.title) for box in found.boxes)


def test_very_many_lines_between_groups(monkeypatch):
    """The thickest lines are drawn, what is wrong among them, and the rest is counted."""
    monkeypatch.setattr(boxes, "MOST_LINES", 2)
    dag = many(100).add_function(Function("p", [("load", 0)], max))
    dag.add_function(Function("q", ["q", "p"], min))
    found = pictured(dag)
    titles = [box.title for box in found.boxes]
    assert [(titles[a], titles[b]) for a, b in found.lines] == [("min", "min"), ("load", "mix")]
    assert found.hidden == 3
    assert "the thinnest 3 lines are left out" in dag._repr_html_()


def test_what_is_wrong_with_a_large_dag():
    """The box that holds a culprit is marked, and what is missing is a box."""
    dag = many(100).add_function(Function("bad", ["x", "y"], operator.add))
    found = pictured(dag)
    assert [box.title for box in found.boxes if box.wrong] == ["add", "not in the DAG"]
    assert found.boxes[-1].size == 2
    circle = (
        many(100).add_function(Function("p", ["q"], max)).add_function(Function("q", ["p"], min))
    )
    found = pictured(circle)
    assert {box.title for box in found.boxes if box.wrong} == {"max", "min"}
    assert sum(line.wrong for line in found.lines.values()) == 2
