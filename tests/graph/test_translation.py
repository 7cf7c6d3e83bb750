"""From a DAG to a Dask graph: keys, annotations, and what travels in it."""

from __future__ import annotations

import functools
import importlib
import operator
import pickle
import subprocess
import sys
import threading
from types import SimpleNamespace
from unittest.mock import Mock

import cloudpickle
import numpy
import pytest
import toolz
from dask.highlevelgraph import HighLevelGraph
from dask.threaded import get as dask_get
from dask.utils import key_split, methodcaller
from distributed.protocol import pickle as dask_pickle

from handoff_dask.errors import InvalidFunctionError
from handoff_dask.graph.translation import (
    Translator,
    code_prefixes,
    translate,
    translate_plain,
)
from handoff_dask.model.expansion import expand
from handoff_dask.model.function import Argument, Function
from handoff_dask.model.refs import Ref
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.wire.payload import open_call

RUN = "0123456789abcdef0123456789abcdef"
OTHER = "fedcba9876543210fedcba9876543210"


def accept(*args, **kwargs):
    return args


def by_id(*functions):
    return {f.id: f for f in functions}


def translated(*functions, run_id=RUN, **options):
    return translate(expand(by_id(*functions)), run_id, **options)


def annotations(translation):
    """Return the annotations of each node, as Dask works them out."""
    (layer,) = translation.graph.layers.values()
    collected = []
    for key in translation.keys:
        values = {n: v(key) if callable(v) else v for n, v in layer.annotations.items()}
        collected.append({name: value for name, value in values.items() if value is not None})
    return collected


def prefixes_of(*codes):
    """Return the prefixes under which Dask would count functions of these codes."""
    keys = translated(*(Function(i, [], code) for i, code in enumerate(codes))).keys
    return [key_split(key) for key in keys]


# What cannot be sent


class Locked:
    """Cannot be pickled, as lock, code or argument."""

    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self, *args):
        return args


CANNOT_BE_PICKLED = [
    ("code", {"code": Locked()}),
    ("code", {"code": functools.partial(accept, Locked())}),
    ("extra_args", {"extra_args": [1, Locked()]}),
    ("extra_kwargs", {"extra_args": [1], "extra_kwargs": {"k": Locked()}}),
    ("args", {"args": [Argument("source", Locked())]}),
    ("args", {"args": [Argument("source", None, (accept, [Locked()]))]}),
    ("args", {"args": [Argument("inline source", Locked())]}),
]


@pytest.mark.parametrize("plain", [False, True], ids=["annotated", "plain"])
@pytest.mark.parametrize("type_", ["regular", "inline"])
@pytest.mark.parametrize(("field", "fields"), CANNOT_BE_PICKLED)
def test_what_cannot_be_pickled(field, fields, type_, plain):
    """The error names the function that holds it, inline or not, and the field."""
    functions = by_id(
        Function("source", [], accept),
        Function("inline source", [], accept, type="inline"),
        Function(**{"id": "culprit", "args": [], "code": accept, "type": type_, **fields}),
        Function("user", ["culprit", "source"], accept),
    )
    with pytest.raises(InvalidFunctionError, match="pickle") as caught:
        translate_plain(functions, RUN) if plain else translate(expand(functions), RUN)
    assert (caught.value.function_id, caught.value.field) == ("culprit", field)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(
    ("field", "hidden"),
    [
        ("extra_args", lambda ref: [slice(ref, None)]),
        ("extra_args", lambda ref: [{ref: 1}]),
        ("extra_args", lambda ref: [numpy.array([ref], dtype=object)]),
        ("extra_kwargs", lambda ref: {"k": SimpleNamespace(value=ref)}),
        ("code", lambda ref: lambda *args: ref),
    ],
    ids=["slice", "key", "array", "object", "closure"],
)
def test_a_ref_where_no_result_can_take_its_place(field, hidden):
    """It is refused, as a future there is; a Ref of another DAG is a value like any other."""
    function = Function(**{"id": "a", "code": accept, field: hidden(Ref("b", "d"))})
    message = r"holds Ref\(id='b', dag_id='d'\), for whose id write 'b', where no .* as an arg"
    with pytest.raises(InvalidFunctionError, match=message) as caught:
        translated(function, Function("b", code=accept), dag_id="d")
    assert (caught.value.function_id, caught.value.field) == ("a", field)
    translated(function, dag_id="e")


# Keys


def test_same_code_same_prefix():
    """Functions of one code share Dask's prefix, whatever their arguments."""
    make = lambda n: lambda: n  # noqa: E731
    assert len(set(prefixes_of(accept, accept, functools.partial(accept, 1)))) == 1
    assert prefixes_of(accept) == ["accept"]
    assert len(set(prefixes_of(make(1), make(2)))) == 1
    assert len(set(prefixes_of(Locked.__call__, Locked.__call__))) == 1
    assert len(set(prefixes_of(functools.partial(max, 1), functools.partial(max, 2), max))) == 1


class Scale:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, *args):
        return self.factor

    def method(self):
        return self.factor


def test_callable_objects_are_named_after_their_class():
    """Objects of a class share its prefix; none shows an address in memory."""
    assert prefixes_of(Scale(1), Scale(2)) == ["Scale", "Scale"]
    assert prefixes_of(functools.partial(Scale(1), 2)) == ["Scale"]
    assert prefixes_of(Scale(1).method, Scale(2).method) == ["method", "method"]


def module_with(tmp_path, monkeypatch, name, source):
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    module = importlib.import_module(name)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_different_code_different_prefix(tmp_path, monkeypatch):
    """Durations of different code are never averaged, though the names be the same."""
    source = "def load(): pass\nclass Load:\n    def load(self): pass\n"
    first, second = (
        module_with(tmp_path, monkeypatch, f"handoff_user_{n}", source) for n in (1, 2)
    )
    codes = [first.load, second.load, first.Load.load, first.Load().load, len]
    first, second, method, bound, other = prefixes_of(*codes)
    assert len({first, second, method, other}) == 4
    assert method == bound


def test_lambdas():
    """Lambdas differ by where they stand, two on a line included."""
    first, second = lambda: 1, lambda: 2
    three = lambda: 3  # noqa: E731
    names = prefixes_of(first, second, three)
    assert len(set(names)) == 3
    assert all(name.startswith("lambda") for name in names)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (operator.add, "add"),
        ("{}".format, "format"),
        (int, "int"),
        (numpy.add, "add"),
        (methodcaller("upper"), "upper"),
        (Mock(), "Mock"),
        (toolz.curry(accept), "accept"),
        (functools.partial(functools.partial(accept, 1), 2), "accept"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_names(code, name):
    """Callables of every kind are named as their authors named them."""
    assert prefixes_of(code) == [name]


def test_names_dask_would_cut():
    """A name that Dask's key syntax would cut short is kept whole."""

    def odd():
        pass

    odd.__name__ = "résumé-of (x)"
    assert prefixes_of(odd) == ["résumé_of_x"]


def test_prefixes_are_those_dask_finds():
    """What the scheduler is told about durations is under the names that Dask counts by."""
    nodes = expand(
        by_id(Function("a", [], accept), Function("b", [Argument("a", Scale(1), len)], lambda x: x))
    )
    prefixes = code_prefixes(nodes)
    assert [key_split(key) for key in translate(nodes, RUN).keys] == list(prefixes)
    assert prefixes[2:] == ("Scale", "len")


def test_keys_of_two_runs():
    """The same DAG runs twice side by side without sharing a key."""
    functions = [Function(i, [], accept) for i in range(3)]
    first, second = (set(translated(*functions, run_id=run).keys) for run in (RUN, OTHER))
    assert len(first) == len(second) == 3
    assert not first & second


# Annotations


def test_one_layer():
    """The graph is one HighLevelGraph with one layer that holds every node."""
    translation = translated(Function("a", [], accept), Function("b", [Argument("a", len)], accept))
    assert isinstance(translation.graph, HighLevelGraph)
    translation.graph.validate()
    (layer,) = translation.graph.layers.values()
    assert set(layer) == set(translation.keys)
    assert len(translation.keys) == 3
    assert set(layer.annotations) == {"resources", "retries", "handoff"}


def test_annotations():
    """Each key carries its cost map, its retries and the mark of its run."""
    collected = annotations(
        translated(
            Function("a", [], accept, cost={"CPU": 2, "gpu": 0, "licence": 0.5}),
            Function("b", [Argument("a", len)], accept, max_retries=0),
            Function("c", [], accept, retry=RetryPolicy(max_retries=5)),
            policy=RetryPolicy(3),
        )
    )
    assert collected == [
        {
            "resources": {"cpu": 2, "licence": 0.5},
            "retries": 3,
            "handoff": {"run": RUN},
        },
        {"handoff": {"run": RUN}},
        {"retries": 5, "handoff": {"run": RUN}},
        {"handoff": {"run": RUN}},
    ]


# What travels


USER_CODE = """
class Data:
    pass

class Code:
    def __call__(self, *args, **kwargs):
        return len(args), sorted(kwargs)

def load(*args):
    return args

def pack(data, source, target, *static):
    return data
"""


@pytest.mark.parametrize("closure", [True, False])
def test_large_data_of_several_portions(closure):
    """It is sent once, though the first portion has only one function that needs it."""
    data = numpy.zeros(25_000)
    if closure:

        def code():
            return data

        functions = [Function(i, [], code) for i in range(3)]
    else:
        functions = [Function(i, [], accept, extra_args=[data]) for i in range(3)]
    translator = Translator(expand(by_id(*functions)), RUN)
    sizes = []
    for number, portion in enumerate(([0], [1, 2])):
        calls = {index: translator.packed(index) for index in portion}
        graph = translator.graph(number, calls, portion)
        sizes.append(len(cloudpickle.dumps(dict(graph))))
    assert sizes[0] > 200_000 > 20_000 > sizes[1]


def test_the_scheduler_opens_nothing_of_the_users(tmp_path, monkeypatch):
    """The graph opens where the user's modules are not: code, arguments, ids and transforms."""
    user = module_with(tmp_path, monkeypatch, "handoff_user_code", USER_CODE)
    translation = translated(
        Function(user.load, [], user.load, extra_args=[user.Data()]),
        Function("b", [Argument(user.load, (user.pack, [user.Data()]))], user.load),
        Function("i", ["b"], user.Code(), extra_kwargs={"k": user.Data()}, type="inline"),
        Function("c", ["i"], user.Code(), cost={"cpu": 1}),
    )
    sent = dask_pickle.dumps(translation.graph)
    monkeypatch.delitem(sys.modules, "handoff_user_code")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("handoff_user_code")
    opened = dask_pickle.loads(sent)
    assert set(opened.to_dict()) == set(translation.keys)
    (layer,) = opened.layers.values()
    assert layer.annotations["resources"](translation.keys[2]) == {"cpu": 1}


def test_code_is_pickled_once():
    """Ten thousand functions of one code pickle it once, and each its own arguments only."""
    pickled = []

    class Counting:
        def __call__(self, *args):
            return args

        def __reduce__(self):
            pickled.append(self)
            return object, ()

    code = Counting()
    functions = [Function(i, [i - 1] if i else [], code, [i]) for i in range(10_000)]
    graph = translated(*functions).graph
    assert len(graph) == 10_000
    assert len(pickled) == 1


def run_all(graph, keys):
    return list(dask_get(graph.to_dict(), list(keys)))


@pytest.mark.parametrize(
    "make",
    [
        lambda code, i: {"code": code, "extra_args": [i]},
        lambda code, i: {"code": functools.partial(code, i)},
        lambda code, i: {"code": lambda: code(i)},
    ],
    ids=["arguments", "partial calls", "closures"],
)
def test_what_codes_share_is_pickled_once(make):
    """Calls that differ in their arguments take little more than these to send."""

    def code(number):
        return number, "x" * 1000, "%s"

    code.__doc__ = "documentation " * 1000
    translator = Translator(expand(by_id(*(Function(i, **make(code, i)) for i in range(9)))), RUN)
    packed = [translator.packed(i) for i in range(9)]
    assert max(len(call) for _, call in packed[1:]) < 700
    graph = translator.graph(0, dict(enumerate(packed)), range(9))
    values = dask_get(dict(graph), [translator.key(i) for i in range(9)])
    assert [value[0] for value in values] == list(range(9))


class Adder:
    def __init__(self):
        self.calls = []

    def add(self, number):
        self.calls.append(number)
        return self.calls


def closures(first, second):
    def call(third=second):
        call.calls = getattr(call, "calls", 0) + 1
        return first, third, call.calls

    return call


def defaults(i):
    """Return a closure without variables, of parameters with defaults."""
    return lambda first=i, second=(i, i): (first, second)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda i: functools.partial(accept, i, key=i), lambda i: (i,)),
        (lambda i: functools.partial(functools.partial(divmod, i), 3), lambda i: divmod(i, 3)),
        (lambda i: functools.partial(lambda a, b=i: (a, b), -i), lambda i: (-i, i)),
        (lambda i: functools.partial(ADDER.add, i), lambda i: [i]),
        (lambda i: closures(i, str(i)), lambda i: (i, str(i), 1)),
        (lambda i: closures([i], i), lambda i: ([i], i, 1)),
        (defaults, lambda i: (i, (i, i))),
    ],
    ids=["partial", "nested", "of closures", "of methods", "closure", "not plain", "defaults"],
)
def test_codes_that_differ_in_what_they_fixed(make, expected):
    """Each has its own values, name and text, and at each start its own objects."""
    codes = [make(i) for i in range(6)]
    translation = translated(*(Function(i, code=code) for i, code in enumerate(codes)))
    for _ in range(2):
        values = list(dask_get(dict(translation.graph), list(translation.keys)))
        assert values == [expected(i) for i in range(6)]


ADDER = Adder()


def test_closures_keep_their_names():
    """What a closure says of itself is the same on a worker."""

    def named(i):
        def whoami(depth=i):
            """Tell."""
            return i, sys._getframe().f_code.co_name, depth

        return whoami

    def describe(code):
        return code.__name__, code.__qualname__, code.__doc__, code.__module__, code()

    functions = [Function(i, code=named(i)) for i in range(3)]
    translator = Translator(expand(by_id(*functions)), RUN)
    packed = [translator.packed(i) for i in range(3)]
    assert len(packed[2][1]) < 60
    for i, (names, pickled) in enumerate(packed):
        _, call = open_call(pickled, {n: translator._pack.content(n) for n in names})
        assert describe(call.code) == describe(functions[i].code)


def test_arguments_beside_a_template():
    """What is plain goes by itself, anything else with the code: identities are kept."""
    shared = []
    functions = [
        Function(("f", 0), code=accept, extra_args=[1, "text", None]),
        Function(("f", 1), code=accept, extra_args=[2.5, b"", True]),
        Function(("f", 2), code=accept, extra_args=[shared, shared]),
        Function(("f", 3), [("f", 0)], accept, extra_args=["y" * 200_000]),
        Function(("f", 4), [("f", 1)], accept, extra_args=[4]),
        Function(("f", 5), [("f", 1)], accept, extra_args=[5]),
    ]
    translation = translated(*functions, dag_id="d")
    values = list(dask_get(dict(translation.graph), list(translation.keys)))
    assert values[:2] == [(1, "text", None), (2.5, b"", True)]
    assert values[2][0] is values[2][1]
    assert values[3] == (values[0], "y" * 200_000)
    assert values[4:] == [(values[1], 4), (values[1], 5)]


def test_translated_calls():
    """The graph's nodes make the calls of the DAG, on any Dask scheduler."""
    translation = translated(
        Function("a", [], accept, extra_args=[1], extra_kwargs={"k": 2}),
        Function("i", ["a"], accept, extra_args=["i"], type="inline"),
        Function("b", ["i", "a"], accept, argument_inclusion="as_list", extra_args=[3]),
    )
    collected = run_all(translation.graph, translation.keys)
    assert collected == [(1,), ([((1,), "i"), (1,)], 3)]


def test_discarded_results():
    """A node whose result nobody wants runs and leaves None; the others are not touched."""
    translation = translated(
        Function("a", [], accept), Function("b", ["a"], accept), discard=frozenset({1})
    )
    assert run_all(translation.graph, translation.keys) == [(), None]


def test_inline_functions_named_twice_are_evaluated_once():
    """What one function names twice is one value, in both kinds of graph and after the journey."""
    functions = by_id(
        Function("i", [], object, type="inline"),
        Function(
            "a", ["i", "i", Argument("i", lambda data, *_: data)], lambda *args: len(set(args))
        ),
    )
    translation = translate(expand(functions), RUN)
    assert run_all(translation.graph, translation.keys) == [1]
    assert run_all(*translate_plain(functions, RUN)) == [1]


SCRIPT = """
import sys
from handoff_dask import Function
from handoff_dask.graph.translation import translate
from handoff_dask.model.expansion import expand

class Data:
    value = 42

def code(data):
    return data.value

function = Function("a", [], code, extra_args=[Data()])
translation = translate(expand({"a": function}), "0" * 32)
import cloudpickle
sys.stdout.buffer.write(cloudpickle.dumps((translation.graph, translation.keys)))
"""


def test_what_a_script_defines():
    """Functions and classes of a script's __main__ work in a worker, which has another one."""
    sent = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True).stdout
    graph, keys = pickle.loads(sent)
    assert run_all(graph, keys) == [42]


# The plain graph


def test_plain_graph():
    """Without the plugin: regular functions only, transforms in place, no annotations."""
    graph, keys = translate_plain(
        by_id(
            Function("a", [], accept, extra_args=[1], cost={"gpu": 1}),
            Function("i", ["a"], accept, type="inline"),
            Function("b", [Argument("a", (accept, ["s"]), accept), "a", "i"], accept),
        ),
        RUN,
    )
    assert len(keys) == len(graph) == 2
    (layer,) = graph.layers.values()
    assert not layer.annotations
    a = (1,)
    assert run_all(graph, keys) == [
        a,
        (((a, "local", "local", "s"), "local", "local"), a, (a,)),
    ]


def test_plain_graph_travels():
    """The plain graph needs nothing of the user's to be opened either."""
    graph, keys = translate_plain(by_id(Function("a", [], Scale(3))), RUN)
    assert run_all(cloudpickle.loads(cloudpickle.dumps(graph)), keys) == [3]
