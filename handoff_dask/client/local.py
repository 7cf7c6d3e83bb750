"""Running a DAG in this process, without a cluster."""

from __future__ import annotations

import platform
import time
from collections.abc import Hashable, Mapping
from dataclasses import replace
from functools import partial
from graphlib import TopologicalSorter
from typing import Any

from distributed import Future

from handoff_dask.client.options import OnError, RunOptions
from handoff_dask.client.results import ExecutionResult, select
from handoff_dask.errors import FunctionFailedError
from handoff_dask.model.attempt import Attempt
from handoff_dask.model.contents import Replacing
from handoff_dask.model.dag import DAG
from handoff_dask.model.expansion import Call, Node, evaluate, expand, map_given
from handoff_dask.model.function import effective_policy
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.standins import text_of
from handoff_dask.tracebacks import without_ours
from handoff_dask.worker.task import running

#: The address, and the name, of the worker that attempts and transforms see.
HERE = "local"


def execute_local(
    dag: DAG, *, max_retries: int = 3, results: Any = "all", on_error: OnError = "raise"
) -> ExecutionResult:
    """Run a DAG in this process, one function after the other.

    For debugging with pdb and for tests: the functions run in the calling thread, with the very
    objects that they were given. Costs, pins, time limits and the delays of retries are ignored.
    Dask futures among the arguments are waited for.

    Parameters
    ----------
    dag, max_retries, results, on_error
        As for :func:`execute`.

    Returns
    -------
    ExecutionResult
        With ``"local"`` as the worker of every function.

    Raises
    ------
    DAGError
        The DAG is not valid.
    ValueError
        An option is wrong.
    FunctionFailedError
        A function failed in its last attempt.

    Examples
    --------
    >>> from handoff_dask import DAG, execute_local
    >>> dag = DAG()
    >>> answer = dag.add(int, "42", id="answer")
    >>> execute_local(dag).results
    {'answer': 42}
    """
    __tracebackhide__ = True
    dag.validate()
    RunOptions(max_retries=max_retries, on_error=on_error)
    nodes = expand(dag.functions)
    wanted = select(dag.functions, nodes, results)
    indices = {node.function.id: node.index for node in nodes if node.kind == "function"}
    values: dict[int, Any] = {}
    attempts: dict[Hashable, tuple[Attempt, ...]] = {}
    errors: dict[Hashable, BaseException] = {}
    failed: dict[int, BaseException] = {}

    def result() -> ExecutionResult:
        return ExecutionResult(
            dag_id=dag.id,
            results={id_: values[indices[id_]] for id_ in wanted if indices[id_] in values},
            allocations={id_: HERE for id_, tried in attempts.items() if tried[-1].outcome == "ok"},
            attempts=attempts,
            errors=errors,
            dag_functions=dict(dag.functions),
        )

    for index in TopologicalSorter({n.index: n.dependencies for n in nodes}).static_order():
        node = nodes[index]
        id_ = node.function.id
        cause = next((failed[i] for i in node.dependencies if i in failed), None)
        if cause is not None:
            failed[index] = errors[id_] = cause
            continue
        try:
            call = map_given(node.call, Replacing(Future, partial(_result, id_)))
        except FunctionFailedError as lost:
            failure = lost
        else:
            tries, value, error = _attempt(node, call, values, dag.id, RetryPolicy(max_retries))
            if node.kind == "function":
                attempts[id_] = tries
            if error is None:
                values[index] = value
                continue
            failure = FunctionFailedError(id_, tries, f"{type(error).__name__}: {text_of(error)}")
            failure.__cause__ = error
        if on_error == "raise":
            failure.partial = result()
            raise failure
        failed[index] = errors[id_] = failure
    return result()


def _result(function_id: Hashable, future: Future[Any]) -> Any:
    """Wait for a future among the arguments of a function; return its result."""
    what = f"its argument, the future {future.key!r},"
    if future.client is None or future.client.asynchronous:
        problem = f"{what} cannot be waited for here: pass its result"
        raise FunctionFailedError(function_id, (), problem)
    try:
        return future.result()
    except Exception as error:
        problem = f"{what} failed: {type(error).__name__}: {error}"
        raise FunctionFailedError(function_id, (), problem) from error


def _attempt(
    node: Node, call: Call, values: Mapping[int, Any], dag_id: Hashable, default: RetryPolicy
) -> tuple[tuple[Attempt, ...], Any, BaseException | None]:
    """Call a node until it succeeds or is not retried any more."""
    policy = effective_policy(node.function, default)
    if node.kind != "function":
        call = call._replace(extra_args=(HERE, HERE, *call.extra_args))
    arguments = [values[i] for i in node.dependencies]
    tries: list[Attempt] = []
    while True:
        started = time.time()
        error: BaseException | None = None
        value = None
        with running(node.function.id, dag_id, len(tries) + 1, node.cost):
            try:
                value = evaluate(call, arguments, lambda: HERE)
            except KeyboardInterrupt:
                raise
            except BaseException as raised:  # a function's failure, whatever the type
                error = raised.with_traceback(without_ours(raised.__traceback__))
        host, stopped = platform.node(), time.time()
        tried = Attempt(len(tries) + 1, HERE, HERE, host, started, stopped, node.cost)
        if error is not None:
            name, text = type(error).__name__, text_of(error)
            tried = replace(tried, outcome="error", error_type=name, message=text)
        tries.append(tried)
        if error is None or len(tries) > policy.max_retries or not policy.retries(error):
            return tuple(tries), value, error
