"""Which process a call gets, and when processes start and are replaced."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time

import pytest

from handoff_dask.worker.isolation.calls import Request, World
from handoff_dask.worker.isolation.handles import NoProcessError
from handoff_dask.worker.isolation.pool import CALLS, Pool
from handoff_dask.worker.isolation.process_tree import tree_of
from tests.worker.isolation.calling import (
    DEADLINE,
    alive,
    few_descriptors,
    request_for,
    run,
    until,
    value,
)


def test_nothing_starts_before_it_is_needed():
    """A pool that is not used costs nothing, and closing it again is allowed."""
    pool = Pool(1)
    assert pool._server is None
    pool.close()
    pool.close()


def test_calls_that_must_not_start(pool):
    """If the last check before the start raises, so does the pool, and the child is as it was."""
    pid = value(run(pool, os.getpid))

    def refuse():
        raise LookupError("withdrawn")

    with pytest.raises(LookupError, match="withdrawn"):
        pool.run(request_for(lambda: 1), World(), key="it", on_start=refuse)
    assert value(run(pool, os.getpid)) == pid


def test_calls_that_must_not_start_after_large_ones(pool):
    """The same for a child that had to give memory back first."""

    def keep():
        sys.kept = bytearray(b"x" * 150_000_000)
        return os.getpid()

    pid = value(run(pool, keep))

    def refuse():
        raise LookupError("withdrawn")

    with pytest.raises(LookupError, match="withdrawn"):
        pool.run(request_for(lambda: 1), World(), key="it", on_start=refuse)
    assert value(run(pool, os.getpid)) == pid


def test_children_that_do_not_tidy_up(pool):
    """A finalizer that hangs after its function costs the process, not the next call."""

    class Hangs:
        def __del__(self):
            time.sleep(100)

    def leave():
        cycle = Hangs()
        cycle.itself = cycle
        sys.kept = bytearray(b"x" * 150_000_000)
        return os.getpid()

    pid = value(run(pool, leave))
    assert value(run(pool, os.getpid)) != pid
    until(lambda: not alive(pid))


def test_children_that_print_while_they_tidy_up(pool, capsys):
    """What finalizers print arrives, even if a pipe cannot hold it."""

    class Prints:
        def __del__(self):
            print("x" * 1_000_000)

    def leave():
        cycle = Prints()
        cycle.itself = cycle
        sys.kept = bytearray(b"x" * 150_000_000)
        return os.getpid()

    pid = value(run(pool, leave))
    assert value(run(pool, os.getpid)) == pid
    assert len(capsys.readouterr().out) == 1_000_001


@pytest.mark.parametrize("free", range(8))
def test_too_many_open_files(pool, free):
    """Without descriptors for a process, the error says why, and none of them stays open."""
    value(run(pool, os.getpid, world=World(width=1)))  # the server is there
    before = os.listdir("/proc/self/fd")
    with few_descriptors(free):  # a process needs eight
        with pytest.raises(NoProcessError, match=r"isolated function.*Too many open files"):
            run(pool, os.getpid, world=World(width=2))
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert value(run(pool, os.getpid, world=World(width=2)))


def test_many_at_once(pool):
    """Calls of many threads run side by side and get their own results."""
    results = {}

    def call(number):
        results[number] = [value(run(pool, lambda x: x + 1, number + i)) for i in range(5)]

    threads = [threading.Thread(target=call, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert results == {n: [n + i + 1 for i in range(5)] for n in range(8)}


def test_idle_children_are_few(pool):
    """Only so many children wait for calls, those that were used last."""

    def pid():
        return os.getpid()

    pids = [value(run(pool, pid, world=World(width=width))) for width in (1, 2, 3)]
    until(lambda: not alive(pids[0]))
    assert all(map(alive, pids[1:]))


def test_children_are_replaced(pool):
    """A child runs so many calls and no more."""
    pids = [value(run(pool, os.getpid)) for _ in range(CALLS + 1)]
    assert len(set(pids[:-1])) == 1
    assert pids[-1] != pids[0]


def test_programs_that_were_not_waited_for(pool):
    """A program that has ended is no reason to replace the child."""

    def start():
        program = subprocess.Popen(["true"], stdout=subprocess.PIPE)
        program.stdout.read()
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
        return os.getpid()

    assert value(run(pool, start)) == value(run(pool, start))


def test_threads_of_modules(pool, tmp_path, monkeypatch):
    """A module that starts a thread when it is imported does not cost a process for each call."""
    (tmp_path / "starts_a_thread.py").write_text(
        "import os, threading\n"
        "threading.Thread(target=threading.Event().wait, args=[100]).start()\n"
        "def pid(): return os.getpid()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    code = b"cstarts_a_thread\npid\n."
    call = pickle.dumps((("f", "d"), _Named(code), (), (), {}, ()))
    pids = {pool.run(Request((), call, ()), World(), key=i).value for i in range(3)}
    assert len(pids) == 1


class _Named:
    """Pickles as something else, which cannot be imported here."""

    def __init__(self, pickled):
        self.pickled = pickled

    def __reduce__(self):
        return pickle.loads, (self.pickled,)


def test_workers_that_fork(pool):
    """A copy of the worker that ends leaves the pool to the worker."""
    pid = value(run(pool, os.getpid))
    copy = os.fork()
    if not copy:
        pool.close()
        os._exit(0)
    os.waitpid(copy, 0)
    assert value(run(pool, os.getpid)) == pid


def test_too_many_threads(pool, monkeypatch):
    """Without a thread that watches its memory, no call runs; later ones are watched again."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            run(pool, os.getpid)
    assert run(pool, lambda: bytearray(10**9), limit=10).outcome == "out-of-memory"


def test_ten_thousand_calls(pool):
    """Many calls leave no descriptor, and so no shared memory, and no process behind."""
    value(run(pool, lambda: None))
    before = len(tree_of(os.getpid()))
    fds = len(os.listdir("/proc/self/fd"))
    request = request_for(lambda: None)
    for number in range(10_000):
        assert pool.run(request, World(), key=number).outcome == "ok"
    assert len(os.listdir("/proc/self/fd")) <= fds
    until(lambda: len(tree_of(os.getpid())) <= before)
