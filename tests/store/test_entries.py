"""The format of entries: values come back as they were, and nothing damaged ever does."""

from __future__ import annotations

import io
import pickle
import random
import threading
from typing import Any

import numpy as np
import pandas as pd
import pytest
from distributed.protocol.compression import compressions
from distributed.protocol.serialize import dask_deserialize, dask_serialize

from handoff_dask.store import entries
from handoff_dask.store.entries import FORMAT, Location, Manifest, Unreadable
from tests.store.conftest import MADE, location

HERE = location("here")
KEY = b"secret"


def entry(value: object, where: Location = HERE, key: bytes | None = None) -> bytes:
    file = io.BytesIO()
    size = entries.write(file, entries.frames_of(value), where, MADE, key)
    assert size == len(file.getvalue())
    return file.getvalue()


def value_in(content: bytes, key: bytes | None = None) -> Any:
    head, value = entries.read(io.BytesIO(content), HERE, key)
    assert (head.made, head.location) == (MADE, HERE._replace(manifest=None))
    assert entries.check(io.BytesIO(content), HERE, key) == head
    return value


def why(content: bytes, key: bytes | None = None) -> str:
    with pytest.raises(Unreadable) as caught:
        entries.check(io.BytesIO(content), HERE, key)
    with pytest.raises(Unreadable, match=str(caught.value).replace(".", r"\.")):
        entries.read(io.BytesIO(content), HERE, key)
    return str(caught.value)


class Refusing:
    """Can only be serialised by what Dask was told about it."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("not with pickle")


@dask_serialize.register(Refusing)
def _serialize(obj: Refusing) -> Any:
    return {"sign": -1}, [str(obj.value).encode()]


@dask_deserialize.register(Refusing)
def _deserialize(header: Any, frames: Any) -> Refusing:
    return Refusing(int(bytes(frames[0])) * header["sign"] * -1)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        b"x" * 200_000,
        list(range(100_000)),
        {"a": [1.5, ("b", {3})]},
        "text " * 2_000_000,
        bytearray(b"x" * 5_000_000),
        range(3),
    ],
    ids=lambda value: f"{type(value).__name__}-{len(pickle.dumps(value))}",
)
@pytest.mark.parametrize("key", [None, KEY], ids=["unsigned", "signed"])
def test_values_come_back(value: object, key: bytes | None) -> None:
    """Small and large ones, of one frame or several blocks, with a key or without."""
    assert value_in(entry(value, key=key), key) == value


def test_arrays_come_back_as_writable_as_they_were() -> None:
    """Buffers small and large, their order and whether they can be written to."""
    arrays = [
        np.arange(10),
        np.zeros(0),
        np.random.default_rng(0).random((1000, 1300)),
        np.asfortranarray(np.arange(200_000.0).reshape(400, 500)),
        np.arange(200_000)[::2],
    ]
    fixed = np.arange(100_000)
    fixed.flags.writeable = False
    *back, still_fixed = value_in(entry([*arrays, fixed]))
    for before, after in zip(arrays, back, strict=True):
        assert (before == after).all() and after.dtype == before.dtype
        assert after.flags.writeable
        assert after.flags.f_contiguous == before.flags.f_contiguous or before.ndim == 1
    assert (fixed == still_fixed).all() and not still_fixed.flags.writeable


def test_frames_come_back() -> None:
    """A data frame is what it was."""
    frame = pd.DataFrame({"a": range(50_000), "b": ["x", "y"] * 25_000})
    pd.testing.assert_frame_equal(value_in(entry(frame)), frame)


def test_large_buffers_are_not_copied() -> None:
    """What is written of a large array is the array's own memory."""
    array = np.random.default_rng(0).random(100_000)
    content, buffer = entries.frames_of(array)
    assert len(content) < 1000
    assert np.shares_memory(np.frombuffer(buffer), array)


def test_what_has_no_module_comes_back() -> None:
    """Functions and classes that cannot be imported are stored by value."""

    class Local:
        def __init__(self, value: int) -> None:
            self.value = value

    assert value_in(entry(lambda: 41))() == 41
    assert value_in(entry({"a": [Local(3)]}))["a"][0].value == 3


def test_what_dask_can_serialise_comes_back() -> None:
    """A type that pickle refuses is stored in the form that it has registered with Dask."""
    assert value_in(entry(Refusing(7))).value == 7
    assert [item.value for item in value_in(entry([Refusing(1), Refusing(2)]))] == [1, 2]


def test_what_cannot_be_stored() -> None:
    """A lock is refused with the reason."""
    with pytest.raises(TypeError, match="lock"):
        entries.frames_of({"a": threading.Lock()})


def test_text_is_compressed_and_noise_is_not() -> None:
    """Compression that pays makes entries small; what it would not shrink is stored as it is."""
    assert len(entry(["the same"] * 5 + [f"line {i}" for i in range(100_000)])) < 600_000
    noise = random.Random(0).randbytes(1_000_000)
    assert 0 < len(entry(noise)) - len(noise) < 1000


def test_a_codec_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers are compressed by what is fast; who lacks it is told what to install."""
    monkeypatch.setitem(compressions, "lz4", compressions["zlib"])
    zeros = np.zeros(1_000_000)
    content = entry(zeros)
    assert len(content) < 100_000
    assert (value_in(content) == zeros).all()
    monkeypatch.delitem(compressions, "lz4")
    assert why(content) == "it is compressed with lz4, which is not installed"
    assert len(entry(zeros)) > zeros.nbytes


@pytest.mark.parametrize("key", [None, KEY], ids=["unsigned", "signed"])
def test_each_flipped_byte_is_seen(key: bytes | None) -> None:
    """Whatever byte of an entry is damaged, it counts as missing."""
    content = entry({"a": list(range(20))}, key=key)
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        why(bytes(damaged), key)


@pytest.mark.parametrize("value", [list(range(20)), np.arange(1_000_000)], ids=["small", "large"])
def test_each_length_is_seen(value: object) -> None:
    """An entry that is cut anywhere, or longer than it should be, counts as missing."""
    content = entry(value)
    for size in {*range(min(len(content), 700)), *range(0, len(content), 500_000)}:
        why(content[:size])
    assert why(b"") == "it is empty"
    assert why(content[:-1]) == "it is too short"
    assert why(content + b"x") == "it is too long"


def test_blocks_that_changed_places_are_seen() -> None:
    """Blocks are checked for their places, too."""
    large = np.zeros(8 * 1024 * 1024, dtype="u1")
    large[:4] = list(b"head")
    content = entry(large)
    first = content.index(b"head") - 9
    size = 9 + 4 * 1024 * 1024
    swapped = content[:first] + content[first + size :] + content[first : first + size]
    assert why(swapped) == "a block is damaged"


def test_each_place_of_a_large_result_is_checked() -> None:
    """A byte that changed anywhere is seen, and so are bytes and words that changed places."""
    content = entry(np.random.default_rng(0).random(100_000))
    random.seed(0)
    for _ in range(200):
        one, other = (random.randrange(1000, len(content) - 8) for _ in range(2))
        damaged = bytearray(content)
        damaged[one] ^= 1 << random.randrange(8)
        assert why(bytes(damaged)) == "a block is damaged"
        damaged = bytearray(content)
        damaged[one : one + 8], damaged[other : other + 8] = (
            content[other : other + 8], content[one : one + 8],
        )  # fmt: skip
        assert why(bytes(damaged)) == "a block is damaged"


def test_numpy_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checksums are the same without it, only slower."""
    content = entry(np.arange(100_000))
    damaged = content[:-1] + b"!"
    entries._weights.cache_clear()
    monkeypatch.setattr(entries, "_numpy", lambda: None)
    try:
        assert (value_in(content) == np.arange(100_000)).all()
        assert entry(np.arange(100_000)) == content
        assert why(damaged) == "a block is damaged"
    finally:
        entries._weights.cache_clear()


def test_what_is_something_else() -> None:
    """Foreign files, entries of other results and of newer formats are told from damaged ones."""
    assert why(b"PK\x03\x04 something else entirely") == "it is not an entry of a store"
    assert why(entry(1, location("there"))) == "it is the entry of another result"
    newer = bytearray(entry(1))
    newer[8] = FORMAT + 1
    assert why(bytes(newer)) == f"it has the format {FORMAT + 1}, and this handoff_dask reads 1"


class Explosive:
    """Says that it was unpickled."""

    exploded = False

    def __reduce__(self) -> Any:
        return setattr, (Explosive, "exploded", True)


def test_only_signed_results_are_unpickled() -> None:
    """Without the key, nothing of an entry is unpickled, whoever wrote it."""
    assert why(entry(Explosive()), KEY) == "it is not signed"
    assert why(entry(Explosive(), key=b"other"), KEY) == "it is signed with another key"
    assert not Explosive.exploded
    assert value_in(entry(3, key=KEY)) == 3  # without a key, signatures do not matter


def test_a_class_that_no_longer_exists() -> None:
    """It counts as missing, and the class is named."""
    content = pickle.dumps(Refusing).replace(b"Refusing", b"Gonesing")
    file = io.BytesIO()
    entries.write(file, [memoryview(content)], HERE, MADE)
    file.seek(0)
    entries.check(file, HERE)
    file.seek(0)
    with pytest.raises(Unreadable, match=r"cannot be unpickled: AttributeError: .*Gonesing"):
        entries.read(file, HERE)


def test_the_manifest_comes_back() -> None:
    """What a name was made from is read from the head alone."""
    packed = entries.pack_manifest({"f": "1"}, {"x": "2"}, {})
    content = entry(1, HERE._replace(manifest=packed))
    head = entries.read_head(io.BytesIO(content), HERE)
    assert entries.manifest_of(head) == Manifest({"f": "1"}, {"x": "2"}, {})
    head = entries.read_head(io.BytesIO(entry(1, HERE._replace(manifest=None))))
    assert entries.manifest_of(head) == Manifest({}, {}, {})


def test_arguments_are_nowhere_in_the_header() -> None:
    """The header has digests and ids, nothing else of the function."""
    header = entries.read_head(io.BytesIO(entry(1))).header
    assert set(header) == {"key", "label", "made", "frames", "handoff_dask"}
