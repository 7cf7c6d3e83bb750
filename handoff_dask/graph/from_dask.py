"""From the graph of Dask collections to functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any, TypeAlias

import toolz
from dask.core import flatten
from dask.typing import Key
from dask.utils import apply, key_split
from distributed import Future

from handoff_dask import collector
from handoff_dask.compat.optimizing import OptimizedGraph, known_future, optimized
from handoff_dask.compat.task_spec import (
    Alias,
    DataNode,
    Evaluation,
    GraphNode,
    NestedContainer,
    Task,
    TaskRef,
    container,
    is_subgraph,
    without_futures,
)
from handoff_dask.errors import DAGError, MissingFunctionError
from handoff_dask.model.contents import contents
from handoff_dask.model.dag import DAG
from handoff_dask.model.function import Argument, Function


def graph_of(collections: Sequence[Any], optimize_graph: bool) -> OptimizedGraph:
    """Return the graph of collections.

    Raises
    ------
    TypeError
        One of them is a DAG.
    DAGError
        The graph has a P2P shuffle.
    """
    for collection in collections:
        if isinstance(collection, DAG):
            raise TypeError(f"{collection!r} is no collection of plain Dask: pass it to execute()")
    with collector.paused():
        graph = optimized(collections, optimize_graph)
    barrier = graph.barrier()
    if barrier is not None:
        raise DAGError(
            f"{barrier!r} belongs to a P2P shuffle, which only Dask itself can run: "
            'shuffle with shuffle_method="tasks", rechunk with method="tasks"'
        )
    return graph


def functions_of(graph: OptimizedGraph) -> list[Function]:
    """Return a function for each task of a graph and for each key of its collections.

    Their ids are the keys. Data becomes part of the functions that use it.

    Raises
    ------
    MissingFunctionError
        The graph refers to keys that it does not have.
    """
    with collector.paused():
        return list(_Conversion(graph).functions())


def output_keys(graph: OptimizedGraph) -> list[Key]:
    """Return the keys of the collections, each once."""
    return list(dict.fromkeys(flatten([finish.keys for finish in graph.finishes])))


#: A code, its positional arguments, and those by keyword.
_Call: TypeAlias = tuple[Any, Sequence[Any], Mapping[str, Any]]


class _NotPlainError(Exception):
    """A task cannot be written as a call with arguments."""


class _Conversion:
    def __init__(self, graph: OptimizedGraph) -> None:
        self._graph = graph
        self._tasks = graph.tasks
        self._outputs = dict.fromkeys(output_keys(graph))
        #: {key: id} of the tasks that are named after an alias, because that is asked for.
        self._ids: dict[Key, Key] = {}
        for key in self._outputs:
            target = self._target(key)
            if target not in self._outputs and isinstance(self._tasks.get(target), Task):
                self._ids.setdefault(target, key)
        #: By id of the annotations: the fields that they become.
        self._fields: dict[int, Mapping[str, Any]] = {}
        #: By name.
        self._evaluations: dict[str, Evaluation] = {}

    @cached_property
    def _futures(self) -> Mapping[Key, Future[Any]]:
        return self._graph.futures()

    def functions(self) -> Iterator[Function]:
        for key, node in self._tasks.items():
            if isinstance(node, Task):
                yield self._function(key, node)
        for key in self._outputs:
            target = self._target(key)
            if not isinstance(self._tasks.get(key), Task) and self._ids.get(target) != key:
                yield Function(key, (), toolz.identity, (self._value(key, key),))

    def _function(self, key: Key, node: Task) -> Function:
        code: Any
        kwargs: Mapping[str, Any]
        try:
            code, values, kwargs = self._call(key, node)
        except _NotPlainError:
            code, values, kwargs = self._evaluation(key, node)
        leading = list(takewhile(_is_argument, values))
        return Function(
            self._ids.get(key, key),
            tuple(argument.id for argument in leading),
            code,
            tuple(values[len(leading) :]),
            kwargs,
            **self._annotated(key),
        )

    def _call(self, key: Key, node: Task) -> _Call:
        if is_subgraph(node):
            raise _NotPlainError
        if isinstance(node, NestedContainer):
            return toolz.identity, [self._argument(key, node)], {}
        values = [self._argument(key, value) for value in node.args]
        kwargs = {name: self._argument(key, value) for name, value in node.kwargs.items()}
        if node.func is apply and not any(map(_is_replaced, values)):
            code, values, kwargs = (*values, kwargs)[:3]
            return code, values, kwargs
        return node.func, values, kwargs

    def _evaluation(self, key: Key, node: Task) -> _Call:
        keys = tuple(node.dependencies)
        values = [self._value(key, dependency) for dependency in keys]
        name = key_split(key)
        code = self._evaluations.setdefault(name, Evaluation(name))
        return code, values, {"task": without_futures(node), "keys": keys}

    def _argument(self, user: Key, node: Any) -> Any:
        """Return what a function gets for an argument of a task."""
        if isinstance(node, Future):
            return node
        if isinstance(node, TaskRef):
            return self._value(user, node.key)
        if not isinstance(node, GraphNode):
            return node
        if isinstance(node, Alias):
            return self._value(user, node.target)
        if isinstance(node, DataNode):
            return node.value
        assert isinstance(node, Task)
        made = container(node, [self._argument(user, value) for value in node.args])
        # What is a key of a dict cannot be replaced by its result.
        keys = made if isinstance(made, dict) else ()
        if made is None or any(map(_is_replaced, contents(keys))):
            raise _NotPlainError
        return made

    def _value(self, user: Key, key: Key) -> Any:
        """Return what a function gets for a key."""
        key = self._target(key)
        node = self._tasks.get(key)
        if isinstance(node, DataNode):
            return node.value
        if node is not None:
            return Argument(self._ids.get(key, key))
        future = self._futures.get(key) or known_future(key)
        if future is None:
            raise MissingFunctionError([(user, key)])
        return future

    def _target(self, key: Key) -> Key:
        """Follow aliases to their end."""
        while isinstance(node := self._tasks.get(key), Alias):
            key = node.target
        return key

    def _annotated(self, key: Key) -> Mapping[str, Any]:
        annotations = self._graph.annotations.get(key)
        if annotations is None:
            return {}
        if id(annotations) not in self._fields:
            self._fields[id(annotations)] = fields_of(annotations)
        return self._fields[id(annotations)]


def fields_of(annotations: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of :class:`Function` for annotations of Dask; others are ignored.

    Examples
    --------
    >>> fields_of({"resources": {"GPU": 1}, "retries": 2, "workers": ["alice"], "owner": "me"})
    {'cost': {'GPU': 1}, 'max_retries': 2, 'node': 'alice'}
    """
    names = {"resources": "cost", "retries": "max_retries", "priority": "priority"}
    given = {name: value for name, value in annotations.items() if value is not None}
    fields = {names[name]: value for name, value in given.items() if name in names}
    workers = given.get("workers") or given.get("restrictions")
    if workers:
        if not isinstance(workers, str):
            workers = tuple(workers)
            workers = workers[0] if len(workers) == 1 else workers
        fields["node"] = workers
        if given.get("allow_other_workers") or given.get("loose_restrictions"):
            fields["allow_other_workers"] = True
    return fields


def _is_argument(value: Any) -> bool:
    return isinstance(value, Argument)


def _is_replaced(value: Any) -> bool:
    return isinstance(value, (Argument, Future))
