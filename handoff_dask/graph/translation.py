"""From a DAG to a Dask graph.

One ``HighLevelGraph`` with one layer, whose annotations carry the cost maps (``resources``), the
retries and the mark by which the scheduler plugin knows its own (``handoff``).
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import toolz
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.utils import funcname
from distributed import Future

from handoff_dask.compat.task_spec import GraphNode, Task, TaskRef
from handoff_dask.graph.packing import Packer
from handoff_dask.model.expansion import (
    Call,
    Entry,
    Node,
    Transformed,
    expand,
    node_policy,
    untransformed,
    with_dependencies,
)
from handoff_dask.model.function import Function, time_limit
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.wire.bundles import Member, packed
from handoff_dask.wire.keys import Key, NodeKeys, bundle_key, collected_key, node_key, shared_key
from handoff_dask.wire.messages import ONE_ATTEMPT
from handoff_dask.wire.payload import Name
from handoff_dask.wire.stored_as import StoredAs
from handoff_dask.worker.bundle_task import collect, run_bundle, run_collector, take
from handoff_dask.worker.task import (
    Isolated,
    Terms,
    refuse,
    run,
    run_and_discard,
    run_on_terms,
    run_transform,
)

#: What a call is packed as: what its pickle names, and the pickle.
PackedCall: TypeAlias = tuple[tuple[Name, ...], bytes]


class BundledNodes(NamedTuple):
    """Nodes that travel together, as one task."""

    #: Its number in the run.
    number: int
    #: The nodes, in the order in which they run.
    members: tuple[int, ...]
    #: Those whose values outlive the bundle, and those whose values tasks outside need.
    kept: frozenset[int]
    taken: Sequence[int]
    #: Those whose values a function takes together, by the number of these values in the run.
    collected: Mapping[int, Sequence[int]]
    #: The nodes outside whose values they need.
    dependencies: tuple[int, ...]


@dataclass(frozen=True)
class Translation:
    """A DAG as Dask sees it."""

    graph: HighLevelGraph
    #: The key of each node, by index.
    keys: tuple[Key, ...]


class Translator:
    """Translates the nodes of a run into annotated Dask graphs.

    Parameters
    ----------
    nodes
        The expansion of the DAG.
    run_id
        Makes the keys of this run differ from those of any other; 32 hexadecimal digits.
    dag_id
        What :func:`current` returns to functions.
    policy
        Of the functions that have none themselves.
    discard
        Nodes whose results nobody wants, not even the workers.
    runs
        Those of the nodes that run; None: all.
    stored
        By node: where its result is stored.

    Attributes
    ----------
    prefixes
        The part of each key that functions with the same code share, by index.
    policies
        The retry policy of each node, by index.
    futures
        {key: Future} of those among the arguments.
    stored
        By node: where its result is stored.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        run_id: str,
        *,
        dag_id: Hashable = None,
        policy: RetryPolicy = ONE_ATTEMPT,
        discard: frozenset[int] = frozenset(),
        runs: Iterable[int] | None = None,
        stored: Mapping[int, StoredAs] = MappingProxyType({}),
    ) -> None:
        self.prefixes = code_prefixes(nodes)
        self.policies = tuple(node_policy(node, policy) for node in nodes)
        #: Returns the key of a node.
        self.key = NodeKeys(run_id, self.prefixes)
        self._nodes = nodes
        self._run_id = run_id
        self._dag_id = dag_id
        self._discard = discard
        self.stored = stored
        #: By collector: the key of values that it takes together, and the place there, by node.
        self._collected: dict[int, dict[int, tuple[Key, int]]] = {}
        calls = (node.call for node in (nodes if runs is None else map(nodes.__getitem__, runs)))
        self._pack = Packer(calls, partial(shared_key, run_id))
        self.futures: Mapping[Hashable, Future[Any]] = self._pack.futures

    def bundle_key(self, number: int) -> Key:
        """Return the key of a bundle."""
        return bundle_key(self._run_id, number)

    def collected_key(self, number: int) -> Key:
        """Return the key of values that a function takes out of a bundle together."""
        return collected_key(self._run_id, number)

    def collects(self, collector: int, number: int, indices: Sequence[int]) -> None:
        """Note that a node gets the values of others together, under a number of the run."""
        places = self._collected.setdefault(collector, {})
        key = self.collected_key(number)
        places.update((index, (key, place)) for place, index in enumerate(indices))

    def packed(self, index: int) -> PackedCall:
        """Return the call of a node, pickled; raise InvalidFunctionError if that cannot be."""
        node = self._nodes[index]
        return self._pack(node, node.call, (node.function.id, self._dag_id))

    def graph(
        self,
        number: int,
        calls: Mapping[int, PackedCall],
        alone: Iterable[int],
        bundles: Iterable[BundledNodes] = (),
        broken: Mapping[int, Exception] = MappingProxyType({}),
    ) -> HighLevelGraph:
        """Return the graph of a portion of the run.

        Parameters
        ----------
        number
            The portion's.
        calls
            By index: the packed calls of its nodes.
        alone
            The nodes that are tasks of their own.
        bundles
            Those that travel together.
        broken
            Why some of the former have no call: their tasks raise that.
        """
        nodes, policies, pack, key = self._nodes, self.policies, self._pack, self.key
        dsk: dict[Key, GraphNode] = {}
        resources: dict[Key, Mapping[str, float]] = {}
        budgets: dict[Key, int] = {}
        for index in alone:
            node, own, name = nodes[index], policies[index], key(index)
            if index in broken:
                inputs = map(TaskRef, map(key, node.dependencies))
                dsk[name] = Task(name, refuse, pickle.dumps(broken[index]), *inputs)
                continue
            names, call = calls[index]
            judge = pack.policy(node.function, own) if own.has_code else None
            runner: Any
            fixed: tuple[Any, ...]
            if node.kind != "function":
                runner, fixed = run_transform, (judge, names, call)
            elif (
                node.isolated
                or node.function.timeout is not None
                or own.has_code
                or "gpu" in node.cost
                or index in self.stored
            ):
                keep = index not in self._discard
                gpus = "gpu" in node.cost or own.escalate is not None
                isolated = None
                if node.isolated:
                    isolated = Isolated(
                        repr(node.function.id), repr(self._dag_id), node.learns_memory
                    )
                terms = Terms(
                    time_limit(node.function), judge, keep, gpus, isolated, self.stored.get(index)
                )
                runner, fixed = run_on_terms, (terms, names, call)
            else:
                runner = run_and_discard if index in self._discard else run
                fixed = names, call
            refs = list(map(pack.content, names))
            collected = self._collected.pop(index, None)
            if collected is None:
                refs += (TaskRef(key(i)) for i in node.dependencies)
                dsk[name] = Task(name, runner, *fixed, *refs)
            else:
                at = [collected.get(i, (key(i), None)) for i in node.dependencies]
                numbers: dict[Key, int] = {}
                places = tuple((numbers.setdefault(k, len(numbers)), place) for k, place in at)
                contents = len(refs)
                refs += map(TaskRef, numbers)
                dsk[name] = Task(name, run_collector, runner, fixed, contents, places, *refs)
            if node.cost:
                resources[name] = node.cost
            if own.max_retries:
                # Dask's messages hold no larger numbers; the plugin counts by itself.
                budgets[name] = min(own.max_retries, 2**31)
        for bundle in bundles:
            name = bundle_key(self._run_id, bundle.number)
            dsk[name] = self._bundle(name, bundle, calls)
            for index in bundle.taken:
                dsk[key(index)] = Task(key(index), take, index, TaskRef(name))
            for group, indices in bundle.collected.items():
                own_name = self.collected_key(group)
                dsk[own_name] = Task(own_name, collect, tuple(indices), (), TaskRef(name))
            if cost := nodes[bundle.members[0]].cost:
                resources[name] = cost
        dsk.update(pack.nodes())
        layer = MaterializedLayer(
            dsk,
            annotations={
                "resources": resources.get,
                "retries": budgets.get,
                # The key says which node it is.
                "handoff": {"run": self._run_id},
            },
        )
        return _single_layer(f"handoff-{self._run_id}-{number}", layer)

    def _bundle(
        self, name: Key, bundle: BundledNodes, calls: Mapping[int, PackedCall]
    ) -> GraphNode:
        place = {index: -1 - position for position, index in enumerate(bundle.members)}
        place.update((index, number) for number, index in enumerate(bundle.dependencies))
        members, all_names = [], {}
        for index in bundle.members:
            names, call = calls[index]
            all_names.update(dict.fromkeys(names))
            sources = tuple(map(place.__getitem__, self._nodes[index].dependencies))
            retries = min(self.policies[index].max_retries, 2**31)
            stored = self.stored.get(index)
            members.append(
                Member(index, names, sources, retries, index in bundle.kept, call, stored)
            )
        refs = [*map(self._pack.content, all_names)]
        refs += (TaskRef(self.key(index)) for index in bundle.dependencies)
        return Task(name, run_bundle, packed(members), tuple(all_names), *refs)


def translate(nodes: Sequence[Node], run_id: str, **options: Any) -> Translation:
    """Translate all nodes of a run into one graph, each as a task; see :class:`Translator`."""
    translator = Translator(nodes, run_id, **options)
    calls = {node.index: translator.packed(node.index) for node in nodes}
    graph = translator.graph(0, calls, calls)
    return Translation(graph, tuple(map(translator.key, calls)))


def translate_plain(functions: Mapping[Hashable, Function], token: str) -> tuple[Any, list[Key]]:
    """Translate a DAG for any Dask scheduler: no annotations, transforms inside their consumers.

    Returns the graph, and the key of each regular function in the order of the DAG.
    """
    nodes = expand(functions)
    regular = [node for node in nodes if node.kind == "function"]
    prefixes = code_prefixes(nodes)
    keys = [node_key(prefixes[node.index], token, node.index) for node in regular]
    calls = [_without_transforms(node, nodes) for node in regular]
    pack = Packer((call for call, _ in calls), partial(shared_key, token))
    packed = [
        pack(node, call, (node.function.id, None))
        for node, (call, _) in zip(regular, calls, strict=True)
    ]
    dsk: dict[Key, GraphNode] = {}
    for key, (names, call), (_, dependencies) in zip(keys, packed, calls, strict=True):
        refs = [*map(pack.content, names), *(TaskRef(keys[i]) for i in dependencies)]
        dsk[key] = Task(key, run, names, call, *refs)
    dsk.update(pack.nodes())
    return _single_layer(f"handoff-{token}", MaterializedLayer(dsk)), keys


def _single_layer(name: str, layer: MaterializedLayer) -> HighLevelGraph:
    return HighLevelGraph({name: layer}, {name: set()})


def _without_transforms(node: Node, nodes: list[Node]) -> tuple[Call, list[int]]:
    """Return a node's call with the transforms of its arguments applied in place."""
    dependencies: list[int] = []
    entries: dict[int, Entry] = {}
    for position, index in enumerate(node.dependencies):
        index, steps = untransformed(nodes, index)
        if index not in dependencies:
            dependencies.append(index)
        entry: Entry = dependencies.index(index)
        entries[position] = Transformed(entry, steps) if steps else entry
    return with_dependencies(node.call, entries), dependencies


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
        candidates = chain([name], (f"{name}_{number}" for number in count(2)))
        names[id(code)] = next(c for c in candidates if taken.setdefault(c, identity) == identity)
    return tuple(names[id(code)] for code in codes)


def _identify(code: Callable[..., Any]) -> tuple[str, tuple[object, ...]]:
    """Return a name for a callable, and what distinguishes it from others of that name."""
    inner: Any = code
    while isinstance(inner, (partial, toolz.curry)):
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
