"""Errors name their culprits, carry their facts and survive pickling."""

from __future__ import annotations

import copy
import copyreg
import pickle

import pytest
from distributed.protocol import pickle as dask_pickle
from tblib import pickling_support

import handoff_dask
from handoff_dask import errors
from handoff_dask.client.results import ExecutionResult
from handoff_dask.model.attempt import Attempt

ATTEMPT = Attempt(1, "tcp://a", "alice", "a", 1.0, 2.0, {"cpu": 1}, "error", "ValueError", "no")
PARTIAL = ExecutionResult("d", {"a": 1})

#: Each error with its facts, and the words that must be in its text.
EXAMPLES = [
    (errors.HandoffError("why"), {}, ["why"]),
    (errors.DAGError("why"), {}, ["why"]),
    (
        errors.MissingFunctionError([("a", "x"), ("b", ("y", 1)), ("c", "x")], "xx"),
        {
            "references": (("a", "x"), ("b", ("y", 1)), ("c", "x")),
            "similar": "xx",
            "function_id": "a",
            "missing": ("x", ("y", 1)),
        },
        ["'a' refers to 'x'", "'b' refers to ('y', 1)", "Did you mean 'xx'?"],
    ),
    (
        errors.CyclicDependencyError(["a", "b"]),
        {"cycle": ("a", "b"), "relation": "depends on"},
        ["dependencies", "'a' -> 'b' -> 'a'"],
    ),
    (
        errors.CyclicDependencyError(["a", "b"], "is collocated with"),
        {"cycle": ("a", "b"), "relation": "is collocated with"},
        ["collocations", "'a' -> 'b' -> 'a'"],
    ),
    (errors.DuplicateFunctionError(("a", 1)), {"function_id": ("a", 1)}, ["('a', 1)"]),
    (
        errors.ForeignRefError("a", "b", "other", "mine"),
        {"function_id": "a", "ref_id": "b", "ref_dag_id": "other", "dag_id": "mine"},
        ["'a'", "'b'", "'other'", "'mine'"],
    ),
    (
        errors.InvalidFunctionError("a", "cost", "is wrong"),
        {"function_id": "a", "field": "cost", "problem": "is wrong"},
        ["'a'", "'cost'", "is wrong"],
    ),
    (
        errors.UnknownFunctionError("a", "is not kept"),
        {"function_id": "a", "problem": "is not kept"},
        ["function 'a': is not kept"],
    ),
    (errors.UnknownRunError("d"), {"dag_id": "d"}, ["'d'", "forget()"]),
    (
        errors.UnknownWorkerError("bob", ["alice", "carol"]),
        {"worker": "bob", "known": ("alice", "carol")},
        ["'bob'", "alice, carol"],
    ),
    (
        errors.VersionError("the scheduler", "0.2.0", "0.1.0"),
        {"where": "the scheduler", "found": "0.2.0", "own": "0.1.0"},
        [
            "the scheduler has handoff_dask 0.2.0",
            "this client has 0.1.0",
            "uninstall(client=client)",
        ],
    ),
    (
        errors.AllocationError(
            "a", {"gpu": 2}, "too few gpus", "tcp://a", {"gpu": (2, 1)}, node="alice"
        ),
        {
            "function_id": "a",
            "cost": {"gpu": 2},
            "problem": "too few gpus",
            "nearest": "tcp://a",
            "shortfall": {"gpu": (2, 1)},
            "node": "alice",
        },
        ["'a'", "too few gpus"],
    ),
    (
        errors.FunctionFailedError("a", [ATTEMPT, ATTEMPT], "ValueError: no", PARTIAL),
        {
            "function_id": "a",
            "attempts": (ATTEMPT, ATTEMPT),
            "problem": "ValueError: no",
            "partial": PARTIAL,
        },
        ["'a'", "2 attempts", "ValueError: no"],
    ),
    (
        errors.WorkerLostError(
            "a", ["tcp://a", "tcp://b"], ["alice", "bob"], ["exited with status 1", "died"]
        ),
        {
            "function_id": "a",
            "workers": ("tcp://a", "tcp://b"),
            "names": ("alice", "bob"),
            "reasons": ("exited with status 1", "died"),
        },
        ["'a'", "2 times", "tcp://a (alice) exited with status 1, tcp://b (bob) died"],
    ),
    (
        errors.OutOfMemoryError("a", 100.0, 170.5, "its process used 170 MB"),
        {"function_id": "a", "claim": 100.0, "peak": 170.5, "problem": "its process used 170 MB"},
        ["its process used 170 MB"],
    ),
    (
        errors.ProcessDiedError("a", "its process was killed by SIGSEGV", "line 1\nline 2\n"),
        {
            "function_id": "a",
            "problem": "its process was killed by SIGSEGV",
            "output": "line 1\nline 2\n",
        },
        ["killed by SIGSEGV", "line 2"],
    ),
    (
        errors.TransferError("a", "generator", "the result of 'a' cannot be sent"),
        {
            "producer": "a",
            "type_name": "generator",
            "problem": "the result of 'a' cannot be sent",
        },
        ["the result of 'a' cannot be sent"],
    ),
    (
        errors.StoreError("s3://bucket/x", "cannot write it"),
        {"store": "s3://bucket/x", "problem": "cannot write it"},
        ["the store s3://bucket/x: cannot write it"],
    ),
    (
        errors.StoredResultMissing("1f2e", "it is gone", "s3://bucket/x"),
        {"key": "1f2e", "problem": "it is gone", "store": "s3://bucket/x"},
        ["1f2e", "s3://bucket/x", "it is gone"],
    ),
    (
        errors.StandInError("ValueError", "no", "  File ..."),
        {"type_name": "ValueError", "message": "no", "traceback_text": "  File ..."},
        ["ValueError: no"],
    ),
    *(
        (
            error("d", "ended early", PARTIAL),
            {"dag_id": "d", "problem": "ended early", "partial": PARTIAL},
            ["run 'd': ended early"],
        )
        for error in (errors.ClusterLostError, errors.RunCancelledError, errors.RunTimeoutError)
    ),
]


def name(value):
    return type(value).__name__ if isinstance(value, Exception) else ""


def test_every_error_has_an_example():
    """Every error has these tests."""
    public = {n for n in handoff_dask.__all__ if n in vars(errors)}
    assert {type(error).__name__ for error, _, _ in EXAMPLES} == public


@pytest.mark.parametrize(("error", "facts", "words"), EXAMPLES, ids=name)
def test_facts_and_text(error, facts, words):
    """An error's facts are attributes, and its text names the culprits."""
    assert vars(error) == facts
    for word in words:
        assert word in str(error)


@pytest.mark.parametrize(
    "journey",
    [
        lambda error: pickle.loads(pickle.dumps(error, protocol=2)),
        lambda error: dask_pickle.loads(dask_pickle.dumps(error)),
        copy.copy,
        copy.deepcopy,
    ],
    ids=["pickle", "dask", "copy", "deepcopy"],
)
@pytest.mark.parametrize(("error", "facts", "words"), EXAMPLES, ids=name)
@pytest.mark.parametrize("with_traceback", [False, True])
def test_journeys(error, facts, words, journey, with_traceback, monkeypatch):
    """An error arrives unchanged, also with the traceback that Dask adds."""
    monkeypatch.delitem(copyreg.dispatch_table, type(error), raising=False)
    if with_traceback:
        monkeypatch.setitem(copyreg.dispatch_table, type(error), pickling_support.pickle_exception)
    arrived = journey(error)
    assert type(arrived) is type(error)
    assert vars(arrived) == facts
    assert str(arrived) == str(error)


@pytest.mark.parametrize("with_traceback", [False, True])
def test_the_cause_of_a_failed_function_travels(with_traceback, monkeypatch):
    """The original exception and the partial result arrive."""
    table, own = copyreg.dispatch_table, errors.FunctionFailedError
    monkeypatch.delitem(table, own, raising=False)
    if with_traceback:
        monkeypatch.setitem(table, own, pickling_support.pickle_exception)
    error = errors.FunctionFailedError("a", [ATTEMPT], "KeyError: 'x'")
    error.__cause__ = KeyError("x")
    error.partial = PARTIAL
    arrived = pickle.loads(pickle.dumps(error))
    assert isinstance(arrived.__cause__, KeyError)
    assert arrived.__cause__.args == ("x",)
    assert arrived.partial == PARTIAL
    assert arrived.__suppress_context__
    assert "_cause" not in vars(arrived)


def test_a_failure_caused_by_a_failure():
    """A chain of our own errors arrives complete."""
    inner = errors.FunctionFailedError("inner")
    inner.__cause__ = ValueError("root")
    outer = errors.FunctionFailedError("outer")
    outer.__cause__ = inner
    arrived = pickle.loads(pickle.dumps(outer))
    assert arrived.__cause__.function_id == "inner"
    assert arrived.__cause__.__cause__.args == ("root",)


def test_a_failure_without_cause():
    """An error without a cause arrives without one."""
    assert pickle.loads(pickle.dumps(errors.FunctionFailedError("a"))).__cause__ is None


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        ("DAGError", [ValueError]),
        ("MissingFunctionError", [errors.DAGError, ValueError]),
        ("CyclicDependencyError", [errors.DAGError, ValueError]),
        ("DuplicateFunctionError", [errors.DAGError, ValueError]),
        ("ForeignRefError", [errors.DAGError, ValueError]),
        ("InvalidFunctionError", [errors.DAGError, ValueError]),
        ("UnknownFunctionError", [KeyError]),
        ("UnknownRunError", [KeyError]),
        ("UnknownWorkerError", [KeyError]),
        ("VersionError", [RuntimeError]),
        ("AllocationError", [RuntimeError]),
        ("FunctionFailedError", [RuntimeError]),
        ("WorkerLostError", [RuntimeError]),
        ("TransferError", [RuntimeError]),
        ("OutOfMemoryError", [RuntimeError]),
        ("ProcessDiedError", [RuntimeError]),
        ("ClusterLostError", [RuntimeError]),
        ("RunCancelledError", [RuntimeError]),
        ("RunTimeoutError", [TimeoutError]),
    ],
)
def test_hierarchy(error, bases):
    """`except HandoffError` catches all, and each error is also the matching builtin one."""
    error = getattr(errors, error)
    for base in (errors.HandoffError, *bases):
        assert issubclass(error, base)


@pytest.mark.parametrize("error", ["FunctionFailedError", "AllocationError", "RunCancelledError"])
def test_failures_of_a_run_are_no_mistakes_in_a_dag(error):
    """`except DAGError` catches mistakes only."""
    assert not issubclass(getattr(errors, error), ValueError)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (errors.CyclicDependencyError(["a"]), "function 'a' depends on itself"),
        (
            errors.CyclicDependencyError(["a"], "is collocated with"),
            "function 'a' is collocated with itself",
        ),
        (
            errors.FunctionFailedError("a", [ATTEMPT], "no"),
            "function 'a' failed after 1 attempt: no",
        ),
        (errors.FunctionFailedError("a", [], "no"), "function 'a' failed: no"),
        (
            errors.WorkerLostError("a", ["tcp://a"]),
            "its worker died while function 'a' ran: tcp://a",
        ),
        (
            errors.UnknownWorkerError("bob"),
            "there is no worker 'bob'; the cluster's workers are: none",
        ),
    ],
)
def test_one_and_none(error, text):
    """The text reads well for one culprit and for none."""
    assert str(error) == text


def test_many_culprits():
    """The text names a few of hundreds of culprits and counts the rest; the attributes have all."""
    error = errors.MissingFunctionError([(i, "x") for i in range(500)])
    assert "4 refers to 'x' and 495 more" in str(error)
    assert "5 refers" not in str(error)
    assert len(error.references) == 500
