"""`dask handoff` as users have it: a process of its own, and a scheduler that is another."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from importlib.metadata import entry_points
from pathlib import Path

import cloudpickle
import pytest

from tests.integration.separate import Processes

ROOT = Path(__file__).parents[2]
DASK = (sys.executable, "-m", "dask")

PIPELINE = """
import operator
import os
import signal
import time

from handoff_dask import DAG, Function

dag = (
    DAG("three")
    .add_function(Function(id="source", args=[], code=lambda x: x, extra_args=[42]))
    .add_function(Function(id="transform", args=["source"], code=operator.mul, extra_args=[2]))
    .add_function(Function(id="sink", args=["transform"], code="The final answer is: {}".format))
)


class Reading:
    pass


def boom():
    raise RuntimeError("out of luck")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def read():
    return Reading()


failing = (
    DAG("failing")
    .add_function(Function(id="good", args=[], code=int, extra_args=["7"]))
    .add_function(Function(id="bad", args=[], code=boom, max_retries=1))
    .add_function(Function(id="after", args=["bad"], code=repr))
)
deadly = DAG("deadly").add_function(Function(id="deadly", args=[], code=die, max_retries=0))
greedy = DAG("greedy").add_function(Function(id="greedy", args=[], code=int, cost={"gpu": 99}))
cyclic = (
    DAG("cyclic")
    .add_function(Function(id="a", args=["b"], code=repr))
    .add_function(Function(id="b", args=["a"], code=repr))
)
odd = (
    DAG("odd")
    .add_function(Function(id=1, args=[], code=int, extra_args=["1"]))
    .add_function(Function(id=("a", 2), args=[1], code=repr))
    .add_function(Function(id="reading", args=[], code=read))
)


def sleepers(n: int, seconds: float = 60.0, tag="sleepers", cpu: float = 1):
    dag = DAG(tag)
    for i in range(n):
        dag.add_function(
            Function(id=i, args=[], code=time.sleep, extra_args=[seconds], cost={"cpu": cpu})
        )
    return dag


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.05)


def waiting(gate, n: int = 1, tag="waiting"):
    dag = DAG(tag)
    for i in range(n):
        dag.add_function(
            Function(id=i, args=[], code=wait_for, extra_args=[gate], cost={"cpu": 2})
        )
    return dag
"""


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """Environment variables with which `dask` finds this package, installed or not."""
    paths = [str(ROOT)]
    if "handoff" not in {point.name for point in entry_points(group="dask_cli")}:
        section = r"\[project\.entry-points\.dask_cli\]\n(.*?)\n\n"
        match = re.search(section, (ROOT / "pyproject.toml").read_text(), re.DOTALL)
        metadata = tmp_path_factory.mktemp("metadata") / "handoff_dask-0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: handoff_dask\nVersion: 0")
        (metadata / "entry_points.txt").write_text(f"[dask_cli]\n{match[1]}\n".replace('"', ""))
        paths.append(str(metadata.parent))
    own = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONWARNINGS": "error",
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "20s",
        "COLUMNS": "100",
    }
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DASK_", "PYTHON"))}
    return {**kept, **own}


@pytest.fixture
def folder(tmp_path):
    """A folder with pipeline.py, in which commands run."""
    (tmp_path / "pipeline.py").write_text(textwrap.dedent(PIPELINE))
    return tmp_path


@pytest.fixture
def gate(tmp_path):
    """The argument of pipeline.py:waiting, whose functions wait until the test has ended."""
    path = tmp_path / "gate"
    yield f"gate={path}"
    path.touch()


@pytest.fixture
def here(folder, monkeypatch):
    """That folder, as the current one of this process; what is imported from it is forgotten."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = cloudpickle.list_registry_pickle_by_value()
    yield folder
    for name in cloudpickle.list_registry_pickle_by_value() - before:
        cloudpickle.unregister_pickle_by_value(sys.modules[name])
        del sys.modules[name]


@pytest.fixture
def start(environment, folder):
    """Start `dask handoff` with arguments; what still runs at the end of the test is killed."""
    with ExitStack() as stack:

        def start(*arguments, **options):
            env = {**environment, **options.pop("env", {})}
            options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
            process = subprocess.Popen(
                [*DASK, "handoff", *map(str, arguments)], cwd=folder, env=env, text=True, **options
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture
def handoff(start):
    """Run `dask handoff` with arguments to its end."""

    def handoff(*arguments, **options):
        process = start(*arguments, **options)
        stdout, stderr = process.communicate(timeout=100)
        # What a busy machine may make it say.
        stderr = re.sub(r"^connecting to .*\n", "", stderr)
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    return handoff


@pytest.fixture(scope="session")
def scheduler(environment, tmp_path_factory):
    """The file of a scheduler with two workers."""
    folder = tmp_path_factory.mktemp("cluster")
    environ = {"PYTHONPATH": environment["PYTHONPATH"]}
    with Processes(sys.executable, folder, environ=environ) as processes:
        processes.worker("a", "--nthreads", 2, "--resources", "cpu=2 memory=1000")
        processes.worker("b", "--nthreads", 2, "--resources", "cpu=2 memory=2000 gpu=1")
        yield folder / "scheduler.json"


@pytest.fixture
def on(scheduler):
    """The options that name the separate scheduler."""
    return ("--scheduler-file", scheduler)
