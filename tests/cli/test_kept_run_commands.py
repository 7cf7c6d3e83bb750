"""Runs on a cluster: runs, status, result, cancel, forget, and run --detach."""

from __future__ import annotations

import json
import pickle
import time

import pytest

from handoff_dask.attempts.states import STATES


@pytest.fixture
def detached(handoff, on):
    """Detach a target, under an id; forget it at the end."""
    names = []

    def detached(target, *arguments):
        done = handoff("run", target, *on, "--detach", *arguments)
        assert done.returncode == 0, done.stderr
        names.append(done.stdout.strip())
        return names[-1]

    yield detached
    for name in names:
        handoff("forget", name, *on)


def until(condition):
    """Wait for what a process does."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_run_outlives_its_command(handoff, detached, on):
    """--detach prints the id and ends; results are there for whoever comes later."""
    assert detached("pipeline.py:dag") == "three"
    assert handoff("result", "three", "sink", *on).stdout == "The final answer is: 84\n"
    assert handoff("result", "three", "source", *on).stdout == "42\n"
    head, line = handoff("runs", *on).stdout.splitlines()
    assert head.split()[:4] == ["run", "started", "kept", "priority"]
    assert line.startswith("three ") and " ago   yes " in line
    counts = dict(zip(reversed(head.split()), reversed(line.split()), strict=False))
    assert {state: counts[state] for state in STATES} == {**dict.fromkeys(STATES, "0"), "done": "3"}
    status = handoff("status", "three", *on).stdout.splitlines()
    assert status[0].startswith("three: started ")
    assert "3 done" in status[1]
    assert status[2].startswith("  used: cpu time ") and " · result " in status[2]
    done = handoff("forget", "three", *on)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert handoff("runs", *on).stdout == "no runs\n"


def test_a_result_in_a_file(handoff, detached, on, folder):
    """JSON where it can hold the value, a pickle for anything; ids of other types by their repr."""
    name = detached("pipeline.py:odd")
    assert handoff("result", name, "1", *on, "--output", "one.json").returncode == 0
    assert json.loads((folder / "one.json").read_text()) == 1
    assert handoff("result", name, "('a', 2)", *on, "--output", "a.pkl").returncode == 0
    assert pickle.loads((folder / "a.pkl").read_bytes()) == "1"
    done = handoff("result", name, "reading", *on, "--output", "reading.json")
    assert done.returncode == 2
    assert done.stderr == (
        "Error: JSON cannot hold the result, which is of type Reading: a file named *.pkl can\n"
    )
    assert handoff("result", name, "reading", *on).stdout.startswith("<handoff_target.Reading ")
    unknown = handoff("result", name, "gone", *on)
    assert unknown.returncode == 2
    assert "has no such function, or does not keep its result" in unknown.stderr


def test_a_run_that_failed(handoff, detached, on):
    """status names what failed and how; result fails like the run, with exit code 1."""
    name = detached("pipeline.py:failing", "--on-error", "continue")
    until(lambda: "1 done, 2 failed" in handoff("status", name, *on).stdout)
    status = handoff("status", name, *on).stdout
    assert "  bad: 2 of 2 attempts failed, last RuntimeError: out of luck" in status
    done = handoff("result", name, "bad", *on)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "Error: function 'bad' failed after 2 attempts: RuntimeError: out of luck ("
    )


def test_a_run_that_waits(handoff, detached, on, gate):
    """status tells for which resources; result waits no longer than asked; cancel stops it."""
    name = detached("pipeline.py:waiting", "--", gate, "n=5")
    until(lambda: "2 running" in handoff("status", name, *on).stdout)
    assert "3 functions wait" in handoff("status", name, *on).stdout
    assert "resources: cpu 2, at most 0 free" in handoff("status", name, *on).stdout
    done = handoff("result", name, "0", *on, "--timeout", "200ms")
    assert done.returncode == 1
    assert done.stderr == "Error: function 0 of 'waiting' did not end within 0.2 s\n"
    assert handoff("cancel", name, *on).returncode == 0
    assert handoff("runs", *on).stdout == "no runs\n"
    # What became of it can be asked until it is forgotten.
    status = handoff("status", name, *on).stdout
    assert "5 cancelled" in status and "failed, last" not in status
    done = handoff("result", name, "0", *on)
    assert done.returncode == 130 and "cancelled on the cluster" in done.stderr
    assert handoff("forget", name, *on).returncode == 0
    assert handoff("status", name, *on).returncode == 2


def test_the_run_of_another_command(start, handoff, on, gate):
    """cancel stops it, and that command ends with exit code 130; forget is not for it."""
    process = start("run", "pipeline.py:waiting", *on, "--", gate, "tag=attended")
    until(lambda: "attended" in handoff("runs", *on).stdout)
    refused = handoff("forget", "attended", *on)
    assert refused.returncode == 2
    assert "is not kept by the cluster but by the client that waits for it" in refused.stderr
    assert handoff("cancel", "attended", *on).returncode == 0
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Error: run 'attended': its functions were cancelled on the cluster" in stderr


@pytest.mark.parametrize("command", ["status", "result", "cancel", "forget"])
def test_a_run_that_nobody_knows(handoff, on, command):
    """Exit code 2, with the runs that there are."""
    arguments = ["gone", "function"] if command == "result" else ["gone"]
    done = handoff(command, *arguments, *on)
    assert done.returncode == 2
    assert done.stderr == "Error: the cluster has no run 'gone'; its runs are: none\n"


@pytest.mark.parametrize("command", ["runs", "nodes"])
def test_which_cluster(handoff, command):
    """Without a scheduler, what to say is said."""
    done = handoff(command)
    assert done.returncode == 2
    assert "which cluster? Give --scheduler ADDRESS" in done.stderr
