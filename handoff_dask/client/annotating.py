"""Dask's annotations around a submission. The gate ignores those that it decides itself."""

from __future__ import annotations

import contextvars
import warnings
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from dask.base import annotate, get_annotations
from distributed.protocol.core import dumps

from handoff_dask.compat.client_side import only_annotations
from handoff_dask.errors import HandoffError
from handoff_dask.tracebacks import users_frame

T = TypeVar("T")

#: Annotations that say where and when tasks run, and what to use instead.
INSTEAD = {
    "workers": "Function(node=...)",
    "restrictions": "Function(node=...)",
    "allow_other_workers": "Function(node=..., allow_other_workers=True)",
    "loose_restrictions": "Function(node=..., allow_other_workers=True)",
    "resources": "Function(cost=...)",
    "retries": "max_retries=...",
    "priority": "Function(priority=...)",
    "executor": "the worker's own threads",
}


@contextmanager
def applied() -> Iterator[None]:
    """Leave only those annotations that runs do not ignore: the others have become fields."""
    kept = {name: value for name, value in get_annotations().items() if name not in INSTEAD}
    with only_annotations(kept):
        yield


def warn(keys: Collection[Hashable]) -> None:
    """Warn, at the user's call, about annotations that tasks of these keys ignore."""
    ignored = _ignored(keys)
    if not ignored:
        return
    named = ", ".join(f"{name!r} (use {INSTEAD[name]})" for name in ignored)
    _, level = users_frame()
    warnings.warn(f"a run ignores these annotations of Dask: {named}", stacklevel=level)


def without(keys: Collection[Hashable], call: Callable[[], T]) -> T:
    """Make a call without the annotations that tasks of these keys ignore; others stay.

    Raises
    ------
    HandoffError
        Dask cannot send one of these; trying would break connections.
    """
    ignored = _ignored(keys)
    kept = {name: value for name, value in get_annotations().items() if name not in ignored}
    for name, value in kept.items():
        try:
            dumps(value)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise HandoffError(f"Dask cannot send the annotation {name!r}: {reason}") from error

    def annotated() -> T:
        with annotate(**kept):
            return call()

    # Annotations cannot be removed, only added; they are a context variable.
    return contextvars.Context().run(annotated)


def _ignored(keys: Collection[Hashable]) -> list[str]:
    """Return the annotations that are ignored; not those that raise: Dask refuses such a graph."""
    return [
        name
        for name, value in get_annotations().items()
        if name in INSTEAD and not _raises(value, keys)
    ]


def _raises(value: Any, keys: Collection[Hashable]) -> bool:
    if callable(value):
        try:
            for key in keys:
                value(key)
        except Exception:
            return True
    return False
