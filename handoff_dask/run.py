"""A DAG on its way through a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from distributed import CancelledError, Client, Future

from handoff_dask import connection, watching
from handoff_dask.errors import (
    AllocationError,
    ClusterLostError,
    FunctionFailedError,
    HandoffError,
    InvalidFunctionError,
    RunCancelledError,
    RunTimeoutError,
    WorkerLostError,
)
from handoff_dask.explaining import RunExplanation, Unready
from handoff_dask.options import Allocator
from handoff_dask.outline import Outline
from handoff_dask.placement.events import Waiting
from handoff_dask.records import STATES, Attempts, RunReport
from handoff_dask.results import ExecutionResult
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
            retry's delay, the limit or whatever else holds it. Printed, it is a report.
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
            nodes = await connection.call(client, "nodes")
            names = {name for node in nodes.values() for name in node["names"]}
            pins = submission.pins({a: n["capabilities"] for a, n in nodes.items()}, names)
        refused = await connection.call(client, "open", spec=submission.spec(client.id, pins))
        if refused is not None:
            raise submission.allocation_error(*pickle.loads(refused))
        if self._stopped is not None:  # cancelled on its way here
            await connection.call(client, "close", run_id=submission.run_id)
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
            await connection.call(client, "arrived", run_id=submission.run_id)
        limit = submission.options.timeout
        if limit is not None:
            error = RunTimeoutError(self.dag_id, f"it did not end within {limit} s")
            self._limit = asyncio.get_running_loop().call_later(limit, self._out_of_time, error)
        return self._watch(futures)

    async def follow(self) -> Run:
        """Watch a run that is on its way already; :func:`get_run` does."""
        self._followed = True
        client, outline = self._client, self._outline
        keys = [outline.keys[index] for index in outline.awaited.values()]
        futures: list[Future[Any]] = [Future(key, client) for key in keys]
        # Only now: the scheduler answers with the states, which the futures must hear.
        await connection.call(client, "want", keys=keys, client=client.id)
        return self._watch(futures)

    def _watch(self, futures: Iterable[Future[Any]]) -> Run:
        self._awaited = dict(zip(self._outline.awaited, futures, strict=True))
        self.futures = {id_: self._awaited[id_] for id_ in self._outline.wanted}
        self._outcome = asyncio.create_task(self._finish())
        # Who never asks for the outcome is not told of it.
        self._outcome.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self

    def _out_of_time(self, error: RunTimeoutError) -> None:
        self._stopping = asyncio.create_task(self._stop(error))

    async def _stop(self, reason: HandoffError) -> None:
        if self._outcome is not None and self._outcome.done():
            return
        self._stopped = self._stopped or reason
        if self._outline.detach or self._followed:
            with contextlib.suppress(OSError):
                await connection.call(self._client, "cancel", run_id=self._outline.run_id)
        await self._release()

    async def _release(self) -> None:
        """Have the scheduler forget every task of the run, unless others want it."""
        with contextlib.suppress(OSError, CancelledError):
            await self._client.cancel(list(self._awaited.values()), asynchronous=True)

    async def _status(self) -> dict[str, Any]:
        report, _ = await self._report()
        counts = {**dict.fromkeys(STATES, 0), **report.counts}
        return {**counts, "attempts": dict(Attempts(report, self._outline.nodes))}

    async def _progress(self) -> dict[str, int]:
        counts = await connection.call(self._client, "progress", run_id=self._outline.run_id)
        return {**dict.fromkeys(STATES, 0), **counts}

    def _known_counts(self) -> dict[str, int]:
        """Return how many functions are in which state, as far as one can tell without asking."""
        if self._final:
            return dict(self._final)
        names = {"finished": "done", "error": "failed", "pending": "waiting"}
        states = [names.get(str(f.status), "cancelled") for f in self._awaited.values()]
        return {state: states.count(state) for state in STATES}

    async def _explain(self, held: int | None) -> RunExplanation:
        run_id = self._outline.run_id
        answer = await connection.call(self._client, "why", run_id=run_id, held=held)
        nodes = self._outline.nodes
        found: dict[Hashable, Waiting | Unready] = {}
        for index, why in pickle.loads(answer).items():
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
        if self._outcome is None:
            raise self._stopped or RunCancelledError(self.dag_id, "it was never started")
        # The run goes on when one who waits for it gives up.
        return await asyncio.wait_for(asyncio.shield(self._outcome), timeout)

    async def _finish(self) -> ExecutionResult:
        futures = list(self._awaited.values())
        try:
            if self._outline.on_error == "continue":
                await connection.ended(self._client, futures)
            else:
                values = await self._client.gather(futures, asynchronous=True)
                return await self._assemble(dict(zip(self._awaited, values, strict=True)))
        except CancelledError:
            raise self._cancelled() from None
        except Exception:
            error = await self._failure()
            raise error from error.__cause__
        finally:
            if self._limit is not None:
                self._limit.cancel()
        return await self._assemble(await self._gather_finished())

    def _cancelled(self) -> HandoffError:
        if self._stopped is not None:
            return self._stopped
        if self._client.status != "running":
            return ClusterLostError(self.dag_id, "the scheduler went away")
        return RunCancelledError(self.dag_id, "its functions were cancelled on the cluster")

    async def _failure(self) -> HandoffError:
        """Stop the run; return the error of the function that failed first."""
        report, errors = await self._report()
        partial = await self._assemble(await self._gather_finished())
        await self._release()
        error = self._error(next(iter(errors)), errors, report)
        if isinstance(error, FunctionFailedError):
            error.partial = partial
        return error

    async def _gather_finished(self) -> dict[Hashable, Any]:
        done = {id_: f for id_, f in self._awaited.items() if f.status == "finished"}
        values = await self._client.gather(list(done.values()), asynchronous=True)
        return dict(zip(done, values, strict=True))

    async def _report(self) -> tuple[RunReport, dict[int, BaseException]]:
        """Ask the scheduler what happened, and for the errors of what failed, the first first."""
        answer = await connection.call(self._client, "report", run_id=self._outline.run_id)
        if answer is None:
            return RunReport(), {}
        return pickle.loads(answer["report"]), await connection.exceptions(answer["errors"])

    def _error(
        self, index: int, errors: Mapping[int, BaseException], report: RunReport
    ) -> HandoffError:
        """Return the error of a node that failed by itself."""
        node, cause = self._outline.nodes[index], errors[index]
        id_ = node.function.id
        if isinstance(cause, InvalidFunctionError):
            return InvalidFunctionError(id_, cause.field, cause.problem)
        if isinstance(cause, WorkerLostError):
            cause = WorkerLostError(id_, cause.workers)
        if isinstance(cause, AllocationError):
            return AllocationError(
                id_, cause.cost, cause.problem, cause.nearest, cause.shortfall, cause.node
            )
        problem = f"{type(cause).__name__}: {cause}"
        if node.kind != "function":
            problem = f"the {node.kind} of one of its arguments: {problem}"
        error = FunctionFailedError(id_, report.attempts_by_index().get(index, ()), problem)
        error.__cause__ = cause
        return error

    async def _assemble(self, values: Mapping[Hashable, Any]) -> ExecutionResult:
        """Put the result together."""
        outline = self._outline
        report, causes = await self._report()
        self._final = report.counts
        failed = {index: self._error(index, causes, report) for index in causes}
        # Nodes come after what they depend on in no particular order: follow failures to their end.
        errors: dict[Hashable, BaseException] = {}
        users: dict[int, list[int]] = {}
        for node in outline.nodes:
            for dependency in node.dependencies:
                users.setdefault(dependency, []).append(node.index)
        spreading = list(failed)
        while spreading:
            index = spreading.pop()
            errors.setdefault(outline.nodes[index].function.id, failed[index])
            for user in users.get(index, ()):
                if user not in failed:
                    failed[user] = failed[index]
                    spreading.append(user)
        return ExecutionResult(
            dag_id=self.dag_id,
            results={id_: values[id_] for id_ in outline.wanted if id_ in values},
            allocations=report.allocations(outline.nodes),
            attempts=Attempts(report, outline.nodes),
            errors=errors,
            dag_functions=outline.functions,
        )
