"""Signals, a scheduler that goes away, and what is left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import psutil
import pytest

from handoff_dask.cli.signals import GRACE
from tests.integration.separate import Processes, certificates

#: Seconds that the functions take, and that a command is given to end, however busy the machine.
LONG, PATIENCE = 300, 60


def test_the_limit_is_below_the_patience_of_slurm():
    """Whatever hangs: 5 s after SIGTERM comes SIGKILL."""
    assert GRACE <= 3


def started(process):
    """Read the events of a run up to the first with two running functions."""
    for line in process.stdout:
        event = json.loads(line)
        if event.get("running") == 2:
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_embedded_cluster(start, number):
    """Exit code 130, however long the functions would take, and no process is left."""
    command = ("run", "pipeline.py:sleepers", "--worker", "cpu=2,memory=1000", "--json-lines")
    process = start(*command, "--", "n=4", f"seconds={LONG}")
    started(process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert stderr == "Error: interrupted\n"
    last = json.loads(stdout.splitlines()[-1])
    assert (last["event"], last["exit_code"]) == ("end", 130)
    psutil.wait_procs(children, timeout=10)
    assert not any(child.is_running() for child in children)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_releases_what_the_run_held(start, handoff, on, folder, number):
    """On a cluster that goes on: the run is gone from it, and the next one gets its place."""
    command = ("run", "pipeline.py:waiting", *on, "--json-lines", "--", "n=9")
    process = start(*command, f"gate={folder / 'gate'}")
    started(process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=PATIENCE)
    # Before that, it may have said that connecting takes long.
    assert (process.returncode, stderr.splitlines()[-1]) == (130, "Error: interrupted")
    assert handoff("runs", *on).stdout == "no runs\n"
    (folder / "gate").touch()
    done = handoff("run", "pipeline.py:sleepers", *on, "--", "n=2", "seconds=0.1", "cpu=2")
    assert done.returncode == 0, done.stderr


def test_the_same_command_goes_on(start, handoff, folder):
    """SIGTERM in a run with a store ends with 75, and what was done does not run again."""
    (folder / "steps.py").write_text(STEPS)
    command = ("run", "steps.py:dag", "--worker", "cpu=1", "--store", "kept", "--json-lines")
    process = start(*command, "--", "gate=gate")
    for line in process.stdout:
        if json.loads(line).get("done", 0) >= 3:
            break
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75
    assert "run the same command again" in stderr
    assert json.loads(stdout.splitlines()[-1])["exit_code"] == 75
    (folder / "gate").touch()
    done = handoff(*command, "--", "gate=gate")
    assert done.returncode == 0, done.stderr
    begun = (folder / "log").read_text().split()
    assert begun[:3] == ["0", "1", "2"] and begun.count("3") == 2
    assert [begun.count(str(i)) for i in (0, 1, 2, 4)] == [1, 1, 1, 1]
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["exit_code"] == 0


STEPS = """
import os
import time

from handoff_dask import DAG


def step(before, number, gate):
    with open("log", "a") as log:
        log.write(f"{number}\\n")
    while number == 3 and not os.path.exists(gate):
        time.sleep(0.05)
    return number


def dag(gate):
    dag, last = DAG("steps"), None
    for number in range(5):
        last = dag.add(step, last, number, gate, id=number)
    return dag
"""


def test_a_signal_while_the_dag_is_loaded(start, folder):
    """With a store, a command that has not begun asks to be run again, too."""
    (folder / "slow.py").write_text(f"import time\nprint('loads', flush=True)\ntime.sleep({LONG})")
    process = start("run", "slow.py:dag", "--store", "kept")
    assert process.stdout.readline() == "loads\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 75


@pytest.mark.parametrize("delay", [0.0, 0.3, 0.6, 0.9])
def test_a_signal_while_the_cluster_starts(start, folder, delay):
    """Whenever it comes, nothing is left running."""
    (folder / "loaded.py").write_text("from pipeline import *\nprint('loaded', flush=True)\n")
    process = start("run", "loaded.py:sleepers", "--worker", "cpu=2,memory=1000", "--", "n=1")
    assert process.stdout.readline() == "loaded\n"
    loaded = psutil.Process(process.pid)
    time.sleep(delay)
    children = loaded.children(recursive=True)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert stderr.splitlines()[-1] == "Error: interrupted"
    psutil.wait_procs(children, timeout=10)
    assert not any(child.is_running() for child in children)


def test_a_second_signal_does_not_wait(start, on, gate):
    """Whoever presses Ctrl-C twice is not asked for patience."""
    process = start("run", "pipeline.py:waiting", *on, "--json-lines", "--", gate, "n=2")
    started(process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in stderr


def test_two_signals_at_once():
    """A process in a group that is told to end may be told twice; with a store, it is still 75."""
    program = """
import signal
from handoff_dask.cli import signals

class Timer(signals.threading.Timer):
    def start(self):
        signal.raise_signal(signal.SIGTERM)

signals.threading.Timer = Timer
signals.resumable.set()
with signals.interruptible():
    signal.raise_signal(signal.SIGTERM)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=PATIENCE)
    assert (ended.returncode, b"run the same command again" in ended.stderr) == (75, True)


def test_the_scheduler_goes_away(start, environment, tmp_path):
    """Exit code 4 and a sentence, when Dask's client gives up."""
    environ = {"PYTHONPATH": environment["PYTHONPATH"]}
    with Processes(sys.executable, tmp_path, environ=environ) as processes:
        processes.worker("a", "--nthreads", 2, "--resources", "cpu=2 memory=1000")
        env = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "2s"}
        command = ("run", "pipeline.py:sleepers", "--scheduler", processes.address, "--json-lines")
        process = start(*command, "--", "n=2", "seconds=30", env=env)
        started(process)
        processes.scheduler.kill()
        _, stderr = process.communicate(timeout=90)
    assert process.returncode == 4
    assert stderr == "Error: run 'sleepers': the scheduler went away\n"


def test_a_cluster_that_encrypts(handoff, environment, tmp_path):
    """The TLS files of the command line; without them nothing is reached."""
    _, security = certificates(tmp_path)
    environ = {"PYTHONPATH": environment["PYTHONPATH"]}
    with Processes(sys.executable, tmp_path, security, environ=environ) as processes:
        processes.worker("a", "--nthreads", 2)
        command = ("run", "pipeline.py:dag", "--scheduler", processes.address)
        assert processes.address.startswith("tls://")
        done = handoff(*command, *security)
        assert done.returncode == 0, done.stderr
        assert "3 of 3 functions done" in done.stderr
        without = handoff(*command)
        assert without.returncode == 2
        assert "needs --tls-ca-file, --tls-cert and --tls-key" in without.stderr
