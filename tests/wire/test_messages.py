"""How a run is described to the scheduler and to other clients."""

from __future__ import annotations

import operator
from array import array

import pytest

from handoff_dask import DAG, Argument, Function, RetryPolicy, collocated
from handoff_dask.attempts.ledger import Entry
from handoff_dask.client.describing import Outline, packed_outlines
from handoff_dask.client.options import RunOptions
from handoff_dask.client.submission import Submission
from handoff_dask.model.attempt import Attempt
from handoff_dask.wire.messages import (
    Block,
    BundleRow,
    FunctionRow,
    Portion,
    RunReport,
    RunSpec,
    packed_rows,
)


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


def opened(submission, **options):
    """Return the description of a run, as it arrives."""
    return RunSpec.unpacked(submission.spec("client", **options))


def portion(submission, number, alone, members=()):
    """Return a portion of a run, as it arrives."""
    nodes, rows = submission.outline.nodes, submission.rows
    bundles = []
    if members:
        prefixes = tuple(submission.translator.prefixes[index] for index in members)
        awaited = bytes(index in submission.awaited for index in members)
        bundles = [BundleRow(0, tuple(members), {}, (), 0, 0.1, 1.0, prefixes, awaited, "first")]
    functions = [
        nodes[index].function for index in (*alone, *members) if nodes[index].kind == "function"
    ]
    if not number:
        functions += [f for f in submission.outline.functions.values() if f.type == "inline"]
    sent = Portion(
        submission.outline.run_id,
        number,
        number > 0,
        rows.of(alone),
        bundles,
        packed_rows(rows.of(members)) if members else b"",
        packed_outlines(functions),
    )
    arrived = Portion.unpacked(sent.packed())
    assert arrived == sent
    return arrived


def test_a_description_arrives_as_it_was_sent():
    """The rows come as named tuples, and everything else as it was."""
    submission = Submission(every_kind(), RunOptions(retry=RetryPolicy(2, delay=1), priority=7))
    spec = opened(submission, within=("key", 1))
    assert (spec.client, spec.priority, spec.within) == ("client", 7, ("key", 1))
    assert (spec.nodes, spec.functions, spec.awaited) == (6, 4, 4)
    assert RunSpec.unpacked(spec.packed()) == spec
    rows = portion(submission, 0, range(6)).rows
    assert all(type(row) is FunctionRow for row in (*spec.kinds, *rows))
    assert [row.label for row in rows[:3]] == ["'source'", "('user', 2)", "'any'"]
    assert rows[1].policy == RetryPolicy(2, delay=1) and rows[1].timeout == 5
    assert [row.pin for row in rows[:3]] == [("here",), (), ()]
    assert rows[2].preferred == ("here", "there")
    # A transform goes first when the function that it is for does.
    assert [row.priority for row in rows] == [0, 2.5, -1, 0, 2.5, 2.5]


def test_one_of_each_kind_is_sent_first():
    """All that the cluster must be able to run, each cost and pin once."""
    dag = every_kind()
    dag.map(int, [1, 2, 3], id="many", cost={"gpu": 1})
    dag.map(int, [1, 2, 3], id="more", cost={"gpu": 1}, node="there")
    spec = opened(Submission(dag, RunOptions()))
    many = [row for row in spec.kinds if "gpu" in row.cost]
    assert [(row.label, row.pin) for row in many] == [
        ("('many', 0)", ()),
        ("('more', 0)", ("there",)),
    ]
    # What shares its worker with others comes with them.
    labels = {row.label for row in spec.kinds}
    assert {"'source'", "('user', 2)"} <= labels
    assert sum(row.source is not None for row in spec.kinds) == 2


@pytest.mark.parametrize("results", ["all", "sinks", ["unwanted", "source"]])
def test_a_follower_gets_what_the_submitter_has(results):
    """Everything but the code and the arguments can be read off the description."""
    submission = Submission(every_kind(), RunOptions(results=results, on_error="continue"))
    own = submission.outline
    spec = opened(submission)
    portions = [portion(submission, 0, [0, 4]), portion(submission, 1, [5, 1], members=[2, 3])]
    other = Outline.of(spec, portions)
    for name in ("run_id", "dag_id", "wanted", "awaited", "on_error", "complete"):
        assert getattr(other, name) == getattr(own, name), name
    assert list(map(other.key, range(6))) == list(map(own.key, range(6)))
    together = [indices for _, indices, is_bundle in other.units if is_bundle]
    assert together == [[index for index in (2, 3) if index in submission.awaited]]
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
    report = RunReport({3: (entry,)}, workers={"tcp://a": ("name", "host")})
    assert report.attempts_of(2) == ()
    assert report.attempts_of(3) == (
        Attempt(2, "tcp://a", "name", "host", 1.0, 4.0, {"cpu": 1}, "error", "ValueError", "no"),
    )


def test_attempts_in_columns():
    """Attempts of functions in bundles count on from those that did not succeed."""
    failed = Entry(1, "tcp://a", 1.0, 2.0, "error", "ValueError", "no", {}, counts=True)
    blocks = [
        Block(
            "tcp://a",
            {},
            array("I", [3, 4]),
            array("d", [3.0, 5.0]),
            array("d", [4.0, 6.0]),
            array("f", [0, 0]),
            array("Q", [8, 8]),
            array("B", [0, 0]),
        ),
        Block(
            "tcp://b",
            {},
            array("I", [4]),
            array("d", [7.0]),
            array("d", [8.0]),
            array("f", [0]),
            array("Q", [8]),
            array("B", [1]),
        ),
    ]
    workers = {"tcp://a": ("a", "host"), "tcp://b": ("b", "host")}
    report = RunReport({3: (failed,)}, blocks, workers)
    assert set(report.tried) == {3, 4}
    attempts = {node: report.attempts_of(node) for node in (3, 4)}
    assert [(a.number, a.outcome, a.started) for a in attempts[3]] == [
        (1, "error", 1.0),
        (2, "ok", 3.0),
    ]
    assert [(a.number, a.worker_name, a.started, a.outcome) for a in attempts[4]] == [
        (1, "a", 5.0, "ok"),
        (2, "b", 7.0, "stored"),
    ]
