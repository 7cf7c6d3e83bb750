from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import fsspec
import pytest

from handoff_dask.learning.uses import Uses
from handoff_dask.scheduler import learned_file
from handoff_dask.scheduler.learned_file import Files, LearnedFile

HOUR = 3600.0


def learned(*codes: str) -> Uses:
    """Return a measurement of each code, all of the same time."""
    uses = Uses()
    for code in codes:
        uses.record(code, started=len(code), seconds=1.0, peak=10.0)
    return uses


def codes(uses: Uses) -> str:
    return "".join(sorted(uses.as_dict()))


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield str(tmp_path / "folder" / "learned.json")
    else:
        yield "memory://learned/learned.json"
        fsspec.filesystem("memory").store.clear()


@pytest.fixture(autouse=True)
def _silent(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No warning is logged, unless a test asks for it."""
    yield
    assert caplog.messages == []


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = list(caplog.messages)
    caplog.clear()
    return messages


def test_what_was_saved_is_there_tomorrow(url: str) -> None:
    """A cluster starts with what the one before it learned; the main file is there after a save."""
    first = LearnedFile(url)
    assert codes(first.open()) == ""
    first.save(learned("a"))
    assert Files(url).read(Files(url).main)
    second = LearnedFile(url)
    uses = second.open()
    assert uses == learned("a")
    uses.merge(learned("b"))
    second.save(uses)
    assert LearnedFile(url).open() == learned("a", "b")


def test_each_scheduler_keeps_one_part(url: str) -> None:
    """A save replaces the part of the one before it; an hour later only the main file is left."""
    file = LearnedFile(url, clock=lambda: 10 * HOUR)
    for end in range(1, 4):
        file.save(learned(*"abc"[:end]))
    assert len(Files(url).names()) == 1
    LearnedFile(url, clock=lambda: 10.5 * HOUR).save(learned("d"))
    LearnedFile(url, clock=lambda: 11 * HOUR).open()
    assert len(Files(url).names()) == 2
    for hours, left in ((11.1, 1), (11.6, 0)):
        assert codes(LearnedFile(url, clock=lambda h=hours: h * HOUR).open()) == "abcd"
        assert len(Files(url).names()) == left
    assert codes(LearnedFile(url).open()) == "abcd"


def test_a_main_file_that_was_overwritten_is_repaired(url: str) -> None:
    """A slow scheduler that overwrites the main file with an old one loses nothing of others."""
    files = Files(url)
    LearnedFile(url).save(learned("a"))
    old = files.read(files.main)
    LearnedFile(url).save(learned("b"))
    files.write(files.main, old)
    assert codes(LearnedFile(url).open()) == "ab"
    LearnedFile(url).save(learned("c"))
    assert codes(LearnedFile(url, clock=lambda: time.time() + 2 * HOUR).open()) == "abc"
    assert len(files.names()) == 0


class Disk(Files):
    """Files in a dictionary; a thread stops before each operation that others can notice."""

    stored: dict[str, bytes]
    #: Called before such an operation.
    step: Callable[[], None]

    def __init__(self, url: str) -> None:
        self.main, self.folder = url, f"{url}.d"

    def names(self) -> list[str]:
        type(self).step()
        start = f"{self.folder}/"
        return sorted(p.removeprefix(start) for p in self.stored if p.startswith(start))

    def read(self, path: str) -> bytes:
        if path == self.main or path not in self.stored:  # parts never change
            type(self).step()
        return self.stored.get(path, b"")

    def write(self, path: str, content: bytes) -> None:
        type(self).step()
        self.stored[path] = content

    def remove(self, path: str) -> None:
        type(self).step()
        self.stored.pop(path, None)

    def rename(self, path: str, new: str) -> None:
        type(self).step()
        self.stored[new] = self.stored.pop(path)

    def sweep(self, before: float) -> None: ...


class Actor(threading.Thread):
    """Runs an action, one operation at each `go`."""

    current = threading.local()

    def __init__(self, action: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.action = action
        self.granted, self.stopped = threading.Semaphore(0), threading.Semaphore(0)
        self.over = False
        self.start()
        self.stopped.acquire()

    def run(self) -> None:
        self.current.actor = self
        try:
            self.action()
        finally:
            self.over = True
            self.stopped.release()

    @classmethod
    def pause(cls) -> None:
        actor = getattr(cls.current, "actor", None)
        if actor is not None:
            actor.stopped.release()
            actor.granted.acquire()

    def go(self) -> None:
        if not self.over:
            self.granted.release()
            self.stopped.acquire()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> type[Disk]:
    class Fresh(Disk):
        stored = {}  # noqa: RUF012
        step = staticmethod(Actor.pause)

    monkeypatch.setattr(learned_file, "Files", Fresh)
    return Fresh


def interleaved(first: Callable[[], Any], second: Callable[[], Any], order: set[int]) -> None:
    """Run two actions; the first one has the turns in `order`, until both are over."""
    actors = Actor(first), Actor(second)
    turns = 0
    while not (actors[0].over and actors[1].over):
        mine = actors[turns not in order]
        assert not mine.over, "as many turns as operations"
        mine.go()
        turns += 1
    assert not order - set(range(turns))


def orders(mine: int, others: int) -> Iterator[set[int]]:
    """Yield all ways to interleave so many operations."""
    return map(set, combinations(range(mine + others), mine))


def test_two_that_save_at_once_lose_nothing(disk: type[Disk]) -> None:
    """However two saves are interleaved, everything is read afterwards, and also an hour later."""
    for order in orders(4, 4):
        disk.stored.clear()
        interleaved(
            lambda: LearnedFile("learned", clock=lambda: 0).save(learned("a")),
            lambda: LearnedFile("learned", clock=lambda: 0).save(learned("b")),
            order,
        )
        assert codes(LearnedFile("learned", clock=lambda: HOUR / 2).open()) == "ab"
        LearnedFile("learned", clock=lambda: HOUR + 1).save(learned("c"))
        assert codes(LearnedFile("learned", clock=lambda: 2 * HOUR).open()) == "abc"
        assert codes(LearnedFile("learned", clock=lambda: 4 * HOUR).open()) == "abc"
        assert codes(LearnedFile("learned", clock=lambda: 4 * HOUR).open()) == "abc"


def test_later_saves_at_once_lose_nothing(disk: type[Disk]) -> None:
    """The same for two schedulers that have saved before, and remove what they replaced."""
    for order in orders(5, 5):
        disk.stored.clear()
        one = LearnedFile("learned", clock=lambda: 0)
        two = LearnedFile("learned", clock=lambda: 0)
        one.save(learned("a"))
        two.save(learned("b"))
        interleaved(
            lambda one=one: one.save(learned("a", "c")),  # type: ignore[misc]
            lambda two=two: two.save(learned("b", "d")),  # type: ignore[misc]
            order,
        )
        for hours in (0, 2, 4):
            assert codes(LearnedFile("learned", clock=lambda h=hours: h * HOUR).open()) == "abcd"


def test_a_save_and_an_opening_at_once_lose_nothing(disk: type[Disk]) -> None:
    """A scheduler that opens the file removes parts while another one saves."""
    LearnedFile("learned", clock=lambda: 0).save(learned("a"))
    LearnedFile("learned", clock=lambda: 0).save(learned("b"))
    before = dict(disk.stored)
    late = lambda: 2 * HOUR  # noqa: E731
    for order in orders(4, 4):
        disk.stored.clear()
        disk.stored.update(before)
        opened = []
        interleaved(
            lambda: LearnedFile("learned", clock=late).save(learned("c")),
            lambda o=opened: o.append(LearnedFile("learned", clock=late).open()),  # type: ignore[misc]
            order,
        )
        assert codes(opened[0]) in ("ab", "abc")
        for hours in (2, 4, 6):
            assert codes(LearnedFile("learned", clock=lambda h=hours: h * HOUR).open()) == "abc"


def test_a_killed_save_does_no_harm(disk: type[Disk], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever a scheduler is killed, what it wrote is complete, and others go on."""
    for steps in range(5):
        disk.stored.clear()
        file = LearnedFile("learned", clock=lambda: 0)
        file.save(learned("a"))
        LearnedFile("learned", clock=lambda: 0).save(learned("b"))
        left = iter(range(steps))

        def step(left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(disk, "step", step)
            file.save(learned("a", "c"))
        for hours in (0, 2, 4):
            clock = lambda h=hours: h * HOUR  # noqa: E731
            assert codes(LearnedFile("learned", clock=clock).open()) == ("abc" if steps else "ab")
            LearnedFile("learned", clock=clock).save(learned("b"))
        LearnedFile("learned", clock=lambda: 6 * HOUR).open()
        assert len(disk.stored) == 1, "nothing is left but the main file"


WRITER = """
import sys
from handoff_dask.learning.uses import Uses
from handoff_dask.scheduler.learned_file import LearnedFile
file = LearnedFile(sys.argv[1])
uses = file.open()
for i in range(20):
    uses.record(f"{sys.argv[2]}-{i}", started=i, seconds=1.0)
    file.save(uses)
"""


def test_processes_that_save_at_once_lose_nothing(tmp_path: Path) -> None:
    """Three schedulers on real files keep everything that each of them measured."""
    url = str(tmp_path / "learned.json")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, url, name], env=environment)
        for name in "abc"
    ]
    assert [process.wait() for process in processes] == [0, 0, 0]
    expected = {f"{name}-{i}" for name in "abc" for i in range(20)}
    assert LearnedFile(url).open().as_dict().keys() == expected
    assert len(Files(url).names()) == 3


def test_a_file_that_was_not_finished_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that is killed before the rename leaves the files as they were; its own goes."""
    url = str(tmp_path / "learned.json")
    LearnedFile(url).save(learned("a"))
    with monkeypatch.context() as patch:

        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            LearnedFile(url).save(learned("b"))
    folder = tmp_path / "learned.json.d"
    (left,) = folder.glob("*.tmp")
    assert codes(LearnedFile(url).open()) == "a" and left.exists(), "its writer may be at work"
    os.utime(left, (0, 0))
    assert codes(LearnedFile(url).open()) == "a" and not left.exists()


@pytest.mark.parametrize(
    "content",
    [b'{"format": "handoff-lea', b"\xff\xfe", b"[1, 2]", b'{"name": "package"}', b"null",
     b'{"format": "handoff-learned-1", "parts": {}, "codes": {"a": {}}}',
     b'{"format": "handoff-learned-1", "parts": {"a": "b"}, "codes": {}}'],
)  # fmt: skip
def test_what_is_no_file_of_ours_is_kept(
    url: str, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged or other file counts as none; the warning says what the save renames it to."""
    files = Files(url)
    files.write(files.main, content)
    file = LearnedFile(url)
    assert codes(file.open()) == ""
    assert files.read(files.main) == content
    file.save(learned("a"))
    (warning,) = warnings(caplog)
    assert codes(LearnedFile(url).open()) == "a"
    system, path = fsspec.core.url_to_fs(url)
    (aside,) = system.glob(f"{path}.damaged-*")
    assert files.read(aside) == content
    assert f"renamed to {aside}" in warning


def test_a_file_of_another_version_stays(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is not damaged: versions that share a file do not move it away from each other."""
    files = Files(url)
    content = b'{"format": "handoff-learned-99", "new": []}'
    files.write(files.main, content)
    file = LearnedFile(url)
    assert codes(file.open()) == ""
    file.save(learned("a"))
    assert files.read(files.main) == content
    assert ["handoff-learned-99" in text for text in warnings(caplog)] == [True, True]
    # It is merged by the next version that can.
    files.write(files.main, b"")
    assert codes(LearnedFile(url).open()) == "a"


def test_an_empty_file_is_used(url: str) -> None:
    """What `touch` or `mktemp` made is no other's file."""
    files = Files(url)
    files.write(files.main, b"")
    LearnedFile(url).save(learned("a"))
    assert codes(LearnedFile(url).open()) == "a"


def test_a_damaged_part_hides_no_other(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A part that cannot be read is left alone; one that is being written is not missed later."""
    LearnedFile(url).save(learned("a"))
    files = Files(url)
    files.write(f"{files.folder}/other.json", b"{")
    files.write(f"{files.folder}/unfinished.json", b"")
    file = LearnedFile(url)
    assert codes(file.open()) == "a"
    file.save(learned("b"))
    assert len(warnings(caplog)) == 1
    assert {"other.json", "unfinished.json"} <= set(files.names())
    assert (
        not {"other.json", "unfinished.json"} & json.loads(files.read(files.main))["parts"].keys()
    )
    files.write(f"{files.folder}/unfinished.json", files.read(files.main))
    files.remove(f"{files.folder}/other.json")
    assert codes(LearnedFile(url).open()) == "ab"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nope://a/b", "Protocol not known: nope"),
        ("nope://user:secret@host/b", "nope://host/b"),
        ("/proc/learned.json", "/proc/learned.json"),
    ],
)
def test_the_cluster_goes_on_without(
    url: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A URL that cannot be used is one warning for reading and one for writing, without secrets."""
    file = LearnedFile(url)
    for _ in range(3):
        assert codes(file.open()) == ""
        file.save(learned("a"))
    logged = warnings(caplog)
    assert 1 <= len(logged) <= 2 and any(words in text for text in logged)
    assert not any("secret" in text for text in logged)


def test_a_folder_is_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Saves that cannot write the main file do not pile up beside it."""
    file = LearnedFile(str(tmp_path / "folder"))
    (tmp_path / "folder").mkdir()
    for _ in range(3):
        file.save(learned("a"))
    assert len(warnings(caplog)) == 1
    assert len(list((tmp_path / "folder.d").iterdir())) == 1


def test_folders_are_made_where_they_have_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """On file systems with folders, such as SFTP, the one beside the main file is made."""
    system = fsspec.filesystem("memory")
    write = system.pipe_file

    def strict(path: str, content: bytes) -> None:
        if path.rpartition("/")[0] not in system.pseudo_dirs:
            raise FileNotFoundError(path)
        write(path, content)

    system.makedirs("/learned")
    monkeypatch.setattr(system, "pipe_file", strict)
    LearnedFile("memory://learned/learned.json").save(learned("a"))
    assert codes(LearnedFile("memory://learned/learned.json").open()) == "a"
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_a_missing_driver_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning says what to install."""

    def missing(url: str) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    LearnedFile("s3://bucket/learned.json").open()
    (text,) = warnings(caplog)
    assert "s3://bucket/learned.json" in text and "Install s3fs to access S3" in text


def test_files_that_may_not_be_written(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What may only be read is used, with one warning for all saves."""
    LearnedFile(url, clock=lambda: 0).save(learned("a"))

    def denied(*_: Any) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Files, "write", denied)
    monkeypatch.setattr(Files, "remove", denied)
    file = LearnedFile(url)
    for _ in range(3):
        assert codes(file.open()) == "a"
        file.save(learned("a", "b"))
    assert len(warnings(caplog)) == 2


def test_warnings_are_the_scheduler_s(caplog: pytest.LogCaptureFixture) -> None:
    """They are logged as warnings under the module's name."""
    LearnedFile("nope://x").open()
    assert caplog.record_tuples[0][:2] == ("handoff_dask.scheduler.learned_file", logging.WARNING)
    caplog.clear()
