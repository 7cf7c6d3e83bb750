"""The outcome of a run: its result, or the error that ended it."""

from __future__ import annotations

import pickle
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple, TypeGuard

from handoff_dask.attempts.states import DONE, FAILED, STATES
from handoff_dask.client import connection
from handoff_dask.client.describing import Outline, function_label
from handoff_dask.client.results import Attempts, ExecutionResult, failed_or_not_run
from handoff_dask.client.stored_results import Reasons
from handoff_dask.errors import (
    AllocationError,
    FunctionFailedError,
    HandoffError,
    InvalidFunctionError,
    RunCancelledError,
    RunTimeoutError,
    StandInError,
    StoredResultMissing,
    TransferError,
    UnknownRunError,
    WorkerLostError,
)
from handoff_dask.model.attempt import Attempt
from handoff_dask.model.expansion import Node
from handoff_dask.standins import text_of
from handoff_dask.wire.messages import RunReport, Stop

#: {index: error} of the nodes that failed by themselves, the first first.
Causes = Mapping[int, BaseException]


class Before(NamedTuple):
    """What happened in a run before it went on without something that the store had lost."""

    attempts: Mapping[Hashable, tuple[Attempt, ...]] = MappingProxyType({})
    allocations: Mapping[Hashable, str] = MappingProxyType({})
    tasks: int = 0
    not_stored: Mapping[Hashable, str] = MappingProxyType({})
    why: Mapping[Hashable, str] = MappingProxyType({})
    #: Functions that do not run again, unless others need their results: they failed, or succeeded
    #: and are not stored. The values and the errors are those that they have.
    over: frozenset[Hashable] = frozenset()
    values: Mapping[Hashable, Any] = MappingProxyType({})
    errors: Mapping[Hashable, BaseException] = MappingProxyType({})

    def then(
        self,
        outline: Outline,
        report: RunReport,
        causes: Causes,
        values: Mapping[Hashable, Any],
        gone: frozenset[str],
    ) -> Before:
        """Return this and what a report says in addition; `gone` are the keys of what is lost."""
        nodes, stored, wanted = outline.nodes, outline.stored, set(outline.wanted)
        there = {i: r for i, r in stored.results.items() if r.location.key not in gone}
        attempts = Attempts(report, nodes, replace(stored, results=there))
        failed = {
            i: failure(nodes, i, causes, report)
            for i, cause in causes.items()
            if not (is_missing(cause) and cause.key in gone)
        }
        errors = failed_or_not_run(nodes, failed, values)
        errors.update(_cancelled_ones(outline, report))
        kept = {
            id_
            for id_, tried in attempts.items()
            if tried[-1].outcome == "ok"
            and not (outline.functions[id_].stored and id_ not in stored.unnamed)
            and (id_ in values or id_ not in wanted)
        }
        return Before(
            self.and_then(attempts),
            {**self.allocations, **report.allocations(nodes)},
            self.tasks + report.tasks,
            {**self.not_stored, **stored.unnamed},
            Reasons(stored, nodes, outline.functions, self.why),
            self.over | kept | errors.keys(),
            {**self.values, **{id_: values[id_] for id_ in kept if id_ in values}},
            {**self.errors, **errors},
        )

    def and_then(
        self, attempts: Mapping[Hashable, tuple[Attempt, ...]]
    ) -> Mapping[Hashable, tuple[Attempt, ...]]:
        """Return these attempts and others, in order."""
        if not self.attempts:
            return attempts
        joined = dict(attempts)
        for id_, before in self.attempts.items():
            both = *before, *attempts.get(id_, ())
            # What was made here is stored since.
            here = [attempt for attempt in both if not attempt.earlier]
            joined[id_] = tuple(replace(a, number=n) for n, a in enumerate(here, 1)) or both[:1]
        return joined

    def counted(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Return how many functions are in which state, given the counts of those that run."""
        total = {**dict.fromkeys(STATES, 0), **counts}
        total[FAILED.shown] += len(self.errors)
        total[DONE.shown] += len(self.over) - len(self.errors)
        return total


NOTHING = Before()


async def opened_report(answer: Mapping[str, Any] | None) -> tuple[RunReport, Causes]:
    """Return the report that the scheduler gave, and the errors of what failed."""
    if answer is None:
        return RunReport(stop=Stop("cancelled", "the cluster does not know it any more")), {}
    report: RunReport = pickle.loads(answer["report"])
    texts = {
        index: (entry.error_type, entry.message or "")
        for index, entries in report.attempts.items()
        for entry in entries
        if entry.error_type is not None
    }
    causes = await connection.restored(answer["errors"], texts)
    for index, problem in report.failed.items():
        if index not in causes:  # its error is not kept any more
            causes[index] = StandInError(*texts.get(index, (HandoffError.__name__, problem)))
    return report, causes


def result_of(
    outline: Outline,
    report: RunReport,
    causes: Causes,
    values: Mapping[Hashable, Any],
    problems: Mapping[Hashable, BaseException] = MappingProxyType({}),
    stopped: RunCancelledError | None = None,
    before: Before = NOTHING,
) -> ExecutionResult:
    """Put the result of a run together, or raise what the run ended with.

    Parameters
    ----------
    outline, report, causes
        The run, the scheduler's report, and the errors of what failed by itself.
    values, problems
        {function id: value} of the results there are, and {function id: error} of those that cannot
        be fetched.
    stopped
        Why this client stopped the run, if it did.
    before
        What happened in it before it was started again.
    """
    stop, nodes = report.stop, outline.nodes
    failed = {index: failure(nodes, index, causes, report) for index in causes}
    attempts = before.and_then(Attempts(report, nodes, outline.stored))
    unfetched = {
        id_: _unfetched(id_, problem, attempts.get(id_, ())) for id_, problem in problems.items()
    }
    result = ExecutionResult(
        dag_id=outline.dag_id,
        results={id_: values[id_] for id_ in outline.wanted if id_ in values},
        allocations={**before.allocations, **report.allocations(nodes)},
        attempts=attempts,
        errors={
            **failed_or_not_run(nodes, failed, {*values, *unfetched}),
            **unfetched,
            **_cancelled_ones(outline, report),
            **before.errors,
        },
        tasks=before.tasks + report.tasks,
        dag_functions=outline.functions,
        capabilities=report.capabilities,
        not_stored={**before.not_stored, **outline.stored.unnamed},
        why=Reasons(outline.stored, nodes, outline.functions, before.why),
    )
    if stop is not None and not (report.ended and all(id_ in values for id_ in outline.wanted)):
        ended: RunTimeoutError | RunCancelledError | None = None
        if stop.kind == "timeout":
            ended = RunTimeoutError(outline.dag_id, stop.problem)
        elif stop.kind in ("cancelled", "abandoned"):
            ended = stopped or RunCancelledError(outline.dag_id, stop.problem)
        if ended is not None:
            ended.partial = result
            raise ended
    # What the store has lost is not why a run has failed, unless nothing else is.
    error: BaseException | None = min(
        (*failed.values(), *unfetched.values()),
        key=lambda error: is_missing(error.__cause__),
        default=None,
    )
    if error is None and stop is not None and stop.kind == "failed":
        error = HandoffError(f"run {outline.dag_id!r}: {stop.problem}")
    if error is None or outline.on_error == "continue":
        return result
    if isinstance(error, FunctionFailedError):
        error.partial = result
    raise error from error.__cause__


def _cancelled_ones(outline: Outline, report: RunReport) -> dict[Hashable, BaseException]:
    """Return the errors of functions that were cancelled while their run went on."""
    ids = [outline.nodes[index].function.id for index in report.cancelled]
    return {
        id_: RunCancelledError(outline.dag_id, f"function {function_label(id_)} was cancelled")
        for id_ in ids
    }


def failure_of(
    outline: Outline,
    report: RunReport,
    causes: Causes,
    function_id: Hashable,
    problem: BaseException | None,
) -> BaseException:
    """Return why a function that ended has no result; `problem` is what fetching it raised."""
    nodes = outline.nodes
    if problem is not None:
        return _unfetched(
            function_id, problem, Attempts(report, nodes, outline.stored).get(function_id, ())
        )
    # Of the function itself or of what it depends on; else of the one that ended the run.
    ahead, seen = [outline.awaited[function_id]], set()
    while ahead:
        index = ahead.pop()
        if index in causes:
            return failure(nodes, index, causes, report)
        if index not in seen:
            seen.add(index)
            ahead.extend(nodes[index].dependencies)
    try:
        result_of(outline, report, causes, {})
    except HandoffError as error:
        return error
    return UnknownRunError(outline.dag_id)


def _unfetched(
    function_id: Hashable, error: BaseException, attempts: Sequence[Attempt] = ()
) -> FunctionFailedError:
    """Return the error of a function whose result exists but cannot be sent or opened."""
    # Dask appends a traceback of its own.
    text = described(error).split("\n", 1)[0]
    failed = FunctionFailedError(function_id, attempts, f"its result cannot be fetched: {text}")
    failed.__cause__ = error
    return failed


def is_missing(error: BaseException | None) -> TypeGuard[StoredResultMissing]:
    """Whether an error says that the store has lost a result; it may be an error of the user's."""
    return issubclass(type(error), StoredResultMissing)  # isinstance() believes its __class__


def described(error: BaseException | None) -> str:
    """Return the type and the text of an error."""
    if error is None or issubclass(type(error), StandInError):
        return str(error)
    return f"{type(error).__name__}: {text_of(error)}"


def producer(nodes: Sequence[Node], index: int) -> Hashable:
    """Return the function whose result, serialized or not, a node returns."""
    source = nodes[index].source
    return nodes[index if source is None else source].function.id


def _with_producer(error: TransferError, nodes: Sequence[Node], node: Node) -> TransferError:
    """Replace the producer's label on the scheduler by its id."""
    ids = [producer(nodes, index) for index in node.dependencies]
    id_ = next((id_ for id_ in ids if function_label(id_) == error.producer), error.producer)
    return TransferError(id_, error.type_name, error.problem)


def failure(nodes: Sequence[Node], index: int, causes: Causes, report: RunReport) -> HandoffError:
    """Return the error of a node that failed by itself."""
    node, cause = nodes[index], causes[index]
    id_ = node.function.id
    # Any other error of these types may come from a DAG that the function itself executed.
    if index in report.decided:
        if isinstance(cause, InvalidFunctionError):
            return InvalidFunctionError(id_, *cause.args[1:])
        if isinstance(cause, TransferError):
            cause = _with_producer(cause, nodes, node)
        if isinstance(cause, WorkerLostError):
            cause = WorkerLostError(id_, *cause.args[1:])
        if isinstance(cause, AllocationError):
            return AllocationError(id_, *cause.args[1:])
    attempts = report.attempts_of(index)
    problem = described(cause)
    if not attempts and index not in report.decided:
        # It never started: the report says why.
        problem = report.failed.get(index, problem)
    if node.kind != "function":
        problem = f"the {node.kind} of one of its arguments: {problem}"
    error = FunctionFailedError(id_, attempts, problem)
    error.__cause__ = cause
    return error
