"""How several functions travel in one Dask task, and what workers report and return of them.

The functions are the bundle's members. Their calls stay pickled, so the scheduler can open a bundle
without the users' modules.
"""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from sys import getsizeof
from typing import Any, NamedTuple

from dask.sizeof import sizeof
from distributed.protocol.serialize import dask_deserialize, dask_serialize, deserialize, serialize
from distributed.sizeof import safe_sizeof

from handoff_dask.standins import text_of, type_of
from handoff_dask.wire.payload import Name
from handoff_dask.wire.stored_as import StoredAs

#: The stream messages by which a worker reports members, and that a bundle's result lacks a value;
#: and the one that withdraws a member.
MEMBERS, LACKING = "handoff-members", "handoff-lacking"
WITHDRAW_MEMBER = "handoff-withdraw-member"


class Member(NamedTuple):
    """A function of a bundle."""

    #: Of its node in the run.
    index: int  # type: ignore[assignment] # instead of the method of tuples
    #: What its pickled call names: see ``payload``.
    names: tuple[Name, ...]
    #: Where the value of each dependency comes from. `i >= 0`: the i-th input of the bundle;
    #: `-1 - p`: the member at position p.
    sources: tuple[int, ...]
    max_retries: int
    #: Whether its value outlives the bundle.
    keep: bool
    #: The pickled call: see ``Packer``.
    call: bytes
    #: Where its value is stored: see ``StoredAs``.
    stored: StoredAs | None = None


def packed(members: Iterable[Member]) -> bytes:
    """Return members as they travel."""
    return pickle.dumps([tuple(member) for member in members], protocol=5)


def unpacked(data: bytes) -> list[Member]:
    """Return the members that ``packed`` packed; their calls stay pickled."""
    return list(map(Member._make, pickle.loads(data)))


@dataclass(slots=True)
class EndedColumns:
    """Attempts that succeeded, in columns."""

    positions: array[int] = field(default_factory=lambda: array("I"))
    #: Seconds since the epoch.
    started: array[float] = field(default_factory=lambda: array("d"))
    stopped: array[float] = field(default_factory=lambda: array("d"))
    #: Seconds that they kept a processor busy, and bytes of their results.
    cpu_time: array[float] = field(default_factory=lambda: array("f"))
    result_bytes: array[int] = field(default_factory=lambda: array("Q"))
    #: 1 for those whose result was read from the store.
    stored: array[int] = field(default_factory=lambda: array("B"))

    def add(
        self,
        position: int,
        started: float,
        stopped: float,
        cpu_time: float = 0.0,
        result_bytes: int = 0,
        stored: bool = False,
    ) -> None:
        """Append an attempt."""
        self.positions.append(position)
        self.started.append(started)
        self.stopped.append(stopped)
        self.cpu_time.append(cpu_time)
        self.result_bytes.append(result_bytes)
        self.stored.append(stored)

    def of(self, places: Sequence[int]) -> EndedColumns:
        """Return the attempts at some places of the columns."""
        if len(places) == len(self):
            return self
        chosen = EndedColumns()
        for place in places:
            for own, other in zip(chosen._columns, self._columns, strict=True):
                own.append(other[place])
        return chosen

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def _columns(self) -> tuple[array[Any], ...]:
        return (
            self.positions,
            self.started,
            self.stopped,
            self.cpu_time,
            self.result_bytes,
            self.stored,
        )

    def __iter__(self) -> Iterator[tuple[int, float, float, float, int, int]]:
        return zip(*self._columns, strict=True)

    def pack(self) -> bytes:
        """Return them as they travel."""
        return pickle.dumps(self._columns, protocol=5)

    @classmethod
    def unpack(cls, data: bytes) -> EndedColumns:
        """Return what ``pack`` packed."""
        return cls(*pickle.loads(data))


class MemberFailure(NamedTuple):
    """An attempt of a member that failed."""

    position: int
    #: Seconds since the epoch.
    started: float
    stopped: float
    error_type: str
    message: str
    #: Whether no attempt is left.
    final: bool
    #: The exception, pickled, if this is final.
    exception: bytes | None
    #: Seconds that it kept a processor busy.
    cpu_time: float | None = None


def size_of(value: Any) -> int:
    """Return the size of a value in bytes, as Dask estimates it."""
    return getsizeof(value) if type(value) in _PLAIN else safe_sizeof(value)


class Values(Mapping[int, Any]):
    """What a bundle returns: the values of members by the index of their nodes.

    Each value is serialized by itself. One that cannot be sent or opened does not affect the
    others; reading it raises TypeError.

    Attributes
    ----------
    errors : dict
        {index: pickled exception} of members that failed for good.
    problems : dict
        {index: text} of values that could not be sent or opened.
    """

    __slots__ = ("__weakref__", "_values", "errors", "problems")

    def __init__(
        self,
        values: Mapping[int, Any],
        errors: Mapping[int, bytes] | None = None,
        problems: Mapping[int, str] | None = None,
    ) -> None:
        self._values = dict(values)
        self.errors = dict(errors or {})
        self.problems = dict(problems or {})

    def __getitem__(self, index: int) -> Any:
        if index in self.problems:
            raise TypeError(f"the value {self.problems[index]}")
        return self._values[index]

    def __contains__(self, index: object) -> bool:
        return index in self._values

    def __iter__(self) -> Iterator[int]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return (
            f"<Values: {len(self)} values, {len(self.errors)} errors, "
            f"{len(self.problems)} problems>"
        )


#: Types whose small values are pickled together.
_PLAIN = frozenset((int, float, bool, str, bytes, type(None)))
#: Bytes up to which frames are no frames of their own.
_SMALL = 10_000


@dask_serialize.register(Values)  # type: ignore[untyped-decorator]
def _serialized(
    values: Values, context: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], list[Any]]:
    """Return header and frames as Dask wants them; large buffers are not copied.

    Dask passes a context if they are sent. If they are written to disk, a value that cannot be is
    an error, so that they stay in memory.
    """
    plain: dict[int, Any] = {}
    problems = dict(values.problems)
    #: (index, header, frames); in place of large frames, their number.
    parts: list[tuple[int, Any, Any]] = []
    frames: list[Any] = []
    for index, value in values.items():
        if type(value) in _PLAIN and getsizeof(value) <= _SMALL:
            plain[index] = value
            continue
        try:
            header, own = serialize(value, on_error="raise")
        except BaseException as error:  # raised by users' code
            # Dask wraps it.
            problem = _problem(
                f"of type {type(value).__name__} cannot be sent", error.__cause__ or error
            )
            if context is None:
                raise TypeError(problem) from None
            problems[index] = problem
            continue
        if sum(map(_size, own)) <= _SMALL:
            parts.append((index, header, [bytes(frame) for frame in own]))
        else:
            parts.append((index, header, len(own)))
            frames += own
    head = pickle.dumps((plain, parts, values.errors, problems), protocol=5)
    return {}, [head, *frames]


@dask_deserialize.register(Values)  # type: ignore[untyped-decorator]
def _deserialized(header: Mapping[str, Any], frames: Sequence[Any]) -> Values:
    plain, parts, errors, problems = pickle.loads(frames[0])
    start = 1
    for index, inner, own in parts:
        if isinstance(own, int):
            count, own = own, frames[start : start + own]
            start += count
        try:
            plain[index] = deserialize(inner, own)
        except BaseException as error:  # raised by users' code
            problems[index] = _problem("cannot be opened", error)
    return Values(plain, errors, problems)


def _size(frame: Any) -> int:
    return memoryview(frame).nbytes


def _problem(what: str, error: BaseException) -> str:
    return f"{what}: {type_of(error)}: {text_of(error)}"


@sizeof.register(Values)  # type: ignore[untyped-decorator]
def _sizeof(values: Values) -> int:
    size = getsizeof(values.errors) + sum(map(len, values.errors.values()))
    for value in values.values():
        size += size_of(value)
    return size
