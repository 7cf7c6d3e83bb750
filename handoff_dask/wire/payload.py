"""How a call travels, and how a worker opens it.

It is pickled once and opened anew at every start, so each start has its own objects. A call is one
pickle, so that what is one object stays one. Two things are named in it instead:

- **Parts**: what calls have in common, and what is large. Each is pickled once for a run. A large
  part that several functions need is a node of the Dask graph and moves once to each worker; other
  parts travel with the tasks that need them.
- **Templates**: parts that hold all of a call but the id and the further arguments of its function,
  and what its code has fixed: the arguments of a partial call, the variables of a closure.
- **Futures**: the function depends on their tasks and gets their results.

The scheduler opens none of this, and needs none of the user's modules.
"""

from __future__ import annotations

import pickle
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from io import BytesIO
from types import CellType, FunctionType
from typing import Any, TypeAlias, Union

from handoff_dask.model.expansion import Call

#: In a pickle: the number of a part, or the key of a future in a tuple.
Name: TypeAlias = Union[int, tuple[Any]]  # noqa: UP007 - evaluated at run time

#: What a code has of its own: (arguments, keywords, what the inner code has) of a partial call,
#: (variables, defaults of parameters) of a closure, None for anything else.
CodeFill: TypeAlias = Any


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
    if len(fields) > 3:
        return identity, Call(*fields)
    number, extra_args, fill = fields
    dag_id, *fields = _Unpickler(contents[number], contents, opened).load()
    template = Call(*fields)
    call_code = _filled(template.code, fill)
    return (identity, dag_id), template._replace(code=call_code, extra_args=extra_args)


def _filled(code: Any, fill: CodeFill) -> Any:
    """Return a code like that of the template, with what it has of its own."""
    if fill is None:
        return code
    if isinstance(code, partial):
        args, keywords, inner = fill
        return partial(_filled(code.func, inner), *args, **keywords)
    variables, defaults = fill
    cells = tuple(map(CellType, variables)) or None
    own = FunctionType(code.__code__, code.__globals__, code.__name__, defaults, cells)
    for name in ("__qualname__", "__module__", "__doc__"):
        setattr(own, name, getattr(code, name))
    return own


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
