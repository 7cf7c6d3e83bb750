"""What users say about a store; :mod:`~handoff_dask.store.opened` reads and writes it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

import fsspec

from handoff_dask.errors import StoreError

Versions = Literal["exact", "minor", "ignore"]


class Store:
    """Where results are kept, so that nothing is computed twice.

    Making one opens nothing. A store is safe to use from many processes and machines at once, on
    network file systems too: an entry is written whole or not at all, and checked when it is read.
    What is damaged counts as missing, with a warning. Nothing is removed unless you ask for it.

    Whoever may write to a store can run code in the processes that read it, since results are
    pickles. With `hmac_key`, only results that were signed with the same key are read.

    Parameters
    ----------
    url
        A folder, or a URL that fsspec has a driver for, such as ``"s3://bucket/results"``. Folders
        must be visible to the client and to all workers.
    versions
        Which change of the version of an installed package makes results of its functions outdated:
        any (``"exact"``), one of the first two numbers (``"minor"``), or none (``"ignore"``).
    required
        Whether a run fails if the store cannot be used. Otherwise it goes on, with a warning.
    storage_options
        Keywords for the driver, such as ``{"profile": "science"}``.
    hmac_key
        A secret that signs results; text or bytes.

    Attributes
    ----------
    url : str
        The absolute path of a folder, or the URL.

    Raises
    ------
    ValueError
        An argument is invalid, or no driver is known for the URL.
    StoreError
        The driver for the URL is not installed.

    Examples
    --------
    >>> Store("/scratch/results")
    Store('/scratch/results')
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        versions: Versions = "exact",
        required: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        hmac_key: str | bytes | None = None,
    ) -> None:
        self.url = _absolute(url)
        if versions not in get_args(Versions):
            known = ", ".join(map(repr, get_args(Versions)))
            raise ValueError(f"versions must be one of {known}, not {versions!r}")
        if required not in (True, False):
            raise ValueError(f"required must be True or False, not {required!r}")
        if storage_options is not None and not hasattr(storage_options, "keys"):
            raise ValueError(f"storage_options must be a mapping, not {storage_options!r:.80}")
        self.hmac_key = hmac_key.encode() if isinstance(hmac_key, str) else hmac_key
        if self.hmac_key == b"" or not isinstance(self.hmac_key, bytes | None):
            raise ValueError("hmac_key must be text or bytes, and not empty")
        self.versions: Versions = versions
        self.required = required
        self.storage_options = dict(storage_options or {})

    @property
    def shown_url(self) -> str:
        """Its URL without a password."""
        return _without_password(self.url)

    def __repr__(self) -> str:
        options = "" if self.versions == "exact" else f", versions={self.versions!r}"
        options += ", required=True" if self.required else ""
        return f"{type(self).__name__}({self.shown_url!r}{options})"

    @property
    def _fields(self) -> tuple[Any, ...]:
        return self.url, self.versions, self.required, self.storage_options, self.hmac_key

    def __eq__(self, other: object) -> bool:
        return self._fields == other._fields if isinstance(other, Store) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.url, self.versions, self.required))


def _absolute(url: str | os.PathLike[str]) -> str:
    """Return a URL that means the same in every process; raise if there is no driver for it."""
    text: Any = os.fspath(url) if isinstance(url, os.PathLike) else url
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the URL of a store must be text or a path, not {url!r}")
    protocol, path = fsspec.core.split_protocol(text)
    if protocol in (None, "file", "local"):
        local: str = os.path.abspath(os.path.expanduser(path))
        return local
    try:
        for part in text.split("::"):  # drivers may be chained
            name, _ = fsspec.core.split_protocol(part)
            if name or "/" not in part:
                fsspec.get_filesystem_class(name or part)
    except ValueError as error:
        shown = _without_password(text)
        raise ValueError(f"there is no driver for the store {shown!r}: {error}") from None
    except ImportError as error:
        problem = f"its driver is not installed: {error}"
        raise StoreError(_without_password(text), problem) from error
    return text


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)
