"""From a DAG to a Dask graph.

One ``HighLevelGraph`` with one layer, whose annotations carry the cost maps (``resources``), the
retries and the mark by which the scheduler plugin knows its own (``handoff``).
"""

from __future__ import annotations

import functools
import pickle
import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import cloudpickle
import toolz
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.utils import funcname

from handoff_dask import pickling
from handoff_dask._compat import GraphNode, Task, TaskRef
from handoff_dask.errors import InvalidFunctionError
from handoff_dask.model.expansion import Call, Entry, Listed, Node, Transformed, expand
from handoff_dask.model.function import Argument, Function, effective_policy
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.task import Terms, run, run_and_discard, run_on_terms, run_transform

NO_RETRIES = RetryPolicy(0)

#: Keys of this project: (code name and run, index of the node).
Key = tuple[str, int]


@dataclass(frozen=True)
class Translation:
    """A DAG as Dask sees it.

    Attributes
    ----------
    graph : HighLevelGraph
        The graph, annotated.
    keys : tuple
        The key of each node, by index.
    prefixes : tuple of str
        The part of each key that functions with the same code share, by index.
    policies : tuple of RetryPolicy
        The retry policy of each node, by index.
    """

    graph: HighLevelGraph
    keys: tuple[Key, ...]
    prefixes: tuple[str, ...]
    policies: tuple[RetryPolicy, ...]


def translate(
    nodes: list[Node],
    run_id: str,
    *,
    dag_id: Hashable = None,
    policy: RetryPolicy = NO_RETRIES,
    discard: frozenset[int] = frozenset(),
) -> Translation:
    """Translate nodes into an annotated Dask graph.

    Parameters
    ----------
    nodes
        What :func:`~handoff_dask.model.expansion.expand` returns.
    run_id
        Makes the keys of this run differ from those of any other; 32 hexadecimal digits.
    dag_id
        What functions are told that ask for it.
    policy
        Of the functions that have none themselves.
    discard
        Nodes whose results nobody wants, not even the workers.

    Raises
    ------
    InvalidFunctionError
        The code or the arguments of a function cannot be pickled.
    """
    prefixes = code_prefixes(nodes)
    keys = tuple((f"{prefix}-{run_id}", index) for index, prefix in enumerate(prefixes))
    pack = _Packer()
    policies = tuple(effective_policy(node.function, policy) for node in nodes)
    dsk: dict[Key, GraphNode] = {}
    resources: dict[Key, Mapping[str, float]] = {}
    for node, key in zip(nodes, keys, strict=True):
        refs = [TaskRef(keys[i]) for i in node.dependencies]
        own = policies[node.index]
        codes, call = pack(node, node.call, (node.function.id, dag_id))
        if node.kind != "function":
            dsk[key] = Task(key, run_transform, codes, call, *refs)
        elif node.function.timeout is not None or own.has_code or "gpu" in node.cost:
            judge = pack.policy(node.function, own) if own.has_code else None
            keep = node.index not in discard
            gpus = "gpu" in node.cost or own.escalate is not None
            terms = Terms(node.function.timeout, judge, keep, gpus)
            dsk[key] = Task(key, run_on_terms, terms, codes, call, *refs)
        else:
            runner = run_and_discard if node.index in discard else run
            dsk[key] = Task(key, runner, codes, call, *refs)
        if node.cost:
            resources[key] = node.cost
    budgets = {
        key: own.max_retries for own, key in zip(policies, keys, strict=True) if own.max_retries
    }
    marks = {key: {"run": run_id, "index": index} for index, key in enumerate(keys)}
    layer = MaterializedLayer(
        dsk,
        annotations={
            "resources": resources.get,
            "retries": budgets.get,
            "handoff": marks.get,
        },
    )
    return Translation(_single_layer(f"handoff-{run_id}", layer), keys, prefixes, policies)


def translate_plain(functions: Mapping[Hashable, Function], token: str) -> tuple[Any, list[Key]]:
    """Translate a DAG for any Dask scheduler: no annotations, transforms inside their consumers.

    Returns
    -------
    tuple
        The graph, and the key of each regular function in the order of the DAG.
    """
    nodes = expand(functions)
    regular = [node for node in nodes if node.kind == "function"]
    prefixes = code_prefixes(nodes)
    keys = [(f"{prefixes[node.index]}-{token}", node.index) for node in regular]
    pack = _Packer()
    dsk: dict[Key, GraphNode] = {}
    for node, key in zip(regular, keys, strict=True):
        call, dependencies = _without_transforms(node, nodes)
        refs = [TaskRef(keys[i]) for i in dependencies]
        dsk[key] = Task(key, run, *pack(node, call, (node.function.id, None)), *refs)
    return _single_layer(f"handoff-{token}", MaterializedLayer(dsk)), keys


def _single_layer(name: str, layer: MaterializedLayer) -> HighLevelGraph:
    return HighLevelGraph({name: layer}, {name: set()})


def _without_transforms(node: Node, nodes: list[Node]) -> tuple[Call, list[int]]:
    """Return a node's call with the transforms of its arguments applied in place."""
    dependencies: list[int] = []
    entries: dict[int, Entry] = {}
    for position, index in enumerate(node.dependencies):
        steps: list[tuple[Any, tuple[Any, ...]]] = []
        while nodes[index].kind != "function":
            step = nodes[index]
            steps.insert(0, (step.call.code, step.call.extra_args))
            (index,) = step.dependencies
        if index not in dependencies:
            dependencies.append(index)
        entry: Entry = dependencies.index(index)
        entries[position] = Transformed(entry, tuple(steps)) if steps else entry

    # What is one object in the call must stay one: it is evaluated once.
    replaced: dict[int, Entry] = {}

    def replace(entry: Entry) -> Entry:
        if isinstance(entry, int):
            return entries[entry]
        if id(entry) not in replaced:
            replaced[id(entry)] = _map_entries(entry, replace)
        return replaced[id(entry)]

    return _map_entries(node.call, replace), dependencies


def _map_entries(entry: Any, change: Callable[[Entry], Entry]) -> Any:
    """Return an entry with a change made to each entry directly inside it."""
    if isinstance(entry, Call):
        return entry._replace(args=tuple(map(change, entry.args)))
    if isinstance(entry, Listed):
        return Listed(tuple(map(change, entry.items)))
    return entry._replace(item=change(entry.item))


def code_prefixes(nodes: Iterable[Node]) -> tuple[str, ...]:
    """Name each node after its code: one name a code, one code a name."""
    return code_names(node.call.code for node in nodes)


def code_names(codes: Iterable[Callable[..., Any]]) -> tuple[str, ...]:
    """Name each callable: the same name for the same code, and for no other."""
    names: dict[int, str] = {}
    taken: dict[str, tuple[object, ...]] = {}
    codes = list(codes)
    for code in codes:
        if id(code) in names:
            continue
        name, identity = _identify(code)
        # Dask cuts a name at a dash and averages durations by what is left, run after run.
        number = 2
        unique = name
        while taken.setdefault(unique, identity) != identity:
            unique = f"{name}_{number}"
            number += 1
        names[id(code)] = unique
    return tuple(names[id(code)] for code in codes)


def _identify(code: Callable[..., Any]) -> tuple[str, tuple[object, ...]]:
    """Return a name for a callable, and what tells it from others of that name."""
    inner: Any = code
    while isinstance(inner, (functools.partial, toolz.curry)):
        inner = inner.func
    name = funcname(inner)
    if name == str(inner)[:50]:
        # An object without a name, whose text may hold its address: its class has the code.
        inner = type(inner)
        name = funcname(inner)
    source = getattr(inner, "__code__", None)
    if name == "lambda" and source is not None:
        name = f"lambda_{source.co_firstlineno}"
    identity = (getattr(inner, "__module__", None), getattr(inner, "__qualname__", None), source)
    return re.sub(r"\W+", "_", name).strip("_") or "function", identity


class _Packer:
    """Pickles calls, each code once, so that the scheduler never opens what users wrote."""

    def __init__(self) -> None:
        self._pickled: dict[int, bytes] = {}

    def __call__(
        self, node: Node, call: Call, identity: tuple[Hashable, Hashable]
    ) -> tuple[tuple[bytes, ...], bytes]:
        """Return the pickled codes, and the pickled call that refers to them by number.

        The `identity`, ids of function and DAG, goes with the call.
        """
        codes: dict[bytes, int] = {}
        # What is one object in the call must stay one: it is evaluated once.
        numbered: dict[int, Entry] = {}

        def add(code: Callable[..., Any]) -> int:
            return codes.setdefault(self._code(code), len(codes))

        def number(entry: Entry) -> Entry:
            if isinstance(entry, int):
                return entry
            if id(entry) not in numbered:
                new: Entry = entry
                if isinstance(entry, Call):
                    new = entry._replace(code=add(entry.code))
                elif isinstance(entry, Transformed):
                    steps = tuple((add(code), static) for code, static in entry.transforms)
                    new = entry._replace(transforms=steps)
                numbered[id(entry)] = _map_entries(new, number)
            return numbered[id(entry)]

        try:
            if all(type(entry) is int for entry in call.args):  # as nearly always
                data: Any = (add(call.code), *call[1:])
            else:
                data = tuple(cast("Call", number(call)))
            return tuple(codes), _dumps((identity, *data))
        except Exception as error:
            function, field = _unpicklable(node)
            raise InvalidFunctionError(
                function.id,
                field,
                f"cannot be pickled, as is needed to send it to a worker: {error}",
            ) from error

    def policy(self, function: Function, policy: RetryPolicy) -> bytes:
        """Return a policy, pickled."""
        try:
            return self._code(policy)
        except Exception as error:
            raise InvalidFunctionError(
                function.id,
                "retry",
                f"cannot be pickled, as is needed to send it to a worker: {error}",
            ) from error

    def _code(self, code: object) -> bytes:
        pickled = self._pickled.get(id(code))
        if pickled is None:
            pickled = self._pickled[id(code)] = pickling.dumps(code)
        return pickled


def _dumps(value: object) -> bytes:
    """Pickle by reference what can be imported, by value what was made in the user's script."""
    try:
        data = pickle.dumps(value, protocol=5)
        # A worker has another __main__ than the client, and may lack what the user registered.
        local = ("__main__", *cloudpickle.list_registry_pickle_by_value())
        if not any(name.encode() in data for name in local):
            return data
    except Exception:
        pass  # cloudpickle can do more
    return pickling.dumps(value)


def _unpicklable(node: Node) -> tuple[Function, str]:
    """Find the function, of a node that cannot be pickled, and the field of it to blame."""
    for function in (node.function, *node.inlined):
        for field in ("code", "extra_args", "extra_kwargs"):
            if not _pickles(getattr(function, field)):
                return function, field
        if not _pickles([a for a in function.args if isinstance(a, Argument)]):
            return function, "args"
    return node.function, "args"


def _pickles(value: object) -> bool:
    try:
        _dumps(value)
    except Exception:
        return False
    return True
