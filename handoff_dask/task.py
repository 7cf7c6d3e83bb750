"""What runs on the worker around the user's code.

The arguments of these functions are bytes, so that neither the scheduler nor the way there needs
the user's modules; a worker opens them when it runs them.
"""

from __future__ import annotations

import math
import pickle
import threading
import time
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from distributed import Reschedule, rejoin, secede

from handoff_dask import _compat
from handoff_dask.model.amounts import as_numbers
from handoff_dask.model.expansion import effective_cost, evaluate, finish
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.model.validation import cost_problem
from handoff_dask.payload import Name, opened
from handoff_dask.standins import StandInError, sendable, text_of

#: Topic under which workers tell the scheduler what became of an attempt.
TOPIC = "handoff"

#: What the thread runs: ids of function and DAG and, where no scheduler tells, attempt and cost.
_running = threading.local()


@dataclass(frozen=True, slots=True)
class Current:
    """Who a running function is; see :func:`current`.

    Attributes
    ----------
    id, dag_id : Hashable
        The function and its DAG.
    attempt : int
        1 for the first attempt.
    cost : Mapping
        What this attempt claims: {resource: amount}.
    gpus : tuple of int
        Indices of the devices that it has, of those that the worker may see, as CUDA counts them:
        ``f"cuda:{index}"``. Nobody else on the worker has them, unless the cost is a fraction.
    """

    id: Hashable
    dag_id: Hashable
    attempt: int
    cost: Mapping[str, float]
    gpus: tuple[int, ...] = ()


def current() -> Current | None:
    """Tell a running function who it is; None outside of one.

    Examples
    --------
    >>> from handoff_dask import DAG, Function, current, execute_local
    >>> dag = DAG("who").add_function(Function(id="me", args=[], code=lambda: current().id))
    >>> execute_local(dag).results
    {'me': 'me'}
    >>> current() is None
    True
    """
    found = getattr(_running, "call", None)
    if found is None:
        return None
    function_id, dag_id, attempt, cost = found
    gpus = getattr(_running, "gpus", ())
    if attempt is None:
        annotations = _compat.task_annotations()
        attempt = annotations.get("handoff", {}).get("attempt", 1)
        cost = _cost(annotations)
    else:
        gpus = tuple(range(math.ceil(cost.get("gpu", 0))))
    return Current(function_id, dag_id, attempt, dict(cost), gpus)


def _cost(annotations: Mapping[str, Any]) -> Mapping[str, float]:
    """Return what an attempt claims."""
    cost: Mapping[str, float] = annotations.get("handoff", {}).get(
        "cost", annotations.get("resources", {})
    )
    return cost


@contextmanager
def running(
    function_id: Hashable,
    dag_id: Hashable,
    attempt: int | None = None,
    cost: Mapping[str, float] | None = None,
) -> Iterator[None]:
    """Have :func:`current` answer in this thread."""
    before = getattr(_running, "call", None)
    _running.call = function_id, dag_id, attempt, cost
    try:
        yield
    finally:
        _running.call = before


@contextmanager
def seceded() -> Iterator[None]:
    """Give up the thread of the function that waits here, if a function of a run does.

    What it waits for may need that thread: a run inside of a run would wait for itself.
    """
    task = _compat.this_task()
    if task is None:
        yield
        return
    task.log(TOPIC, {"action": "attempt-seceded"})
    secede()
    try:
        yield
    finally:
        rejoin()


def run(names: tuple[Name, ...], call: bytes, *values: Any) -> Any:
    """Make a pickled call.

    Parameters
    ----------
    names, call, *values
        As for :func:`~handoff_dask.payload.opened`.
    """
    return _run(None, names, call, values)


def run_and_discard(names: tuple[Name, ...], call: bytes, *values: Any) -> None:
    """Make a pickled call whose result nobody wants."""
    _run(None, names, call, values)


class Terms(NamedTuple):
    """How a function runs that asks for more than to be called.

    Parameters
    ----------
    timeout
        Seconds it may take; None is no limit.
    policy
        Its retry policy, pickled, if that has code of the user's.
    keep
        Whether its result is kept.
    gpus
        Whether it may claim devices.
    """

    timeout: float | None
    policy: bytes | None
    keep: bool
    gpus: bool


def run_on_terms(
    terms: Terms,
    names: tuple[Name, ...],
    call: bytes,
    *values: Any,
) -> Any:
    """Make a pickled call on terms.

    Parameters
    ----------
    terms
        The terms.
    names, call, *values
        As for :func:`run`.
    """
    with _devices(terms.gpus):
        result = _run(terms.policy, names, call, values, terms.timeout)
        return result if terms.keep else None


def _run(
    policy: bytes | None,
    names: tuple[Name, ...],
    call: bytes,
    values: tuple[Any, ...],
    timeout: float | None = None,
) -> Any:
    started = time.time()
    try:
        identity, made, results = opened(names, call, values)
        with running(*identity), _compat.started(), _time_limit(timeout, policy):
            return evaluate(made, results, _compat.worker_address)
    except _compat.NotStarted:
        raise
    except BaseException as error:
        failure = _told(error, started, policy)
    raise failure  # not in the handler: what cannot travel would be its context


def run_transform(names: tuple[Name, ...], call: bytes, *values: Any) -> Any:
    """Call a transform: ``fn(data, source_node, target_node, *static_args)``."""
    started = time.time()
    try:
        mark = _compat.task_annotations().get("handoff", {})
        _, made, (data,) = opened(names, call, values)
        ends = mark.get("source"), mark.get("target")
        with _compat.started():
            return finish(made.code(data, *ends, *made.extra_args))
    except _compat.NotStarted:
        raise
    except BaseException as error:
        failure = _told(error, started, None)
    raise failure


@contextmanager
def _devices(needed: bool) -> Iterator[None]:
    """Give the function of this thread the devices that it claims."""
    task = _compat.this_task() if needed else None
    amount = 0.0 if task is None else _cost(task.facts).get("gpu", 0)
    if task is None or task.plugin is None or not amount:
        yield
        return
    with task.plugin.devices.held(amount) as _running.gpus:
        try:
            yield
        finally:
            _running.gpus = ()


@contextmanager
def _time_limit(timeout: float | None, policy: bytes | None) -> Iterator[None]:
    """Tell the scheduler when a call takes too long and, then, when its thread is free again."""
    task = None if timeout is None else _compat.this_task()
    if timeout is None or task is None:
        yield
        return
    started = time.time()
    lock = threading.Lock()
    ended = expired = False

    def expire() -> None:
        nonlocal expired
        error = TimeoutError(f"it ran longer than its timeout of {timeout} s")
        message = _failure(error, started, policy, task.facts)
        with lock:
            if not ended:
                expired = True
                task.log(TOPIC, {"action": "attempt-late", **message})

    timer = threading.Timer(timeout, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:
            ended = True
            if expired:
                # Not yet: the worker itself still counts the thread as busy.
                task.at_end(lambda: task.log(TOPIC, {"action": "attempt-over"}))


def _told(error: BaseException, started: float, policy: bytes | None) -> BaseException:
    """Tell the scheduler of a failed attempt, ahead of Dask's own message; return what to raise.

    What ends a worker, ``SystemExit`` for example, ends the function alone; ``Reschedule``, which
    Dask would count as no attempt, is a failure like any other.
    """
    task = _compat.this_task()
    if task is None:
        return error
    message = _failure(error, started, policy, task.facts)
    task.log(TOPIC, {"action": "attempt-failed", **message})
    return StandInError.of(error) if isinstance(error, Reschedule) else sendable(error)


def _failure(
    error: BaseException, started: float, policy: bytes | None, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe a failure, judged by the retry policy where the user's code is at hand."""
    message: dict[str, Any] = {
        "started": started,
        "stopped": time.time(),
        "error_type": type(error).__name__,
        "message": text_of(error),
        "retry": True,
    }
    if policy is not None:
        own: RetryPolicy = pickle.loads(policy)
        message["retry"] = own.retries(error)
        if message["retry"] and own.escalate is not None:
            attempt = facts.get("handoff", {}).get("attempt", 1)
            message.update(escalated(own, attempt, _cost(facts), error))
    return message


def escalated(
    policy: RetryPolicy, attempt: int, cost: Mapping[str, float], error: BaseException
) -> dict[str, Any]:
    """Ask a policy what the next attempt costs; return the cost or what is wrong with it."""
    assert policy.escalate is not None
    try:
        answer = policy.escalate(attempt, dict(cost), error)
    except Exception as raised:
        return {"retry": False, "problem": f"raised {type(raised).__name__}: {raised}"}
    if problem := cost_problem(answer):
        return {"retry": False, "problem": f"returned no cost: {problem}"}
    return {"cost": effective_cost(as_numbers(answer))}
