"""How a call travels, and how a worker opens it.

It is pickled once and opened anew at every start, so each start has its own objects. A call is one
pickle, so that what is one object stays one. Two things are named in it instead:

- **Parts**: what calls have in common, and what is large. Each is pickled once for a run. A large
  part that several functions need is a node of the Dask graph and moves once to each worker; other
  parts travel with the tasks that need them.
- **Templates**: parts that hold all of a call but the id and the further arguments of its function.
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
    """Open a pickled call for one start; return ids of function and DAG, call and dependencies.

    `values` are the content of each name in the pickle, then the results of the functions that it
    depends on.
    """
    contents = dict(zip(names, values, strict=False))
    return *open_call(call, contents), values[len(names) :]


def open_call(call: bytes, contents: Mapping[Name, Any]) -> tuple[tuple[Hashable, Hashable], Call]:
    """Open a pickled call for one start; return ids of function and DAG, and the call.

    `contents` has the content of each name in the pickle.
    """
    if not contents:
        identity, *fields = pickle.loads(call)
        return identity, Call(*fields)
    opened: dict[Name, Any] = {}
    identity, *fields = _Unpickler(call, contents, opened).load()
    if len(fields) > 2:
        return identity, Call(*fields)
    number, extra_args = fields
    dag_id, *fields = _Unpickler(contents[number], contents, opened).load()
    return (identity, dag_id), Call(*fields)._replace(extra_args=extra_args)


class _Unpickler(pickle.Unpickler):
    """Opens a pickle, and each part that it names once for a start."""

    def __init__(self, data: bytes, contents: Mapping[Name, Any], opened: dict[Name, Any]) -> None:
        super().__init__(BytesIO(data))
        self._contents = contents
        self._opened = opened

    def persistent_load(self, pid: Any) -> Any:
        if pid not in self._opened:
            value = self._contents[pid]
            if isinstance(pid, int):
                value = _Unpickler(value, self._contents, self._opened).load()
            self._opened[pid] = value
        return self._opened[pid]
