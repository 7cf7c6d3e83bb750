"""The SLURM script of the page "Long campaigns", run by bash with a `scontrol` that takes notes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "long_campaigns.md"
#: Seconds after which a test fails.
DEADLINE = 60

CAMPAIGN = """
import os
import time
from pathlib import Path

from handoff_dask import DAG


def noted(folder, i):
    with open(f"{folder}/started", "a") as log:
        log.write(f"{i}\\n")
    while i >= 4 and not os.path.exists(f"{folder}/second walltime"):
        time.sleep(0.01)
    if i == 99:
        raise ValueError("no such thing")
    return i


def of(*numbers):
    dag = DAG("campaign")
    values = dag.map(noted, [os.environ["SCRATCH"]] * len(numbers), numbers, cost={"cpu": 4})
    dag.add(sum, values, id="total", stored=False)
    return dag


dag = of(*range(8))
failing = of(99)
"""


@pytest.fixture
def script(tmp_path):
    """Return a function that starts the script of the page."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    (text,) = [block for block in blocks if "#SBATCH" in block]
    (tmp_path / "campaign.py").write_text(CAMPAIGN)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, line in {
        "dask": f'exec "{sys.executable}" -m dask "$@"',
        "scontrol": f'echo "$@" >> "{tmp_path}/scontrol"',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "SCRATCH": str(tmp_path),
        "SLURM_JOB_ID": "4711",
    }
    started = []

    def start(name="dag"):
        process = subprocess.Popen(
            ["bash", "-c", text.replace("campaign.py:dag", f"campaign.py:{name}")],
            cwd=tmp_path,
            env=env,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def lines(path):
    """Return the lines of a log."""
    return path.read_text().splitlines() if path.exists() else []


def test_a_campaign_over_two_walltimes(script, tmp_path):
    """It is queued again while work is left; nothing that was done is done again."""
    job = script()
    deadline = time.monotonic() + DEADLINE
    while len([p for p in tmp_path.glob("results/*/*.noted-*/*") if len(p.name) == 40]) < 4:
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    job.terminate()  # as SLURM does it to the script alone
    _, errors = job.communicate(timeout=DEADLINE)
    assert job.returncode == 0, errors  # that of scontrol
    assert "run the same command again" in errors
    assert lines(tmp_path / "scontrol") == ["requeue 4711"]
    begun = lines(tmp_path / "started")

    (tmp_path / "second walltime").touch()
    job = script()
    _, errors = job.communicate(timeout=DEADLINE)
    assert job.returncode == 0, errors
    assert lines(tmp_path / "scontrol") == ["requeue 4711"]
    assert sorted(lines(tmp_path / "started")[len(begun) :]) == ["4", "5", "6", "7"]
    assert '"total": 28' in (tmp_path / "result.json").read_text()


def test_a_campaign_that_fails(script, tmp_path):
    """Only work that is left is queued again; any other exit code is that of the job."""
    (tmp_path / "second walltime").touch()
    job = script("failing")
    _, errors = job.communicate(timeout=DEADLINE)
    assert job.returncode == 1, errors
    assert "no such thing" in errors
    assert lines(tmp_path / "scontrol") == []
