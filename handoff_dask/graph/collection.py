"""The DAG that users see: the model's, and a Dask collection."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import dask
from dask.base import DaskMethodsMixin, unpack_collections
from dask.delayed import optimize

from handoff_dask.errors import DAGError
from handoff_dask.graph.from_dask import functions_of, graph_of
from handoff_dask.graph.pictures import Engine, choose_engine, looks, write_svg
from handoff_dask.graph.translation import code_names, translate_plain
from handoff_dask.model import dag as model
from handoff_dask.model.function import Function
from handoff_dask.model.function_table import FunctionTable
from handoff_dask.widgets import dag_drawing, markup
from handoff_dask.wire.keys import Key


class DAG(model.DAG, DaskMethodsMixin):
    """A directed acyclic graph of functions (``Handoff.DAG``).

    It is a Dask collection too: ``dask.compute(dag)``, ``dask.visualize(dag)`` and
    ``client.persist(dag)`` run or draw it with any Dask scheduler. There, costs, pins and retries
    have no effect, and transforms run where their consumer does; use :func:`execute` for these.

    ``dag["load"]`` is the function of that id, ``"load" in dag`` tells whether there is one. Both
    take a :class:`Ref`, too. Iterating gives the ids, in the order in which they were added.

    Parameters
    ----------
    id
        Name of the DAG, any hashable; None generates one.
    functions
        Functions to start with.

    Examples
    --------
    >>> import operator
    >>> from handoff_dask import DAG, Function
    >>> dag = DAG("doubled")
    >>> source = dag.add(int, "42", id="source")
    >>> double = dag.add(operator.mul, source, 2, id="double", cost={"cpu": 1})
    >>> dag.validate()
    >>> dag
    <DAG 'doubled': 2 functions>
    >>> dag.compute()
    {'source': 42, 'double': 84}

    The same from records, as Handoff writes it:

    >>> DAG(
    ...     "doubled",
    ...     functions=[
    ...         Function("source", code=int, extra_args=["42"]),
    ...         Function("double", ["source"], operator.mul, [2], cost={"cpu": 1}),
    ...     ],
    ... ).compute()
    {'source': 42, 'double': 84}
    """

    def __init__(self, id: Hashable = None, functions: Iterable[Function] = ()) -> None:
        self._token = uuid4().hex
        self._plain: tuple[Any, list[Key]] | None = None
        super().__init__(id, functions)

    def _insert(self, functions: Sequence[Function]) -> None:
        super()._insert(functions)
        # Another graph needs other keys, or Dask would take it for the one it knows.
        self._token = uuid4().hex
        self._plain = None

    @classmethod
    def from_dask(cls, *collections: Any, id: Hashable = None, optimize_graph: bool = True) -> DAG:
        """Make a DAG of Dask collections: delayed objects, bags, arrays, dataframes and others.

        Each kind is optimized by its own rules first. Every task becomes a function whose id is
        the task's key; data becomes part of the functions that use it.

        Annotations become fields: ``resources`` is the `cost`, ``retries`` `max_retries`,
        ``workers`` the `node`; ``priority`` and ``allow_other_workers`` keep their names. Other
        annotations are ignored. Those around this call apply to every task that has none of that
        name.

        Dask loses annotations when it fuses tasks, so where a collection has any, only tasks with
        the same annotations are fused. Dataframes and other expressions have none of their own:
        put the annotation around this call.

        Parameters
        ----------
        *collections
            Collections, also inside lists, tuples, sets and dicts.
        id
            Name of the DAG, any hashable; None generates one.
        optimize_graph
            Whether to optimize.

        Raises
        ------
        TypeError
            There is no collection among the arguments, or one is a DAG.
        DAGError
            A collection has a P2P shuffle, or refers to tasks that it does not have.

        Examples
        --------
        >>> import dask
        >>> from handoff_dask import DAG, execute
        >>> @dask.delayed
        ... def double(x):
        ...     return 2 * x
        >>> with dask.annotate(resources={"cpu": 1}, retries=2):
        ...     four = double(2, dask_key_name="four")
        >>> dag = DAG.from_dask(double(four, dask_key_name="eight"))
        >>> dag.functions["four"].cost, dag.functions["four"].max_retries
        ({'cpu': 1}, 2)
        >>> execute(dag).results
        {'four': 4, 'eight': 8}
        """
        unpacked, _ = unpack_collections(*collections)
        if not unpacked:
            raise TypeError(
                f"from_dask() takes Dask collections, such as delayed objects, not {collections!r}"
            )
        return cls(id, functions_of(graph_of(unpacked, optimize_graph)))

    def _translated(self) -> tuple[Any, list[Key]]:
        if self._plain is None:
            self.validate()
            self._plain = translate_plain(self.functions, self._token)
        return self._plain

    def _regular(self) -> list[Function]:
        return [f for f in self.functions.values() if f.type == "regular"]

    def _fault(self) -> DAGError | None:
        """Return what is wrong with the DAG, which may be incomplete when it is displayed."""
        try:
            self.validate()
        except DAGError as error:
            return error
        return None

    def _codes(self) -> tuple[str, ...]:
        return code_names(function.code for function in self.functions.values())

    def _repr_html_(self) -> str:
        title = f"DAG {markup.plain(self.id)}"
        return dag_drawing.show(title, self.functions, self._codes(), self._fault())

    def _repr_svg_(self) -> str:
        return dag_drawing.draw(self.functions, self._codes(), self._fault(), alone=True)

    def visualize(
        self,
        filename: str | None = "dag",
        format: str | None = None,
        optimize_graph: bool = False,
        *,
        engine: Engine | None = None,
        **kwargs: Any,
    ) -> Any:
        """Draw the DAG into a file.

        Parameters
        ----------
        filename
            Its ending is the format: ``"dag.svg"``, ``"dag.png"``, ``"dag.pdf"``. None writes no
            file.
        format
            The format, if the filename has no ending; PNG, or SVG where Graphviz is missing.
        optimize_graph
            Whether Dask's engines draw the graph as it is after optimization.
        engine
            ``"graphviz"`` and ``"cytoscape"`` are Dask's: they draw the tasks that
            ``dask.compute(dag)`` would run. ``"handoff"`` draws what notebooks show, as SVG,
            whatever is installed. None takes Dask's setting ``visualization.engine`` or, of those
            that can draw the format, the first installed: Graphviz, ipycytoscape (HTML), our own.
        **kwargs
            Further options of Dask's engine, such as ``rankdir="LR"``.

        Returns
        -------
        IPython.display.SVG, IPython.display.Image, CytoscapeWidget or None
            What a notebook shows; None where IPython is missing, and for what it cannot show.

        Raises
        ------
        DAGError
            The DAG is not valid; our own engine draws it anyway.
        RuntimeError
            What the format or the engine needs is not installed.

        Examples
        --------
        >>> import os, tempfile
        >>> from handoff_dask import DAG
        >>> dag = DAG()
        >>> answer = dag.add(int, "42")
        >>> path = os.path.join(tempfile.mkdtemp(), "dag.svg")
        >>> _ = dag.visualize(path, engine="handoff")
        >>> os.path.exists(path)
        True
        """
        chosen = choose_engine(filename, format, engine)
        if chosen == "handoff":
            return write_svg(self._repr_svg_(), filename)
        if "color" not in kwargs:  # Dask labels what it colours
            kwargs = {**looks(chosen, self.__dask_keys__(), self._regular()), **kwargs}
        return DaskMethodsMixin.visualize(
            self, filename, format, optimize_graph, engine=chosen, **kwargs
        )

    # Delayed's own, which drops unused keys only: dask.compute() groups collections by this and
    # returns the results group by group, mixed up where two kinds alternate.
    __dask_optimize__ = staticmethod(optimize)
    __dask_scheduler__ = staticmethod(dask.threaded.get)

    def __dask_graph__(self) -> Any:
        return self._translated()[0]

    def __dask_layers__(self) -> tuple[str, ...]:
        return tuple(self.__dask_graph__().layers)

    def __dask_keys__(self) -> list[Key]:
        return self._translated()[1]

    def __dask_tokenize__(self) -> Any:
        return type(self).__name__, self._token

    def __dask_postcompute__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _by_id, ([f.id for f in self._regular()],)

    def __dask_postpersist__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _persisted, (self.id, self._functions.copy(), self.__dask_keys__())


class _PersistedDAG(DAG):
    """A DAG whose results Dask has, or is computing."""

    def __init__(
        self,
        id: Hashable,
        functions: FunctionTable,
        graph: Mapping[Key, Any],
        keys: list[Key],
    ) -> None:
        super().__init__(id)
        self._functions = functions
        self._plain = graph, keys

    def _insert(self, functions: Sequence[Function]) -> None:
        raise DAGError("a persisted DAG is complete: add functions to the DAG it came from")


def _by_id(values: Sequence[Any], ids: Sequence[Hashable]) -> dict[Hashable, Any]:
    return dict(zip(ids, values, strict=True))


def _persisted(
    graph: Mapping[Key, Any],
    id: Hashable,
    functions: FunctionTable,
    keys: list[Key],
    *,
    rename: Mapping[str, str] | None = None,
) -> DAG:
    names = rename or {}
    keys = [(names.get(name, name), index) for name, index in keys]
    return _PersistedDAG(id, functions, graph, keys)
