"""The descriptions of a run: for its clients, and for the scheduler."""

from __future__ import annotations

import pickle
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle

from handoff_dask import pickling
from handoff_dask.client.options import OnError
from handoff_dask.model.expansion import Call, Node, NodeKind
from handoff_dask.model.function import Function, claims, dependency_ids, time_limit
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.wire.keys import Key
from handoff_dask.wire.messages import ONE_ATTEMPT, FunctionOutline, FunctionRow, RunSpec


def dag_label(dag_id: Hashable) -> str:
    """Return the name that the scheduler has for a DAG, whose id may be of the user's own type."""
    return dag_id if isinstance(dag_id, str) else repr(dag_id)


def function_label(function_id: Hashable) -> str:
    """Return the name that the scheduler has for a function."""
    return repr(function_id)


def function_rows(
    nodes: Sequence[Node],
    prefixes: Sequence[str],
    policies: Sequence[RetryPolicy] | None = None,
    pins: Mapping[Hashable, str] | None = None,
) -> list[FunctionRow]:
    """Return the row of each node.

    Parameters
    ----------
    nodes, prefixes
        The nodes, and the names of their code.
    policies
        How each node is retried; None if nothing will run.
    pins
        What an allocator chose; it overrides pins, preferences and collocations of the DAG.
    """
    # One object for each distinct policy, so that it travels once.
    numbers: dict[int, RetryPolicy] = {}
    escalations: dict[int, bytes] = {}
    rows = []
    for node, prefix in zip(nodes, prefixes, strict=True):
        pin, preferred, collocated = node.pin, node.preferred, node.collocated
        if pins and node.kind == "function":
            pin, preferred, collocated = (pins[node.function.id],), (), None
        policy = ONE_ATTEMPT if policies is None else policies[node.index]
        if id(policy) not in numbers:
            numbers[id(policy)] = policy.numbers
            if policy.escalate is not None:
                escalations[id(policy)] = pickling.dumps(policy)
        rows.append(
            FunctionRow(
                prefix,
                function_label(node.function.id),
                node.cost,
                node.dependencies,
                pin,
                preferred,
                node.function.priority,
                collocated,
                node.binds,
                node.source,
                node.target,
                numbers[id(policy)],
                time_limit(node.function),
                escalations.get(id(policy)),
            )
        )
    return rows


def packed_outlines(functions: Mapping[Hashable, Function]) -> bytes:
    """Return the outlines of functions, pickled for clients that need not have the user's code."""
    # One object for each distinct cost, so that it travels once.
    costs: dict[Any, Mapping[str, float]] = {}
    outlines = []
    for f in functions.values():
        args = tuple(dependency_ids(f))
        code = getattr(f.code, "__qualname__", None) or repr(f.code)
        cost = claims(f)
        cost = None if cost is None else costs.setdefault(tuple(cost.items()), cost)
        outlines.append(tuple(FunctionOutline(f.id, args, code, cost, f.node, f.type)))
    packed: bytes = cloudpickle.dumps(outlines)
    return packed


@dataclass(frozen=True)
class Outline:
    """What a client needs to know of a run to follow it, whoever submitted it."""

    run_id: str
    dag_id: Hashable
    functions: Mapping[Hashable, Function]
    #: What the DAG expands to.
    nodes: Sequence[Node]
    keys: Sequence[Key]
    #: The functions whose results are asked for.
    wanted: Sequence[Hashable]
    #: {function id: index} of those, and of the functions that run only for their side effects.
    awaited: Mapping[Hashable, int]
    on_error: OnError

    @classmethod
    def of(cls, spec: RunSpec) -> Outline:
        """Return the outline of a run that another client submitted."""
        outlines = [FunctionOutline(*fields) for fields in pickle.loads(spec.functions)]
        functions = {
            o.id: Function(o.id, o.args, Elsewhere(o.code), cost=o.cost, node=o.node, type=o.type)
            for o in outlines
        }
        regular = [f for f in functions.values() if f.type == "regular"]
        nodes = [
            Node(
                index,
                _kind(row),
                regular[index if row.target is None else row.target],
                _NO_CALL,
                row.dependencies,
                row.cost,
                source=row.source,
                target=row.target,
            )
            for index, row in enumerate(spec.rows)
        ]
        return cls(
            run_id=spec.run_id,
            dag_id=pickle.loads(spec.own_id),
            functions=functions,
            nodes=nodes,
            keys=spec.keys,
            wanted=[nodes[index].function.id for index in spec.wanted],
            awaited={nodes[index].function.id: index for index in sorted(spec.awaited)},
            on_error="raise" if spec.stops_at_failure else "continue",
        )


def _kind(row: FunctionRow) -> NodeKind:
    if row.source is None:
        return "function"
    return "deserializer" if row.binds is None else "serializer"


_NO_CALL = Call(None, (), (), {})


class Elsewhere:
    """Stands for the code of a function that another client submitted."""

    def __init__(self, name: str) -> None:
        self.__qualname__ = self.__name__ = name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raise: there is nothing to call."""
        raise RuntimeError(f"the code of {self.__name__} is where the DAG was submitted")

    def __repr__(self) -> str:
        return f"<{self.__name__}, where the DAG was submitted>"
