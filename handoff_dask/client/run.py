"""A DAG on its way through a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import weakref
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from distributed import Client, Future

from handoff_dask.attempts.states import STATES, UNENDED
from handoff_dask.client import annotating, connection, ends, gathering, watching
from handoff_dask.client.describing import Outline
from handoff_dask.client.explaining import Fetching, RunExplanation, Unready
from handoff_dask.client.options import Allocator
from handoff_dask.client.results import Attempts, ExecutionResult, failed_or_not_run
from handoff_dask.client.submission import Submission
from handoff_dask.client.waiting import wait_for
from handoff_dask.compat import client as compat
from handoff_dask.errors import (
    ClusterLostError,
    FunctionFailedError,
    HandoffError,
    RunCancelledError,
    RunTimeoutError,
    StandInError,
    UnknownRunError,
)
from handoff_dask.placement.events import Waiting
from handoff_dask.wire.messages import RunReport, Stop
from handoff_dask.worker.task import waiting_task

T = TypeVar("T")

#: Seconds that a client waits for messages that should arrive soon.
PATIENCE = 2.0


class Run:
    """A DAG on its way through a cluster; made by :func:`submit`.

    With an asynchronous client, the methods return awaitables. The run goes on to its end even if
    this object is dropped; its results are released then.

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
        self._close: Callable[[], Any] = lambda: None

    def __repr__(self) -> str:
        return f"<Run of {self.dag_id!r}: {len(self._outline.functions)} functions>"

    def _repr_html_(self) -> str:
        return watching.html(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return watching.bundle(self)

    def start(self, submission: Submission) -> Any:
        """Send the run on its way; :func:`submit` does."""
        __tracebackhide__ = True
        try:
            outer = waiting_task(self._client)
            within = None if outer is None else outer.key
            return connection.sync(self._client, self._start, submission, within)
        except KeyboardInterrupt:
            self.cancel()
            raise

    def complete(self) -> Any:
        """Return the result and leave nothing behind; :func:`execute` does."""
        __tracebackhide__ = True
        try:
            return self._wait_for(self._complete)
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
            Report at most this many held functions and nothing else, which is cheap however large
            the run. None reports all.

        Returns
        -------
        RunExplanation
            {function id: why}: the dependencies it lacks; or the resources and workers, the retry's
            delay, the limit or whatever else holds it; or the inputs that are on their way to its
            worker. Printed, it is a report.
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
        return self._wait_for(self._wait, timeout)

    def result(self, timeout: float | None = None) -> ExecutionResult:
        """Return the :class:`ExecutionResult`, or raise what :func:`execute` would raise.

        Parameters
        ----------
        timeout
            Seconds to wait; None waits without end.

        Raises
        ------
        TimeoutError
            The run had not ended by then; it goes on.
        """
        __tracebackhide__ = True
        return self._wait_for(self._result, timeout)

    def cancel(self) -> None:
        """Stop the run: functions that have not started never will, results are dropped.

        Functions that are running finish unseen, and keep what they claim until then. A detached
        run keeps the results that it has until :func:`forget`.
        """
        return connection.sync(
            self._client, self._stop, RunCancelledError(self.dag_id, "it was cancelled")
        )

    def _wait_for(self, method: Callable[..., Awaitable[T]], *args: Any) -> T:
        __tracebackhide__ = True
        return wait_for(self._client, method, *args, run_id=self._outline.run_id)

    # The same, on the event loop of the client.

    async def _complete(self) -> ExecutionResult:
        try:
            return await self._result(None)
        except BaseException:
            # Also when the task that waits here is cancelled.
            await self._stop(RunCancelledError(self.dag_id, "nobody waits for it any more"))
            raise
        finally:
            self._release()
            self.futures = {}

    async def _start(self, submission: Submission, within: Any) -> Run:
        client = self._client
        await connection.install(client)
        pins = None
        if isinstance(submission.options.allocation_strategy, Allocator):
            nodes = await self._call("nodes")
            names = {a: n["names"] for a, n in nodes.items()}
            pins = submission.pins({a: n["capabilities"] for a, n in nodes.items()}, names)
        try:
            refused = await self._call("open", spec=submission.spec(client.id, pins, within))
            if refused is not None:
                raise submission.allocation_error(*pickle.loads(refused))
            if self._stopped is not None:  # cancelled on its way here
                raise self._stopped
            keys = submission.translation.keys
            get = partial(
                client.get,
                submission.translation.graph,
                [keys[index] for index in self._outline.awaited.values()],
                sync=False,
                priority=submission.options.priority,
            )
            futures = annotating.without(keys, get)
        except BaseException:
            # No graph will follow.
            with contextlib.suppress(OSError, ClusterLostError):
                await self._call("close", run_id=self._outline.run_id)
            raise
        self._watch(futures)
        if submission.options.detach:
            # The client may be closed as soon as this returns.
            await self._arrival()
        self._ending()
        return self

    async def _arrival(self) -> None:
        """Wait until the scheduler has the graph; raise if it will not get it."""
        # If the scheduler refuses it, the futures fail, and whoever waits for them stops the run.
        watch = asyncio.get_running_loop().call_later(connection.PULSE, self._ending)
        try:
            if not await self._call("arrived", run_id=self._outline.run_id):
                await asyncio.shield(self._ending())
        finally:
            watch.cancel()

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
            # An outcome that nobody asks for is not an unretrieved exception.
            self._outcome.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._outcome

    @property
    def _over(self) -> bool:
        if self._outcome is not None:
            return self._outcome.done()
        return all(future.done() for future in self._awaited.values())

    async def _stop(self, reason: HandoffError) -> None:
        if self._outcome is not None and self._outcome.done():
            return
        self._stopped = self._stopped or reason
        with contextlib.suppress(OSError, ClusterLostError):
            await self._call(
                "stop",
                run_id=self._outline.run_id,
                kind="cancelled",
                problem="its functions were cancelled on the cluster",
            )
        if self._outcome is not None:
            await asyncio.wait([self._outcome])

    def _release(self) -> None:
        """Release the results; others who hold them keep them.

        To be called on the client's loop: from another thread, each release would wake it.
        """
        for future in self._awaited.values():
            # Not left to the garbage collector: Dask's gather leaves circles of references.
            future.release()
        self._awaited = {}

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
        outcome = self._ending()
        # The run goes on even if whoever waits for it gives up.
        await asyncio.wait([outcome], timeout=timeout)
        if not outcome.done():
            raise TimeoutError(
                f"run {self.dag_id!r} did not end within {timeout} s{await self._unended()}"
            )
        return await asyncio.shield(outcome)

    async def _unended(self) -> str:
        """Say what has not ended, for a message."""
        with contextlib.suppress(OSError, ClusterLostError, asyncio.TimeoutError):
            counts = await asyncio.wait_for(self._progress(), PATIENCE)
            states = [f"{counts[s]} {s}" for s in STATES if s in UNENDED and counts[s]]
            if states:
                return f"; of its functions {', '.join(states)}"
        return ""

    async def _finish(self) -> ExecutionResult:
        """Wait for the end of the run, and fetch its results or say why there are none.

        Dask reports the end of each future; how the run ended, the scheduler's plugin decides.
        """
        raising = self._outline.on_error == "raise"
        over = ends.over(self._client, self._outline.run_id)
        fetch = gathering.gathered if raising else gathering.settled
        fetching: asyncio.Future[Any] = asyncio.ensure_future(fetch(self._client, self._awaited))
        try:
            await asyncio.wait([over, fetching], return_when=asyncio.FIRST_COMPLETED)
            if fetching.done() and (values := fetching.result()) is not None:
                return self._result_of(*await self._report(), values)
            while True:
                report, causes = await self._ended(over)
                await self._settle(report)
                values, problems = await gathering.finished(self._client, self._awaited)
                if report.stop is not None or gathering.complete(self._awaited, values, problems):
                    return self._result_of(report, causes, values, problems)
                # A worker that was lost meanwhile took results with it; these are made again.
                await asyncio.sleep(PATIENCE / 10)
        except HandoffError:
            self._release()
            raise
        finally:
            over.cancel()
            fetching.cancel()

    async def _ended(
        self, over: asyncio.Future[None]
    ) -> tuple[RunReport, dict[int, BaseException]]:
        """Wait until the scheduler says that the run is over; return its report.

        Raises
        ------
        HandoffError
            The run never began, or goes on without this client.
        """
        pause, deadline = 0.005, asyncio.get_running_loop().time() + PATIENCE
        while True:
            report, causes = await self._report()
            if report.over:
                return report, causes
            failed = [f for f in self._awaited.values() if f.status == "error"]
            if failed and not report.arrived:
                error = await failed[0].exception()
                problem = f"the scheduler refused its graph: {gathering.described(error)}"
                run_id = self._outline.run_id
                await self._call("stop", run_id=run_id, kind="failed", problem=problem)
                raise HandoffError(f"run {self.dag_id!r}: {problem}") from error
            cancelled = any(f.status == "cancelled" for f in self._awaited.values())
            if cancelled and asyncio.get_running_loop().time() > deadline:
                raise RunCancelledError(
                    self.dag_id, "its futures were cancelled here, while it goes on on the cluster"
                )
            pause = min(2 * pause, ends.INTERVAL)
            await asyncio.wait([over], timeout=pause)

    async def _settle(self, report: RunReport) -> None:
        """Bring the futures up to date with the scheduler: messages may be late, or lost."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while report.stop is None:
            pending = {f.key: f for f in self._awaited.values() if f.status in ("pending", "lost")}
            if not pending:
                return
            if asyncio.get_running_loop().time() > deadline:
                for key, state in await self._call("states", keys=list(pending)):
                    compat.settle_future(pending[key], state)
                return
            # The scheduler then sends their states again.
            await self._call("want", keys=list(pending), client=self._client.id)
            await asyncio.sleep(PATIENCE / 10)

    async def failure_of(
        self, function_id: Hashable, problem: BaseException | None
    ) -> BaseException:
        """Return why a function that ended has no result; :func:`get_result` does.

        Parameters
        ----------
        problem
            What fetching the result raised, if there is one.
        """
        report, causes = await self._report()
        nodes = self._outline.nodes
        if problem is not None:
            attempts = Attempts(report, nodes).get(function_id, ())
            return gathering.unfetched(function_id, problem, attempts)
        # Of the function itself or of what it depends on; else of the one that ended the run.
        ahead, seen = [self._outline.awaited[function_id]], set()
        while ahead:
            index = ahead.pop()
            if index in causes:
                return gathering.failure(nodes, index, causes, report)
            if index not in seen:
                seen.add(index)
                ahead.extend(nodes[index].dependencies)
        try:
            self._result_of(report, causes, {})
        except HandoffError as error:
            return error
        return UnknownRunError(self.dag_id)

    async def _report(self) -> tuple[RunReport, dict[int, BaseException]]:
        """Ask the scheduler what happened, and for the errors of what failed, the first first."""
        answer = await self._call("report", run_id=self._outline.run_id)
        if answer is None:
            return RunReport(stop=Stop("cancelled", "the cluster does not know it any more")), {}
        report: RunReport = pickle.loads(answer["report"])
        texts = {
            row.node: (row.error_type, row.message or "")
            for row in report.attempts
            if row.error_type is not None
        }
        causes = await connection.exceptions(answer["errors"], texts)
        for index, problem in report.failed.items():
            if index not in causes:  # its error is not kept any more
                causes[index] = StandInError(*texts.get(index, (HandoffError.__name__, problem)))
        return report, causes

    def _result_of(
        self,
        report: RunReport,
        causes: Mapping[int, BaseException],
        values: Mapping[Hashable, Any],
        problems: Mapping[Hashable, BaseException] = MappingProxyType({}),
    ) -> ExecutionResult:
        """Put the result together, or raise what the run ended with.

        Parameters
        ----------
        report, causes
            The scheduler's report, and {index: error} of what failed by itself.
        values, problems
            The results there are, and the errors of those that cannot be fetched.
        """
        outline, stop = self._outline, report.stop
        self._final = report.counts
        if stop is not None and len(values) < len(outline.awaited):
            if stop.kind == "timeout":
                raise RunTimeoutError(self.dag_id, stop.problem)
            if stop.kind in ("cancelled", "abandoned"):
                raise self._stopped or RunCancelledError(self.dag_id, stop.problem)
        nodes = outline.nodes
        failed = {index: gathering.failure(nodes, index, causes, report) for index in causes}
        attempts = Attempts(report, nodes)
        unfetched = {
            id_: gathering.unfetched(id_, problem, attempts.get(id_, ()))
            for id_, problem in problems.items()
        }
        result = ExecutionResult(
            dag_id=self.dag_id,
            results={id_: values[id_] for id_ in outline.wanted if id_ in values},
            allocations=report.allocations(nodes),
            attempts=attempts,
            errors=failed_or_not_run(nodes, failed, {*values, *unfetched}) | unfetched,
            dag_functions=outline.functions,
        )
        error = next(iter([*failed.values(), *unfetched.values()]), None)
        if error is None and stop is not None and stop.kind == "failed":
            error = HandoffError(f"run {self.dag_id!r}: {stop.problem}")
        if error is None or outline.on_error == "continue":
            return result
        if isinstance(error, FunctionFailedError):
            error.partial = result
        raise error from error.__cause__
