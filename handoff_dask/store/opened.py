"""Reads and writes a store."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from typing import IO, Any, NamedTuple, TypeVar

from handoff_dask.errors import StoredResultMissing, StoreError
from handoff_dask.store import entries as entry_format
from handoff_dask.store.backends import Backend, Listed, backend
from handoff_dask.store.entries import (
    FORMAT,
    SMALL,
    Location,
    Made,
    Manifest,
    Named,
    StoredResult,
    Unreadable,
)
from handoff_dask.store.result_store import Store

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FOLDER = f"handoff-{FORMAT}"
#: The folder of the records of runs; those of entries end in a dash and 8 digits.
_RUNS = "runs"
#: The name of a record: when it was made (s since epoch), and something unique.
_RECORD = re.compile(r"(?P<at>\d{10}\.\d{6})-[0-9a-f]{32}\.json$")
#: How many records are kept of a DAG.
_KEPT_RUNS = 5
#: The key of a name.
_KEY = re.compile(r"[0-9a-f]{40}")


class Entry(NamedTuple):
    """An entry of a store, as :meth:`OpenStore.entries` lists it.

    Attributes
    ----------
    path : str
        Where it is.
    label : str
        Module and qualified name of the code that made it; the name of its folder if its header
        cannot be read.
    key : str
        The name of the file.
    size : int
        Its size, in bytes.
    age : float
        Seconds since the result was made, by the clock of its worker; if its header cannot be read,
        since the file was changed.
    made : Made or None
        Who made it; None if its header cannot be read.
    problem : str or None
        Why it counts as missing, if it does.
    """

    path: str
    label: str
    key: str
    size: int
    age: float
    made: Made | None = None
    problem: str | None = None


class OpenStore:
    """Reads and writes a store. Its methods block, and may be called from several threads.

    Parameters
    ----------
    store
        What the user says about it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folders: dict[str, str] = {}
        #: The kinds of problems that there has been a warning of.
        self._warned: set[str] = set()

    def look(self, names: Iterable[Named]) -> dict[str, StoredResult]:
        """Return the results that are there, by key.

        Small ones are read and checked, but not unpickled; of others, only the head is.

        Raises
        ------
        StoreError
            The store cannot be used, and is required.
        """
        there: dict[str, StoredResult] = {}
        try:
            wanted = {self._path(named): named for named in names}
            contents = iter(self._backend.peek(list(wanted)))
        except Exception as error:
            self._failed("read", error)
            return {}
        for (path, named), content in zip(wanted.items(), contents, strict=True):
            if isinstance(content, Exception):
                if not _is_gone(content):
                    self._failed("read", content)
                continue
            try:
                there[named.key] = self._peeked(path, named, *content)
            except Exception as error:
                self._missing(path, error)
        return there

    def _peeked(self, path: str, named: Named, content: bytes, size: int | None) -> StoredResult:
        """Return a result whose entry begins with a content."""
        if len(content) < SMALL:
            head = entry_format.check(io.BytesIO(content), named, self._store.hmac_key)
            return StoredResult(head.location, head.made, head.total, content)
        head = self._head(path, content, named)
        if size is not None and size != head.total:
            raise Unreadable("it is too short" if size < head.total else "it is too long")
        return StoredResult(head.location, head.made, head.total)

    def _head(self, path: str, content: bytes, named: Named) -> entry_format.Head:
        try:
            return entry_format.read_head(io.BytesIO(content), named)
        except Unreadable:
            with self._backend.open(path) as file:  # perhaps its manifest is long
                return entry_format.read_head(file, named)

    def read(self, named: Named, content: bytes | None = None) -> Any:
        """Return a stored result; `content` is its entry, if that has been read.

        Raises
        ------
        StoredResultMissing
            It is gone, damaged or unreadable here.
        """
        return self._opening(
            named, lambda file: entry_format.read(file, named, self._store.hmac_key)[1], content
        )

    def value(self, stored: StoredResult) -> Any:
        """Return the value of a result that :meth:`look` returned.

        Raises
        ------
        StoredResultMissing
            As :meth:`read`.
        """
        return self.read(stored.location, stored.content)

    def write(self, location: Location, value: object, made: Made) -> int | None:
        """Store a result in place of an entry that may be there.

        Returns the size of the entry in bytes, or None if it cannot be stored: then there is a
        warning, one for each process.

        Raises
        ------
        StoreError
            It cannot be stored, and the store is required.
        """
        try:
            frames = entry_format.frames_of(value)
        except Exception as error:
            self._failed(f"store the result of {made.function} in", error, "pickle")
            return None
        try:
            return self._backend.write(
                self._path(location),
                sum(map(len, frames)),
                lambda file: entry_format.write(file, frames, location, made, self._store.hmac_key),
            )
        except Exception as error:
            self._failed("write to", error)
            return None

    def manifest(self, named: Named) -> Manifest:
        """Return what the name of a stored result was made from.

        Raises
        ------
        StoredResultMissing
            As :meth:`read`.
        """
        return self._opening(
            named, lambda file: entry_format.manifest_of(entry_format.read_head(file, named))
        )

    def _opening(
        self, named: Named, read: Callable[[IO[bytes]], T], content: bytes | None = None
    ) -> T:
        """Return what a call reads from an entry; raise StoredResultMissing if it cannot."""
        path = named.key
        try:
            path = self._path(named)
            with self._backend.open(path) if content is None else io.BytesIO(content) as file:
                return read(file)
        except Exception as error:
            why = self._missing(path, error)
            raise StoredResultMissing(named.key, why, self._store.shown_url) from error

    def record_run(self, dag: str, functions: Mapping[str, Named]) -> None:
        """Record under which names a run stores its results, for `why` in later runs.

        Raises
        ------
        StoreError
            As :meth:`write`.
        """
        content = json.dumps({name: (n.key, n.label) for name, n in functions.items()}).encode()
        folder = self._folder(dag, _RUNS)
        try:
            records = self._backend.list(folder)
            # In the order of time, or after a record that was made where the clock is ahead.
            last = _RECORD.search(records[-1].path) if records else None
            at = max(time.time(), float(last["at"]) + 1e-6 if last else 0.0)
            path = f"{folder}/{at:017.6f}-{uuid.uuid4().hex}.json"
            self._backend.write(path, len(content), lambda file: file.write(content))
            for old in records[: -_KEPT_RUNS + 1]:
                self._backend.remove(old.path)
        except Exception as error:
            self._failed("write to", error)

    def last_run(self, dag: str) -> dict[str, Location]:
        """Return under which names the last run of a DAG stored its results; empty if unknown."""
        try:
            for record in reversed(self._backend.list(self._folder(dag, _RUNS))):
                try:
                    with self._backend.open(record.path) as file:
                        content = json.loads(file.read())
                    return {name: Location(*place) for name, place in content.items()}
                except (FileNotFoundError, ValueError, TypeError, AttributeError):
                    continue  # removed meanwhile, or damaged
        except Exception as error:
            self._failed("read", error)
        return {}

    # What its owner does

    def entries(self) -> Iterator[Entry]:
        """Yield every entry; only heads are read.

        Raises
        ------
        StoreError
            The store cannot be read.
        """
        for listed in self._listed():
            yield self._entry(listed, whole=False)

    def verify(self) -> Iterator[Entry]:
        """Read and check every entry; those that would count as missing have a `problem`.

        What killed writers left behind is removed. Values are not unpickled.

        Raises
        ------
        StoreError
            The store cannot be read.
        """
        self._sweep()
        for listed in self._listed():
            yield self._entry(listed, whole=True)

    def remove(self, older_than: float, dry_run: bool = False) -> Iterator[Entry]:
        """Remove the entries of results made more than so many seconds ago; yield each.

        What killed writers left behind is removed, too. With `dry_run`, nothing is.

        Raises
        ------
        StoreError
            The store cannot be read, or an entry cannot be removed.
        """
        if not dry_run:
            self._sweep()
        for entry in self.entries():
            if entry.age > older_than:
                if not dry_run:
                    try:
                        self._backend.remove(entry.path)
                    except Exception as error:
                        raise self._error("remove entries of", error) from error
                yield entry

    def _sweep(self) -> None:
        self._backend.sweep(f"{self._backend.root}/{_FOLDER}")

    def _listed(self) -> list[Listed]:
        try:
            files = self._backend.list(f"{self._backend.root}/{_FOLDER}")
        except Exception as error:
            raise self._error("read", error) from error
        return [file for file in files if _KEY.fullmatch(file.path.rsplit("/", 1)[-1])]

    def _entry(self, listed: Listed, *, whole: bool) -> Entry:
        folder, key = listed.path.rsplit("/", 2)[-2:]
        entry = Entry(
            listed.path, folder.rpartition("-")[0], key, listed.size, time.time() - listed.changed
        )
        try:
            with self._backend.open(listed.path) as file:
                named = Location(key, "")
                head = entry_format.read_head(file, named)
                made = head.made
                entry = entry._replace(
                    label=head.location.label, made=made, age=time.time() - made.stopped
                )
                if whole:
                    file.seek(0)
                    entry_format.check(file, named, self._store.hmac_key)
        except Exception as error:
            return entry._replace(problem=_why(error))
        return entry

    # Paths and problems

    @cached_property
    def _backend(self) -> Backend:
        return backend(self._store.url, self._store.storage_options)

    def _path(self, named: Named) -> str:
        folder = self._folders.get(named.label)
        if folder is None:
            folder = self._folders[named.label] = self._folder(named.label)
        return f"{folder}/{named.key}"

    def _folder(self, label: str, *above: str) -> str:
        safe = re.sub(r"[^A-Za-z0-9_.<>-]|^\.", "_", label)[:100]
        digest = hashlib.sha256(label.encode(errors="surrogatepass")).hexdigest()[:8]
        return "/".join((self._backend.root, _FOLDER, *above, f"{safe}-{digest}"))

    def _missing(self, path: str, error: Exception) -> str:
        """Return why an entry counts as missing; warn unless it is only gone."""
        why = _why(error)
        if not _is_gone(error):
            self._warn(
                "damaged",
                "Handoff cannot use an entry of the store %s, which counts as missing: %s: %s. "
                "`dask handoff store verify` lists all such entries.",
                self._store.shown_url,
                path,
                why,
            )
        return why

    def _failed(self, action: str, error: Exception, kind: str = "") -> None:
        """Raise StoreError if the store is required; else warn once of this kind or action."""
        if self._store.required:
            raise self._error(action, error) from error
        self._warn(
            kind or action,
            "Handoff cannot %s the store %s, and goes on without it: %s",
            action,
            self._store.shown_url,
            _described(error),
        )

    def _error(self, action: str, error: Exception) -> StoreError:
        return StoreError(self._store.shown_url, f"cannot {action} it: {_described(error)}")

    def _warn(self, kind: str, message: str, *arguments: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning(message, *arguments)


@lru_cache(maxsize=32)
def opened(store: Store) -> OpenStore:
    """Return what reads and writes a store; one for each process, so that it warns once."""
    return OpenStore(store)


def read(store: Store, named: Named) -> Any:
    """Return a stored result; see :meth:`OpenStore.read`."""
    return opened(store).read(named)


def _is_gone(error: Exception) -> bool:
    stale = isinstance(error, OSError) and error.errno == errno.ESTALE  # removed, says NFS
    return stale or isinstance(error, FileNotFoundError)


def _why(error: Exception) -> str:
    if isinstance(error, Unreadable):
        return str(error)
    return "it is gone" if _is_gone(error) else _described(error)


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
