"""What goes to standard output, and what is told while a scheduler is looked for."""

from __future__ import annotations

import json
import socket

import dask
import pytest
from click.testing import CliRunner

from handoff_dask import __version__
from handoff_dask.cli import handoff as group
from tests.cli.test_run_command import EMBEDDED

LOUD = """
import numpy as np
from handoff_dask import DAG, Function

class Model:
    def __repr__(self):
        return "<Model\\n  of two lines>"

def loud(value):
    print("I am loud", flush=True)
    return value

def boom(value):
    raise ValueError("out of luck")

dag = DAG("loud")
for id, value in {1: np.float64(0.5), "long": ["a" * 1000] * 1000, "model": Model()}.items():
    dag.add_function(Function(id, [], loud, [value]))
failing = DAG("failing")
failing.add_function(Function("good", [], loud, [7]))
failing.add_function(Function("bad", ["good"], boom, [], max_retries=0))
print("importing")
"""

#: A command of each kind that needs a cluster.
COMMANDS = [
    ["run", "pipeline.py:dag"], ["run", "pipeline.py:dag", "--detach"],
    ["explain", "pipeline.py:dag"], ["plan", "pipeline.py:dag", "--durations", "seconds.json"],
    ["nodes"], ["runs"], ["status", "nightly"], ["result", "nightly", "total"],
    ["cancel", "nightly"], ["forget", "nightly"],
]  # fmt: skip


@pytest.fixture
def loud(folder):
    (folder / "loud.py").write_text(LOUD)
    return folder


def test_the_version():
    """Names this package, not what it is a command of."""
    done = CliRunner().invoke(group, ["--version"], prog_name="dask")
    assert done.stdout.startswith(f"handoff_dask {__version__} (dask {dask.__version__},")
    assert done.exit_code == 0


def test_output_to_standard_output(handoff, loud):
    """`--output -` is JSON and nothing else there, whatever functions print; no file is made."""
    done = handoff("run", "loud.py:dag", *EMBEDDED, "--output", "-")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["results"]["1"] == 0.5
    assert document["left_out"] == {"model": "Model"}
    assert done.stderr.count("I am loud") == 3 and "3 of 3 functions done" in done.stderr
    assert not (loud / "-").exists()


def test_results_on_standard_output(handoff, on, loud):
    """Results that are asked for are printed, a line each and no longer than that."""
    done = handoff("run", "loud.py:dag", *on, "--results", "all")
    assert done.returncode == 0, done.stderr
    number, long, model = done.stdout.splitlines()
    assert number.startswith("1: ") and "0.5" in number
    assert long.startswith("long: ['aaa") and len(long) < 600
    assert model == "model: <Model of two lines>"
    assert "3 of 3 functions done" in done.stderr
    some = handoff("run", "loud.py:dag", *on, "--results", "model", "--quiet")
    assert some.stdout == f"{model}\n"


def test_results_of_a_run_that_fails(handoff, on, loud):
    """Those that there are, then the error; for programs both are in the last event."""
    done = handoff("run", "loud.py:failing", *on, "--results", "all")
    assert done.returncode == 1
    assert done.stdout == "good: 7\n" and "out of luck" in done.stderr
    done = handoff("run", "loud.py:failing", *on, "--results", "all", "--json-lines")
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["results"] == {"good": 7} and last["exit_code"] == 1


def test_one_result_and_a_drawing(handoff, on, loud):
    """`result` and `visualize` write to standard output as well."""
    done = handoff("run", "loud.py:dag", *on, "--detach", "--quiet")
    assert done.returncode == 0, done.stderr
    assert json.loads(handoff("result", "loud", "1", *on, "--output", "-").stdout) == 0.5
    refused = handoff("result", "loud", "model", *on, "--output", "-")
    assert refused.returncode == 2 and "JSON cannot hold the result" in refused.stderr
    drawn = CliRunner().invoke(group, ["visualize", str(loud / "loud.py:dag"), "--output", "-"])
    assert drawn.stdout.partition("\n")[2].lstrip().startswith("<svg")
    assert not (loud / "-").exists()
    assert handoff("forget", "loud", *on).returncode == 0


def test_a_reader_that_went_away(start, on, loud):
    """Nobody reads the results: the command ends quietly; the document is missed."""
    for options, code in [(["--results", "all"], 0), (["--output", "-"], 2)]:
        process = start("run", "loud.py:dag", *on, *options)
        process.stdout.close()
        stderr = process.stderr.read()
        assert process.wait(timeout=100) == code, stderr
        assert "Traceback" not in stderr and "Exception ignored" not in stderr


def test_two_writers(here):
    """Events and a document do not fit on one stream."""
    done = CliRunner().invoke(group, ["run", "pipeline.py:dag", "--json-lines", "--output", "-"])
    assert done.exit_code == 2 and "both write to standard output" in done.stderr


def invoke(*arguments, seconds=0.1):
    with dask.config.set({"distributed.comm.timeouts.connect": f"{seconds}s"}):
        return CliRunner().invoke(group, list(arguments))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command))
def test_a_scheduler_that_cannot_be_reached(here, command):
    """Exit code 4, and the address, from every command."""
    (here / "seconds.json").write_text('{"source": 1, "transform": 1, "sink": 1}')
    done = invoke(*command, "--scheduler", "tcp://127.0.0.1:1")
    assert done.exit_code == 4
    error = done.stderr.splitlines()[-1]
    assert error.startswith("Error: cannot reach the scheduler tcp://127.0.0.1:1: ")


def test_what_is_tried_is_told_meanwhile(start):
    """The address and how long it is tried, before the command gives up; it may be interrupted."""
    limit = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "600s"}
    process = start("nodes", "--scheduler", "tcp://127.0.0.1:1", env=limit)
    assert process.stderr.readline() == "connecting to tcp://127.0.0.1:1; giving up after 600 s\n"
    assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=60) == 130
    process = start("nodes", "--scheduler-file", "gone.json", env=limit)
    line = "waiting for the scheduler file gone.json; giving up after 600 s\n"
    assert process.stderr.readline() == line


@pytest.fixture
def silent():
    """The address of something that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


def test_who_is_no_scheduler(silent, scheduler):
    """Exit code 4: who does not answer, and a worker, are not waited for without an end."""
    done = invoke("nodes", "--scheduler", silent)
    assert done.exit_code == 4 and f"cannot reach the scheduler {silent}: " in done.stderr
    nodes = invoke("nodes", "--scheduler-file", str(scheduler), seconds=20)
    worker = nodes.stdout.splitlines()[1].split()[0]
    done = invoke("nodes", "--scheduler", worker, seconds=20)
    assert done.exit_code == 4
    assert done.stderr == f"Error: {worker} is the address of a Worker, not of a scheduler\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "did not appear within 0.1 s"),
        ("", "is empty"),
        ("scheduler: here", "was not written by a scheduler"),
        ("[1, 2]", "was not written by a scheduler"),
        ('{"id": "Scheduler"}', "was not written by a scheduler"),
        ('{"address": "tcp://127.0.0.1:1"}', "cannot reach the scheduler tcp://127.0.0.1:1"),
    ],
)
def test_a_scheduler_file_that_is_none(here, content, message):
    """Exit code 4, and what is wrong with it, or with the scheduler that it names."""
    if content is not None:
        (here / "scheduler.json").write_text(content)
    done = invoke("nodes", "--scheduler-file", "scheduler.json")
    assert done.exit_code == 4 and message in done.stderr
    assert len(done.stderr.splitlines()) <= 2
