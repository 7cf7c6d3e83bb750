"""The functions of a DAG by id, in the order in which they were added."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Any, overload

from handoff_dask.model.function import Function, with_arguments


@dataclass(frozen=True, slots=True)
class MappedFunctions(Sequence[Function]):
    """Functions that differ only in ids and arguments, which are kept in columns.

    A `Function` takes several times the memory, so it is made each time it is asked for.
    """

    #: Their ids are ``(name, 0)``, ``(name, 1)``...
    name: Hashable
    size: int
    template: Function
    #: Those entries of ``args`` that all have, and columns of the others, which follow.
    first: tuple[Any, ...]
    args: Sequence[Sequence[Any]]
    #: Columns of ``extra_args``, and those that all have, which follow.
    extra_args: Sequence[Sequence[Any]]
    last: tuple[Any, ...]

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, i: int) -> Function: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Function]: ...
    def __getitem__(self, i: int | slice) -> Function | Sequence[Function]:
        if isinstance(i, slice):
            return [self[n] for n in range(self.size)[i]]
        i = range(self.size)[i]
        row = [tuple([column[i] for column in columns]) for columns in (self.args, self.extra_args)]
        return self._function(i, *row)

    def __iter__(self) -> Iterator[Function]:
        args, extra_args = (
            zip(*columns, strict=True) if columns else repeat(())
            for columns in (self.args, self.extra_args)
        )
        return map(self._function, range(self.size), args, extra_args)

    def _function(self, i: int, args: tuple[Any, ...], extra_args: tuple[Any, ...]) -> Function:
        id_ = self.name, i
        return with_arguments(self.template, id_, self.first + args, extra_args + self.last)


def ids_of(functions: Sequence[Function]) -> Iterator[Hashable]:
    """Return the id of each function."""
    if isinstance(functions, MappedFunctions):
        return zip(repeat(functions.name), range(functions.size))
    return (function.id for function in functions)


class FunctionTable(Mapping[Hashable, Function]):
    """Functions by id, in the order in which they were added.

    Examples
    --------
    >>> from handoff_dask import DAG
    >>> dag = DAG()
    >>> _ = dag.map(pow, range(3), 2), dag.add(int, id="zero")
    >>> list(dag.functions)
    [('pow', 0), ('pow', 1), ('pow', 2), 'zero']
    """

    def __init__(self) -> None:
        self._alone: dict[Hashable, Function] = {}
        #: By name.
        self._mapped: dict[Hashable, MappedFunctions] = {}
        #: Numbers of functions in `_alone`, and what was added between them.
        self._order: list[int | MappedFunctions] = []

    def extend(self, functions: Sequence[Function]) -> None:
        """Add functions; the caller makes sure that the ids are new."""
        if not functions:
            return
        if isinstance(functions, MappedFunctions):
            self._mapped[functions.name] = functions
            self._order.append(functions)
            return
        self._alone.update((function.id, function) for function in functions)
        before = self._order.pop() if self._order and isinstance(self._order[-1], int) else 0
        assert isinstance(before, int)
        self._order.append(before + len(functions))

    def copy(self) -> FunctionTable:
        """Return a table of the same functions."""
        twin = FunctionTable()
        twin._alone, twin._mapped = dict(self._alone), dict(self._mapped)
        twin._order = list(self._order)
        return twin

    def _place(self, id: object) -> tuple[MappedFunctions, int] | None:
        """Find a function that was mapped."""
        if not isinstance(id, tuple) or len(id) != 2 or id[0] not in self._mapped:
            return None
        functions, number = self._mapped[id[0]], id[1]
        try:
            i = int(number)
        except (TypeError, ValueError, OverflowError):
            return None
        return (functions, i) if i == number and 0 <= i < len(functions) else None

    def __getitem__(self, id: Hashable) -> Function:
        if id in self._alone:
            return self._alone[id]
        if place := self._place(id):
            functions, i = place
            return functions[i]
        raise KeyError(id)

    def __contains__(self, id: object) -> bool:
        return id in self._alone or self._place(id) is not None

    def __len__(self) -> int:
        return len(self._alone) + sum(map(len, self._mapped.values()))

    def __iter__(self) -> Iterator[Hashable]:
        alone = iter(self._alone)
        return chain.from_iterable(
            islice(alone, part) if isinstance(part, int) else ids_of(part) for part in self._order
        )

    def values(self) -> ValuesView[Function]:
        """Return a view of the functions."""
        return _Functions(self)

    def in_order(self) -> Iterator[Function]:
        """Return the functions, one after the other."""
        alone: Iterable[Function] = iter(self._alone.values())
        return chain.from_iterable(
            islice(alone, part) if isinstance(part, int) else part for part in self._order
        )

    def __repr__(self) -> str:
        return repr(dict(self))


class _Functions(ValuesView[Function]):
    _mapping: FunctionTable

    def __iter__(self) -> Iterator[Function]:
        return self._mapping.in_order()
