"""`add` and `map`: from calls to functions."""

from __future__ import annotations

import collections
import copy
import functools
import itertools
import operator
import re

import numpy as np
import pytest

from handoff_dask import (
    DAG,
    Argument,
    DuplicateFunctionError,
    ForeignRefError,
    Function,
    InvalidFunctionError,
    MissingFunctionError,
    Ref,
    UnknownFunctionError,
    collocated,
    execute_local,
)
from handoff_dask.model import building
from tests.support import shown

Point = collections.namedtuple("Point", "x y")


def load(path, mode="r"):
    """Load a file."""
    return [path, mode]


def accept(*args, **kwargs):
    """Take anything."""
    return (*args, kwargs) if kwargs else args


@pytest.fixture
def dag():
    return DAG("d")


# Arguments


def test_a_ref_stands_for_its_function(dag):
    """`add` returns a reference, with which the function can be looked up."""
    ref = dag.add(load, "a.csv")
    assert ref == Ref("load", "d")
    assert dag[ref] == dag["load"] == Function("load", code=load, extra_args=["a.csv"])


def test_refs_become_dependencies(dag):
    """Leading refs are plain ids; elsewhere an Argument takes the ref's place."""
    a, b = dag.add(load, "a", id="a"), dag.add(load, "b", id="b")
    ref = dag.add(accept, a, b, 1, a, [b, {"k": (a,)}], x=b, y={"z": [a]}, w=2)
    assert dag[ref] == Function(
        "accept",
        ["a", "b"],
        accept,
        [1, Argument("a"), [Argument("b"), {"k": (Argument("a"),)}]],
        {"x": Argument("b"), "y": {"z": [Argument("a")]}, "w": 2},
    )
    results = execute_local(dag).results
    a, b = ["a", "r"], ["b", "r"]
    assert results["accept"] == (a, b, 1, a, [b, {"k": (a,)}], {"x": b, "y": {"z": [a]}, "w": 2})


def test_refs_in_fields_and_transforms(dag):
    """A ref may be what an Argument, a collocation, `args` and `extra_args` refer to."""
    a = dag.add(load, "a")
    ref = dag.add(
        accept,
        Argument(a, str),
        id="b",
        args=[a, "c"],
        extra_args=[[a]],
        extra_kwargs={"k": a},
        node=collocated(a),
    )
    assert dag[ref] == Function(
        "b",
        ["load", "c", Argument("load", str)],
        accept,
        [[Argument("load")]],
        {"k": Argument("load")},
        node=collocated("load"),
    )


def test_refs_in_partial_calls(dag):
    """A partial call is code like any other: refs in it are replaced too."""
    a = dag.add(load, "a")
    ref = dag.add(functools.partial(accept, a, k=a), 1)
    assert execute_local(dag).results[ref.id] == (["a", "r"], 1, {"k": ["a", "r"]})


def test_refs_in_kinds_of_dicts(dag):
    """A dict keeps its type, whatever its `update` does; a Counter's adds."""
    a = dag.add(int, "2")
    for i, kind in enumerate((dict, collections.OrderedDict, collections.Counter)):
        ref = dag.add(accept, kind({"a": a, "b": 3}), id=i)
        (value,) = execute_local(dag).results[ref.id]
        assert value == {"a": 2, "b": 3} and type(value) is kind


def test_what_holds_no_ref_stays_one_object(dag):
    """Arguments without refs are passed as they are, not copied."""
    table, options = [1, 2], {"k": [3]}
    ref = dag.add(accept, table, options=options)
    assert dag[ref].extra_args[0] is table
    assert dag[ref].extra_kwargs["options"] is options


def test_as_list(dag):
    """With as_list, leading refs arrive as one list."""
    refs = dag.map(load, ["a", "b"])
    total = dag.add(accept, *refs, 1, argument_inclusion="as_list")
    assert execute_local(dag).results[total.id] == ([["a", "r"], ["b", "r"]], 1)


# Refs that do not fit


def test_ref_of_another_dag(dag):
    """The error of a ref of another DAG names both, and the DAG stays as it was."""
    foreign = DAG("other").add(load, "a")
    for build in (
        lambda: dag.add(accept, foreign, id="b"),
        lambda: dag.add(accept, x=[foreign], id="b"),
        lambda: dag.map(accept, [1, {"k": foreign}], id="b"),
        lambda: dag.add(accept, id="b", node=collocated(foreign)),
        lambda: dag.add(accept, Argument(foreign), id="b"),
    ):
        with pytest.raises(ForeignRefError, match=r"'b' of the DAG 'd'.*'load' of the DAG 'other'"):
            build()
    assert len(dag) == 0


@pytest.mark.parametrize("id_", ["b", "nowhere"])
def test_ref_before_it_was_added(dag, id_):
    """A ref to what the DAG lacks, such as the function itself, is an error of its own."""
    with pytest.raises(ForeignRefError, match=rf"a Ref to '{id_}'.*add that function first"):
        dag.add(accept, Ref(id_, "d"), id="b")


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({"args": [Ref("a", "d")]}, "takes ids, 'a'"),
        ({"extra_args": [[Ref("a", "d")]]}, r"write Argument\('a'\)"),
        ({"extra_kwargs": {"k": Ref("a", "d")}}, r"write Argument\('a'\)"),
        ({"node": collocated(Ref("a", "d"))}, r"write collocated\('a'\), or use DAG\.add"),
        ({"args": [Argument(Argument("a"))]}, r"the id of an Argument is a function's, 'a'"),
    ],
)
def test_records_hold_no_refs(dag, fields, form):
    """A Ref in a Function is an error that shows what to write."""
    dag.add_function(Function("b", code=accept, **fields))
    with pytest.raises(InvalidFunctionError, match=form) as caught:
        dag.validate()
    assert caught.value.field == next(iter(fields))


# Names


class Loader:
    def __call__(self):
        """Do nothing."""

    def method(self):
        """Do nothing."""


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (load, "load"),
        (lambda: 0, "lambda"),
        (functools.partial(functools.partial(load), "a"), "load"),
        (operator.itemgetter(1), "itemgetter"),
        ("{}".format, "format"),
        (Loader, "Loader"),
        (Loader(), "Loader"),
        (Loader().method, "method"),
        (np.sin, "sin"),
    ],
)
def test_default_name(dag, code, name):
    """A function is named after its code."""
    assert dag.add(code).id == name
    assert [ref.id for ref in dag.map(code, [0, 0])] == [(name, 0), (name, 1)]


def test_names_that_are_taken(dag):
    """A default name that is taken is numbered, in `map` for all functions of the call."""
    dag.add_function(Function("load-3", code=load))
    assert [dag.add(load).id for _ in range(4)] == ["load", "load-2", "load-4", "load-5"]
    calls = [[ref.id for ref in dag.map(load, "ab".split() * 2)] for _ in range(3)]
    assert calls == [[(name, 0), (name, 1)] for name in ("load", "load-2", "load-3")]
    dag.add(accept, id=("load-4", 1))
    assert dag.map(load, ["a", "b"])[0].id == ("load-5", 0)


def test_given_ids(dag):
    """A given id is kept; one that is taken is an error, and `map` adds all or nothing."""
    assert dag.add(load, id=("x", 1)).id == ("x", 1)
    assert [ref.id for ref in dag.map(load, [1, 2], id="y")] == [("y", 0), ("y", 1)]
    with pytest.raises(DuplicateFunctionError, match=r"\('x', 1\)"):
        dag.map(load, [1, 2], id="x")
    with pytest.raises(DuplicateFunctionError):
        dag.add(load, id=("y", 1))
    assert list(dag) == [("x", 1), ("y", 0), ("y", 1)]
    assert dag.add(load, id=None).id == "load"


def test_given_id_that_cannot_be_hashed(dag):
    """An id that cannot be hashed is refused at once."""
    for build in (lambda: dag.add(load, id=[1]), lambda: dag.map(load, [1], id=[1])):
        with pytest.raises(InvalidFunctionError, match="hashable"):
            build()


# Keywords


def test_fields_are_keywords(dag):
    """Every field of Function can be passed to `add` and `map`."""
    fields = {"cost": {"cpu": 1}, "node": "alice", "timeout": 5, "priority": 2, "max_retries": 0}
    refs = [dag.add(load, "a", mode="w", **fields), *dag.map(load, ["a"], mode="w", **fields)]
    for ref in refs:
        assert dag[ref] == Function(ref.id, (), load, ["a"], {"mode": "w"}, **fields)


@pytest.mark.parametrize(("kwargs", "label"), [({}, "load"), ({"id": "x"}, "x")])
def test_units_that_cannot_be_read(dag, kwargs, label):
    """Text without a unit that is known raises at once, and names the function."""
    with pytest.raises(InvalidFunctionError) as caught:
        dag.add(load, "a", cost={"memory": "2 gigs"}, **kwargs)
    assert (caught.value.function_id, caught.value.field) == (label, "cost")


def fetch(id, cost, *, timeout=1, args=()):
    """Have parameters with the names of fields."""
    return id, cost, timeout, args


@pytest.mark.parametrize("name", ["cost", "timeout", "args"])
def test_keyword_of_both(dag, name):
    """A keyword of both the code and Function is an error that shows the ways out."""
    with pytest.raises(TypeError) as caught:
        dag.add(fetch, 1, **{name: 2})
    assert f"'{name}' is a parameter of fetch() and a field of Function" in str(caught.value)
    assert f"extra_kwargs={{'{name}': ...}}" in str(caught.value)
    assert f"fields={{'{name}': ...}}" in str(caught.value)


def test_ways_out(dag):
    """`extra_kwargs` is for the code and `fields` for the function; `id` is the function's."""
    ref = dag.add(
        fetch,
        id="mine",
        extra_kwargs={"id": 5, "cost": 1, "timeout": 2},
        fields={"cost": {"cpu": 1}, "timeout": 60},
    )
    assert ref.id == "mine"
    assert (dag[ref].cost, dag[ref].timeout) == ({"cpu": 1}, 60)
    assert execute_local(dag).results["mine"] == (5, 1, 2, ())


def positional_only(cost, /, **kwargs):
    """Take a cost by position, and any keywords."""
    return cost, kwargs


@pytest.mark.parametrize("code", [accept, positional_only, dict], ids=lambda code: code.__name__)
def test_codes_that_take_any_keyword(dag, code):
    """With **kwargs there is no doubt: names of fields are fields, the rest is the code's."""
    record = dag[dag.add(code, *[1] * (code is not dict), cost={"cpu": 1}, colour="red")]
    assert record.cost == {"cpu": 1}
    assert record.extra_kwargs == {"colour": "red"}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"cots": 1}, r"neither a parameter of load\(\) nor a field \(did you mean 'cost'\?"),
        ({"moed": "w"}, "did you mean 'mode'"),
        ({"colour": 1}, r"'colour' is neither a parameter of load\(\) nor a field$"),
        ({"resources": {"cpu": 1}}, r"nor a field \(did you mean 'cost'\?\)"),
        ({"workers": "alice"}, r"nor a field \(did you mean 'node'\?\)"),
        ({"retries": 1}, r"nor a field \(did you mean 'max_retries'\?\)"),
        ({"code": 1}, r"nor a field here: it is the first argument"),
        ({"fields": {"cots": 1}}, r"no field 'cots' \(did you mean 'cost'\?\)"),
        ({"fields": {"cost": {}}, "cost": {}}, "'cost' is given twice"),
        ({"mode": 1, "extra_kwargs": {"mode": 2}}, "'mode' is given twice"),
        ({"extra_kwargs": [1]}, "extra_kwargs must be a mapping"),
        ({"fields": "cost"}, "fields must be a mapping"),
        ({"args": "ab"}, "args must be a list or tuple, not 'ab'"),
        ({"extra_args": 1}, "extra_args must be a list or tuple, not 1"),
    ],
)
def test_wrong_keywords(dag, kwargs, message):
    """Each mistake in the keywords is an error of its own, at once."""
    for build in (dag.add, functools.partial(dag.map, mode="r")):
        if build is dag.add or "mode" not in kwargs:
            with pytest.raises(TypeError, match=message):
                build(load, ["a"], **kwargs)
    assert len(dag) == 0


def test_parameter_that_has_no_keyword(dag):
    """The error says how it is passed."""

    def code(path, /):
        """Do nothing."""

    with pytest.raises(TypeError, match=r"'path' of code\(\) is passed by position only"):
        dag.add(code, path="a")


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("load", "add(load, path)"),
        (Function("f"), "add_function()"),
        (Ref("f", "d"), ""),
        (None, ""),
    ],
)
def test_code_that_is_not_callable(dag, code, hint):
    """The code comes first; the error shows the form."""
    for build in (dag.add, dag.map):
        with pytest.raises(TypeError, match=rf"must be the code, a callable.*{re.escape(hint)}"):
            build(code, ["a"])


# What map iterates over


def called(dag, *args, **kwargs):
    """Return the further arguments of each function that `map` makes."""
    return [dag[ref].extra_args for ref in dag.map(accept, *args, **kwargs)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: [1, 2],
        lambda: (1, 2),
        lambda: range(1, 3),
        lambda: (n for n in (1, 2)),
        lambda: iter([1, 2]),
        lambda: map(int, "12"),
        lambda: {1: 0, 2: 0}.keys(),
        lambda: {0: 1, 3: 2}.values(),
        lambda: collections.deque([1, 2]),
        lambda: np.array([1, 2]),
        lambda: itertools.chain([1], [2]),
    ],
)
def test_iterables(dag, make):
    """`map` iterates over sequences, iterators, views and arrays."""
    assert called(dag, make()) == [(1,), (2,)]


def test_rows_of_arrays(dag):
    """An array of two dimensions is a list of rows, as for the built-in map."""
    assert [row.tolist() for (row,) in called(dag, np.eye(2))] == [[1, 0], [0, 1]]


def test_pandas(dag):
    """A Series or an Index is a list of its values; a DataFrame is one value."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": [1, 2]})
    assert called(dag, frame["x"]) == called(dag, frame.index + 1) == [(1,), (2,)]
    assert called(dag, [1], frame)[0][1] is frame


@pytest.mark.parametrize(
    "value",
    ["text", b"bytes", 5, None, {"k": 1}, Point(1, 2), np.array(3), np.float64(2), Argument("a")],
    ids=repr,
)
def test_scalars_are_repeated(dag, value):
    """Text, dicts, named tuples and whatever is no list go to each call as they are."""
    dag.add(load, id="a")
    refs = dag.map(accept, [1, 2], value)
    assert [dag[ref].extra_args for ref in refs] == [(1, value), (2, value)]
    assert all(dag[ref].extra_args[1] is value for ref in refs)


def test_keywords_are_repeated(dag):
    """A list that is passed by keyword goes to each call as it is, refs in it replaced."""
    a = dag.add(load, id="a")
    refs = dag.map(accept, [1, 2], a, columns=[3, a])
    assert [dag[ref].extra_kwargs for ref in refs] == [{"columns": [3, Argument("a")]}] * 2
    assert [dag[ref].extra_args for ref in refs] == [(1, Argument("a")), (2, Argument("a"))]


def test_zips(dag):
    """Lists are zipped, refs become dependencies, and repeated values fill up."""
    refs = dag.map(accept, dag.map(load, ["a", "b"]), itertools.repeat(7, 2), [[1], [2]], "x")
    functions = [dag[ref] for ref in refs]
    assert [f.args for f in functions] == [(("load", 0),), (("load", 1),)]
    assert [f.extra_args for f in functions] == [(7, [1], "x"), (7, [2], "x")]


def test_empty(dag):
    """Empty lists make no functions."""
    assert dag.map(load, []) == dag.map(load, iter(()), {}.keys()) == []
    assert len(dag) == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (([1, 2, 3], [1, 2]), "argument 1 has 3, argument 2 has 2"),
        (([1, 2], "x", iter([1, 2, 3])), "argument 1 has 2, argument 3 has more than 2"),
        ((iter([1]), [1, 2]), "argument 1 has 1, argument 2 has 2"),
        (([1], []), "argument 1 has 1, argument 2 has 0"),
        (([1, 2], (n for n in itertools.count())), "argument 2 has more than 2"),
    ],
)
def test_lengths_that_differ(dag, args, message):
    """Unlike the built-in map, `map` does not drop items: the error has the lengths."""
    with pytest.raises(ValueError, match=message):
        dag.map(accept, *args)
    assert len(dag) == 0


@pytest.mark.parametrize(
    "endless", [itertools.count(), itertools.cycle("ab"), itertools.repeat(1)], ids=shown
)
@pytest.mark.parametrize("before", [(), ([1, 2],)], ids=["alone", "with a list"])
def test_iterators_without_an_end(dag, endless, before):
    """An iterator that is known to have no end is named."""
    name = type(endless).__name__
    with pytest.raises(ValueError, match=rf"argument {len(before) + 1} .*itertools\.{name}.*end"):
        dag.map(accept, *before, endless)


def test_generator_without_an_end(dag, monkeypatch):
    """A generator is given up after more items than a DAG can hold."""
    monkeypatch.setattr(building, "MOST_ITEMS", 1000)
    with pytest.raises(ValueError, match=r"argument 1 of map.* has no end, or more than 1,000"):
        dag.map(accept, (n for n in itertools.count()))
    assert len(called(dag, iter(range(1000)))) == 1000
    with pytest.raises(ValueError, match=r"argument 1 of map.*more than 1,000"):
        dag.map(accept, range(10**12))


@pytest.mark.parametrize("args", [(), ("text",), ({"k": 1}, 5)], ids=repr)
def test_nothing_to_iterate_over(dag, args):
    """Without a list there is nothing to map; the error says what repeats, and names `add`."""
    with pytest.raises(TypeError, match=r"needs a list.*positional.*add\(\)"):
        dag.map(accept, *args, columns=[1, 2])


def test_sets(dag):
    """A set has no order, so that ids would be random."""
    with pytest.raises(TypeError, match=r"argument 2 of map.* is a set.*sorted"):
        dag.map(accept, [1, 2], {1, 2})


# DAGs as collections of ids


def test_dag_as_a_collection(dag):
    """A DAG is iterated over by id, and looked up by id or Ref."""
    ref = dag.add(load, "a")
    dag.add_function(Function(None, code=load))
    assert list(dag) == ["load", None]
    assert len(dag) == 2
    assert "load" in dag and ref in dag and None in dag
    assert "a" not in dag and Ref("load", "other") not in dag
    assert dag[None].code is load


@pytest.mark.parametrize(
    ("key", "hint"), [("laod", "; did you mean 'load'?"), (7, ""), (Ref("load", "e"), "")]
)
def test_function_that_is_missing(dag, key, hint):
    """A missing id is a KeyError that names the DAG, and an id that resembles it."""
    dag.add(load)
    with pytest.raises(UnknownFunctionError) as caught:
        dag[key]
    assert isinstance(caught.value, KeyError)
    assert f"is not in the DAG 'd'{hint}" in str(caught.value)


def test_functions_to_start_with():
    """A DAG can be made from records, in any order; a second function of an id is refused."""
    functions = [Function("b", ["a"], accept), Function("a", code=load, extra_args=["x"])]
    dag = DAG("d", functions=functions)
    assert list(dag.functions.values()) == functions
    assert execute_local(dag).results["b"] == (["x", "r"],)
    with pytest.raises(DuplicateFunctionError):
        DAG("d", functions=functions * 2)
    with pytest.raises(MissingFunctionError):
        DAG(functions=functions[:1]).validate()


@pytest.mark.parametrize(
    "wrong",
    [Function("a", code=load), {"a": Function("a", code=load)}, DAG("e"), None, "a"],
    ids=["one function", "dict", "DAG", "None", "text"],
)
def test_functions_that_are_no_list(wrong):
    """The error names the argument, and what it takes."""
    with pytest.raises(TypeError, match="functions must be a list of Function objects, not"):
        DAG("d", functions=wrong)


def test_ids_that_contain_what_cannot_be_hashed(dag):
    """A tuple is an id only if all that is in it is hashable."""
    with pytest.raises(TypeError, match=r"the id of a DAG must be hashable, not \('a', \[1\]\)"):
        DAG(("a", [1]))
    with pytest.raises(InvalidFunctionError, match="must be hashable"):
        dag.add_function(Function(("a", [1]), code=load))


def test_ref_as_an_id(dag):
    """A record never contains a Ref, in its id neither."""
    ref = dag.add(load, "a")
    for build in (
        lambda: dag.add(load, "b", id=ref),
        lambda: dag.add_function(Function(ref, code=load)),
    ):
        with pytest.raises(InvalidFunctionError, match="'id': must be hashable and no Ref"):
            build()
    assert list(dag) == ["load"]


def test_copies(dag):
    """A copy is a DAG of its own: what is added to one is not in the other."""
    dag.add(load, "a", id="a")
    assert dag.compute() == {"a": ["a", "r"]}
    for make in (copy.copy, copy.deepcopy):
        twin = make(dag)
        assert twin[twin.add(load, "b")].id == "load"
        assert list(dag) == ["a"]
        assert list(twin.compute()) == ["a", "load"]
    dag.add(load, "c", id="c")
    assert list(dag.compute()) == ["a", "c"]


def test_functions_in_the_place_of_the_id():
    """Functions passed as the id are an error that shows the form."""
    for wrong in ([Function("a", code=load)], Function("a", code=load)):
        with pytest.raises(TypeError, match=r"DAG\(functions=\.\.\.\)"):
            DAG(wrong)


def test_new():
    """`DAG.new` is there for those who come from Elixir."""
    assert DAG.new("d").id == "d"
    assert type(DAG.new()) is DAG


def test_text_of_a_function(dag):
    """A function's text has what was set, so that a DAG can be read."""
    ref = dag.add(len, dag.add(list, "ab"), cost={"cpu": 1})
    assert repr(dag[ref]) == (
        "Function('len', args=('list',), code=<built-in function len>, cost={'cpu': 1})"
    )
    assert repr(Argument("a", argument_inclusion="as_list")) == (
        "Argument('a', argument_inclusion='as_list')"
    )
