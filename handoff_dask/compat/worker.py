"""Workers and nannies, beyond their public API."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from distributed import Client, Nanny, Scheduler, Worker, WorkerPlugin
from distributed import Reschedule as Reschedule
from distributed.core import Status
from distributed.threadpoolexecutor import ThreadPoolExecutor
from distributed.threadpoolexecutor import thread_state as pool_state
from distributed.utils import DequeHandler
from distributed.worker import get_worker, thread_state  # type: ignore[attr-defined]
from distributed.worker_state_machine import SecedeEvent

#: States in which a worker starts functions.
WORKER_ANY_RUNNING = (Status.running, Status.paused, Status.closing_gracefully)


def worker_address() -> str:
    """Return the address of the worker that runs this task, or ``"local"`` if there is none."""
    try:
        worker = get_worker()
        return worker.contact_address or worker.address
    except ValueError:
        return "local"


def set_resource(worker: Worker, name: str, amount: float | None) -> bool:
    """Make a worker declare an amount of a resource; what its tasks hold of it stays held.

    False if the amount is None and a task of the worker still claims the resource.
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
    """Calls back when the thread of a task is free again, however the task ended."""

    #: The name of the plugin on the worker.
    name = "handoff"
    worker: Worker

    def __init__(self) -> None:
        self._calls: dict[Any, list[Callable[[], None]]] = {}
        self._failures = _FailureFilter()
        #: Keys of tasks whose threads wait, of which the worker's loop does not know yet.
        self.seceding: set[Any] = set()
        #: The worker's ``Starts``; None if they are not recorded.
        self.starts: Any = None

    def busy(self, key: Any) -> bool:
        """Whether a task has a thread of the worker. Call this on the worker's loop."""
        state = self.worker.state
        ts = state.tasks.get(key)
        return ts is not None and (ts in state.executing or ts in state.long_running)

    def given_up(self, key: Any) -> bool:
        """Whether a task was cancelled and still runs. Call this on the worker's loop."""
        ts = self.worker.state.tasks.get(key)
        return ts is not None and ts.state in ("cancelled", "resumed")

    def at_end(self, key: Any, call: Callable[[], None]) -> None:
        """Call something on the worker's loop when the worker is done with a task."""
        self._calls.setdefault(key, []).append(call)

    def silence_failure(self, key: Any) -> None:
        """Keep Dask's ten-line report of a task's failure out of the worker's log."""
        self._failures.keys.add(key)

    def filter_log(self) -> None:
        """Start filtering the worker's log."""
        _worker_logger.addFilter(self._failures)

    def unfilter_log(self) -> None:
        """Stop filtering the worker's log."""
        _worker_logger.removeFilter(self._failures)

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """Follow a task from one state to the next."""
        if finish not in _BUSY:
            self._failures.keys.discard(key)
        # Do not rely on `finish`: a task that is withdrawn while it runs becomes cancelled.
        if key in self._calls and not self.busy(key):
            for call in self._calls.pop(key):
                call()


_worker_logger = logging.getLogger("distributed.worker")


class _FailureFilter(logging.Filter):
    """Drops Dask's reports of failure for some tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: set[Any] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        # Dask's first argument is the key.
        args: Any = record.args
        failed = str(record.msg).startswith("Compute Failed") and isinstance(args, tuple)
        return not (failed and args and args[0] in self.keys)


#: States in which a task of a worker may have a thread.
_BUSY = ("executing", "long-running", "cancelled", "resumed")


class NotStarted(Reschedule):
    """The function of a task must not start: it was withdrawn, or its worker is closing."""


#: How many threads wait on behalf of a task: {(worker, key): number}.
_waits: Counter[tuple[Worker, Any]] = Counter()
_waits_lock = threading.Lock()


@dataclass(eq=False, slots=True)
class ThisTask:
    """The task that a thread of a worker runs."""

    worker: Worker
    key: Any
    run_id: int
    #: Its annotations.
    facts: Mapping[str, Any]

    @property
    def plugin(self) -> Any:
        """Our plugin on the worker; None if the worker does not have it."""
        return self.worker.plugins.get(TaskEnds.name)

    def at_end(self, call: Callable[[], None]) -> None:
        """Call something on the worker's loop when the worker is done with the task."""
        if self.plugin is not None:
            self.plugin.at_end(self.key, call)

    @property
    def starts(self) -> Any:
        """The worker's record of starts; None if it keeps none."""
        plugin = self.plugin
        return plugin.starts if isinstance(plugin, TaskEnds) else None

    @property
    def closing(self) -> bool:
        """Whether the worker starts no more functions because it is closing."""
        return self.worker.status not in WORKER_ANY_RUNNING

    @property
    def undisturbed(self) -> bool:
        """Whether it runs as it was started; only its own thread may ask.

        Otherwise it gave up its thread, was cancelled, or the worker is paused or closing.
        """
        seceding = isinstance(self.plugin, TaskEnds) and self.key in self.plugin.seceding
        if seceding or not getattr(pool_state, "proceed", True):
            return False  # the worker's loop may not know yet
        ts = self.worker.state.tasks.get(self.key)
        return (
            ts is not None
            and ts.run_id == self.run_id
            and ts.state == "executing"
            and self.worker.status is Status.running
        )

    @property
    def given_up(self) -> bool:
        """Whether nobody waits for it any more."""
        ts = self.worker.state.tasks.get(self.key)
        return (
            ts is None or ts.run_id != self.run_id or ts.state not in ("executing", "long-running")
        )

    def note(self, usage: tuple[Any, ...]) -> None:
        """Send something with Dask's message about its end, if that is a good one."""
        self.worker.state.tasks[self.key].metadata[TaskEnds.name] = list(usage)

    @property
    def noted(self) -> Sequence[Any]:
        """What was noted about it last."""
        ts = self.worker.state.tasks.get(self.key)
        return () if ts is None else ts.metadata.get(TaskEnds.name, ())

    def log(self, topic: str, message: dict[str, Any]) -> None:
        """Send an event about it, from any thread, before Dask's message about the task's end."""
        self.worker.log_event(topic, {**message, "key": self.key, "run_id": self.run_id})

    def send(self, op: str, message: dict[str, Any]) -> None:
        """Send a message about it, as ``log`` does, which the scheduler does not keep."""
        full = {"op": op, "key": self.key, "number": self.run_id, **message}
        self.worker.loop.add_callback(self._send, full)

    def later(self, delay: float, call: Callable[[], None]) -> None:
        """Call something on the worker's loop after some seconds; any thread may call this."""
        loop = self.worker.loop
        loop.add_callback(loop.call_later, delay, call)

    def _send(self, message: dict[str, Any]) -> None:
        # A scheduler that lacks the handler would drop the connection.
        if self.plugin is not None:
            self.worker.batched_send(message)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let the worker run another task while this one waits; any thread may call this.

        From here to its end, the worker counts the task as long-running, as after ``secede()``. Its
        thread stays in the pool, which gets one more thread meanwhile. So the function can still
        call ``secede()`` and ``rejoin()``, and several of its threads can wait at once.
        """
        place = self.worker, self.key
        pool = self.worker.executors.get(self.facts.get("executor", "default"))
        extra = int(isinstance(pool, ThreadPoolExecutor))
        with _waits_lock:
            _waits[place] += 1
            if _waits[place] == 1:
                _enlarge(pool, extra)
                if isinstance(self.plugin, TaskEnds):
                    self.plugin.seceding.add(self.key)
                # In a new context: the worker starts other tasks in the context of this call.
                Context().run(self.worker.loop.add_callback, self._secede)
        try:
            yield
        finally:
            with _waits_lock:
                _waits[place] -= 1
                if not _waits[place]:
                    del _waits[place]
                    _enlarge(pool, -extra)

    def _secede(self) -> None:
        state = self.worker.state
        ts = state.tasks.get(self.key)
        if ts is not None and ts.run_id == self.run_id and ts in state.executing:
            now = time.time()
            self.worker.handle_stimulus(
                SecedeEvent(
                    key=self.key,
                    compute_duration=now - (ts.start_time or now),
                    stimulus_id=f"handoff-secede-{now}",
                )
            )
        if isinstance(self.plugin, TaskEnds):
            self.plugin.seceding.discard(self.key)


def _enlarge(pool: Any, threads: int) -> None:
    """Allow a pool more threads, or fewer; existing ones stay."""
    if threads:
        pool._max_workers += threads
        with pool._shutdown_lock:
            if not pool._shutdown:
                pool._adjust_thread_count()


def this_task() -> ThisTask | None:
    """Return the task that this thread runs; None if it runs none."""
    try:
        worker = get_worker()
        key = thread_state.key
    except (ValueError, AttributeError):
        return None
    return _task_of(worker, key)


def _task_of(worker: Worker, key: Any) -> ThisTask | None:
    ts = worker.state.tasks.get(key)
    return None if ts is None else ThisTask(worker, ts.key, ts.run_id, ts.annotations or {})


def task_nearby(client: Client | None = None) -> ThisTask | None:
    """Guess which task started this thread; None if none did.

    For threads that use a client without the context of a function. If several functions run on the
    worker, one that is not waiting yet is chosen: the wrong function may give up its thread, but
    none hangs.
    """
    worker = _worker_nearby(client)
    if worker is None or worker.thread_id == threading.get_ident():
        return None
    with worker.active_threads_lock:
        keys = list(worker.active_threads.values())
    key = min(keys, key=lambda key: _waits[worker, key], default=None)
    return _task_of(worker, key)


def _worker_nearby(client: Client | None = None) -> Worker | None:
    """Return the worker of this thread's context or, without one, the worker that it belongs to.

    The latter is known if the worker is alone in its process, or created the client.
    """
    try:
        return get_worker()
    except ValueError:
        running = [w for w in Worker._instances if w.status in WORKER_ANY_RUNNING]
        if client in Worker._initialized_clients:
            return next((worker for worker in running if worker._client is client), None)
        return running[0] if len(running) == 1 and not Scheduler._instances else None


@contextmanager
def started() -> Iterator[Callable[[], None]]:
    """Record that the function of this thread's task starts here, and that it ends.

    Raise NotStarted if the function must not start. What this yields does the same; call it after
    steps that may take long, as the start may be withdrawn meanwhile.
    """
    starts = worker = None
    try:
        worker = get_worker()
        ts = worker.state.tasks[thread_state.key]
        number = ts.run_id
        plugin = worker.plugins.get(TaskEnds.name)
        if isinstance(plugin, TaskEnds):
            starts = plugin.starts
    except (ValueError, AttributeError, KeyError):
        pass
    if starts is None:
        if worker is not None and worker.status not in WORKER_ANY_RUNNING:
            raise NotStarted  # it is closing, and has already reported what it started
        yield lambda: None
        return
    place = starts.begin(number)
    if place is None:
        raise NotStarted

    def check() -> None:
        if starts.withdrawn(number):
            raise NotStarted

    begun = time.thread_time()
    try:
        yield check
    finally:
        starts.end(place)
        ts.metadata[TaskEnds.name] = [time.thread_time() - begun]


def failures_shown() -> bool:
    """Whether this process logs failures of tasks, which users can switch off.

    Dask's `silence_logs` changes the handlers.
    """
    logger = _worker_logger
    if not logger.isEnabledFor(logging.ERROR):
        return False
    handlers = list(logger.handlers)
    while logger.propagate and logger.parent is not None:
        logger = logger.parent
        handlers += logger.handlers
    # Each worker also keeps its latest lines in memory, which does not count.
    shows = [handler for handler in handlers if not isinstance(handler, DequeHandler)]
    return not shows or any(handler.level <= logging.ERROR for handler in shows)


def silence_failure() -> bool:
    """Keep Dask's report that this thread's task failed out of the log; False if there is none."""
    task = this_task()
    if task is None or not isinstance(task.plugin, TaskEnds) or not failures_shown():
        return False
    task.plugin.silence_failure(task.key)
    return True


def watch_exits(nanny: Nanny, exited: Callable[[int], None]) -> Callable[[], None]:
    """Call something with the exit code of each process of a nanny's worker, before a restart.

    Return what stops that.
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
    """Whether a nanny killed a process because it exceeded its memory limit."""
    return getattr(nanny.memory_manager, "_last_terminated_pid", None) == pid


def process_client() -> Client | None:
    """Return the client of this thread's worker; None if the thread belongs to no worker."""
    worker = _worker_nearby()
    return None if worker is None else worker._get_client()
