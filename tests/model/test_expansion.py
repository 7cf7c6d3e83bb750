"""How the functions of a DAG expand into nodes and calls."""

from __future__ import annotations

import asyncio
import functools
import operator

import pytest

from handoff_dask.model.expansion import (
    Call,
    Listed,
    Slot,
    Transformed,
    effective_cost,
    evaluate,
    expand,
    finish,
    sinks,
)
from handoff_dask.model.function import Argument, Function, collocated
from tests.support import shown


def accept(*args, **kwargs):
    return args


def pack(data, source, target):
    return data


def unpack(data, source, target):
    return data


def nodes_of(*functions):
    return expand({f.id: f for f in functions})


def inline(id_, *args, **kwargs):
    return Function(id_, args, accept, type="inline", **kwargs)


# Nodes


def test_regular_functions_come_first_in_order():
    """A node's index is its function's place among the regular functions."""
    nodes = nodes_of(
        Function("c", [Argument("a", pack), "i"], accept),
        inline("i"),
        Function("a", [], accept),
        Function("b", [Argument("a", pack, unpack)], accept),
    )
    assert [n.index for n in nodes] == list(range(6))
    assert [n.function.id for n in nodes[:3]] == ["c", "a", "b"]
    assert [n.kind for n in nodes] == ["function"] * 3 + ["serializer"] * 2 + ["deserializer"]


def test_a_result_used_twice_is_one_dependency():
    """A node names each node it needs once, in the order of first use."""
    node = nodes_of(
        Function("a", [], accept), Function("b", [], accept), Function("c", ["b", "a", "b"], accept)
    )[2]
    assert node.dependencies == (1, 0)
    assert node.call == Call(accept, (0, 1, 0), (), {})


def test_transforms_are_nodes():
    """The serializer is collocated with the producer, the deserializer with the consumer."""
    producer, consumer, serializer, deserializer = nodes_of(
        Function("a", [], accept, cost={"gpu": 1}),
        Function("b", [Argument("a", (pack, [1, 2]), unpack)], accept, cost={"gpu": 1}),
    )
    assert consumer.dependencies == (deserializer.index,)
    assert deserializer.dependencies == (serializer.index,)
    assert serializer.dependencies == (producer.index,)
    assert (serializer.collocated, deserializer.collocated) == (0, 1)
    assert {(n.source, n.target) for n in (serializer, deserializer)} == {(0, 1)}
    assert (serializer.call.code, serializer.call.extra_args) == (pack, (1, 2))
    assert (deserializer.call.code, deserializer.call.extra_args) == (unpack, ())
    assert serializer.function.id == deserializer.function.id == "b"
    assert dict(serializer.cost) == dict(deserializer.cost) == {}


def test_the_consumer_is_bound_before_its_serializer_runs():
    """Only a serializer has to know where another node will run."""
    nodes = nodes_of(
        Function("a", [], accept), Function("b", [Argument("a", pack, unpack)], accept)
    )
    assert [n.binds for n in nodes] == [None, None, 1, None]


@pytest.mark.parametrize(
    ("argument", "kinds"),
    [
        (Argument("a"), []),
        (Argument("a", pack), ["serializer"]),
        (Argument("a", None, unpack), ["deserializer"]),
    ],
)
def test_transforms_that_are_not_there(argument, kinds):
    """A transform that is None makes no node."""
    nodes = nodes_of(Function("a", [], accept), Function("b", [argument], accept))
    assert [n.kind for n in nodes[2:]] == kinds
    assert nodes[1].dependencies == ((2,) if kinds else (0,))


def test_each_argument_has_its_own_transforms():
    """One producer, transformed in two ways and unchanged, arrives as three values."""
    nodes = nodes_of(
        Function("a", [], accept),
        Function("b", [Argument("a", pack), "a", Argument("a", unpack)], accept),
    )
    assert nodes[1].dependencies == (2, 0, 3)
    assert [nodes[i].call.code for i in (2, 3)] == [pack, unpack]


@pytest.mark.parametrize(
    ("node", "workers", "with_"),
    [
        (None, (), None),
        ("alice", ("alice",), None),
        (0, ("0",), None),
        (["alice", 0, "alice"], ("alice", "0"), None),
        (collocated("a"), (), 0),
    ],
)
def test_places(node, workers, with_):
    """Workers become text, as their names are; a collocation becomes a node's index."""
    expanded = nodes_of(Function("a", [], accept), Function("b", [], accept, node=node))[1]
    assert (expanded.pin, expanded.preferred, expanded.collocated) == (workers, (), with_)


def test_workers_that_are_preferred():
    """With allow_other_workers, the workers of a function are no pin."""
    function = Function("a", [], accept, node=("alice", 0), allow_other_workers=True)
    (expanded,) = nodes_of(function)
    assert (expanded.pin, expanded.preferred) == ((), ("alice", "0"))


@pytest.mark.parametrize(
    ("cost", "effective"),
    [
        (None, {}),
        ({}, {}),
        ({"cpu": 0, "gpu": 0.0}, {}),
        ({"CPU": 2, "Licence": 0.5, "gpu": 0}, {"cpu": 2, "licence": 0.5}),
    ],
)
def test_effective_cost(cost, effective):
    """Names are lower case, and zeros are left out."""
    assert effective_cost(cost) == effective


def test_costs_of_inline_functions():
    """A consumer claims the larger of its own and its inline functions' costs, by resource."""
    outer, other = nodes_of(
        inline("inner", cost={"GPU": 1, "memory": 100}),
        inline("middle", "inner", cost={"cpu": 4}),
        Function("outer", ["middle"], accept, cost={"cpu": 2, "memory": 500}),
        Function("other", [], accept, cost={"cpu": 1}),
    )
    assert dict(outer.cost) == {"cpu": 4, "memory": 500, "gpu": 1}
    assert dict(other.cost) == {"cpu": 1}


def test_arguments_among_the_further_arguments():
    """An Argument in extra_args or extra_kwargs becomes a slot, its function a dependency."""
    node = nodes_of(
        Function(
            "f",
            ["a"],
            functools.partial(accept, Argument("b")),
            [[Argument("c"), 7], Argument("a")],
            {"k": {"x": (Argument("c"),)}},
        ),
        *(Function(id_, code=accept) for id_ in "abc"),
    )[0]
    assert node.dependencies == (1, 2, 3)
    assert node.call.args == (0,)
    assert node.call.slots == (1, 2, 0, 2)
    assert node.call.code.args == (Slot(0),)
    assert node.call.extra_args == ([Slot(1), 7], Slot(2))
    assert node.call.extra_kwargs == {"k": {"x": (Slot(3),)}}


def test_slots_of_inline_functions_and_transforms():
    """An inline function is evaluated once for all places; transforms in slots are nodes."""
    nodes = nodes_of(
        Function("f", ["i"], accept, extra_kwargs={"k": [Argument("i"), Argument("a", pack)]}),
        Function("i", [], accept, [Argument("a")], type="inline"),
        Function("a", code=accept),
    )
    call = nodes[0].call
    assert call.slots == (call.args[0], 1)
    assert call.slots[0] is call.args[0]
    assert call.args[0].slots == (0,)
    assert [nodes[i].kind for i in nodes[0].dependencies] == ["function", "serializer"]


def test_inlined():
    """A node names the inline functions in its call, each once."""
    first, second = nodes_of(
        inline("i"),
        inline("j", "i"),
        inline("unused"),
        Function("first", ["i", "j", "i"], accept),
        Function("second", ["first"], accept),
    )
    assert {f.id for f in first.inlined} == {"i", "j"}
    assert len(first.inlined) == 2
    assert second.inlined == ()


def test_sinks():
    """Sinks are the functions that no node needs: not by an inline function or a transform."""
    nodes = nodes_of(
        Function("direct", [], accept),
        Function("through inline", [], accept),
        Function("transformed", [], accept),
        Function("for an unused inline", [], accept),
        inline("i", "through inline"),
        inline("unused", "for an unused inline"),
        Function("nested", [], accept),
        Function(
            "end",
            ["direct", "i", Argument("transformed", pack)],
            accept,
            extra_args=[[Argument("nested")]],
        ),
    )
    assert sinks(nodes) == ["for an unused inline", "end"]


# Calls


def call_of(*functions):
    """Return the call of the first function."""
    return nodes_of(*functions)[0].call


def test_inline_functions_become_part_of_the_call():
    """An inline function's own dependencies are its consumer's."""
    node = nodes_of(
        Function("f", ["i", "b"], accept),
        inline("i", "a", "b", extra_args=[7], extra_kwargs={"k": 8}),
        Function("a", [], accept),
        Function("b", [], accept),
    )[0]
    assert node.dependencies == (1, 2)
    assert node.call.args == (Call(accept, (0, 1), (7,), {"k": 8}), 1)


def test_an_inline_function_named_twice_is_one_object():
    """An inline function is evaluated once for each user, however often that one names it."""
    first, second, used = call_of(
        Function("f", ["i", Argument("i", pack), "j"], accept), inline("i"), inline("j", "i")
    ).args
    assert isinstance(second, Transformed)
    assert second.item is first
    assert used.args[0] == first
    assert used.args[0] is not first


def test_transforms_of_an_inline_result_stay_in_place():
    """The transforms of an inline function's value are applied in place, serializer first."""
    nodes = nodes_of(Function("f", [Argument("i", pack, (unpack, [1]))], accept), inline("i"))
    assert len(nodes) == 1
    (entry,) = nodes[0].call.args
    assert entry.transforms == ((pack, ()), (unpack, (1,)))


AS_LIST = {"argument_inclusion": "as_list"}


@pytest.mark.parametrize(
    ("args", "inclusion", "entries"),
    [
        (["a", "b"], "variadic", (0, 1)),
        (["a", "b"], "as_list", (Listed((0, 1)),)),
        ([], "as_list", (Listed(()),)),
        ([Argument("a", **AS_LIST), "b"], "variadic", (Listed((0,)), 1)),
        (["a", Argument("b", **AS_LIST)], "variadic", (0, Listed((1,)))),
        (
            [Argument("a", **AS_LIST), Argument("b", **AS_LIST), "a", Argument("b", **AS_LIST)],
            "variadic",
            (Listed((0, 1)), 0, Listed((1,))),
        ),
        (
            [Argument("a", **AS_LIST), "b", Argument("a", **AS_LIST)],
            "as_list",
            (Listed((0, 1, 0)),),
        ),
    ],
)
def test_argument_inclusion(args, inclusion, entries):
    """as_list arguments next to each other share a list; an as_list function has one, flat."""
    call = call_of(
        Function("f", args, accept, argument_inclusion=inclusion),
        Function("a", [], accept),
        Function("b", [], accept),
    )
    assert call.args == entries


# Evaluation


def here():
    return "tcp://here"


def test_evaluate():
    """Values, lists, nested calls, extra arguments and keywords arrive in the right places."""
    nested = Call(operator.add, (0, 1), (), {})
    call = Call(lambda *a, **k: (a, k), (1, nested, Listed((0, nested))), (7,), {"k": 8})
    assert evaluate(call, [1, 2], here) == ((2, 3, [1, 3], 7), {"k": 8})


def test_evaluate_fills_slots_anew():
    """Slots are filled at every start, also in partial calls; what has none stays one object."""
    untouched = [1]
    given = ([Slot(0), untouched], {"k": (Slot(1),)})
    call = Call(functools.partial(accept, Slot(1)), (0,), given, {}, (0, Call(max, (0, 1), (), {})))
    for low in (1, 2):
        partial_arg, arg, listed, keyed = evaluate(call, [low, 9], here)
        assert (partial_arg, arg, keyed) == (9, low, {"k": (9,)})
        assert listed == [low, [1]]
        assert listed[1] is untouched


def test_evaluate_transforms_in_place():
    """Source and target of transforms applied in place are the same worker."""
    seen = lambda data, source, target, *static: [data, source, target, *static]  # noqa: E731
    call = Call(list, (Transformed(0, ((seen, (1,)), (seen, ()))),), (), {})
    assert evaluate(call, ["x"], here) == [["x", here(), here(), 1], here(), here()]


def test_evaluate_makes_one_object_once():
    """An entry that occurs twice is evaluated once per evaluation."""
    count = iter(range(10)).__next__
    shared = Call(count, (), (), {})
    call = Call(accept, (shared, Transformed(shared, ()), Listed((shared,))), (), {})
    assert evaluate(call, [], here) == (0, 0, [0])
    assert evaluate(call, [], here) == (1, 1, [1])


async def later(value, *_):
    await asyncio.sleep(0)
    return value + 1


def test_evaluate_runs_coroutines_everywhere():
    """A coroutine is run to its end in a call, in an inline call and in a transform."""
    inner = Call(later, (0,), (), {})
    call = Call(later, (Transformed(inner, ((later, ()),)),), (), {})
    assert evaluate(call, [1], here) == 4


def test_coroutines_finish_where_a_loop_runs():
    """In a notebook, whose thread has a running loop, coroutines are run as well."""

    async def notebook():
        return finish(later(1))

    assert asyncio.run(notebook()) == 2


def test_failure_of_a_coroutine():
    """An exception of a coroutine reaches the caller, with and without a running loop."""

    async def fail():
        raise KeyError("why")

    async def notebook():
        finish(fail())

    for run in (lambda: finish(fail()), lambda: asyncio.run(notebook())):
        with pytest.raises(KeyError, match="why"):
            run()


@pytest.mark.parametrize("value", [None, [1], asyncio.sleep, (i for i in ())], ids=shown)
def test_what_is_no_coroutine_is_passed_on(value):
    """Only coroutines are run; generators and functions are values."""
    assert finish(value) is value
