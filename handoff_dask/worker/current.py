"""Which function is running. Without Dask, because the processes of isolated functions use it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from handoff_dask.standins import HandoffError


class Task(Protocol):
    """What is needed of the Dask task that a thread runs."""

    @property
    def key(self) -> Any:
        """Its key."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Its annotations."""


class Running(NamedTuple):
    """The function that runs in a context and, without a scheduler, its attempt and cost."""

    id: Hashable
    dag_id: Hashable
    attempt: int | None
    cost: Mapping[str, float] | None
    task: Task | None


#: Context variables, which ``asyncio.to_thread`` copies to the other thread.
running_here: ContextVar[Running | None] = ContextVar("handoff_running", default=None)
#: The devices that the function of this context holds.
held_gpus: ContextVar[tuple[int, ...]] = ContextVar("handoff_gpus", default=())


def _no_task() -> Task | None:
    return None


_find_task: Callable[[], Task | None] = _no_task
_isolated = False


def find_tasks_with(find: Callable[[], Task | None]) -> None:
    """Set what returns the Dask task of the calling thread; without it, there are no tasks."""
    global _find_task
    _find_task = find


def isolate() -> None:
    """Declare that this process runs isolated functions and nothing else."""
    global _isolated
    _isolated = True


def isolated() -> bool:
    """Whether this is the process of an isolated function."""
    return _isolated


def refuse_isolated(what: str) -> None:
    """Raise if this is the process of an isolated function, where `what` cannot work."""
    if _isolated:
        raise IsolatedError(
            f"{what} does not work in an isolated function, whose process has no connection to the "
            "cluster: give the function isolate=False, or do this outside of it"
        )


class IsolatedError(HandoffError, ValueError):
    """Something needs the cluster, and the process of an isolated function has no connection to it.

    A ``ValueError``, so that Dask uses its own threads there, as it does where there is no client.
    """


@dataclass(frozen=True, slots=True)
class Current:
    """A running function; see :func:`current`.

    Attributes
    ----------
    id, dag_id : Hashable
        The function and its DAG.
    attempt : int
        1 for the first attempt.
    cost : Mapping
        What this attempt claims: {resource: amount}.
    gpus : tuple of int
        Indices of its devices among those that its process may see, as CUDA counts them:
        ``f"cuda:{index}"``. No other function on the worker uses them, unless the cost is a
        fraction. An isolated function sees only its own devices, so their indices start at 0.
    """

    id: Hashable
    dag_id: Hashable
    attempt: int
    cost: Mapping[str, float]
    gpus: tuple[int, ...] = ()


def current() -> Current | None:
    """Return the function that is running here; None outside of one.

    This also works in threads that have the function's context: those of ``asyncio.to_thread``,
    and others that are started with ``contextvars.copy_context().run``.

    Examples
    --------
    >>> from handoff_dask import DAG, current, execute_local
    >>> dag = DAG("who")
    >>> me = dag.add(lambda: current().id, id="me")
    >>> execute_local(dag).results
    {'me': 'me'}
    >>> current() is None
    True
    """
    running, task = running_here.get(), _find_task()
    if running is None:
        return None
    if task is not None and (running.task is None or running.task.key != task.key):
        return None  # a plain Dask task that was started from the context of a function
    if running.attempt is None:
        annotations = {} if running.task is None else running.task.facts
        attempt = annotations.get("handoff", {}).get("attempt", 1)
        cost = cost_of(annotations)
        gpus = held_gpus.get() if cost.get("gpu") else ()
    else:
        attempt, cost = running.attempt, running.cost or {}
        gpus = tuple(range(math.ceil(cost.get("gpu", 0))))
    return Current(running.id, running.dag_id, attempt, dict(cost), gpus)


def cost_of(annotations: Mapping[str, Any]) -> Mapping[str, float]:
    """Return what the attempt of a task with these annotations claims."""
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
    """Set what :func:`current` returns in this context."""
    before = running_here.get()
    task = _find_task() or (None if before is None else before.task)
    token = running_here.set(Running(function_id, dag_id, attempt, cost, task))
    try:
        yield
    finally:
        running_here.reset(token)
