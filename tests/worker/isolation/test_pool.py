"""Functions in processes of their own: what they see, and how they end."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback

import pytest

from handoff_dask import RetryPolicy, current
from handoff_dask.attempts.retries import Verdict
from handoff_dask.pickling import dumps
from handoff_dask.shipping.parcel import Shipped
from handoff_dask.worker.isolation.calls import Request, World
from handoff_dask.worker.isolation.pool import CALLS, Pool
from handoff_dask.worker.isolation.process_tree import tree_of
from tests.integration.separate import bare_python
from tests.worker.isolation.calling import DEADLINE, alive, request_for, run, until, value

__all__ = ["bare_python"]


def test_a_call(pool):
    """A closure gets its values and returns its result from another process, which is reused."""
    factor = 3

    def scaled(x):
        return x * factor, os.getpid()

    result, pid = value(run(pool, scaled, 7))
    assert result == 21
    assert pid != os.getpid()
    assert value(run(pool, scaled, 1)) == (3, pid)


def test_what_current_says(pool):
    """current() knows the function, its attempt and cost; its devices count from 0."""

    def who():
        return current()

    cost = {"cpu": 2, "gpu": 1.5}
    here = value(run(pool, who, attempt=3, cost=cost, world=World(("5", "7"))))
    assert (here.id, here.dag_id, here.attempt, here.cost) == ("f", "a dag", 3, cost)
    assert here.gpus == (0, 1)


def test_a_child_is_light(pool):
    """A child has imported neither Dask nor numpy, also where it has called current()."""

    def modules():
        from handoff_dask import current

        current()
        return set(sys.modules)

    assert not {"dask", "distributed", "numpy"} & value(run(pool, modules))


def test_coroutines(pool):
    """A coroutine function runs to its end."""

    async def later(x):
        await asyncio.sleep(0)
        return x + 1

    assert value(run(pool, later, 1)) == 2


def test_discarded_results(pool):
    """A result that nobody needs is not sent, so it need not be one that can be."""
    ended = run(pool, lambda: (i for i in range(3)), keep=False)
    assert (value(ended), ended.usage.result_bytes) == (None, None)


def test_exceptions(pool):
    """What a function raises arrives with its cause and its traceback, and the child goes on."""

    def inner():
        raise KeyError("why")

    def outer():
        try:
            inner()
        except KeyError as error:
            raise ValueError("no") from error

    pid = value(run(pool, os.getpid))
    ended = run(pool, outer)
    assert ended.outcome == "error"
    assert (ended.value.type_name, ended.value.message) == ("ValueError", "no")
    arrived = pickle.loads(pickle.dumps(ended.value))
    assert type(arrived) is ValueError
    assert type(arrived.__cause__) is KeyError
    names = [frame.name for frame in traceback.extract_tb(ended.value.__traceback__)]
    assert names == ["outer"]
    assert ended.verdict is None
    assert value(run(pool, os.getpid)) == pid


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_exceptions_that_would_end_more(pool, kind):
    """Whatever a function raises is its failure, not the end of its process."""

    def fail():
        raise kind("stop")

    ended = run(pool, fail)
    assert (ended.outcome, ended.value.type_name) == ("error", kind.__name__)


def test_policies_are_judged_in_the_child(pool):
    """A retry policy with users' code is asked where the exception is."""

    class Mine(Exception):
        pass

    def fail():
        raise Mine

    policy = dumps(RetryPolicy(retry_on=(Mine,), escalate=lambda n, cost, e: {"cpu": n + 1}))
    cost = {"cpu": 1}
    ended = run(pool, fail, policy=policy, attempt=2, cost=cost)
    assert ended.verdict == Verdict(True, {"cpu": 3})
    ended = run(pool, lambda: 1 / 0, policy=policy, cost=cost)
    assert ended.verdict == Verdict(False)


def test_results_that_cannot_be_pickled(pool):
    """The error names the type of the result."""
    ended = run(pool, lambda: (i for i in range(3)))
    assert ended.outcome == "error"
    assert "its result, of type builtins.generator, cannot be sent" in ended.value.message


def test_inputs_that_cannot_be_pickled(pool):
    """The error names the types of the inputs."""
    ended = run(pool, lambda x: x, threading.Lock())
    assert ended.outcome == "error"
    assert "its inputs (lock) cannot be sent" in ended.value.message


def test_results_that_cannot_be_unpickled(pool):
    """A result whose code fails here is a failure of the function."""

    class Bad:
        def __reduce__(self):
            return eval, ("1 / 0",)

    ended = run(pool, Bad)
    assert (ended.outcome, ended.value.type_name) == ("error", "ZeroDivisionError")


def test_classes_of_main(pool):
    """Objects of classes that only exist here go in and out, and keep their class."""

    class Point:
        def __init__(self, x):
            self.x = x

        def moved(self):
            return type(self)(self.x + 1)

    Point.__module__ = "__main__"
    moved = value(run(pool, lambda point: point.moved(), Point(1)))
    assert type(moved) is Point
    assert moved.x == 2


def test_output_and_logs(pool, capsys, caplog):
    """What a function prints and logs arrives here, and the end of its output with its result."""

    def talk():
        print("out", "é")
        os.write(2, b"raw\n")
        subprocess.run(["echo", "from a program"], check=True)
        logging.getLogger("mine").info("quiet")
        logging.getLogger("mine").warning("a %s", "record", extra={"lock": threading.Lock()})

    ended = run(pool, talk)
    value(ended)
    out, err = capsys.readouterr()
    assert (out, err) == ("out é\nfrom a program\n", "raw\n")
    assert sorted(ended.output.splitlines()) == ["from a program", "out é", "raw"]
    (record,) = caplog.records
    assert (record.name, record.getMessage()) == ("mine", "a record")


def test_logs_of_threads(pool, caplog):
    """What threads log while their function runs arrives, whatever the function returns then."""

    def talk():
        def log(number):
            for i in range(200):
                logging.getLogger("mine").warning("%d", number * 1000 + i)

        threads = [threading.Thread(target=log, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return bytes(5_000_000)

    value(run(pool, talk))
    numbers = {int(record.getMessage()) for record in caplog.records}
    assert numbers == {number * 1000 + i for number in range(4) for i in range(200)}


def test_logs_of_levels_that_are_shown(pool, caplog):
    """Loggers have the levels that they have here."""
    caplog.set_level(logging.DEBUG, logger="loud")
    value(run(pool, lambda: logging.getLogger("loud.part").debug("heard")))
    assert [record.getMessage() for record in caplog.records] == ["heard"]


def test_the_last_of_much_output(pool, capsys):
    """All output is passed on, and the last 64 kB are kept."""
    ended = run(pool, lambda: print("x" * 1_000_000 + "end"))
    value(ended)
    assert len(capsys.readouterr().out) == 1_000_004
    assert len(ended.output) == 1 << 16
    assert ended.output.endswith("xend\n")


@pytest.mark.parametrize(
    ("end", "detail"),
    [
        (lambda: os._exit(3), "its process ended with status 3"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "its process was killed by SIGKILL"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "its process was killed by SIGTERM"),
        (faulthandler._sigsegv, "its process was killed by SIGSEGV"),
    ],
    ids=["exit", "kill", "terminate", "segfault"],
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


def test_workers_that_fork(pool):
    """A copy of the worker that ends leaves the pool to the worker."""
    pid = value(run(pool, os.getpid))
    copy = os.fork()
    if not copy:
        pool.close()
        os._exit(0)
    os.waitpid(copy, 0)
    assert value(run(pool, os.getpid)) == pid


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


def test_threads_that_do_not_end(pool):
    """A thread that outlives its function ends with it, and its child is not used again."""

    def leave():
        threading.Thread(target=time.sleep, args=[100]).start()
        return os.getpid()

    assert not alive(value(run(pool, leave)))


def test_functions_that_fork(pool):
    """The copy of a function that forks neither answers nor goes on."""

    def fork():
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
        return pid

    assert value(run(pool, fork)) > 0
    assert value(run(pool, lambda: "next")) == "next"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pools_inside(pool, method):
    """A function can use processes of its own."""

    def squares():
        import multiprocessing

        with multiprocessing.get_context(method).Pool(2) as processes:
            return processes.map(abs, [-1, -2, -3])

    assert value(run(pool, squares)) == [1, 2, 3]


def test_programs_that_were_not_waited_for(pool):
    """A program that has ended is no reason to replace the child."""

    def start():
        import subprocess

        program = subprocess.Popen(["true"], stdout=subprocess.PIPE)
        program.stdout.read()
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
        return os.getpid()

    assert value(run(pool, start)) == value(run(pool, start))


def test_what_functions_change(pool, tmp_path):
    """The next function in the child finds everything as it was."""

    def state():
        return (
            os.getpid(),
            os.getcwd(),
            dict(os.environ),
            os.umask(os.umask(0)),
            signal.getsignal(signal.SIGTERM),
            signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            logging.root.level,
            len(logging.root.handlers),
        )

    def change(folder):
        os.chdir(folder)
        os.environ["CHANGED"] = "1"
        os.environ.pop("PATH")
        os.umask(0o777)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        logging.root.setLevel(logging.CRITICAL)
        logging.root.addHandler(logging.StreamHandler())

    before = value(run(pool, state))
    value(run(pool, change, str(tmp_path)))
    time.sleep(0.05)
    assert value(run(pool, state)) == before


def test_folders_that_functions_remove(pool, tmp_path):
    """A function that removes its working directory does not end its child."""

    def remove(folder):
        os.chdir(folder)
        os.rmdir(folder)

    (tmp_path / "gone").mkdir()
    value(run(pool, remove, str(tmp_path / "gone")))
    assert value(run(pool, os.getcwd)) == os.getcwd()


@pytest.mark.parametrize(
    "close",
    [
        lambda: sys.stdout.close(),
        lambda: [os.close(1), os.close(2)],
        lambda: setattr(sys, "stdout", None),
    ],
    ids=["object", "descriptor", "none"],
)
def test_closed_output(pool, capsys, close):
    """A function that closes its output takes it from no other."""
    value(run(pool, close))
    value(run(pool, lambda: print("still here")))
    assert capsys.readouterr().out == "still here\n"


def test_closed_descriptors(pool):
    """A function that closes everything has lost its process, and only that."""

    def close():
        os.closerange(3, 1000)
        time.sleep(0.01)

    assert run(pool, close).outcome == "process-died"
    assert value(run(pool, lambda: 1)) == 1


def test_worlds(pool):
    """A child has its devices and widths before anything is imported, and none beyond these."""

    def world():
        return (
            os.getpid(),
            os.environ.get("CUDA_VISIBLE_DEVICES"),
            os.environ.get("OMP_NUM_THREADS"),
        )

    two, devices, width = value(run(pool, world, world=World(("4", "GPU-5"), 3)))
    assert (devices, width) == ("4,GPU-5", "3")
    assert value(run(pool, world, world=World((), 1)))[1:] == ("", "1")
    assert value(run(pool, world, world=World(("4", "GPU-5"), 3)))[0] == two
    assert value(run(pool, world))[1:] == (
        os.environ.get("CUDA_VISIBLE_DEVICES"),
        os.environ.get("OMP_NUM_THREADS"),
    )


@pytest.mark.parametrize("width", [1, 2])
def test_widths(pool, width):
    """A numerical library that is imported in a child starts as many threads as it may."""

    def multiply():
        import numpy

        square = numpy.ones((500, 500))
        assert (square @ square)[0, 0] == 500
        return len(os.listdir("/proc/self/task"))

    assert value(run(pool, multiply, world=World(width=width))) <= width


def test_widths_of_libraries_that_heed_no_variable(pool):
    """Where threadpoolctl is in use, each call tells it the width."""

    def use():
        from types import ModuleType

        module = sys.modules["threadpoolctl"] = ModuleType("threadpoolctl")
        module.widths = []
        module.threadpool_limits = module.widths.append

    value(run(pool, use, world=World(width=3)))
    widths = value(run(pool, lambda: sys.modules["threadpoolctl"].widths, world=World(width=3)))
    assert widths == [3]


def test_the_environment_of_the_worker(pool, monkeypatch, tmp_path):
    """Functions find the worker's environment, path and folder as they are now."""

    def seen():
        return os.environ.get("SET_LATER"), os.getcwd(), sys.path[-1]

    value(run(pool, seen))
    monkeypatch.setenv("SET_LATER", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.path.append("the last")
    try:
        assert value(run(pool, seen)) == ("1", str(tmp_path), "the last")
    finally:
        sys.path.remove("the last")


def test_modules_in_the_working_directory(pool, monkeypatch, tmp_path):
    """A file that is named like a module of Python is not taken for it."""
    (tmp_path / "pickle.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", ".")])
    assert value(run(pool, lambda: 1)) == 1


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


@pytest.mark.parametrize("name", ["get_client", "get_worker", "secede"])
def test_dask_inside(pool, name):
    """What needs the cluster raises an error that names isolate; Dask's own threads work."""

    def use():
        import distributed

        getattr(distributed, name)()

    ended = run(pool, use)
    assert ended.value.type_name == "IsolatedError"
    assert f"{name}() does not work" in ended.value.message
    assert "isolate" in ended.value.message

    def compute():
        import dask
        import distributed  # noqa: F401

        return dask.delayed(sum)([1, 2]).compute()

    assert value(run(pool, compute)) == 3


def test_runs_inside(pool):
    """A run inside a function raises an error that names isolate."""

    def nested():
        from handoff_dask import DAG, execute

        execute(DAG())

    ended = run(pool, nested)
    assert "isolate" in ended.value.message


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


def test_shipped_packages(bare_python, tmp_path):
    """Where the package is not installed but was sent along, children have it, too."""
    parcel = tmp_path / "parcel"
    parcel.write_bytes(pickle.dumps(Shipped()))
    script = f"""
        import pickle
        pickle.load(open({str(parcel)!r}, "rb"))
        from handoff_dask.pickling import dumps
        from handoff_dask.worker.isolation.calls import Request, World
        from handoff_dask.worker.isolation.pool import Pool

        call = dumps((("f", "a dag"), lambda: __import__("handoff_dask").__file__, (), (), {{}}))
        pool = Pool(1)
        print(pool.run(Request((), call, ()), World(), key=0).value)
        pool.close()
        """
    answer = subprocess.run(
        [bare_python, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        timeout=60,
    )
    assert answer.stdout.startswith("shipped"), answer.stderr


def test_nothing_starts_before_it_is_needed():
    """A pool that is not used costs nothing, and closing it again is allowed."""
    pool = Pool(1)
    assert pool._server is None
    pool.close()
    pool.close()


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
