"""Why functions run where they do, or do not run: before a run and during one."""

from __future__ import annotations

import pickle
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from distributed import Client

from handoff_dask.client import connection
from handoff_dask.client.describing import Rows, dag_label
from handoff_dask.client.outcomes import producer
from handoff_dask.graph.translation import code_prefixes
from handoff_dask.model.dag import DAG, require_dag
from handoff_dask.model.expansion import Node, expand
from handoff_dask.placement.events import Finding, Waiting
from handoff_dask.widgets import markup, reports
from handoff_dask.wire.messages import RunSpec

Verdict = TypeVar("Verdict")


def _some(items: Sequence[Any], text: Callable[[Any], str] = repr) -> str:
    """List the first three of many items."""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(map(text, items[:3])) + more


class _Report(Mapping[Hashable, Verdict]):
    """A mapping of function ids to verdicts that reads as a report."""

    def __init__(self, verdicts: Mapping[Hashable, Verdict]) -> None:
        self._verdicts = dict(verdicts)

    def __getitem__(self, function_id: Hashable) -> Verdict:
        return self._verdicts[function_id]

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._verdicts)

    def __len__(self) -> int:
        return len(self._verdicts)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}\n{self}>"

    def __str__(self) -> str:
        return "\n".join([self._head(), *(f"  {line}" for line in self._lines())])

    @abstractmethod
    def _head(self) -> str: ...

    def _lines(self) -> Iterator[str]:
        """Yield a line for each verdict, naming the functions that share it."""
        ids: dict[str, list[Hashable]] = {}
        for id_, verdict in self._verdicts.items():
            ids.setdefault(str(verdict), []).append(id_)
        for verdict_text, same in ids.items():
            yield f"{_some(same)}: {verdict_text}"


class Explanation(_Report[Finding]):
    """What :func:`explain` returns: {function id: Finding}; its text reads as a report.

    Attributes
    ----------
    ending : str
        What still occupies workers although it was given up, in words; empty if nothing does.
    """

    def __init__(self, verdicts: Mapping[Hashable, Finding], ending: str = "") -> None:
        super().__init__(verdicts)
        self.ending = ending

    @property
    def possible(self) -> bool:
        """Whether every function could run on some worker."""
        return all(self._verdicts.values())

    def __str__(self) -> str:
        return super().__str__() + (f"\n{self.ending}" if self.ending else "")

    def _head(self) -> str:
        if not self._verdicts:
            return "nothing to place"
        if bad := sum(not finding for finding in self._verdicts.values()):
            return f"{bad} of {len(self)} functions cannot run on this cluster"
        return f"all {len(self)} functions can run on this cluster"

    def _repr_html_(self) -> str:
        rows = reports.verdicts(self._verdicts, _finding_cells)
        # What cannot run comes first: it is what one looks for.
        rows.sort(key=lambda row: bool(self._verdicts[row.ids[0]]))
        head = ("can it run", "where, or nearest", "lacks")
        summary = self._head() + (f"; {self.ending}" if self.ending else "")
        return reports.report("Explanation", summary, head, rows)


class ExplanationAnswer(Explanation, Awaitable[Explanation]):
    """An Explanation, or an awaitable of one; see :mod:`handoff_dask.client.answers`."""


def _finding_cells(finding: Finding) -> tuple[object, ...]:
    if finding:
        number = markup.count(len(finding.able), "worker")
        where = f"{number}: {markup.names(finding.able)}" if len(finding.able) > 1 else ""
        return reports.yes_no(True, "yes"), where or finding.able[0], ""
    if not finding.pin_known:
        return reports.yes_no(False, "no"), "", f"no worker answers to {finding.pin_text}"
    if finding.nearest is None:
        return reports.yes_no(False, "no"), "", "no workers"
    pinned = f" (pinned to {finding.pin_text})" if finding.pin is not None else ""
    lacks = reports.resources(finding.shortfall, "offers")
    return reports.yes_no(False, "no"), f"{finding.nearest}{pinned}", lacks


@dataclass(frozen=True, slots=True)
class Unready:
    """Why a function is not ready: the functions whose results it lacks.

    If there are none, it waits for the result of a future, or for data that functions share.
    """

    dependencies: tuple[Hashable, ...]

    def __str__(self) -> str:
        return f"waits for {_some(self.dependencies) or 'its arguments'}"


@dataclass(frozen=True, slots=True)
class Fetching:
    """What a placed function waits for: inputs that its worker has yet to receive."""

    #: Pairs of (id of the function whose result it is, addresses of the workers that have it).
    inputs: tuple[tuple[Hashable, tuple[str, ...]], ...]

    def __str__(self) -> str:
        shown = _some(self.inputs, lambda pair: f"{pair[0]!r} from {' or '.join(pair[1][:3])}")
        return f"fetching {shown}"

    @classmethod
    def of(
        cls, inputs: Iterable[tuple[int | str, tuple[str, ...]]], nodes: Sequence[Node]
    ) -> Fetching:
        """Return it for inputs given by the index of their node, or by a key of Dask."""
        return cls(tuple((i if isinstance(i, str) else producer(nodes, i), w) for i, w in inputs))


class RunExplanation(_Report[Waiting | Unready | Fetching]):
    """What ``run.explain()`` returns: {id of a function that is not running: why}."""

    def _head(self) -> str:
        if not self._verdicts:
            return "nothing waits"
        return f"{markup.count(len(self), 'function')} {'waits' if len(self) == 1 else 'wait'}"

    def _repr_html_(self) -> str:
        rows = reports.verdicts(self._verdicts, _reason_cells)
        return reports.report("Explanation", self._head(), ("held for", "workers"), rows)


class RunExplanationAnswer(RunExplanation, Awaitable[RunExplanation]):
    """A RunExplanation, or an awaitable of one; see :mod:`handoff_dask.client.answers`."""


def _reason_cells(why: Waiting | Unready | Fetching) -> tuple[object, ...]:
    if isinstance(why, Unready | Fetching):
        return str(why), ""
    return hold_cells(why)


def hold_cells(why: Waiting) -> tuple[str, str]:
    """Return what functions are held for, and the workers that this concerns, for a table."""
    what = reports.resources(why.resources, "at most free") or why.words
    if why.finding is not None:
        what += f": {why.finding}"
    if why.ending:
        what += f"; {why.ending}"
    return what, markup.names(why.workers)


@connection.keyword_client
def explain(dag: DAG, *, client: Client | None = None) -> ExplanationAnswer:
    """Tell, before a run, which workers could ever run each function, or what is missing.

    Parameters
    ----------
    dag
        The DAG; it is validated first.
    client
        A client of the cluster; None takes the current one.

    Returns
    -------
    Explanation
        {function id: Finding}: the workers that are `able` or, where there are none, the `nearest`
        one and its `shortfall`, or the `pin` that nobody answers to. Printed, it is a report. With
        an asynchronous client, an awaitable of one.

    Raises
    ------
    DAGError
        The DAG is not valid.

    Examples
    --------
    >>> from distributed import Client
    >>> from handoff_dask import DAG, explain
    >>> dag = DAG()
    >>> f = dag.add(int, id="f", cost={"gpu": 1})
    >>> with Client(processes=False, n_workers=1, dashboard_address="localhost:0") as client:
    ...     explanation = explain(dag)
    >>> explanation.possible
    False
    >>> explanation["f"].shortfall
    {'gpu': (1.0, 0.0)}
    """
    require_dag(dag)
    dag.validate()
    client = connection.require_client(client)
    nodes = expand(dag.functions)

    async def ask() -> Explanation:
        await connection.install(client)
        spec = RunSpec(
            run_id=f"explain-{id(dag)}-{client.id}",
            dag_id=dag_label(dag.id),
            client=client.id,
            kinds=Rows(nodes, code_prefixes(nodes)).of(range(len(nodes))),
        )
        answer = await connection.call(client, "explain", spec=spec.packed())
        findings, ending = pickle.loads(answer)
        pairs = zip(nodes, findings, strict=True)
        return Explanation({n.function.id: f for n, f in pairs if n.kind == "function"}, ending)

    return cast("ExplanationAnswer", connection.sync(client, ask))
