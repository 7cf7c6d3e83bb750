"""Arguments that are equal give one name; arguments that differ, by type or content, never do."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import math
import pathlib
import random
import re
import socket
import sys
import threading
import types
import uuid
from concurrent.futures import Future as ThreadFuture

import numpy
import pandas
import pyarrow
import pytest
from distributed import Client
from hypothesis import given
from hypothesis import strategies as st

from handoff_dask.store.fingerprints import Fingerprints
from handoff_dask.store.naming import Unnameable
from tests.store.naming_support import key_of, own_module, value_key


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


Point = collections.namedtuple("Point", "x y")
Spot = collections.namedtuple("Spot", "x y")


@dataclasses.dataclass
class Data:
    a: object = 1


class Text(str):
    pass


class Tags(set):
    pass


class Slotted:
    __slots__ = ("a",)

    def __init__(self, a):
        self.a = a


class Tokens:
    def __init__(self, token):
        self.token, self.lock = token, threading.Lock()

    def __dask_tokenize__(self):
        return self.token


def nested(value):
    return [value, {"a": (value,)}, {value}]


DISTINCT = [
    1, 1.0, True, "1", b"1", 1 + 0j, None, ..., 0, 0.0, -0.0, False, math.nan, math.inf, -math.inf,
    -1, 10**5000, "", b"", (), [], {}, set(), frozenset(),
    "a" * 2000, "a" * 2001, "\udc80", "ab",
    ("ab",), ("a", "b"), ["a", "b"], {"a", "b"}, {"a": "b"}, {"a": 1, "b": 2}, {"b": 2, "a": 1},
    {1: 2}, {1.0: 2}, [[1], 2], [[1, 2]], [1, [2]], [[[]]], [[], []], range(3), range(4),
    slice(1, 2), slice(2, 1),
    bytearray(b"1"), decimal.Decimal("1"), decimal.Decimal("1.0"), fractions.Fraction(1, 2),
    datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1),
    datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc), datetime.timedelta(1),
    pathlib.PurePosixPath("a"), pathlib.PurePosixPath("b"), uuid.UUID(int=1), re.compile("a"),
    re.compile("a", re.I), Colour.RED, Colour.BLUE, Point(1, 2), Point(2, 1), Spot(1, 2), (1, 2),
    Data(1), Data(2), Data([1]), Slotted(1), Slotted(2), Text("1"), Tags("1"), Tags("12"),
    types.SimpleNamespace(a=1), types.MappingProxyType({1: 3}), collections.Counter("ab"),
    collections.OrderedDict(a=1), collections.deque([1]), collections.deque([1], 5),
    collections.defaultdict(list), collections.defaultdict(dict), Tokens(1), Tokens(2),
    int, float, Data, Colour, list[int], int | None, len, print, Data(1).__eq__, random.Random(1),
    random.Random(2), numpy, math,
    numpy.int64(1), numpy.int32(1), numpy.float64(1), numpy.bool_(True), numpy.datetime64("2020"),
    numpy.datetime64("2020", "s"), numpy.str_("1"), numpy.dtype("i8"), numpy.dtype("i4"),
    numpy.arange(3), numpy.arange(3.0), numpy.arange(4), numpy.arange(3)[::-1],
    numpy.arange(3)[None], numpy.zeros(0), numpy.zeros((0, 2)), numpy.array(1),
    numpy.array(["a"]), numpy.array([b"a"]),
    numpy.array([1, "a"], object), numpy.array([1.0, "a"], object), numpy.array(["a"], "U2"),
    numpy.zeros(2, "f4,f4"), numpy.zeros(2, "i4,f4"), numpy.zeros(2, [("a", "O")]),
    numpy.arange(3).astype(">i8"), numpy.ma.array([1, 2]), numpy.ma.array([1, 2], mask=[0, 1]),
    numpy.array([None]), numpy.random.default_rng(1), numpy.random.default_rng(2),
    pandas.DataFrame({"a": [1, 2]}), pandas.DataFrame({"a": [1.0, 2]}),
    pandas.DataFrame({"b": [1, 2]}),
    pandas.DataFrame({"a": [1, 2]}, index=[1, 2]), pandas.DataFrame({"a": ["x", None]}),
    pandas.DataFrame({"a": [1, 2], "b": [3, 4]}), pandas.DataFrame({"a": [1.0, 2], "b": [3, 4]}),
    pandas.DataFrame({"a": [1, 2], "b": [3.0, 4]}), pandas.DataFrame({"b": [3, 4], "a": [1, 2]}),
    pandas.Series([1, 2]), pandas.Series([1, 2], name="a"), pandas.Series(["a"], dtype="category"),
    pandas.Series([1, None], dtype="Int64"), pandas.Index([1, 2]),
    pandas.date_range("2020", periods=2),
    pandas.date_range("2020", periods=2, tz="UTC"), pandas.Timestamp("2020"),
    pandas.MultiIndex.from_tuples([(1, 2)]), pyarrow.table({"a": [1]}), pyarrow.table({"a": [2]}),
    pyarrow.array([1, None]), pyarrow.array([1, 2]),
]  # fmt: skip


def test_values_that_differ():
    """Whatever differs in type or content has another key, by itself and inside others."""
    keys = collections.defaultdict(list)
    for value in DISTINCT:
        keys[value_key(value)].append(value)
        keys[value_key([value])].append([value])
        keys[value_key(Data([{"a": value}]))].append(value)
    assert [values for values in keys.values() if len(values) > 1] == []


def structured():
    array = numpy.empty(2, numpy.dtype([("a", "i1"), ("b", "f8")], align=True))
    array["a"], array["b"] = 1, 2.0
    return array


def used_frame():
    frame = pandas.DataFrame({"a": [1, 2]})
    frame["b"] = [3, 4]
    frame.values, frame.describe(), frame.index.is_unique, frame.columns.get_loc("a")
    return frame


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a", "b", "c"}, {"c", "b", "a"}),
        (frozenset("abc"), frozenset("cba")),
        (Tags("abc"), Tags("cba")),
        ({1: {"x", "y"}}, {1: {"y", "x"}}),
        (math.nan, float("nan")),
        ("ab" * 1000, "".join(["ab"] * 1000)),
        ([[1], [1]], [[1]] * 2),
        (numpy.arange(6).reshape(2, 3), numpy.asfortranarray(numpy.arange(6).reshape(2, 3))),
        (numpy.arange(6)[::2], numpy.array([0, 2, 4])),
        (numpy.array(["a", None], object), numpy.array(["a", None], object)),
        (structured(), structured().copy()),
        (numpy.zeros((3, 4), "f4,O"), numpy.zeros((3, 4), "f4,O", order="F")),
        (pandas.DataFrame({"a": [1, 2], "b": [3, 4]}), used_frame()),
        (pandas.Series(["a"], dtype="category"), pandas.Series(["a"], dtype="category")),
        (types.SimpleNamespace(a=1, b=2), types.SimpleNamespace(b=2, a=1)),
        (Tokens([1]), Tokens([1])),
        (random.Random(1), random.Random(1)),
        (numpy.random.default_rng(1), numpy.random.default_rng(1)),
        (pyarrow.table({"a": ["x", None]}), pyarrow.table({"a": ["x", None]})),
    ],
)
def test_equal_values(one, other):
    """Neither the order of sets and attributes nor the layout of arrays and tables counts."""
    assert value_key(one) == value_key(other)


def test_memory_maps(tmp_path):
    """A memory map counts by what is in it, not by its file."""
    arrays = []
    for name in "ab":
        array = numpy.memmap(tmp_path / name, "i8", "w+", shape=3)
        array[:] = [1, 2, 3]
        arrays.append(array)
    assert value_key(arrays[0]) == value_key(arrays[1])
    arrays[1][2] = 4
    assert value_key(arrays[0]) != value_key(arrays[1])


def test_large_arrays():
    """Of an array that several threads hash, every part counts."""
    array = numpy.zeros((3000, 1001))  # three chunks
    before = value_key(array)
    assert value_key(numpy.asfortranarray(array)) == before
    for place in (0, array.size // 2, -1):
        changed = array.copy()
        changed.flat[place] = 1
        assert value_key(changed) != before


def test_keyword_arguments():
    """Keyword arguments count by name, in no order; the order of a dict counts."""

    def f(**kwargs): ...

    assert key_of(f, a=1, b=2) == key_of(f, b=2, a=1)
    assert len({key_of(f, a=1, b=2), key_of(f, a=2, b=1), key_of(f, a=1), key_of(f, 1)}) == 4
    assert key_of(f, a={1: 2, 3: 4}) != key_of(f, a={3: 4, 1: 2})


def test_containers_that_contain_themselves():
    """Circles have names: the same for the same circle, another for another."""

    def circle(n):
        inner: list[object] = [n]
        outer = [inner, {"inner": inner}]
        inner.append(outer)
        return outer

    assert value_key(circle(1)) == value_key(circle(1)) != value_key(circle(2))
    data = Data()
    data.a = [data]
    other = Data()
    other.a = (other,)
    assert value_key(data) != value_key(other)


def test_deep_containers():
    """Depth is no matter of Python's stack; what has no end cannot be named."""
    value: list[object] = []
    for _ in range(5000):
        value = [value]
    fingerprints = Fingerprints()
    assert fingerprints.of(value, "value") != fingerprints.of([value], "value")

    class Endless:
        def __reduce__(self):
            return Endless, (), {"next": Endless()}

    with pytest.raises(Unnameable, match="nested too deeply"):
        value_key(Endless())


def test_functions_as_arguments():
    """A function among the arguments counts by what it does."""
    assert value_key(lambda x: x + 1) == value_key(lambda x: x + 1) != value_key(lambda x: x + 2)


class Broken:
    def __reduce__(self):
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "make",
    [
        threading.Lock,
        threading.local,
        socket.socket,
        Broken,
        ThreadFuture,
        lambda: (i for i in "a"),
        lambda: sys._getframe(),
        lambda: memoryview(b"a"),
        lambda: sys.stdout,
        lambda: object.__new__(Client),
        type("Future", (), {"__module__": "distributed.client"}),
    ],
)
def test_values_that_cannot_be_named(make):
    """What has a state that cannot be seen is refused, with the path to it."""
    value = make()
    try:
        with pytest.raises(Unnameable, match=r"^argument 0 -> \['a'\] -> \[0\] -> attribute b -> "):
            value_key({"a": [types.SimpleNamespace(b=value)]})
    finally:
        if isinstance(value, socket.socket):
            value.close()


def test_modules_as_arguments(monkeypatch):
    """A module of the user's counts by all that is in it; an installed one by its version."""
    first = value_key(own_module(monkeypatch, "helpers", "A = 1"))
    assert value_key(own_module(monkeypatch, "helpers", "A = 2")) != first
    module = own_module(monkeypatch, "helpers", "import threading\nlock = threading.Lock()")
    with pytest.raises(Unnameable, match="argument 0 -> attribute lock -> lock"):
        value_key(module)


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.0, -0.0, 1.0, -2.0])
    | st.text("ab1", max_size=3)
    | st.binary(max_size=2)
    | st.sampled_from([10**20, "é", Colour.RED])
)
HASHABLE = (
    LEAVES | st.lists(LEAVES, max_size=3).map(tuple) | st.frozensets(LEAVES | st.frozensets(LEAVES))
)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(LEAVES, inner, max_size=3)
        | inner.map(Data)
    ),
    max_leaves=12,
)


def shown(value):
    """Describe a value with its types; sets in an order that does not depend on hashes."""
    kind = type(value).__name__
    if isinstance(value, (set, frozenset)):
        return (kind, *sorted(map(repr, map(shown, value))))
    if isinstance(value, (list, tuple)):
        return (kind, *map(shown, value))
    if isinstance(value, dict):
        return (kind, *((shown(k), shown(v)) for k, v in value.items()))
    return (kind, shown(value.a)) if isinstance(value, Data) else (kind, repr(value))


def rebuilt(value):
    """Return an equal value of other objects."""
    if isinstance(value, (list, tuple, frozenset)):
        return type(value)([rebuilt(item) for item in value])
    if isinstance(value, dict):
        return {rebuilt(k): rebuilt(v) for k, v in value.items()}
    return Data(rebuilt(value.a)) if isinstance(value, Data) else value


@given(VALUES)
def test_equal_values_have_equal_names(value):
    """A value that was built once more has the same name."""
    assert value_key(rebuilt(value)) == value_key(value)


@given(VALUES, VALUES)
def test_different_values_have_different_names(one, other):
    """Two values have one name if they are equal in content and types, and only then."""
    assert (value_key(one) == value_key(other)) == (shown(one) == shown(other))


@given(st.lists(VALUES, max_size=3), st.lists(VALUES, max_size=3))
def test_argument_lists(one, other):
    """Arguments do not run into each other."""
    same = shown(one) == shown(other)
    assert (key_of(print, *one) == key_of(print, *other)) == same
