"""The record of starts: what it keeps, and for whom."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from handoff_dask.starts import Starts, read


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "starts")


def test_another_process_reads_what_a_killed_one_left(path):
    """A start that was noted is there, whatever ended the process right after it."""
    script = f"""
import os, signal
from handoff_dask.starts import Starts
starts = Starts(4, {path!r}, "me")
for number in (7, 0, 12):
    starts.begin(number)
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    process.wait()
    left = read(path)
    assert (left.owner, left.pid, left.count) == ("me", process.pid, 3)
    assert set(left.started) == {7, 0, 12}


def test_places_are_taken_in_turn(path):
    """What still runs is kept; of what ended, what ended last is."""
    starts = Starts(4, path)
    running = starts.begin(100)
    for number in range(50):
        starts.end(starts.begin(number))
    assert set(read(path).started) == {100, 47, 48, 49}
    starts.end(running)


def test_more_at_work_than_places(path):
    """Without room nothing is claimed to be known of a dead process; the living one knows."""
    starts = Starts(2, path)
    for number in range(3):
        starts.begin(number)
    assert read(path).started is None
    assert set(starts.seal()) == {0, 1, 2}


def test_withdrawn_placements_never_start():
    """What was not started when it was taken back is not started; what was is told."""
    starts = Starts(4)
    starts.begin(1)
    assert set(starts.withdraw([1, 2])) == {1}
    assert starts.begin(2) is None
    assert starts.begin(3) is not None


def test_sealed():
    """A sealed record says what was started, and nothing starts any more."""
    starts = Starts(4)
    starts.begin(1)
    assert set(starts.seal()) == {1}
    assert starts.begin(2) is None


def test_random_life(path):
    """File and memory agree after any sequence of starts and ends."""
    rng = random.Random(1)
    starts, running, known = Starts(16, path), [], []
    for number in range(1000):
        if len(running) > 4 or (running and rng.random() < 0.5):
            starts.end(running.pop(rng.randrange(len(running))))
        running.append(starts.begin(number))
        known.append(number)
        # Places are taken in turn: the last eleven are always among sixteen with five at work.
        assert set(known[-11:]) <= set(read(path).started)
        assert starts.withdraw(known[-11:]).keys() == set(known[-11:])


def test_files(path):
    """The file goes with the record; one that holds nothing is an error."""
    starts = Starts(4, path)
    starts.close()
    assert not os.path.exists(path)
    with pytest.raises(OSError):
        read(path)
    open(path, "w").close()
    with pytest.raises(ValueError, match="no starts"):
        read(path)
