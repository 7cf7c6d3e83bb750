"""A DAG on its way through a cluster, for users."""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Any, TypeVar

from distributed import Future

from handoff_dask.client import connection, watching
from handoff_dask.client.explaining import RunExplanation
from handoff_dask.client.following import Follower
from handoff_dask.client.results import ExecutionResult
from handoff_dask.client.submission import Submission
from handoff_dask.client.waiting import wait_for
from handoff_dask.errors import RunCancelledError
from handoff_dask.worker.task import waiting_task

T = TypeVar("T")


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

    def __init__(self, follower: Follower) -> None:
        self.dag_id = follower.outline.dag_id
        self.futures: Mapping[Hashable, Future[Any]] = {}
        self._follower = follower
        self._close: Callable[[], Any] = lambda: None

    def __repr__(self) -> str:
        return f"<Run of {self.dag_id!r}: {len(self._follower.outline.functions)} functions>"

    def _repr_html_(self) -> str:
        return watching.html(self._follower)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return watching.bundle(self._follower, repr(self))

    def start(self, submission: Submission) -> Any:
        """Send the run on its way; :func:`submit` does."""
        __tracebackhide__ = True
        follower = self._follower

        async def started() -> Run:
            await follower.start(submission, None if outer is None else outer.key)
            return self._with_futures()

        try:
            outer = waiting_task(follower.client)
            return connection.sync(follower.client, started)
        except KeyboardInterrupt:
            self.cancel()
            raise

    async def follow(self) -> Run:
        """Watch a run that is on its way already; :func:`get_run` does."""
        await self._follower.follow()
        return self._with_futures()

    def _with_futures(self) -> Run:
        follower = self._follower
        self.futures = {id_: follower.futures[id_] for id_ in follower.outline.wanted}
        return self

    def complete(self) -> Any:
        """Return the result and leave nothing behind; :func:`execute` does."""
        __tracebackhide__ = True

        async def completed() -> ExecutionResult:
            try:
                return await self._follower.complete()
            finally:
                self.futures = {}

        try:
            return self._wait_for(completed)
        except KeyboardInterrupt:
            # It ended the wait, not the run.
            self.cancel()
            raise
        finally:
            self._close()

    def owns(self, embedded: connection.EmbeddedCluster) -> None:
        """Have a cluster stop when nobody refers to the run any more and it has ended."""
        self._close = weakref.finalize(self._follower, embedded.close)

    def status(self) -> dict[str, Any]:
        """Return how many functions are in which state, and the attempts so far.

        Returns
        -------
        dict
            Counts under ``"waiting"`` (for results of others), ``"held"`` (ready, without a place),
            ``"assigned"`` (handed to a worker ahead, not started), ``"running"``, ``"done"``,
            ``"failed"`` and ``"cancelled"``; under ``"attempts"`` {function id: tuple of Attempt}.
        """
        return connection.sync(self._follower.client, self._follower.status)

    def progress(self) -> dict[str, int]:
        """Return how many functions are in which state, however large the run at little cost.

        Returns
        -------
        dict
            The counts of :meth:`status`.
        """
        return connection.sync(self._follower.client, self._follower.progress)

    def remaining(self) -> float | None:
        """Return how long the run will still take, as the scheduler estimates.

        Returns
        -------
        float or None
            Seconds; None while too little is known of how long its functions take.
        """
        return connection.sync(self._follower.client, self._follower.remaining)

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
        return connection.sync(self._follower.client, self._follower.explain, held)

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
        return self._wait_for(self._follower.wait, timeout)

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
        return self._wait_for(self._follower.result, timeout)

    def cancel(self) -> None:
        """Stop the run: functions that have not started never will, results are dropped.

        Functions that are running finish unseen, and keep what they claim until then. A detached
        run keeps the results that it has until :func:`forget`.
        """
        reason = RunCancelledError(self.dag_id, "it was cancelled")
        return connection.sync(self._follower.client, self._follower.stop, reason)

    def _wait_for(self, method: Callable[..., Awaitable[T]], *args: Any) -> T:
        __tracebackhide__ = True
        return wait_for(self._follower.client, method, *args, run_id=self._follower.outline.run_id)
