"""Keeps what was learned beyond the life of a cluster, in a file that schedulers share.

No scheduler loses what another one wrote, although there are no locks. Each save makes a new file
in the folder `<url>.d`, a part, which never changes, and only then merges all parts into the main
file. If two do so at once, one may overwrite the other's main file, but the parts outlive that: a
part is removed when its scheduler has written a later one, or after the main file has contained it
for an hour. It does no harm to merge a part twice.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from typing import NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from handoff_dask.learning.uses import Uses

logger = logging.getLogger(__name__)

#: Marks our files: a name, and the version of the format.
_NAME = "handoff-learned-"
_FORMAT = f"{_NAME}1"
#: No scheduler takes longer from reading the main file to writing it (s).
_GRACE = 3600.0
_TEMPORARY = ".tmp"


class Files:
    """The main file at a URL and the folder beside it; files are written completely or not at all.

    Raises what fsspec and its file systems raise.
    """

    def __init__(self, url: str) -> None:
        self._system, self.main = fsspec.core.url_to_fs(url)
        self.folder = f"{self.main}.d"
        self._is_local = isinstance(self._system, LocalFileSystem)

    def names(self) -> list[str]:
        """Return the names of the files in the folder."""
        self._system.invalidate_cache(self.folder)
        try:
            paths = self._system.ls(self.folder, detail=False)
        except FileNotFoundError:
            return []
        return sorted(path.rsplit("/", 1)[-1] for path in paths)

    def read(self, path: str) -> bytes:
        """Return the content of a file; nothing if it does not exist."""
        try:
            content: bytes = self._system.cat_file(path)
        except FileNotFoundError:
            return b""
        return content

    def write(self, path: str, content: bytes) -> None:
        """Create or replace a file."""
        if self._is_local:
            self._system.makedirs(self.folder, exist_ok=True)
            temporary = f"{self.folder}/{uuid.uuid4().hex}{_TEMPORARY}"
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            return
        try:
            self._system.pipe_file(path, content)
        except FileNotFoundError:  # where folders have to be made
            self._system.makedirs(self.folder, exist_ok=True)
            self._system.pipe_file(path, content)

    def rename(self, path: str, new: str) -> None:
        """Give a file another name."""
        self._system.mv(path, new)

    def remove(self, path: str) -> None:
        """Remove a file, unless somebody else has."""
        with suppress(FileNotFoundError):
            self._system.rm_file(path)

    def sweep(self, before: float) -> None:
        """Remove what writers left behind that were killed before a time (s since the epoch)."""
        for name in self.names() if self._is_local else ():
            path = f"{self.folder}/{name}"
            with suppress(FileNotFoundError):
                if name.endswith(_TEMPORARY) and os.path.getmtime(path) < before:
                    os.remove(path)


class _OtherVersionError(ValueError):
    """A file of a version of Handoff that has another format: it is not damaged."""


class _Content(NamedTuple):
    """What a main file or a part has."""

    uses: Uses
    #: The names of the parts that are merged in it, and since when (s since the epoch).
    parts: dict[str, float]

    def dump(self) -> bytes:
        data = {"format": _FORMAT, "parts": self.parts, "codes": self.uses.as_dict()}
        return json.dumps(data, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def load(cls, content: bytes) -> _Content:
        """Raise ValueError if it is not what `dump` returned."""
        if not content.strip():
            return cls(Uses(), {})
        data = json.loads(content)
        written = data.get("format") if isinstance(data, dict) else None
        if written != _FORMAT:
            other = isinstance(written, str) and written.startswith(_NAME)
            problem = f"it is in the format {written}" if other else "it is no file of Handoff's"
            raise (_OtherVersionError if other else ValueError)(f"{problem}, not {_FORMAT}")
        parts = data.get("parts")
        if not isinstance(parts, dict) or not all(type(v) in (int, float) for v in parts.values()):
            raise ValueError(f"its parts are not a mapping of names to times: {parts!r:.80}")
        return cls(Uses.from_dict(data.get("codes")), parts)


class LearnedFile:
    """What schedulers learned, kept in the file of the setting ``handoff.learned``.

    Its methods block and raise no errors: a cluster that cannot read or write the file goes on
    without it. The first problem of each kind is logged as a warning.

    Parameters
    ----------
    url
        A path, or a URL that fsspec understands.
    clock
        Returns the time (s since the epoch).
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        self._url = url
        self._clock = clock
        #: The path of the latest part.
        self._part: str | None = None
        self._warned: set[str] = set()

    def open(self) -> Uses:
        """Return what all schedulers have saved; empty if there is nothing that can be read."""
        try:
            files = Files(self._url)
            uses, _ = self._parts(files)
            content, _ = self._main(files)
        except Exception as error:
            self._warn("read", error)
            return Uses()
        uses.merge(content.uses)
        try:
            self._tidy(files, content)
        except Exception as error:
            self._warn("remove files beside", error)
        return uses

    def save(self, uses: Uses) -> None:
        """Save what was learned, which includes what `open` returned.

        `uses` must not change meanwhile: pass a copy.
        """
        try:
            files = Files(self._url)
            part = f"{files.folder}/{uuid.uuid4().hex}.json"
            files.write(part, _Content(uses, {}).dump())
            # The new part has everything that the one before it had.
            if self._part is not None:
                files.remove(self._part)
            self._part = part
            self._merge(files)
        except Exception as error:
            self._warn("write", error)

    def _merge(self, files: Files) -> None:
        """Merge all parts into the main file."""
        uses, names = self._parts(files)
        content, aside = self._main(files)
        if aside is not None:
            files.rename(files.main, aside)
        uses.merge(content.uses)
        now = self._clock()
        parts = {name: content.parts.get(name, now) for name in names}
        files.write(files.main, _Content(uses, parts).dump())

    def _tidy(self, files: Files, content: _Content) -> None:
        """Remove parts that have been in the main file for long, and unfinished files."""
        before = self._clock() - _GRACE
        for name, since in content.parts.items():
            if since < before:
                files.remove(f"{files.folder}/{name}")
        files.sweep(before)

    def _parts(self, files: Files) -> tuple[Uses, list[str]]:
        """Return what all parts have, and their names."""
        uses, names = Uses(), []
        for name in files.names():
            if not name.endswith(".json"):
                continue
            content = files.read(f"{files.folder}/{name}")
            if not content:  # removed meanwhile, or just being written
                continue
            try:
                uses.merge(_Content.load(content).uses)
            except ValueError as error:
                self._warn(f"read a part ({name}) of", error)
            else:
                names.append(name)
        return uses, names

    def _main(self, files: Files) -> tuple[_Content, str | None]:
        """Return what the main file has; if it is damaged, also what a save renames it to."""
        content = files.read(files.main)
        try:
            return _Content.load(content), None
        except _OtherVersionError:
            raise
        except ValueError as error:
            # The same at each look, so that the warning can name it.
            aside = f"{files.main}.damaged-{blake2b(content, digest_size=4).hexdigest()}"
            self._warn("read", error, f"; when it is saved, the file is renamed to {aside}")
            return _Content(Uses(), {}), aside

    def _warn(self, action: str, error: Exception, follows: str = "") -> None:
        if action not in self._warned:
            self._warned.add(action)
            url = re.sub(r"//[^/@]*@", "//", self._url)  # without a password
            why = f"{type(error).__name__}: {error}"
            logger.warning(
                "Handoff cannot %s what was learned, %s (%s)%s", action, url, why, follows
            )
