"""The result of a run."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Container, Coroutine, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from handoff_dask.client.advising import Advice, advise_on
from handoff_dask.client.describing import InStore
from handoff_dask.client.function_facts import as_facts
from handoff_dask.client.options import ResultSelection
from handoff_dask.client.stored_results import attempt_of
from handoff_dask.errors import UnknownFunctionError
from handoff_dask.model import jsonable
from handoff_dask.model.attempt import Attempt, count_earlier
from handoff_dask.model.comparing import Comparable
from handoff_dask.model.dag import DAG
from handoff_dask.model.expansion import Node, sinks
from handoff_dask.model.function import Function
from handoff_dask.model.refs import key_in
from handoff_dask.widgets import markup, plots, reports
from handoff_dask.widgets.markup import OUTCOME_COLOURS
from handoff_dask.wire.messages import RunReport


@dataclass(frozen=True, repr=False, eq=False)
class ExecutionResult(Comparable):
    """The outcome of a run.

    ``result[id]`` is the result of a function; ``in`` and iteration are about the ids of the
    functions that have one.

    Attributes
    ----------
    dag_id : Hashable
        The id of the DAG.
    results : dict
        {function id: value} of the results that were asked for.
    allocations : dict
        {function id: address of the worker that ran it}.
    attempts : dict
        {function id: tuple of Attempt}, every start of every function. Where nothing ran because
        the result was in the store, one of outcome ``"stored"``.
    errors : dict
        {function id: exception} of the functions that failed or were not run because of one that
        did; empty unless ``on_error="continue"``.
    functions : dict
        {function id: Function} with `results` and `node` filled in.
    tasks : int
        How many Dask tasks the functions were. There are fewer of them than functions where short
        functions were sent together; functions that left the others count again. Transforms of
        arguments count, too.
    capabilities : dict
        {worker address: {resource: amount}}: what the workers of the cluster offered when the run
        ended, with their ``"threads"``, as :func:`plan` takes it; empty without a cluster.
    makespan : float
        Seconds from the first start to the last end.
    not_stored : dict
        {function id: why} of the functions whose results cannot be stored, because what makes them
        cannot be named for certain; empty without a store.
    why : dict
        {function id: text} of the functions that ran although there is a store: what changed in
        their code, their arguments or the results that they need since the last run of the DAG.
    """

    dag_id: Hashable
    results: Mapping[Hashable, Any]
    allocations: Mapping[Hashable, str] = field(default_factory=dict)
    attempts: Mapping[Hashable, tuple[Attempt, ...]] = field(default_factory=dict)
    errors: Mapping[Hashable, BaseException] = field(default_factory=dict)
    tasks: int = 0
    #: The functions as the user wrote them.
    dag_functions: Mapping[Hashable, Function] = field(default_factory=dict)
    capabilities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    not_stored: Mapping[Hashable, str] = field(default_factory=dict)
    why: Mapping[Hashable, str] = field(default_factory=dict)

    def __getitem__(self, function_id: Hashable) -> Any:
        """Return the result of a function, given by its id or by a :class:`Ref`.

        Raises
        ------
        UnknownFunctionError
            There is none, a KeyError that says why: the function failed or was not run, its result
            was not asked for, or the DAG has no such function.
        """
        function_id = key_in(self.dag_id, function_id)
        if function_id in self.results:
            return self.results[function_id]
        problem = f"{self.dag_id!r} has no such function"
        if function_id in self.errors:
            problem = f"it failed or was not run: {self.errors[function_id]}"
        elif function_id in self.dag_functions:
            problem = "it was not run"
            if self.dag_functions[function_id].type == "inline":
                problem = "it is inline, and its value is never kept"
            elif function_id in self.allocations:
                problem = "its result was not asked for by results="
        raise UnknownFunctionError(function_id, problem) from self.errors.get(function_id)

    def __contains__(self, function_id: Hashable) -> bool:
        return key_in(self.dag_id, function_id) in self.results

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self.results)

    def __repr__(self) -> str:
        failed = f", {len(self.errors)} failed or not run" if self.errors else ""
        earlier = count_earlier(self.attempts)
        stored = f", {earlier} stored" if earlier else ""
        workers = len(set(self.allocations.values()))
        return (
            f"<ExecutionResult of {self.dag_id!r}: {markup.count(len(self.results), 'result')}, "
            f"{markup.count(len(self.allocations), 'function')} on "
            f"{markup.count(workers, 'worker')}, {self.makespan:.3g} s{stored}{failed}>"
        )

    def _repr_html_(self) -> str:
        return reports.result(
            self.dag_id, self.attempts, self.errors, self.makespan, len(self.allocations)
        )

    def plot(self) -> Any:
        """Return the timeline by worker, each attempt coloured by its outcome.

        Returns
        -------
        bokeh.plotting.figure
            For ``bokeh.io.show`` or ``bokeh.io.save``.

        Raises
        ------
        ImportError
            Bokeh is not installed.

        Examples
        --------
        >>> from handoff_dask import DAG, execute_local
        >>> dag = DAG("d")
        >>> f = dag.add(int)
        >>> execute_local(dag).plot().title.text
        'd'
        """
        rows, _ = reports.attempt_bars(self.attempts)
        return plots.figure(rows, markup.plain(self.dag_id), OUTCOME_COLOURS)

    @cached_property
    def functions(self) -> dict[Hashable, Function]:
        """The functions with `results` and `node` filled in."""
        return {
            id_: dataclasses.replace(
                function, results=self.results.get(id_), node=self.allocations.get(id_)
            )
            for id_, function in self.dag_functions.items()
        }

    @cached_property
    def makespan(self) -> float:
        """Seconds from the first start to the last end."""
        tried = (a for attempts in self.attempts.values() for a in attempts)
        spans = [(a.started, a.stopped) for a in tried if not a.earlier]
        if not spans:
            return 0.0
        return max(stop for _, stop in spans) - min(start for start, _ in spans)

    def advice(self) -> Advice:
        """Return what functions should declare, by what they used.

        Functions of the same code and cost share a row. Memory is only known of isolated functions;
        cores, of others, are those of the thread that called the function. The advice also says how
        long :func:`plan` expects the run to take with the costs as declared and as advised, on the
        workers in `capabilities`, under the strategy ``"packed"``. ``AUTO`` stands for what was
        claimed in the end.

        Returns
        -------
        Advice
            A table where it is printed or shown in a notebook.

        Examples
        --------
        >>> from handoff_dask import DAG, execute_local
        >>> dag = DAG("sums")
        >>> refs = dag.map(sum, [range(100_000)] * 3, cost={"cpu": 8})
        >>> (row,) = execute_local(dag).advice().rows
        >>> row.code, row.count, row.declared, row.memory is None
        ('builtins.sum', 3, {'cpu': 8}, True)
        """
        return advise_on(self)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain dicts and lists.

        What Handoff's ``execute`` returns, ``dag_id``, ``results`` and ``allocations``, comes
        first. ``functions`` has the ``args``, ``code``, ``cost``, ``node`` and ``type`` of each
        function.
        """
        return {
            "dag_id": self.dag_id,
            "results": dict(self.results),
            "allocations": dict(self.allocations),
            "attempts": {
                id_: [
                    {**dataclasses.asdict(attempt), "usage": attempt.usage._asdict()}
                    for attempt in attempts
                ]
                for id_, attempts in self.attempts.items()
            },
            "errors": {id_: jsonable.text(error) for id_, error in self.errors.items()},
            "functions": as_facts(self.dag_functions),
            "capabilities": {
                worker: dict(offered) for worker, offered in self.capabilities.items()
            },
            "tasks": self.tasks,
            "makespan": self.makespan,
        }


class ExecutionResultAnswer(ExecutionResult, Coroutine[Any, Any, ExecutionResult]):
    """An ExecutionResult, or an awaitable of one; see :mod:`handoff_dask.client.answers`."""


def failed_or_not_run(
    nodes: Sequence[Node], failed: Mapping[int, BaseException], done: Container[Hashable]
) -> dict[Hashable, BaseException]:
    """Return the error of each function that failed or depends on one that did.

    `failed` has the nodes that failed by themselves; `done` are the functions whose results are
    there all the same.
    """
    if not failed:
        return {}
    # Nodes come in no particular order: follow failures to their end.
    spread = dict(failed)
    errors: dict[Hashable, BaseException] = {}
    users: dict[int, list[int]] = {}
    for node in nodes:
        for dependency in node.dependencies:
            users.setdefault(dependency, []).append(node.index)
    spreading = list(spread)
    while spreading:
        index = spreading.pop()
        errors.setdefault(nodes[index].function.id, spread[index])
        for user in users.get(index, ()):
            if user not in spread and nodes[user].function.id not in done:
                spread[user] = spread[index]
                spreading.append(user)
    return errors


def select(dag: DAG, nodes: Sequence[Node], results: ResultSelection) -> list[Hashable]:
    """Return the functions whose results are asked for, in the order of the DAG or of the list."""
    if isinstance(results, str) and results == "all":
        return [f.id for f in dag.functions.values() if f.type == "regular"]
    if isinstance(results, str) and results == "sinks":
        return sinks(nodes)
    if isinstance(results, (str, bytes)) or not isinstance(results, (list, tuple, set, frozenset)):
        forms = '"all", "sinks" or a list of ids or refs'
        raise ValueError(f"results must be {forms}, not {reprlib.repr(results)}")
    ids = [key_in(dag.id, id_) for id_ in results]
    for id_ in ids:
        if not isinstance(id_, Hashable):
            raise ValueError(f"results contains {id_!r}, which is not an id: ids must be hashable")
        if id_ not in dag.functions:
            raise UnknownFunctionError(id_, "results= asks for it, but the DAG does not have it")
        if dag.functions[id_].type == "inline":
            raise UnknownFunctionError(
                id_, "results= asks for it, but it is inline: its value is never kept"
            )
    return list(dict.fromkeys(ids))


class Attempts(Mapping[Hashable, tuple[Attempt, ...]]):
    """The attempts of each function, made from a report on first use."""

    def __init__(
        self, report: RunReport, nodes: Sequence[Node], stored: InStore | None = None
    ) -> None:
        self._source: tuple[RunReport, Sequence[Node]] | None = report, nodes
        self._stored = stored or InStore()
        self._made: dict[Hashable, tuple[Attempt, ...]] = {}

    @property
    def _all(self) -> dict[Hashable, tuple[Attempt, ...]]:
        if self._source is not None:
            report, nodes = self._source
            self._made = {
                nodes[i].function.id: report.attempts_of(i)
                for i in report.tried
                if nodes[i].kind == "function"
            }
            if (store := self._stored.store) is not None:
                for i, result in self._stored.results.items():
                    self._made[nodes[i].function.id] = (attempt_of(result, store),)
            self._source = None
        return self._made

    def __getitem__(self, function_id: Hashable) -> tuple[Attempt, ...]:
        return self._all[function_id]

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __repr__(self) -> str:
        return repr(self._all)

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return dict, (self._all,)
