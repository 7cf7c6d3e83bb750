"""Codes that carry fields."""

from __future__ import annotations

import dataclasses
import functools

import pytest

from handoff_dask import DAG, Function, InvalidFunctionError, function
from handoff_dask.model.building import KEYWORDS
from handoff_dask.model.marking import Fields


@function(cost={"cpu": 2}, max_retries=1)
def clean(table, level=1):
    """Clean."""
    return [table, level]


class Tool:
    @function(priority=3)
    def method(self):
        """Return itself."""
        return self

    @staticmethod
    @function(priority=4)
    def inside():
        """Do nothing."""

    @function(priority=5)
    @staticmethod
    def outside():
        """Do nothing."""


@function(timeout=7)
class Caller:
    def __call__(self):
        """Do nothing."""


def added(code, *args, **kwargs):
    dag = DAG()
    return dag[dag.add(code, *args, **kwargs)]


def test_a_marked_function_is_an_ordinary_one():
    """Marking changes neither the function nor what it returns."""
    assert clean([1], level=2) == [[1], 2]
    assert (clean.__name__, clean.__doc__) == ("clean", "Clean.")


def test_fields_come_from_the_code():
    """Each function of the code gets its fields; what `add` is given overrides them."""
    assert added(clean, 1).cost == {"cpu": 2}
    assert added(clean, 1).max_retries == 1
    assert added(clean, 1, cost={"gpu": 1}).cost == {"gpu": 1}
    assert added(clean, 1, cost=None).cost is None
    assert added(clean, 1, fields={"max_retries": 0}).max_retries == 0
    dag = DAG()
    assert {dag[ref].max_retries for ref in dag.map(clean, [1, 2])} == {1}


def test_records_have_their_own_fields():
    """A Function is what it says, whatever its code carries."""
    assert Function("f", code=clean).cost is None


def wrapped(code):
    @functools.wraps(code)
    def wrapper(*args):
        return code(*args)

    return wrapper


@pytest.mark.parametrize(
    ("code", "field", "value"),
    [
        (functools.partial(functools.partial(clean, 1), level=2), "max_retries", 1),
        (function(max_retries=9)(functools.partial(clean, 1)), "max_retries", 9),
        (wrapped(clean), "max_retries", 1),
        (Tool().method, "priority", 3),
        (Tool.inside, "priority", 4),
        (Tool.outside, "priority", 5),
        (Caller(), "timeout", 7),
    ],
    ids=["partial", "marked partial", "wrapped", "method", "inside", "outside", "callable"],
)
def test_what_can_be_marked(code, field, value):
    """Partial calls, wrappers, methods and objects with a class that is marked carry fields."""
    assert getattr(added(code), field) == value


def test_marks_add_up():
    """Marking twice keeps the fields of both, and the outer ones count."""

    @function(priority=1, timeout=2)
    @function(priority=5, max_retries=3)
    def code():
        """Do nothing."""

    record = added(code)
    assert (record.priority, record.timeout, record.max_retries) == (1, 2, 3)


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        (lambda: function(cots=1), r"no field 'cots' \(did you mean 'cost'\?\); its fields are"),
        (lambda: function(id="a"), "no field 'id'"),
        (lambda: function(clean), r"by keyword: write @function\(cost=\{'cpu': 2\}\)"),
        (lambda: function({"cpu": 1}), r"by keyword: write @function\(cost=\{'cpu': 2\}\)"),
        (lambda: function(cost={})(len), r"built-in function len.*DAG\.add\(\)"),
        (lambda: function(cost={})("len"), "marks callables, not 'len'"),
    ],
)
def test_wrong_marks(mark, message):
    """A field that does not exist, and what cannot carry any, are errors at once."""
    with pytest.raises(TypeError, match=message):
        mark()


def test_units_that_cannot_be_read():
    """They raise where they are written, and name the code."""
    for wrong in ({"cost": {"memory": "2 XB"}}, {"timeout": "5 parsec"}):
        with pytest.raises(InvalidFunctionError, match="function 'tool', field"):

            @function(**wrong)
            def tool():
                """Do nothing."""


def test_marks_are_copies():
    """What becomes of a dict or list after a function was marked with it changes no function."""
    cost, node = {"cpu": 1}, ["alice"]

    @function(cost=cost, node=node)
    def code():
        """Do nothing."""

    cost["cpu"] = 99
    node.append("bob")
    assert (added(code).cost, added(code).node) == ({"cpu": 1}, ("alice",))


def test_fields_are_those_of_functions():
    """No field of Function is forgotten: `code` comes first, and `results` is output."""
    names = {field.name for field in dataclasses.fields(Function)}
    assert set(KEYWORDS) - {"fields"} == names - {"code", "results"}
    assert set(Fields.__annotations__) < names
