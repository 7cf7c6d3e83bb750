"""The functions that run on workers around the user's code.

Their arguments are bytes, so that the scheduler does not need the user's modules. A worker
unpickles them at each start.
"""

from __future__ import annotations

import logging
import math
import pickle
import threading
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

from distributed import Client

from handoff_dask.attempts.retries import Verdict
from handoff_dask.compat import worker as compat
from handoff_dask.errors import OutOfMemoryError, ProcessDiedError, StoredResultMissing
from handoff_dask.model.attempt import UNKNOWN, Usage
from handoff_dask.model.expansion import Call, evaluate, finish
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.packed_errors import PackedError, packed
from handoff_dask.standins import Verbatim, for_a_log, type_of
from handoff_dask.wire.bundles import size_of
from handoff_dask.wire.payload import Name, opened
from handoff_dask.wire.stored_as import StoredAs
from handoff_dask.worker.current import (
    Running,
    cost_of,
    find_tasks_with,
    held_gpus,
    running,
    running_here,
)
from handoff_dask.worker.devices import visible_devices
from handoff_dask.worker.isolation.calls import Ended, Request, World
from handoff_dask.worker.saving import ABSENT, Saver
from handoff_dask.worker.verdicts import judge

logger = logging.getLogger(__name__)

#: The ids of a function and its DAG.
_Identity: TypeAlias = tuple[Hashable, Hashable]

#: Topic of the events by which workers report attempts to the scheduler.
TOPIC = "handoff"

T = TypeVar("T")


# Late, so that tests can replace it.
find_tasks_with(lambda: compat.this_task())


def run_member(
    identity: _Identity,
    call: Call,
    values: Sequence[Any],
    attempt: int,
    task: compat.ThisTask | None,
) -> Any:
    """Evaluate the call of a bundle's function; call this in a context of its own."""
    cost = {} if task is None else cost_of(task.facts)
    running_here.set(Running(*identity, attempt, cost, task))
    return evaluate(call, values, compat.worker_address)


def waiting_task(client: Client) -> compat.ThisTask | None:
    """Return the task on whose behalf this thread uses a client; None outside of tasks."""
    running = running_here.get()
    return (
        compat.this_task()
        or (None if running is None else cast("compat.ThisTask | None", running.task))
        or compat.task_nearby(client)
    )


def seceded(client: Client, method: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
    """Wrap a coroutine function so that the calling task gives up its thread while it runs.

    What it waits for may need that thread: a run inside a run would wait for itself. Outside a
    task, the function is returned unchanged.
    """
    task = waiting_task(client)
    if task is None:
        return method

    async def away(*args: Any) -> T:
        __tracebackhide__ = True
        with task.waiting():
            return await method(*args)

    return away


def run(names: tuple[Name, ...], call: bytes, *values: Any) -> Any:
    """Evaluate a pickled call; the arguments are as for ``payload.opened``."""
    return _run(None, names, call, values)


def run_and_discard(names: tuple[Name, ...], call: bytes, *values: Any) -> None:
    """Evaluate a pickled call and discard its result."""
    _run(None, names, call, values)


#: The policy of a function that cannot be called at all, pickled.
_NEVER = pickle.dumps(RetryPolicy(give_up_on=(BaseException,)))


def refuse(problem: bytes, *values: Any) -> None:
    """Raise the pickled error of a function whose call could not be pickled."""
    started = time.time()
    error: BaseException = pickle.loads(problem)
    raise _reported(error, started, _NEVER, None)


class Isolated(NamedTuple):
    """What a worker has to know of a function that it does not open itself."""

    #: How messages name the function and its DAG.
    label: str
    dag_label: str
    #: Whether it claims memory as others of its code have used: then it gets more after a kill.
    learns_memory: bool

    @property
    def identity(self) -> _Identity:
        """The labels, as logs show them."""
        return Verbatim(self.label), Verbatim(self.dag_label)


class _GivenUpError(RuntimeError):
    """A function was given up while it ran: nobody hears of how it ends."""


class Terms(NamedTuple):
    """How to run a function that asks for more than to be called."""

    #: Seconds it may take; None is no limit.
    timeout: float | None
    #: Its retry policy, pickled, if the policy contains users' code.
    policy: bytes | None
    #: Whether to keep its result.
    keep: bool
    #: Whether it may claim devices.
    gpus: bool
    #: Set if it runs in a process of its own.
    isolated: Isolated | None = None
    #: Set if its result is stored.
    stored: StoredAs | None = None


def run_on_terms(terms: Terms, names: tuple[Name, ...], call: bytes, *values: Any) -> Any:
    """Evaluate a pickled call on terms."""
    started, isolated = time.time(), terms.isolated
    try:
        if terms.stored is not None and (stored := _stored(terms.stored)) is not ABSENT:
            return stored if terms.keep else None
        with _devices(terms.gpus) as gpus:
            if isolated is not None:
                result = _run_isolated(terms, gpus, isolated, names, call, values)
            else:
                result = _run(terms.policy, names, call, values, terms.timeout, terms.stored)
            return result if terms.keep else None
    except (PackedError, _GivenUpError, compat.Reschedule):
        raise  # reported, or nothing to report
    except Exception as problem:
        # What nobody reports is tried again without end.
        task = compat.this_task()
        if task is not None and task.closing:
            raise compat.Reschedule from None
        identity = None if isolated is None else isolated.identity
        raise _reported(problem, started, terms.policy, identity) from None


def _stored(stored: StoredAs) -> Any:
    """Return the stored result of a function that has been tried before; ABSENT if there is none.

    It may have been lost with its worker. Of one that has not been tried, the client has looked.
    """
    task = compat.this_task()
    if task is None or task.facts.get("handoff", {}).get("attempt", 1) == 1:
        return ABSENT
    value = Saver(stored).result()
    if value is not ABSENT:
        task.note((*UNKNOWN, "stored"))
    return value


def _run_isolated(
    terms: Terms,
    gpus: tuple[int, ...],
    isolated: Isolated,
    names: tuple[Name, ...],
    call: bytes,
    values: tuple[Any, ...],
) -> Any:
    task = compat.this_task()
    if task is None or task.plugin is None:
        raise RuntimeError(f"function {isolated.label} is isolated, and its worker cannot do that")
    started, cost, timeout = time.time(), cost_of(task.facts), terms.timeout
    attempt = task.facts.get("handoff", {}).get("attempt", 1)
    policy = terms.policy
    address = compat.worker_address()
    keep = terms.keep or terms.stored is not None
    code = None if terms.stored is None else terms.stored.code
    request = Request(names, call, values, keep, policy, attempt, cost, address, code)
    width = math.ceil(cost["cpu"]) if cost.get("cpu") else None
    world = World(visible_devices(gpus), width)
    identity = isolated.identity
    pool = task.plugin.processes()
    kill = partial(pool.kill, task.key)
    with compat.started() as check, ExitStack() as limits:

        def begin() -> None:
            # From here on, the pool knows the call: it can be killed.
            check()
            if task.given_up:
                compat.silence_failure()
                raise _GivenUpError("it was given up")
            limits.enter_context(_time_limit(timeout, policy, identity, kill))

        ended = pool.run(request, world, limit=cost.get("memory"), key=task.key, on_start=begin)
    if ended.outcome == "ok":
        if terms.stored is not None:
            try:
                Saver(terms.stored).save(ended.value, started, time.time(), ended.usage)
            except Exception as problem:
                raise _reported(problem, started, policy, None) from None
        task.note(ended.usage)
        return ended.value
    error: BaseException
    if ended.outcome == "error":
        error = ended.value
    elif ended.outcome == "out-of-memory":
        claim, peak = cost.get("memory", 0.0), ended.usage.peak_memory or 0.0
        error = OutOfMemoryError(isolated.label, claim, peak, ended.detail)
    elif ended.outcome == "process-died":
        error = ProcessDiedError(isolated.label, ended.detail, ended.output)
    elif timeout is not None and ended.detail == _late(timeout):
        error = TimeoutError(ended.detail)
    elif task.given_up:
        compat.silence_failure()
        raise _GivenUpError(ended.detail)
    else:  # whether it runs again is not decided here
        raise compat.Reschedule
    # A claim that was learned and too low is nobody's failure.
    silent = isolated.learns_memory and ended.outcome == "out-of-memory"
    raise _reported(error, started, policy, identity, ended, silent=silent)


def _run(
    policy: bytes | None,
    names: tuple[Name, ...],
    call: bytes,
    values: tuple[Any, ...],
    timeout: float | None = None,
    stored: StoredAs | None = None,
) -> Any:
    started = time.time()
    identity: _Identity | None = None
    try:
        # Unpickling runs users' code, which may kill the worker: it belongs to the start.
        with compat.started() as check:
            identity, opened_call, results = opened(names, call, values)
            check()
            begun = time.thread_time()
            with running(*identity), _time_limit(timeout, policy, identity):
                try:
                    saver = None if stored is None else Saver(stored)
                    if saver is not None:
                        saver.check()
                    value = evaluate(opened_call, results, compat.worker_address)
                    if saver is not None:
                        used = Usage(time.thread_time() - begun, None, size_of(value))
                        saver.save(value, started, time.time(), used)
                    return value
                except BaseException as raised:
                    error = raised  # not through the context managers, which set the traceback
    except compat.NotStarted:
        raise
    except BaseException as raised:
        error = raised
    failure = _reported(error, started, policy, identity)
    del error  # its frames would keep their locals alive
    raise failure  # outside the handlers, where the user's exception would become its context


def run_transform(policy: bytes | None, names: tuple[Name, ...], call: bytes, *values: Any) -> Any:
    """Call a transform: ``fn(data, source_node, target_node, *static_args)``.

    `policy` is its retry policy, pickled, if the policy contains users' code.
    """
    started = time.time()
    identity: _Identity | None = None
    try:
        task = compat.this_task()
        mark = {} if task is None else task.facts.get("handoff", {})
        ends = mark.get("source"), mark.get("target")
        with compat.started() as check:
            identity, opened_call, (data,) = opened(names, call, values)
            check()
            with running(*identity):
                return finish(opened_call.code(data, *ends, *opened_call.extra_args))
    except compat.NotStarted:
        raise
    except BaseException as error:
        failure = _reported(error, started, policy, identity)
    raise failure


@contextmanager
def _devices(needed: bool) -> Iterator[tuple[int, ...]]:
    """Give the function of this thread the devices that it claims; yield their indices."""
    task = compat.this_task() if needed else None
    amount = 0.0 if task is None else cost_of(task.facts).get("gpu", 0)
    if task is None or task.plugin is None or not amount:
        yield ()
        return
    with task.plugin.devices.held(amount) as gpus:
        token = held_gpus.set(gpus)
        try:
            yield gpus
        finally:
            held_gpus.reset(token)


def _late(timeout: float) -> str:
    return f"it ran longer than its timeout of {timeout} s"


@contextmanager
def _time_limit(
    timeout: float | None,
    policy: bytes | None,
    identity: _Identity,
    kill: Callable[[str], bool] | None = None,
) -> Iterator[None]:
    """Tell the scheduler when a call exceeds its time and, after that, when its thread is free.

    It need not be told if `kill`, called with the reason, ends the call.
    """
    task = None if timeout is None else compat.this_task()
    if timeout is None or task is None:
        yield
        return
    started = time.time()
    lock = threading.Lock()
    ended = expired = False

    def expire() -> None:
        nonlocal expired
        error = TimeoutError(_late(timeout))
        if kill is not None and kill(str(error)):
            return
        message = _failure(error, str(error), started, policy, task.facts)
        with lock:
            if not ended:
                expired = True
                task.log(TOPIC, {"action": "attempt-late", **message})
                if compat.failures_shown():
                    _log_attempt(identity, message, task.facts)

    timer = threading.Timer(min(timeout, threading.TIMEOUT_MAX), expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:
            ended = True
            if expired:
                # Report it later: until this call returns, the worker counts the thread as busy.
                task.at_end(lambda: task.log(TOPIC, {"action": "attempt-over"}))


def _reported(
    error: BaseException,
    started: float,
    policy: bytes | None,
    identity: _Identity | None,
    ended: Ended | None = None,
    *,
    silent: bool = False,
) -> BaseException:
    """Report a failed attempt to the scheduler, before Dask's message; return what to raise.

    `ended` is how it ended in a process of its own; `silent` keeps it out of the log.

    Whatever a function raises is its failure, even if Dask, asyncio or Python treat the type
    specially.
    """
    task = compat.this_task()
    if task is None:
        return error
    # Not isinstance(), which believes an object's __class__.
    is_packed = issubclass(type(error), PackedError)
    failure = cast("PackedError", error) if is_packed else packed(error)
    if ended is None:
        ended = Ended("error", usage=Usage(*task.noted))
    text = ended.detail or failure.message
    message = _failure(error, text, started, policy, task.facts, ended.verdict)
    if is_packed:
        message["error_type"] = failure.type_name
    message["outcome"] = "timeout" if ended.outcome == "killed" else ended.outcome
    message["usage"] = tuple(ended.usage)
    task.log(TOPIC, {"action": "attempt-failed", **message})
    # What the store has lost is made again, and the function goes on.
    silent = silent or issubclass(type(error), StoredResultMissing)
    if compat.silence_failure() and not silent:
        _log_attempt(identity or (task.key, None), message, task.facts)
    return failure


def _log_attempt(identity: _Identity, message: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    mark = facts.get("handoff", {})
    attempt = mark.get("attempt", 1)
    most = mark.get("most", (facts.get("retries") or 0) + 1)
    text = f"{message['error_type']}: {message['message']}"
    log_failure(identity, text, attempt, most, allowed=message["retry"])


def log_failure(
    identity: _Identity, text: str, attempt: int, most: int, *, allowed: bool = True
) -> None:
    """Log that an attempt failed, in one line.

    `most` is the number of the last attempt that is left; `allowed` says whether the policy allows
    another.
    """
    if not allowed:
        follows = "its retry policy allows no further attempt"
    else:
        follows = "it will be retried" if attempt < most else "no attempt is left"
    text = text.rstrip(": ")
    logger.warning(
        "Function %r of DAG %r: attempt %d of %d failed: %s; %s",
        *identity,
        attempt,
        most,
        for_a_log(text),
        follows,
    )


def _failure(
    error: BaseException,
    text: str,
    started: float,
    policy: bytes | None,
    facts: Mapping[str, Any],
    verdict: Verdict | None = None,
) -> dict[str, Any]:
    """Describe a failure; a policy with code is evaluated here, where the user's modules are."""
    if issubclass(type(error), StoredResultMissing):
        verdict = Verdict(retry=False)  # the client has it made again
    elif verdict is None and policy is not None:
        attempt = facts.get("handoff", {}).get("attempt", 1)
        verdict = judge(error, policy, attempt, cost_of(facts))
    return {
        "started": started,
        "stopped": time.time(),
        "error_type": type_of(error),
        "message": text,
        "retry": True,
        **({} if verdict is None else verdict._asdict()),
    }
