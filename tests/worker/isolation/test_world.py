"""What functions find in their process, whatever the one before them changed."""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import pickle
import resource
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from handoff_dask.shipping.parcel import Shipped
from handoff_dask.worker.isolation.calls import World
from tests.integration.separate import bare_python
from tests.worker.isolation.calling import run, value

__all__ = ["bare_python"]

ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root may change the user")


def test_a_child_is_light(pool):
    """A child has imported neither Dask nor numpy, also where it has called current()."""

    def modules():
        from handoff_dask import current

        current()
        return set(sys.modules)

    assert not {"dask", "distributed", "numpy"} & value(run(pool, modules))


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


@pytest.mark.parametrize("timer", [signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF])
def test_timers_that_functions_leave(pool, timer):
    """They do not fire in the next function."""

    def work():
        until = time.process_time() + 0.1
        while time.process_time() < until:
            pass
        return os.getpid()

    before = value(run(pool, lambda: signal.setitimer(timer, 0.05) and os.getpid()))
    assert before == value(run(pool, work))


def test_crashes_are_shown_whatever_functions_change(pool, tmp_path):
    """The output of the next function has the place of its crash."""

    def disable():
        faulthandler.disable()

    def redirect():
        faulthandler.enable(open(tmp_path / "crash", "w"))

    def handle():
        signal.signal(signal.SIGABRT, lambda *_: None)

    def exit_later():
        faulthandler.dump_traceback_later(0.01, exit=True)

    for change in (disable, redirect, handle, exit_later):
        run(pool, change)
        ended = run(pool, lambda: time.sleep(0.05) or os.abort())
        assert (ended.outcome, "SIGABRT" in ended.detail) == ("process-died", True)
        assert "Fatal Python error: Aborted" in ended.output


def test_standard_input_that_functions_change(pool, tmp_path):
    """The next function finds an empty one."""
    (tmp_path / "lines").write_text("line\n" * 10_000)

    def close_file():
        sys.stdin.close()

    def close_descriptor():
        os.close(0)

    def redirect():
        os.dup2(os.open(tmp_path / "lines", os.O_RDONLY), 0)
        return sys.stdin.readline()

    def remove():
        sys.stdin = None

    pid = value(run(pool, os.getpid))
    for change in (close_file, close_descriptor, redirect, remove):
        run(pool, change)
        assert value(run(pool, lambda: (os.getpid(), sys.stdin.read(), os.read(0, 1)))) == (
            pid,
            "",
            b"",
        )


def test_cores_that_functions_choose(pool):
    """The next function may use all those that the worker may."""

    def pin():
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])

    run(pool, pin)
    assert value(run(pool, lambda: os.sched_getaffinity(0))) == os.sched_getaffinity(0)


@pytest.mark.parametrize(
    "change",
    [
        lambda: os.nice(1),
        lambda: resource.setrlimit(resource.RLIMIT_AS, (10**9, resource.RLIM_INFINITY)),
        pytest.param(lambda: os.setgid(65534), marks=ROOT),
        pytest.param(lambda: os.setuid(65534), marks=ROOT),
        lambda: ctypes.CDLL(None).prctl(38, 1, 0, 0, 0),  # no new privileges
    ],
    ids=["priority", "limit", "group", "user", "privileges"],
)
def test_rights_that_functions_give_up(pool, change):
    """A process that may do less than before is not used again."""
    pid = value(run(pool, lambda: (change(), os.getpid())[1]))
    assert value(run(pool, os.getpid)) != pid


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


@pytest.mark.parametrize("flags", [["-O"], ["-W", "error"], ["-X", "utf8=0"]])
def test_options_of_the_interpreter(flags, tmp_path):
    """Functions run with those of their worker."""
    (tmp_path / "script.py").write_text(
        "import os, sys\n"
        "from handoff_dask.worker.isolation.pool import Pool\n"
        "from tests.worker.isolation.calling import run\n"
        "def options(): return tuple(sys.flags), sys.warnoptions\n"
        "pool = Pool(1)\n"
        "sys.exit(run(pool, options).value != options())\n"
    )
    path = os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))
    env = {**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1"}
    subprocess.run([sys.executable, *flags, tmp_path / "script.py"], check=True, env=env)


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


@pytest.mark.parametrize("name", ["get_client", "get_worker", "secede", "worker_client"])
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
