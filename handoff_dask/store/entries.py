"""The format of an entry: one stored result, complete or recognisably not.

An entry is one object::

    prelude   magic, format version, lengths, CRC-32 of all that is not in blocks, HMAC
    header    JSON: whose result it is, who made it and when, the sizes of the frames
    manifest  digests of what its name was made from, opaque here
    blocks    the frames, in blocks: codec, length, checksum, content

The first frame is a pickle; the others are its large buffers, which are neither copied nor pickled.
Checksums cover every byte, so an entry is right or counts as missing. They do not protect against
somebody who may write to the store and means harm, since a pickle is code: the HMAC does.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import os
import pickle
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from operator import mul
from typing import IO, Any, NamedTuple, Protocol, TypeVar, cast

import cloudpickle

from handoff_dask import pickling
from handoff_dask._version import __version__
from handoff_dask.model.attempt import UNKNOWN, Usage

#: The version of the format, and of the folder that has the entries.
FORMAT = 1
#: Entries up to this size are read whole when they are looked for (bytes).
SMALL = 64 * 1024

_MAGIC = b"handoff\n"
#: Magic, version, lengths of header and manifest, length of the entry.
_PRELUDE = struct.Struct("<8sHIIQ")
#: CRC-32 of all before the blocks; HMAC or zeros.
_SEALS = struct.Struct("<I32s")
#: Codec, length of the content, checksum of all and of the block's number.
_BLOCK = struct.Struct("<BII")
#: The words of a row: large contents are summed up by rows, and the sums are hashed.
_ROW = struct.Struct("<8192Q")
_HEAD_SIZE = _PRELUDE.size + _SEALS.size
#: Frames are hashed, compressed and written in blocks (bytes).
_BLOCK_SIZE = 4 * 1024 * 1024
#: Smaller blocks are not compressed (bytes).
_LEAST_COMPRESSED = 16 * 1024
#: How much of a block is compressed on trial (bytes), and how small it must become.
_SAMPLE, _WORTHWHILE = 4096, 0.7
_RAW, _ZLIB = 0, 1
#: Codecs that compress faster than a disk writes, by number; the first that is installed is used.
_FAST = {2: "lz4", 3: "zstd"}

T = TypeVar("T")
R = TypeVar("R")


class Unreadable(Exception):
    """An entry that cannot be used; the message says why."""


class Named(Protocol):
    """What identifies an entry: a name or a location."""

    @property
    def key(self) -> str:
        """The hash of what the result is made from, in hexadecimal digits."""

    @property
    def label(self) -> str:
        """Module and qualified name of the code that makes it."""


class Location(NamedTuple):
    """Where a result is stored, as workers are told."""

    key: str
    label: str
    #: What `why` compares, packed by :func:`pack_manifest`. Only needed to write the entry.
    manifest: bytes | None = None

    @classmethod
    def of(cls, name: Any) -> Location:
        """Return where the result of a :class:`~handoff_dask.store.naming.ResultName` goes."""
        return cls(name.key, name.label, pack_manifest(name.code, name.arguments, name.upstream))

    def for_reading(self) -> Location:
        """Return it without the manifest."""
        return self._replace(manifest=None)


class Manifest(NamedTuple):
    """What a name was made from: digests by part, as in a ResultName."""

    code: dict[str, str]
    arguments: dict[str, str]
    upstream: dict[str, str]


def pack_manifest(*parts: Any) -> bytes:
    """Pack the parts of a :class:`Manifest`."""
    return json.dumps([dict(part) for part in parts], separators=(",", ":")).encode()


class Made(NamedTuple):
    """Who made a result, and when.

    Attributes
    ----------
    dag, function : str
        The DAG and the function, by the repr of their ids.
    worker, host, user : str
        Where it was made, and for whom.
    started, stopped : float
        Seconds since the epoch, by the worker's clock.
    usage : Usage
        What the attempt used, as far as that is known.
    """

    dag: str
    function: str
    worker: str
    host: str
    user: str
    started: float
    stopped: float
    usage: Usage = UNKNOWN


class StoredResult(NamedTuple):
    """A result that is in the store.

    Attributes
    ----------
    location : Location
        Where it is, without a manifest.
    made : Made
        Who made it.
    size : int
        Size of the entry, in bytes.
    content : bytes or None
        The entry, checked, if it is small. Nothing is unpickled before somebody needs the value:
        this process may have no use for it, nor what it takes, such as a GPU.
    """

    location: Location
    made: Made
    size: int
    content: bytes | None = None

    def without_content(self) -> StoredResult:
        """Return it as if nothing of it had been read."""
        return self._replace(content=None)


class Head(NamedTuple):
    """What stands before the frames."""

    header: dict[str, Any]
    manifest: bytes
    #: Length of the whole entry (bytes).
    total: int
    #: Prelude, header and manifest, as the seals cover them.
    covered: bytes
    mac: bytes

    @property
    def made(self) -> Made:
        """Who made the result."""
        made = Made(*self.header["made"])
        return made._replace(usage=Usage(*made.usage))

    @property
    def location(self) -> Location:
        """Where the entry should be."""
        return Location(self.header["key"], self.header["label"])


# Values and frames


def frames_of(value: object) -> list[memoryview]:
    """Return a value as a pickle, the first frame, and the large buffers that it refers to.

    Raises what pickling raises if the value cannot be stored.
    """
    buffers: list[memoryview] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < SMALL:
            return True  # inside the pickle
        buffers.append(raw)
        return False

    try:
        content = pickle.dumps(value, protocol=5, buffer_callback=keep)
        by_value = b"__main__" in content or cloudpickle.list_registry_pickle_by_value()
    except Exception:
        by_value = True
    if by_value:
        buffers.clear()
        with io.BytesIO() as file:
            _ValuePickler(file, protocol=5, buffer_callback=keep).dump(value)
            content = file.getvalue()
    return [memoryview(content), *buffers]


class _ValuePickler(pickling.Pickler):
    """Pickles by value what no module has; uses Dask's serialisation for what cannot be pickled."""

    def reducer_override(self, obj: Any) -> Any:
        reduced = super().reducer_override(obj)
        if reduced is NotImplemented:
            try:
                obj.__reduce_ex__(5)
            except Exception:
                from distributed.protocol.serialize import dask_deserialize, dask_serialize

                try:
                    serialize = dask_serialize.dispatch(type(obj))
                    return dask_deserialize.dispatch(type(obj)), serialize(obj)
                except TypeError:  # Dask does not know the type either
                    return NotImplemented
        return reduced


# Writing


def write(
    file: IO[bytes],
    frames: Sequence[memoryview],
    location: Location,
    made: Made,
    hmac_key: bytes | None = None,
) -> int:
    """Write an entry to an empty file, and return its size in bytes."""
    header = json.dumps(
        {
            "key": location.key,
            "label": location.label,
            "made": made,
            "frames": [frame.nbytes for frame in frames],
            "handoff_dask": __version__,
        },
        separators=(",", ":"),
    ).encode()
    manifest = location.manifest or b""
    # The prelude is written last, when the length is known.
    file.write(bytes(_HEAD_SIZE) + header + manifest)
    total = _HEAD_SIZE + len(header) + len(manifest)
    digest = hashlib.sha256() if hmac_key is not None else None
    for prefix, content in _ahead(_pack_block, _numbered_blocks(frames), sum(map(len, frames))):
        file.write(prefix)
        file.write(content)
        total += len(prefix) + len(content)
        if digest is not None:
            digest.update(prefix)
            digest.update(content)
    prelude = _PRELUDE.pack(_MAGIC, FORMAT, len(header), len(manifest), total)
    covered = prelude + header + manifest
    mac = bytes(32) if digest is None else _mac(hmac_key, covered, digest.digest())
    file.seek(0)
    file.write(prelude + _SEALS.pack(zlib.crc32(covered + mac), mac))
    return total


def _mac(key: bytes | None, covered: bytes, digest: bytes) -> bytes:
    # The lengths at its start make it clear where what is covered ends.
    return hmac.digest(key or b"", covered + digest, "sha256")


def _numbered_blocks(frames: Iterable[memoryview]) -> Iterator[tuple[int, bool, memoryview]]:
    """Yield the number of each block, whether it is part of the pickle, and its content."""
    number = 0
    for index, frame in enumerate(frames):
        for block in _blocks(frame):
            yield number, index == 0, block
            number += 1


def _blocks(frame: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(frame), _BLOCK_SIZE):
        yield frame[start : start + _BLOCK_SIZE]


def _pack_block(item: tuple[int, bool, memoryview]) -> tuple[bytes, bytes | memoryview]:
    number, pickled, block = item
    codec, content = _compressed(block, pickled)
    return _BLOCK.pack(codec, len(content), _checksum(number, codec, content)), content


def _checksum(number: int, codec: int, content: bytes | memoryview) -> int:
    place = zlib.crc32(struct.pack("<QBI", number, codec, len(content)))
    rows = len(content) - len(content) % _ROW.size
    if rows:
        place = zlib.crc32(_sums(memoryview(content)[:rows]), place)
    return zlib.crc32(content[rows:], place)


def _sums(rows: memoryview) -> bytes:
    """Return a sum of 64 bits for each row: of its words, each times a weight.

    This takes a third of the time of CRC-32, and less than writing does. Weights are odd, so that
    no change of one word is missed, and differ, so that the order of words counts.
    """
    weights = _weights()
    if _numpy() is None:
        return b"".join(
            struct.pack("<Q", sum(map(mul, words, weights)) % 2**64)
            for words in _ROW.iter_unpack(rows)
        )
    words = _numpy().frombuffer(rows, "<u8").reshape(-1, len(weights))
    sums: bytes = _numpy().dot(words, weights).astype("<u8", copy=False).tobytes()
    return sums


@lru_cache(maxsize=1)
def _numpy() -> Any:
    with suppress(ImportError):
        return import_module("numpy")
    return None


@lru_cache(maxsize=1)
def _weights() -> Any:
    # Any fixed odd numbers would do.
    words = _ROW.unpack(hashlib.shake_128(b"handoff").digest(_ROW.size))
    odd = [word | 1 for word in words]
    return odd if _numpy() is None else _numpy().array(odd, "<u8")


@lru_cache(maxsize=1)
def _compressions() -> Mapping[str, Any]:
    # Late, as an isolated function that reads its inputs has no use for Dask.
    from distributed.protocol.compression import compressions

    return cast("Mapping[str, Any]", compressions)


def _compressed(block: memoryview, pickled: bool) -> tuple[int, bytes | memoryview]:
    """Compress a block if that pays.

    Writing large buffers is faster than zlib: it is for what pickle made of objects and text only.
    """
    codec = next((number for number, name in _FAST.items() if name in _compressions()), None)
    if codec is None and pickled:
        codec = _ZLIB
    if codec is None or len(block) < _LEAST_COMPRESSED:
        return _RAW, block
    middle = (len(block) - _SAMPLE) // 2
    sample = block[middle : middle + _SAMPLE]
    if len(_compress(codec, sample)) > _WORTHWHILE * _SAMPLE:
        return _RAW, block
    content = _compress(codec, block)
    return (codec, content) if len(content) < len(block) else (_RAW, block)


def _compress(codec: int, block: memoryview) -> bytes:
    if codec == _ZLIB:
        return zlib.compress(block, 1)
    return bytes(_compressions()[_FAST[codec]].compress(block))


def _ahead(call: Callable[[T], R], items: Iterable[T], size: int) -> Iterator[R]:
    """Yield the results of calls in order; of large entries, threads call a few ahead.

    Hashing and compressing release the GIL, as reading and writing do.
    """
    if size <= _BLOCK_SIZE:
        yield from map(call, items)
        return
    threads = min(4, os.cpu_count() or 1)
    pending: deque[Any] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="handoff-store") as pool:
        for item in items:
            pending.append(pool.submit(call, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


# Reading


def read_head(file: IO[bytes], named: Named | None = None) -> Head:
    """Read what stands before the frames, of the entry that somebody asked for, if any.

    Raises
    ------
    Unreadable
        It is damaged, or something else.
    """
    start = file.read(_HEAD_SIZE)
    if not start:
        raise Unreadable("it is empty")
    if not start.startswith(_MAGIC):
        raise Unreadable("it is not an entry of a store")
    prelude, seals = start[: _PRELUDE.size], start[_PRELUDE.size :]
    if len(start) < _HEAD_SIZE:
        raise Unreadable("it is too short")
    _, version, header_size, manifest_size, total = _PRELUDE.unpack(prelude)
    crc, mac = _SEALS.unpack(seals)
    if version != FORMAT:
        # Or a flipped bit: nothing can be checked of another format.
        raise Unreadable(f"it has the format {version}, and this handoff_dask reads {FORMAT}")
    if _HEAD_SIZE + header_size + manifest_size > total:
        raise Unreadable("its head is damaged")
    rest = _exactly(file, header_size + manifest_size)
    covered = prelude + rest
    if zlib.crc32(covered + mac) != crc:
        raise Unreadable("its head is damaged")
    head = Head(json.loads(rest[:header_size]), rest[header_size:], total, covered, mac)
    if named is not None and head.header["key"] != named.key:
        raise Unreadable("it is the entry of another result")
    return head


def read(file: IO[bytes], named: Named, hmac_key: bytes | None = None) -> tuple[Head, Any]:
    """Read and check an entry; return its head and the value.

    Buffers are as writable as they were.

    Raises
    ------
    Unreadable
        It is damaged, foreign, not signed with the key, or its value cannot be unpickled.
    """
    head = read_head(file, named)
    frames = [bytearray(size) for size in head.header["frames"]]
    _fill(file, head, (b for frame in frames for b in _blocks(memoryview(frame))), hmac_key)
    content, *buffers = frames
    try:
        return head, pickle.loads(content, buffers=buffers)
    except Exception as error:
        raise Unreadable(f"it cannot be unpickled: {type(error).__name__}: {error}") from error


def check(file: IO[bytes], named: Named | None = None, hmac_key: bytes | None = None) -> Head:
    """Check every byte of an entry without keeping or unpickling the value.

    Raises
    ------
    Unreadable
        As :func:`read`, except that the value may be one that cannot be unpickled.
    """
    head = read_head(file, named)
    blocks = (
        memoryview(bytearray(min(_BLOCK_SIZE, size - start)))
        for size in head.header["frames"]
        for start in range(0, size, _BLOCK_SIZE)
    )
    _fill(file, head, blocks, hmac_key)
    return head


def _fill(file: IO[bytes], head: Head, blocks: Iterable[memoryview], key: bytes | None) -> None:
    """Fill blocks of memory with the content of a file, and check it."""
    digest = hashlib.sha256() if key is not None else None

    def read_blocks() -> Iterator[tuple[int, int, int, memoryview, memoryview]]:
        for number, block in enumerate(blocks):
            prefix = _exactly(file, _BLOCK.size)
            codec, size, crc = _BLOCK.unpack(prefix)
            if size > len(block) or (codec == _RAW and size != len(block)):
                raise Unreadable("a block is damaged")
            content = block if codec == _RAW else memoryview(bytearray(size))
            _read_into(file, content)
            if digest is not None:
                digest.update(prefix)
                digest.update(content)
            yield number, codec, crc, content, block

    for _ in _ahead(_unpack_block, read_blocks(), sum(head.header["frames"])):
        pass
    if file.read(1):
        raise Unreadable("it is too long")
    if digest is not None and not hmac.compare_digest(
        head.mac, _mac(key, head.covered, digest.digest())
    ):
        signed = any(head.mac)
        raise Unreadable("it is signed with another key" if signed else "it is not signed")


def _unpack_block(item: tuple[int, int, int, memoryview, memoryview]) -> None:
    number, codec, crc, content, block = item
    if _checksum(number, codec, content) != crc:
        raise Unreadable("a block is damaged")
    if codec == _RAW:
        return
    if codec == _ZLIB:
        block[:] = zlib.decompress(content)
    elif (name := _FAST.get(codec)) and name in _compressions():
        block[:] = _compressions()[name].decompress(content)
    else:
        raise Unreadable(f"it is compressed with {name or codec}, which is not installed")


def _exactly(file: IO[bytes], size: int) -> bytes:
    content = file.read(size)
    if len(content) < size:
        raise Unreadable("it is too short")
    return content


def _read_into(file: Any, block: memoryview) -> None:
    start = 0
    while start < len(block):
        if not (size := file.readinto(block[start:])):
            raise Unreadable("it is too short")
        start += size


def manifest_of(head: Head) -> Manifest:
    """Return what the name of an entry was made from."""
    if not head.manifest:
        return Manifest({}, {}, {})
    return Manifest(*json.loads(head.manifest))
