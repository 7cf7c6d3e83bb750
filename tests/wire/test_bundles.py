"""Bundles on their way: members, reports and values."""

from __future__ import annotations

import pickle
import threading
from array import array

import numpy as np
import pytest
from dask.sizeof import sizeof
from distributed.protocol import (
    deserialize,
    deserialize_bytes,
    dumps,
    loads,
    serialize,
    serialize_bytes,
    to_serialize,
)

from handoff_dask.wire.bundles import EndedColumns, Member, Values, packed, unpacked


class CannotBeSent:
    def __reduce__(self):
        raise LookupError("not this one")


class Exits:
    def __reduce__(self):
        raise SystemExit(3)


class CannotBeOpened:
    def __reduce__(self):
        return int, ("no number",)


def sent(values):
    """Return values as they arrive on another server."""
    return loads(list(map(bytes, dumps({"data": to_serialize(values)}, context={}))))["data"]


def test_members():
    """Members arrive as they were; what their calls need is not imported."""
    members = [
        Member(7, (0, ("a key",)), (0, -1), 3, True, b"cno_such_module\nno_such_name\n."),
        Member(8, (), (), 0, False, b""),
    ]
    assert unpacked(packed(members)) == members


def test_ended():
    """Attempts that succeeded arrive in order, in a few bytes each."""
    ended = EndedColumns()
    attempts = [
        (position, 1e9 + position, 1e9 + position + 0.5, 0.25, 28, position % 2)
        for position in range(1000)
    ]
    for attempt in attempts:
        ended.add(*attempt)
    data = ended.pack()
    assert list(EndedColumns.unpack(data)) == attempts
    assert len(data) < 35 * len(ended)


def test_values():
    """Values of any kind arrive, by the index of their nodes."""
    values = {
        3: 1,
        1: "text",
        2: None,
        5: (1, [2]),
        4: lambda: 5,
        7: {"a": np.arange(3)},
        8: "x" * 20_000,
        9: array("d", [1.0]),
    }
    arrived = sent(Values(values, {6: b"an error"}))
    assert arrived.keys() == values.keys()
    assert arrived[4]() == 5
    assert arrived[7]["a"].tolist() == [0, 1, 2]
    assert all(arrived[i] == values[i] for i in (3, 1, 2, 5, 8, 9))
    assert arrived.errors == {6: b"an error"}
    assert arrived.problems == {}


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (CannotBeSent(), "of type CannotBeSent cannot be sent: LookupError: not this one"),
        (Exits(), "of type Exits cannot be sent: SystemExit: 3"),
        (threading.Lock(), "of type lock cannot be sent: TypeError: cannot pickle"),
        (CannotBeOpened(), "cannot be opened: ValueError: .*no number"),
    ],
)
def test_a_value_that_does_not_arrive(bad, text):
    """Reading it says why, also when it moved on; the others arrive."""
    arrived = sent(sent(Values({1: "a", 2: bad, 3: "c"})))
    assert dict(arrived) == {1: "a", 3: "c"}
    assert 2 not in arrived
    with pytest.raises(TypeError, match=f"the value {text}"):
        arrived[2]


@pytest.mark.parametrize("bad", [CannotBeSent(), Exits()])
def test_a_value_that_cannot_be_written_to_disk(bad):
    """Then none of them is, and they stay in memory."""
    with pytest.raises(TypeError, match="Could not serialize object of type Values"):
        serialize_bytes(Values({1: "a", 2: bad}), on_error="raise")


def test_values_on_disk():
    """What a worker wrote to its disk is what it reads, also if a value did not arrive there."""
    values = sent(Values({1: "a", 2: CannotBeSent(), 3: np.ones(100_000)}))
    again = deserialize_bytes(serialize_bytes(values, on_error="raise"))
    assert again.problems == values.problems
    assert again[1] == "a"
    assert again[3].sum() == 100_000


def test_large_buffers_are_not_copied():
    """Large arrays and bytes become frames of their own; arrays stay writable."""
    values = Values({1: 1, 2: np.ones(1_000_000), 3: bytes(1_000_000), 4: [np.zeros(50_000), 1]})
    header, frames = serialize(values)
    assert [memoryview(frame).nbytes for frame in frames[1:3]] == [8_000_000, 1_000_000]
    assert np.shares_memory(np.frombuffer(frames[1]), values[2])
    assert frames[2] is values[3]
    assert sum(memoryview(frame).nbytes for frame in frames) < 9_402_000
    arrived = deserialize(header, frames)
    assert np.shares_memory(arrived[2], values[2])
    writable = deserialize_bytes(serialize_bytes(values))
    assert writable[2].flags.writeable and writable[4][0].flags.writeable


def test_sizes():
    """A large value among small ones counts in full, and so do errors."""
    small = sizeof(Values(dict.fromkeys(range(1000), 1)))
    assert small < 100_000

    class Large:
        def __sizeof__(self):
            return 500_000_000

    values = dict.fromkeys(range(1000), 1) | {500: Large()}
    assert 500_000_000 < sizeof(Values(values)) < 500_100_000
    assert sizeof(Values({}, {1: bytes(1000)})) > 1000


def test_values_are_pickled_by_reference_to_the_module():
    """A server that never imported the module opens them: the header names it."""
    header, _ = serialize(Values({}))
    assert header["serializer"] == "dask"
    assert b"handoff_dask.wire.bundles" in header["type-serialized"]
    assert pickle.loads(header["type-serialized"]) is Values
