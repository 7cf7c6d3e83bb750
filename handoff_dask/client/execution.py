"""Running a DAG, and waiting for it or not."""

from __future__ import annotations

import asyncio
import os
import weakref
from collections.abc import Awaitable, Callable, Hashable, Mapping
from copy import copy
from typing import Any, Literal, cast

from distributed import Client

from handoff_dask import collector
from handoff_dask.client import annotating, stored_results
from handoff_dask.client.connection import EmbeddedCluster, current_client, sync
from handoff_dask.client.following import Follower
from handoff_dask.client.options import (
    Allocator,
    OnError,
    ResultSelection,
    RunOptions,
    StrategyName,
)
from handoff_dask.client.progress_display import Display, chosen, watch, watch_async
from handoff_dask.client.results import ExecutionResult, ExecutionResultAnswer
from handoff_dask.client.run import RunAnswer, handle
from handoff_dask.client.submission import Submission
from handoff_dask.client.waiting import wait_for
from handoff_dask.model.amounts import Seconds
from handoff_dask.model.dag import DAG, require_dag
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.store.result_store import Store
from handoff_dask.wire.run_events import Event
from handoff_dask.worker.task import waiting_task


def execute(
    dag: DAG,
    *,
    client: Client | None = None,
    max_retries: int = 3,
    retry: RetryPolicy | None = None,
    max_concurrency: int | None = None,
    allocation_strategy: StrategyName | Allocator = "packed",
    results: ResultSelection = "all",
    on_error: OnError = "raise",
    timeout: Seconds | None = None,
    placement_timeout: Seconds = 0,
    priority: float = 0,
    on_event: Callable[[Event], Any] | None = None,
    progress: bool = False,
    bundle: Seconds | Literal[False] | None = None,
    isolate: bool | None = None,
    durations: Mapping[Hashable, Seconds] | ExecutionResult | None = None,
    store: str | os.PathLike[str] | Store | Literal[False] | None = None,
) -> ExecutionResultAnswer:
    """Run a DAG and wait for it (``Handoff.DistributedExecutor.execute``).

    Parameters
    ----------
    dag
        The DAG; it is validated first.
    client
        Where to run it. None takes the current default client or, where there is none, starts an
        embedded cluster in this process and closes it afterwards.
    max_retries
        Further attempts of a function that fails or loses its worker, unless it sets its own.
    retry
        The full policy; it replaces `max_retries`, which is its shorthand.
    max_concurrency
        How many functions of this run may run at once; None is no limit.
    allocation_strategy
        ``"packed"`` (also ``"cost_optimized"``): best fit, near the data, sparing scarce resources.
        ``"load_balanced"``: the least loaded worker. ``"first_available"``: the first with the cost
        free. Or an :class:`Allocator`.
    results
        Which results are kept and gathered: ``"all"``, ``"sinks"`` (those that no function needs)
        or a list of ids or refs. The rest is released as soon as it is no longer needed.
    on_error
        ``"raise"`` stops the run at the first function that fails for good. ``"continue"`` runs
        whatever does not depend on it; the result carries `errors`.
    timeout
        How long the run may take: seconds, text such as ``"5 min"``, or a timedelta.
    placement_timeout
        How long to wait for a worker that can hold a cost which none can at present, given like
        `timeout`. 0 waits only for what the cluster lost within the last
        ``handoff.lost-capacity-grace`` (60 s).
    priority
        Functions of runs with a higher priority are placed first. A function's own `priority` is
        added to it.
    on_event
        Called with each event of the run as it happens, in order: :class:`RunOpened`,
        :class:`FunctionPlaced`, :class:`AttemptEnded`, :class:`FunctionEnded`, :class:`RunStopped`
        and :class:`RunClosed`. It is called on the client's event loop, so it must be quick and
        must not wait for anything. What it raises is logged once and does not harm the run. A run
        that finds that its `store` has lost something is closed, and opened again for the rest.
    progress
        Whether to show the progress on standard error: as a bar on a terminal, else as a line every
        10 s. In a notebook, it is drawn in the output of the cell.
    bundle
        How much work short functions may be sent together for, as one Dask task: seconds, text such
        as ``"50 ms"``, or a timedelta. 0 or False sends each by itself; None takes the setting
        ``handoff.bundle`` (50 ms). Whatever is promised of a function holds for each of them.
    isolate
        Whether functions run in processes of their own, unless they say so themselves: see
        :class:`Function`. None takes the setting ``handoff.isolate`` (false).
    durations
        How long functions take, as far as that is known: {id: seconds, text such as ``"5 ms"``, or
        a timedelta}, or the result of an earlier run. Without it, a new cluster learns this from
        the functions that it runs first.
    store
        Where results are kept beyond the run, and looked up before anything runs: a path, a URL
        that fsspec knows, or a :class:`Store`. None takes the setting ``handoff.store`` (none);
        False is none.

    Returns
    -------
    ExecutionResult
        With an asynchronous client, an awaitable of one.

    Raises
    ------
    DAGError
        The DAG is not valid; nothing was sent.
    AllocationError
        No worker can ever hold a function's cost, or no worker answers to its pin; nothing ran.
    FunctionFailedError
        A function failed in its last attempt: the original exception is the cause, `partial` holds
        the results there are.
    RunTimeoutError
        The run did not end within `timeout`.
    RunCancelledError
        The run was cancelled.
    ClusterLostError
        The scheduler went away.

    Examples
    --------
    >>> import operator
    >>> from handoff_dask import DAG, execute
    >>> dag = DAG()
    >>> source = dag.add(int, "42", id="source")
    >>> double = dag.add(operator.mul, source, 2, id="double")
    >>> execute(dag).results
    {'source': 42, 'double': 84}
    """
    __tracebackhide__ = True
    require_dag(dag)
    options = RunOptions.among(locals())
    client, display = current_client(client), chosen() if progress else Display()
    if client is not None and client.asynchronous:
        started = _started(dag, options, client)
        return cast("ExecutionResultAnswer", _awaited(started, dag, display))
    try:
        result = attended(dag, options, client, display)
    except Exception as error:
        display.end(getattr(error, "partial", None), error)
        raise
    display.end(result, None)
    return cast("ExecutionResultAnswer", result)


def attended(
    dag: DAG, options: RunOptions, client: Client | None, display: Display
) -> ExecutionResult:
    """Run a DAG with a synchronous client and show its progress; leave nothing behind.

    The caller ends the display, unless this is interrupted.
    """
    __tracebackhide__ = True
    display.start(dag)
    run: Any = None
    try:
        run = _started(dag, options, client)
        if display.interval is not None:
            watch(run, display)
        result: ExecutionResult
        result = wait_for(run.client, run.complete, run_id=run.outline.run_id)
        return result
    except KeyboardInterrupt as interrupt:
        # The display first: cancelling the run may take long.
        display.end(None, interrupt)
        if run is not None:
            run.cancel()
        raise
    finally:
        if run is not None:
            run.close()


async def _awaited(started: Any, dag: DAG, display: Display) -> ExecutionResult:
    """Return the result of a run with an asynchronous client, as :func:`attended` does."""
    __tracebackhide__ = True
    display.start(dag)
    showing: asyncio.Task[None] | None = None
    try:
        run: Follower = await started
        if display.interval is not None:
            showing = asyncio.create_task(watch_async(run, display))
        result: ExecutionResult
        result = await wait_for(run.client, run.complete, run_id=run.outline.run_id)
    except BaseException as error:
        display.end(getattr(error, "partial", None), error)
        raise
    finally:
        if showing is not None:
            showing.cancel()
    display.end(result, None)
    return result


def submit(
    dag: DAG,
    *,
    client: Client | None = None,
    max_retries: int = 3,
    retry: RetryPolicy | None = None,
    max_concurrency: int | None = None,
    allocation_strategy: StrategyName | Allocator = "packed",
    results: ResultSelection = "all",
    on_error: OnError = "raise",
    timeout: Seconds | None = None,
    placement_timeout: Seconds = 0,
    priority: float = 0,
    detach: bool = False,
    on_event: Callable[[Event], Any] | None = None,
    bundle: Seconds | Literal[False] | None = None,
    isolate: bool | None = None,
    durations: Mapping[Hashable, Seconds] | ExecutionResult | None = None,
    store: str | os.PathLike[str] | Store | Literal[False] | None = None,
) -> RunAnswer:
    """Run a DAG without waiting for it.

    Parameters
    ----------
    dag, client, max_retries, retry, max_concurrency, allocation_strategy, results, on_error, \
timeout, placement_timeout, priority
        As for :func:`execute`.
    detach
        Whether the run goes on when its client is closed, and its results are kept on the cluster
        until :func:`forget` is called.
    on_event, bundle, isolate, durations, store
        As for :func:`execute`.

    Returns
    -------
    Run
        With an asynchronous client, an awaitable of one, which ``async with`` accepts too.

    Raises
    ------
    DAGError, AllocationError
        As :func:`execute`, before anything runs.

    Examples
    --------
    >>> from handoff_dask import DAG, submit
    >>> dag = DAG("answers")
    >>> a = dag.add(int, "42", id="a")
    >>> run = submit(dag)
    >>> run.result().results
    {'a': 42}
    """
    __tracebackhide__ = True
    require_dag(dag)
    options = RunOptions.among(locals())
    return handle(_started(dag, options, client))


def _started(
    dag: DAG, options: RunOptions, client: Client | None
) -> Follower | Awaitable[Follower]:
    """Start a run, on an embedded cluster if there is no other."""
    __tracebackhide__ = True
    client = current_client(client)
    if client is not None and client.asynchronous and options.stored_in is not None:
        dag.validate()
        return _looked_up_and_sent(copy(dag), options, client)
    submission = _prepared(dag, options)
    _check(submission, client)
    if client is not None:
        run = Follower(submission.outline, client)
        return _sent_async(submission, run) if client.asynchronous else _sent(submission, run)
    if options.detach:
        raise ValueError("detach=True needs a cluster that outlives this process: pass client=")
    embedded = EmbeddedCluster()
    try:
        run = Follower(submission.outline, embedded.client)
        _sent(submission, run)
    except BaseException:
        embedded.close()
        raise
    # The cluster stops when nobody refers to the run any more and it has ended.
    run.close = weakref.finalize(run, embedded.close)
    return run


def _prepared(dag: DAG, options: RunOptions) -> Submission:
    with collector.paused():
        return Submission(dag, options)


def _check(submission: Submission, client: Client | None) -> None:
    """Warn of what is odd, and raise if an argument cannot be had."""
    annotating.warn(list(map(submission.translator.key, submission.first)))
    stored_results.warn(submission.outline.stored)
    submission.check_futures(client)


async def _looked_up_and_sent(dag: DAG, options: RunOptions, client: Client) -> Follower:
    """Start a run; the client's loop does not wait for the store, which may be slow."""
    __tracebackhide__ = True
    submission = await asyncio.to_thread(_prepared, dag, options)
    _check(submission, client)
    return await _sent_async(submission, Follower(submission.outline, client))


def _sent(submission: Submission, run: Follower) -> Follower:
    """Open a run and send its functions, each piece while the next is pickled in this thread."""
    __tracebackhide__ = True
    client = run.client
    try:
        sync(client, run.start, submission, _within(client))
        for piece in submission.pieces():
            if not sync(client, run.send, piece):
                break
        sync(client, run.sent, submission.options.detach)
    except KeyboardInterrupt:
        run.cancel()
        raise
    return run


async def _sent_async(submission: Submission, run: Follower) -> Follower:
    __tracebackhide__ = True
    client = run.client
    await sync(client, run.start, submission, _within(client))
    for piece in submission.pieces():
        if not await sync(client, run.send, piece):
            break
    await sync(client, run.sent, submission.options.detach)
    return run


def _within(client: Client) -> Any:
    """Return the key of the task that submits a run here, if one does."""
    outer = waiting_task(client)
    return None if outer is None else outer.key
