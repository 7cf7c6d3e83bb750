"""The functions of a DAG in columns behave as a dict of them would."""

from __future__ import annotations

import copy
import pickle
import tracemalloc

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handoff_dask import DAG, Function
from handoff_dask.errors import DuplicateFunctionError, InvalidFunctionError

ADD = st.tuples(st.just("add"), st.integers(0, 3))
MAP = st.tuples(st.just("map"), st.sampled_from("xyz"), st.integers(0, 3))
#: Ids that a mapped function may be mistaken for.
STRAY = st.tuples(st.just("stray"), st.sampled_from("xyz"), st.integers(0, 3))


def ids_of(step):
    if step[0] == "add":
        return [step[1]]
    return [step[1:]] if step[0] == "stray" else [(step[1], i) for i in range(step[2])]


def extend(dag, step):
    if step[0] == "map":
        dag.map(pow, range(step[2]), 2, id=step[1])
    else:
        dag.add_function(Function(*ids_of(step), code=pow, extra_args=(0, 2)))


@given(st.lists(ADD | MAP | STRAY, max_size=8))
def test_like_a_dict(steps):
    """Order, length, membership, refused ids: whatever was added how."""
    dag, model = DAG("d"), {}
    for step in steps:
        ids = ids_of(step)
        taken = [i for i in ids if i in model]
        if taken:
            with pytest.raises(DuplicateFunctionError) as caught:
                extend(dag, step)
            assert caught.value.function_id == taken[0]
            continue
        extend(dag, step)
        for number, id_ in enumerate(ids):
            base = number if step[0] == "map" else 0
            model[id_] = Function(id_, code=pow, extra_args=(base, 2))
    functions = dag.functions
    assert list(functions) == list(dag) == list(model)
    assert list(functions.values()) == list(model.values())
    assert dict(functions.items()) == model
    assert functions == model
    assert list(reversed(dag)) == list(reversed(model))
    assert len(dag) == len(functions) == len(functions.values()) == len(model)
    for id_ in [(name, i) for name in "xyz" for i in range(-1, 5)]:
        assert (id_ in dag) == (id_ in model)
        assert functions.get(id_) == model.get(id_)
    for twin in (copy.copy(dag), pickle.loads(pickle.dumps(dag))):
        twin.add(int, id="later")
        assert list(twin) == [*model, "later"]
    assert list(dag) == list(model)


@pytest.mark.parametrize(
    ("id_", "number"),
    [(("f", 1), 1), (("f", 1.0), 1), (("f", True), 1), (("f", numpy.int64(2)), 2)],
)
def test_equal_ids(id_, number):
    """What equals an id finds its function, as in a dict."""
    dag = DAG()
    dag.map(int, range(3), id="f")
    assert dag[id_].extra_args == (number,)


@pytest.mark.parametrize(
    "id_", [("f", -1), ("f", 3), ("f", 1.5), ("f", "1"), ("f", None), ("f", float("nan")), ("f",)]
)
def test_other_ids(id_):
    """What equals none is not in the DAG."""
    dag = DAG()
    dag.map(int, range(3), id="f")
    assert id_ not in dag
    assert id_ not in dag.functions


def test_unhashable_ids():
    """An id that cannot be hashed is refused by name, and nothing of the call is added."""
    dag = DAG()
    with pytest.raises(InvalidFunctionError, match="hashable"):
        dag.map(int, range(3), id=["f"])
    assert not len(dag)


def test_arguments_by_row():
    """Leading refs are dependencies; later ones, and those in containers, are replaced in place."""
    dag = DAG("d")
    raw = dag.map(int, range(2), id="raw")
    base = dag.add(int, id="base")
    shared = {"base": base}
    dag.map(max, raw, base, [1, 2], raw, [[raw[0]], ["x"]], shared, id="f", args=["base"])
    dag.map(max, [raw[0], 5], [1, raw[1]], id="mixed")
    for i in range(2):
        function = dag["f", i]
        assert function.args == ("base", ("raw", i), "base")
        assert function.extra_args[0] == i + 1
        assert function.extra_args[1].id == ("raw", i)
    assert dag["f", 0].extra_args[2][0].id == ("raw", 0)
    assert dag["f", 0].extra_args[3] is dag["f", 1].extra_args[3]
    assert dag["f", 0].extra_args[3]["base"].id == "base"
    assert dag["mixed", 0].args == (("raw", 0),)
    assert dag["mixed", 1].args == ()
    assert dag["mixed", 1].extra_args[1].id == ("raw", 1)
    dag.validate()


def test_slices():
    """Functions of one call can be sliced, and counted from the end."""
    dag = DAG()
    dag.map(int, range(5), id="f")
    (mapped,) = dag.functions.copy()._order
    assert [f.id[1] for f in mapped[1:3]] == [1, 2]
    assert mapped[-1].id == ("f", 4)
    with pytest.raises(IndexError):
        mapped[5]


def test_columns_are_snapshots():
    """Later changes to a list do not change the functions."""
    numbers = [1, 2, 3]
    dag = DAG()
    dag.map(int, numbers)
    numbers[0] = 7
    assert dag["int", 0].extra_args == (1,)


def test_memory():
    """A mapped function takes next to nothing beside its arguments."""
    dag, number = DAG(), 20_000
    tracemalloc.start()
    dag.map(pow, range(number), 2, cost={"cpu": 1})
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / number < 50
