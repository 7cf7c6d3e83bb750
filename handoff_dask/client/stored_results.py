"""What a store has of a DAG, and what is left to run."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Collection, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import cloudpickle

from handoff_dask.client.describing import InStore, dag_label, function_label
from handoff_dask.errors import StoredResultMissing
from handoff_dask.model.attempt import Attempt
from handoff_dask.model.dag import DAG, functions_of
from handoff_dask.model.expansion import (
    Call,
    Entry,
    Node,
    Transformed,
    expand,
    untransformed,
    with_dependencies,
)
from handoff_dask.model.function import Function
from handoff_dask.store import loaded
from handoff_dask.store.entries import Location, Named, StoredResult
from handoff_dask.store.naming import Namer, ResultName, Unnameable, changes
from handoff_dask.store.opened import opened, read
from handoff_dask.store.result_store import Store
from handoff_dask.tracebacks import users_frame
from handoff_dask.wire.stored_as import Place, StoredAs


@dataclass(frozen=True)
class StoredResults:
    """Which results of a DAG are in a store, by the index of the node."""

    #: None if nothing is stored; then all nodes run.
    store: Store | None = None
    #: What identifies each result, or why nothing does.
    names: Sequence[ResultName | Unnameable] = ()
    #: Those that are there and that are asked for, or needed by what runs.
    hits: Mapping[int, StoredResult] = field(default_factory=dict)
    #: The nodes that run.
    runs: Collection[int] = ()

    @classmethod
    def look(
        cls,
        store: Store | None,
        nodes: Sequence[Node],
        ends: Iterable[int],
        gone: Container[str] = (),
    ) -> StoredResults:
        """Look for the results of the nodes in `ends` and, if one is missing, of what it needs.

        Those with the keys in `gone` are missing.

        Raises
        ------
        StoreError
            The store cannot be read, and is required.
        """
        if store is None:
            return cls(runs=range(len(nodes)))
        names = Namer(store.versions).names(nodes)
        hits: dict[int, StoredResult] = {}
        runs: set[int] = set()
        ahead = set(ends)
        while ahead:
            named = {
                i: name
                for i in ahead
                if _is_stored(nodes[i])
                and isinstance(name := names[i], ResultName)
                and name.key not in gone
            }
            there = opened(store).look(named.values())
            hits.update((i, there[n.key]) for i, n in named.items() if n.key in there)
            missing = [i for i in ahead if i not in hits]
            runs.update(missing)
            needed = {d for i in missing for d in nodes[i].dependencies}
            ahead = needed - runs - hits.keys()
        # A transform runs if both of its ends do.
        idle = {i for i in runs if nodes[i].source is not None and nodes[i].source not in runs}
        return cls(store, names, hits, frozenset(runs - idle))

    def without(self, nodes: Sequence[Node]) -> list[Node]:
        """Return nodes that read what is stored of their dependencies, instead of waiting for it.

        Nodes that do not run are returned as they are.
        """
        if not self.hits:
            return list(nodes)
        return [self._reading(node, nodes) if node.index in self.runs else node for node in nodes]

    def _reading(self, node: Node, nodes: Sequence[Node]) -> Node:
        collocated = node.collocated if node.collocated in self.runs else None
        if all(i in self.runs for i in node.dependencies):
            return node if collocated == node.collocated else replace(node, collocated=collocated)
        positions: dict[int, int] = {}
        entries: dict[int, Entry] = {}
        made: dict[int, Entry] = {}
        for position, index in enumerate(node.dependencies):
            if index in self.runs:
                entries[position] = positions.setdefault(index, len(positions))
            else:
                entries[position] = self._read(index, nodes, made)
        call = with_dependencies(node.call, entries)
        return replace(node, call=call, dependencies=tuple(positions), collocated=collocated)

    def _read(self, index: int, nodes: Sequence[Node], made: dict[int, Entry]) -> Entry:
        """Return what reads a result, and applies the transforms that follow."""
        index, steps = untransformed(nodes, index)
        if index not in made:
            made[index] = Call(read, (), (self.store, self.hits[index].location.for_reading()), {})
        return Transformed(made[index], steps) if steps else made[index]

    def places(self, nodes: Sequence[Node], dag_id: Hashable) -> dict[int, StoredAs]:
        """Return where the results of the nodes that run are stored."""
        if self.store is None:
            return {}
        packed, label = pickle.dumps(self.store), dag_label(dag_id)
        expected: dict[int, bytes] = {}  # by the id of what `ResultName.code` is
        places = {}
        for index in self.runs:
            name = self.names[index]
            if isinstance(name, ResultName) and _is_stored(nodes[index]):
                place = Place(Location.of(name), label, function_label(nodes[index].function.id))
                code = expected.get(id(name.code))
                if code is None:
                    code = expected[id(name.code)] = self._expected(name)
                places[index] = StoredAs(packed, code, place.packed())
        return places

    def _expected(self, name: ResultName) -> bytes:
        """Return what a worker's code must be so that its results deserve a name."""
        assert self.store is not None
        # What is sent by value is not the worker's.
        sent = tuple(f"{m}." for m in ("__main__", *cloudpickle.list_registry_pickle_by_value()))
        code = loaded.loaded(label for label in name.code if not label.startswith(sent))
        return loaded.packed(self.store.shown_url, code)

    def known(self, nodes: Sequence[Node], dag_id: Hashable) -> InStore:
        """Return what a client of the run has to know of it."""
        if self.store is None:
            return InStore()
        unnamed: dict[Hashable, str] = {}
        missing: dict[Hashable, ResultName] = {}
        for index in sorted(self.runs):
            node, name = nodes[index], self.names[index]
            if _is_stored(node):
                if isinstance(name, ResultName):
                    missing[node.function.id] = name
                else:
                    unnamed[node.function.id] = str(name)
        last = opened(self.store).last_run(dag_label(dag_id)) if missing else {}
        return InStore(self.store, self.hits, unnamed, missing, last)


def _is_stored(node: Node) -> bool:
    return node.kind == "function" and node.function.stored


def attempt_of(stored: StoredResult, store: Store) -> Attempt:
    """Return the attempt that stands for a result that was in the store."""
    made = stored.made
    return Attempt(
        0,
        made.worker,
        made.worker,
        made.host,
        made.started,
        made.stopped,
        outcome="stored",
        message=f"from {store.shown_url}, made by {made.user or 'somebody'} on {made.host}",
        usage=made.usage,
    )


def record(known: InStore, dag_id: Hashable, nodes: Sequence[Node]) -> None:
    """Record what a run stores, and has, for :class:`Reasons` in later ones."""
    if known.store is not None:
        names: dict[str, Named] = {
            function_label(nodes[i].function.id): stored.location
            for i, stored in known.results.items()
        }
        names.update((function_label(id_), name) for id_, name in known.missing.items())
        opened(known.store).record_run(dag_label(dag_id), names)


def warn(known: InStore) -> None:
    """Warn, at the user's call, about functions whose results cannot be stored."""
    if not known.unnamed:
        return
    (first, problem), *others = known.unnamed.items()
    more = f", and those of {len(others)} further functions" if others else ""
    _, level = users_frame()
    warnings.warn(
        f"the result of function {first!r} is not stored{more}: what makes it cannot be named for "
        f"certain: {problem}. Function(store_key=...) names the code; stored=False says that this "
        "is meant",
        stacklevel=level,
    )


class Reasons(Mapping[Hashable, str]):
    """Why functions run: {function id: what changed since the last run of the DAG}.

    Each is found out when it is asked for.
    """

    def __init__(
        self,
        known: InStore,
        nodes: Sequence[Node],
        functions: Mapping[Hashable, Function],
        before: Mapping[Hashable, str] = MappingProxyType({}),
    ) -> None:
        self._known = known
        self._nodes = nodes
        self._functions = functions
        #: Why functions ran before the run was started again.
        self._before = before

    def __getitem__(self, function_id: Hashable) -> str:
        if function_id in self._before:
            return self._before[function_id]
        return self._reason(self._functions[function_id], self._known.missing[function_id])

    def __iter__(self) -> Iterator[Hashable]:
        return iter(dict.fromkeys((*self._before, *self._known.missing)))

    def __len__(self) -> int:
        return len({*self._before, *self._known.missing})

    def __repr__(self) -> str:
        return repr(dict(self))

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return dict, (dict(self),)  # without the store, which may have a secret

    @cached_property
    def _makers(self) -> dict[str, str]:
        """{key of a result: label of its function}."""
        known = self._known
        makers = {name.key: function_label(id_) for id_, name in known.missing.items()}
        for index, stored in known.results.items():
            makers[stored.location.key] = function_label(self._nodes[index].function.id)
        return makers

    def _reason(self, function: Function, name: ResultName) -> str:
        last = self._known.last.get(function_label(function.id))
        if last is None:
            return "no earlier run of the DAG has stored it"
        if last.key == name.key:
            return "the last run did not store it, or its entry is gone"
        assert self._known.store is not None
        try:
            before = opened(self._known.store).manifest(last)
        except StoredResultMissing as error:
            return f"its name changed; in what is not known: of the last entry, {error.problem}"
        return "; ".join(changes(name, before._asdict(), self._makers))


def explain(dag: DAG, store: Store) -> dict[Hashable, str | None]:
    """Return why each function of a DAG would run; None for those whose results are stored."""
    dag.validate()
    functions = functions_of(dag)
    nodes = expand(functions)
    ends = [node.index for node in nodes if node.kind == "function"]
    known = StoredResults.look(store, nodes, ends).known(nodes, dag.id)
    reasons = {**Reasons(known, nodes, functions), **known.unnamed}
    stored = {nodes[index].function.id for index in known.results}
    ids = [nodes[index].function.id for index in ends]
    rest = "its result is not to be stored"
    return {id_: None if id_ in stored else reasons.get(id_, rest) for id_ in ids}
