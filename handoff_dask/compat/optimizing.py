"""From Dask collections to one graph of tasks, each collection optimized by its own rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import dask
import toolz
from dask.base import annotate, get_annotations
from dask.core import flatten
from dask.delayed import optimize as optimize_delayed
from dask.highlevelgraph import HighLevelGraph
from dask.typing import Key
from distributed import Future, get_client
from distributed.shuffle._core import P2PBarrierTask
from distributed.shuffle._rechunk import P2PRechunkLayer

from handoff_dask.compat.client_side import only_annotations
from handoff_dask.compat.task_spec import Alias, GraphNode, convert_legacy_graph, futures_in

#: P2P needs Dask's own keys, by which its scheduler recognizes the tasks of a shuffle.
_BY_TASKS = {"dataframe.shuffle.method": "tasks"}
#: Parameters of expressions that name how to shuffle or rechunk.
_METHODS = {"method", "shuffle_method"}
#: Fusion loses annotations, or extends them to tasks that have none.
_UNFUSED = {
    "optimization.fuse.active": False,
    "optimization.fuse.delayed": False,
    "optimization.annotations.fuse": False,
}
#: What functions of a key return for keys that have no such annotation.
_NONE: tuple[type, ...] = (type(None),)
with suppress(ImportError):  # Dask of 2025 has neither expressions of all collections nor this
    from dask._expr import _AnnotationsTombstone

    _NONE += (_AnnotationsTombstone,)


class Finish(NamedTuple):
    """How to turn the values of a collection's keys into its value, or into a collection."""

    #: In nested lists.
    keys: Any
    postcompute: tuple[Callable[..., Any], tuple[Any, ...]]
    postpersist: tuple[Callable[..., Any], tuple[Any, ...]]


@dataclass(frozen=True)
class OptimizedGraph:
    """The graph of several collections."""

    tasks: Mapping[Key, GraphNode]
    #: {key: {annotation: value}}; keys of one layer may share the inner mapping.
    annotations: Mapping[Key, Mapping[str, Any]]
    #: One for each collection.
    finishes: Sequence[Finish]
    #: The graphs as they were.
    sources: Sequence[Mapping[Any, Any]]

    def futures(self) -> dict[Key, Future[Any]]:
        """Return the futures in the graphs, by their keys and by those that stand for them."""
        held: dict[Key, Future[Any]] = {}
        for source in self.sources:
            for key, value in _materialized(source):
                if isinstance(value, Future):
                    held[key] = value
                held.update((future.key, future) for future in futures_in(value))
        return held

    def barrier(self) -> Key | None:
        """Return the key of a P2P shuffle; None if there is none."""
        return next((k for k, v in self.tasks.items() if isinstance(v, P2PBarrierTask)), None)


def known_future(key: Key) -> Future[Any] | None:
    """Return a future of the current client: when it optimizes, Dask may keep nothing but a key."""
    with suppress(ValueError):
        client = get_client()
        if key in client.futures:
            return Future(key, client)
    return None


def optimized(collections: Sequence[Any], optimize_graph: bool = True) -> OptimizedGraph:
    """Return the graph of collections, with annotations around this call as defaults."""
    # Expressions warn that they ignore the annotations around; here those become defaults below.
    with dask.config.set(_BY_TASKS), only_annotations({}):
        collections = [_shuffled_by_tasks(c) if _is_expression(c) else c for c in collections]
        if optimize_graph:
            collections = [c.optimize() if _is_expression(c) else c for c in collections]
        sources = [c.__dask_graph__() for c in collections]
        finishes = [
            Finish(c.__dask_keys__(), c.__dask_postcompute__(), c.__dask_postpersist__())
            for c in collections
        ]
        # Like Dask, optimize all collections of one kind together.
        kinds = toolz.groupby(lambda i: _optimizer(collections[i]), range(len(collections)))
        graphs = []
        for optimizer, members in kinds.items():
            graph = HighLevelGraph.merge(*(_high_level(sources[i], str(i)) for i in members))
            if optimizer is not None and optimize_graph:
                keys = list(flatten([finishes[i].keys for i in members]))
                graph = _high_level(_optimized(graph, keys, optimizer), "optimized")
            graphs.append(graph)
        tasks: dict[Key, Any] = {}
        for graph in graphs:
            for layer in graph.layers.values():
                tasks.update(layer)
    outputs = flatten([finish.keys for finish in finishes])
    needed = _needed(convert_legacy_graph(tasks), outputs)
    annotations = _annotations(graphs, needed, get_annotations())
    return OptimizedGraph(needed, annotations, finishes, sources)


def _needed(tasks: Mapping[Key, GraphNode], outputs: Iterable[Key]) -> dict[Key, GraphNode]:
    """Return the tasks that these keys need, in the order in which they are."""
    needed, ahead = set(), list(outputs)
    while ahead:
        key = ahead.pop()
        if key not in needed:
            needed.add(key)
            if key in tasks:
                ahead += tasks[key].dependencies
    return {key: node for key, node in tasks.items() if key in needed}


def _is_expression(collection: Any) -> bool:
    """Whether a collection is an expression, which is optimized before it becomes a graph."""
    kind = type(collection)
    return hasattr(kind, "expr") and hasattr(kind, "optimize")


def _shuffled_by_tasks(collection: Any) -> Any:
    """Return an equal expression that names P2P nowhere.

    The setting does not reach all shuffles: ``drop_duplicates`` and others look up the default when
    they are called.
    """
    expression = collection.expr
    while True:
        for node in expression.walk():
            named = [n for n in _METHODS.intersection(node._parameters) if node.operand(n) == "p2p"]
            if named:
                by_tasks = node.substitute_parameters(dict.fromkeys(named, "tasks"))
                expression = expression.substitute(node, by_tasks)
                break
        else:
            return type(collection)(expression)


def _optimizer(collection: Any) -> Callable[..., Any] | None:
    if _is_expression(collection):
        return None
    optimizer: Callable[..., Any] | None = getattr(collection, "__dask_optimize__", None)
    if optimizer is optimize_delayed and not dask.config.get("optimization.fuse.delayed"):
        return None  # it only drops unused tasks, in time that is quadratic in their number
    return optimizer


def _optimized(graph: HighLevelGraph, keys: list[Any], optimizer: Callable[..., Any]) -> Any:
    if not any(layer.annotations for layer in graph.layers.values()):
        return optimizer(graph, keys)
    with dask.config.set(_UNFUSED):
        result = optimizer(graph, keys)
    if isinstance(result, HighLevelGraph) and any(v.annotations for v in result.layers.values()):
        return result
    return graph  # optimization has lost the annotations


def _high_level(graph: Mapping[Any, Any], name: str) -> HighLevelGraph:
    """Return a graph in layers, without P2P rechunking."""
    if not isinstance(graph, HighLevelGraph):
        return HighLevelGraph({name: graph}, {name: set()})
    layers, dependencies = dict(graph.layers), dict(graph.dependencies)
    for layer_name, layer in graph.layers.items():
        if isinstance(layer, P2PRechunkLayer):
            with annotate(**layer.annotations or {}):
                by_tasks = _rechunked_by_tasks(layer)
            layers.update(by_tasks.layers)
            for step, needed in by_tasks.dependencies.items():
                before = dependencies[layer_name] if layer.name_input in needed else set()
                dependencies[step] = (needed - {layer.name_input}) | before
    return HighLevelGraph(layers, dependencies)


def _rechunked_by_tasks(layer: P2PRechunkLayer) -> HighLevelGraph:
    """Return what a layer does in layers of plain tasks, of which the last has its name."""
    from dask.array import Array

    source = Array({}, layer.name_input, layer.chunks_input, dtype=float)
    target = source.rechunk(layer.chunks, method="tasks")
    graph = target.dask
    layers = {name: step for name, step in graph.layers.items() if name != layer.name_input}
    dependencies = {name: graph.dependencies[name] for name in layers}
    same = flatten(target.__dask_keys__())
    aliases: Mapping[Key, Any] = {
        (layer.name, *key[1:]): Alias((layer.name, *key[1:]), key) for key in same
    }
    return HighLevelGraph(
        {**layers, layer.name: aliases}, {**dependencies, layer.name: {target.name}}
    )


def _annotations(
    graphs: Iterable[HighLevelGraph], keys: Iterable[Key], around: Mapping[str, Any]
) -> dict[Key, Mapping[str, Any]]:
    """Return the annotations of each key: those of its layers before those around."""
    own: dict[Key, Mapping[str, Any]] = {}
    for graph in graphs:
        for layer in graph.layers.values():
            if not layer.annotations:
                continue
            same = not any(map(callable, layer.annotations.values()))
            for key in layer:
                values = layer.annotations if same else _values(layer.annotations, key)
                # Delayed objects inside lists bring layers that hold the same tasks again.
                before = own.get(key, values)
                own[key] = values if before is values else {**before, **values}
    if not around:
        return own
    if any(map(callable, around.values())):
        return {key: {**_values(around, key), **own.get(key, {})} for key in keys}
    shared: dict[int, Mapping[str, Any]] = {}
    none: Mapping[str, Any] = {}
    both = {}
    for key in keys:
        mine = own.get(key, none)
        if id(mine) not in shared:
            shared[id(mine)] = {**around, **mine}
        both[key] = shared[id(mine)]
    return both


def _values(annotations: Mapping[str, Any], key: Key) -> dict[str, Any]:
    """Return the annotations of one key, where some are functions of it."""
    values = {name: v(key) if callable(v) else v for name, v in annotations.items()}
    return {name: v for name, v in values.items() if not isinstance(v, _NONE)}


def _materialized(graph: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    if not isinstance(graph, HighLevelGraph):
        yield from graph.items()
        return
    for layer in graph.layers.values():
        if layer.is_materialized():
            yield from layer.items()
