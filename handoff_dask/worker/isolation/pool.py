"""The processes of a worker in which isolated functions run."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable, Hashable
from typing import Any

from handoff_dask.model.attempt import Usage
from handoff_dask.packed_errors import PackedError, packed
from handoff_dask.tracebacks import traceback_of
from handoff_dask.worker.isolation.calls import (
    Ended,
    Order,
    Outcome,
    Request,
    Surroundings,
    World,
    environment,
)
from handoff_dask.worker.isolation.handles import ChildHandle, NoProcessError, ServerHandle
from handoff_dask.worker.isolation.memory import Watch, Watcher
from handoff_dask.worker.isolation.segments import Packed, pack, unpack
from handoff_dask.worker.verdicts import judge

#: MB that a function may use beyond its claim.
GRACE = 64.0
#: Calls after which a child is replaced.
CALLS = 100


class Pool:
    """Runs calls in processes and keeps some of these for the next calls.

    Parameters
    ----------
    warm
        How many idle processes are kept. Nothing starts before the first call.
    """

    def __init__(self, warm: int) -> None:
        self._warm = warm
        self._lock = threading.Lock()
        self._server: ServerHandle | None = None
        #: The one that was used last is the last.
        self._idle: list[ChildHandle] = []
        self._running: dict[Hashable, _Running] = {}
        #: Children with a lower number are not used again.
        self._generation = 0
        self._watcher = Watcher()
        self._closed = False
        self._pid = os.getpid()
        atexit.register(self.close)

    def run(
        self,
        request: Request,
        world: World,
        *,
        limit: float | None = None,
        key: Hashable,
        on_start: Callable[[], None] | None = None,
    ) -> Ended:
        """Run a call in a process and wait for its end; any thread may, many at once.

        Parameters
        ----------
        request
            The call.
        world
            What it finds in its process.
        limit
            MB that it claims; past them and a grace, it is killed. None is no limit.
        key
            Its name for :meth:`kill`.
        on_start
            Called just before the process gets the call; if it raises, so does this, and the call
            has not started.
        """
        running = _Running(limit)
        with self._lock:
            self._running[key] = running
        try:
            try:
                values = pack(request.values)
            except BaseException as error:  # pickling runs the user's code
                return _not_sent(request, error)
            try:
                return self._run(running, self._child(world), request, values, on_start)
            except NoProcessError:
                if running.stopped is None:
                    raise
                outcome, detail = running.stopped
                return Ended(outcome, detail=detail)
            finally:
                values.close()
        finally:
            with self._lock:
                del self._running[key]

    def kill(self, key: Hashable, reason: str) -> bool:
        """Kill the process of a running call, whose outcome is ``"killed"``; any thread may.

        False if the call has ended, or is just about to.
        """
        with self._lock:
            running = self._running.get(key)
        return running is not None and running.stop("killed", reason)

    def renew(self) -> None:
        """Have later calls run in new processes, which have imported nothing yet."""
        with self._lock:
            self._generation += 1
            idle, self._idle = self._idle, []
        for child in idle:
            child.retire()

    def close(self) -> None:
        """Kill all processes and wait until they have ended."""
        atexit.unregister(self.close)
        if os.getpid() != self._pid:
            return  # a copy of the worker, made by a function that forks, is ending
        with self._lock:
            self._closed = True
            server, self._server = self._server, None
            idle, self._idle = self._idle, []
            running = list(self._running.values())
        for call in running:
            call.stop("killed", "the worker closes")
        for child in idle:
            child.close()
        if server is not None:
            server.close()
        self._watcher.close()

    def _child(self, world: World) -> ChildHandle:
        """Return a child in a world: an idle one, or else a new one."""
        place = world, Surroundings(environment(), tuple(sys.path), _folder())
        while child := self._idle_child(place):
            if child.ready():
                return child
            child.retire()
        try:
            with self._lock:
                if self._closed:
                    raise NoProcessError("the processes of isolated functions have been closed")
                if self._server is None or not self._server.alive:
                    if self._server is not None:
                        self._server.close()
                    self._server = ServerHandle()
                server, generation = self._server, self._generation
            return ChildHandle(server, *place, generation)
        except OSError as error:
            raise NoProcessError(
                f"no process could be started for an isolated function: {error}"
            ) from error

    def _idle_child(self, place: tuple[World, Surroundings]) -> ChildHandle | None:
        with self._lock:
            for child in reversed(self._idle):
                if child.place == place:
                    self._idle.remove(child)
                    return child
        return None

    def _run(
        self,
        running: _Running,
        child: ChildHandle,
        request: Request,
        values: Packed,
        on_start: Callable[[], None] | None,
    ) -> Ended:
        inputs = sum(place.size for place in values.places)
        watch = Watch(child.pid, inputs, running.limit, running.exceed)
        answer = None
        try:
            if on_start is not None:
                on_start()
        except BaseException:
            self._keep(child)
            raise
        if running.begin(child, watch):
            try:
                self._watcher.add(watch)
                order = Order(request._replace(values=()), values.places, logging.root.level)
                answer = child.ask(order.dumps(), values)
            except (EOFError, ConnectionError):
                pass  # it has ended
            except BaseException:  # too many threads, for example
                child.end()
                raise
            finally:
                self._watcher.remove(watch)
        if answer is None or not running.finish():
            for fd in () if answer is None else answer[1].fds:
                os.close(fd)
            # If nobody stopped it, its connection is closed, and it ends by itself.
            how, cpu_time = child.end(soon=running.stopped is None)
            outcome, detail = running.stopped or ("process-died", how)
            return Ended(outcome, None, Usage(cpu_time, watch.peak or None), child.output, detail)
        reply, message = answer
        watch.note(reply.usage.peak_memory or 0.0, reply.highest, reply.files)
        usage = reply.usage._replace(peak_memory=watch.peak)
        ended = Ended("ok", None, usage, child.output, verdict=reply.verdict)
        if reply.reusable:
            self._keep(child)
        # What the function left behind still uses what it claimed.
        elif (cpu_time := child.finish()) is not None:
            ended = ended._replace(usage=usage._replace(cpu_time=cpu_time))
        if reply.failure is not None:
            return ended._replace(outcome="error", value=_raisable(reply.failure))
        try:
            return ended._replace(
                value=unpack(message.data, reply.places, message.fds, shared=True)
            )
        except BaseException as error:  # unpickling runs the user's code
            return _failed(request, error)._replace(usage=ended.usage, output=ended.output)

    def _keep(self, child: ChildHandle) -> None:
        """Keep an idle child for the next call, unless there are enough or it has done enough."""
        surplus: ChildHandle | None = child
        if child.calls < CALLS:
            with self._lock:
                if not self._closed and child.generation == self._generation:
                    self._idle.append(child)
                    surplus = self._idle.pop(0) if len(self._idle) > self._warm else None
        if surplus is not None:
            surplus.retire()


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return "/"


def _not_sent(request: Request, error: BaseException) -> Ended:
    kinds = ", ".join(sorted({type(value).__qualname__ for value in request.values}))
    problem = TypeError(f"its inputs ({kinds}) cannot be sent to a process of its own: {error}")
    problem.__cause__ = error
    return _failed(request, problem)


def _failed(request: Request, error: BaseException) -> Ended:
    """Return the end of a call that fails here."""
    policy = request.policy
    verdict = None if policy is None else judge(error, policy, request.attempt, request.cost)
    return Ended("error", packed(error), verdict=verdict)


def _raisable(records: tuple[Any, ...]) -> PackedError:
    return PackedError(records).with_traceback(traceback_of(records[0].lines))


class _Running:
    """A call that runs; whichever comes first decides how it ends."""

    def __init__(self, claim: float | None) -> None:
        self.claim = claim
        self.limit = None if claim is None else claim + GRACE
        self.watch: Watch | None = None
        #: What ended it from outside, and why.
        self.stopped: tuple[Outcome, str] | None = None
        self._child: ChildHandle | None = None
        self._finished = False
        self._lock = threading.Lock()

    def begin(self, child: ChildHandle, watch: Watch) -> bool:
        """Note its process; False if it was stopped before."""
        with self._lock:
            self._child, self.watch = child, watch
            return self.stopped is None

    def finish(self) -> bool:
        """Note that its result is here; False if it was stopped before."""
        with self._lock:
            self._finished = self.stopped is None
            return self._finished

    def stop(self, outcome: Outcome, reason: str) -> bool:
        """Kill its process; False if its result is here."""
        with self._lock:
            if self._finished:
                return False
            if self.stopped is None:
                self.stopped = outcome, reason
            child = self._child
        if child is not None:
            child.kill()
        return True

    def exceed(self) -> None:
        """Kill its process because it uses too much memory."""
        assert self.watch is not None
        self.stop(
            "out-of-memory",
            f"its process used {self.watch.peak:,.0f} MB of memory, more than its claim of "
            f"{self.claim:,.0f} MB and {GRACE:,.0f} MB of grace",
        )
