"""Packs exceptions for another process: complete if possible, and always small.

An exception, the chain of its causes, and the exceptions inside them are sent as a list, each
pickled separately. So deep stacks and long chains need no recursion. The user's exceptions are
never changed.
"""

from __future__ import annotations

import io
import pickle
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple

from handoff_dask.pickling import Pickler
from handoff_dask.standins import HandoffError, StandInError, text_of, type_of
from handoff_dask.tracebacks import Line, lines_of, traceback_of, without_ours

#: Exceptions kept at each end of a long chain of causes.
KEPT = 10
#: Most exceptions that are sent together, and most bytes of their pickles.
MOST, SIZE = 200, 10_000_000
#: Seconds that users' code may take to pickle an exception.
PATIENCE = 3.0

_Reduce = Callable[[BaseException], Any]


class _Record(NamedTuple):
    """An exception as it is sent; it refers to others by their place in the list."""

    type_name: str
    message: str
    lines: tuple[Line, ...]
    #: None: only a stand-in arrives.
    pickled: bytes | None = None
    cause: int | None = None
    context: int | None = None
    suppresses: bool = False
    notes: tuple[str, ...] = ()


class PackedError(StandInError):
    """Replaces an exception while it is sent; unpickling it returns that exception.

    So Dask and asyncio never see the user's type, which they might treat as a signal.
    """

    def __init__(self, records: Sequence[_Record]) -> None:
        super().__init__(records[0].type_name, records[0].message)
        self.records = tuple(records)

    def __repr__(self) -> str:
        return f"{self.type_name}({self.message!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Dask pickles exceptions through tblib, which gives the unpickled exception the cause, the
        # context and the traceback of this replacement. So they are set again afterwards.
        parcel = _Parcel(self.records)
        return _Parcel.open, (parcel,), parcel, None, None, _Parcel.link


def packed(error: BaseException) -> PackedError:
    """Return what to raise instead of an exception that has to reach another process."""
    replacement = replaced(error)
    return replacement.with_traceback(traceback_of(replacement.records[0].lines))


def replaced(error: BaseException) -> PackedError:
    """Return what to send instead of an exception; it has no traceback until it arrives.

    So it keeps no frames alive here.
    """
    # Its own methods could be the user's code.
    lines = lines_of(without_ours(object.__getattribute__(error, "__traceback__")))
    records = [_Record(type_of(error), "(its text is not available)", lines)]

    def pack() -> None:
        with suppress(BaseException):  # the record made so far is then used
            text = text_of(error)
            records[0] = records[0]._replace(message=text)
            records[:] = _Packing(error, text).records()

    # In a thread, because this runs users' code, such as __str__ and __reduce__, which may hang.
    thread = threading.Thread(target=pack, name="handoff-packing", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no thread can be started, which may even be the error to pack
        pack()
    else:
        thread.join(PATIENCE)
    return PackedError(records)


class _Packing:
    """Makes the records of an exception and of all that belong to it."""

    def __init__(self, error: BaseException, text: str) -> None:
        self._text = text
        self._errors: list[BaseException] = []
        #: {id of an exception: its place}; the place of the next one in its chain, by place.
        self._places: dict[int, int] = {}
        self._next: list[int | None] = []
        self._room = SIZE
        self._rest = HandoffError("more exceptions are left out here")
        self._place(error)

    def records(self) -> list[_Record]:
        # Exceptions inside others are appended meanwhile.
        return [self._record(place, error) for place, error in enumerate(self._errors)]

    def _place(self, error: BaseException) -> int:
        """Return the place of an exception; give it and its chain places if they have none."""
        if len(self._errors) >= MOST and id(error) not in self._places:
            error = self._rest
        if id(error) not in self._places:
            chain: dict[int, BaseException] = {}
            following: BaseException | None = error
            while not (
                following is None or id(following) in self._places or id(following) in chain
            ):
                chain[id(following)] = following
                following = _next(following)
            end = None if following is None else self._places.get(id(following))
            for link in _ends(list(chain.values())):
                self._places[id(link)] = len(self._errors)
                self._errors.append(link)
                self._next.append(len(self._errors))
            self._next[-1] = end
        return self._places[id(error)]

    def _record(self, place: int, error: BaseException) -> _Record:
        following, caused = self._next[place], error.__cause__ is not None
        notes = error.__dict__.get("__notes__", ())
        if not isinstance(notes, (list, tuple)):
            notes = ()
        return _Record(
            type_of(error),
            text_of(error) if place else self._text,
            lines_of(without_ours(error.__traceback__)),
            self._pickled(error),
            following if caused else None,
            None if caused else following,
            error.__suppress_context__,
            tuple(text_of(note) for note in notes[:KEPT]),
        )

    def _pickled(self, error: BaseException) -> bytes | None:
        """Pickle an exception without its causes; return None if that or unpickling fails."""
        if not isinstance(error, Exception):
            return None
        for reduce in _reductions(type(error)):
            try:
                with _Bounded(self._room) as file:
                    _ErrorPickler(file, error, reduce, self._place).dump(error)
                    data = file.getvalue()
                _checked(_ErrorUnpickler(data, self._errors.__getitem__).load())
                self._room -= len(data)
                return data
            except BaseException:  # raised by users' code
                continue
        return None


def _checked(arrived: Any) -> Exception:
    """Return an exception as it arrives; raise if it cannot be used as one."""
    assert isinstance(arrived, Exception)
    str(arrived)
    arrived.__traceback__ = None  # some are frozen
    return arrived


def _next(error: BaseException) -> BaseException | None:
    """Return the exception that Python prints before this one, if any."""
    if error.__cause__ is not None or error.__suppress_context__:
        return error.__cause__
    return error.__context__


def _ends(chain: list[BaseException]) -> list[BaseException]:
    left_out = len(chain) - 2 * KEPT
    if left_out > 1:
        others = HandoffError(f"{left_out:,} exceptions are left out here")
        others.__cause__ = chain[-KEPT]
        chain[KEPT:-KEPT] = [others]
    return chain


class _Bounded(io.BytesIO):
    """A file in memory that may not grow beyond a size."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._size:
            raise OverflowError("too large to be sent")
        return super().write(data)


class _ErrorPickler(Pickler):
    """Pickles one exception; those inside it by their places, tracebacks by their lines."""

    def __init__(
        self,
        file: _Bounded,
        error: BaseException,
        reduce: _Reduce,
        place: Callable[[BaseException], int],
    ) -> None:
        super().__init__(file)
        self._error = error
        self._reduce = reduce
        self._place = place
        self._begun = False

    def persistent_id(self, obj: Any) -> int | None:
        if not issubclass(type(obj), BaseException):
            return None
        if obj is self._error and not self._begun:
            self._begun = True
            return None
        return self._place(obj)

    def reducer_override(self, obj: Any) -> Any:
        # Not through copyreg: what tblib registers there also pickles the causes.
        if obj is self._error:
            return self._reduce(obj)
        if type(obj) is TracebackType:
            return traceback_of, (lines_of(obj),)
        return super().reducer_override(obj)


def _reductions(kind: type[BaseException]) -> Sequence[_Reduce]:
    """Return the ways to pickle exceptions of a type without their causes, best first."""
    if issubclass(kind, HandoffError) and hasattr(kind, "reductions"):
        own: Sequence[_Reduce] = kind.reductions
        return own
    return (_rebuilt, _reduced) if _has_own_init(kind) else (_reduced,)


def _reduced(error: BaseException) -> Any:
    return error.__reduce_ex__(pickle.HIGHEST_PROTOCOL)


def _rebuilt(error: BaseException) -> Any:
    reduced: Any = error.__reduce__()
    return _rebuild, (type(error), *reduced[1:])


def _has_own_init(kind: type[BaseException]) -> bool:
    """Whether exceptions of a type must be rebuilt without calling its `__init__`.

    Unpickling would call it with `args`, which are the arguments of its base's `__init__`.
    """
    return (
        kind.__init__ is not _builtin_base(kind).__init__
        and kind.__reduce__ in (BaseException.__reduce__, OSError.__reduce__)
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__setstate__ is BaseException.__setstate__
    )


def _builtin_base(kind: type[BaseException]) -> type[BaseException]:
    return next(base for base in kind.__mro__ if base.__module__ == "builtins")


def _rebuild(
    kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any] | None = None
) -> BaseException:
    error = kind.__new__(kind, *args)
    _builtin_base(kind).__init__(error, *args)
    error.__dict__.update(state or {})
    return error


class _ErrorUnpickler(pickle.Unpickler):
    """Unpickles an exception; `held` returns those inside it."""

    def __init__(self, data: bytes, held: Callable[[int], BaseException]) -> None:
        super().__init__(io.BytesIO(data))
        self._held = held

    def persistent_load(self, place: int) -> BaseException:
        return self._held(place)


class _Parcel:
    """The records of an exception and, in the receiving process, the exceptions made of them."""

    def __init__(self, records: tuple[_Record, ...]) -> None:
        self._records = records
        self._errors: dict[int, Exception] = {}
        self._begun: set[int] = set()

    def open(self) -> Exception:
        """Return the exception."""
        # Backwards, because exceptions stand before those inside them.
        for place in reversed(range(len(self._records))):
            self._error(place)
        for place, error in self._errors.items():
            self._link(place, error)
        return self._errors[0]

    @staticmethod
    def link(error: Exception, parcel: _Parcel) -> None:
        """Give the exception its cause, its context and its traceback."""
        parcel._link(0, error)

    def _error(self, place: int) -> Exception:
        if place not in self._errors:
            self._errors[place] = self._unpickled(place) or self._stand_in(place)
        return self._errors[place]

    def _stand_in(self, place: int) -> StandInError:
        record = self._records[place]
        text = "".join(traceback.format_tb(traceback_of(record.lines)))
        return StandInError(record.type_name, record.message, text)

    def _unpickled(self, place: int) -> Exception | None:
        pickled = self._records[place].pickled
        if pickled is None or place in self._begun:  # an exception that holds itself
            return None
        self._begun.add(place)
        try:
            return _checked(_ErrorUnpickler(pickled, self._error).load())
        except BaseException:  # raised by users' code, or a module is missing here
            return None

    def _link(self, place: int, error: Exception) -> None:
        record = self._records[place]
        for name in ("cause", "context"):
            other = getattr(record, name)
            setattr(error, f"__{name}__", None if other is None else self._errors[other])
        error.__suppress_context__ = record.suppresses
        error.__traceback__ = traceback_of(record.lines)
        if record.notes and not hasattr(error, "__notes__"):
            error.__notes__ = list(record.notes)
