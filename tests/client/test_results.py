"""What a run gives back, and which results are asked for."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, replace

import pytest

from handoff_dask.client.results import ExecutionResult, select
from handoff_dask.errors import UnknownFunctionError
from handoff_dask.model.attempt import Attempt
from handoff_dask.model.expansion import expand
from handoff_dask.model.function import Function, collocated
from handoff_dask.model.refs import Ref
from tests.support import dag_of, shown


def accept(*args):
    return args


FUNCTIONS = {
    f.id: f
    for f in (
        Function("a", [], accept),
        Function("i", ["a"], accept, type="inline"),
        Function("b", ["i"], accept, node=collocated("a")),
        Function("c", ["a"], accept, node="alice", cost={"cpu": 1}),
    )
}


def attempt(number, started, stopped, worker="tcp://1"):
    return Attempt(number, worker, "alice", "host", started, stopped, {"cpu": 1})


RESULT = ExecutionResult(
    dag_id="d",
    results={"a": 1, "b": None},
    allocations={"a": "tcp://1", "b": "tcp://2"},
    attempts={
        "a": (attempt(1, 5.0, 6.0), attempt(2, 7.0, 8.0)),
        "b": (attempt(1, 8.0, 12.5),),
        "c": (attempt(1, 4.0, 9.0),),
    },
    errors={"c": ValueError("no")},
    dag_functions=FUNCTIONS,
)


def chosen(results):
    return select(dag_of(*FUNCTIONS.values(), id="d"), expand(FUNCTIONS), results)


@pytest.mark.parametrize(
    "results", ["sink", "a", b"all", None, 3, True, {"a": 1}, (i for i in "ab")], ids=shown
)
def test_selection_that_is_none(results):
    """A misspelt word or a bare id is refused, with the words that there are."""
    with pytest.raises(ValueError, match=r'"all", "sinks" or a list'):
        chosen(results)


@pytest.mark.parametrize(
    ("results", "culprit", "problem"),
    [(["a", "x"], "x", "does not have it"), (["i", "a"], "i", "inline")],
)
def test_selection_of_what_is_never_kept(results, culprit, problem):
    """An unknown or inline function has no result to ask for, and is named."""
    with pytest.raises(UnknownFunctionError, match=problem) as caught:
        chosen(results)
    assert caught.value.function_id == culprit


@pytest.mark.parametrize(
    ("results", "ids"),
    [
        ("all", ["a", "b", "c"]),
        ("sinks", ["b", "c"]),
        ([], []),
        (["c", "a", "c"], ["c", "a"]),
        (("b",), ["b"]),
        ({"b"}, ["b"]),
    ],
)
def test_selection(results, ids):
    """ "all" leaves out inline functions, "sinks" what others use; a list keeps its order."""
    assert chosen(results) == ids


def test_functions_with_their_results():
    """The copies carry result and node; the functions of the DAG stay as they were."""
    found = {i: (f.results, f.node) for i, f in RESULT.functions.items()}
    assert found == {
        "a": (1, "tcp://1"),
        "i": (None, None),
        "b": (None, "tcp://2"),
        "c": (None, None),
    }
    assert RESULT.functions["c"].cost == {"cpu": 1}
    assert FUNCTIONS["a"].results is None
    assert FUNCTIONS["b"].node == collocated("a")


def test_makespan():
    """The makespan runs from the first start to the last stop, of whatever attempt."""
    assert RESULT.makespan == 12.5 - 4.0
    assert ExecutionResult("d", {}).makespan == 0


def test_as_dict():
    """What Handoff returns comes first; everything is plain dicts, lists and text."""
    found = RESULT.as_dict()
    assert list(found)[:3] == ["dag_id", "results", "allocations"]
    assert found["results"] == {"a": 1, "b": None}
    assert found["allocations"] == {"a": "tcp://1", "b": "tcp://2"}
    assert found["attempts"]["a"][1]["number"] == 2
    assert found["attempts"]["a"][1]["cost"] == {"cpu": 1}
    assert found["errors"] == {"c": "ValueError('no')"}
    assert found["makespan"] == RESULT.makespan


def test_as_dict_shares_nothing():
    """Changing the dict does not change the result."""
    found = RESULT.as_dict()
    found["results"]["a"] = 2
    found["attempts"]["a"][0]["cost"]["cpu"] = 9
    assert RESULT.results["a"] == 1
    assert RESULT.attempts["a"][0].cost == {"cpu": 1}


def test_a_result_does_not_change():
    """The outcome of a run is a record."""
    with pytest.raises(FrozenInstanceError):
        RESULT.results = {}


def test_pickle():
    """A result travels, also after its derived parts were looked at."""
    result = ExecutionResult("d", {"a": 1}, attempts={"a": (attempt(1, 0.0, 1.0),)})
    assert result.makespan == 1
    assert result.functions == {}
    assert pickle.loads(pickle.dumps(result)) == result


def test_repr():
    """The text tells what came of the run, and failures only if there are any."""
    assert repr(RESULT) == (
        "<ExecutionResult of 'd': 2 results, 2 functions on 2 workers, 8.5 s, 1 failed or not run>"
    )
    assert "failed" not in repr(ExecutionResult("d", {}))
    alone = ExecutionResult("d", {"a": 1}, allocations={"a": "tcp://w:1"})
    assert "1 result, 1 function on 1 worker, " in repr(alone)


def test_a_result_by_its_id():
    """result[id], `in` and iteration are about the results that there are."""
    assert RESULT["a"] == 1
    assert RESULT["b"] is None
    assert list(RESULT) == ["a", "b"]
    assert "b" in RESULT and "c" not in RESULT


def test_a_ref_stands_for_its_id():
    """In results= and in result[...], a ref of the DAG; one of another DAG is an unknown id."""
    own, foreign = Ref("b", "d"), Ref("b", "another")
    assert chosen([own, "a", "b"]) == ["b", "a"]
    assert RESULT[own] is None and own in RESULT
    assert foreign not in RESULT
    with pytest.raises(UnknownFunctionError, match="another"):
        chosen([foreign])
    with pytest.raises(UnknownFunctionError, match="another"):
        RESULT[foreign]


@pytest.mark.parametrize(
    "function_id, problem",
    [
        ("c", "it failed or was not run: no"),
        ("i", "it is inline, and its value is never kept"),
        ("unknown", "'d' has no such function"),
    ],
)
def test_a_result_that_is_not_there(function_id, problem):
    """A KeyError that says why; the error of the function is the cause."""
    with pytest.raises(KeyError, match=rf"^function '{function_id}': {problem}$") as caught:
        RESULT[function_id]
    assert caught.value.__cause__ is RESULT.errors.get(function_id)


def test_a_result_that_was_not_asked_for():
    """The error names the option; or says that the function was not run."""
    some = replace(RESULT, results={"a": 1}, errors={})
    with pytest.raises(UnknownFunctionError, match="not asked for by results="):
        some["b"]
    with pytest.raises(UnknownFunctionError, match="it was not run"):
        some["c"]
