"""The graph of functions, before anything runs."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar
from uuid import uuid4

from handoff_dask.errors import (
    DuplicateFunctionError,
    InvalidFunctionError,
    UnknownFunctionError,
)
from handoff_dask.model.building import Draft, columns
from handoff_dask.model.function import Function
from handoff_dask.model.function_table import FunctionTable, ids_of
from handoff_dask.model.refs import Ref, key_in
from handoff_dask.model.validation import validate

Self = TypeVar("Self", bound="DAG")


class DAG:
    """A directed acyclic graph of functions; users see its subclass, a Dask collection."""

    def __init__(self, id: Hashable = None, functions: Iterable[Function] = ()) -> None:
        if not _is_id(id):
            raise TypeError(f"the id of a DAG must be hashable, not {id!r}: use DAG(functions=...)")
        given: object = functions
        if not isinstance(given, Iterable) or isinstance(given, (str, Mapping, DAG)):
            raise TypeError(f"functions must be a list of Function objects, not {given!r}")
        self.id: Hashable = uuid4().hex if id is None else id
        self._functions = FunctionTable()
        #: By name of code and whether for `add`: where to go on numbering when the name is taken.
        self._numbers: dict[tuple[str, bool], int] = {}
        for function in functions:
            self.add_function(function)

    @classmethod
    def new(cls: type[Self], id: Hashable = None) -> Self:
        """Return an empty DAG: ``DAG(id)``, as ``Handoff.DAG.new`` is written in Elixir."""
        return cls(id)

    def add(self, code: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Ref:
        """Add a function that makes a call, and return a reference to its result.

        Parameters
        ----------
        code
            The callable; see :func:`function` for fields that it may carry.
        *args
            What it is called with. A :class:`Ref`, here or inside lists, tuples, sets, dicts and
            partial calls, is replaced by the result that it refers to; so are `Argument` objects
            and Dask futures. Everything else is passed as it is.
        **kwargs
            Keywords of the code, and fields of :class:`Function`. The `id` is the name of the code
            unless given, and numbered if the DAG has it: ``"load-2"``. `args` come before the
            positional arguments, `extra_args` after them. If the code has a parameter of a field's
            name, pass its value in ``extra_kwargs={...}``, or the field in ``fields={...}``; only
            `id` is always the field.

        Returns
        -------
        Ref
            What stands for the result in further calls of ``add`` and ``map``.

        Raises
        ------
        DuplicateFunctionError
            The DAG already has a function with the given id.
        ForeignRefError
            A reference is of another DAG, or of a function that this DAG lacks.
        InvalidFunctionError
            The id cannot be hashed.
        TypeError
            A keyword is neither the code's nor a field, or is both; `code` is not callable.

        Examples
        --------
        >>> import operator
        >>> from handoff_dask import DAG
        >>> dag = DAG("sums")
        >>> two = dag.add(int, "2", id="two")
        >>> three = dag.add(operator.add, two, 1, id="three", cost={"cpu": 1})
        >>> total = dag.add(sum, [two, three])
        >>> dag[total].extra_args
        ([Argument('two'), Argument('three')],)
        >>> dag.compute()
        {'two': 2, 'three': 3, 'sum': 5}
        """
        draft = Draft(code, kwargs, self.id, self._functions)
        id_ = draft.given_id
        if id_ is None:
            id_ = self._fresh(draft.name)
        self._insert([draft.function(id_, args)])
        return Ref(id_, self.id)

    def map(self, code: Callable[..., Any], /, *args: Any, **kwargs: Any) -> list[Ref]:
        """Add a function for each item of a list, and return references to their results.

        Several lists are zipped, as in the built-in ``map``, but must have the same length.

        Parameters
        ----------
        code
            The callable, as for :meth:`add`.
        *args
            Each call gets one item of each list, tuple, range or other sequence, iterator,
            generator, view of a dict, numpy array, pandas Series or Index. Anything else, such as
            text, a dict, a named tuple, a DataFrame or a Ref, is passed to each call.
        **kwargs
            As for :meth:`add`, and the same for each call, even if it is a list.

        Returns
        -------
        list of Ref
            Their ids are ``(id, 0)``, ``(id, 1)``..., where `id` is the name of the code unless
            given.

        Raises
        ------
        ValueError
            The arguments have different lengths, or one of them has no end.
        TypeError
            There is nothing to iterate over, or a set, which has no order.
        DAGError, TypeError
            As for :meth:`add`.

        Examples
        --------
        >>> from handoff_dask import DAG
        >>> dag = DAG()
        >>> powers = dag.map(pow, range(4), 2)
        >>> total = dag.add(sum, powers)
        >>> [ref.id for ref in powers]
        [('pow', 0), ('pow', 1), ('pow', 2), ('pow', 3)]
        >>> dag.compute()["sum"]
        14
        """
        draft = Draft(code, kwargs, self.id, self._functions)
        given = columns(args)
        size = len(given[0])
        name = draft.given_id
        if name is None:
            name = self._fresh(draft.name, size)
        self._insert(draft.functions(name, given))
        return [Ref((name, i), self.id) for i in range(size)]

    def add_function(self: Self, function: Function) -> Self:
        """Add a function and return the DAG, so that calls chain.

        The functions that it depends on may be added later.

        Raises
        ------
        DuplicateFunctionError
            The DAG already has a function with that id.
        InvalidFunctionError
            The id cannot be hashed.
        """
        if not isinstance(function, Function):
            hint = "; for a callable use add()" if callable(function) else ""
            raise TypeError(f"add_function() takes a Function, not {function!r}{hint}")
        self._insert([function])
        return self

    def _insert(self, functions: Sequence[Function]) -> None:
        """Add all functions or, if one of their ids is wrong, none."""
        for id_ in ids_of(functions):
            if not _is_id(id_):
                problem = "must be hashable and no Ref: use a string, number or tuple"
                raise InvalidFunctionError(repr(id_), "id", problem)
            if id_ in self._functions:
                raise DuplicateFunctionError(id_)
        self._functions.extend(functions)

    def _fresh(self, name: str, size: int | None = None) -> str:
        """Return a name, numbered if it is taken; with a size, one for that many functions."""

        def is_taken(base: str) -> bool:
            if size is None:
                return base in self._functions
            return any((base, i) in self._functions for i in range(size))

        if not is_taken(name):
            return name
        key = name, size is None
        numbers = itertools.count(self._numbers.get(key, 2))
        number = self._numbers[key] = next(n for n in numbers if not is_taken(f"{name}-{n}"))
        return f"{name}-{number}"

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

    def __getitem__(self, id: Hashable) -> Function:
        """Return the function of an id or a :class:`Ref`."""
        key = key_in(self.id, id)
        if key in self._functions:
            return self._functions[key]
        known = {str(i): i for i in self._functions}
        near = difflib.get_close_matches(str(key), known, n=1)
        hint = f"; did you mean {known[near[0]]!r}?" if near else ""
        raise UnknownFunctionError(key, f"is not in the DAG {self.id!r}{hint}")

    def __contains__(self, id: object) -> bool:
        return key_in(self.id, id) in self._functions

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._functions)

    def __reversed__(self) -> Iterator[Hashable]:
        return reversed(list(self._functions))

    def __len__(self) -> int:
        return len(self._functions)

    def __copy__(self: Self) -> Self:
        twin = object.__new__(type(self))
        own = {"_functions": self._functions.copy(), "_numbers": dict(self._numbers)}
        twin.__dict__.update(self.__dict__, **own)
        return twin

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id!r}: {len(self)} functions>"


def functions_of(dag: DAG) -> FunctionTable:
    """Return the functions that a DAG has now; what is added later is not among them."""
    return dag._functions.copy()


def require_dag(value: object) -> None:
    """Raise TypeError unless the first argument of a call is a DAG."""
    if isinstance(value, DAG):
        return
    hint = "write DAG(id, functions=[Function(...), ...])"
    if hasattr(type(value), "__dask_graph__"):
        hint = "write DAG.from_dask(...) for Dask collections"
    raise TypeError(f"the first argument must be a DAG, not of type {type(value).__name__}: {hint}")


def _is_id(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return not isinstance(value, (Function, Ref))
