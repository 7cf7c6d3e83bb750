"""The process in which isolated functions run, one after the other."""

from __future__ import annotations

import contextvars
import faulthandler
import gc
import io
import logging
import os
import pickle
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from logging.handlers import QueueHandler
from types import ModuleType
from typing import Any, NamedTuple

from handoff_dask.attempts.retries import Verdict
from handoff_dask.model.attempt import Usage
from handoff_dask.model.expansion import evaluate
from handoff_dask.packed_errors import packed
from handoff_dask.store.loaded import check
from handoff_dask.wire.payload import opened
from handoff_dask.worker.current import isolate, refuse_isolated, running
from handoff_dask.worker.isolation.calls import (
    Order,
    Reply,
    Request,
    Start,
    World,
    environment,
)
from handoff_dask.worker.isolation.channel import Channel, Message
from handoff_dask.worker.isolation.libc import (
    adopt_orphans,
    end_with_parent,
    return_free_memory,
    write_lines,
)
from handoff_dask.worker.isolation.memory import Meter
from handoff_dask.worker.isolation.segments import Packed, pack, unpack
from handoff_dask.worker.verdicts import judge

#: How much nicer than its worker a child is, so that the worker can always answer.
_NICE = 5
#: MB that a child may keep between calls before it tidies up, and before it is replaced.
_TIDY, _GROWN = 64, 300
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
#: Variables that say how many threads numerical libraries use.
_WIDTHS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)


def live(channel: Channel, stdout: int, stderr: int, server: int) -> None:
    """Run calls until the worker closes the channel."""
    os.setsid()
    end_with_parent(server)
    adopt_orphans()  # so that what a function leaves behind is seen
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.nice(_NICE)
    isolate()
    write_lines()
    sys.meta_path.insert(0, _Refusing())
    with suppress(EOFError, ConnectionError):
        start: Start = pickle.loads(channel.receive().facts)
        child = _Child(channel, start, _Surroundings(start, stdout, stderr))
        while True:
            child.run(channel.receive())


class _Evaluated(NamedTuple):
    """What a call led to: a result or a failure."""

    result: Packed | None
    failure: tuple[Any, ...] | None = None
    verdict: Verdict | None = None


class _Child:
    """Runs calls and tells the worker how they end."""

    def __init__(self, channel: Channel, start: Start, surroundings: _Surroundings) -> None:
        self._channel = channel
        self._width = start.world.width
        self._surroundings = surroundings
        self._pid = os.getpid()
        self._meter = Meter()
        #: Kept mapped while a call runs, so that the meter can tell how much of them was read.
        self._inputs: Any = None
        logging.root.handlers[:] = [_Forwarding(channel)]
        for name, level in start.log_levels.items():
            logging.getLogger(name).setLevel(level)
        self._handlers = tuple(logging.root.handlers)
        #: Threads that modules started when they were imported: no function left them.
        self._threads: set[threading.Thread] = {threading.main_thread()}
        #: MB that it had when idle: after its first call, and when it last tidied up.
        self._first: float | None = None
        idle = self._meter.stop()
        self._idle, self._signals, self._rights = idle.now, idle.signals, idle.rights
        #: Whether its modules are those of the client; or else the next attempt gets another child.
        self._is_current = True

    def run(self, message: Message) -> None:
        """Run a call."""
        order = Order.loads(message.facts)
        if logging.root.level != order.log_level:  # setting it empties caches
            logging.root.setLevel(order.log_level)
        inputs = sum(place.size for place in order.places)
        self._meter.start(inputs)
        evaluated = contextvars.copy_context().run(self._evaluate, order, message)
        if os.getpid() != self._pid:
            os._exit(0)  # the function has forked, and this is the copy
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        result = evaluated.result
        size = None if result is None or not order.request.keep else result.size
        alone = self._is_alone()
        used = self._meter.stop()
        self._inputs = None
        settles = used.now > self._idle + _TIDY
        reply = Reply(
            () if result is None else result.places,
            Usage(used.cpu_time, used.now, size),
            used.highest,
            used.files,
            used.total_cpu_time,
            alone and self._is_current and used.rights == self._rights,
            settles,
            evaluated.failure,
            evaluated.verdict,
        )
        facts = reply.dumps()
        if result is None:
            self._channel.send(facts)
        else:
            self._channel.send(facts, result.data, result.fds)
            result.close()
        del message, evaluated, result
        self._surroundings.restore(signals=used.signals != self._signals)
        logging.root.handlers[:] = self._handlers
        self._meter.forget()
        if settles:
            self._channel.send(pickle.dumps(self._settle()))
        elif self._first is None:
            self._first = used.now

    def _evaluate(self, order: Order, message: Message) -> _Evaluated:
        """Evaluate a call as a worker's thread does; what it raises becomes a failure."""
        try:
            return _Evaluated(self._pack(order.request, self._value(order, message)))
        except BaseException as error:  # whatever a function raises is its failure
            policy, attempt, cost = order.request.policy, order.request.attempt, order.request.cost
            verdict = None if policy is None else judge(error, policy, attempt, cost)
            return _Evaluated(None, packed(error).records, verdict)

    def _value(self, order: Order, message: Message) -> Any:
        request = order.request
        values = unpack(message.data, order.places, message.fds, shared=False)
        self._inputs = values
        identity, call, results = opened(request.names, request.call, values)
        if request.code is not None:
            self._is_current = False
            check(request.code)
            self._is_current = True
        if threading.active_count() > 1:
            self._threads = set(threading.enumerate())
        if self._width is not None and (limits := sys.modules.get("threadpoolctl")):
            limits.threadpool_limits(self._width)  # for libraries that heed no variable
        with running(*identity, request.attempt, request.cost):
            return evaluate(call, results, lambda: request.address)

    @staticmethod
    def _pack(request: Request, value: Any) -> Packed:
        if not request.keep:
            value = None
        try:
            return pack(value)
        except Exception as error:
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            raise TypeError(
                f"its result, of type {kind}, cannot be sent from the function's own process: "
                f"{error}"
            ) from error

    def _is_alone(self) -> bool:
        """Whether the function left neither processes nor threads that keep one from ending."""
        if threading.active_count() > 1:
            left = set(threading.enumerate()) - self._threads
            if any(not thread.daemon for thread in left):
                return False
        try:
            while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        return False

    def _settle(self) -> bool:
        """Give memory back; return whether the child can go on."""
        gc.collect()
        return_free_memory()
        self._idle = self._meter.stop().now
        if self._first is None:
            self._first = self._idle
        return self._idle < self._first + _GROWN


class _Surroundings:
    """What functions change and the next one would notice."""

    def __init__(self, start: Start, stdout: int, stderr: int) -> None:
        #: What the standard streams lead to.
        self._files = os.open(os.devnull, os.O_RDONLY), stdout, stderr
        self._environ = {**start.surroundings.environ, **_variables(start.world)}
        self._folder = start.surroundings.folder
        self._streams: tuple[io.TextIOWrapper, ...] = ()
        self._mask = os.umask(0o22)
        sys.path[:] = start.surroundings.path
        self._cpus = os.sched_getaffinity(0)
        self._handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
        self.restore()

    def restore(self, *, signals: bool = True) -> None:
        """Make everything as it was when the child started; `signals`: those, too."""
        for timer in _TIMERS:
            signal.setitimer(timer, 0)
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()  # and enable it below: functions may have set handlers of crashes
        if signals:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            for number, handler in self._handlers.items():
                if signal.getsignal(number) is not handler:
                    signal.signal(number, handler)
        if os.sched_getaffinity(0) != self._cpus:
            with suppress(OSError):
                os.sched_setaffinity(0, self._cpus)
        os.umask(self._mask)
        with suppress(OSError):
            os.chdir(self._folder)
        if environment() != self._environ:
            os.environb.clear()
            os.environb.update(self._environ)
        for fd, file in enumerate(self._files):
            os.dup2(file, fd)
        sys.stdin = open(0, closefd=False)  # the one before may have read ahead
        if (sys.stdout, sys.stderr) != self._streams or any(s.closed for s in self._streams):
            self._streams = sys.stdout, sys.stderr = _stream(1), _stream(2)
        faulthandler.enable(self._files[2])


def _stream(fd: int) -> io.TextIOWrapper:
    return open(fd, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _variables(world: World) -> dict[bytes, bytes]:
    variables = {}
    if world.devices is not None:
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(world.devices)
    if world.width is not None:
        variables.update(dict.fromkeys(_WIDTHS, str(world.width)))
    return {os.fsencode(name): os.fsencode(value) for name, value in variables.items()}


#: The fields that every log record has. Others are users' objects.
_PLAIN = (*logging.makeLogRecord({}).__dict__, "message")


class _Forwarding(logging.Handler):
    """Sends log records to the worker, whose handlers decide what becomes of them."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel
        self._pid = os.getpid()
        self._formatting = QueueHandler(None)  # type: ignore[arg-type] # only its `prepare` is used

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record; a process that the function started prints it instead."""
        try:
            if os.getpid() != self._pid:
                print(self.format(record), file=sys.stderr)
                return
            extra = self._formatting.prepare(record).__dict__
            facts = {key: extra.pop(key) for key in _PLAIN if key in extra}
            data = b""
            with suppress(Exception):  # they go without what cannot be pickled
                data = pickle.dumps(extra) if extra else b""
            self._channel.send(pickle.dumps(facts), data)
        except Exception:
            self.handleError(record)


class _Refusing(MetaPathFinder, Loader):
    """Has functions of Dask raise an error that says why they cannot work here."""

    _NAMES: Mapping[str, tuple[str, ...]] = {
        "distributed.worker": ("get_client", "get_worker", "secede"),
        "distributed.worker_client": ("worker_client",),
    }

    def __init__(self) -> None:
        #: {name of a module that is being imported: its own loader}
        self._inner: dict[str, Loader] = {}

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Find a module of these functions."""
        if fullname not in self._NAMES:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)):
                assert spec.loader is not None
                self._inner[fullname], spec.loader = spec.loader, self
                return spec
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave that to the loader."""
        return self._inner[spec.name].create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module, and replace the functions before others import them."""
        module.__loader__ = loader = self._inner.pop(module.__name__)
        loader.exec_module(module)
        for name in self._NAMES[module.__name__]:
            setattr(module, name, lambda *_, _name=name, **__: refuse_isolated(f"{_name}()"))
