"""Building DAGs; the promises hold for the model's DAG and for the Dask collection."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import pytest

import handoff_dask
from handoff_dask.errors import DuplicateFunctionError, InvalidFunctionError, MissingFunctionError
from handoff_dask.model import dag as model
from handoff_dask.model.function import Function


@pytest.fixture(params=[model.DAG, handoff_dask.DAG], ids=["model", "collection"])
def dag_class(request):
    return request.param


@dataclass(frozen=True)
class Tile:
    x: int
    y: int


class Color(enum.Enum):
    RED = 1


def function(id_, *args):
    return Function(id_, args, max)


@pytest.mark.parametrize("second", [function("a"), function("a", "b")], ids=["equal", "other"])
def test_duplicate(dag_class, second):
    """A second function with the same id is refused, equal or not, and the first one stays."""
    first = function("a")
    dag = dag_class().add_function(first)
    with pytest.raises(DuplicateFunctionError, match="'a'") as caught:
        dag.add_function(second)
    assert caught.value.function_id == "a"
    assert dag.functions["a"] is first


@pytest.mark.parametrize("id_", [["a"], {"a": 1}, (1, [2])], ids=repr)
def test_id_that_cannot_be_hashed(dag_class, id_):
    """An unhashable id is refused at once, by name, and the DAG is unchanged."""
    dag = dag_class()
    with pytest.raises(InvalidFunctionError) as caught:
        dag.add_function(function(id_))
    assert caught.value.field == "id"
    assert repr(id_) in str(caught.value)
    assert len(dag) == 0


@pytest.mark.parametrize("what", ["a", None, len, Function], ids=repr)
def test_what_is_no_function(dag_class, what):
    """Only Functions can be added; the error names a bare callable, which users try first."""
    with pytest.raises(TypeError, match="takes a Function") as caught:
        dag_class().add_function(what)
    assert repr(what) in str(caught.value)


@pytest.mark.parametrize(
    "id_", ["a", "", 0, 1.5, ("a", 1), frozenset("a"), Tile(1, 2), Color.RED, None, b"a"], ids=repr
)
def test_any_hashable_id(dag_class, id_):
    """Anything hashable can be an id, to add, refer to and look up."""
    dag = dag_class().add_function(function(id_)).add_function(function(("uses", id_), id_))
    assert dag.validate() is None
    assert dag.functions[id_].id == id_


def test_calls_chain(dag_class):
    """add_function returns the DAG itself."""
    dag = dag_class()
    assert dag.add_function(function("a")) is dag


def test_functions_in_order_of_addition(dag_class):
    """The functions are in the order in which they were added."""
    functions = [function("c", "a"), function("a"), function("b")]
    dag = dag_class()
    for f in functions:
        dag.add_function(f)
    assert list(dag.functions) == ["c", "a", "b"]
    assert list(dag.functions.values()) == functions
    assert len(dag) == 3


def test_functions_is_read_only(dag_class):
    """Functions cannot be added without the checks of add_function."""
    with pytest.raises(TypeError):
        dag_class().functions["a"] = function("a")


def test_dependencies_may_come_later(dag_class):
    """References are checked when the DAG is validated, not before."""
    dag = dag_class().add_function(function("b", "a"))
    with pytest.raises(MissingFunctionError):
        dag.validate()
    assert dag.add_function(function("a")).validate() is None


def test_fresh_ids(dag_class):
    """DAGs without a name get different ones: 32 hexadecimal digits."""
    first, second = dag_class().id, dag_class().id
    assert first != second
    assert int(first, 16) >= 0
    assert len(first) == 32


@pytest.mark.parametrize("id_", ["mine", ("mine", 1), 0, ""], ids=repr)
def test_given_id(dag_class, id_):
    """A given id is kept, even if it is falsy."""
    assert dag_class(id_).id == id_


def test_empty_dag_is_valid(dag_class):
    """An empty DAG is valid."""
    assert dag_class().validate() is None


def test_repr(dag_class):
    """The repr of a DAG shows its id and its size."""
    assert repr(dag_class("mine").add_function(function("a"))) == "<DAG 'mine': 1 functions>"
