"""Running Dask collections through the gate."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from inspect import signature
from typing import Any, TypeVar

from dask.base import unpack_collections
from dask.core import flatten
from distributed import Client

from handoff_dask.client import annotating
from handoff_dask.client.answers import ScalarAnswer
from handoff_dask.client.connection import current_client, require_client
from handoff_dask.client.execution import execute, submit
from handoff_dask.client.results import ExecutionResult
from handoff_dask.client.run import Run
from handoff_dask.compat.optimizing import OptimizedGraph
from handoff_dask.graph.from_dask import functions_of, graph_of, output_keys
from handoff_dask.model.dag import DAG

T = TypeVar("T")
V = TypeVar("V")

#: Options of runs that have no meaning for collections, and what to use instead.
_INSTEAD = {
    "results": "{run}(DAG.from_dask(...), results=...)",
    "detach": "submit(DAG.from_dask(...), detach=True)",
}


def compute(
    *args: Any,
    traverse: bool = True,
    optimize_graph: bool = True,
    client: Client | None = None,
    **options: Any,
) -> ScalarAnswer:
    """Compute Dask collections as ``dask.compute`` does, each task through the gate.

    Parameters
    ----------
    *args
        Collections: delayed objects, bags, arrays, dataframes and others. Anything else is passed
        through.
    traverse
        Whether to look for collections inside lists, tuples, sets and dicts, too.
    optimize_graph
        Whether to optimize.
    client
        As for :func:`execute`.
    **options
        Of :func:`execute`, but for `results`, and for ``on_error="continue"``.

    Returns
    -------
    tuple
        The values, in the form and order of the arguments. With an asynchronous client, an
        awaitable of it.

    Raises
    ------
    AllocationError
        No worker can ever hold what a task is annotated with; nothing ran.
    FunctionFailedError
        A task failed in its last attempt: its `function_id` is the key, and its cause what the task
        raised.

    See Also
    --------
    DAG.from_dask : Which annotations become which fields.

    Examples
    --------
    >>> import dask
    >>> from handoff_dask import compute
    >>> with dask.annotate(resources={"cpu": 1}):
    ...     numbers = [dask.delayed(int)(text) for text in "123"]
    >>> compute(dask.delayed(sum)(numbers), {"first": numbers[0], "text": "1"})
    (6, {'first': 1, 'text': '1'})
    """
    __tracebackhide__ = True
    _check("compute", execute, options)
    if options.get("on_error", "raise") != "raise":
        raise TypeError(
            "compute() returns all values or raises: to go on after an error, use "
            'execute(DAG.from_dask(...), on_error="continue")'
        )
    collections, repack = unpack_collections(*args, traverse=traverse)
    if not collections:
        return _value(args) if _asynchronous(client) else args
    graph, dag = _prepared(collections, optimize_graph, client)
    with annotating.applied():
        result = execute(dag, client=client, results=output_keys(graph), **options)

    def values(result: ExecutionResult) -> Any:
        finished = []
        for finish in graph.finishes:
            code, further = finish.postcompute
            finished.append(code(_filled(finish.keys, result.results), *further))
        return repack(finished)

    return _then(result, values) if _asynchronous(client) else values(result)


def persist(
    *args: Any,
    traverse: bool = True,
    optimize_graph: bool = True,
    client: Client | None = None,
    **options: Any,
) -> ScalarAnswer:
    """Start to compute Dask collections as ``dask.persist`` does, each task through the gate.

    Parameters
    ----------
    *args, traverse, optimize_graph, client
        As for :func:`compute`. There must be a client, for the data stays on its cluster.
    **options
        Of :func:`submit`, but for `results` and `detach`.

    Returns
    -------
    tuple
        Equal collections of the same kinds, in the form and order of the arguments, whose data is
        on the cluster, or will be, until they are dropped. With an asynchronous client, an
        awaitable of it.

    Raises
    ------
    ValueError
        There is no client.
    AllocationError
        No worker can ever hold what a task is annotated with; nothing ran.

    Examples
    --------
    >>> import dask
    >>> from dask.distributed import Client
    >>> from handoff_dask import persist
    >>> with Client(processes=False, n_workers=1, dashboard_address="localhost:0") as client:
    ...     (one,) = persist(dask.delayed(int)("1"))
    ...     one.compute()
    1
    """
    __tracebackhide__ = True
    _check("persist", submit, options)
    collections, repack = unpack_collections(*args, traverse=traverse)
    if not collections:
        return _value(args) if _asynchronous(client) else args
    client = require_client(client)
    graph, dag = _prepared(collections, optimize_graph, client)
    with annotating.applied():
        run = submit(dag, client=client, results=output_keys(graph), **options)

    def persisted(run: Run) -> Any:
        finished = []
        for finish in graph.finishes:
            code, state = finish.postpersist
            finished.append(code({key: run.futures[key] for key in flatten(finish.keys)}, *state))
        return repack(finished)

    return _then(run, persisted) if _asynchronous(client) else persisted(run)


def _check(name: str, run: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise if an option is none of `run`, or has no meaning for collections."""
    known = signature(run).parameters.keys() - {"dag", "client", *_INSTEAD}
    for option in options.keys() - known:
        if option in _INSTEAD:
            problem = f"has no {option}=: use {_INSTEAD[option].format(run=run.__name__)}"
        else:
            named = ", ".join(sorted({"traverse", "optimize_graph", "client", *known}))
            problem = f"got an unexpected keyword argument {option!r}; it takes {named}"
        raise TypeError(f"{name}() {problem}")


def _prepared(
    collections: list[Any], optimize_graph: bool, client: Client | None
) -> tuple[OptimizedGraph, DAG]:
    """Return the graph of collections, and its DAG."""
    with nullcontext() if client is None else client.as_current():
        graph = graph_of(collections, optimize_graph)
        return graph, DAG(functions=functions_of(graph))


def _filled(keys: Any, values: Mapping[Any, Any]) -> Any:
    """Return nested lists with values in place of keys."""
    return [_filled(key, values) for key in keys] if isinstance(keys, list) else values[keys]


def _asynchronous(client: Client | None) -> bool:
    client = current_client(client)
    return client is not None and client.asynchronous


async def _value(value: T) -> T:
    return value


async def _then(answer: Awaitable[T], finish: Callable[[T], V]) -> V:
    __tracebackhide__ = True
    return finish(await answer)
