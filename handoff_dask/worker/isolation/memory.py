"""How much memory and CPU time functions use: a child's own view, and the worker's."""

from __future__ import annotations

import math
import os
import resource
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from handoff_dask.worker.isolation.process_tree import tree_of

#: Seconds between looks at a process, at least and at most.
_SOONEST, _LATEST = 0.01, 0.2
#: Assumed of a process that was not looked at yet (MB/s).
_RATE = 2000.0
#: Assumed of one that grows more slowly (MB/s).
_LEAST_RATE = 500.0
#: A look may take this share of the time until the next.
_SHARE = 0.2
#: MB of a kibibyte.
_KIB = 1024 / 1e6


class _Status(NamedTuple):
    """Memory of a process (MB)."""

    #: Now, without files and inputs.
    now: float
    #: Inputs that are mapped now.
    inputs: float
    #: Files that are mapped now.
    files: float
    #: The most since the last call began, with files and inputs.
    highest: float


def _status(content: bytes, inputs: float) -> _Status:
    """Read ``/proc/PID/status``; `inputs`: MB of shared memory that is not the function's."""
    shared = _field(content, b"RssShmem:")
    mapped = min(shared, inputs)
    now = _field(content, b"RssAnon:") + shared - mapped
    return _Status(now, mapped, _field(content, b"RssFile:"), _field(content, b"VmHWM:"))


def _field(content: bytes, name: bytes) -> float:
    at = content.find(b"\n" + name)  # in a line of its own: a process may have any name
    return int(content[at + len(name) + 1 :].split(None, 1)[0]) * _KIB if at >= 0 else 0.0


def _lines(content: bytes, first: bytes, end: bytes) -> bytes:
    """Return the lines from one field up to another."""
    return content[content.find(b"\n" + first) : content.find(b"\n" + end)]


class Used(NamedTuple):
    """What a call used, and how it left the process."""

    #: Seconds: of the call, and of this process from its start.
    cpu_time: float
    total_cpu_time: float
    #: Memory at the end, without files and inputs (MB).
    now: float
    #: The most that there was, with files (MB); 0 if unknown. And the files at the end.
    highest: float
    files: float
    #: The signals that are blocked, ignored and handled.
    signals: bytes
    #: The user, groups, capabilities, limits and niceness of the process, some of which it cannot
    #: change back.
    rights: tuple[Any, ...]


class Meter:
    """Measures the calls of this process."""

    def __init__(self) -> None:
        # Open, because that takes longer than reading.
        self._status = os.open("/proc/self/status", os.O_RDONLY)
        self._limits = os.open("/proc/self/limits", os.O_RDONLY)
        self._reset: int | None = None
        with suppress(OSError):
            self._reset = os.open("/proc/self/clear_refs", os.O_WRONLY)
        self._inputs = 0.0
        self._began = 0.0

    def start(self, inputs: int) -> None:
        """Begin a call that has so many bytes of inputs in shared memory."""
        self._inputs = inputs / 1e6
        self.forget()
        self._began = _cpu_time()

    def forget(self) -> None:
        """Forget how much memory there was: what the worker sees of it begins anew."""
        if self._reset is not None:
            os.pwrite(self._reset, b"5", 0)  # resets VmHWM

    def stop(self) -> Used:
        """Return what the call used."""
        content = os.pread(self._status, 4096, 0)
        status = _status(content, self._inputs)
        highest = 0.0 if self._reset is None else status.highest - status.inputs
        signals = _lines(content, b"SigBlk:", b"CapInh:")
        rights = (
            _lines(content, b"Uid:", b"FDSize:"),
            _lines(content, b"Groups:", b"NStgid:"),
            _lines(content, b"CapInh:", b"Cpus_allowed:"),
            os.pread(self._limits, 4096, 0),
            os.getpriority(os.PRIO_PROCESS, 0),
        )
        cpu_time = _cpu_time()
        return Used(
            cpu_time - self._began, cpu_time, status.now, highest, status.files, signals, rights
        )


def _cpu_time() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Watch:
    """A call whose memory is watched."""

    def __init__(self, pid: int, inputs: int, limit: float | None, end: Callable[[], None]) -> None:
        self.pid = pid
        #: MB of shared memory that came with the call.
        self.inputs = inputs / 1e6
        #: MB past which `end` is called.
        self.limit = limit
        self.end = end
        #: MB of the child and its descendants, at most.
        self.peak = 0.0
        self._now = 0.0
        #: What the kernel saw at most, with files, by the last look; and the files then (MB).
        self._highest = self._files = 0.0
        self._seen = time.monotonic()
        self._rate = _RATE
        #: When to look next.
        self.due = self._seen + self._patience()

    def look(self) -> None:
        """Measure; end the call if it uses too much."""
        began = time.monotonic()
        now = self._measure()
        self._rate = max((now - self._now) / max(began - self._seen, 1e-3), _LEAST_RATE)
        self._now, self._seen = now, began
        if self.limit is not None and now > self.limit:
            self.end()
        ended = time.monotonic()
        self.due = ended + max(self._patience(), (ended - began) / _SHARE)

    def note(self, now: float, highest: float, files: float) -> None:
        """Note what the process had (MB): now, at most with files, and of files now.

        Nobody knows how much of the most were files. If it has risen since the last look, then
        about as many as at one of the two.
        """
        self.peak = max(self.peak, now)
        if highest > self._highest:
            self.peak = max(self.peak, highest - max(files, self._files))
            self._highest = highest
        self._files = files

    def _patience(self) -> float:
        """Return how long it takes at least to get half way to the limit."""
        if self.limit is None:
            return _LATEST
        return min(max((self.limit - self._now) / (2 * self._rate), _SOONEST), _LATEST)

    def _measure(self) -> float:
        members = tree_of(self.pid)
        statuses = [status for pid in members if (status := _status_of(pid, self.inputs))]
        if not statuses:
            return 0.0
        now = sum(status.now for status in statuses)
        # Pages that the processes share count several times so far, but exact figures take longer.
        if len(statuses) > 1 and now > self.peak:
            now = sum(_share_of(pid, self.inputs) for pid in members)
        # Inputs that were mapped at that time may be gone by now.
        self.note(now, statuses[0].highest - self.inputs, statuses[0].files)
        return now


class Watcher:
    """Looks at calls while they run, in a thread of its own."""

    def __init__(self) -> None:
        self._watches: set[Watch] = set()
        self._changed = threading.Condition()
        #: When the thread looks next.
        self._wakes = math.inf
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, watch: Watch) -> None:
        """Begin to watch a call."""
        with self._changed:
            self._watches.add(watch)
            # Calls that are short never wake the thread: it still waits for an earlier one.
            if watch.due < self._wakes:
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="handoff-memory", daemon=True)
                    thread.start()
                    self._thread = thread
                self._wakes = watch.due
                self._changed.notify()

    def remove(self, watch: Watch) -> None:
        """Stop watching a call."""
        with self._changed:
            self._watches.discard(watch)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while (now := time.monotonic()) < self._next():
                    if self._closed:
                        return
                    self._wakes = self._next()
                    self._changed.wait(None if self._wakes == math.inf else self._wakes - now)
                # Those that are due soon as well, because waking up takes longer than a look.
                due = [watch for watch in self._watches if watch.due <= now + _SOONEST]
            for watch in due:
                watch.look()

    def _next(self) -> float:
        return min((watch.due for watch in self._watches), default=math.inf)


def _status_of(pid: int, inputs: float) -> _Status | None:
    with suppress(OSError), open(f"/proc/{pid}/status", "rb") as file:
        return _status(file.read(), inputs)
    return None


def _share_of(pid: int, inputs: float) -> float:
    """Return the memory of a process (MB), of shared pages only its share."""
    with suppress(OSError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        content = file.read()
        if b"Pss_Anon:" not in content:  # before Linux 5.9
            return _field(content, b"Pss:")
        shared = _field(content, b"Pss_Shmem:")
        return _field(content, b"Pss_Anon:") + shared - min(shared, inputs)
    return 0.0
