"""What happens in a run, as it happens: to dashboard, metrics and history, and to users.

On the scheduler, `function` is the index of a node of the run. A client replaces it by the
function's id before it passes an event on.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, TypeAlias, Union

from handoff_dask.model.attempt import Attempt
from handoff_dask.wire.messages import Block


class RunOpened(NamedTuple):
    """A run begins.

    Parameters
    ----------
    run_id
        Tells the run from every other on the cluster.
    dag_id
        The id of its DAG.
    at
        When (s since epoch).
    """

    run_id: str
    dag_id: Hashable
    at: float


class FunctionPlaced(NamedTuple):
    """A function was handed to a worker.

    Parameters
    ----------
    run_id, at, function
        The run, when it happened (s since epoch), and the function.
    attempt
        The number that its attempt will have once it starts, from 1.
    worker
        The worker's address.
    ahead
        Whether it waits there for another function to end.
    """

    run_id: str
    at: float
    function: Hashable
    attempt: int
    worker: str
    ahead: bool


class AttemptEnded(NamedTuple):
    """An attempt of a function ended, well or not.

    Parameters
    ----------
    run_id, at, function
        The run, when it happened (s since epoch), and the function.
    attempt
        Where and when it ran, what it claimed and how it ended.
    """

    run_id: str
    at: float
    function: Hashable
    attempt: Attempt


class FunctionEnded(NamedTuple):
    """A function ended for good.

    Parameters
    ----------
    run_id, at, function
        The run, when it happened (s since epoch), and the function.
    state
        ``"done"``, ``"failed"`` or ``"cancelled"``.
    problem
        Why it failed, if it did by itself.
    """

    run_id: str
    at: float
    function: Hashable
    state: str
    problem: str | None = None


class RunStopped(NamedTuple):
    """A run was stopped before all its functions had ended.

    Parameters
    ----------
    run_id, at
        The run, and when it happened (s since epoch).
    kind
        ``"failed"``, ``"cancelled"``, ``"timeout"`` or ``"abandoned"``.
    problem
        Why, in words.
    """

    run_id: str
    at: float
    kind: str
    problem: str


class RunClosed(NamedTuple):
    """The scheduler forgets a run.

    Parameters
    ----------
    run_id, at
        The run, and when it happened (s since epoch).
    """

    run_id: str
    at: float


Event: TypeAlias = Union[  # noqa: UP007 - evaluated at run time
    RunOpened, FunctionPlaced, AttemptEnded, FunctionEnded, RunStopped, RunClosed
]


class AttemptsEnded(NamedTuple):
    """Attempts of functions that travelled together ended well, for those who count them.

    Whoever needs the events of each function gets these, too.
    """

    run_id: str
    at: float
    block: Block


#: What the scheduler's own listeners hear of.
Recorded: TypeAlias = Union[Event, AttemptsEnded]  # noqa: UP007 - evaluated at run time


def topic(run_id: str) -> str:
    """Return the topic under which the scheduler publishes the events of a run.

    Each message is a list of events, pickled.
    """
    return f"handoff-events-{run_id}"
