"""The handle of a submitted DAG."""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable, Coroutine, Generator, Hashable, Mapping
from typing import Any, NoReturn, cast

from handoff_dask.client import connection, watching
from handoff_dask.client.answers import DictAnswer, ScalarAnswer
from handoff_dask.client.completion import AsCompleted
from handoff_dask.client.explaining import RunExplanationAnswer
from handoff_dask.client.following import Follower
from handoff_dask.client.options import patience
from handoff_dask.client.results import ExecutionResult, ExecutionResultAnswer
from handoff_dask.client.waiting import wait_for
from handoff_dask.model.amounts import Seconds
from handoff_dask.model.attempt import Attempt


class Run:
    """A run of a DAG; made by :func:`submit`.

    With an asynchronous client, the methods return awaitables, and ``await run`` is
    ``await run.result()``. The run goes on to its end even if this object is dropped; its results
    are released then.

    As a context manager, ``with`` or ``async with``, it behaves as :class:`asyncio.TaskGroup` does.
    If the block ends well, leaving it waits for the run and raises its error, unless the block
    cancelled the run. If the block raises, the run is cancelled.

    Attributes
    ----------
    dag_id : Hashable
        The id of the DAG.
    futures : Mapping
        {function id: Future} of the results that were asked for. The values stay on the workers
        while the run or its futures are referenced.

    Examples
    --------
    >>> from handoff_dask import DAG, submit
    >>> dag = DAG("answers")
    >>> a = dag.add(int, "42", id="a")
    >>> with submit(dag) as run:
    ...     for id, value in run.as_completed():
    ...         print(id, value)
    a 42
    """

    def __init__(self, follower: Follower) -> None:
        self.dag_id = follower.outline.dag_id
        self._follower = follower

    @property
    def futures(self) -> Mapping[Hashable, Any]:
        """{function id: Future} of the results that were asked for."""
        return self._follower.units.by_function

    def __repr__(self) -> str:
        return f"<Run of {self.dag_id!r}: {len(self._follower.outline.functions)} functions>"

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{self!r} cannot be pickled: pass its result(), or call get_run({self.dag_id!r}) there"
        )

    def _repr_html_(self) -> str:
        return watching.html(self._follower)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return watching.bundle(self._follower, repr(self))

    def __await__(self) -> Generator[Any, None, ExecutionResult]:
        __tracebackhide__ = True
        self._require(asynchronous=True, instead="call run.result() instead of awaiting the run")
        return self.result().__await__()

    def __enter__(self) -> Run:
        self._require(asynchronous=False, instead="use `async with` instead of `with`")
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        __tracebackhide__ = True
        if error is not None:
            self.cancel()
        else:
            self._wait_for(self._follower.leave)

    async def __aenter__(self) -> Run:
        self._require(asynchronous=True, instead="use `with` instead of `async with`")
        return self

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        __tracebackhide__ = True
        if error is not None:
            await self.cancel()
        else:
            await self._wait_for(self._follower.leave)

    def _require(self, *, asynchronous: bool, instead: str) -> None:
        """Raise if the client is not of this kind."""
        if self._follower.client.asynchronous is not asynchronous:
            kind = "synchronous" if asynchronous else "asynchronous"
            raise TypeError(f"the run's client is {kind}: {instead}")

    def as_completed(self, timeout: Seconds | None = None) -> AsCompleted:
        """Iterate over the results that were asked for, as they become available.

        A value is fetched once, also for several iterators and for :meth:`result`. With
        ``on_error="continue"``, functions without a result are left out; ``result().errors`` has
        them.

        Parameters
        ----------
        timeout
            Seconds from this call; None waits without end.

        Returns
        -------
        AsCompleted
            An iterator of pairs (function id, value): for ``for`` or, with an asynchronous client,
            for ``async for``. It may be left early; the run goes on.

        Raises
        ------
        TimeoutError
            The iteration takes longer than `timeout`; the run goes on.
        FunctionFailedError, RunTimeoutError, RunCancelledError, ClusterLostError
            The iteration raises what ended the run, as :meth:`result` does.

        Examples
        --------
        >>> from handoff_dask import DAG, submit
        >>> dag = DAG()
        >>> a = dag.add(int, "42", id="a")
        >>> list(submit(dag).as_completed())
        [('a', 42)]
        """
        return AsCompleted(self._follower, patience(timeout))

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

    @property
    def attempts(self) -> DictAnswer[Hashable, tuple[Attempt, ...]]:
        """{function id: tuple of Attempt}: the attempts that have ended.

        Each look asks the scheduler. With an asynchronous client, an awaitable: ``await
        run.attempts``.
        """
        answer = self._ask(self._follower.attempts)
        return cast("DictAnswer[Hashable, tuple[Attempt, ...]]", answer)

    def counts(self) -> DictAnswer[str, int]:
        """Return how many functions are in which state, at little cost however large the run.

        Returns
        -------
        dict
            The counts of :meth:`status`.
        """
        return cast("DictAnswer[str, int]", self._ask(self._follower.counts))

    def progress(self) -> DictAnswer[str, int]:
        """Return :meth:`counts`, under an older name.

        .. deprecated:: 0.2.0
        """
        warnings.warn(
            "Run.progress() is deprecated: use run.counts()", DeprecationWarning, stacklevel=2
        )
        return self.counts()

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


class RunAnswer(Run, Coroutine[Any, Any, Run]):
    """A Run, or an awaitable of one; see :mod:`handoff_dask.client.answers`."""

    def __await__(self) -> Generator[Any, None, Run]:  # type: ignore[override]
        raise NotImplementedError


class Starting(Coroutine[Any, Any, Run]):
    """A run that an asynchronous client is to start or find: for ``await`` or ``async with``."""

    def __init__(self, started: Awaitable[Follower]) -> None:
        self._run = self._made(started)

    async def _made(self, started: Awaitable[Follower]) -> Run:
        __tracebackhide__ = True
        return Run(await started)

    def __getattr__(self, name: str) -> NoReturn:
        hint = f": write `run = await ...`, then run.{name}" if hasattr(Run, name) else ""
        raise AttributeError(f"this is not a run yet, and has no {name!r}{hint}")

    def __enter__(self) -> NoReturn:
        raise TypeError("the run's client is asynchronous: write `async with`, not `with`")

    def __exit__(self, *error: Any) -> None:
        """Complete the protocol, or `with` would not get as far as the error."""

    # The rest of a coroutine, for asyncio.create_task.

    def send(self, value: Any) -> Any:  # noqa: D102
        return self._run.send(value)

    def throw(self, *error: Any) -> Any:  # noqa: D102
        return self._run.throw(*error)

    def close(self) -> None:  # noqa: D102
        self._run.close()

    def __await__(self) -> Generator[Any, None, Run]:
        return self._run.__await__()

    async def __aenter__(self) -> Run:
        self._entered = await self
        return self._entered

    async def __aexit__(self, *error: Any) -> None:
        __tracebackhide__ = True
        await self._entered.__aexit__(*error)


def handle(followed: Follower | Awaitable[Follower]) -> RunAnswer:
    """Return the handle of a run, or what makes one with an asynchronous client."""
    run = Run(followed) if isinstance(followed, Follower) else Starting(followed)
    return cast("RunAnswer", run)
