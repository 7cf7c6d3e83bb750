"""The server and the children as their worker sees them."""

from __future__ import annotations

import codecs
import logging
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

from handoff_dask.worker.isolation.calls import Reply, Start, Surroundings, World
from handoff_dask.worker.isolation.channel import Channel, Message
from handoff_dask.worker.isolation.segments import Packed
from handoff_dask.worker.isolation.server import END, FORK, ORDER, WORD, Server

#: Bytes of output that are kept with a call.
KEPT = 1 << 16
#: Seconds that a child gets to end by itself.
_PATIENCE = 0.5
#: Seconds that one gets whose connection is closed: it ends, and says why.
_ENDING = 5.0
#: Seconds that an idle child gets to tidy up when a call wants it. It may run users' finalizers.
_TIDYING = 2.0
#: What the server's interpreter runs: it finds the package where this process does, and nothing in
#: the working directory, which comes first with ``-c``.
_BOOTSTRAP = (
    "import sys; sys.path[:] = filter(None, sys.path); import pickle;"
    "sys.path[:] = pickle.load(sys.stdin.buffer); pickle.load(sys.stdin.buffer).main()"
)


class NoProcessError(RuntimeError):
    """No process can be started: the system has too many, or their server has ended."""


class ServerHandle:
    """The process that forks children."""

    def __init__(self) -> None:
        with ExitStack() as ours:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.enter_context(self._control)
            with theirs:
                self._popen = subprocess.Popen(
                    [sys.executable, *_flags(), "-c", _BOOTSTRAP],
                    stdin=subprocess.PIPE,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # so that Ctrl-C in a terminal does not reach it
                )
                assert self._popen.stdin is not None
                with self._popen.stdin as stdin:
                    stdin.write(pickle.dumps(sys.path))
                    stdin.write(pickle.dumps(Server(theirs.fileno(), os.getpid())))
            ours.pop_all()
        self.pid = self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it can fork."""
        return self._popen.poll() is None

    def send(self, order: bytes, pid: int = 0, delay: float = 0.0, fds: Sequence[int] = ()) -> None:
        """Send an order, from any thread; one to a server that has ended is dropped."""
        message = [ORDER.pack(order, pid, delay)]
        with suppress(OSError):
            if fds:
                socket.send_fds(self._control, message, fds)
            else:
                self._control.sendmsg(message)

    def close(self) -> None:
        """End it with all children, and wait until they have ended."""
        with suppress(OSError):
            # Closing is not enough if a process that was forked from this one has the socket, too.
            self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        self._popen.wait()


def _flags() -> list[str]:
    """Return the options of this interpreter, such as ``-O``, as multiprocessing passes them on."""
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return flags


class End(NamedTuple):
    """How a child ended."""

    #: In words.
    how: str
    #: Seconds of processor time of its last call, with its descendants; None if unknown.
    cpu_time: float | None


class ChildHandle:
    """A child; one thread at a time uses it, and any thread may kill it."""

    def __init__(
        self, server: ServerHandle, world: World, surroundings: Surroundings, generation: int
    ) -> None:
        self._server = server
        self.place = world, surroundings
        self.generation = generation
        self.calls = 0
        self._settles = False
        #: Seconds of processor time that it had used when its last call began, and when it ended.
        self._before = self._after = 0.0
        with ExitStack() as ours, ExitStack() as theirs:
            sock, their_sock = socket.socketpair()
            ours.enter_context(sock)
            theirs.enter_context(their_sock)
            pipes = [_pipe(ours, theirs) for _ in range(3)]
            (out, their_out), (err, their_err), (self._status, status) = pipes
            server.send(FORK, fds=[their_sock.fileno(), their_out, their_err, status])
            theirs.close()
            pid, _ = self._word()
            if pid is None:
                raise NoProcessError("no process could be started for an isolated function")
            self._ours = ours.pop_all()
        self.pid = pid
        self._channel = Channel(sock)
        self._outputs = {out: _Output("stdout"), err: _Output("stderr")}
        self._kept = bytearray()
        self._poll = select.poll()
        for fd in (sock.fileno(), out, err):
            self._poll.register(fd, select.POLLIN)
        levels = {
            name: logger.level
            for name, logger in list(logging.root.manager.loggerDict.items())
            if isinstance(logger, logging.Logger) and logger.level
        }
        with suppress(OSError):
            self._channel.send(pickle.dumps(Start(world, surroundings, levels)))

    def ready(self) -> bool:
        """Whether it can run a call; this may wait a little until it has tidied up."""
        deadline = time.monotonic() + _TIDYING
        try:
            while self._settles:
                patience = deadline - time.monotonic()
                if patience <= 0:
                    return False
                if not self._channel.buffered and not self._pass_on(patience):
                    continue
                message = self._channel.receive()
                content = pickle.loads(message.facts)
                if isinstance(content, bool):
                    self._settles = False
                    return content
                _log(content, message.data)
        except (EOFError, ConnectionError):
            return False
        return not any(fd == self._channel.fileno() for fd, _ in self._poll.poll(0))

    def ask(self, facts: bytes, values: Packed) -> tuple[Reply, Message]:
        """Send a call and wait for its end; meanwhile, pass on what it prints and logs.

        Raise EOFError or ConnectionError if the child ends.
        """
        self.calls += 1
        self._before = self._after
        self._kept.clear()
        self._channel.send(facts, values.data, values.fds)
        while True:
            if not self._channel.buffered and not self._pass_on(None):
                continue
            message = self._channel.receive()
            content = pickle.loads(message.facts)
            if isinstance(content, tuple):
                reply = Reply.of(content)
                self._settles, self._after = reply.settles, reply.cpu_time
                self._pass_on(0)
                return reply, message
            _log(content, message.data)

    @property
    def output(self) -> str:
        """The end of what the last call printed."""
        return self._kept.decode(errors="replace")

    def kill(self) -> None:
        """Kill it and its descendants."""
        self._server.send(END, self.pid)

    def end(self, *, soon: bool = False) -> End:
        """Kill it, wait until nothing is left of it, and say how it ended.

        `soon`: if it does not end by itself.
        """
        self._server.send(END, self.pid, _ENDING if soon else 0.0)
        status, cpu_time = self._word()
        for fd, output in self._outputs.items():
            os.set_blocking(fd, False)
            with suppress(BlockingIOError):  # somebody else's process still has it
                while data := os.read(fd, KEPT):
                    self._pass(output, data)
        self.close()
        return End(_words(status), self._since(cpu_time))

    def retire(self) -> None:
        """Let it end by itself; it is killed if it does not."""
        self._server.send(END, self.pid, _PATIENCE)
        self._channel.close()
        self.close()

    def finish(self) -> float | None:
        """Let it end, wait until nothing is left of it, and return its processor time, as `end`."""
        self._server.send(END, self.pid, _PATIENCE)
        self._channel.close()
        _, cpu_time = self._word()
        self.close()
        return self._since(cpu_time)

    def close(self) -> None:
        """Close the connections to it, which ends it if it is idle."""
        self._ours.close()

    def _since(self, cpu_time: float | None) -> float | None:
        return None if cpu_time is None else cpu_time - self._before

    def _word(self) -> tuple[int, float] | tuple[None, None]:
        """Wait for the next word of the server about it; nothing if the server has ended."""
        word = os.read(self._status, WORD.size)
        return WORD.unpack(word) if word else (None, None)

    def _pass_on(self, timeout: float | None) -> bool:
        """Pass on what it printed; return whether there is a message. `timeout`: seconds."""
        message = False
        for fd, _ in self._poll.poll(None if timeout is None else timeout * 1000):
            output = self._outputs.get(fd)
            if output is None:
                message = True
            elif data := os.read(fd, KEPT):
                self._pass(output, data)
            else:
                self._poll.unregister(fd)
        return message

    def _pass(self, output: _Output, data: bytes) -> None:
        self._kept += data
        del self._kept[:-KEPT]
        output.write(data)


def _pipe(ours: ExitStack, theirs: ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    for end, stack in zip(ends, (ours, theirs), strict=True):
        stack.callback(os.close, end)
    return ends


class _Output:
    """One of a child's outputs: what comes goes to that of the same name here."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, data: bytes) -> None:
        """Print what came; characters may come in pieces."""
        with suppress(Exception):  # as with print(), it may be closed or replaced by anything
            getattr(sys, self._name).write(self._decoder.decode(data))


def _log(content: dict[str, Any], extra: memoryview) -> None:
    """Handle a log record of a child; `extra`: its users' fields, pickled."""
    record = logging.makeLogRecord(content)
    logger = logging.getLogger(record.name)
    try:
        if logger.isEnabledFor(record.levelno):
            with suppress(Exception):  # it goes without what cannot be imported here
                record.__dict__.update(pickle.loads(extra) if extra else {})
            logger.handle(record)
    except Exception:  # users' handlers and filters are no reason for the call to fail
        logging.Handler().handleError(record)


def _words(status: int | None) -> str:
    """Say how a process ended, by its exit status."""
    if status is None:
        return "its process ended with the one that had started it"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        with suppress(ValueError):  # real-time signals have no names
            return f"its process was killed by {signal.Signals(number).name}"
        return f"its process was killed by signal {number}"
    return f"its process ended with status {os.waitstatus_to_exitcode(status)}"
