"""What ``_compat`` has for workers and nannies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from distributed import Reschedule, WorkerPlugin
from distributed.core import Status
from distributed.worker import get_worker, thread_state  # type: ignore[attr-defined]

from handoff_dask.starts import Starts

if TYPE_CHECKING:
    from distributed import Nanny, Worker

#: States in which a worker starts functions.
WORKER_ANY_RUNNING = (Status.running, Status.paused, Status.closing_gracefully)

__all__ = [
    "WORKER_ANY_RUNNING",
    "NotStarted",
    "TaskEnds",
    "killed_for_memory",
    "set_resource",
    "started",
    "task_annotations",
    "this_task",
    "watch_exits",
    "worker_address",
]


# On a worker


def worker_address() -> str:
    """Return the address of the worker that runs this task, or ``"local"`` where there is none."""
    try:
        worker = get_worker()
        return worker.contact_address or worker.address
    except ValueError:
        return "local"


def set_resource(worker: Worker, name: str, amount: float | None) -> bool:
    """Have a worker declare an amount of a resource; what its tasks hold of it stays held.

    Returns
    -------
    bool
        Whether it does: one that a task of the worker claims is not taken away by None.
    """
    state = worker.state
    if amount is None:
        ended = ("memory", "error")
        for ts in state.tasks.values():
            if name in (ts.resource_restrictions or ()) and ts.state not in ended:
                return False
        state.total_resources.pop(name, None)
        state.available_resources.pop(name, None)
        return True
    used = state.total_resources.get(name, 0) - state.available_resources.get(name, 0)
    state.total_resources[name] = amount
    state.available_resources[name] = amount - used
    return True


class TaskEnds(WorkerPlugin):
    """Calls back when the thread of a task is free again, whatever became of the task."""

    #: The worker has one under this name.
    name = "handoff"

    def __init__(self) -> None:
        self._calls: dict[Any, Callable[[], None]] = {}
        #: What the worker started, if somebody wants to know.
        self.starts: Starts | None = None

    def busy(self, worker: Worker, key: Any) -> bool:
        """Whether a task may have a thread of the worker. To be asked on its loop."""
        ts = worker.state.tasks.get(key)
        return ts is not None and ts.state in _BUSY

    def at_end(self, key: Any, call: Callable[[], None]) -> None:
        """Have something called on the worker's loop when the worker is done with a task."""
        self._calls[key] = call

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """Follow a task from one state to the next."""
        if key in self._calls and start in _BUSY and finish not in _BUSY:
            self._calls.pop(key)()


#: States in which a task of a worker may have a thread.
_BUSY = ("executing", "long-running", "cancelled", "resumed")


class NotStarted(Reschedule):
    """The function of a task must not start: it was taken back, or its worker closes."""


class ThisTask:
    """The task that a thread of a worker runs."""

    def __init__(self, worker: Worker, key: Any, run_id: int, facts: Mapping[str, Any]) -> None:
        self._worker = worker
        self._key = key
        self._run_id = run_id
        #: Its annotations.
        self.facts = facts

    @property
    def plugin(self) -> Any:
        """Our plugin on the worker; None if the worker does not have it."""
        return self._worker.plugins.get(TaskEnds.name)

    def at_end(self, call: Callable[[], None]) -> None:
        """Have something called on the worker's loop when the worker is done with the task."""
        if self.plugin is not None:
            self.plugin.at_end(self._key, call)

    def log(self, topic: str, message: dict[str, Any]) -> None:
        """Send an event about it, from any thread, ahead of Dask's word of the task's end."""
        self._worker.log_event(topic, {**message, "key": self._key, "run_id": self._run_id})


def this_task() -> ThisTask | None:
    """Return the task that this thread runs; None where it runs none."""
    try:
        worker = get_worker()
        ts = worker.state.tasks[thread_state.key]
    except (ValueError, AttributeError, KeyError):
        return None
    return ThisTask(worker, ts.key, ts.run_id, ts.annotations or {})


@contextmanager
def started() -> Iterator[None]:
    """Note that the function of this thread's task starts here, and that it ends.

    Raises
    ------
    NotStarted
        It must not.
    """
    starts = worker = None
    try:
        worker = get_worker()
        number = worker.state.tasks[thread_state.key].run_id
        plugin = worker.plugins.get(TaskEnds.name)
        if isinstance(plugin, TaskEnds):
            starts = plugin.starts
    except (ValueError, AttributeError, KeyError):
        pass
    if starts is None:
        if worker is not None and worker.status not in WORKER_ANY_RUNNING:
            raise NotStarted  # it closes, and has said what it started
        yield
        return
    place = starts.begin(number)
    if place is None:
        raise NotStarted
    try:
        yield
    finally:
        starts.end(place)


def task_annotations() -> Mapping[str, Any]:
    """Return the annotations of the task that this thread runs."""
    task = this_task()
    return {} if task is None else task.facts


# On a nanny


def watch_exits(nanny: Nanny, exited: Callable[[int], None]) -> Callable[[], None]:
    """Have the exit code told of each process that a nanny's worker ran in, before it has another.

    Returns
    -------
    Callable
        Ends that.
    """
    inner = nanny._on_worker_exit_sync

    def on_exit(code: int) -> None:
        exited(code)
        inner(code)  # type: ignore[no-untyped-call]

    def replace(call: Callable[[int], None]) -> None:
        nanny._on_worker_exit_sync = call  # type: ignore[method-assign]
        if nanny.process is not None:
            nanny.process.on_exit = call

    replace(on_exit)
    return lambda: replace(inner)


def killed_for_memory(nanny: Nanny, pid: int) -> bool:
    """Whether a nanny ended a process because it had more memory than it may."""
    return getattr(nanny.memory_manager, "_last_terminated_pid", None) == pid
