"""Functions as plain data: what a result file has of them, and what identifies their code."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from handoff_dask.client.describing import Elsewhere
from handoff_dask.learning.identity import code_identity, code_title
from handoff_dask.model.amounts import AUTO
from handoff_dask.model.function import Collocated, Function, collocated, dependency_ids


def as_facts(functions: Mapping[Hashable, Function]) -> dict[Hashable, dict[str, Any]]:
    """Return what each function depends on, its code, cost, pin and type."""
    return {
        function.id: {
            "args": dependency_ids(function),
            "code": code.identity,
            "title": code.title,
            "cost": _plain_cost(function.cost),
            "node": _plain_node(function.node),
            "type": function.type,
        }
        for function, code in zip(functions.values(), codes(functions.values()), strict=True)
    }


def from_facts(id_: Hashable, facts: Mapping[str, Any]) -> Function:
    """Return a function from what :func:`as_facts` returned, without its code."""
    node, cost = facts["node"], facts["cost"]
    return Function(
        id_,
        facts["args"],
        Elsewhere(facts["code"], title=facts.get("title")),  # older files do not have it
        cost=cost and {name: AUTO if a == str(AUTO) else a for name, a in cost.items()},
        node=collocated(node["collocated"]) if isinstance(node, dict) else node,
        type=facts["type"],
    )


class Code(NamedTuple):
    """What is known of a function's code."""

    #: What identifies it in other runs as well.
    identity: str
    #: By what people know it.
    title: str


def codes(functions: Iterable[Function]) -> Iterator[Code]:
    """Yield the code of each function."""
    # Many functions share few codes. These are kept alive here, so that no two have the same id.
    known: dict[int, tuple[Any, Code]] = {}
    for function in functions:
        code = function.code
        if id(code) not in known:
            if isinstance(code, Elsewhere):
                own = Code(code.identity, code.title)
            else:
                own = Code(code_identity(code), code_title(code))
            known[id(code)] = code, own
        yield known[id(code)][1]


def _plain_cost(cost: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if cost is None:
        return None
    return {name: str(AUTO) if amount is AUTO else amount for name, amount in cost.items()}


def _plain_node(node: Any) -> Any:
    if isinstance(node, Collocated):
        return {"collocated": node.id}
    return list(node) if isinstance(node, tuple) else node
