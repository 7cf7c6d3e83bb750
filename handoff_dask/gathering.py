"""Fetching the results and the errors of a run, also while workers go away."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeAlias

from distributed import CancelledError, Client, Future

from handoff_dask import connection
from handoff_dask.errors import (
    AllocationError,
    FunctionFailedError,
    HandoffError,
    InvalidFunctionError,
    StandInError,
    TransferError,
    WorkerLostError,
)
from handoff_dask.model.expansion import Node
from handoff_dask.records import RunReport
from handoff_dask.submission import function_label

#: In quotes: the oldest Dask's futures take no parameter at run time.
Futures: TypeAlias = "Mapping[Hashable, Future[Any]]"


async def ended(client: Client, futures: Futures) -> dict[Hashable, Any]:
    """Gather the results of all that did not fail, once everything has ended."""
    while True:
        await connection.ended(client, list(futures.values()))
        values = await finished(client, futures)
        # A worker that was lost meanwhile took results with it; these are made again.
        if values.keys() | _failed(futures) == futures.keys():
            return values


async def finished(client: Client, futures: Futures) -> dict[Hashable, Any]:
    """Gather the results that there are.

    Raises
    ------
    HandoffError
        There are results that do not arrive.
    """
    while True:
        failed = _failed(futures)
        done = {id_: future for id_, future in futures.items() if future.status == "finished"}
        try:
            values = await client.gather(list(done.values()), asynchronous=True)
        except CancelledError:
            raise
        except Exception as error:
            forget_frames(error)
            if _failed(futures) == failed:
                raise unfetched(error) from error
            continue  # one was lost, made again, and failed
        return dict(zip(done, values, strict=True))


def _failed(futures: Futures) -> set[Hashable]:
    return {id_ for id_, future in futures.items() if future.status == "error"}


def forget_frames(error: BaseException) -> None:
    """Have an exception, as gather raised it, not refer to where that was.

    The client keeps it with the state of its future, and with it the frames, and with these every
    future that they hold: results would stay on the cluster.
    """
    error.__traceback__ = None


def unfetched(error: Exception) -> HandoffError:
    """Return the error for results that exist but do not arrive: they cannot be unpickled here."""
    return HandoffError(f"the results cannot be fetched: {type(error).__name__}: {error}")


def described(error: BaseException | None) -> str:
    """Say what an error is, in a line."""
    return str(error) if isinstance(error, StandInError) else f"{type(error).__name__}: {error}"


def producer(nodes: Sequence[Node], index: int) -> Hashable:
    """Return the function whose result, serialized or not, a node returns."""
    source = nodes[index].source
    return nodes[index if source is None else source].function.id


def _with_producer(error: TransferError, nodes: Sequence[Node], node: Node) -> TransferError:
    """Return an error with the id of a producer that goes by its name on the scheduler."""
    ids = [producer(nodes, index) for index in node.dependencies]
    id_ = next((id_ for id_ in ids if function_label(id_) == error.producer), error.producer)
    return TransferError(id_, error.type_name, error.problem)


def failure(
    nodes: Sequence[Node], index: int, causes: Mapping[int, BaseException], report: RunReport
) -> HandoffError:
    """Return the error of a node that failed by itself."""
    node, cause = nodes[index], causes[index]
    id_ = node.function.id
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
    problem = described(cause)
    if node.kind != "function":
        problem = f"the {node.kind} of one of its arguments: {problem}"
    error = FunctionFailedError(id_, report.attempts_by_index().get(index, ()), problem)
    error.__cause__ = cause
    return error
