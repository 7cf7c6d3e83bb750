"""How functions are wired is part of the names of their results; what they cost is not."""

from __future__ import annotations

import functools
import threading

import dask.array
import dask.bag
import pytest

from handoff_dask import DAG, Argument, Function
from handoff_dask.graph.from_dask import functions_of, graph_of
from handoff_dask.model.expansion import expand
from handoff_dask.store.naming import Namer, Unnameable, changes
from tests.store.naming_support import key_of, name_of, named, own_module, value_key


def source(x=0):
    return x


def join(*args, **kwargs):
    return args, kwargs


def send(data, source_node, target_node, *static):
    return data


def joined(*functions, **fields):
    """Return the name of a function that gets results."""
    fields.setdefault("args", ["a", "b"])
    fields.setdefault("code", join)
    # Regular functions are named in the order of the DAG; names of transforms follow.
    return named(DAG(functions=[Function("sink", **fields), *functions]))[0]


A, B = (Function(id_, code=source, extra_args=[n]) for n, id_ in enumerate("ab"))


def test_wiring():
    """Order, inclusion, place, transforms and inlining of arguments count."""
    inline = Function("b", code=source, extra_args=[1], type="inline")
    wired = [
        joined(A, B),
        joined(A, B, args=["b", "a"]),
        joined(A, B, args=["a"]),
        joined(A, B, args=["a", "a"]),
        joined(A, B, argument_inclusion="as_list"),
        joined(A, B, args=["a", Argument("b", argument_inclusion="as_list")]),
        joined(A, B, args=["a"], extra_args=[Argument("b")]),
        joined(A, B, args=["a"], extra_args=[[Argument("b")]]),
        joined(A, B, args=["a"], extra_kwargs={"b": Argument("b")}),
        joined(A, B, args=["a"], code=functools.partial(join, Argument("b"))),
        joined(A, B, args=["a", Argument("b", send)]),
        joined(A, B, args=["a", Argument("b", None, send)]),
        joined(A, B, args=["a", Argument("b", (send, [1]))]),
        joined(A, B, args=["a", Argument("b", send, send)]),
        joined(A, inline),
        joined(A, inline, args=["a", Argument("b", (send, [1]))]),
        joined(A, inline, args=["a", Argument("b", (send, [2]))]),
        joined(A, Function("b", code=source, extra_args=[2], type="inline")),
    ]
    assert len({name.key for name in wired}) == len(wired)


def test_ids_and_settings_do_not_count():
    """Ids, costs, pins, retries, timeouts, priorities and the order in a DAG leave names."""
    first = joined(A, B)
    others = [
        joined(B, A),
        joined(
            Function("x", code=source, extra_args=[0], cost={"cpu": 1}),
            Function("y", code=source, extra_args=[1], max_retries=2, timeout=3, priority=1),
            args=["x", "y"], node="alice", isolate=True, stored=False,
        ),
    ]  # fmt: skip
    assert [name.key for name in others] == [first.key] * 2


def test_dependencies_in_any_order():
    """Nodes are named by their index, in whatever order they come."""
    dag = DAG()
    refs = dag.map(source, range(5))
    total = dag.add(join, refs)
    dag.add(join, total, refs[2])
    nodes = expand(dag.functions)
    assert Namer().names(nodes[::-1]) == Namer().names(nodes)


def test_what_is_upstream_counts():
    """Another result is another argument, and `changes` says which."""
    before, after = joined(A, B), joined(A, Function("b", code=source, extra_args=[7]))
    assert changes(after, before) == ["the result that is passed as argument 1 changed"]
    assert list(before.upstream) == ["argument 0", "argument 1"]


def test_without_a_name():
    """What depends on something without a name has none, and says on what."""
    dag = DAG()
    first = dag.add(source, threading.Lock(), id="a")
    second = dag.add(source, first, id="b")
    dag.add(source, second, id="c")
    dag.add(source, 1, id="d")
    texts = [str(n) if isinstance(n, Unnameable) else "" for n in named(dag)]
    why = "depends on 'a': argument 0 -> lock"
    assert texts == ["argument 0 -> lock", why, why, ""]


def test_store_key():
    """A `store_key` stands for the code, whatever that is; arguments still count."""
    lock = threading.Lock()
    codes = [lambda x: x, lambda x: x + 1, lambda x: lock]
    assert len({key_of(code, 1, store_key="v1") for code in codes}) == 1
    name = name_of(codes[0], 1, store_key="v1")
    assert (name.label, list(name.code)) == ("v1", ["store_key"])
    assert changes(name_of(codes[0], 1, store_key="v2"), name) == ["store_key changed"]
    other = [
        name_of(codes[0], 2, store_key="v1"),
        name_of(codes[0], 1),
        name_of(functools.partial(source, 1), store_key="v1"),
        name_of(functools.partial(source, 2), store_key="v1"),
    ]
    assert len({name.key, *(each.key for each in other)}) == 5


def test_store_key_of_an_inline_function():
    """The `store_key` of an inline function stands for its code in what uses it."""

    def names(code, key):
        inline = Function("b", code=code, type="inline", store_key=key)
        return joined(A, inline).key

    assert names(lambda: 1, "k") == names(lambda: 2, "k") != names(lambda: 2, "l")
    assert names(lambda: 1, None) != names(lambda: 2, None)


def test_an_inline_function_that_is_used_twice():
    """One inline function that is passed twice is one object, unlike two of the same code."""
    both = [Function(id_, code=list, type="inline") for id_ in "ab"]
    assert joined(*both).key != joined(both[0], args=["a", "a"]).key


@pytest.mark.parametrize("as_mapping", [False, True])
def test_changes(as_mapping):
    """Changes are said in words, also against what a store has of an old name."""
    new, old = name_of(join, 1, 2, a=1), name_of(join, 1, 3, 4, b=1)
    words = ["argument 1 changed", "argument 2 is gone", "keyword a is new", "keyword b is gone"]
    assert changes(new, old._asdict() if as_mapping else old) == words
    assert changes(new, new) == []
    assert changes(joined(A, B, args=["a"]), joined(A, B, argument_inclusion="as_list", args=["a"]))


COLLECTIONS = {
    "array": lambda util: dask.array.ones(4, chunks=2).map_blocks(util, dtype=float).sum(),
    "bag": lambda util: dask.bag.from_sequence([1, 2], npartitions=2).map(util).sum(),
    "delayed": lambda util: dask.delayed(util, pure=True)(dask.delayed(util, pure=True)(1)),
}


@pytest.mark.parametrize("make", COLLECTIONS.values(), ids=COLLECTIONS)
def test_helpers_of_collections(monkeypatch, make):
    """A helper counts in the tasks of a Dask collection, also where Dask has fused them."""
    keys = []
    for number in (1, 1, 2):
        source = f"def deep(x): return x + {number}\ndef util(x): return deep(x)"
        helpers = own_module(monkeypatch, "helpers", source)
        functions = functions_of(graph_of([make(helpers.util)], optimize_graph=True))
        *_, name = named(DAG(functions=functions))
        keys.append(name.key)
    assert keys[0] == keys[1] != keys[2]


def test_collections_as_arguments():
    """A collection that is passed as it is has no certain name."""
    with pytest.raises(Unnameable, match=r"^argument 0 -> Array$"):
        value_key(dask.array.ones(3))
