"""Functions and arguments, and their behaviour as values."""

from __future__ import annotations

import functools
import operator
import pickle
from dataclasses import FrozenInstanceError, fields

import pytest

from handoff_dask.model.function import (
    Argument,
    Collocated,
    Function,
    argument_id,
    collocated,
    dependency_ids,
    effective_policy,
    nested_arguments,
)
from handoff_dask.model.retry import RetryPolicy


@pytest.mark.parametrize(
    "value",
    [Function("a", [], int), Argument("a"), collocated("a")],
    ids=["Function", "Argument", "Collocated"],
)
@pytest.mark.parametrize("field", ["id", "unheard_of"])
def test_values_do_not_change(value, field):
    """Functions of a DAG cannot be changed."""
    # A frozen class with slots raises TypeError for names it does not have, on some Pythons.
    with pytest.raises((FrozenInstanceError, TypeError)):
        setattr(value, field, "b")
    assert value.id == "a"


def test_only_the_id_is_required():
    """A function needs an id; missing code is reported by ``validate``."""
    with pytest.raises(TypeError, match="id"):
        Function(code=int)


def test_defaults():
    """All other fields have a default, in the order in which they can be passed."""
    function = Function("a")
    optional = {f.name: getattr(function, f.name) for f in fields(function)[1:]}
    assert list(optional)[:4] == ["args", "code", "extra_args", "extra_kwargs"]
    assert optional == {
        "args": (),
        "code": None,
        "extra_args": (),
        "extra_kwargs": {},
        "cost": None,
        "node": None,
        "type": "regular",
        "argument_inclusion": "variadic",
        "max_retries": None,
        "retry": None,
        "timeout": None,
        "results": None,
        "priority": 0,
        "allow_other_workers": False,
        "isolate": None,
        "stored": True,
        "store_key": None,
    }


def test_argument_defaults():
    """An argument without transforms passes its value unchanged, by itself."""
    argument = Argument("a")
    assert (argument.serialization_fn, argument.deserialization_fn) == (None, None)
    assert argument.argument_inclusion == "variadic"


def test_later_changes_of_what_was_passed():
    """Lists and mappings changed after the fact do not change the function."""
    args, extra_args, extra_kwargs, cost, node = ["a"], [1], {"x": 1}, {"cpu": 1}, ["alice"]
    function = Function("b", args, max, extra_args, extra_kwargs, cost, node)
    args.append("c")
    node.append("bob")
    extra_args.append(2)
    extra_kwargs["y"] = 2
    cost["cpu"] = 100
    assert (function.args, function.extra_args) == (("a",), (1,))
    assert (function.extra_kwargs, function.cost) == ({"x": 1}, {"cpu": 1})
    assert function.node == ("alice",)


@pytest.mark.parametrize("field", ["args", "extra_args"])
@pytest.mark.parametrize("value", ["abc", 3, None])
def test_what_is_no_sequence_is_left_for_validation(field, value):
    """A string instead of a list is not split into letters."""
    function = Function(**{"id": "a", "args": [], "code": int, field: value})
    assert getattr(function, field) == value


def test_hashable_whatever_it_holds():
    """Equal functions hash alike, also when their fields cannot be hashed."""
    first = Function("a", [], max, extra_args=[[1], {}], cost={"cpu": 1})
    second = Function("a", (), max, extra_args=([1], {}), cost={"cpu": 1})
    assert {first, second} == {first}
    assert first != Function("a", [], max)


@pytest.mark.parametrize(
    "function",
    [
        Function("a", ["b", Argument("c", (operator.mul, [2]))], max, cost={"cpu": 1}),
        Function(("a", 1), [], int, node=collocated("b"), retry=RetryPolicy(delay=2)),
    ],
    ids=["costs", "collocated"],
)
def test_pickle(function):
    """A function with importable code survives pickling."""
    assert pickle.loads(pickle.dumps(function)) == function


def test_collocated_is_no_plain_id():
    """A pin to a function differs from a pin to a worker of the same name."""
    assert collocated("a") == Collocated("a") != "a"


@pytest.mark.parametrize("id_", ["a", ("a", 1), None])
def test_argument_id(id_):
    """An argument refers to the same function with and without transforms."""
    assert argument_id(id_) == argument_id(Argument(id_)) == id_


def test_dependencies():
    """Arguments count wherever a result can take their place, in the order in which they stand."""
    function = Function(
        "f",
        ["a", Argument("b")],
        functools.partial(max, Argument("c")),
        [[Argument("d"), ("x", {"k": Argument("e")})], functools.partial(min, Argument("f"))],
        {"k": Argument("g"), "s": {Argument("h")}, "again": Argument("a")},
    )
    assert dependency_ids(function) == ["a", "b", "c", "d", "e", "f", "g", "h", "a"]
    assert [arg.id for arg in nested_arguments(function)] == ["c", "d", "e", "f", "g", "h", "a"]


@pytest.mark.parametrize("wrong", [None, 3, "abc", {"a"}], ids=repr)
def test_dependencies_of_an_invalid_function(wrong):
    """Drawings show functions whose fields are wrong."""
    assert dependency_ids(Function("f", wrong, wrong, wrong, wrong)) == []


@pytest.mark.parametrize(
    ("max_retries", "retry", "limit"),
    [
        (None, None, 7),
        (0, None, 0),
        (2, None, 2),
        (None, RetryPolicy(max_retries=0), 0),
        (None, RetryPolicy(), 3),
        (0, RetryPolicy(max_retries=5), 0),
    ],
)
def test_effective_policy(max_retries, retry, limit):
    """A function's max_retries counts first, even if 0, then its policy's, then the run's."""
    function = Function("a", [], int, max_retries=max_retries, retry=retry)
    policy = effective_policy(function, RetryPolicy(7, delay=2))
    assert policy.max_retries == limit
    # The rest is the policy's own or, without one, the run's.
    assert policy.delay == (0 if retry else 2)
