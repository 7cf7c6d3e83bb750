"""The errors that users see: each names its culprit, carries its facts and survives pickling."""

from __future__ import annotations

import pickle
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Any

import cloudpickle

from handoff_dask.packed_errors import packed
from handoff_dask.standins import HandoffError as HandoffError
from handoff_dask.standins import StandInError as StandInError

_SHOWN = 5


def _list(items: Sequence[object]) -> str:
    """Name the first few of many culprits."""
    shown = ", ".join(str(item) for item in items[:_SHOWN])
    more = len(items) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


class DAGError(HandoffError, ValueError):
    """A mistake in a DAG, found before anything is sent to a cluster."""


class MissingFunctionError(DAGError):
    """Functions refer to ids that are not in the DAG.

    Parameters
    ----------
    references
        Pairs of (id of the function that refers, id that does not exist).
    similar
        An id of the DAG that resembles the first missing one, if any.

    Attributes
    ----------
    function_id : Hashable
        The first function that refers to a missing id.
    missing : tuple of Hashable
        Every missing id, each once.
    """

    def __init__(
        self, references: Sequence[tuple[Hashable, Hashable]], similar: Hashable = None
    ) -> None:
        super().__init__(references, similar)
        self.references = tuple(references)
        self.similar = similar
        self.function_id = self.references[0][0]
        self.missing = tuple(dict.fromkeys(missing for _, missing in self.references))

    def __str__(self) -> str:
        pairs = [f"{user!r} refers to {missing!r}" for user, missing in self.references]
        hint = f" Did you mean {self.similar!r}?" if self.similar is not None else ""
        return (
            f"unknown functions in the DAG: {_list(pairs)}.{hint} "
            "Add the missing functions or correct the ids."
        )


class CyclicDependencyError(DAGError):
    """Functions depend on each other in a cycle.

    Parameters
    ----------
    cycle
        The functions of the cycle, each once, in the order in which results would flow.
    relation
        How they are connected: ``"depends on"`` or ``"is collocated with"``.
    """

    def __init__(self, cycle: Sequence[Hashable], relation: str = "depends on") -> None:
        super().__init__(cycle, relation)
        self.cycle = tuple(cycle)
        self.relation = relation

    def __str__(self) -> str:
        if len(self.cycle) == 1:
            return f"function {self.cycle[0]!r} {self.relation} itself"
        path = " -> ".join(repr(i) for i in (*self.cycle, self.cycle[0]))
        what = "dependencies" if self.relation == "depends on" else "collocations"
        return f"the {what} form a cycle: {path}"


class DuplicateFunctionError(DAGError):
    """Two functions of a DAG have the same id."""

    def __init__(self, function_id: Hashable) -> None:
        super().__init__(function_id)
        self.function_id = function_id

    def __str__(self) -> str:
        return f"the DAG already has a function with the id {self.function_id!r}"


class ForeignRefError(DAGError):
    """A function takes a reference to the result of a function that its DAG lacks.

    Parameters
    ----------
    function_id
        The function that takes it.
    ref_id, ref_dag_id
        The function that the reference is to, and its DAG.
    dag_id
        The DAG of the function that takes it.
    """

    def __init__(
        self, function_id: Hashable, ref_id: Hashable, ref_dag_id: Hashable, dag_id: Hashable
    ) -> None:
        super().__init__(function_id, ref_id, ref_dag_id, dag_id)
        self.function_id = function_id
        self.ref_id = ref_id
        self.ref_dag_id = ref_dag_id
        self.dag_id = dag_id

    def __str__(self) -> str:
        where = f"function {self.function_id!r} of the DAG {self.dag_id!r}"
        if self.ref_dag_id == self.dag_id:
            return (
                f"{where} takes a Ref to {self.ref_id!r}, which the DAG lacks: add that function "
                "first"
            )
        return (
            f"{where} takes a Ref to {self.ref_id!r} of the DAG {self.ref_dag_id!r}: add that "
            "function to the same DAG, or run the other DAG first and pass the result"
        )


class InvalidFunctionError(DAGError):
    """A field of a function is invalid.

    Parameters
    ----------
    function_id
        The function.
    field
        The invalid field.
    problem
        What is wrong with the field, and what to do.
    """

    def __init__(self, function_id: Hashable, field: str, problem: str) -> None:
        super().__init__(function_id, field, problem)
        self.function_id = function_id
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return f"function {self.function_id!r}, field {self.field!r}: {self.problem}"


class UnknownFunctionError(HandoffError, KeyError):
    """The run has no function with this id, or does not keep its result."""

    def __init__(self, function_id: Hashable, problem: str) -> None:
        super().__init__(function_id, problem)
        self.function_id = function_id
        self.problem = problem

    def __str__(self) -> str:
        return f"function {self.function_id!r}: {self.problem}"


class UnknownRunError(HandoffError, KeyError):
    """The cluster keeps no run with this dag_id."""

    def __init__(self, dag_id: Hashable) -> None:
        super().__init__(dag_id)
        self.dag_id = dag_id

    def __str__(self) -> str:
        return (
            f"the cluster keeps no run with the dag_id {self.dag_id!r}. Runs are kept while their "
            "client holds them, or until forget() when submitted with detach=True."
        )


class UnknownWorkerError(HandoffError, KeyError):
    """The cluster has no worker with this name, address or host."""

    def __init__(self, worker: str, known: Sequence[str] = ()) -> None:
        super().__init__(worker, known)
        self.worker = worker
        self.known = tuple(known)

    def __str__(self) -> str:
        known = _list(self.known) or "none"
        return f"there is no worker {self.worker!r}; the cluster's workers are: {known}"


class VersionError(HandoffError, RuntimeError):
    """The cluster has a version of handoff_dask that does not match the client's.

    Parameters
    ----------
    where
        The scheduler or a worker.
    found, own
        Its version, and that of the client.
    """

    def __init__(self, where: str, found: str, own: str) -> None:
        super().__init__(where, found, own)
        self.where = where
        self.found = found
        self.own = own

    def __str__(self) -> str:
        return (
            f"{self.where} has handoff_dask {self.found}, this client has {self.own}: the first "
            "two numbers must match. Install the same version on both sides. If a client brought "
            "the other version to the cluster, remove it by uninstall(client=client) with that "
            "version."
        )


class AllocationError(HandoffError, RuntimeError):
    """No worker can ever hold a function.

    Parameters
    ----------
    function_id
        The function.
    cost
        What it asks for: {resource: amount}; memory in MB.
    problem
        Why no worker can hold it, in a sentence.
    nearest
        Address of the worker that comes nearest to the cost, if any.
    shortfall
        What that worker lacks: {resource: (asked for, offered)}.
    node
        The pin of the function, if it has one: a tuple if it names several workers.
    """

    def __init__(
        self,
        function_id: Hashable,
        cost: Mapping[str, float],
        problem: str,
        nearest: str | None = None,
        shortfall: Mapping[str, tuple[float, float]] | None = None,
        node: str | tuple[str, ...] | None = None,
    ) -> None:
        cost, shortfall = dict(cost), dict(shortfall or {})
        super().__init__(function_id, cost, problem, nearest, shortfall, node)
        self.function_id = function_id
        self.cost = cost
        self.problem = problem
        self.nearest = nearest
        self.shortfall = shortfall
        self.node = node

    def __str__(self) -> str:
        return f"function {self.function_id!r} cannot be placed: {self.problem}"


class _UnfinishedError(HandoffError):
    """Base of the errors that end a run and have the result of what finished."""

    partial: Any

    @property
    def _facts(self) -> tuple[Any, ...]:
        """The arguments that it is made with, without `partial`."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickling an exception drops its cause, which may be half of the message.
        cause = None if self.__cause__ is None else pickle.dumps(packed(self.__cause__))
        partial = None
        with suppress(Exception):  # some results cannot be pickled
            partial = cloudpickle.dumps(self.partial)
        return *self._alone(), {"__cause__": cause, "partial": partial}

    def __setstate__(self, state: dict[str, Any] | None) -> None:
        for name, value in (state or {}).items():
            if isinstance(value, bytes):
                try:
                    value = pickle.loads(value)
                except Exception:  # it needs a module that is not here
                    value = None
            setattr(self, name, value)

    def _alone(self) -> tuple[Any, ...]:
        return type(self), self._facts

    def _with_partial(self) -> tuple[Any, ...]:
        return *self._alone(), {"partial": self.partial}

    #: Ways to pickle it without its cause, which is sent separately; the first that works is used.
    reductions = (_with_partial, _alone)


class FunctionFailedError(_UnfinishedError, RuntimeError):
    """A function failed for good; the original exception is the ``__cause__``.

    Parameters
    ----------
    function_id
        The function.
    attempts
        Every start of it, as :class:`~handoff_dask.Attempt` records.
    problem
        The last failure, in one line.
    partial
        The :class:`~handoff_dask.ExecutionResult` of the functions that finished.
    """

    def __init__(
        self,
        function_id: Hashable,
        attempts: Sequence[Any] = (),
        problem: str = "",
        partial: Any = None,
    ) -> None:
        super().__init__(function_id, attempts, problem, partial)
        self.function_id = function_id
        self.attempts = tuple(attempts)
        self.problem = problem
        self.partial = partial

    def __str__(self) -> str:
        n = len(self.attempts)
        tries = f" after {n} attempt{'s' if n > 1 else ''}" if n else ""
        return f"function {self.function_id!r} failed{tries}: {self.problem}"

    @property
    def _facts(self) -> tuple[Any, ...]:
        return self.function_id, self.attempts, self.problem


class WorkerLostError(HandoffError, RuntimeError):
    """The workers that ran a function died: the cause of a ``FunctionFailedError``.

    Parameters
    ----------
    function_id
        The function.
    workers, names
        Addresses and names of the workers, one for each death.
    reasons
        How each of them ended: ``"killed by signal 9 (SIGKILL)"``, ``"exited with status 1"``,
        ``"out of memory: ..."`` if its nanny killed it at its memory limit, or that the reason is
        unknown.
    """

    def __init__(
        self,
        function_id: Hashable,
        workers: Sequence[str],
        names: Sequence[str] = (),
        reasons: Sequence[str] = (),
    ) -> None:
        super().__init__(function_id, workers, names, reasons)
        self.function_id = function_id
        self.workers = tuple(workers)
        self.names = tuple(names)
        self.reasons = tuple(reasons)

    @property
    def out_of_memory(self) -> bool:
        """Whether the last of them was ended at its memory limit."""
        return bool(self.reasons) and self.reasons[-1].startswith("out of memory")

    def __str__(self) -> str:
        n = len(self.workers)
        times = "its worker died" if n == 1 else f"its workers died, {n} times in all"
        deaths = [
            f"{worker} ({name}) {reason}" if name else worker
            for worker, name, reason in zip_longest(self.workers, self.names, self.reasons)
        ]
        return f"{times} while function {self.function_id!r} ran: {_list(deaths)}"


class OutOfMemoryError(HandoffError, RuntimeError):
    """An isolated function used more memory than it claims: the cause of a ``FunctionFailedError``.

    Its process was killed; the worker, its results and its other functions are not affected.

    Parameters
    ----------
    function_id
        The function.
    claim
        The memory that it claimed, in MB.
    peak
        The most that it was seen to use, in MB, without its inputs.
    problem
        What happened, in a sentence.
    """

    # As of `WorkerLostError`.
    out_of_memory = True

    def __init__(self, function_id: Hashable, claim: float, peak: float, problem: str = "") -> None:
        super().__init__(function_id, claim, peak, problem)
        self.function_id = function_id
        self.claim = claim
        self.peak = peak
        self.problem = problem

    def __str__(self) -> str:
        text = f"it used {self.peak:,.0f} MB of memory and claimed {self.claim:,.0f} MB"
        return self.problem or text


class ProcessDiedError(HandoffError, RuntimeError):
    """The process of an isolated function ended under it: the cause of a ``FunctionFailedError``.

    Parameters
    ----------
    function_id
        The function.
    problem
        How it ended, such as ``"its process was killed by SIGSEGV"``.
    output
        The end of what the function printed.
    """

    def __init__(self, function_id: Hashable, problem: str, output: str = "") -> None:
        super().__init__(function_id, problem, output)
        self.function_id = function_id
        self.problem = problem
        self.output = output

    def __str__(self) -> str:
        tail = "".join(self.output.splitlines(keepends=True)[-20:]).strip()
        return f"{self.problem}. Its last output:\n{tail}" if tail else self.problem


class TransferError(HandoffError, RuntimeError):
    """A result did not reach a function that needs it: the cause of a ``FunctionFailedError``.

    Parameters
    ----------
    producer
        Id of the function that made the result; the key of the Dask task if it is not in the run.
    type_name
        The type of the result, such as ``"builtins.generator"``; empty if unknown.
    problem
        What went wrong, in a sentence.
    """

    def __init__(self, producer: Hashable, type_name: str, problem: str) -> None:
        super().__init__(producer, type_name, problem)
        self.producer = producer
        self.type_name = type_name
        self.problem = problem

    def __str__(self) -> str:
        return self.problem


class _RunEndedError(_UnfinishedError):
    """Base of the errors that end a whole run.

    Parameters
    ----------
    dag_id
        The DAG of the run.
    problem
        Why it ended.
    partial
        The :class:`~handoff_dask.ExecutionResult` of the functions that finished, as far as it is
        known.
    """

    def __init__(self, dag_id: Hashable, problem: str, partial: Any = None) -> None:
        # Not super(): RunTimeoutError is an OSError, which would treat these as its own fields.
        Exception.__init__(self, dag_id, problem, partial)
        self.dag_id = dag_id
        self.problem = problem
        self.partial = partial

    @property
    def _facts(self) -> tuple[Any, ...]:
        return self.dag_id, self.problem

    def __str__(self) -> str:
        return self.problem if self.dag_id is None else f"run {self.dag_id!r}: {self.problem}"


class ClusterLostError(_RunEndedError, RuntimeError):
    """The connection to the scheduler was lost during a run, or could not be made."""


class RunCancelledError(_RunEndedError, RuntimeError):
    """The run was cancelled.

    By ``run.cancel()``, by cancelling one of its futures, by Ctrl-C, because its client
    disconnected, because the function that submitted it was given up, or because the cluster was
    restarted.
    """


class RunTimeoutError(_RunEndedError, TimeoutError):
    """The run did not end within its time limit."""


class StoreError(HandoffError, RuntimeError):
    """A store of results cannot be used.

    Parameters
    ----------
    store
        Its URL, without a password.
    problem
        What is wrong.
    """

    def __init__(self, store: str, problem: str) -> None:
        super().__init__(store, problem)
        self.store = store
        self.problem = problem

    def __str__(self) -> str:
        return f"the store {self.store}: {self.problem}"


class StoredResultMissing(StoreError):
    """A result that was in the store is gone, damaged, or cannot be read here.

    Parameters
    ----------
    key
        The name of the result in the store.
    problem
        Why it counts as missing.
    store
        The URL of the store, without a password.
    """

    def __init__(self, key: str, problem: str, store: str = "") -> None:
        HandoffError.__init__(self, key, problem, store)
        self.key = key
        self.problem = problem
        self.store = store

    def __str__(self) -> str:
        return f"the stored result {self.key} is missing from {self.store}: {self.problem}"
