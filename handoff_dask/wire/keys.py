"""The Dask keys of the nodes of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

#: (name of the code and run, index of the node). Names of codes have no dash.
Key: TypeAlias = tuple[str, int]

#: The name, in place of a code's, of data that functions share.
SHARED = "handoff_shared"
#: The same for functions that travel together.
BUNDLE = "handoff_bundle"
#: The same for values that are taken out of a bundle together.
COLLECTED = "handoff_collected"


def node_key(prefix: str, run_id: str, index: int) -> Key:
    """Return the key of a node.

    Dask cuts the name at its dash and averages durations by what is left.

    Examples
    --------
    >>> key = node_key("resize", "0123456789abcdef0123456789abcdef", 7)
    >>> key
    ('resize-0123456789abcdef0123456789abcdef', 7)
    >>> run_of(key), index_of(key), is_shared(key)
    ('0123456789abcdef0123456789abcdef', 7, False)
    """
    return f"{prefix}-{run_id}", index


class NodeKeys:
    """Returns the keys of the nodes of a run, by index; `prefixes` are the names of their codes."""

    def __init__(self, run_id: str, prefixes: Sequence[str]) -> None:
        self._prefixes = prefixes
        # One text for all functions of a code.
        self._names = {prefix: node_key(prefix, run_id, 0)[0] for prefix in set(prefixes)}

    def __call__(self, index: int) -> Key:
        """Return the key of a node."""
        return self._names[self._prefixes[index]], index


def shared_key(run_id: str, number: int) -> Key:
    """Return the key of data that functions of a run share.

    Each is a task group of its own: Dask makes tasks of large groups wait for idle workers.
    """
    return f"{SHARED}-{run_id}-{number}", 0


def bundle_key(run_id: str, number: int) -> Key:
    """Return the key of a bundle: functions of a run that travel together, as one task."""
    return f"{BUNDLE}-{run_id}", number


def collected_key(run_id: str, number: int) -> Key:
    """Return the key of values that a function takes out of a bundle together."""
    return f"{COLLECTED}-{run_id}-{number}", 0


def run_of(key: Any) -> str | None:
    """Return the run that a key belongs to; for other keys, None or the id of no run."""
    if isinstance(key, tuple) and key and isinstance(key[0], str):
        return key[0].partition("-")[2].partition("-")[0]
    return None


def index_of(key: Any) -> int:
    """Return the index of the node that has a key."""
    index: int = key[1]
    return index


def is_shared(key: Key) -> bool:
    """Whether a key is that of shared data."""
    return key[0].startswith(f"{SHARED}-")


def is_collected(key: Any) -> bool:
    """Whether any key is that of values that are taken out of a bundle together."""
    named = isinstance(key, tuple) and bool(key) and isinstance(key[0], str)
    return named and key[0].startswith(f"{COLLECTED}-")


def is_bundle(key: Key) -> bool:
    """Whether a key is that of functions that travel together."""
    return key[0].startswith(f"{BUNDLE}-")
