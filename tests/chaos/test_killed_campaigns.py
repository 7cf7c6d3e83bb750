"""Everything is killed at a random moment, and the same command goes on where it was.

Where that is follows from a seed, which names the test (CHAOS_SEED=7 pytest tests/chaos), and from
the machine.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = Path(__file__).with_name("campaign.py")
#: Kills in a test; then it is left alone.
KILLS = 3
#: Seconds that a start of it takes, at most.
DEADLINE = 60
#: Seconds, at most, between a start of a function and the kill.
LATEST = 0.05


def lines(path):
    """Return the lines of a log, in order."""
    return path.read_text().split() if path.exists() else []


def killed(process, log, starts, delay):
    """Kill a process and those it started once its log has some lines; False if it has ended."""
    until = time.monotonic() + DEADLINE
    while len(lines(log)) < starts and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    time.sleep(delay)
    midway = process.poll() is None
    with contextlib.suppress(ProcessLookupError):  # all of them have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return midway


def test_killed(seed, tmp_path):
    """Every result is right, and nothing runs again that was reported done before a kill."""
    rng = random.Random(seed)
    command = [sys.executable, "-m", "tests.chaos.campaign", str(seed), str(tmp_path)]
    log, again, midway = tmp_path / "started", [], 0
    for kills in range(KILLS + 1):
        done, begun = set(lines(tmp_path / "done")), len(lines(log))
        process = subprocess.Popen(
            command, start_new_session=True, stderr=subprocess.PIPE, text=True
        )
        if kills < KILLS:
            starts = begun + rng.randint(1, 40 // KILLS)
            midway += killed(process, log, starts, rng.uniform(0, LATEST))
        else:
            _, problem = process.communicate(timeout=DEADLINE)
        again += done.intersection(lines(log)[begun:])
    assert process.returncode == 0, problem
    assert not again
    assert set(lines(log)) == set(map(str, range(40)))
    assert midway


def test_the_logs_are_needed(tmp_path):
    """Without its store, it starts everything again: the logs would show it."""
    command = [sys.executable, "-m", "tests.chaos.campaign", "1", str(tmp_path)]
    for _ in range(2):
        subprocess.run(command, check=True, timeout=DEADLINE)
        assert len(lines(tmp_path / "done")) >= 40
        for entry in sorted((tmp_path / "store").rglob("*"), reverse=True):
            entry.rmdir() if entry.is_dir() else entry.unlink()
    assert sorted(map(int, lines(tmp_path / "started"))) == sorted([*range(40), *range(40)])
