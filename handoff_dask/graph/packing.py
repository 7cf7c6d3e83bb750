"""Pickling the calls of a run, as ``payload`` opens them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import chain, combinations
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import cloudpickle
from distributed import Future

from handoff_dask import pickling
from handoff_dask.compat.task_spec import GraphNode, Task, TaskRef
from handoff_dask.errors import InvalidFunctionError
from handoff_dask.model.contents import Replacing, are_plain, contents
from handoff_dask.model.expansion import Call, Node, given, map_given
from handoff_dask.model.function import Function, given_by_field
from handoff_dask.model.refs import Ref
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.wire.payload import CodeFill, Name

#: Bytes from which shared data is a task of its own: Dask's limit in ``client.map``.
LARGE = 100_000


@dataclass(slots=True)
class _Part:
    """What several calls have in common, or something large."""

    #: A pickle.
    data: bytes
    #: What the pickle names, and what the parts named there name.
    names: tuple[Name, ...]
    #: By id: the mutable objects in it, possibly including itself.
    state: Mapping[int, object]
    #: Whether several calls need it, also if only one is pickled so far.
    is_common: bool = False
    #: The number of tasks that need it.
    users: int = 0
    #: Whether it is a task of its own instead of travelling with each task.
    is_task: bool = False

    @property
    def isolated(self) -> bool:
        """Whether it holds no mutable object except itself."""
        return not self.names and len(self.state) <= 1


@dataclass(frozen=True, slots=True, eq=False)
class _Result:
    """Stands in for a future among the arguments."""

    key: Hashable


def _result(future: Future[Any]) -> _Result:
    return _Result(future.key)


class _StrayRefs:
    """Refuses each Ref of a DAG: those that could be replaced have been."""

    dag_id: Hashable = None

    def __call__(self, ref: Ref) -> int:
        if ref.dag_id == self.dag_id:
            raise _StrayError(f"{ref!r}, for whose id write {ref.id!r},")
        return 0


class _StrayError(Exception):
    """A future or a Ref lies where no result can take its place."""


class Packer:
    """Pickles the calls of a run, after a look at all of them for what they have in common.

    `key` returns the key of a part's node in the Dask graph, by the part's number.
    """

    def __init__(self, calls: Iterable[Call], key: Callable[[int], Any]) -> None:
        #: {key: Future} of those among the arguments.
        self.futures: dict[Hashable, Future[Any]] = {}
        self._key = key
        self._replace_futures = Replacing(Future, _result)
        self._parts: list[_Part] = []
        #: Numbers of those that became tasks since the graph was last asked for.
        self._new_tasks: list[int] = []
        #: By id: an object, which keeps its id alive, and its number; None while it is pickled.
        self._numbers: dict[int, tuple[object, int | None]] = {}
        #: By two numbers: whether a mutable object is in both parts.
        self._overlaps: dict[tuple[int, int], bool] = {}
        #: One tuple for all calls that name the same.
        self._names: dict[tuple[Name, ...], tuple[Name, ...]] = {}
        self._policies: dict[int, bytes] = {}
        #: By what calls have in common: the number of its part; None after the first of them.
        self._templates: dict[Hashable, int | None] = {}
        #: Ids of objects that occur more than once among codes and arguments.
        self.common: set[int] = set()
        self.sizes = _Sizes()
        # Not a method: a circle of references would keep the futures alive.
        self.sizes[Ref] = self._refs = _StrayRefs()
        self._has_futures = False
        met: set[int] = set()
        for value in contents(chain.from_iterable(map(given, calls)), closures=True):
            if isinstance(value, Future):
                self._has_futures = True
                self.futures[value.key] = value
            elif id(value) in met:
                self.common.add(id(value))
            elif not isinstance(value, _BY_REFERENCE):
                met.add(id(value))
                if type(value) is FunctionType:  # closures of one function have one code
                    code = value.__code__
                    (self.common if id(code) in met else met).add(id(code))

    def __call__(
        self, node: Node, call: Call, identity: tuple[Hashable, Hashable]
    ) -> tuple[tuple[Name, ...], bytes]:
        """Return what the pickle of a call names, and the pickle, or raise if it cannot be made.

        The `identity`, ids of function and DAG, goes with the call.
        """
        self._refs.dag_id = identity[1]
        try:
            if self._has_futures:
                call = map_given(call, self._replace_futures)
            packed = self._filled(identity, call) or self._pickled((identity, *call))
        except Exception as error:
            function, field = self._culprit(node)
            raise InvalidFunctionError(function.id, field, _problem(error)) from error
        names, pickled = packed
        for part in self._parts_of(names):
            part.users += 1
        return self._names.setdefault(names, names), pickled

    def _filled(
        self, identity: tuple[Hashable, Hashable], call: Call
    ) -> tuple[tuple[Name, ...], bytes] | None:
        """Pickle only what a call has of its own, if the rest is in a part.

        That is several times as fast. It is plain, so that no object of it is in the part.
        """
        id_, extra = identity[0], call.extra_args
        if self._has_futures or not (are_plain(extra) and are_plain((*call.args, *call.slots))):
            return None
        if not are_plain(id_ if type(id_) is tuple else (id_,)):
            return None
        shape, fill = self._split(call.code)
        # The nodes keep these objects alive.
        keywords = id(call.extra_kwargs) if call.extra_kwargs else 0
        key = shape, keywords, call.args, call.slots
        if key not in self._templates:
            self._templates[key] = None
            return None
        number = self._templates[key]
        if number is None:
            names, data = self._pickled((identity[1], *call._replace(extra_args=())))
            number = self._templates[key] = len(self._parts)
            self._parts.append(_Part(data, names, {}))
        own = id_, number, extra, fill
        pickled = pickle.dumps(own, protocol=pickle.HIGHEST_PROTOCOL)
        return ((*self._parts[number].names, number), pickled) if len(pickled) < LARGE else None

    def _split(self, code: Any) -> tuple[Hashable, CodeFill]:
        """Return what a code has in common with others, by ids, and what it has of its own."""
        kind = type(code)
        if kind is MethodType:
            return (id(code.__self__), id(code.__func__)), None
        if kind is partial and not code.__dict__:
            keywords = code.keywords
            if are_plain(code.args) and are_plain(keywords.values()):
                shape, inner = self._split(code.func)
                return ("partial", shape), (code.args, keywords, inner)
        elif kind is FunctionType and id(code.__code__) in self.common:
            own, defaults = _variables(code), code.__defaults__
            plain = own is not None and are_plain(own) and are_plain(defaults or ())
            if plain and not (code.__dict__ or code.__kwdefaults__ or _is_annotated(code)):
                same = code.__code__, code.__globals__, code.__module__, code.__doc__
                return (code.__name__, code.__qualname__, *map(id, same)), (own, defaults)
        return id(code), None

    def policy(self, function: Function, policy: RetryPolicy) -> bytes:
        """Return a policy, pickled."""
        if id(policy) not in self._policies:
            try:
                self._policies[id(policy)] = pickling.dumps(policy)
            except Exception as error:
                raise InvalidFunctionError(function.id, "retry", _problem(error)) from error
        return self._policies[id(policy)]

    def content(self, name: Name) -> TaskRef | bytes:
        """Return what a task gets for a name."""
        if isinstance(name, tuple):
            return TaskRef(name[0])
        part = self._parts[name]
        shared = part.is_common or part.users > 1
        if not part.is_task and shared and len(part.data) >= LARGE:
            part.is_task = True
            self._new_tasks.append(name)
        return TaskRef(self._key(name)) if part.is_task else part.data

    def nodes(self) -> dict[Any, GraphNode]:
        """Return the nodes of parts in the Dask graph that came since the last call."""
        keys = {n: self._key(n) for n in self._new_tasks}
        self._new_tasks.clear()
        return {key: Task(key, bytes, self._parts[n].data) for n, key in keys.items()}

    def _pickled(self, call: Any) -> tuple[tuple[Name, ...], bytes]:
        data, pickler = self._dumped(call)
        names = self._needed(pickler)
        if self._tears(pickler, names):
            data, pickler = self._dumped(call, whole=True)
            names = self._needed(pickler)
        return names, data

    def _dumped(self, value: Any, whole: bool = False) -> tuple[bytes, _Pickler]:
        """Pickle by reference what can be imported, and by value what was made in a script."""
        try:
            data, pickler = self._dump(_Pickler, value, whole=whole)
            # A worker has another __main__ than the client, and may lack what the user registered.
            local = ("__main__", *cloudpickle.list_registry_pickle_by_value())
            if not any(name.encode() in data for name in local):
                return data, pickler
        except _StrayError:
            raise
        except Exception:
            pass  # cloudpickle can do more
        return self._dump(_ValuePickler, value, whole=whole)

    def _dump(
        self, kind: type[_Pickler], value: Any, root: Any = None, whole: bool = False
    ) -> tuple[bytes, _Pickler]:
        file = BytesIO()
        pickler = kind(file, protocol=pickle.HIGHEST_PROTOCOL)
        pickler.packer, pickler.root, pickler.whole = self, root, whole
        pickler.names = {}
        pickler.dump(value)
        return file.getvalue(), pickler

    def _parts_of(self, names: Iterable[Name]) -> list[_Part]:
        return [self._parts[name] for name in names if isinstance(name, int)]

    def _needed(self, pickler: _Pickler) -> tuple[Name, ...]:
        """Return what a pickle names, and what the parts named there name."""
        names = dict(pickler.names)
        for part in self._parts_of(pickler.names):
            names.update(dict.fromkeys(part.names))
        return tuple(names)

    def _tears(self, pickler: _Pickler, names: Iterable[Name]) -> bool:
        """Whether a mutable object is in two pickles of a call, and would become two objects."""
        numbers = [n for n in names if isinstance(n, int) and not self._parts[n].isolated]
        if not numbers:
            return False
        own = pickler.state().keys()
        if any(not own.isdisjoint(self._parts[n].state.keys()) for n in numbers):
            return True
        return any(self._overlap(first, second) for first, second in combinations(numbers, 2))

    def _overlap(self, first: int, second: int) -> bool:
        if (first, second) not in self._overlaps:
            there = self._parts[second].state.keys()
            self._overlaps[first, second] = not self._parts[first].state.keys().isdisjoint(there)
        return self._overlaps[first, second]

    def number(self, value: Any, pickler: _Pickler) -> int | None:
        """Return the number of a value's part; None if the value is pickled in place."""
        if value is pickler.root:
            return None
        if id(value) not in self._numbers:
            if pickler.whole:
                return None
            self._numbers[id(value)] = value, None
            if pickler.root is not None and id(pickler.root) in self.common:
                self.common.add(id(value))
            try:
                data, inner = self._dump(_ValuePickler, value, root=value)
            except BaseException:
                del self._numbers[id(value)]
                raise
            is_common = id(value) in self.common
            self._parts.append(_Part(data, self._needed(inner), inner.state(), is_common))
            self._numbers[id(value)] = value, len(self._parts) - 1
        number = self._numbers[id(value)][1]
        if number is None or (pickler.whole and not self._parts[number].isolated):
            return None
        return number

    def _culprit(self, node: Node) -> tuple[Function, str]:
        """Find the function and the field because of which a node cannot be pickled."""
        for function in (node.function, *node.inlined):
            for field, values in given_by_field(function).items():
                if not self._pickles(list(values)):
                    return function, field
        return node.function, "args"

    def _pickles(self, value: object) -> bool:
        try:
            self._dumped(self._replace_futures(value))
        except Exception:
            return False
        return True


def _variables(function: FunctionType) -> tuple[Any, ...] | None:
    """Return the values of a closure's variables; None if one has no value yet."""
    try:
        return tuple(cell.cell_contents for cell in function.__closure__ or ())
    except ValueError:
        return None


def _is_annotated(function: FunctionType) -> bool:
    # To read the annotations may evaluate them.
    return bool(getattr(function, "__annotate__", None) or function.__annotations__)


def _problem(error: Exception) -> str:
    if isinstance(error, _StrayError):
        return (
            f"holds {error} where no result can take its place: pass it as an argument, in "
            "extra_args or extra_kwargs, by itself or in lists, tuples, sets or values of dicts"
        )
    return f"cannot be pickled, as is needed to send it to a worker: {error}"


#: Types that pickle by name, or as fast.
_BY_REFERENCE = (type, BuiltinFunctionType, ModuleType)
#: Types whose objects have a namespace but are shared by everybody anyway.
_UNCHANGING = (*_BY_REFERENCE, FunctionType)


class _Sizes(dict[type, Any]):
    """By type: how to measure an object in bytes; None if no object is large by itself."""

    def __missing__(self, kind: type) -> Any:
        self[kind] = None
        if issubclass(kind, Future):
            self[kind] = _stray
        elif issubclass(kind, (bytes, bytearray, str)):
            self[kind] = len
        elif hasattr(kind, "nbytes"):  # arrays, tensors
            self[kind] = _nbytes
        return self[kind]


def _nbytes(value: Any) -> int:
    try:
        return int(value.nbytes)
    except Exception:
        return 0


def _stray(future: Future[Any]) -> int:
    raise _StrayError(f"the future {future.key!r}")


class _Pickler(pickle.Pickler):
    """Names parts and futures instead of pickling them; fails for what cannot be imported."""

    packer: Packer
    #: The object whose part it pickles.
    root: Any
    #: Whether it names only isolated parts: see `_Part`.
    whole: bool
    names: dict[Name, None]

    def persistent_id(self, obj: Any) -> Name | None:
        """Return what stands for an object; None has it pickled."""
        name: Name | None
        if type(obj) is _Result:
            name = (obj.key,)
        else:
            measure = self.packer.sizes[type(obj)]
            small = measure is None or measure(obj) < LARGE
            if small and id(obj) not in self.packer.common:
                return None
            name = self.packer.number(obj, self)
        if name is not None:
            self.names[name] = None
        return name

    def state(self) -> dict[int, object]:
        """Return the mutable objects in the pickle, by id.

        The result keeps them alive, so that their ids are not used again.
        """
        return {
            id_: value
            for id_, (_, value) in self.memo.copy().items()
            if _may_change(type(value)) and not isinstance(value, _UNCHANGING)
        }


def _may_change(kind: Any) -> bool:
    return kind.__hash__ is None or kind.__dictoffset__ > 0


class _ValuePickler(_Pickler, pickling.Pickler):  # type: ignore[misc] # cloudpickle's own
    """Slower, but pickles all that cloudpickle can."""
