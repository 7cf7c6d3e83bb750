"""The runs that a cluster keeps, for any client of it."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from distributed import CancelledError, Client, Future

from handoff_dask.connection import call, ended, install, installed, require_client, sync
from handoff_dask.errors import (
    FunctionFailedError,
    HandoffError,
    RunCancelledError,
    RunTimeoutError,
    UnknownFunctionError,
    UnknownRunError,
)
from handoff_dask.gathering import described
from handoff_dask.outline import Outline
from handoff_dask.run import Run
from handoff_dask.submission import dag_label, function_label


@dataclass(frozen=True)
class RunInfo:
    """A run on a cluster, in a line; see :func:`list_runs`.

    Attributes
    ----------
    dag_id : Hashable
        The id of its DAG; its ``repr`` where the id cannot be unpickled here.
    started : float
        When it was submitted (s since epoch).
    detached : bool
        Whether the cluster keeps it without a client, until :func:`forget`.
    priority : float
        Its priority.
    counts : Mapping
        How many functions are in which state, as ``Run.status`` counts them.
    """

    dag_id: Hashable
    started: float
    detached: bool
    priority: float
    counts: Mapping[str, int]


def list_runs(*, client: Client | None = None) -> list[RunInfo]:
    """Return the runs on a cluster, everybody's, the oldest first.

    Parameters
    ----------
    client
        A client of the cluster; None takes the current one.

    Examples
    --------
    >>> from distributed import Client
    >>> from handoff_dask import DAG, Function, forget, list_runs, submit
    >>> dag = DAG("answers").add_function(Function(id="a", args=[], code=int, extra_args=["42"]))
    >>> with Client(processes=False, n_workers=1, dashboard_address="localhost:0") as client:
    ...     run = submit(dag, detach=True)
    ...     run.wait()
    ...     [(info.dag_id, info.counts["done"]) for info in list_runs()]
    ...     forget("answers")
    [('answers', 1)]
    """
    client = require_client(client)

    async def listed() -> list[RunInfo]:
        await install(client)
        return [
            RunInfo(
                dag_id=_own_id(run),
                started=run["started"],
                detached=run["detached"],
                priority=run["priority"],
                counts=dict(run["counts"]),
            )
            for run in await call(client, "listed")
        ]

    return sync(client, listed)


def _own_id(run: Mapping[str, Any]) -> Hashable:
    try:
        own: Hashable = pickle.loads(run["own_id"])
    except Exception:
        own = run["dag_id"]  # of a type that only its submitter has
    return own


def get_run(dag_id: Hashable, *, client: Client | None = None) -> Run:
    """Return a run on a cluster, whoever submitted it.

    It is as good as the one that :func:`submit` returned, but that the code and the arguments of
    its functions stayed where they came from.

    Parameters
    ----------
    dag_id
        The DAG. Of several runs of one dag_id, the latest.
    client
        A client of the cluster; None takes the current one.

    Returns
    -------
    Run
        With an asynchronous client, an awaitable of one.

    Raises
    ------
    UnknownRunError
        The cluster keeps no such run.
    """
    client = require_client(client)

    async def found() -> Run:
        await install(client)
        packed = await call(client, "outline", dag_id=dag_label(dag_id))
        if packed is None:
            raise await _unknown(client, dag_id)
        return await Run(Outline.unpacked(packed), client).follow()

    return sync(client, found)


def get_result(
    dag_id: Hashable, function_id: Hashable, timeout: float = 5, *, client: Client | None = None
) -> Any:
    """Return one result of a run that the cluster keeps (``Handoff.get_result``).

    From any client of the cluster: while the run's own client holds it or, after that, if it was
    submitted with ``detach=True``.

    Parameters
    ----------
    dag_id, function_id
        The DAG and the function. Of several runs of one dag_id, the latest answers.
    timeout
        Seconds to wait for the function to end.
    client
        A client of the cluster; None takes the current one.

    Raises
    ------
    UnknownRunError
        The cluster keeps no such run.
    UnknownFunctionError
        The run has no such function, or does not keep its result.
    TimeoutError
        The function had not ended by then.
    FunctionFailedError
        The function, or one that it depends on, failed.
    RunTimeoutError, RunCancelledError, ClusterLostError
        What ended the run, if it did not end by itself.
    """
    client = require_client(client)

    async def get() -> Any:
        await install(client)
        known, key = await call(
            client, "find", dag_id=dag_label(dag_id), label=function_label(function_id)
        )
        if not known:
            raise await _unknown(client, dag_id)
        if key is None:
            raise UnknownFunctionError(
                function_id, f"the run {dag_id!r} has no such function, or does not keep its result"
            )
        future: Future[Any] = Future(key, client)
        try:
            # Only now: the scheduler answers with the state, which the future must hear.
            await call(client, "want", keys=[key], client=client.id)
            await ended(client, future, timeout)
            if future.status != "error":
                return await future
            error = await _cause(client, dag_id, key[1]) or await future.exception()
        except CancelledError:
            if future.status != "cancelled":
                raise
            problem = await call(client, "overdue", dag_id=dag_label(dag_id))
            if problem is not None:
                raise RunTimeoutError(dag_id, problem) from None
            raise RunCancelledError(dag_id, "its functions were cancelled") from None
        except asyncio.TimeoutError:
            raise TimeoutError(
                f"function {function_id!r} of {dag_id!r} did not end within {timeout} s"
            ) from None
        finally:
            # An error's traceback would keep the future, and with it the result, on the cluster.
            future.release()
        raise FunctionFailedError(function_id, problem=described(error)) from error

    return sync(client, get)


async def _cause(client: Client, dag_id: Hashable, index: int) -> BaseException | None:
    """Return the error of a node, or of the one on its way there that failed."""
    packed = await call(client, "outline", dag_id=dag_label(dag_id))
    if packed is None:
        return None
    run = Run(Outline.unpacked(packed), client)
    _, causes = await run._report()
    ahead = [index]
    while ahead:
        at = ahead.pop()
        if at in causes:
            return causes[at]
        ahead.extend(run._outline.nodes[at].dependencies)
    return None


async def _unknown(client: Client, dag_id: Hashable) -> HandoffError:
    problem = await call(client, "overdue", dag_id=dag_label(dag_id))
    return UnknownRunError(dag_id) if problem is None else RunTimeoutError(dag_id, problem)


def forget(dag_id: Hashable, *, client: Client | None = None) -> None:
    """Let a detached run go: its results, and whatever of it still runs.

    Parameters
    ----------
    dag_id
        The DAG; all detached runs of that id are let go.
    client
        A client of the cluster; None takes the current one.

    Raises
    ------
    UnknownRunError
        The cluster keeps no such run.
    """
    client = require_client(client)

    async def let_go() -> None:
        await install(client)
        if not await call(client, "forget", dag_id=dag_label(dag_id)):
            raise UnknownRunError(dag_id)

    return sync(client, let_go)


def uninstall(client: Client | None = None, *, force: bool = False) -> None:
    """Take everything of Handoff off a cluster: plugins, handlers, declared capabilities.

    What workers declared without Handoff they declare again. What :func:`register_node` declared
    goes as soon as no task of others, running or pending, claims it. The next :func:`execute` puts
    everything back.

    Parameters
    ----------
    client
        A client of the cluster; None takes the current one.
    force
        Whether runs that are under way or kept are cancelled; else they are an error.

    Raises
    ------
    HandoffError
        There are such runs.
    """
    client = require_client(client)

    async def remove() -> None:
        if await installed(client) is None:
            return
        if busy := await call(client, "uninstall", force=force):
            names = ", ".join(map(repr, busy))
            raise HandoffError(
                f"runs are under way or kept on the cluster: {names}. Wait for them, cancel() or "
                "forget() them, or pass force=True"
            )

    return sync(client, remove)
