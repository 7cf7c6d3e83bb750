"""What the functions of a run should declare."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from handoff_dask.client.function_facts import codes
from handoff_dask.client.planning import Tried, plan
from handoff_dask.errors import HandoffError
from handoff_dask.learning.advice import CodeAdvice, Use, advise
from handoff_dask.model.amounts import AUTO
from handoff_dask.model.dag import DAG
from handoff_dask.model.function import Collocated, Function
from handoff_dask.widgets import markup, reports

#: What attempts say that ended like this: how much was used.
_TELLING = {"ok", "out-of-memory"}


@dataclass(frozen=True)
class Advice:
    """What the functions of a run declared, used and should declare, by code.

    Printed, it is a table.

    Attributes
    ----------
    rows : tuple
        A :class:`CodeAdvice` for each code and cost.
    makespan, advised_makespan : float or None
        How long the run takes with the costs as declared and as advised, by :func:`plan` (s). None
        if that is not known: the run had no cluster, or its workers could not hold a cost.
    """

    rows: tuple[CodeAdvice, ...]
    makespan: float | None = None
    advised_makespan: float | None = None

    def __str__(self) -> str:
        if not self.rows:
            return "nothing was measured"
        return "\n".join([markup.aligned(reports.advice_table(self.rows)), *self._remarks])

    def _repr_html_(self) -> str:
        return reports.advice(self.rows, "; ".join(self._remarks))

    @property
    def _remarks(self) -> list[str]:
        remarks = []
        if self.makespan is not None:
            before = markup.seconds(self.makespan)
            after = "no worker could hold the advised ones"
            if self.advised_makespan is not None:
                after = f"{markup.seconds(self.advised_makespan)} with the advised ones"
            remarks.append(f"predicted makespan: {before} with the declared costs, {after}")
        if self.rows and all(row.memory is None for row in self.rows):
            remarks.append("memory was not measured: only that of isolated functions is")
        return remarks

    def as_dict(self) -> dict[str, Any]:
        """Return it in a form that JSON can hold."""
        return {
            "codes": [row.as_dict() for row in self.rows],
            "makespan": self.makespan,
            "advised_makespan": self.advised_makespan,
        }


class Ran(Tried, Protocol):
    """What advice is based on, such as an :class:`ExecutionResult`."""

    @property
    def dag_functions(self) -> Mapping[Hashable, Function]:
        """The functions by id."""

    @property
    def capabilities(self) -> Mapping[str, Mapping[str, float]]:
        """What the workers of the cluster offered."""


def advise_on(result: Ran) -> Advice:
    """Return what the functions of a run should declare, by what they used."""
    #: By identity of the code and cost: the code's title and the functions.
    members: dict[Any, tuple[str, list[Hashable]]] = {}
    functions = result.dag_functions
    for (id_, function), code in zip(functions.items(), codes(functions.values()), strict=True):
        if result.attempts.get(id_):
            kind = code.identity, *_declared(function).items()
            members.setdefault(kind, (code.title, []))[1].append(id_)
    rows = []
    advised: dict[Hashable, Mapping[str, Any]] = {}
    for title, ids in members.values():
        uses = [
            Use(attempt.duration, attempt.usage.cpu_time, attempt.usage.peak_memory)
            for id_ in ids
            for attempt in result.attempts[id_]
            if attempt.outcome in _TELLING
        ]
        if uses:
            row = advise(title, _declared(functions[ids[0]]), uses)
            rows.append(row)
            advised.update(dict.fromkeys(ids, row.cost))
    if not rows or not result.capabilities:
        return Advice(tuple(rows))
    return Advice(tuple(rows), _makespan(result, {}), _makespan(result, advised))


def _declared(function: Function) -> dict[str, Any]:
    return {name.lower(): amount for name, amount in (function.cost or {}).items()}


def _makespan(result: Ran, costs: Mapping[Hashable, Mapping[str, Any]]) -> float | None:
    """Return how long the run takes if some functions cost something else; None if unknown."""
    workers: dict[Any, set[str]] = {}
    for attempts in result.attempts.values():
        for a in attempts:
            for name in (a.worker, a.worker_name, a.host):
                workers.setdefault(name, set()).add(a.worker)
    functions = []
    for id_, function in result.dag_functions.items():
        cost, node = costs.get(id_, _declared(function)), function.node
        if AUTO in cost.values():
            claimed = [a.cost.get("memory", 0) for a in result.attempts.get(id_, ())]
            cost = {**cost, "memory": claimed[-1] if claimed else 0}
        if node is not None and not isinstance(node, Collocated):
            # The plan knows workers by their addresses only.
            pins = node if isinstance(node, tuple) else (node,)
            node = tuple(address for pin in pins for address in workers.get(pin, {pin}))
        functions.append(replace(function, cost=cost or None, node=node))
    try:
        return plan(DAG(functions=functions), result.capabilities, result).makespan
    except (HandoffError, ValueError):
        return None  # nothing is known of some functions, or workers that held them have left
