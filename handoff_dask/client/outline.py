"""What a client needs to know of a run to follow it, whoever submitted it."""

from __future__ import annotations

import pickle
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle

from handoff_dask.client.options import OnError
from handoff_dask.model.expansion import Call, Node
from handoff_dask.model.function import Function, argument_id


@dataclass(frozen=True)
class Outline:
    """A DAG on its way, without what only workers need.

    Attributes
    ----------
    run_id : str
        Tells this run from every other on the cluster.
    dag_id : Hashable
        The id of its DAG.
    functions : Mapping
        {id: Function}.
    nodes : sequence of Node
        What the DAG expands to.
    wanted : sequence of Hashable
        The functions whose results are asked for.
    awaited : Mapping
        {function id: index} of those, and of the functions that run only for what they do.
    keys : sequence
        The Dask key of each node.
    on_error : str
        ``"raise"`` or ``"continue"``.
    detach : bool
        Whether the cluster keeps the run for its own sake.
    """

    run_id: str
    dag_id: Hashable
    functions: Mapping[Hashable, Function]
    nodes: Sequence[Node]
    wanted: Sequence[Hashable]
    awaited: Mapping[Hashable, int]
    keys: Sequence[Any]
    on_error: OnError
    detach: bool

    def packed(self) -> bytes:
        """Return it pickled, for clients that need not have the user's code.

        Codes and arguments stay behind: :class:`Elsewhere` stands for a code.
        """
        functions = [
            (
                f.id,
                tuple(map(argument_id, f.args)),
                getattr(f.code, "__qualname__", None) or repr(f.code),
                f.cost,
                f.node,
                f.type,
            )
            for f in self.functions.values()
        ]
        nodes = [(n.kind, n.function.id, n.dependencies, n.source, n.target) for n in self.nodes]
        rest = (self.wanted, dict(self.awaited), list(self.keys), self.on_error, self.detach)
        packed: bytes = cloudpickle.dumps((self.run_id, self.dag_id, functions, nodes, rest))
        return packed

    @classmethod
    def unpacked(cls, packed: bytes) -> Outline:
        """Return what :meth:`packed` pickled."""
        run_id, dag_id, rows, parts, rest = pickle.loads(packed)
        functions = {
            id_: Function(id_, args, Elsewhere(code), cost=cost, node=node, type=type_)
            for id_, args, code, cost, node, type_ in rows
        }
        nodes = [
            Node(
                index,
                kind,
                functions[id_],
                _NO_CALL,
                dependencies,
                functions[id_].cost or {},
                source=source,
                target=target,
            )
            for index, (kind, id_, dependencies, source, target) in enumerate(parts)
        ]
        return cls(run_id, dag_id, functions, nodes, *rest)


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
