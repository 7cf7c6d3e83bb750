"""The runs of all clients on a cluster; and removing Handoff from the cluster."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from distributed import Client, Future

from handoff_dask.client import gathering, outcomes
from handoff_dask.client.answers import ListAnswer, ScalarAnswer
from handoff_dask.client.connection import (
    call,
    install,
    installed,
    keyword_client,
    require_client,
    sync,
)
from handoff_dask.client.describing import Outline, dag_label, function_label
from handoff_dask.client.following import Follower
from handoff_dask.client.options import patience
from handoff_dask.client.run import RunAnswer, handle
from handoff_dask.client.waiting import ended, settle, wait_for
from handoff_dask.errors import HandoffError, UnknownFunctionError, UnknownRunError
from handoff_dask.model.amounts import Seconds
from handoff_dask.model.refs import key_in
from handoff_dask.store.opened import opened
from handoff_dask.wire.messages import Portion, RunSpec


@dataclass(frozen=True)
class RunInfo:
    """A summary of a run on a cluster; see :func:`list_runs`.

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


def list_runs(*, stopped: bool = False, client: Client | None = None) -> ListAnswer[RunInfo]:
    """Return the runs of all clients on a cluster, the oldest first.

    Parameters
    ----------
    stopped
        Whether to include detached runs that were stopped and have no results.
    client
        A client of the cluster; None takes the current one.

    Examples
    --------
    >>> from distributed import Client
    >>> from handoff_dask import DAG, forget, list_runs, submit
    >>> dag = DAG("answers")
    >>> a = dag.add(int, "42")
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
                _own_id(run), run["started"], run["detached"], run["priority"], dict(run["counts"])
            )
            for run in await call(client, "known")
            if run["alive"] or stopped
        ]

    return cast("ListAnswer[RunInfo]", sync(client, listed))


def _own_id(run: Mapping[str, Any]) -> Hashable:
    own: Hashable = run["dag_id"]
    with suppress(Exception):  # it may be of a type that only its submitter has
        own = pickle.loads(run["own_id"])
    return own


def get_run(dag_id: Hashable, *, client: Client | None = None) -> RunAnswer:
    """Return a run on a cluster, whoever submitted it.

    Equivalent to what :func:`submit` returned, except that the code and the arguments of its
    functions are not included.

    Parameters
    ----------
    dag_id
        The DAG. Of several runs of one dag_id, the latest.
    client
        A client of the cluster; None takes the current one.

    Returns
    -------
    Run
        With an asynchronous client, an awaitable of one, which ``async with`` accepts too.

    Raises
    ------
    UnknownRunError
        The cluster keeps no such run.
    """
    client = require_client(client)

    async def followed() -> Follower:
        await install(client)
        return await Follower(await _outline(client, dag_id), client).follow()

    return handle(sync(client, followed))


def get_result(
    dag_id: Hashable, function_id: Hashable, timeout: Seconds = 5, *, client: Client | None = None
) -> Any:
    """Return one result of a run that the cluster keeps (``Handoff.get_result``).

    Any client of the cluster can fetch it: while the run's own client holds the run or, after that,
    if it was submitted with ``detach=True``.

    Parameters
    ----------
    dag_id, function_id
        The DAG, and the function or its :class:`Ref`. Of several runs of one dag_id, the latest
        answers.
    timeout
        How long to wait for the function to end: seconds, text such as ``"5 min"``, or a timedelta.
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
    __tracebackhide__ = True
    client, function_id = require_client(client), key_in(dag_id, function_id)
    limit = patience(timeout)

    async def get() -> Any:
        await install(client)
        run_id = (await _runs_of(client, dag_id))[-1]["run_id"]
        key = None
        if _is_plain(function_id):
            key = await call(client, "find", run_id=run_id, label=function_label(function_id))
        if key is None:
            outline = await _outline(client, dag_id, run_id)
            if function_id in outline.stored_ids and function_id in set(outline.wanted):
                store, stored = outline.stored.store, outline.stored_ids[function_id]
                assert store is not None
                return await asyncio.to_thread(opened(store).value, stored)
            # As a mapping compares: numpy's numbers compare with tuples element by element.
            if function_id not in outline.awaited or function_id not in set(outline.wanted):
                if not outline.complete:
                    outcomes.result_of(outline, *await Follower(outline, client).report(), {})
                problem = f"the run {dag_id!r} has no such function, or does not keep its result"
                raise UnknownFunctionError(function_id, problem)
            key = outline.key(outline.awaited[function_id])
        future: Future[Any] = Future(key, client)
        try:
            if not await ended(client, run_id, [future], limit, again=True):
                raise TimeoutError(
                    f"function {function_id!r} of {dag_id!r} did not end within {limit} s"
                )
            await settle(client, [future])
            values, problems = await gathering.finished(client, {function_id: future})
            if values:
                return values[function_id]
            outline = await _outline(client, dag_id, run_id)
            report, causes = await Follower(outline, client).report()
            unfetched = problems.get(function_id)
            raise outcomes.failure_of(outline, report, causes, function_id, unfetched)
        finally:
            # An error's traceback would keep the future, and with it the result, on the cluster.
            future.release()

    return wait_for(client, get, dag_id=dag_label(dag_id))


async def _runs_of(client: Client, dag_id: Hashable) -> list[dict[str, Any]]:
    """Return the facts of the runs of a DAG, the latest last; raise if there are none."""
    known = await call(client, "known")
    runs = [run for run in known if not run["forgotten"] and dag_id in {_own_id(run)}]
    if not runs:
        raise UnknownRunError(dag_id)
    return runs


async def _outline(client: Client, dag_id: Hashable, run_id: str | None = None) -> Outline:
    """Return the outline of a run of a DAG; by default, of the latest."""
    if run_id is None:
        run_id = (await _runs_of(client, dag_id))[-1]["run_id"]
    described = await call(client, "described", run_id=run_id)
    if described is None:
        raise UnknownRunError(dag_id)
    opening, portions = described
    return Outline.of(RunSpec.unpacked(opening), map(Portion.unpacked, portions))


def _is_plain(id_: Hashable) -> bool:
    """Whether ids like this one are equal if their texts are."""
    if type(id_) is tuple:
        return all(map(_is_plain, id_))
    return type(id_) in (str, int, bytes)


def forget(dag_id: Hashable, *, client: Client | None = None) -> ScalarAnswer:
    """Release the detached runs of a DAG: their results, and whatever of them still runs.

    Parameters
    ----------
    dag_id
        The DAG. All its detached runs are released.
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
        kept = [run["run_id"] for run in await _runs_of(client, dag_id) if run["detached"]]
        if not kept:
            raise UnknownRunError(dag_id)
        await call(client, "forget", run_ids=kept)

    return sync(client, let_go)


@keyword_client
def uninstall(*, client: Client | None = None, force: bool = False) -> ScalarAnswer:
    """Remove Handoff from a cluster: plugins, handlers, declared capabilities.

    Workers declare again what they declared without Handoff. What :func:`register_node` declared
    is removed as soon as no plain task, running or pending, claims it. The next :func:`execute`
    installs everything again.

    Parameters
    ----------
    client
        A client of the cluster; None takes the current one.
    force
        Whether to cancel runs that are under way or kept; otherwise they are an error.

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
