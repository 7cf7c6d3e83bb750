"""Fetching the results and the errors of a run, also while workers go away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Hashable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from distributed import Client, Future

from handoff_dask.client import connection
from handoff_dask.client.describing import function_label
from handoff_dask.errors import (
    AllocationError,
    ClusterLostError,
    FunctionFailedError,
    HandoffError,
    InvalidFunctionError,
    StandInError,
    TransferError,
    WorkerLostError,
)
from handoff_dask.model.attempt import Attempt
from handoff_dask.model.expansion import Node
from handoff_dask.standins import text_of
from handoff_dask.wire.messages import RunReport

T = TypeVar("T")
#: In quotes: the oldest Dask's futures take no parameter at run time.
Futures: TypeAlias = "Mapping[Hashable, Future[Any]]"


#: Errors of values that cannot be fetched.
Problems: TypeAlias = "dict[Hashable, BaseException]"


async def settled(client: Client, futures: Futures) -> None:
    """Wait until everything has ended, well or not."""
    # It raises if one of them is cancelled.
    await _outcome_of(connection.ended(client, list(futures.values())))


def complete(futures: Futures, *parts: Mapping[Hashable, Any]) -> bool:
    """Whether these parts hold everything that did not fail."""
    failed = (id_ for id_, future in futures.items() if future.status in ("error", "cancelled"))
    return futures.keys() == set(failed).union(*parts)


async def finished(client: Client, futures: Futures) -> tuple[dict[Hashable, Any], Problems]:
    """Fetch the results that there are.

    Returns
    -------
    tuple
        {function id: value}, and {function id: error} of those that cannot be sent or opened.
    """
    done = {id_: future for id_, future in futures.items() if future.status == "finished"}
    values = await gathered(client, done)
    # Either one of them cannot be fetched, or something that others fetch at the same time.
    return await _fetch_apart(client, done) if values is None else (values, {})


async def gathered(client: Client, futures: Futures) -> dict[Hashable, Any] | None:
    """Fetch the results of all futures, once they are there; None if that fails.

    A function may have raised ``CancelledError``, which must not cancel anything here.
    """
    gathering = await _outcome_of(client.gather(list(futures.values()), asynchronous=True))
    if gathering.cancelled():
        return None
    error = gathering.exception()
    if error is not None:
        forget_frames(error)
        return None
    return dict(zip(futures, gathering.result(), strict=True))


async def _outcome_of(waiting: Awaitable[T]) -> asyncio.Future[T]:
    """Wait until an awaitable is done and return its future; cancel it if the wait is cancelled."""
    future = asyncio.ensure_future(waiting)
    future.add_done_callback(lambda f: f.cancelled() or f.exception())
    try:
        await asyncio.wait([future])
    finally:
        future.cancel()
    return future


async def _fetch_apart(client: Client, futures: Futures) -> tuple[dict[Hashable, Any], Problems]:
    """Fetch results so that one that cannot be fetched does not affect the others."""
    values: dict[Hashable, Any] = {}
    problems: Problems = {}
    parts = [list(futures)]
    while parts:
        ids = parts.pop()
        if not ids:
            continue
        keys = {futures[id_].key: id_ for id_ in ids}
        # Dask's client would fetch it together with what others ask for at the same time.
        fetching = await _outcome_of(connection.ask(client, "gather", keys=list(keys)))
        # A value may raise CancelledError when it is opened.
        cancelled = asyncio.CancelledError("raised by the value as it was opened")
        error = cancelled if fetching.cancelled() else fetching.exception()
        if isinstance(error, ClusterLostError):
            raise error
        if error is not None:
            forget_frames(error)
            if len(ids) == 1:
                problems[ids[0]] = error
            else:
                half = len(ids) // 2
                parts += ids[half:], ids[:half]
            continue
        answer = fetching.result()
        if answer["status"] == "OK":
            values.update((keys[key], value) for key, value in answer["data"].items())
        else:  # lost with their worker, and computed again
            lost = {keys[key] for key in answer["keys"]}
            parts.append([id_ for id_ in ids if id_ not in lost])
    return values, problems


def forget_frames(error: BaseException) -> None:
    """Have an exception, as gather raised it, not refer to where that was.

    The client keeps it with the state of its future, and with it the frames, and with these every
    future that they hold: results would stay on the cluster.
    """
    error.__traceback__ = None


def unfetched(
    function_id: Hashable, error: BaseException, attempts: Sequence[Attempt] = ()
) -> FunctionFailedError:
    """Return the error of a function whose result exists but cannot be sent or opened."""
    # Dask appends a traceback of its own.
    text = described(error).split("\n", 1)[0]
    failed = FunctionFailedError(function_id, attempts, f"its result cannot be fetched: {text}")
    failed.__cause__ = error
    return failed


def described(error: BaseException | None) -> str:
    """Say what an error is, in a line."""
    if error is None or isinstance(error, StandInError):
        return str(error)
    return f"{type(error).__name__}: {text_of(error)}"


def producer(nodes: Sequence[Node], index: int) -> Hashable:
    """Return the function whose result, serialized or not, a node returns."""
    source = nodes[index].source
    return nodes[index if source is None else source].function.id


def _with_producer(error: TransferError, nodes: Sequence[Node], node: Node) -> TransferError:
    """Replace the producer's label on the scheduler by its id."""
    ids = [producer(nodes, index) for index in node.dependencies]
    id_ = next((id_ for id_ in ids if function_label(id_) == error.producer), error.producer)
    return TransferError(id_, error.type_name, error.problem)


def failure(
    nodes: Sequence[Node], index: int, causes: Mapping[int, BaseException], report: RunReport
) -> HandoffError:
    """Return the error of a node that failed by itself."""
    node, cause = nodes[index], causes[index]
    id_ = node.function.id
    # Otherwise it may come from a DAG that the function executed itself.
    if index in report.decided:
        if isinstance(cause, InvalidFunctionError):
            return InvalidFunctionError(id_, cause.field, cause.problem)
        if isinstance(cause, TransferError):
            cause = _with_producer(cause, nodes, node)
        if isinstance(cause, WorkerLostError):
            cause = WorkerLostError(id_, *cause.args[1:])
        if isinstance(cause, AllocationError):
            return AllocationError(
                id_, cause.cost, cause.problem, cause.nearest, cause.shortfall, cause.node
            )
    attempts = report.attempts_by_index().get(index, ())
    problem = described(cause)
    if not attempts and index not in report.decided:
        # It never started: the report says why.
        problem = report.failed.get(index, problem)
    if node.kind != "function":
        problem = f"the {node.kind} of one of its arguments: {problem}"
    error = FunctionFailedError(id_, attempts, problem)
    error.__cause__ = cause
    return error
