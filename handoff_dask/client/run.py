"""The handle of a submitted DAG."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import Any, cast

from distributed import Future

from handoff_dask.client import connection, watching
from handoff_dask.client.answers import DictAnswer, ScalarAnswer
from handoff_dask.client.explaining import RunExplanationAnswer
from handoff_dask.client.following import Follower
from handoff_dask.client.options import patience
from handoff_dask.client.results import ExecutionResultAnswer
from handoff_dask.client.waiting import wait_for
from handoff_dask.model.amounts import Seconds


class Run:
    """A run of a DAG; made by :func:`submit`.

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
        self.futures: Mapping[Hashable, Future[Any]] = follower.wanted
        self._follower = follower

    def __repr__(self) -> str:
        return f"<Run of {self.dag_id!r}: {len(self._follower.outline.functions)} functions>"

    def _repr_html_(self) -> str:
        return watching.html(self._follower)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return watching.bundle(self._follower, repr(self))

    def status(self) -> DictAnswer[str, Any]:
        """Return how many functions are in which state, and the attempts so far.

        Returns
        -------
        dict
            Counts under ``"waiting"`` (for results of others), ``"held"`` (ready, without a place),
            ``"assigned"`` (handed to a worker ahead, not started), ``"running"``, ``"done"``,
            ``"failed"`` and ``"cancelled"``; under ``"attempts"`` {function id: tuple of Attempt}.
        """
        return cast("DictAnswer[str, Any]", self._ask(self._follower.status))

    def progress(self) -> DictAnswer[str, int]:
        """Return how many functions are in which state, however large the run at little cost.

        Returns
        -------
        dict
            The counts of :meth:`status`.
        """
        return cast("DictAnswer[str, int]", self._ask(self._follower.progress))

    def remaining(self) -> ScalarAnswer:
        """Return how long the run will still take, as the scheduler estimates.

        Returns
        -------
        float or None
            Seconds; None while too little is known of how long its functions take.
        """
        return self._ask(self._follower.remaining)

    def explain(self, held: int | None = None) -> RunExplanationAnswer:
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
        return cast("RunExplanationAnswer", self._ask(self._follower.explain, held))

    def wait(self, timeout: Seconds | None = None) -> ScalarAnswer:
        """Wait for the run to end, well or not.

        Parameters
        ----------
        timeout
            How long: seconds, text such as ``"5 min"``, or a timedelta. None waits without end.

        Raises
        ------
        TimeoutError
            It had not ended by then; it goes on.
        """
        return self._wait_for(self._follower.wait, patience(timeout))

    def result(self, timeout: Seconds | None = None) -> ExecutionResultAnswer:
        """Return the :class:`ExecutionResult`, or raise what :func:`execute` would raise.

        Parameters
        ----------
        timeout
            How long to wait, as for :meth:`wait`.

        Raises
        ------
        TimeoutError
            The run had not ended by then; it goes on.
        """
        __tracebackhide__ = True
        ended = self._wait_for(self._follower.result, patience(timeout))
        return cast("ExecutionResultAnswer", ended)

    def cancel(self) -> ScalarAnswer:
        """Stop the run: functions that have not started never will, results are dropped.

        Functions that are running finish unseen, and keep what they claim until then. A detached
        run keeps the results that it has until :func:`forget`.
        """
        return self._follower.cancel()

    def _ask(self, method: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return connection.sync(self._follower.client, method, *args)

    def _wait_for(self, method: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        __tracebackhide__ = True
        follower = self._follower
        return wait_for(follower.client, method, *args, run_id=follower.outline.run_id)


class RunAnswer(Run, Awaitable[Run]):
    """A Run, or an awaitable of one; see :mod:`handoff_dask.client.answers`."""
