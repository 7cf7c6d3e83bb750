"""How calls travel: pickled by the client, opened by the worker at every start.

Each start opens the pickles anew and so has objects of its own, whatever an earlier one did to its.
A call is one pickle, so that what is one object stays one. Two things are cut out of it:

- What calls have in common is a **part**: pickled once for a run, and named in the pickles that
  need it. A large one that several functions need is a node of the Dask graph, which moves once to
  each worker; the rest goes with the tasks.
- A future is named too: the function depends on its task and gets its result.

The scheduler opens none of it, and needs none of the user's modules.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, combinations
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, TypeAlias, Union

import cloudpickle
from distributed import Future

from handoff_dask._compat import GraphNode, Task, TaskRef
from handoff_dask.errors import InvalidFunctionError
from handoff_dask.model.contents import Replacing, contents
from handoff_dask.model.expansion import Call, Node, given, map_given
from handoff_dask.model.function import Function
from handoff_dask.model.retry import RetryPolicy

#: Bytes from which data that functions share moves by itself: Dask's own limit in ``client.map``.
LARGE = 100_000

#: In a pickle: the number of a part, or the key of a future in a tuple.
Name: TypeAlias = Union[int, tuple[Any]]  # noqa: UP007 - evaluated at run time


# On the client


@dataclass(slots=True)
class _Part:
    """What several calls have in common, or something large.

    Attributes
    ----------
    data
        Its pickle.
    names
        What that names, and what the parts named there name.
    state
        By id: the objects in it that may change, itself among them.
    users
        How many tasks need it.
    """

    data: bytes
    names: tuple[Name, ...]
    state: Mapping[int, object]
    users: int = 0

    @property
    def closed(self) -> bool:
        """Whether nothing outside can have a part of it that changes."""
        return not self.names and len(self.state) <= 1


@dataclass(frozen=True, slots=True, eq=False)
class _Result:
    """Stands in for a future among the arguments."""

    key: Hashable


class _StrayFutureError(Exception):
    """A future lies where no result can take its place."""


class Packer:
    """Pickles the calls of a run.

    Parameters
    ----------
    calls
        All of them: what they have in common is found first.
    key
        The key of a part's node in the Dask graph, by the part's number.

    Attributes
    ----------
    futures : dict
        {key: Future} of those among the arguments.
    """

    def __init__(self, calls: Iterable[Call], key: Callable[[int], Any]) -> None:
        self.futures: dict[Hashable, Future[Any]] = {}
        self._key = key
        self._replace_futures = Replacing(Future, self._result)
        self._parts: list[_Part] = []
        #: By id: an object, so that no other gets the id, and its number; None while it is pickled.
        self._numbers: dict[int, tuple[object, int | None]] = {}
        #: Whether two parts hold one object that may change.
        self._overlap: dict[tuple[int, int], bool] = {}
        self._policies: dict[int, bytes] = {}
        #: Ids of what is met more than once among codes and arguments.
        self.common: set[int] = set()
        self.sizes = _Sizes()
        met: set[int] = set()
        self._some_futures = False
        for value in contents(chain.from_iterable(map(given, calls)), closures=True):
            if isinstance(value, Future):
                self._some_futures = True
            elif not isinstance(value, _BY_REFERENCE):
                (self.common if id(value) in met else met).add(id(value))

    def __call__(
        self, node: Node, call: Call, identity: tuple[Hashable, Hashable]
    ) -> tuple[tuple[Name, ...], bytes]:
        """Return what the pickle of a call names, and the pickle.

        The `identity`, ids of function and DAG, goes with the call.

        Raises
        ------
        InvalidFunctionError
            The code or the arguments of a function cannot be pickled.
        """
        try:
            if self._some_futures:
                call = map_given(call, self._replace_futures)
            names, pickled = self._pickled((identity, *call))
        except Exception as error:
            function, field = self._culprit(node)
            raise InvalidFunctionError(function.id, field, _problem(error)) from error
        for name in names:
            if isinstance(name, int):
                self._parts[name].users += 1
        return names, pickled

    def policy(self, function: Function, policy: RetryPolicy) -> bytes:
        """Return a policy, pickled."""
        if id(policy) not in self._policies:
            try:
                self._policies[id(policy)] = cloudpickle.dumps(policy)
            except Exception as error:
                raise InvalidFunctionError(function.id, "retry", _problem(error)) from error
        return self._policies[id(policy)]

    def content(self, name: Name) -> TaskRef | bytes:
        """Return what a task is given for a name, once all calls are pickled."""
        if isinstance(name, tuple):
            return TaskRef(name[0])
        return TaskRef(self._key(name)) if self._moves(name) else self._parts[name].data

    def nodes(self) -> dict[Any, GraphNode]:
        """Return the nodes of parts in the Dask graph, once all calls are pickled."""
        keys = {n: self._key(n) for n in range(len(self._parts)) if self._moves(n)}
        return {key: Task(key, bytes, self._parts[n].data) for n, key in keys.items()}

    def _moves(self, number: int) -> bool:
        """Whether a part moves by itself, and not with each task."""
        part = self._parts[number]
        return part.users > 1 and len(part.data) >= LARGE

    # Futures

    def _result(self, future: Future[Any]) -> _Result:
        self.futures[future.key] = future
        return _Result(future.key)

    # Pickles

    def _pickled(self, call: Any) -> tuple[tuple[Name, ...], bytes]:
        data, pickler = self._dumped(call)
        names = self._needed(pickler)
        open_parts = [n for n in names if isinstance(n, int) and not self._parts[n].closed]
        if open_parts and self._torn(pickler, open_parts):
            data, pickler = self._dumped(call, whole=True)
            names = self._needed(pickler)
        return names, data

    def _dumped(self, value: Any, whole: bool = False) -> tuple[bytes, _Naming]:
        """Pickle by reference what can be imported, by value what was made in a script."""
        try:
            data, pickler = self._dump(_FastPickler, value, whole=whole)
            # A worker has another __main__ than the client, and may lack what the user registered.
            local = ("__main__", *cloudpickle.list_registry_pickle_by_value())
            if not any(name.encode() in data for name in local):
                return data, pickler
        except _StrayFutureError:
            raise
        except Exception:
            pass  # cloudpickle can do more
        return self._dump(_Pickler, value, whole=whole)

    def _dump(
        self, kind: type[_Naming], value: Any, root: Any = None, whole: bool = False
    ) -> tuple[bytes, _Naming]:
        file = BytesIO()
        pickler = kind(file, protocol=pickle.HIGHEST_PROTOCOL)
        pickler.packer, pickler.root, pickler.whole = self, root, whole
        pickler.names = {}
        pickler.dump(value)
        return file.getvalue(), pickler

    def _needed(self, pickler: _Naming) -> tuple[Name, ...]:
        names = dict(pickler.names)
        for name in pickler.names:
            if isinstance(name, int):
                names.update(dict.fromkeys(self._parts[name].names))
        return tuple(names)

    def _torn(self, pickler: _Naming, parts: Sequence[int]) -> bool:
        """Whether an object that may change is in two pickles of a call: it would become two."""
        own = pickler.state().keys()
        if any(not own.isdisjoint(self._parts[n].state.keys()) for n in parts):
            return True
        for pair in combinations(parts, 2):
            if pair not in self._overlap:
                one, two = (self._parts[n].state.keys() for n in pair)
                self._overlap[pair] = not one.isdisjoint(two)
        return any(self._overlap[pair] for pair in combinations(parts, 2))

    def number(self, value: Any, pickler: _Naming) -> int | None:
        """Return the number of a value's part; None if it is to stay where it is."""
        if value is pickler.root:
            return None
        if id(value) not in self._numbers:
            if pickler.whole:
                return None
            self._numbers[id(value)] = value, None
            try:
                data, inner = self._dump(_Pickler, value, root=value)
            except BaseException:
                del self._numbers[id(value)]
                raise
            self._parts.append(_Part(data, self._needed(inner), inner.state()))
            self._numbers[id(value)] = value, len(self._parts) - 1
        number = self._numbers[id(value)][1]
        if number is None or (pickler.whole and not self._parts[number].closed):
            return None
        return number

    def _culprit(self, node: Node) -> tuple[Function, str]:
        """Find the function, of a node that cannot be pickled, and the field of it to blame."""
        for function in (node.function, *node.inlined):
            for field, values in function.given().items():
                if not self._pickles(values):
                    return function, field
        return node.function, "args"

    def _pickles(self, value: object) -> bool:
        try:
            self._dumped(self._replace_futures(value))
        except Exception:
            return False
        return True


def _problem(error: Exception) -> str:
    if isinstance(error, _StrayFutureError):
        return (
            f"holds the future {error} where no result can take its place: pass it in extra_args "
            "or extra_kwargs, by itself or in lists, tuples, sets or dicts"
        )
    return f"cannot be pickled, as is needed to send it to a worker: {error}"


#: What pickles by name, or as fast as if it did.
_BY_REFERENCE = (type, BuiltinFunctionType, ModuleType)
#: What has a namespace, but is shared by all anyway.
_UNCHANGING = (*_BY_REFERENCE, FunctionType)


class _Sizes(dict[type, Any]):
    """By type: what measures its objects in bytes; None where one cannot be large by itself."""

    def __missing__(self, kind: type) -> Any:
        measure: Any = None
        if issubclass(kind, Future):
            measure = _stray
        elif issubclass(kind, (bytes, bytearray, str)):
            measure = len
        elif hasattr(kind, "nbytes"):  # arrays, tensors
            measure = _nbytes
        self[kind] = measure
        return measure


def _nbytes(value: Any) -> int:
    try:
        return int(value.nbytes)
    except Exception:
        return 0


def _stray(future: Future[Any]) -> int:
    raise _StrayFutureError(repr(future.key))


class _Naming(pickle.Pickler):
    """Names parts and futures instead of pickling them."""

    packer: Packer
    #: The object whose part it pickles.
    root: Any
    #: Whether it names only what it can without tearing anything apart.
    whole: bool
    names: dict[Name, None]

    def persistent_id(self, obj: Any) -> Name | None:
        """Return what stands for an object; None has it pickled."""
        kind = type(obj)
        name: Name | None
        if kind is _Result:
            name = (obj.key,)
        else:
            measure = self.packer.sizes[kind]
            small = measure is None or measure(obj) < LARGE
            if small and id(obj) not in self.packer.common:
                return None
            name = self.packer.number(obj, self)
        if name is not None:
            self.names[name] = None
        return name

    def state(self) -> dict[int, object]:
        """Return, by id, the objects in the pickle that may change.

        They are kept alive with that, so that no other gets the id of what was made on the way.
        """
        found = {}
        for id_, (_, value) in self.memo.copy().items():
            kind = type(value)
            if getattr(kind, "__hash__", None) is None or kind.__dictoffset__:
                if not isinstance(value, _UNCHANGING):
                    found[id_] = value
        return found


class _FastPickler(_Naming):
    pass


class _Pickler(_Naming, cloudpickle.Pickler):  # type: ignore[misc] # it has no types
    pass


# On the worker


def opened(
    names: Sequence[Name], call: bytes, values: Sequence[Any]
) -> tuple[tuple[Hashable, Hashable], Call, Sequence[Any]]:
    """Open a pickled call for one start.

    Parameters
    ----------
    names, call
        What :class:`Packer` returned.
    values
        The content of each name, then the results of the functions that it depends on.

    Returns
    -------
    tuple
        The ids of function and DAG, the call, and those results.
    """
    opener = _Opener(dict(zip(names, values, strict=False)))
    identity, *fields = opener.open(call)
    return identity, Call(*fields), values[len(names) :]


class _Opener:
    """Opens each part once for a start."""

    def __init__(self, contents: Mapping[Name, Any]) -> None:
        self._contents = contents
        self._found: dict[Name, Any] = {}

    def open(self, pickled: bytes) -> Any:
        unpickler = _Unpickler(BytesIO(pickled))
        unpickler.opener = self
        return unpickler.load()

    def find(self, name: Name) -> Any:
        if name not in self._found:
            content = self._contents[name]
            self._found[name] = self.open(content) if isinstance(name, int) else content
        return self._found[name]


class _Unpickler(pickle.Unpickler):
    opener: _Opener

    def persistent_load(self, pid: Any) -> Any:
        """Return what a name stands for."""
        return self.opener.find(pid)
