"""From a DAG to a Dask graph.

One ``HighLevelGraph`` with one layer, whose annotations carry the cost maps (``resources``), the
retries and the mark by which the scheduler plugin knows its own (``handoff``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from typing import Any

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
    map_entries,
    node_policy,
)
from handoff_dask.model.function import Function, time_limit
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.wire.keys import Key, node_key, shared_key
from handoff_dask.wire.messages import ONE_ATTEMPT
from handoff_dask.worker.task import Terms, run, run_and_discard, run_on_terms, run_transform


@dataclass(frozen=True)
class Translation:
    """A DAG as Dask sees it."""

    graph: HighLevelGraph
    #: The key of each node, by index.
    keys: tuple[Key, ...]
    #: The part of each key that functions with the same code share, by index.
    prefixes: tuple[str, ...]
    #: The retry policy of each node, by index.
    policies: tuple[RetryPolicy, ...]
    #: {key: Future} of those among the arguments.
    futures: Mapping[Hashable, Future[Any]]


def translate(
    nodes: list[Node],
    run_id: str,
    *,
    dag_id: Hashable = None,
    policy: RetryPolicy = ONE_ATTEMPT,
    discard: frozenset[int] = frozenset(),
) -> Translation:
    """Translate nodes into an annotated Dask graph, or raise if a call cannot be pickled.

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
    """
    prefixes = code_prefixes(nodes)
    keys = tuple(node_key(prefix, run_id, index) for index, prefix in enumerate(prefixes))
    pack = Packer((node.call for node in nodes), partial(shared_key, run_id))
    policies = tuple(node_policy(node, policy) for node in nodes)
    packed = [pack(node, node.call, (node.function.id, dag_id)) for node in nodes]
    dsk: dict[Key, GraphNode] = pack.nodes()
    for node, own, key, (names, call) in zip(nodes, policies, keys, packed, strict=True):
        refs = [*map(pack.content, names), *(TaskRef(keys[i]) for i in node.dependencies)]
        judge = pack.policy(node.function, own) if own.has_code else None
        if node.kind != "function":
            dsk[key] = Task(key, run_transform, judge, names, call, *refs)
        elif node.function.timeout is not None or own.has_code or "gpu" in node.cost:
            keep = node.index not in discard
            gpus = "gpu" in node.cost or own.escalate is not None
            terms = Terms(time_limit(node.function), judge, keep, gpus)
            dsk[key] = Task(key, run_on_terms, terms, names, call, *refs)
        else:
            runner = run_and_discard if node.index in discard else run
            dsk[key] = Task(key, runner, names, call, *refs)
    resources = {key: node.cost for key, node in zip(keys, nodes, strict=True) if node.cost}
    budgets = {
        # Dask's messages hold no larger numbers; the plugin counts by itself.
        key: min(own.max_retries, 2**31)
        for own, key in zip(policies, keys, strict=True)
        if own.max_retries
    }
    layer = MaterializedLayer(
        dsk,
        annotations={
            "resources": resources.get,
            "retries": budgets.get,
            # The key says which node it is.
            "handoff": {"run": run_id},
        },
    )
    graph = _single_layer(f"handoff-{run_id}", layer)
    return Translation(graph, keys, prefixes, policies, pack.futures)


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
    dsk: dict[Key, GraphNode] = pack.nodes()
    for key, (names, call), (_, dependencies) in zip(keys, packed, calls, strict=True):
        refs = [*map(pack.content, names), *(TaskRef(keys[i]) for i in dependencies)]
        dsk[key] = Task(key, run, names, call, *refs)
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
            replaced[id(entry)] = map_entries(entry, replace)
        return replaced[id(entry)]

    return map_entries(node.call, replace), dependencies


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
