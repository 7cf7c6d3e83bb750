"""Running a DAG in this process, without a cluster."""

from __future__ import annotations

import contextvars
import math
import platform
import threading
import time
from bdb import BdbQuit
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from contextlib import AbstractContextManager
from functools import partial
from graphlib import TopologicalSorter
from itertools import count
from random import random
from typing import Any, NamedTuple
from uuid import uuid4

from distributed import Future

from handoff_dask.attempts.ledger import Entry
from handoff_dask.attempts.retries import judged
from handoff_dask.client.describing import Outline, function_label
from handoff_dask.client.listening import Callback
from handoff_dask.client.options import (
    Allocator,
    OnError,
    ResultSelection,
    RunOptions,
    StrategyName,
    patience,
)
from handoff_dask.client.outcomes import described, result_of
from handoff_dask.client.results import ExecutionResult, select
from handoff_dask.errors import HandoffError, InvalidFunctionError
from handoff_dask.model.amounts import Seconds
from handoff_dask.model.attempt import UNKNOWN, Outcome, Usage
from handoff_dask.model.contents import Replacing
from handoff_dask.model.dag import DAG, functions_of, require_dag
from handoff_dask.model.expansion import Call, Node, evaluate, expand, map_given, node_policy
from handoff_dask.model.function import time_limit
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.standins import text_of, type_of
from handoff_dask.tracebacks import without_ours
from handoff_dask.wire.bundles import size_of
from handoff_dask.wire.messages import RunReport, Stop
from handoff_dask.wire.run_events import (
    AttemptEnded,
    Event,
    FunctionEnded,
    FunctionPlaced,
    RunClosed,
    RunOpened,
    RunStopped,
)
from handoff_dask.worker.current import running

#: The address, and the name, of the worker that attempts and transforms see.
HERE = "local"


def execute_local(
    dag: DAG,
    *,
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
) -> ExecutionResult:
    """Run a DAG in this process, one function after the other (``Handoff.execute_local``).

    For debugging with pdb and for tests: nothing is pickled. The functions get the very objects
    that they were given, so a later start sees what an earlier one changed in them. They run in the
    calling thread. Only under a time limit does each run in a thread of its own; when its time is
    up, the thread is abandoned and goes on in the background. Costs and pins are ignored. Dask
    futures among the arguments are waited for.

    Parameters
    ----------
    dag, max_retries, retry, max_concurrency, allocation_strategy, results, on_error, timeout, \
placement_timeout, priority, on_event
        As for :func:`execute`. `on_event` is called in the calling thread; `max_concurrency`,
        `allocation_strategy`, `placement_timeout` and `priority` are checked and have no effect.

    Returns
    -------
    ExecutionResult
        With ``"local"`` as the worker of every function.

    Raises
    ------
    DAGError
        The DAG is not valid.
    ValueError
        An option is wrong.
    FunctionFailedError
        A function failed in its last attempt.
    RunTimeoutError
        The run did not end within `timeout`.

    Examples
    --------
    >>> from handoff_dask import DAG, execute_local
    >>> dag = DAG()
    >>> answer = dag.add(int, "42", id="answer")
    >>> execute_local(dag).results
    {'answer': 42}
    """
    __tracebackhide__ = True
    require_dag(dag)
    options = RunOptions.among(locals())
    dag.validate()
    return _LocalRun(dag, options).result()


class _OutOfTimeError(Exception):
    """The run's time is up."""


class _FutureError(HandoffError):
    """A future among the arguments has no result."""


class _LocalRun:
    """A run, as a cluster would report it."""

    def __init__(self, dag: DAG, options: RunOptions) -> None:
        self._options = options
        functions = functions_of(dag)
        self._nodes = expand(functions)
        self._outline = Outline(
            run_id=uuid4().hex,
            dag_id=dag.id,
            functions=functions,
            nodes=self._nodes,
            key=lambda index: (HERE, index),
            wanted=select(dag, self._nodes, options.results),
            awaited={n.function.id: n.index for n in self._nodes if n.kind == "function"},
            on_error=options.on_error,
        )
        self._callback = Callback(options.on_event)
        self._workers = {HERE: (HERE, platform.node())}
        #: When its time is up, by the monotonic clock.
        self._deadline = math.inf
        #: By the index of the node, as in `RunReport`.
        self._values: dict[int, Any] = {}
        self._attempts: dict[int, tuple[Entry, ...]] = {}
        self._causes: dict[int, BaseException] = {}
        self._problems: dict[int, str] = {}
        self._decided: set[int] = set()
        #: The nodes that failed, and those that depend on them.
        self._failed: set[int] = set()

    def result(self) -> ExecutionResult:
        """Run all functions; return the result, or raise what the run ended with."""
        __tracebackhide__ = True
        stop = self._run()
        report = RunReport(
            attempts=self._attempts,
            workers=self._workers,
            failed=self._problems,
            stop=stop,
            decided=frozenset(self._decided),
            tasks=len(self._nodes),
        )
        awaited = self._outline.awaited.items()
        values = {id_: self._values[i] for id_, i in awaited if i in self._values}
        return result_of(self._outline, report, self._causes, values)

    def _run(self) -> Stop | None:
        """Run what can be run; return why the run was stopped, if it was."""
        timeout = patience(self._options.timeout)
        self._callback(RunOpened(self._outline.run_id, self._outline.dag_id, time.time()))
        if timeout is not None:
            self._deadline = time.monotonic() + timeout
        stop = None
        unended = []
        sorter = TopologicalSorter({n.index: n.dependencies for n in self._nodes})
        for node in map(self._nodes.__getitem__, sorter.static_order()):
            if not self._failed.isdisjoint(node.dependencies):
                self._fail(node)
                continue
            if stop is not None:
                unended.append(node)
                continue
            try:
                self._run_node(node)
            except _OutOfTimeError:
                stop = Stop("timeout", f"it did not end within {timeout} s")
                unended.append(node)
            if node.index in self._failed and self._options.on_error == "raise":
                label, problem = function_label(node.function.id), self._problems[node.index]
                stop = Stop("failed", f"function {label} failed: {problem}")
        if stop is not None:
            self._emit(RunStopped, *stop)
            for node in unended:
                self._announce(node, FunctionEnded, "cancelled")
        self._emit(RunClosed)
        return stop

    def _run_node(self, node: Node) -> None:
        """Call a node until it succeeds or is not retried any more."""
        try:
            call = map_given(node.call, Replacing(Future, self._result_of))
        except _FutureError as lost:
            self._fail(node, lost.__cause__ or lost, str(lost))
            return
        limit = math.inf
        if node.kind != "function":
            call = call._replace(extra_args=(HERE, HERE, *call.extra_args))
        elif (timeout := time_limit(node.function)) is not None:
            limit = timeout
        arguments = [self._values[i] for i in node.dependencies]
        policy, cost = node_policy(node, self._options.policy), node.cost
        for number in count(1):
            self._announce(node, FunctionPlaced, number, HERE, False)
            started = time.time()
            who = running(node.function.id, self._outline.dag_id, number, cost)
            work = partial(_evaluated, who, call, arguments)
            value, error, outcome, usage = self._attempted(work, limit)
            self._record(node, number, started, cost, outcome, error, usage)
            if error is None:
                self._values[node.index] = value
                self._announce(node, FunctionEnded, "done")
                return
            problem, verdict = text_of(error), judged(policy, error, number, cost)
            if not verdict.retry or number > policy.max_retries:
                break
            cost = cost if verdict.cost is None else verdict.cost
            self._sleep(policy.delay_before(number + 1, random()))
        if verdict.problem is not None:
            self._decided.add(node.index)
            error = InvalidFunctionError(node.function.id, *verdict.problem)
        self._fail(node, error, problem)

    # Time

    def _remaining(self) -> float:
        """Return the seconds that the run has left; raise if there are none."""
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise _OutOfTimeError
        return remaining

    def _sleep(self, seconds: float) -> None:
        remaining = self._remaining()
        time.sleep(min(seconds, remaining))
        if seconds >= remaining:
            raise _OutOfTimeError

    def _attempted(
        self, work: Callable[[], Any], limit: float
    ) -> tuple[Any, BaseException | None, Outcome, Usage]:
        """Call something; return its value or its error, the outcome, and what it used."""
        remaining = self._remaining()
        call: futures.Future[_Ended] = futures.Future()
        endless = math.isinf(min(limit, remaining))
        if endless:
            _fulfil(call, work)
        else:
            run = partial(contextvars.copy_context().run, _fulfil, call, work)
            # The process does not wait for it.
            threading.Thread(target=run, name="handoff", daemon=True).start()
            futures.wait([call], min(limit, remaining, threading.TIMEOUT_MAX))
            if not call.done():
                if remaining <= limit:
                    raise _OutOfTimeError
                late = TimeoutError(f"it ran longer than its timeout of {limit} s")
                return None, late, "timeout", UNKNOWN
        value, error, cpu_time = call.result()
        if error is None:
            return value, None, "ok", Usage(cpu_time, None, size_of(value))
        # `quit` in the debugger, or Ctrl-C, which interrupts the main thread only.
        if isinstance(error, BdbQuit) or (endless and isinstance(error, KeyboardInterrupt)):
            raise error
        error = error.with_traceback(without_ours(error.__traceback__))
        return None, error, "error", Usage(cpu_time)

    def _result_of(self, future: Future[Any]) -> Any:
        """Wait for a future among the arguments of a function; return its result."""
        what = f"its argument, the future {future.key!r},"
        if future.client is None or future.client.asynchronous:
            raise _FutureError(f"{what} cannot be waited for here: pass its result")
        remaining = self._remaining()
        try:
            return future.result(timeout=None if math.isinf(remaining) else remaining)
        except Exception as error:
            self._remaining()
            raise _FutureError(f"{what} failed: {described(error)}") from error

    # The record

    def _record(
        self,
        node: Node,
        number: int,
        started: float,
        cost: Mapping[str, float],
        outcome: Outcome,
        error: BaseException | None,
        usage: Usage,
    ) -> None:
        """Record an attempt."""
        error_type, message = (None, None) if error is None else (type_of(error), text_of(error))
        entry = Entry(
            number,
            HERE,
            started,
            time.time(),
            outcome,
            error_type,
            message,
            cost,
            error is not None,
            usage,
        )
        self._attempts[node.index] = (*self._attempts.get(node.index, ()), entry)
        self._announce(node, AttemptEnded, entry.attempt(self._workers))

    def _fail(
        self, node: Node, cause: BaseException | None = None, problem: str | None = None
    ) -> None:
        """Record that a node failed for good; without a cause, because of one it depends on."""
        self._failed.add(node.index)
        if cause is not None:
            self._causes[node.index] = cause
            self._problems[node.index] = problem or ""
        self._announce(node, FunctionEnded, "failed", problem)

    def _announce(self, node: Node, event: Callable[..., Event], *facts: Any) -> None:
        """Emit an event of a function; there are none of transforms."""
        if node.kind == "function":
            self._emit(event, node.function.id, *facts)

    def _emit(self, event: Callable[..., Event], *facts: Any) -> None:
        self._callback(event(self._outline.run_id, time.time(), *facts))


def _evaluated(who: AbstractContextManager[None], call: Call, arguments: Sequence[Any]) -> Any:
    with who:
        return evaluate(call, arguments, lambda: HERE)


class _Ended(NamedTuple):
    """What a call returned or raised, and the seconds that it kept a processor busy."""

    value: Any
    error: BaseException | None
    cpu_time: float


def _fulfil(call: futures.Future[_Ended], work: Callable[[], Any]) -> None:
    """Call something, and have a future hold how that ended."""
    begun = time.thread_time()
    try:
        value = work()
    except BaseException as error:
        call.set_result(_Ended(None, error, time.thread_time() - begun))
    else:
        call.set_result(_Ended(value, None, time.thread_time() - begun))
