"""A plan from a failed run uses everything that is known about its functions."""

from __future__ import annotations

import json

import pytest

from handoff_dask import (
    DAG,
    ExecutionResult,
    Function,
    FunctionFailedError,
    RetryPolicy,
    execute_local,
    plan,
)
from handoff_dask.cli.result_files import OutputFile, read_durations, write_result
from handoff_dask.model.attempt import Attempt
from tests.support import dag_of

LAPTOP = {"laptop": {"cpu": 1}}


def load(*_):
    raise OSError("damaged")


def clean(*_):
    pass


def store(*_):
    pass


def result_of(**attempts):
    """An earlier run: {function: [(seconds, outcome), ...]}."""
    return ExecutionResult(
        "a dag",
        {},
        attempts={
            id_: tuple(
                Attempt(number, "tcp://a", "a", "host", 100.0, 100.0 + seconds, outcome=outcome)
                for number, (seconds, outcome) in enumerate(tried, 1)
            )
            for id_, tried in attempts.items()
        },
    )


def seconds_of(id_, result, *functions):
    """Return how long a function takes in the plan of a DAG."""
    slots = plan(dag_of(*functions), LAPTOP, result).timeline["laptop"]
    (slot,) = (slot for slot in slots if slot.id == id_)
    return pytest.approx(slot.stop - slot.start)


@pytest.mark.parametrize("outcome", ["error", "timeout", "worker-lost", "cancelled"])
def test_a_function_that_never_ended_well(outcome):
    """It takes as long as its longest attempt, however that ended."""
    result = result_of(a=[(2.0, outcome), (3.0, outcome), (1.0, outcome)])
    assert seconds_of("a", result, Function("a", [], load)) == 3.0


def test_attempts_that_ended_well_count_alone():
    """Failed attempts do not count in the average."""
    result = result_of(a=[(9.0, "error"), (2.0, "ok"), (4.0, "ok")])
    assert seconds_of("a", result, Function("a", [], load)) == 3.0


def test_a_function_that_never_ran():
    """It takes as long as others of its code take on average."""
    result = result_of(a=[(2.0, "ok")], b=[(4.0, "ok")], other=[(50.0, "ok")])
    functions = [Function(id_, [], clean) for id_ in "abc"]
    assert seconds_of("c", result, *functions, Function("other", [], store)) == 3.0


def test_a_function_that_failed_at_once():
    """It takes no less than others of its code do when they end well."""
    result = result_of(a=[(8.0, "ok")], b=[(0.1, "error")], c=[(9.0, "worker-lost")])
    functions = [Function(id_, [], clean) for id_ in "abc"]
    assert seconds_of("b", result, *functions) == 8.0
    assert seconds_of("c", result, *functions) == 9.0


def test_others_of_its_code_that_failed():
    """If none succeeded, failed attempts give the estimate for a function that never ran."""
    result = result_of(a=[(2.0, "error")])
    assert seconds_of("b", result, *[Function(id_, [], clean) for id_ in "ab"]) == 2.0


def test_nothing_is_known():
    """The error names the function and says what to do."""
    dag = dag_of(Function("a", [], load), Function("b", ["a"], clean))
    with pytest.raises(ValueError, match=r"function 'b'.*durations=\{'b': seconds, \.\.\.\}"):
        plan(dag, LAPTOP, result_of(a=[(2.0, "error")]))


def broken():
    """A DAG in which a function fails."""
    dag = DAG("broken")
    dag.add_function(Function(("clean", 1), [], clean))
    dag.add_function(Function("load", [], load, retry=RetryPolicy(1)))
    dag.add_function(Function(("clean", 2), ["load"], clean))
    return dag


def test_what_a_failed_run_leaves():
    """The partial result of an error, and a result with errors, work like any result."""
    with pytest.raises(FunctionFailedError) as caught:
        execute_local(broken())
    partial = caught.value.partial
    whole = execute_local(broken(), on_error="continue")
    for result in (partial, whole):
        assert len(plan(broken(), LAPTOP, result).timeline["laptop"]) == 3


@pytest.mark.parametrize("name", ["out.json", "out.pkl"])
def test_the_output_of_a_failed_run(tmp_path, name):
    """`dask handoff plan --durations` uses it the same way."""
    result = execute_local(broken(), on_error="continue")
    write_result(OutputFile(tmp_path / name), result)
    known = read_durations(tmp_path / name, broken().functions)
    assert plan(broken(), LAPTOP, known) == plan(broken(), LAPTOP, result)


def test_an_output_that_lacks_what_it_needs(tmp_path):
    """A file that looks like the output of a run but has no attempts is recognised."""
    (tmp_path / "out.json").write_text(json.dumps({"attempts": {"load": [{"started": 1}]}}))
    with pytest.raises(Exception, match="is neither JSON nor the output of a run"):
        read_durations(tmp_path / "out.json", ["load"])


@pytest.mark.parametrize("durations", [None, 3, FunctionFailedError("load")])
def test_what_is_no_duration(durations):
    """Anything but a mapping or a result is refused, and the error says what to pass."""
    with pytest.raises(ValueError, match=r"durations must be .*ExecutionResult"):
        plan(dag_of(Function("load", [], load)), LAPTOP, durations)
