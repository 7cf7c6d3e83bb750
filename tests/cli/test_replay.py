"""Workflow files are run by waiting as long as their tasks took."""

from __future__ import annotations

import json

import pytest

from tests.benchmarks.workloads import TRACES
from tests.support import write_trace

WORKERS = (
    "--worker", "name=a,cpu=8,memory=16000,gpu=1",
    "--worker", "name=b,cpu=8,memory=32000",
)  # fmt: skip


def test_a_workflow_file(handoff, on, folder):
    """Times, costs and order are those of the file; the scale shortens the times."""
    done = handoff("run", write_trace(folder), *on, "--scale", "0.1", "--output", "out.json")
    assert done.returncode == 0, done.stderr
    assert "small-chameleon-001: 2 of 2 functions done" in done.stderr
    attempts = json.loads((folder / "out.json").read_text())["attempts"]
    (first,), (then,) = attempts["first"], attempts["then_ID0007"]
    assert first["cost"] == {"cpu": 1.8}
    assert then["cost"] == {"cpu": 1.0, "memory": 1.5}
    assert first["stopped"] - first["started"] >= 0.25
    assert first["stopped"] <= then["started"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "broken.json: line 1 is not JSON"),
        ('{"schemaVersion": "1.4"}', "broken.json: WfFormat '1.4', not '1.5'"),
        ('{"schemaVersion": "1.5"}', "the field 'workflow' is missing"),
    ],
)
def test_a_file_that_is_no_workflow(handoff, folder, content, message):
    """Exit code 2 and one message."""
    (folder / "broken.json").write_text(content)
    done = handoff("run", "broken.json")
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_task_too_big_for_the_cluster(handoff, on, folder):
    """Exit code 3: that is what a replay is to find out."""
    done = handoff("run", write_trace(folder, first={"avgCPU": 6400.0}), *on)
    assert done.returncode == 3
    assert "function 'first' cannot be placed" in done.stderr


@pytest.mark.parametrize(
    "name",
    [
        "1000genome-chameleon-2ch-250k-001",
        "blast-chameleon-large-001",
        "bwa-chameleon-small-001",
        "epigenomics-chameleon-ilmn-1seq-100k-001",
        "montage-chameleon-2mass-01d-001",
    ],
)
def test_the_five_instances(handoff, name, folder):
    """Every task of a real workflow is replayed, on workers that hold its costs."""
    trace = TRACES / f"{name}.json"
    if not trace.exists():
        pytest.skip(f"there is no {trace}")
    tasks = json.loads(trace.read_text())["workflow"]["execution"]["tasks"]
    total = sum(task["runtimeInSeconds"] for task in tasks)
    # Two worker processes; about ten seconds of waiting in all.
    options = ("--scale", 10 / total, "--output", "out.json")
    done = handoff("run", trace, *WORKERS, *options)
    assert done.returncode == 0, done.stderr
    assert f"{name}: {len(tasks)} of {len(tasks)} functions done" in done.stderr
    document = json.loads((folder / "out.json").read_text())
    assert document["allocations"].keys() == {task["id"] for task in tasks}
    for task in tasks:
        (attempt,) = document["attempts"][task["id"]]
        asked = task["runtimeInSeconds"] * 10 / total
        assert attempt["stopped"] - attempt["started"] >= 0.99 * asked - 0.001
