"""Modules that lie beside a script, on a cluster elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.separate import Processes

PATHS = {"PYTHONPATH": str(Path(__file__).parents[2])}

SCRIPT = """
import sys

import cloudpickle
from distributed import Client

import steps
from handoff_dask import DAG, Function, execute

if __name__ == "__main__":
    with Client(scheduler_file=sys.argv[1]) as client:
        if sys.argv[2] == "file":
            client.upload_file("steps.py")
        elif sys.argv[2] == "value":
            cloudpickle.register_pickle_by_value(steps)
        dag = DAG().add_function(Function("a", [], steps.answer, max_retries=0))
        print(execute(dag).results)
"""


@pytest.fixture
def cluster(tmp_path):
    """The file of a scheduler with a worker, in a folder of their own."""
    with Processes(sys.executable, tmp_path, environ=PATHS) as processes:
        processes.worker("alice", "--nthreads", "1")
        yield tmp_path / "scheduler.json"


def test_the_ways_to_send_a_module(cluster, tmp_path_factory):
    """By value or as a file it arrives; by itself it does not, and the error says so."""
    folder = tmp_path_factory.mktemp("script")
    (folder / "steps.py").write_text("BASE = 40\n\ndef answer():\n    return BASE + 2\n")
    (folder / "script.py").write_text(SCRIPT)

    def run(way):
        command = [sys.executable, "script.py", str(cluster), way]
        return subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, **PATHS},
            capture_output=True,
            text=True,
            timeout=100,
        )

    assert "No module named 'steps'" in run("neither").stderr
    for way in ("value", "file"):
        done = run(way)
        assert done.stdout == "{'a': 42}\n", done.stderr
