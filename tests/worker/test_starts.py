"""The record of starts."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile

import pytest

from handoff_dask.worker.starts import Starts, StartsFile


def numbers(starts):
    """Return the placements among starts."""
    return {start.number for start in starts}


@pytest.fixture(params=["without a name", "with a name"])
def file(request, monkeypatch, tmp_path):
    """A file of either kind, read without clearing it."""
    if request.param == "with a name":
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        monkeypatch.delattr(os, "memfd_create", raising=False)
    elif not hasattr(os, "memfd_create"):
        pytest.skip("every file has a name here")
    file = StartsFile()
    yield file
    file.close()
    assert list(tmp_path.iterdir()) == []


def test_another_process_reads_what_a_killed_one_left(file):
    """A recorded start survives, however the process ends right afterwards."""
    script = f"""
import os, signal
from handoff_dask.worker.starts import Starts
starts = Starts(4, {file.address!r}, "me")
for number in (7, 0, 12):
    starts.begin(number)
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    process.wait()
    left = file.read()
    assert (left.owner, left.pid) == ("me", process.pid)
    assert [start.number for start in left.started] == [7, 0, 12]


def test_places_are_taken_in_turn(file):
    """Running starts are kept, and the latest of those that ended."""
    starts = Starts(4, file.address)
    running = starts.begin(100)
    for number in range(50):
        starts.end(starts.begin(number))
    assert numbers(file.read().started) == {100, 47, 48, 49}
    starts.end(running)


def test_more_at_work_than_places(file):
    """If starts found no room, the record of a dead process is incomplete; a live one knows all."""
    starts = Starts(2, file.address)
    for number in range(3):
        starts.begin(number)
    assert file.read().started is None
    assert numbers(starts.seal()) == {0, 1, 2}


def test_withdrawn_placements_never_start():
    """A withdrawn placement never starts; if it already has, the start is returned."""
    starts = Starts(4)
    starts.begin(1)
    assert numbers(starts.withdraw([1, 2])) == {1}
    assert starts.begin(2) is None
    assert starts.begin(3) is not None


def test_the_functions_of_a_bundle_use_one_place(file):
    """A bundle of many functions leaves the other starts; its latest start says where it is.

    Once a placement has ended, the position says that, and up to where its functions ran.
    """
    starts = Starts(4, file.address)
    other, ended = starts.begin(100), starts.begin(101)
    starts.end(ended)
    for position in range(1000):
        place = starts.begin(7, position)
    for left in (file.read().started, starts.withdraw([100, 101, 7])):
        assert [(start.number, start.position) for start in left] == [
            (100, -1),
            (101, -2),
            (7, 999),
        ]
    starts.end(place, 1000)
    for left in (file.read().started, starts.withdraw([7])):
        assert left[-1][:2] == (7, -2 - 1000)
    starts.end(other)


def test_the_attempt_is_known(file):
    """A function that is retried in its bundle leaves the number of its latest attempt."""
    starts = Starts(4, file.address)
    for attempt in (1, 2, 3):
        starts.begin(7, 5, attempt)
    for left in (file.read().started, starts.withdraw([7])):
        assert [(start.position, start.attempt) for start in left] == [(5, 3)]


def test_what_failed_in_a_bundle_is_known(file):
    """How many attempts failed, and the latest of these; the next bundle at the place has none."""
    starts = Starts(1, file.address)
    for position in range(20):
        place = starts.begin(7, position)
        starts.failed(7, position, final=position % 2 == 1)
    starts.begin(7, 20)
    latest = tuple(-1 - p if p % 2 else p for p in range(4, 20))
    for left in (file.read().started, starts.withdraw([7])):
        assert [(start.failures, start.failed) for start in left] == [(20, latest)]
    starts.end(place, 21)
    assert starts.begin(8, 0) == place
    for left in (file.read().started, starts.withdraw([8])):
        assert [(start.failures, start.failed) for start in left] == [(0, ())]


def test_a_bundle_without_a_place():
    """A bundle that finds no place counts as one start that the file lacks."""
    starts = Starts(1)
    starts.begin(1)
    assert [starts.begin(2, position) for position in range(3)] == [-1, -1, -1]
    assert [(start.number, start.position) for start in starts.seal()] == [(1, -1), (2, 2)]


def test_a_withdrawn_member_is_skipped():
    """A withdrawn function of a bundle never starts; the others do until all are withdrawn."""
    starts = Starts(4)
    starts.withdraw_member(7, 1)
    assert [starts.begin(7, position) is None for position in range(3)] == [False, True, False]
    assert not starts.refuses(7)
    starts.withdraw([7])
    assert starts.refuses(7)
    assert starts.begin(7, 3) is None


def test_sealed():
    """A sealed record returns what was started, and allows no more starts."""
    starts = Starts(4)
    starts.begin(1)
    assert numbers(starts.seal()) == {1}
    assert starts.begin(2) is None


def test_random_life(file):
    """File and memory agree after any sequence of starts and ends."""
    rng = random.Random(1)
    starts, running, known = Starts(16, file.address), [], []
    for number in range(1000):
        if len(running) > 4 or (running and rng.random() < 0.5):
            starts.end(running.pop(rng.randrange(len(running))))
        running.append(starts.begin(number))
        known.append(number)
        # Places are taken in turn: the last eleven are always among sixteen with five at work.
        assert set(known[-11:]) <= numbers(file.read().started)
        assert numbers(starts.withdraw(known[-11:])) == set(known[-11:])


def test_one_process_after_another(file):
    """Each process finds it empty, and the nanny reads what the last one left."""
    assert file.read() is None
    for places in (4, 2, 8):
        starts = Starts(places, file.address, f"worker {places}")
        assert file.read().started == []
        starts.begin(places)
        left = file.read()
        assert (left.owner, numbers(left.started)) == (f"worker {places}", {places})
        del starts
        file.clear()
        assert file.read() is None


def test_an_address_of_old(file):
    """If the file is gone, a process gets an error."""
    gone = StartsFile()
    address = gone.address
    assert StartsFile.exists(file.address) and StartsFile.exists(address)
    gone.close()
    assert not StartsFile.exists(address)
    with pytest.raises(OSError):
        Starts(4, address)


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="every file has a name here")
def test_an_address_that_is_somebody_elses_by_now(tmp_path):
    """A file that reuses the descriptor of a closed one is not touched."""
    gone = StartsFile()
    address, number = gone.address, gone._file
    (tmp_path / "theirs").write_text("precious")
    with (tmp_path / "theirs").open("r+") as theirs:
        os.dup2(theirs.fileno(), number)
        assert not StartsFile.exists(address)
        with pytest.raises(ValueError, match="another file"):
            Starts(4, address)
        gone.close()
    assert (tmp_path / "theirs").read_text() == "precious"


def test_files_of_processes_that_are_no_more(monkeypatch, tmp_path):
    """If files need names, those of a killed nanny are removed when the next one starts."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delattr(os, "memfd_create", raising=False)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    stale = tmp_path / f"handoff-starts-{process.pid}-abc"
    others = [tmp_path / f"handoff-starts-{os.getpid()}-abc", tmp_path / "handoff-starts-x"]
    for path in (stale, *others):
        path.touch()
    file = StartsFile()
    assert not stale.exists() and all(path.exists() for path in others)
    assert len(list(tmp_path.iterdir())) == 3
    file.close()
    assert set(tmp_path.iterdir()) == set(others)
