"""Where entries lie: local and mounted folders, and everything else that fsspec has a driver for.

An object appears whole or not at all, under its final name. In folders it is written under a
temporary name and renamed, elsewhere it is put at once. There are no locks, which network file
systems may lack: whoever writes an object last wins, and all write the same.

Nothing waits for the disk (``fsync``), which would take three times as long as writing. A power cut
can lose what was written in the last seconds. That counts as missing, because checksums cover every
byte. Nothing is lost when processes end or are killed.
"""

from __future__ import annotations

import io
import os
import platform
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from handoff_dask.store.entries import SMALL

#: Larger objects are put from a temporary file, not from memory (bytes).
_LARGEST_IN_MEMORY = 64 * 1024 * 1024
#: The age at which a temporary file is one that nobody writes any more (s).
_ABANDONED = 86_400.0
#: Temporary names: host, process, and something unique.
_TEMPORARY = re.compile(r"\.tmp-(?P<host>.*)-(?P<pid>\d+)-[0-9a-f]{32}")


class Listed(NamedTuple):
    """A file that was listed: its path, size in bytes, and when it was changed (s since epoch)."""

    path: str
    size: int
    changed: float


class Backend:
    """Anything that fsspec has a driver for.

    Raises what fsspec and its file systems raise.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._system, self.root = fsspec.core.url_to_fs(url, **options)
        self.root = self.root.rstrip("/")

    def peek(self, paths: Sequence[str]) -> Iterator[tuple[bytes, int | None] | Exception]:
        """Return the first bytes of each file, and its size if that is known at no cost."""
        contents = self._system.cat_ranges(
            list(paths), [0] * len(paths), [SMALL] * len(paths), on_error="return"
        )
        # Not as a generator: what the driver raises is raised by this call.
        return (c if isinstance(c, Exception) else (c, None) for c in contents)

    def open(self, path: str) -> IO[bytes]:
        """Open a file for reading."""
        file: IO[bytes] = self._system.open(path, "rb")
        return file

    def write(self, path: str, size: int, write: Callable[[IO[bytes]], int]) -> int:
        """Create or replace a file with what a call writes, about `size` bytes."""
        if size <= _LARGEST_IN_MEMORY:
            with io.BytesIO() as file:
                written = write(file)
                self._put(path, lambda: self._system.pipe_file(path, file.getvalue()))
            return written
        with tempfile.NamedTemporaryFile(prefix="handoff-store-") as local:
            written = write(local)
            local.flush()
            self._put(path, lambda: self._system.put_file(local.name, path))
        return written

    def _put(self, path: str, put: Callable[[], None]) -> None:
        try:
            put()
        except FileNotFoundError:  # where folders have to be made
            self._system.makedirs(os.path.dirname(path), exist_ok=True)
            put()

    def list(self, folder: str) -> list[Listed]:
        """Return the files in a folder and in those below it, without temporary ones."""
        self._system.invalidate_cache()
        try:
            self._system.ls(folder, detail=False)  # `find` hides why it finds nothing
            files = self._system.find(folder, detail=True)
        except FileNotFoundError:
            return []
        return [
            Listed(path, info.get("size") or 0, _changed(info))
            for path, info in sorted(files.items())
            if not _TEMPORARY.fullmatch(os.path.basename(path))
        ]

    def remove(self, path: str) -> None:
        """Remove a file, unless somebody else has."""
        with suppress(FileNotFoundError):
            self._system.rm_file(path)

    def sweep(self, folder: str) -> int:
        """Remove what killed writers left in a folder and below; return how many files."""
        return 0


class LocalBackend(Backend):
    """Local and mounted folders."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        super().__init__(url, options)
        #: Folders that this process has swept.
        self._swept: set[str] = set()

    def peek(self, paths: Sequence[str]) -> Iterator[tuple[bytes, int | None] | Exception]:
        """Return the first bytes of each file, and its size."""
        for path in paths:
            try:
                with open(path, "rb", buffering=0) as file:
                    content = file.read(SMALL)
                    size = len(content)
                    yield content, size if size < SMALL else os.fstat(file.fileno()).st_size
            except OSError as error:
                yield error

    def open(self, path: str) -> IO[bytes]:
        """Open a file for reading."""
        return open(path, "rb")

    def write(self, path: str, size: int, write: Callable[[IO[bytes]], int]) -> int:
        """Create or replace a file with what a call writes."""
        folder = os.path.dirname(path)
        try:
            written = self._write(path, write)
        except FileNotFoundError:  # the folder is new, or was removed meanwhile
            os.makedirs(folder, exist_ok=True)
            written = self._write(path, write)
        if folder not in self._swept:
            self._swept.add(folder)
            self.sweep(folder)
        return written

    def _write(self, path: str, write: Callable[[IO[bytes]], int]) -> int:
        host = re.sub(r"[^A-Za-z0-9.-]", "_", platform.node())[:60]
        name = f".tmp-{host}-{os.getpid()}-{uuid.uuid4().hex}"
        temporary = os.path.join(os.path.dirname(path), name)
        try:
            # Network file systems report some errors on closing only.
            with open(temporary, "xb") as file:
                written = write(file)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.remove(temporary)
            raise
        return written

    def sweep(self, folder: str) -> int:
        """Remove what killed writers left in a folder and below; return how many files.

        A writer of this host is known to be dead; of another one, after a day.
        """
        removed = 0
        for where, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(where, name)
                if (match := _TEMPORARY.fullmatch(name)) and _abandoned(path, match):
                    with suppress(OSError):
                        os.remove(path)
                        removed += 1
        return removed


def _changed(info: Mapping[str, Any]) -> float:
    """Return when a file was changed, by its file system (s since epoch)."""
    for name in ("mtime", "LastModified", "last_modified", "created"):
        value = info.get(name)
        if value is not None:
            return float(value.timestamp() if hasattr(value, "timestamp") else value)
    return time.time()


def _abandoned(path: str, name: re.Match[str]) -> bool:
    try:
        if os.path.getmtime(path) < time.time() - _ABANDONED:
            return True
        if name["host"] == platform.node() and int(name["pid"]) != os.getpid():
            os.kill(int(name["pid"]), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it is gone, or the process is somebody else's
        return False
    return False


def backend(url: str, options: Mapping[str, Any]) -> Backend:
    """Return what reads and writes at a URL."""
    protocol, _ = fsspec.core.split_protocol(url)
    local = protocol in (None, *LocalFileSystem.protocol)
    return (LocalBackend if local else Backend)(url, options)
