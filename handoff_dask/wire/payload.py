"""How a call travels, and how a worker opens it.

It is pickled once and opened anew at every start, so each start has its own objects. A call is one
pickle, so that what is one object stays one. Two things are named in it instead:

- **Parts**: what calls have in common, and what is large. Each is pickled once for a run. A large
  part that several functions need is a node of the Dask graph and moves once to each worker; other
  parts travel with the tasks that need them.
- **Futures**: the function depends on their tasks and gets their results.

The scheduler opens none of this, and needs none of the user's modules.
"""

from __future__ import annotations

import pickle
from collections.abc import Hashable, Mapping, Sequence
from io import BytesIO
from typing import Any, TypeAlias, Union

from handoff_dask.model.expansion import Call

#: In a pickle: the number of a part, or the key of a future in a tuple.
Name: TypeAlias = Union[int, tuple[Any]]  # noqa: UP007 - evaluated at run time


def opened(
    names: Sequence[Name], call: bytes, values: Sequence[Any]
) -> tuple[tuple[Hashable, Hashable], Call, Sequence[Any]]:
    """Open a pickled call for one start.

    Parameters
    ----------
    names, call
        What is named in the pickle, and the pickle.
    values
        The content of each name, then the results of the functions that it depends on.

    Returns
    -------
    tuple
        The ids of function and DAG, the call, and those results.
    """
    opener = _Opener(dict(zip(names, values, strict=False)))
    identity, *fields = opener.open(call)
    return identity, Call(*fields), values[len(names) :]


class _Opener:
    """Opens each part once for a start."""

    def __init__(self, contents: Mapping[Name, Any]) -> None:
        self._contents = contents
        self._found: dict[Name, Any] = {}

    def open(self, pickled: bytes) -> Any:
        unpickler = _Unpickler(BytesIO(pickled))
        unpickler.opener = self
        return unpickler.load()

    def find(self, name: Name) -> Any:
        if name not in self._found:
            content = self._contents[name]
            self._found[name] = self.open(content) if isinstance(name, int) else content
        return self._found[name]


class _Unpickler(pickle.Unpickler):
    opener: _Opener

    def persistent_load(self, pid: Any) -> Any:
        """Return what a name stands for."""
        return self.opener.find(pid)
