"""The graph of functions, before anything runs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from types import MappingProxyType
from uuid import uuid4

from handoff_dask.errors import DuplicateFunctionError, InvalidFunctionError
from handoff_dask.model.function import Function
from handoff_dask.model.validation import validate


class DAG:
    """A directed acyclic graph of functions; users see its subclass, a Dask collection."""

    def __init__(self, id: Hashable = None) -> None:
        self.id: Hashable = uuid4().hex if id is None else id
        self._functions: dict[Hashable, Function] = {}

    def add_function(self, function: Function) -> DAG:
        """Add a function and return the DAG, so that calls chain."""
        if not isinstance(function, Function):
            raise TypeError(f"add_function() takes a Function, not {function!r}")
        try:
            taken = function.id in self._functions
        except TypeError:
            raise InvalidFunctionError(
                repr(function.id), "id", "must be hashable: use a string, number or tuple"
            ) from None
        if taken:
            raise DuplicateFunctionError(function.id)
        self._functions[function.id] = function
        return self

    @property
    def functions(self) -> Mapping[Hashable, Function]:
        """The functions by id, in the order in which they were added; read-only."""
        return MappingProxyType(self._functions)

    def validate(self) -> None:
        """Check the DAG; return None if it can run.

        Raises
        ------
        MissingFunctionError
            Functions refer to ids that the DAG lacks.
        CyclicDependencyError
            Functions depend on each other, or are collocated with each other, in a cycle.
        InvalidFunctionError
            A field of a function is wrong.
        """
        validate(self._functions)

    def __len__(self) -> int:
        return len(self._functions)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id!r}: {len(self)} functions>"
