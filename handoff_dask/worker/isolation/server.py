"""The process that forks children: one for each worker, started from a clean interpreter.

It has one thread, so it can fork safely, and has already imported what children need. It reaps
them, and kills what they leave behind: the orphans of a child become the server's own children.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from handoff_dask.shipping import bootstrap
from handoff_dask.shipping.parcel import Shipped
from handoff_dask.worker.isolation import child
from handoff_dask.worker.isolation.channel import Channel
from handoff_dask.worker.isolation.libc import adopt_orphans
from handoff_dask.worker.isolation.process_tree import children_of, is_resource_tracker, tree_of

#: What a worker asks for: to fork a child, or to end one in so many seconds.
ORDER = struct.Struct("<cid")
FORK, END = b"f", b"e"
#: What the server writes to a child's pipe: its process id, then its exit status, each with the
#: seconds of processor time that it and its descendants have used.
WORD = struct.Struct("<id")
#: Seconds between looks at whether the worker is still there; usually its socket tells.
_PULSE = 1.0
#: Seconds that a resource tracker gets to remove what processes that have ended left in shared
#: memory.
_TRACKING = 1.0


class _Ends(NamedTuple):
    """A child's ends of what connects it to the worker."""

    channel: int
    stdout: int
    stderr: int


class Server(Shipped):
    """Runs in a process of its own; it pickles so that it can be loaded there.

    Parameters
    ----------
    control
        The descriptor of the socket on which the worker sends orders.
    worker
        The worker's process.
    """

    def __init__(self, control: int, worker: int) -> None:
        self.arguments: tuple[int, int] = (control, worker)
        #: {process id: the pipe on which the worker waits for its end}
        self._children: dict[int, int] = {}
        #: {process id of a child or of a resource tracker: when to kill it}
        self._deadlines: dict[int, float] = {}
        #: {process id of a reaped child: its exit status and processor time}
        self._ended: dict[int, tuple[int, float]] = {}
        #: Processor time of what they left behind.
        self._left = 0.0

    def __reduce__(self) -> tuple[object, ...]:
        return super().__reduce__() if bootstrap.shipped() else (Server, self.arguments)

    def main(self) -> None:
        """Serve until the worker ends. Each child returns from here, too, when it ends."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the worker decides when to end
        adopt_orphans()
        server = os.getpid()
        ends = self._serve()
        if ends is not None:
            child.live(Channel(socket.socket(fileno=ends.channel)), *ends[1:], server)

    def _serve(self) -> _Ends | None:
        """Serve; return None when the worker has ended and, in a child, what connects it."""
        fd, worker = self.arguments
        control = socket.socket(fileno=fd)
        woken, wake = os.pipe()
        for end in (woken, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # it wakes the loop
        gc.freeze()  # so that collecting garbage in a child does not copy all pages
        while os.getppid() == worker:
            ready, _, _ = select.select([fd, woken], [], [], self._patience())
            if fd in ready:
                message, fds, _, _ = socket.recv_fds(
                    control, ORDER.size, 4, socket.MSG_CMSG_CLOEXEC
                )
                if not message:
                    break
                order, pid, delay = ORDER.unpack(message)
                if order == END:
                    if pid in self._children:
                        self._deadlines[pid] = time.monotonic() + delay
                elif (ends := self._fork(fds)) is not None:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    control.close()
                    for other in (woken, wake, *self._children.values()):
                        os.close(other)
                    return ends
            self._end_late_ones()
            self._reap(woken)
        self._kill(self._children)
        while self._children:
            select.select([woken], [], [], _PULSE)
            self._reap(woken)
        return None

    def _patience(self) -> float:
        now = time.monotonic()
        return max(0.0, min([_PULSE, *(deadline - now for deadline in self._deadlines.values())]))

    def _fork(self, fds: list[int]) -> _Ends | None:
        """Fork a child; return its ends in the child, and None in the server."""
        *ends, status = fds
        try:
            pid = os.fork()
        except OSError:  # too many processes: the worker sees that there is none
            pid = -1
        if not pid:
            os.close(status)
            return _Ends(*ends)
        for end in ends:
            os.close(end)
        if pid < 0:
            os.close(status)
        else:
            self._children[pid] = status
            _tell(status, pid, 0.0)
        return None

    def _end_late_ones(self) -> None:
        now = time.monotonic()
        for pid in [pid for pid, deadline in self._deadlines.items() if deadline <= now]:
            del self._deadlines[pid]
            if pid in self._children:
                if pid not in self._ended:
                    self._kill([pid])
            else:
                _kill(pid)

    def _reap(self, woken: int) -> None:
        """Reap what has ended; report children once nothing is left of them."""
        with suppress(BlockingIOError):
            os.read(woken, 4096)
        with suppress(ChildProcessError):
            while (ended := os.wait4(-1, os.WNOHANG))[0]:
                pid, status, usage = ended
                cpu_time = usage.ru_utime + usage.ru_stime
                if pid in self._children:
                    self._ended[pid] = status, cpu_time
                else:
                    self._left += cpu_time
                    self._deadlines.pop(pid, None)
        # The kernel's list may lack some while others end. So it has to be clean twice.
        if self._ended and not self._kill_orphans() and not self._kill_orphans():
            # Nobody knows whose it was if several have ended.
            left = self._left if len(self._ended) == 1 else 0.0
            for pid, (status, cpu_time) in self._ended.items():
                pipe = self._children.pop(pid)
                self._deadlines.pop(pid, None)
                _tell(pipe, status, cpu_time + left)
                os.close(pipe)
            self._ended.clear()
            self._left = 0.0

    def _kill_orphans(self) -> bool:
        """Kill what children that have ended left behind; return whether there was something."""
        return self._kill(pid for pid in children_of(os.getpid()) if pid not in self._children)

    def _kill(self, pids: Iterable[int]) -> bool:
        """Kill processes and their descendants; return whether there is something to wait for.

        Resource trackers of multiprocessing get a moment: they remove the shared memory of the
        others when these have ended.
        """
        members = [member for pid in pids for member in tree_of(pid)]
        # In this order: what has just ended has left its own to the server.
        trackers = set(filter(is_resource_tracker, [*members, *children_of(os.getpid())]))
        late = time.monotonic() + _TRACKING
        for tracker in trackers:
            self._deadlines.setdefault(tracker, late)
        spared = set(map(_group_of, trackers))
        others = [member for member in members if member not in trackers]
        # Not another user's, such as those of sudo, for which nobody could wait.
        return any([_kill(pid, group=pid not in spared) for pid in others]) or bool(trackers)


def _group_of(pid: int) -> int | None:
    with suppress(OSError):
        return os.getpgid(pid)
    return None


def _kill(pid: int, *, group: bool = False) -> bool:
    """Kill a process; return whether that was allowed. `group`: and its group, if it leads one."""
    with suppress(OSError):
        if group and _group_of(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return True  # it has just ended
    except PermissionError:
        return False
    return True


def _tell(pipe: int, word: int, cpu_time: float) -> None:
    with suppress(BrokenPipeError):  # nobody waits for it
        os.write(pipe, WORD.pack(word, cpu_time))
