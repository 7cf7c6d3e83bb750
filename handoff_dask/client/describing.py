"""The descriptions of a run: for its clients, and for the scheduler."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

import cloudpickle

from handoff_dask import pickling
from handoff_dask.client.options import OnError
from handoff_dask.model.expansion import Call, Node, NodeKind
from handoff_dask.model.function import Function, claims, dependency_ids, time_limit
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.placement.bundling import companions
from handoff_dask.store.entries import Location, StoredResult
from handoff_dask.store.naming import ResultName
from handoff_dask.store.result_store import Store
from handoff_dask.wire.keys import Key, bundle_key, node_key
from handoff_dask.wire.messages import (
    ONE_ATTEMPT,
    FunctionOutline,
    FunctionRow,
    Portion,
    RunSpec,
    unpacked_rows,
)


def dag_label(dag_id: Hashable) -> str:
    """Return the name that the scheduler has for a DAG, whose id may be of the user's own type."""
    return dag_id if isinstance(dag_id, str) else repr(dag_id)


def function_label(function_id: Hashable) -> str:
    """Return the name that the scheduler has for a function."""
    return repr(function_id)


class Rows:
    """Makes the rows of nodes.

    Parameters
    ----------
    outline
        The run.
    translator
        Has the names of its codes, and how its nodes are retried.
    pins
        What an allocator chose; it overrides pins, preferences and collocations of the DAG.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        prefixes: Sequence[str],
        policies: Sequence[RetryPolicy] | None = None,
        pins: Mapping[Hashable, str] | None = None,
        wanted: Container[Hashable] = (),
        awaited: Container[Hashable] = (),
        expected: Mapping[Hashable, float] = MappingProxyType({}),
    ) -> None:
        self._nodes = nodes
        self._prefixes = prefixes
        self._policies = policies
        self._pins = pins
        self._wanted = wanted
        self._awaited = awaited
        self._expected = expected
        # One object for each distinct policy, so that it travels once.
        self._numbers: dict[int, RetryPolicy] = {}
        self._escalations: dict[int, bytes] = {}

    def of(self, indices: Iterable[int]) -> list[FunctionRow]:
        """Return the rows of nodes."""
        return list(map(self._row, indices))

    def _row(self, index: int) -> FunctionRow:
        node = self._nodes[index]
        id_ = node.function.id
        is_function = node.kind == "function"
        pin, preferred, collocated = node.pin, node.preferred, node.collocated
        if self._pins and is_function:
            pin, preferred, collocated = (self._pins[id_],), (), None
        policy = ONE_ATTEMPT if self._policies is None else self._policies[index]
        numbers = self._numbers.get(id(policy))
        if numbers is None:
            numbers = self._numbers[id(policy)] = policy.numbers
            if policy.escalate is not None:
                self._escalations[id(policy)] = pickling.dumps(policy)
        return FunctionRow(
            index,
            self._prefixes[index],
            function_label(id_),
            node.cost,
            node.dependencies,
            pin,
            preferred,
            node.function.priority,
            collocated,
            node.binds,
            node.source,
            node.target,
            numbers,
            time_limit(node.function),
            self._escalations.get(id(policy)),
            self._expected.get(id_) if is_function else None,
            is_function and id_ in self._wanted,
            is_function and id_ in self._awaited,
            node.learns_memory,
        )

    def kinds(self, indices: Iterable[int]) -> list[FunctionRow]:
        """Return the rows of one node of each cost and pin, and of all that depend on others."""
        grouped = companions(self._nodes)
        kinds: dict[Any, int] = {}
        costs: dict[int, Any] = {}
        for node in map(self._nodes.__getitem__, indices):
            kind: Any = node.index
            if node.kind == "function" and node.collocated is None and node.index not in grouped:
                # Costs are interned.
                cost = costs.get(id(node.cost))
                if cost is None:
                    cost = costs[id(node.cost)] = tuple(node.cost.items())
                pin = self._pins[node.function.id] if self._pins else node.pin
                kind = cost, pin
            kinds.setdefault(kind, node.index)
        return self.of(kinds.values())


def packed_outlines(functions: Iterable[Function]) -> bytes:
    """Return the outlines of functions, pickled for clients that need not have the user's code."""
    # One object for each distinct cost, so that it travels once.
    costs: dict[Any, Mapping[str, float]] = {}
    outlines = []
    for f in functions:
        args = tuple(dependency_ids(f))
        code = getattr(f.code, "__qualname__", None) or repr(f.code)
        cost = claims(f)
        cost = None if cost is None else costs.setdefault(tuple(cost.items()), cost)
        # Plain tuples: those with names take several times as long to pickle.
        outlines.append((f.id, args, code, cost, f.node, f.type))
    packed: bytes = cloudpickle.dumps(outlines)
    return packed


@dataclass(frozen=True)
class InStore:
    """The results of a run that were in a store when it was submitted, and what is not kept there.

    They are those that are asked for, or that functions of the run need.
    """

    store: Store | None = None
    #: {index of the node: result}.
    results: Mapping[int, StoredResult] = field(default_factory=dict)
    #: {function id: why its result is not stored}.
    unnamed: Mapping[Hashable, str] = field(default_factory=dict)
    #: {function id: name of its result} of the others that run.
    missing: Mapping[Hashable, ResultName] = field(default_factory=dict)
    #: {label of a function: where its result was stored} in the last run of the DAG.
    last: Mapping[str, Location] = field(default_factory=dict)

    def packed(self, functions: Iterable[Function]) -> bytes:
        """Return it pickled, given the functions that have these results."""
        if not self.results:
            return b""
        # Each client that follows the run reads the values from the store.
        results = {index: stored.without_content() for index, stored in self.results.items()}
        return pickle.dumps((self.store, results, packed_outlines(functions)))


@dataclass(frozen=True)
class Outline:
    """What a client needs to know of a run to follow it, whoever submitted it."""

    run_id: str
    dag_id: Hashable
    functions: Mapping[Hashable, Function]
    #: What the DAG expands to.
    nodes: Sequence[Node]
    #: Returns the key of a node.
    key: Callable[[int], Key]
    #: The functions whose results are asked for.
    wanted: Sequence[Hashable]
    #: {function id: index} of those, and of the functions that run only for their side effects.
    awaited: Mapping[Hashable, int]
    on_error: OnError
    #: For a run that is followed: key, nodes that the run waits for, and whether it is a bundle, of
    #: each task.
    units: Sequence[tuple[Key, Sequence[int], bool]] = ()
    #: Whether the cluster has been sent all of it.
    complete: bool = True
    stored: InStore = field(default_factory=InStore)

    @cached_property
    def stored_ids(self) -> Mapping[Hashable, StoredResult]:
        """{function id: result} of those that were in the store."""
        nodes = self.nodes
        return {nodes[i].function.id: stored for i, stored in self.stored.results.items()}

    @classmethod
    def of(cls, spec: RunSpec, portions: Iterable[Portion]) -> Outline:
        """Return the outline of a run that another client submitted."""
        rows: dict[int, FunctionRow] = {}
        outlines: list[FunctionOutline] = []
        units: list[tuple[Key, Sequence[int], bool]] = []
        for portion in portions:
            rows.update((row.index, row) for row in portion.rows)
            units += (
                (node_key(row.prefix, spec.run_id, row.index), (row.index,), False)
                for row in portion.rows
                if row.awaited
            )
            for bundle in portion.bundles:
                awaited = [
                    i for i, flag in zip(bundle.members, bundle.awaited, strict=True) if flag
                ]
                units.append((bundle_key(spec.run_id, bundle.number), awaited, True))
            if portion.members:
                rows.update((row.index, row) for row in unpacked_rows(portion.members))
            outlines += (FunctionOutline(*fields) for fields in pickle.loads(portion.functions))
        complete = len(rows) == spec.running
        in_order = [rows[index] for index in sorted(rows)]
        ids = [o.id for o in outlines if o.type == "regular"]
        named = dict(
            zip((row.index for row in rows.values() if row.source is None), ids, strict=True)
        )
        identities = {id_: spec.codes.get(rows[index].prefix) for index, id_ in named.items()}
        functions = {o.id: _elsewhere(o, identities.get(o.id)) for o in outlines}
        stored, stored_nodes = _opened_stored(spec.own_stored)
        functions.update((node.function.id, node.function) for node in stored_nodes.values())
        nodes = [
            stored_nodes.get(index, _UNSENT)
            if row is None
            else Node(
                row.index,
                _kind(row),
                functions[named[row.index if row.target is None else row.target]],
                _NO_CALL,
                row.dependencies,
                row.cost,
                source=row.source,
                target=row.target,
            )
            for index, row in enumerate(map(rows.get, range(spec.nodes)))
        ]
        wanted = spec.order
        if wanted is None or not complete:
            wanted = tuple(row.index for row in in_order if row.wanted)
        return cls(
            run_id=spec.run_id,
            dag_id=pickle.loads(spec.own_id),
            functions=functions,
            nodes=nodes,
            key=lambda index: node_key(rows[index].prefix, spec.run_id, index),
            wanted=[nodes[index].function.id for index in wanted],
            awaited={nodes[row.index].function.id: row.index for row in in_order if row.awaited},
            on_error="raise" if spec.stops_at_failure else "continue",
            units=units,
            complete=complete,
            stored=stored,
        )


def _elsewhere(outline: FunctionOutline, identity: str | None) -> Function:
    return Function(
        outline.id,
        outline.args,
        Elsewhere(outline.code, identity),
        cost=outline.cost,
        node=outline.node,
        type=outline.type,
    )


def _opened_stored(packed: bytes) -> tuple[InStore, Mapping[int, Node]]:
    """Return what :meth:`InStore.packed` packed, and the nodes that have these results."""
    if not packed:
        return InStore(), {}
    store, results, outlines = pickle.loads(packed)
    nodes = {
        index: Node(index, "function", _elsewhere(FunctionOutline(*fields), None), _NO_CALL, (), {})
        for index, fields in zip(results, pickle.loads(outlines), strict=True)
    }
    return InStore(store, results), nodes


def _kind(row: FunctionRow) -> NodeKind:
    if row.source is None:
        return "function"
    return "deserializer" if row.binds is None else "serializer"


_NO_CALL = Call(None, (), (), {})
#: Stands for a node of a run whose submitter went away before it had sent it.
_UNSENT = Node(-1, "serializer", Function(None), _NO_CALL, (), {})


class Elsewhere:
    """Stands for the code of a function that another client submitted.

    `identity` and `title` are what :func:`code_identity` and :func:`code_title` return for that
    code; None if that is not known.
    """

    def __init__(self, name: str, identity: str | None = None, title: str | None = None) -> None:
        self.__qualname__ = self.__name__ = name
        self.identity = identity or name
        self.title = title or self.identity

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raise: there is nothing to call."""
        raise RuntimeError(f"the code of {self.__name__} is where the DAG was submitted")

    def __repr__(self) -> str:
        return f"<{self.__name__}, where the DAG was submitted>"
