"""Everything is killed at a random moment, and the same command goes on where it was.

Where that is follows from a seed, which names the test (CHAOS_SEED=7 pytest tests/chaos), and from
the machine.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("campaign.py")
#: Kills in a test; then it is left alone.
KILLS = 3
#: Seconds that a start of it takes, at most, and after which it is killed at the latest.
DEADLINE, LATEST = 60, 3.0


def lines(path):
    """Return the lines of a log, in order."""
    return path.read_text().split() if path.exists() else []


def test_killed(seed, tmp_path):
    """Every result is right, and nothing runs again that was reported done before a kill."""
    rng = random.Random(seed)
    command = [sys.executable, "-m", "tests.chaos.campaign", str(seed), str(tmp_path)]
    again = []
    for _ in range(KILLS):
        done, begun = set(lines(tmp_path / "done")), len(lines(tmp_path / "started"))
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
        try:
            process.communicate(timeout=rng.uniform(0.5, LATEST))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        again += done.intersection(lines(tmp_path / "started")[begun:])
    done, begun = set(lines(tmp_path / "done")), len(lines(tmp_path / "started"))
    ended = subprocess.run(command, capture_output=True, timeout=DEADLINE, text=True)
    again += done.intersection(lines(tmp_path / "started")[begun:])
    assert ended.returncode == 0, ended.stderr
    assert not again
    assert set(lines(tmp_path / "started")) == set(map(str, range(40)))


def test_the_logs_are_needed(tmp_path):
    """Without its store, it starts everything again: the logs would show it."""
    command = [sys.executable, "-m", "tests.chaos.campaign", "1", str(tmp_path)]
    for _ in range(2):
        subprocess.run(command, check=True, timeout=DEADLINE)
        assert len(lines(tmp_path / "done")) >= 40
        for entry in sorted((tmp_path / "store").rglob("*"), reverse=True):
            entry.rmdir() if entry.is_dir() else entry.unlink()
    assert sorted(map(int, lines(tmp_path / "started"))) == sorted([*range(40), *range(40)])
