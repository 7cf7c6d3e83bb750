"""How a run is described to the scheduler and to other clients."""

from __future__ import annotations

import operator

import pytest

from handoff_dask import DAG, Argument, Function, RetryPolicy, collocated
from handoff_dask.attempts.ledger import Entry
from handoff_dask.client.describing import Outline
from handoff_dask.client.options import RunOptions
from handoff_dask.client.submission import Submission
from handoff_dask.model.attempt import Attempt
from handoff_dask.wire.messages import FunctionRow, RunReport, RunSpec


def label(value, *_):
    return f"<{value}>"


def every_kind():
    """A DAG with every kind of node."""
    dag = DAG(("dag", 1))
    dag.add_function(Function("source", [], int, extra_args=["42"], cost={"CPU": 1}, node="here"))
    dag.add_function(Function("inline", ["source"], label, type="inline"))
    dag.add_function(
        Function(
            ("user", 2),
            [Argument("source", label, label), "inline"],
            operator.concat,
            node=collocated("source"),
            timeout=5,
            priority=2.5,
        )
    )
    dag.add_function(
        Function("any", [], int, node=("here", "there"), allow_other_workers=True, priority=-1)
    )
    return dag.add_function(Function("unwanted", ["source"], label))


def test_a_description_arrives_as_it_was_sent():
    """The rows come as named tuples, and everything else as it was."""
    submission = Submission(every_kind(), RunOptions(retry=RetryPolicy(2, delay=1), priority=7))
    spec = RunSpec.unpacked(submission.spec("client", within=("key", 1)))
    assert (spec.client, spec.priority, spec.within) == ("client", 7, ("key", 1))
    assert all(type(row) is FunctionRow for row in spec.rows)
    assert [row.label for row in spec.rows[:3]] == ["'source'", "('user', 2)", "'any'"]
    assert spec.rows[1].policy == RetryPolicy(2, delay=1) and spec.rows[1].timeout == 5
    assert [row.pin for row in spec.rows[:3]] == [("here",), (), ()]
    assert spec.rows[2].preferred == ("here", "there")
    # A transform goes first when the function that it is for does.
    assert [row.priority for row in spec.rows] == [0, 2.5, -1, 0, 2.5, 2.5]
    assert RunSpec.unpacked(spec.packed()) == spec


@pytest.mark.parametrize("results", ["all", "sinks", ["unwanted", "source"]])
def test_a_follower_gets_what_the_submitter_has(results):
    """Everything but the code and the arguments can be read off the description."""
    submission = Submission(every_kind(), RunOptions(results=results, on_error="continue"))
    own = submission.outline
    other = Outline.of(RunSpec.unpacked(submission.spec("client")))
    for name in ("run_id", "dag_id", "wanted", "awaited", "on_error"):
        assert getattr(other, name) == getattr(own, name), name
    assert list(other.keys) == list(own.keys)
    for node, expected in zip(other.nodes, own.nodes, strict=True):
        assert node.function.id == expected.function.id
        for name in ("index", "kind", "dependencies", "cost", "source", "target"):
            assert getattr(node, name) == getattr(expected, name), name
    assert other.functions.keys() == own.functions.keys()
    for id_, function in other.functions.items():
        for name in ("cost", "node", "type"):
            assert getattr(function, name) == getattr(own.functions[id_], name), name
    assert other.functions["user", 2].args == ("source", "inline")
    assert repr(other.functions["inline"].code) == "<label, where the DAG was submitted>"


def test_attempts_of_a_report():
    """A report's entries become attempts, with the name and the host of their worker."""
    entry = Entry(2, "tcp://a", 1.0, 4.0, "error", "ValueError", "no", {"cpu": 1}, counts=True)
    report = RunReport({3: (entry,)}, {"tcp://a": ("name", "host")})
    assert report.attempts_of(2) == ()
    assert report.attempts_of(3) == (
        Attempt(2, "tcp://a", "name", "host", 1.0, 4.0, {"cpu": 1}, "error", "ValueError", "no"),
    )
