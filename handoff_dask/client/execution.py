"""Running a DAG, and waiting for it or not."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable
from typing import Any, cast

from distributed import Client

from handoff_dask import collector
from handoff_dask.client import annotating
from handoff_dask.client.connection import EmbeddedCluster, current_client, sync
from handoff_dask.client.following import Follower
from handoff_dask.client.options import Allocator, OnError, ResultSelection, RunOptions
from handoff_dask.client.results import ExecutionResultAnswer
from handoff_dask.client.run import Run, RunAnswer
from handoff_dask.client.submission import Submission
from handoff_dask.client.waiting import wait_for
from handoff_dask.model.amounts import Seconds
from handoff_dask.model.dag import DAG
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.wire.run_events import Event
from handoff_dask.worker.task import waiting_task


def execute(
    dag: DAG,
    *,
    client: Client | None = None,
    max_retries: int = 3,
    retry: RetryPolicy | None = None,
    max_concurrency: int | None = None,
    allocation_strategy: str | Allocator = "packed",
    results: ResultSelection = "all",
    on_error: OnError = "raise",
    timeout: Seconds | None = None,
    placement_timeout: Seconds = 0,
    priority: float = 0,
    on_event: Callable[[Event], Any] | None = None,
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
        or a list of ids. The rest is released as soon as it is no longer needed.
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
        must not wait for anything. What it raises is logged once and does not harm the run.

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
    >>> from handoff_dask import DAG, Function, execute
    >>> dag = (
    ...     DAG()
    ...     .add_function(Function(id="source", args=[], code=int, extra_args=["42"]))
    ...     .add_function(Function(id="double", args=["source"], code=operator.mul, extra_args=[2]))
    ... )
    >>> execute(dag).results
    {'source': 42, 'double': 84}
    """
    __tracebackhide__ = True
    options = RunOptions(
        max_retries=max_retries,
        retry=retry,
        max_concurrency=max_concurrency,
        allocation_strategy=allocation_strategy,
        results=results,
        on_error=on_error,
        timeout=timeout,
        placement_timeout=placement_timeout,
        priority=priority,
        on_event=on_event,
    )
    started = _started(dag, options, client)
    answer: Any = _completed(started) if isinstance(started, Follower) else _awaited(started)
    return cast("ExecutionResultAnswer", answer)


def _completed(run: Follower) -> Any:
    """Return the result of a run and leave nothing behind."""
    __tracebackhide__ = True
    try:
        return wait_for(run.client, run.complete, run_id=run.outline.run_id)
    except KeyboardInterrupt:
        # It ended the wait, not the run.
        run.cancel()
        raise
    finally:
        run.close()


async def _awaited(started: Awaitable[Follower]) -> Any:
    __tracebackhide__ = True
    return await _completed(await started)


def submit(
    dag: DAG,
    *,
    client: Client | None = None,
    max_retries: int = 3,
    retry: RetryPolicy | None = None,
    max_concurrency: int | None = None,
    allocation_strategy: str | Allocator = "packed",
    results: ResultSelection = "all",
    on_error: OnError = "raise",
    timeout: Seconds | None = None,
    placement_timeout: Seconds = 0,
    priority: float = 0,
    detach: bool = False,
    on_event: Callable[[Event], Any] | None = None,
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
    on_event
        As for :func:`execute`.

    Returns
    -------
    Run
        With an asynchronous client, an awaitable of one.

    Raises
    ------
    DAGError, AllocationError
        As :func:`execute`, before anything runs.

    Examples
    --------
    >>> from handoff_dask import DAG, Function, submit
    >>> dag = DAG("answers").add_function(Function(id="a", args=[], code=int, extra_args=["42"]))
    >>> run = submit(dag)
    >>> run.result().results
    {'a': 42}
    """
    __tracebackhide__ = True
    options = RunOptions(
        max_retries=max_retries,
        retry=retry,
        max_concurrency=max_concurrency,
        allocation_strategy=allocation_strategy,
        results=results,
        on_error=on_error,
        timeout=timeout,
        placement_timeout=placement_timeout,
        priority=priority,
        detach=detach,
        on_event=on_event,
    )
    started = _started(dag, options, client)
    if isinstance(started, Follower):
        return cast("RunAnswer", Run(started))

    async def run() -> Run:
        __tracebackhide__ = True
        return Run(await started)

    return cast("RunAnswer", run())


def _started(
    dag: DAG, options: RunOptions, client: Client | None
) -> Follower | Awaitable[Follower]:
    """Start a run, on an embedded cluster if there is no other."""
    __tracebackhide__ = True
    with collector.paused():
        submission = Submission(dag, options)
    annotating.warn(submission.translation.keys)
    client = current_client(client)
    submission.check_futures(client)
    if client is not None:
        return _sent(submission, Follower(submission.outline, client))
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


def _sent(submission: Submission, run: Follower) -> Follower | Awaitable[Follower]:
    __tracebackhide__ = True
    try:
        outer = waiting_task(run.client)
        within = None if outer is None else outer.key
        started = sync(run.client, run.start, submission, within)
        return cast("Follower | Awaitable[Follower]", started)
    except KeyboardInterrupt:
        run.cancel()
        raise
