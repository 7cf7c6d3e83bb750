"""Calls and processes that end early: each end is told in words, and nothing is left."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from handoff_dask.worker.isolation.calls import World
from handoff_dask.worker.isolation.process_tree import tree_of
from tests.worker.isolation.calling import DEADLINE, alive, request_for, run, until, value


@pytest.mark.parametrize(
    ("end", "detail"),
    [
        (lambda: os._exit(3), "its process ended with status 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "its process was killed by SIGKILL"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "its process was killed by SIGTERM"),
        (faulthandler._sigsegv, "its process was killed by SIGSEGV"),
        (lambda: os.closerange(3, 1000), "its process ended with status 1"),
    ],
    ids=["exit", "kill", "terminate", "segfault", "close"],
)
def test_processes_that_die(pool, end, detail):
    """The end of its process is the end of one call only, and is said in words."""
    before = value(run(pool, os.getpid))
    ended = run(pool, end)
    assert (ended.outcome, ended.value, ended.detail) == ("process-died", None, detail)
    assert not alive(before)
    assert value(run(pool, lambda: "fine")) == "fine"


def test_the_place_of_a_crash(pool):
    """A crash prints where it happened."""

    def crashes_here():
        faulthandler._sigsegv()

    assert "in crashes_here" in run(pool, crashes_here).output


def test_a_neighbour_goes_on(pool):
    """A call beside one that dies ends as if nothing had happened."""
    results = []
    neighbour = threading.Thread(
        target=lambda: results.append(run(pool, lambda: (time.sleep(0.5), "fine")[1]))
    )
    neighbour.start()
    assert run(pool, lambda: os._exit(1)).outcome == "process-died"
    neighbour.join(DEADLINE)
    assert value(results[0]) == "fine"


def killed(pool, function, tmp_path, *values):
    """Kill a call once it has touched a file; return how it ended."""
    begun = tmp_path / "begun"
    results = []
    call = threading.Thread(
        target=lambda: results.append(
            pool.run(request_for(function, str(begun), *values), World(), key="it")
        )
    )
    call.start()
    until(begun.exists)
    assert pool.kill("it", "the reason")
    call.join(DEADLINE)
    return results[0]


def test_kill(pool, tmp_path):
    """A killed call ends with the reason; whoever eats SIGTERM ends, too."""

    def stubborn(begun):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open(begun, "w").close()
        while True:
            pass

    ended = killed(pool, stubborn, tmp_path)
    assert (ended.outcome, ended.detail) == ("killed", "the reason")
    assert not pool.kill("it", "again")


def test_kill_before_the_process_is_there(pool):
    """A call that is killed while its process starts never begins, or ends at once."""
    ended = pool.run(
        request_for(lambda: time.sleep(100)),
        World(),
        key="it",
        on_start=lambda: pool.kill("it", "early"),
    )
    assert (ended.outcome, ended.detail) == ("killed", "early")


def test_kill_while_the_result_travels(pool, tmp_path):
    """A call that is killed while it sends its result is killed, and its shared memory is gone."""

    def endless(begun):
        class Slow:
            def __reduce__(self):
                open(begun, "w").close()
                time.sleep(100)

        return bytearray(10_000_000), Slow()

    assert killed(pool, endless, tmp_path).outcome == "killed"


def test_nothing_is_left_of_a_killed_call(pool, tmp_path):
    """Its children, those in other sessions and daemons have ended when a killed call ends."""

    def family(begun):
        import subprocess

        pids = [subprocess.Popen(["sleep", "100"]).pid]
        pids.append(subprocess.Popen(["sleep", "100"], start_new_session=True).pid)
        read, write = os.pipe()
        if not os.fork():
            os.setsid()
            if not os.fork():
                os.write(write, b"%d" % os.getpid())
                time.sleep(100)
            os._exit(0)
        pids.append(int(os.read(read, 100)))
        with open(begun + ".pids", "w") as file:
            file.write(" ".join(map(str, pids)))
        os.rename(begun + ".pids", begun)
        time.sleep(100)

    assert killed(pool, family, tmp_path).outcome == "killed"
    pids = [int(pid) for pid in (tmp_path / "begun").read_text().split()]
    assert len(pids) == 3
    assert not any(map(alive, pids))


def test_nothing_is_left_of_a_call_that_leaves_a_daemon(pool):
    """A process that outlives its function ends with it, and its child is not used again."""

    def daemon():
        read, write = os.pipe()
        if not os.fork():
            os.setsid()
            if not os.fork():
                os.write(write, b"%d" % os.getpid())
                time.sleep(100)
            os._exit(0)
        os.wait()
        return os.getpid(), int(os.read(read, 100))

    child, orphan = value(run(pool, daemon))
    assert not alive(child)
    assert not alive(orphan)


def leave_shared_memory(begun, method, end):
    """Leave shared memory and a semaphore; write their names to a file."""
    import multiprocessing
    from multiprocessing.shared_memory import SharedMemory

    context = multiprocessing.get_context(method)
    lock = context.Lock()
    process = context.Process(target=id, args=[lock])
    process.start()
    process.join()
    names = [SharedMemory(create=True, size=1_000).name, "sem." + lock._semlock.name[1:]]
    with open(begun + ".names", "w") as file:
        file.write(" ".join(names))
    os.rename(begun + ".names", begun)
    end()


def left_of(begun):
    """Return what is still there of the shared memory whose names are in a file."""
    return {*begun.read_text().split()} & {*os.listdir("/dev/shm")}


@pytest.mark.parametrize("end", [bool, os.abort, sys.exit])
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_shared_memory_that_was_not_removed(pool, end, method, tmp_path):
    """What a function leaves in shared memory is gone when its call ends."""
    run(pool, leave_shared_memory, str(tmp_path / "begun"), method, end)
    assert not left_of(tmp_path / "begun")


def test_shared_memory_of_a_killed_call(pool, tmp_path):
    """What a killed call has in shared memory is gone, too."""

    def call(begun):
        leave_shared_memory(begun, "spawn", lambda: time.sleep(100))

    assert killed(pool, call, tmp_path).outcome == "killed"
    assert not left_of(tmp_path / "begun")


def test_resource_trackers_that_do_not_end(pool):
    """They are killed like all else, a moment later."""

    def call():
        code = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
        command = [sys.executable, "-c", code, "resource_tracker"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
            print(process.stdout.readline().decode())
            os._exit(3)

    ended = run(pool, call)
    assert ended.outcome == "process-died"
    assert not alive(int(ended.output))


def test_threads_that_do_not_end(pool):
    """A thread that outlives its function ends with it, and its child is not used again."""

    def leave():
        threading.Thread(target=time.sleep, args=[100]).start()
        return os.getpid()

    assert not alive(value(run(pool, leave)))


def test_closed_descriptors(pool):
    """A function that closes everything has lost its process, and only that."""

    def close():
        os.closerange(3, 1000)
        time.sleep(0.01)

    assert run(pool, close).outcome == "process-died"
    assert value(run(pool, lambda: 1)) == 1


def test_a_server_that_was_killed(pool):
    """A call whose process lost its server has died; the next one gets new ones."""
    parent = value(run(pool, os.getppid))

    def call():
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(100)

    assert run(pool, call).outcome == "process-died"
    assert value(run(pool, os.getppid)) != parent


def test_close_while_calls_run(pool):
    """Closing a pool kills its calls; nothing starts after that."""
    results = []
    before = len(tree_of(os.getpid()))
    call = threading.Thread(target=lambda: results.append(run(pool, time.sleep, 100)))
    call.start()
    until(lambda: len(tree_of(os.getpid())) == before + 2)  # the server and a child
    pool.close()
    call.join(DEADLINE)
    assert results[0].outcome == "killed"
    with pytest.raises(RuntimeError, match="closed"):
        run(pool, lambda: 1)


def test_a_worker_that_was_killed(tmp_path):
    """Children of a worker that is killed end by themselves, also if they are busy."""
    script = tmp_path / "worker.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, sys, time
            from handoff_dask.worker.isolation.calls import World
            from handoff_dask.worker.isolation.pool import Pool
            from tests.worker.isolation.calling import request_for

            def busy():
                print(os.getpid(), os.getppid(), flush=True)
                while True:
                    pass

            if __name__ == "__main__":
                Pool(1).run(request_for(busy), World(), key=0)
            """
        )
    )
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"},
    ) as worker:
        pids = [int(pid) for pid in worker.stdout.readline().split()]
        assert len(pids) == 2
        worker.kill()
    until(lambda: not any(map(alive, pids)))
