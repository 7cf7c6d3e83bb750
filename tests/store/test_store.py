"""The store: what is looked for, read and written, by one process or many, whatever goes wrong."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import textwrap
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handoff_dask.errors import StoredResultMissing, StoreError
from handoff_dask.store import backends
from handoff_dask.store.entries import Location, Manifest
from handoff_dask.store.opened import OpenStore, opened
from handoff_dask.store.result_store import Store
from tests.store.conftest import MADE, location
from tests.store.putget import PutGet

SMALL, LARGE = {"a": [1, 2]}, np.arange(1_000_000)
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("warned")


def files(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(path for path in folder.rglob(pattern) if path.is_file())


def missing(store: OpenStore, where: Location) -> str:
    """Return why a result counts as missing."""
    assert store.look([where]) == {}
    with pytest.raises(StoredResultMissing) as caught:
        store.read(where)
    assert caught.value.key == where.key
    return caught.value.problem


# What is said about a store


def test_a_store_is_a_value() -> None:
    """It is equal to another of the same arguments, and survives pickling; it opens nothing."""
    options = {"endpoint": ["x"]}
    store = Store("memory://a/b", "minor", True, options, "secret")
    same = Store("memory://a/b", "minor", True, dict(options), b"secret")
    assert store == same == pickle.loads(pickle.dumps(store))
    assert hash(store) == hash(same)
    assert opened(store) is opened(same)
    for other in (
        Store("memory://a/c", "minor", True, options, "secret"),
        Store("memory://a/b", "exact", True, options, "secret"),
        Store("memory://a/b", "minor", False, options, "secret"),
        Store("memory://a/b", "minor", True, {}, "secret"),
        Store("memory://a/b", "minor", True, options, "other"),
    ):
        assert store != other
    assert store != "memory://a/b"


def test_secrets_are_not_shown() -> None:
    """Neither a key nor a password is part of what is printed."""
    store = Store("memory://me:password@host/a", hmac_key="key", storage_options={"secret": "s"})
    assert repr(store) == "Store('memory://host/a')"
    assert store.shown_url == "memory://host/a"
    assert repr(Store("memory://a", "minor", True)) == (
        "Store('memory://a', versions='minor', required=True)"
    )


def test_paths_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Workers have other current folders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    assert Store("results").url == str(tmp_path / "results")
    assert Store(Path("a/../results")).url == str(tmp_path / "results")
    assert Store("~/results").url == "/home/ada/results"
    assert Store("file:///scratch/x").url == Store("/scratch/x/").url == "/scratch/x"
    assert Store("memory://x").url == "memory://x"
    assert Store("simplecache::memory://x").url == "simplecache::memory://x"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"url": ""}, "must be text or a path, not ''"),
        ({"url": None}, "must be text or a path, not None"),
        ({"url": 3}, "must be text or a path, not 3"),
        ({"url": "nosuch://me:pw@x"}, "no driver for the store 'nosuch://x': .* nosuch"),
        ({"versions": "major"}, "one of 'exact', 'minor', 'ignore', not 'major'"),
        ({"required": "yes"}, "required must be True or False, not 'yes'"),
        ({"storage_options": 3}, "storage_options must be a mapping, not 3"),
        ({"hmac_key": ""}, "hmac_key must be text or bytes, and not empty"),
        ({"hmac_key": 3}, "hmac_key must be text or bytes, and not empty"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], problem: str) -> None:
    """Each is named at once."""
    with pytest.raises(ValueError, match=problem):
        Store(**{"url": "memory://x", **arguments})


def test_a_driver_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says which package to install, and shows no password."""
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(StoreError, match=r"s3://bucket/x: its driver is not .* s3fs") as caught:
        Store("s3://me:password@bucket/x")
    assert caught.value.store == "s3://bucket/x"


# What runs do


@pytest.mark.parametrize("key", [None, "secret"], ids=["unsigned", "signed"])
def test_what_was_written_is_there(url: str, key: str | None) -> None:
    """Small entries are read when they are looked for, large ones when they are needed."""
    store = OpenStore(Store(url, hmac_key=key))
    small, large, gone = location("small"), location("large"), location("gone", "other.code")
    assert store.look([small, large, gone]) == {}
    sizes = {w.key: store.write(w, v, MADE) for w, v in ((small, SMALL), (large, LARGE))}
    there = OpenStore(Store(url, hmac_key=key)).look([small, large, gone])
    assert set(there) == {small.key, large.key}
    assert {key: result.size for key, result in there.items()} == sizes
    assert all(result.made == MADE for result in there.values())
    assert there[small.key].content is not None and there[large.key].content is None
    assert store.read(small) == SMALL
    assert (store.read(large) == LARGE).all()
    assert (store.value(there[large.key]) == LARGE).all()
    assert store.value(there[small.key]) == store.value(there[small.key].without_content()) == SMALL
    assert store.value(there[small.key]) is not store.value(there[small.key])
    assert missing(store, gone) == "it is gone"
    assert store.manifest(small) == Manifest({"f": "1"}, {}, {})
    with pytest.raises(StoredResultMissing, match="it is gone"):
        store.manifest(gone)


def test_large_results_are_put_from_a_file(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """What is too large to be held in memory twice arrives the same."""
    monkeypatch.setattr(backends, "_LARGEST_IN_MEMORY", 1000)
    store = OpenStore(Store(url))
    store.write(location(1), LARGE, MADE)
    assert (store.read(location(1)) == LARGE).all()


def test_a_large_result_is_in_memory_once(folder: Path) -> None:
    """Writing needs no second copy, and reading only the one that it returns."""
    store = OpenStore(Store(folder))
    array = np.random.default_rng(0).random(12_000_000)
    store.write(location("imports"), LARGE, MADE)
    tracemalloc.start()
    try:
        store.write(location(1), array, MADE)
        assert tracemalloc.get_traced_memory()[1] < 0.2 * array.nbytes
        tracemalloc.reset_peak()
        back = store.read(location(1))
        assert tracemalloc.get_traced_memory()[1] < 1.2 * array.nbytes
        tracemalloc.reset_peak()
        assert [entry.problem for entry in store.verify()] == [None, None]
        assert tracemalloc.get_traced_memory()[1] < 1.6 * array.nbytes  # `back` included
    finally:
        tracemalloc.stop()
    assert (back == array).all()


class Elsewhere:
    """Can only be unpickled where its hardware is."""

    def __reduce__(self) -> Any:
        return unpickled_here, ()


def unpickled_here() -> None:
    raise RuntimeError("no device")


def test_nothing_is_unpickled_to_look(folder: Path, warned: list[str]) -> None:
    """A client finds what only its workers can use."""
    store = OpenStore(Store(folder))
    store.write(location(1), Elsewhere(), MADE)
    there = store.look([location(1)])
    assert set(there) == {location(1).key} and not warned
    with pytest.raises(StoredResultMissing, match="cannot be unpickled: RuntimeError: no device"):
        store.value(there[location(1).key])
    assert "no device" in warned.pop()


def test_a_head_that_is_large(url: str) -> None:
    """A name made from very many parts is no obstacle."""
    store = OpenStore(Store(url))
    where = location(1)._replace(manifest=b"[%s,{},{}]" % (b'{"f":"%s"}' % (b"x" * 100_000)))
    store.write(where, SMALL, MADE)
    there = store.look([where])[where.key]
    assert there.content is None and store.value(there) == SMALL
    assert len(store.manifest(where).code["f"]) == 100_000


def test_a_result_written_again_replaces_the_other(url: str) -> None:
    """There is one entry for each result."""
    store = OpenStore(Store(url))
    for value in (1, 2):
        store.write(location("a"), value, MADE)
    assert store.read(location("a")) == 2
    assert len(list(store.entries())) == 1


@pytest.mark.parametrize(
    "label", ["a/../../b", ".hidden", "x" * 1000, "modül.größe", "__main__.<lambda>", "", "a\0b\n"]
)
def test_any_label_makes_a_folder(folder: Path, label: str) -> None:
    """File names are short, plain, and never lead out of the store; the label is kept."""
    store = OpenStore(Store(folder))
    store.write(location(1, label), SMALL, MADE)
    assert store.read(location(1, label)) == SMALL
    [entry] = store.entries()
    assert (entry.label, entry.made) == (label, MADE)
    [path] = files(folder)
    assert path.parent.parent == folder / "handoff-1"
    assert path.parent.name.isascii() and len(path.parent.name) <= 255


def test_labels_that_look_alike_have_folders_of_their_own(folder: Path) -> None:
    """What becomes the same text in a file name is told apart."""
    store = OpenStore(Store(folder))
    for number, label in enumerate(("a/b", "a_b", "a\\b")):
        store.write(location(number, label), number, MADE)
    assert len({path.parent for path in files(folder)}) == 3


def test_clocks_do_not_matter(folder: Path, url: str) -> None:
    """A result from the future is as good as any; only its age is odd."""
    store = OpenStore(Store(url))
    future = MADE._replace(started=time.time() + 1e6, stopped=time.time() + 1e6 + 1)
    store.write(location(1), SMALL, future)
    for path in files(folder):
        os.utime(path, (0, 0))
    assert store.value(store.look([location(1)])[location(1).key]) == SMALL
    [entry] = store.entries()
    assert entry.age < -9e5
    assert list(store.remove(older_than=0)) == []


def test_runs_are_recorded(url: str) -> None:
    """The last run of a DAG says under which names its results are stored; old ones go."""
    store = OpenStore(Store(url))
    assert store.last_run("nightly") == {}
    for number in range(8):
        store.record_run("nightly", {"'f'": location(number)})
    store.record_run("other", {})
    assert store.last_run("nightly") == {"'f'": location(7)._replace(manifest=None)}
    assert store.last_run("other") == {}
    assert len(store._backend.list(f"{store._backend.root}/handoff-1/runs")) == 6
    assert list(store.entries()) == []


def test_a_clock_that_is_ahead(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine with a wrong clock has recorded is not for ever the last run."""
    store = OpenStore(Store(url))
    with monkeypatch.context() as ahead:
        ahead.setattr(time, "time", lambda: 4e9)
        for number in range(6):
            store.record_run("nightly", {"'f'": location(number)})
    store.record_run("nightly", {"'f'": location(7)})
    assert store.last_run("nightly")["'f'"].key == location(7).key


def test_a_damaged_record_of_a_run(folder: Path) -> None:
    """The one before it counts."""
    store = OpenStore(Store(folder))
    for number in range(2):
        store.record_run("nightly", {"'f'": location(number)})
    files(folder)[-1].write_bytes(b'{"cut')
    assert store.last_run("nightly")["'f'"].key == location(0).key


# What goes wrong


@pytest.mark.parametrize("value", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda content: b"", "it is empty"),
        (lambda content: content[:-1], "it is too short"),
        (lambda content: content[:20], "it is too short"),
        (lambda content: content + b"x", "it is too long"),
        (lambda content: b"PK" + content[2:], "it is not an entry of a store"),
        (lambda content: content[:70] + b"\0" + content[71:], "its head is damaged"),
    ],
)
def test_damage(folder: Path, warned: list[str], value: Any, damage: Any, problem: str) -> None:
    """It counts as missing, with one warning for the store, until the result is written again."""
    store = OpenStore(Store(folder))
    for name in "ab":
        store.write(location(name), value, MADE)
    for path in files(folder):
        path.write_bytes(damage(path.read_bytes()))
    assert missing(store, location("a")) == problem
    assert missing(store, location("b")) == problem
    [warning] = warned
    assert str(folder) in warning and problem in warning and "handoff store verify" in warning
    warned.clear()
    store.write(location("a"), value, MADE)
    assert np.array_equal(store.read(location("a")), value)


def test_damage_inside_of_a_large_result(folder: Path, warned: list[str]) -> None:
    """It is seen when the result is read."""
    store = OpenStore(Store(folder))
    store.write(location(1), LARGE, MADE)
    [path] = files(folder)
    with open(path, "r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"!")
    assert location(1).key in store.look([location(1)])
    with pytest.raises(StoredResultMissing, match=r"a block is damaged"):
        store.read(location(1))
    assert warned.pop().endswith("lists all such entries.")


def test_an_entry_under_another_name(folder: Path, warned: list[str]) -> None:
    """A renamed file is not taken for another result, even with a valid signature."""
    store = OpenStore(Store(folder, hmac_key="secret"))
    store.write(location(1), SMALL, MADE)
    [path] = files(folder)
    path.rename(path.with_name(location(2).key))
    assert missing(store, location(2)) == "it is the entry of another result"
    assert "it is the entry of another result" in warned.pop()


@pytest.mark.parametrize("other", [None, "another"])
def test_results_without_the_right_key(url: str, warned: list[str], other: str | None) -> None:
    """They are missing for whoever has a key."""
    OpenStore(Store(url, hmac_key=other)).write(location(1), SMALL, MADE)
    assert "signed" in missing(OpenStore(Store(url, hmac_key="secret")), location(1))
    assert "signed" in warned.pop()


def test_a_stale_handle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What NFS says of a file that was removed on another machine means that it is gone."""

    def stale(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    store = OpenStore(Store(folder, required=True))
    store.write(location(1), SMALL, MADE)
    monkeypatch.setattr(backends, "open", stale, raising=False)
    assert missing(store, location(1)) == "it is gone"


def test_a_place_where_nothing_can_be_made(warned: list[str]) -> None:
    """The warning passes on what the file system says; nothing was there that could be gone."""
    PutGet.problem = FileNotFoundError("no such bucket")
    try:
        OpenStore(Store("putget://bucket")).write(location(1), SMALL, MADE)
    finally:
        PutGet.clear()
    assert [w.partition("without it: ")[2] for w in warned] == ["FileNotFoundError: no such bucket"]
    warned.clear()


@pytest.mark.parametrize("required", [False, True])
def test_no_permission(warned: list[str], required: bool) -> None:
    """A run goes on with one warning for reading and one for writing, unless it needs the store."""
    PutGet.problem = PermissionError("no access to the bucket")
    store = OpenStore(Store("putget://bucket", required=required))
    try:
        if required:
            for refused in (
                lambda: store.look([location(1)]),
                lambda: store.write(location(1), SMALL, MADE),
                lambda: store.record_run("nightly", {}),
            ):
                with pytest.raises(StoreError, match=r"putget://bucket: cannot .* no access"):
                    refused()
        else:
            for name in "ab":
                assert store.look([location(name)]) == {}
                assert store.write(location(name), SMALL, MADE) is None
                store.record_run("nightly", {})
                assert store.last_run("nightly") == {}
            assert [w.partition(" putget")[0] for w in warned] == [
                "Handoff cannot read the store",
                "Handoff cannot write to the store",
            ]
            warned.clear()
        for action in (store.entries, store.verify, lambda: store.remove(0)):
            with pytest.raises(StoreError, match="cannot read it: PermissionError: no access"):
                list(action())
        with pytest.raises(StoredResultMissing, match="no access"):
            store.read(location(1))
        assert "no access" in warned.pop()
    finally:
        PutGet.clear()


def test_a_driver_that_raises_at_once(monkeypatch: pytest.MonkeyPatch, warned: list[str]) -> None:
    """It may do so for all files together, as without a network: nothing is found."""

    def raising(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(PutGet, "cat_ranges", raising)
    assert OpenStore(Store("putget://bucket/store")).look([location(1)]) == {}
    assert "cannot read the store putget://bucket/store" in warned.pop()
    with pytest.raises(StoreError, match="no network"):
        OpenStore(Store("putget://bucket/store", required=True)).look([location(1)])


def test_a_worker_without_the_driver(monkeypatch: pytest.MonkeyPatch, warned: list[str]) -> None:
    """It goes on without the store, although the client has the driver."""
    packed = pickle.dumps(Store("putget://bucket/store"))

    def absent(*args: Any, **kwargs: Any) -> Any:
        raise ImportError("install putget")

    monkeypatch.setattr(backends.fsspec.core, "url_to_fs", absent)
    store = opened(pickle.loads(packed))
    assert store.look([location(1)]) == {}
    assert store.write(location(1), SMALL, MADE) is None
    with pytest.raises(StoredResultMissing, match="install putget"):
        store.read(location(1))
    assert len(warned) == 3 and all("install putget" in warning for warning in warned)
    warned.clear()


def test_what_cannot_be_pickled(folder: Path, warned: list[str]) -> None:
    """It is not stored; the warning says why."""
    store = OpenStore(Store(folder))
    assert store.write(location(1), (i for i in "ab"), MADE) is None
    assert store.write(location(2), (i for i in "ab"), MADE) is None
    [warning] = warned
    assert "cannot store the result of ('load', 0) in the store" in warning
    assert "cannot pickle 'generator' object" in warning
    warned.clear()
    assert not folder.exists()
    with pytest.raises(StoreError, match="generator"):
        OpenStore(Store(folder, required=True)).write(location(1), (i for i in "ab"), MADE)


def test_a_file_where_a_folder_should_be(folder: Path, warned: list[str]) -> None:
    """Neither reading nor writing works, and nothing is overwritten."""
    folder.write_text("mine")
    store = OpenStore(Store(folder))
    assert store.look([location(1)]) == {}
    assert store.write(location(1), SMALL, MADE) is None
    assert folder.read_text() == "mine"
    assert len(warned) == 2 and all("Not a directory" in warning for warning in warned)
    warned.clear()


def test_a_folder_that_is_removed(folder: Path) -> None:
    """It is made again."""
    store = OpenStore(Store(folder))
    for name in "ab":
        store.write(location(name), SMALL, MADE)
        subprocess.run(["rm", "-r", folder], check=True)
        assert missing(store, location(name)) == "it is gone"
    store.write(location("a"), SMALL, MADE)
    assert store.read(location("a")) == SMALL


def script(folder: Path, code: str, seconds: float = 100) -> None:
    """Run code in a process without threads; it has a store, and `value(i)`."""
    before = f"""
        import os, random, resource, signal, sys, time
        import numpy as np
        from handoff_dask.errors import StoredResultMissing
        from handoff_dask.store.opened import OpenStore
        from handoff_dask.store.result_store import Store
        from tests.store.conftest import MADE, location
        store = OpenStore(Store({str(folder)!r}))
        def value(i, n=1_000_000): return np.arange(i, i + n)
    """
    program = textwrap.dedent(before) + textwrap.dedent(code)
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        timeout=seconds,
        env=environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout


def test_killed_while_writing(folder: Path) -> None:
    """No half entry is ever read, and what killed writers leave behind goes."""
    script(
        folder,
        """
        random.seed(0)
        large, where = value(0, 4_000_000), location(1)
        start = time.perf_counter()
        store.write(where, large, MADE)
        takes = time.perf_counter() - start
        os.remove(store._path(where))
        complete = 0
        for attempt in range(50):
            child = os.fork()
            if not child:
                store.write(where, large, MADE)
                os._exit(0)
            time.sleep(random.random() * takes * 1.5)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            there = store.look([where])
            try:
                assert (store.read(where) == large).all()
                complete += 1
                os.remove(store._path(where))
                assert there
            except StoredResultMissing as error:
                assert error.problem == "it is gone" and not there
        assert complete < 50
        list(store.verify())
        assert not any(files for _, _, files in os.walk(store._backend.root))
        """,
    )


def test_many_writers_of_one_result(folder: Path) -> None:
    """Readers see it or nothing, never anything between."""
    script(
        folder,
        """
        where = location(1)
        children = []
        for _ in range(16):
            if not (child := os.fork()):
                for _ in range(3):
                    store.write(where, value(0), MADE)
                os._exit(0)
            children.append(child)
        reads = 0
        while children:
            if os.waitpid(children[0], os.WNOHANG) != (0, 0):
                children.pop(0)
            if store.look([where]):
                assert (store.read(where) == value(0)).all()
                reads += 1
        assert reads and len(list(store.entries())) == 1
        assert [len(files) for _, _, files in os.walk(store._backend.root) if files] == [1]
        """,
    )


def test_no_space_left(folder: Path, warned: list[str]) -> None:
    """The result is not stored, nothing is left behind, and small ones still are."""
    script(
        folder,
        """
        import logging
        warnings = []
        logging.getLogger("handoff_dask.store").addHandler(handler := logging.Handler())
        handler.emit = lambda record: warnings.append(record.getMessage())
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for i in range(3):
            assert store.write(location(i), value(i), MADE) is None
        [warning] = warnings
        assert "File too large" in warning and store._store.url in warning, warning
        assert not any(files for _, _, files in os.walk(store._backend.root))
        assert store.write(location(4), 4, MADE)
        """,
    )


def test_temporary_files_of_others(folder: Path) -> None:
    """Those of dead processes and those older than a day go; others are left to their writers."""
    store = OpenStore(Store(folder))
    store.write(location(1), SMALL, MADE)
    [path] = files(folder)
    unique, node = "0" * 32, os.uname().nodename
    elsewhere = path.with_name(f".tmp-elsewhere-1-{unique}")
    old = path.with_name(f".tmp-elsewhere-2-{unique}")
    alive = path.with_name(f".tmp-{node}-{os.getppid()}-{unique}")
    dead = path.with_name(f".tmp-{node}-{2**22 + 1}-{unique}")
    for temporary in (elsewhere, old, alive, dead):
        temporary.write_bytes(b"half")
    os.utime(old, (0, time.time() - 2 * 86_400))
    assert [entry.key for entry in store.entries()] == [path.name]
    # A new process sweeps a folder when it first writes there.
    OpenStore(Store(folder)).write(location(1), SMALL, MADE)
    assert files(folder) == sorted([path, elsewhere, alive])


# What its owner does


def test_entries_are_listed_and_removed(url: str) -> None:
    """By age, which the header says; a dry run removes nothing."""
    store = OpenStore(Store(url))
    now = time.time()
    for name, age in (("old", 10 * 86_400), ("new", 60)):
        made = MADE._replace(started=now - age - 5, stopped=now - age)
        store.write(location(name), SMALL, made)
    listed = {entry.key: entry for entry in store.entries()}
    assert set(listed) == {location("old").key, location("new").key}
    old = listed[location("old").key]
    assert old.age == pytest.approx(10 * 86_400, abs=50)
    assert (old.label, old.problem) == ("pipeline.load", None)
    assert old.size == store.look([location("old")])[old.key].size
    for dry in (True, False):
        removed = list(store.remove(7 * 86_400, dry_run=dry))
        assert [entry.key for entry in removed] == [old.key]
        assert (old.key in store.look([location("old")])) == dry
    assert [entry.key for entry in store.entries()] == [location("new").key]


def test_verify_reads_everything(folder: Path) -> None:
    """It names what is damaged; what is damaged has the age of its file."""
    store = OpenStore(Store(folder))
    for name in "abc":
        store.write(location(name), LARGE, MADE)
    paths = [Path(store._path(location(name))) for name in "ab"]
    for path, where in zip(paths, (-1, 0), strict=True):
        content = bytearray(path.read_bytes())
        content[where] ^= 1
        path.write_bytes(content)
    problems = {entry.key: entry.problem for entry in store.verify()}
    assert problems == {
        location("a").key: "a block is damaged",
        location("b").key: "it is not an entry of a store",
        location("c").key: None,
    }
    os.utime(paths[1], (0, time.time() - 500))
    ages = {entry.key: entry.age for entry in store.entries()}
    assert 400 < ages[location("b").key] < 1000 < ages[location("a").key]


def test_a_store_that_does_not_exist(url: str) -> None:
    """It is empty, and stays so."""
    store = OpenStore(Store(url))
    assert list(store.entries()) == list(store.verify()) == list(store.remove(0)) == []
