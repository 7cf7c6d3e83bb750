"""Dask collections as DAGs: functions, their fields, and what they give."""

from __future__ import annotations

import operator
from collections import namedtuple

import dask
import dask.array
import dask.bag
import dask.dataframe as dd
import numpy
import pandas
import pytest
from dask import delayed
from dask.highlevelgraph import HighLevelGraph
from hypothesis import given
from hypothesis import strategies as st

from handoff_dask import DAG, Argument, DAGError, Function, MissingFunctionError, execute_local
from handoff_dask.compat.optimizing import optimized
from handoff_dask.compat.task_spec import Task, TaskRef
from handoff_dask.errors import InvalidFunctionError

Pair = namedtuple("Pair", "first second")


def show(*args, **kwargs):
    return args, kwargs


shown = delayed(show, pure=False)


def value_of(collection, dag=None):
    """Return the value of a collection, from the results of its DAG."""
    results = execute_local(dag or DAG.from_dask(collection)).results
    (finish,) = optimized([collection]).finishes
    code, further = finish.postcompute

    def filled(keys):
        return list(map(filled, keys)) if isinstance(keys, list) else results[keys]

    return code(filled(finish.keys), *further)


# What becomes of tasks


def test_a_task_becomes_a_call():
    """Its function is the code, its key the id, and dependencies stand where they were."""
    one = shown(1, dask_key_name="one")
    two = shown(one, 2, [one, {"k": (one, 3)}], k=one, dask_key_name="two")
    assert DAG.from_dask(two).functions["two"] == Function(
        "two",
        args=["one"],
        code=show,
        extra_args=[2, [Argument("one"), {"k": (Argument("one"), 3)}]],
        extra_kwargs={"k": Argument("one")},
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda one: [one, 2],
        lambda one: (one, [one]),
        lambda one: {one, 2},
        lambda one: {"k": one},
        lambda one: {one: 2},
        lambda one: slice(one, 3),
        lambda one: Pair(one, [one]),
        lambda one: iter([one]),
        lambda one: dask.array.ones(4, chunks=2),
    ],
)
def test_arguments_of_any_form(make):
    """Whatever form the arguments have, the code gets what Dask gives it."""
    one = delayed(operator.add)(0, 1)
    whole = shown(make(one), k=make(one))
    numpy.testing.assert_equal(value_of(whole), whole.compute(scheduler="sync"))


def test_delayed_of_all_kinds():
    """Attributes, items, operators, methods, nout and calls of delayed objects work."""
    text = delayed("a-b")
    first, last = delayed(str.split, nout=2)(text, "-")
    made = [first + last, text.upper(), text[0], delayed(str)(first), delayed(Pair)(1, 2).first]
    for one in [*made, delayed(operator.attrgetter)("real")(delayed(3))]:
        assert value_of(one) == one.compute(scheduler="sync")


def test_data_and_aliases_are_no_functions():
    """Literals become arguments, a task goes by the alias that is asked for."""
    graph = {"data": [1, 2], "f": (sum, "data"), "g": "f", "h": "g"}
    dag = DAG.from_dask(in_layers(graph, "h"))
    assert list(dag.functions) == ["h"]
    assert execute_local(dag).results == {"h": 3}


def test_every_key_that_is_asked_for_is_a_function():
    """Data, two aliases of one task, and a task that others use, too."""
    graph = {"data": 5, "f": (operator.neg, "data"), "g": "f", "h": "f", "i": (abs, "h")}
    dag = DAG.from_dask(*(in_layers(graph, key) for key in ("data", "g", "h", "i")))
    assert execute_local(dag).results == {"data": 5, "g": -5, "h": -5, "i": 5}


def in_layers(graph, key, **annotations):
    """Return the delayed object of a key in a graph of one layer."""
    from dask.delayed import Delayed

    layer = dask.highlevelgraph.MaterializedLayer(graph, annotations or None)
    return Delayed(key, HighLevelGraph({key: layer}, {key: set()}))


def test_only_what_is_needed():
    """Tasks that no collection needs are left out."""
    graph = {"f": (abs, -1), "unused": (abs, "f"), "g": (abs, "f")}
    assert set(DAG.from_dask(in_layers(graph, "g")).functions) == {"f", "g"}


def test_fused_tasks_are_one_function():
    """What Dask fuses stays fused, and is named after its key."""
    x = dask.array.arange(4, chunks=2)
    chain = [f for f in DAG.from_dask((x + 1).map_blocks(abs)).functions.values()]
    assert len(chain) == 2
    apart = DAG.from_dask((x + 1).map_blocks(abs), optimize_graph=False)
    assert len(apart) == 6
    assert execute_local(apart).results[chain[0].id].tolist() == [1, 2]


def test_collections_inside_containers():
    """Collections are found where dask.compute finds them."""
    one, two = delayed(1, name="one"), delayed(2, name="two")
    dag = DAG.from_dask([one, {"k": (two, 3)}], id="mine")
    assert dag.id == "mine"
    assert set(dag.functions) == {"one", "two"}


# Annotations


def test_annotations_become_fields():
    """Each has its field; those that Dask does not know either are ignored."""
    with dask.annotate(
        resources={"GPU": 1},
        retries=2,
        priority=7,
        workers=["alice", "bob"],
        allow_other_workers=True,
        owner="me",
        executor=None,
    ):
        first = shown(1, dask_key_name="first")
    with dask.annotate(workers="alice"):
        second = shown(first, dask_key_name="second")
    dag = DAG.from_dask(shown(second, dask_key_name="third"))
    got = dag.functions["first"]
    assert (got.cost, got.max_retries, got.priority) == ({"GPU": 1}, 2, 7)
    assert (got.node, got.allow_other_workers) == (("alice", "bob"), True)
    got = dag.functions["second"]
    assert (got.cost, got.max_retries, got.node) == (None, None, "alice")
    assert not got.allow_other_workers
    assert dag.functions["third"].node is None
    dag.validate()


def test_annotations_that_are_functions_of_the_key():
    """They are asked for each key; None says nothing."""
    with dask.annotate(priority=lambda key: key[1], retries=lambda key: key[1] or None):
        x = dask.array.ones(6, chunks=2)
    priorities = {f.id[1]: (f.priority, f.max_retries) for f in functions(x)}
    assert priorities == {0: (0, None), 1: (1, 1), 2: (2, 2)}


def functions(*collections, **options):
    return DAG.from_dask(*collections, **options).functions.values()


@pytest.mark.parametrize("kind", ["array", "bag", "delayed"])
def test_annotations_survive_optimization(kind):
    """Exactly the annotated tasks carry them, although Dask would fuse these with others."""
    costs = {"resources": {"gpu": 1}}
    if kind == "array":
        x = dask.array.arange(6, chunks=2) + 1
        with dask.annotate(**costs):
            x = x.map_blocks(abs)
        x = (x - 1).sum()
    elif kind == "bag":
        x = dask.bag.from_sequence(range(6), npartitions=3).map(abs)
        with dask.annotate(**costs):
            x = x.map(operator.neg)
        x = x.map(abs).sum()
    else:
        x = [shown(i) for i in range(3)]
        with dask.annotate(**costs):
            x = [shown(i) for i in x]
        x = shown(x)
    with dask.config.set({"optimization.fuse.delayed": True}):
        dag = DAG.from_dask(x)
        assert sum(f.cost == {"gpu": 1} for f in dag.functions.values()) == 3
        assert sum(f.cost is None for f in dag.functions.values()) >= 3
        assert value_of(x, dag) == x.compute(scheduler="sync")


def test_annotations_around_the_call():
    """They are the defaults of tasks that have none of that name."""
    with dask.annotate(retries=5):
        one = shown(1, dask_key_name="one")
    with dask.annotate(retries=1, resources={"cpu": 1}):
        dag = DAG.from_dask(shown(one, dask_key_name="two"))
    fields = {f.id: (f.max_retries, f.cost) for f in dag.functions.values()}
    assert fields == {"one": (5, {"cpu": 1}), "two": (1, {"cpu": 1})}


def test_an_invalid_annotation_is_named():
    """What cannot be a field is found before anything runs."""
    with dask.annotate(resources={"gpu": -1}):
        one = shown(1, dask_key_name="one")
    with pytest.raises(InvalidFunctionError, match=r"'one'.*cost"):
        DAG.from_dask(one).validate()


# Mistakes


@pytest.mark.parametrize("wrong", [(), (1, "x"), ([],)])
def test_no_collection(wrong):
    """A call without any collection is an error that shows what was passed."""
    with pytest.raises(TypeError, match=r"from_dask\(\) takes Dask collections"):
        DAG.from_dask(*wrong)


def test_a_dag_is_no_plain_collection():
    """A DAG has costs that Dask's graph of it lacks: it is refused."""
    dag = DAG("mine").add_function(Function("f", code=int))
    with pytest.raises(TypeError, match=r"'mine'.*execute\(\)"):
        DAG.from_dask([dag])


def test_p2p_that_dask_has_materialized():
    """A P2P shuffle that cannot be replaced any more is an error that says what to do."""
    x = dask.array.ones((4, 4), chunks=(1, 4)).rechunk((4, 1), method="p2p")
    (materialized,) = dask.optimize(x)
    with pytest.raises(DAGError, match=r'P2P.*method="tasks"'):
        DAG.from_dask(materialized)


def test_missing_keys():
    """A graph that refers to a key it lacks is an error that names both."""
    graph = {"f": Task("f", abs, TaskRef("lost"))}
    with pytest.raises(MissingFunctionError, match="'f' refers to 'lost'"):
        DAG.from_dask(in_layers(graph, "f"))


# Expressions


@pytest.mark.filterwarnings("ignore:::dask[.]")
def test_expressions():
    """They are optimized before they are asked for their graph and keys."""
    frame = dd.from_pandas(pandas.DataFrame({"x": range(4), "y": range(4)}), npartitions=2)
    numbers = (frame + 1).x
    with dask.annotate(retries=1):
        dag = DAG.from_dask([numbers])
    assert {f.max_retries for f in dag.functions.values()} == {1}
    results = execute_local(dag).results
    values = [list(results[key]) for key in numbers.optimize().__dask_keys__()]
    assert values == [[1, 2], [3, 4]]
    functions = DAG.from_dask(numbers, optimize_graph=False).functions
    assert functions.keys() >= set(numbers.__dask_keys__())


# Random graphs

plain = st.one_of(st.integers(-5, 5), st.text("ab", max_size=2), st.none())


@st.composite
def graphs(draw):
    """Return delayed objects whose arguments refer to each other at any depth."""
    made = []

    def argument():
        leaves = st.one_of(plain, st.sampled_from(made)) if made else plain
        return st.recursive(
            leaves,
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.tuples(inner, inner),
                st.dictionaries(st.text("xyz", max_size=1), inner, max_size=3),
            ),
            max_leaves=4,
        )

    for number in range(draw(st.integers(1, 8))):
        args = draw(st.lists(argument(), max_size=3))
        kwargs = draw(st.dictionaries(st.sampled_from("pq"), argument(), max_size=2))
        made.append(delayed(show)(*args, **kwargs, dask_key_name=f"show-{number}"))
    return draw(st.lists(st.sampled_from(made), min_size=1, max_size=4))


@given(graphs(), st.booleans())
def test_random_graphs(collections, fuse):
    """Random graphs of delayed objects give what dask.compute gives."""
    with dask.config.set({"optimization.fuse.delayed": fuse}):
        results = execute_local(DAG.from_dask(collections)).results
    (expected,) = dask.compute(collections, scheduler="sync")
    assert [results[c.key] for c in collections] == expected
