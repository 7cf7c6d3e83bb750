"""Stores on each kind of file system, and entries in them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from handoff_dask.model.attempt import Usage
from handoff_dask.store.entries import Location, Made
from tests.store.putget import PutGet

MADE = Made("'nightly'", "('load', 0)", "tcp://a:1", "a", "ada", 100.0, 107.5, Usage(7.0, None, 28))


def location(name: object, label: str = "pipeline.load") -> Location:
    """Return a location of its own for each name."""
    return Location(hashlib.sha1(repr(name).encode()).hexdigest(), label, b'[{"f":"1"},{},{}]')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture(params=["file", "memory", "putget"])
def url(request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """A place on each kind of file system."""
    yield str(folder) if request.param == "file" else f"{request.param}://bucket/store"
    fsspec.filesystem("memory").store.clear()
    PutGet.clear()


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What was warned of; a test that takes nothing out must have caused no warning."""
    caplog.set_level(logging.WARNING, "handoff_dask")
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("handoff_dask.store")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)
    assert messages == []
