"""Every mistake in a DAG is found before anything runs, and its culprits are named."""

from __future__ import annotations

import functools
import math
import operator
from decimal import Decimal
from fractions import Fraction

import pytest

from handoff_dask.errors import (
    CyclicDependencyError,
    InvalidFunctionError,
    MissingFunctionError,
)
from handoff_dask.model.dag import DAG
from handoff_dask.model.function import Argument, Function, collocated
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.model.validation import cost_problem
from tests.support import shown

CHAIN = 5_000
listed = functools.partial(Argument, argument_inclusion="as_list")


def dag_of(*functions):
    dag = DAG("d")
    for function in functions:
        dag.add_function(function)
    return dag


def accept(*args, **kwargs):
    """Take any arguments."""


def chain(length, **first):
    """Return functions 0 <- 1 <- ..., the last of them added first."""
    rest = [Function(i, [i - 1], accept) for i in range(length - 1, 0, -1)]
    return [*rest, Function(**{"id": 0, "args": [], "code": accept, **first})]


# References


def test_unknown_ids():
    """Every missing id is reported together with the function that refers to it."""
    dag = dag_of(
        Function("a", ["b", "nowhere"], accept),
        Function("b", [Argument("never")], accept),
        Function("c", [("no", 1), "nowhere"], accept, node=collocated("none")),
        Function("d", ["nil"], accept, type="inline"),
        Function("e", code=accept, extra_kwargs={"x": [Argument("nested")]}),
    )
    with pytest.raises(MissingFunctionError) as caught:
        dag.validate()
    error = caught.value
    assert error.references == (
        ("a", "nowhere"),
        ("b", "never"),
        ("c", ("no", 1)),
        ("c", "nowhere"),
        ("c", "none"),
        ("d", "nil"),
        ("e", "nested"),
    )
    assert error.function_id == "a"
    assert error.missing == ("nowhere", "never", ("no", 1), "none", "nil", "nested")
    assert "'a' refers to 'nowhere'" in str(error)
    assert "Did you mean" not in str(error)


@pytest.mark.parametrize(("known", "typed"), [("resize", "resise"), (("tile", 10), ("tile", 1))])
def test_unknown_id_resembling_a_known_one(known, typed):
    """A typing error gets a suggestion."""
    dag = dag_of(Function(known, [], accept), Function("user", [typed], accept))
    with pytest.raises(MissingFunctionError) as caught:
        dag.validate()
    assert caught.value.similar == known
    assert f"Did you mean {known!r}?" in str(caught.value)


def test_ids_are_not_compared_as_text():
    """The number 1 is not the string "1"."""
    with pytest.raises(MissingFunctionError):
        dag_of(Function(1, [], accept), Function("user", ["1"], accept)).validate()


# Cycles


@pytest.mark.parametrize("arg", ["a", Argument("a")], ids=["id", "Argument"])
@pytest.mark.parametrize("type_", ["regular", "inline"])
def test_self_dependency(arg, type_):
    """A function that depends on itself is a cycle of one."""
    with pytest.raises(CyclicDependencyError) as caught:
        dag_of(Function("a", ["b", arg], accept, type=type_), Function("b", [], accept)).validate()
    assert caught.value.cycle == ("a",)
    assert str(caught.value) == "function 'a' depends on itself"


@pytest.mark.parametrize("first", [0, 1, 2])
def test_cycle_in_the_order_of_results(first):
    """The error has the cycle in the order of the results, each function once, and no other."""
    circle = [
        Function("a", ["c"], accept),
        Function("b", ["a"], accept, type="inline"),
        Function("c", ["source"], accept, [{"k": [Argument("b")]}]),
    ]
    dag = dag_of(
        Function("after", ["c"], accept),
        *circle[first:],
        *circle[:first],
        Function("source", [], accept),
    )
    with pytest.raises(CyclicDependencyError) as caught:
        dag.validate()
    cycle = caught.value.cycle
    start = cycle.index("a")
    assert cycle[start:] + cycle[:start] == ("a", "b", "c")
    path = " -> ".join(repr(i) for i in (*cycle, cycle[0]))
    assert str(caught.value) == f"the dependencies form a cycle: {path}"


def test_paths_that_meet_are_no_cycle():
    """A result used twice, directly and through others, is not a cycle."""
    dag_of(
        Function("sink", ["left", "right", "source", "source"], accept),
        Function("left", ["source"], accept),
        Function("right", ["left", "source"], accept),
        Function("source", [], accept),
    ).validate()


@pytest.mark.parametrize("turn", [1, -1], ids=["sink first", "source first"])
def test_long_chain(turn):
    """A chain longer than Python's stack is valid."""
    assert dag_of(*chain(CHAIN)[::turn]).validate() is None


def test_long_cycle():
    """A cycle longer than Python's stack is found, whole and in order."""
    with pytest.raises(CyclicDependencyError) as caught:
        dag_of(*chain(CHAIN, args=[CHAIN - 1])).validate()
    start = caught.value.cycle.index(0)
    assert caught.value.cycle[start:] + caught.value.cycle[:start] == tuple(range(CHAIN))


# Places


def test_inline_function_with_a_node():
    """An inline function cannot have a node."""
    for node in ("worker-1", collocated("a")):
        dag = dag_of(Function("a", [], accept), Function("b", [], accept, type="inline", node=node))
        with pytest.raises(InvalidFunctionError, match="inline") as caught:
            dag.validate()
        assert (caught.value.function_id, caught.value.field) == ("b", "node")


def test_collocation_with_an_inline_function():
    """Nothing can be collocated with an inline function, and the error names both."""
    dag = dag_of(
        Function("a", [], accept, type="inline"), Function("b", [], accept, node=collocated("a"))
    )
    with pytest.raises(InvalidFunctionError, match=r"'b'.*'a'.*inline") as caught:
        dag.validate()
    assert (caught.value.function_id, caught.value.field) == ("b", "node")


def test_missing_collocation():
    """A collocation with a missing function is a missing reference."""
    dag = dag_of(Function("load", [], accept), Function("b", [], accept, node=collocated("laod")))
    with pytest.raises(MissingFunctionError, match="'load'") as caught:
        dag.validate()
    assert caught.value.references == (("b", "laod"),)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_circular_collocation(size):
    """Circular collocations are an error that says so."""
    follow = [Function(i, [], accept, node=collocated((i + 1) % size)) for i in range(size)]
    with pytest.raises(CyclicDependencyError, match="collocat") as caught:
        dag_of(*follow, Function("outside", [], accept, node=collocated(0))).validate()
    assert sorted(caught.value.cycle) == list(range(size))
    assert caught.value.relation == "is collocated with"


def test_collocations_in_chains():
    """Chains of collocations are valid, along and against the flow of results."""
    dag_of(
        Function("a", [], accept, node="worker-1"),
        Function("b", ["a"], accept, node=collocated("a")),
        Function("c", ["d"], accept, node=collocated("b")),
        Function("d", [], accept, node=collocated("c")),
    ).validate()


@pytest.mark.parametrize(
    "node", ["", True, 1.5, [], ["w", ""], [collocated("a")], collocated(["a"])], ids=repr
)
def test_node_that_is_no_place(node):
    """A pin is a name, an address, a host or a collocation."""
    with pytest.raises(InvalidFunctionError) as caught:
        dag_of(Function("a", [], accept, node=node)).validate()
    assert (caught.value.function_id, caught.value.field) == ("a", "node")


@pytest.mark.parametrize(
    "node", ["alice", "tcp://127.0.0.1:1234", "10.0.0.1", 0, ["alice", 0]], ids=repr
)
def test_places(node):
    """Names (Dask's numbers too), addresses and hosts are pins, one or several."""
    assert dag_of(Function("a", [], accept, node=node)).validate() is None


# Fields


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("code", "len"),
        ("code", None),
        ("code", functools.partial(accept, Argument(["a"]))),
        ("args", "abc"),
        ("args", [["a"]]),
        ("args", [Argument(["a"])]),
        ("args", [Argument("b", serialization_fn="pickle")]),
        ("args", [Argument("b", deserialization_fn=(len,))]),
        ("args", [Argument("b", serialization_fn=(len, 9))]),
        ("args", [Argument("b", serialization_fn=([9], len))]),
        ("args", [Argument("b", argument_inclusion="list")]),
        ("extra_args", "abc"),
        ("extra_args", [[Argument(["a"])]]),
        ("extra_args", [listed("b")]),
        ("extra_kwargs", {"x": (listed("b"),)}),
        ("extra_kwargs", {"x": Argument("b", serialization_fn="pickle")}),
        ("extra_kwargs", [("x", 1)]),
        ("extra_kwargs", {1: "x"}),
        ("type", "lazy"),
        ("argument_inclusion", "list"),
        ("max_retries", -1),
        ("max_retries", True),
        ("retry", RetryPolicy),
        ("timeout", math.nan),
        ("timeout", "-1s"),
        ("priority", math.inf),
        ("priority", "high"),
        ("allow_other_workers", True),
        ("allow_other_workers", "yes"),
        ("stored", None),
        ("stored", "yes"),
        ("store_key", ""),
        ("store_key", 1),
    ],
    ids=shown,
)
def test_field_that_is_wrong(field, value):
    """Each field is checked; the error names the function, the field and the value."""
    dag = dag_of(
        Function("b", [], accept), Function(**{"id": "a", "args": [], "code": accept, field: value})
    )
    with pytest.raises(InvalidFunctionError) as caught:
        dag.validate()
    assert (caught.value.function_id, caught.value.field) == ("a", field)
    assert "function 'a'" in str(caught.value)


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        (Function("a"), "code=..."),
        (Function("a", accept), "pass a callable as code=..."),
        (Function("a", code=accept, extra_args=[listed("b")]), r"\[Argument\('b'\)\]"),
        (Function("a", code=accept, node=collocated("b"), allow_other_workers=True), "preference"),
    ],
    ids=["no code", "code in the place of args", "as_list", "collocated"],
)
def test_hints(function, hint):
    """The error of a likely slip shows the right form."""
    with pytest.raises(InvalidFunctionError, match=hint):
        dag_of(function, Function("b", code=accept)).validate()


def test_preferred_workers():
    """A pin may be a preference; a priority may be negative, and a fraction."""
    function = Function("a", [], accept, node=("a", "b"), allow_other_workers=True, priority=-0.5)
    assert dag_of(function).validate() is None


def test_retry_policy_that_is_wrong():
    """For a mistake inside a policy, the error names the policy's field."""
    with pytest.raises(InvalidFunctionError, match="-1") as caught:
        dag_of(Function("a", [], accept, retry=RetryPolicy(delay=-1))).validate()
    assert (caught.value.function_id, caught.value.field) == ("a", "retry.delay")


@pytest.mark.parametrize(
    ("cost", "culprit"),
    [
        (2, "2"),
        ([("cpu", 1)], "cpu"),
        ({1: 1}, "1"),
        ({"": 1}, "''"),
        ({"cpu": True}, "True"),
        ({"cpu": False}, "False"),
        ({"cpu": -1}, "-1"),
        ({"memory": math.nan}, "nan"),
        ({"memory": math.inf}, "inf"),
        ({"cpu": "2"}, "'2'"),
        ({"cpu": None}, "None"),
        ({"cpu": Decimal(1)}, "Decimal"),
        ({"cpu": 10**400}, "finite"),
        ({"gpu": 1, "GPU": 1}, "'gpu' and 'GPU'"),
    ],
    ids=repr,
)
def test_cost_that_is_wrong(cost, culprit):
    """A cost is a mapping to finite numbers >= 0, whose names differ by more than case."""
    with pytest.raises(InvalidFunctionError) as caught:
        dag_of(Function("a", [], accept, cost=cost)).validate()
    assert (caught.value.function_id, caught.value.field) == ("a", "cost")
    assert culprit in str(caught.value)


@pytest.mark.parametrize(
    "cost", [{}, {"cpu": 0}, {"cpu": 0.25, "Licence": 1}, {"cpu": Fraction(1, 3), "memory": 10**12}]
)
def test_costs(cost):
    """Zero, fractions and any other name are valid costs."""
    assert cost_problem(cost) is None


# Signatures


def two(a, b):
    """Take two."""


def one_or_two(a, b=None, *, key=None):
    """Take one or two, and a key."""


def supply(code):
    """A decorator that passes the first argument itself."""

    @functools.wraps(code)
    def wrapper(*args):
        return code("connection", *args)

    return wrapper


class Caller:
    def __call__(self, a):
        """Take one."""

    def method(self, a):
        """Take one besides self."""


@pytest.mark.parametrize(
    "function",
    [
        Function("f", ["x"], two),
        Function("f", ["x"], two, extra_args=[1, 2]),
        Function("f", ["x", "y"], two, argument_inclusion="as_list"),
        Function("f", [listed("x"), listed("y")], two),
        Function("f", ["x"], one_or_two, extra_kwargs={"kye": 1}),
        Function("f", ["x"], one_or_two, extra_kwargs={"a": 1}),
        Function("f", ["x", "y"], functools.partial(two, 1)),
        Function("f", ["x", "y"], Caller()),
        Function("f", ["x", "y"], Caller().method),
        Function("f", ["x", "y"], functools.lru_cache(Caller().method)),
        Function("f", ["x", "y"], lambda: None),
        Function("f", ["x", "y", "x"], operator.mul),
        Function("f", [], Caller, extra_args=[1]),
        Function("f", ["x"], two, type="inline"),
    ],
    ids=lambda f: getattr(f.code, "__name__", type(f.code).__name__),
)
def test_arguments_that_do_not_fit(function):
    """A call that could only raise TypeError is refused, and the error shows the arguments."""
    dag = dag_of(Function("x", [], accept), Function("y", [], accept), function)
    with pytest.raises(InvalidFunctionError, match="cannot be called with") as caught:
        dag.validate()
    assert (caught.value.function_id, caught.value.field) == ("f", "args")


@pytest.mark.parametrize(
    "function",
    [
        Function("f", ["x", "y"], two),
        Function("f", ["x"], two, extra_args=[1]),
        Function("f", ["x"], two, extra_kwargs={"b": 1}),
        Function("f", ["x"], one_or_two, extra_kwargs={"key": 1}),
        Function("f", ["x", "y"], one_or_two, argument_inclusion="as_list", extra_args=[1]),
        Function("f", ["x", listed("x"), listed("y")], two),
        Function("f", [], Caller().method, argument_inclusion="as_list"),
        Function("f", ["x"], supply(two)),
        Function("f", ["x", "y"], functools.lru_cache(two)),
        Function("f", ["x"], "{}".format),
        Function("f", ["x"], int, extra_kwargs={"base": 2}),
        Function("f", ["x"], dict, extra_kwargs={"anything": 2}),
        Function("f", ["x"] * 3, max),
        Function("f", ["x"], operator.itemgetter(1)),
    ],
    ids=lambda f: getattr(f.code, "__name__", type(f.code).__name__),
)
def test_arguments_that_fit(function):
    """A call that can succeed is not refused, even if a decorator hides its signature."""
    dag_of(Function("x", [], accept), Function("y", [], accept), function).validate()


def test_same_code_with_different_arguments():
    """Each combination of keywords is checked, even for the same code."""
    dag = dag_of(
        Function("x", [], accept),
        Function("fits", ["x"], two, extra_args=[1]),
        Function("does not", ["x"], two, extra_args=[1], extra_kwargs={"c": 1}),
    )
    with pytest.raises(InvalidFunctionError) as caught:
        dag.validate()
    assert caught.value.function_id == "does not"


def test_validation_runs_no_code():
    """Validation calls none of the DAG's functions."""

    def explode(*args):
        raise AssertionError("called")

    dag_of(
        Function("a", [], explode),
        Function("b", [Argument("a", explode, (explode, [1]))], explode),
    ).validate()


class Taker:
    def one(self, x):
        return x


def closures(number):
    """Return functions of one code that accept different numbers of arguments."""

    def make(*defaults):
        def two(x, y):
            return x, y

        two.__defaults__ = defaults
        return two

    return [make(), make(1), make(1, 2)][number]


@pytest.mark.parametrize(
    ("fits", "misfits"),
    [
        (functools.partial(pow, 1), functools.partial(pow, 1, 2, 3)),
        (functools.partial(closures(2), y=2), functools.partial(closures(2), x=2)),
        (closures(1), closures(0)),
        (Taker().one, Taker.one),
    ],
    ids=["partial", "keywords", "defaults", "bound"],
)
def test_similar_codes_are_told_apart(fits, misfits):
    """That the arguments of one function fit does not hide that those of a similar one do not."""
    dag = DAG(functions=[Function("fits", code=fits, extra_args=["1"])])
    dag.validate()
    dag.add_function(Function("misfits", code=misfits, extra_args=["1"]))
    with pytest.raises(InvalidFunctionError, match="cannot be called with") as caught:
        dag.validate()
    assert caught.value.function_id == "misfits"


@pytest.mark.parametrize("field", ["priority", "timeout", "max_retries", "type", "node", "retry"])
def test_settings_that_others_have_too(field):
    """A wrong setting is found behind functions whose settings are right."""
    functions = [Function(i, code=max, cost={"cpu": 1}) for i in range(3)]
    wrong = Function("wrong", code=max, cost={"cpu": 1}, **{field: ()})
    with pytest.raises(InvalidFunctionError) as caught:
        DAG(functions=[*functions, wrong]).validate()
    assert (caught.value.function_id, caught.value.field) == ("wrong", field)
