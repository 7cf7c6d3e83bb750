"""A DAG on its way through a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from distributed import CancelledError, Client, Future

from handoff_dask import connection, gathering, watching
from handoff_dask.errors import (
    ClusterLostError,
    FunctionFailedError,
    HandoffError,
    RunCancelledError,
    RunTimeoutError,
)
from handoff_dask.explaining import Fetching, RunExplanation, Unready
from handoff_dask.options import Allocator
from handoff_dask.outline import Outline
from handoff_dask.placement.events import Waiting
from handoff_dask.records import STATES, Attempts, RunReport
from handoff_dask.results import ExecutionResult, failed_or_not_run
from handoff_dask.submission import Submission
from handoff_dask.task import seceded


class Run:
    """A DAG on its way through a cluster; made by :func:`submit`.

    With an asynchronous client, the methods return awaitables.

    Attributes
    ----------
    dag_id : Hashable
        The id of the DAG.
    futures : Mapping
        {function id: Future} of the results that were asked for. The values stay on the workers
        while the run or its futures are referenced.
    """

    def __init__(self, outline: Outline, client: Client) -> None:
        self.dag_id = outline.dag_id
        self.futures: Mapping[Hashable, Future[Any]] = {}
        self._outline = outline
        self._client = client
        #: Every future that the end of the run hangs on.
        self._awaited: dict[Hashable, Future[Any]] = {}
        #: Whether another client submitted it.
        self._followed = False
        #: Why the run was stopped, once it was.
        self._stopped: HandoffError | None = None
        self._outcome: asyncio.Task[ExecutionResult] | None = None
        #: Functions by state at the end of the run: a failed one is forgotten on the scheduler.
        self._final: Mapping[str, int] = {}
        self._limit: asyncio.TimerHandle | None = None
        self._close: Callable[[], Any] = lambda: None

    def __repr__(self) -> str:
        return f"<Run of {self.dag_id!r}: {len(self._outline.functions)} functions>"

    def _repr_html_(self) -> str:
        return watching.html(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return watching.bundle(self)

    def start(self, submission: Submission) -> Any:
        """Send the run on its way; :func:`submit` does."""
        try:
            return connection.sync(self._client, self._start, submission)
        except KeyboardInterrupt:
            self.cancel()
            raise

    def complete(self) -> Any:
        """Return the result and leave nothing behind; :func:`execute` does."""
        try:
            with seceded():
                return connection.sync(self._client, self._complete)
        except KeyboardInterrupt:
            # It ended the wait, not the run.
            self.cancel()
            raise
        finally:
            self._close()

    def owns(self, embedded: connection.EmbeddedCluster) -> None:
        """Have a cluster stop when nobody refers to the run any more."""
        self._close = weakref.finalize(self, embedded.close)

    def status(self) -> dict[str, Any]:
        """Return how many functions are in which state, and the attempts so far.

        Returns
        -------
        dict
            Counts under ``"waiting"``, ``"held"``, ``"running"``, ``"done"``, ``"failed"`` and
            ``"cancelled"``; under ``"attempts"`` {function id: tuple of Attempt}.
        """
        return connection.sync(self._client, self._status)

    def progress(self) -> dict[str, int]:
        """Return how many functions are in which state, however large the run at little cost.

        Returns
        -------
        dict
            The counts of :meth:`status`.
        """
        return connection.sync(self._client, self._progress)

    def explain(self, held: int | None = None) -> RunExplanation:
        """Tell, for every function that is not running, what it waits for.

        Parameters
        ----------
        held
            Tell it of so many held functions only, which costs little however large the run.

        Returns
        -------
        RunExplanation
            {function id: why}: the dependencies it lacks, or the resources on which workers, the
            retry's delay, the limit or whatever else holds it, or the inputs that are on their way
            to its worker. Printed, it is a report.
        """
        return connection.sync(self._client, self._explain, held)

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the run to end, well or not.

        Parameters
        ----------
        timeout
            Seconds; None waits without end.

        Raises
        ------
        TimeoutError
            It had not ended by then; it goes on.
        """
        with seceded():
            return connection.sync(self._client, self._wait, timeout)

    def result(self, timeout: float | None = None) -> ExecutionResult:
        """Return the :class:`ExecutionResult`, or raise what :func:`execute` would raise.

        Parameters
        ----------
        timeout
            Seconds to wait; None waits without end. The run goes on after a ``TimeoutError``.
        """
        with seceded():
            return connection.sync(self._client, self._result, timeout)

    def cancel(self) -> None:
        """Stop the run: what has not started never does, what runs finishes unseen."""
        return connection.sync(
            self._client, self._stop, RunCancelledError(self.dag_id, "it was cancelled")
        )

    # The same, on the event loop of the client.

    async def _complete(self) -> ExecutionResult:
        try:
            return await self._result(None)
        except BaseException:
            # Also when the task that waits here is cancelled.
            await self._stop(RunCancelledError(self.dag_id, "nobody waits for it any more"))
            raise
        finally:
            # Here, on the client's loop: released from another thread, each of them would wake it.
            self.futures = {}
            self._awaited = {}

    async def _start(self, submission: Submission) -> Run:
        client = self._client
        await connection.install(client)
        pins = None
        if isinstance(submission.options.allocation_strategy, Allocator):
            nodes = await self._call("nodes")
            names = {name for node in nodes.values() for name in node["names"]}
            pins = submission.pins({a: n["capabilities"] for a, n in nodes.items()}, names)
        refused = await self._call("open", spec=submission.spec(client.id, pins))
        if refused is not None:
            raise submission.allocation_error(*pickle.loads(refused))
        if self._stopped is not None:  # cancelled on its way here
            await self._call("close", run_id=submission.run_id)
            raise self._stopped
        keys = submission.translation.keys
        futures = client.get(
            submission.translation.graph,
            [keys[index] for index in submission.awaited.values()],
            sync=False,
            priority=submission.options.priority,
        )
        if submission.options.detach:
            # The client may be closed as soon as this returns.
            await self._call("arrived", run_id=submission.run_id)
        limit = submission.options.timeout
        if limit is not None and not submission.options.detach:  # else the scheduler looks to it
            error = RunTimeoutError(self.dag_id, f"it did not end within {limit} s")
            self._limit = asyncio.get_running_loop().call_later(limit, self._out_of_time, error)
        self._watch(futures)
        self._ending()
        return self

    async def follow(self) -> Run:
        """Watch a run that is on its way already; :func:`get_run` does."""
        self._followed = True
        client, outline = self._client, self._outline
        keys = [outline.keys[index] for index in outline.awaited.values()]
        futures: list[Future[Any]] = [Future(key, client) for key in keys]
        # Only now: the scheduler answers with the states, which the futures must hear.
        await self._call("want", keys=keys, client=client.id)
        self._watch(futures)
        return self

    def _watch(self, futures: Iterable[Future[Any]]) -> None:
        self._awaited = dict(zip(self._outline.awaited, futures, strict=True))
        self.futures = {id_: self._awaited[id_] for id_ in self._outline.wanted}

    def _ending(self) -> asyncio.Task[ExecutionResult]:
        """Wait for the end and fetch the results: for a run that is followed, once asked to."""
        if self._outcome is None:
            self._outcome = asyncio.create_task(self._finish())
            # Who never asks for the outcome is not told of it.
            self._outcome.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._outcome

    @property
    def _over(self) -> bool:
        if self._outcome is not None:
            return self._outcome.done()
        return all(future.done() for future in self._awaited.values())

    def _out_of_time(self, error: RunTimeoutError) -> None:
        self._stopping = asyncio.create_task(self._stop(error))

    async def _stop(self, reason: HandoffError) -> None:
        if self._outcome is not None and self._outcome.done():
            return
        self._stopped = self._stopped or reason
        if self._outline.detach or self._followed:
            with contextlib.suppress(OSError, ClusterLostError):
                await self._call("cancel", run_id=self._outline.run_id)
        await self._release()

    async def _release(self) -> None:
        """Have the scheduler forget every task of the run, unless others want it."""
        with contextlib.suppress(OSError, CancelledError, ClusterLostError):
            cancelling = self._client.cancel(list(self._awaited.values()), asynchronous=True)
            await connection.answered(self._client, cancelling)

    async def _call(self, handler: str, **kwargs: Any) -> Any:
        try:
            return await connection.call(self._client, handler, **kwargs)
        except ClusterLostError as error:
            raise ClusterLostError(self.dag_id, error.problem) from error

    async def _status(self) -> dict[str, Any]:
        report, _ = await self._report()
        counts = {**dict.fromkeys(STATES, 0), **report.counts}
        return {**counts, "attempts": dict(Attempts(report, self._outline.nodes))}

    async def _progress(self) -> dict[str, int]:
        counts = await self._call("progress", run_id=self._outline.run_id)
        return {**dict.fromkeys(STATES, 0), **counts}

    async def _explain(self, held: int | None) -> RunExplanation:
        run_id = self._outline.run_id
        answer = await self._call("why", run_id=run_id, held=held)
        nodes = self._outline.nodes
        found: dict[Hashable, Waiting | Unready | Fetching] = {}
        for index, why in pickle.loads(answer).items():
            if isinstance(why, tuple):  # a transform fetches for its function
                found[nodes[index].function.id] = Fetching.of(why, nodes)
                continue
            if nodes[index].kind != "function":
                continue
            if isinstance(why, list):
                lacks = dict.fromkeys(nodes[i].function.id for i in why)
                why = Unready(tuple(id_ for id_ in lacks if id_ != nodes[index].function.id))
            found[nodes[index].function.id] = why or Waiting("next")
        return RunExplanation(found)

    async def _wait(self, timeout: float | None) -> None:
        with contextlib.suppress(HandoffError):
            await self._result(timeout)

    async def _result(self, timeout: float | None) -> ExecutionResult:
        if self._outcome is None and not self._followed:
            raise self._stopped or RunCancelledError(self.dag_id, "it was never started")
        # The run goes on when one who waits for it gives up.
        return await asyncio.wait_for(asyncio.shield(self._ending()), timeout)

    async def _finish(self) -> ExecutionResult:
        try:
            if self._outline.on_error == "continue":
                values = await gathering.ended(self._client, self._awaited)
                return await self._assemble(values)
            return await self._assemble(await self._gather_all())
        except CancelledError:
            raise await self._cancelled() from None
        finally:
            if self._limit is not None:
                self._limit.cancel()

    async def _cancelled(self) -> HandoffError:
        if self._stopped is not None:
            return self._stopped
        try:
            problem = await self._call("overdue", run_id=self._outline.run_id)
        except (ClusterLostError, OSError):
            return ClusterLostError(self.dag_id, "the scheduler went away")
        if problem is not None:
            return RunTimeoutError(self.dag_id, problem)
        return RunCancelledError(self.dag_id, "its functions were cancelled on the cluster")

    async def _failure(self) -> HandoffError | None:
        """Stop the run; return the error of the function that failed first."""
        report, errors = await self._report()
        if not errors:
            await self._release()
            return None
        values: dict[Hashable, Any] = {}
        with contextlib.suppress(HandoffError):
            values = await gathering.finished(self._client, self._awaited)
        partial = await self._assemble(values)
        await self._release()
        error = gathering.failure(self._outline.nodes, next(iter(errors)), errors, report)
        if isinstance(error, FunctionFailedError):
            error.partial = partial
        return error

    async def _gather_all(self) -> dict[Hashable, Any]:
        """Gather every result; stop the run at the first failure."""
        try:
            values = await self._client.gather(list(self._awaited.values()), asynchronous=True)
        except CancelledError:
            raise
        except Exception as problem:
            gathering.forget_frames(problem)
            error = await self._failure()
            if error is None:
                raise gathering.unfetched(problem) from problem
            raise error from error.__cause__
        return dict(zip(self._awaited, values, strict=True))

    async def _report(self) -> tuple[RunReport, dict[int, BaseException]]:
        """Ask the scheduler what happened, and for the errors of what failed, the first first."""
        answer = await self._call("report", run_id=self._outline.run_id)
        if answer is None:
            return RunReport(), {}
        report: RunReport = pickle.loads(answer["report"])
        texts = {a[0]: (a[6], a[7]) for a in report.attempts if a[6] is not None}
        return report, await connection.exceptions(answer["errors"], texts)

    async def _assemble(self, values: Mapping[Hashable, Any]) -> ExecutionResult:
        """Put the result together."""
        outline = self._outline
        report, causes = await self._report()
        self._final = report.counts
        failed = {
            index: gathering.failure(outline.nodes, index, causes, report) for index in causes
        }
        return ExecutionResult(
            dag_id=self.dag_id,
            results={id_: values[id_] for id_ in outline.wanted if id_ in values},
            allocations=report.allocations(outline.nodes),
            attempts=Attempts(report, outline.nodes),
            errors=failed_or_not_run(outline.nodes, failed, values),
            dag_functions=outline.functions,
        )
