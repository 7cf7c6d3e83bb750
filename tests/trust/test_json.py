"""Values of users' programs as JSON: exact or left out, and never an error after a run."""

from __future__ import annotations

import enum
import json
import os
import pickle
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from handoff_dask import ExecutionResult, Function
from handoff_dask.cli.exit_codes import Problem
from handoff_dask.cli.result_files import OutputFile, as_json, labels, write_result
from handoff_dask.model import jsonable
from handoff_dask.model.attempt import Attempt


class Odd:
    """Raises for its text and for its attributes."""

    def __repr__(self):
        raise RuntimeError("no text")

    def __getattr__(self, name):
        raise ValueError(name)


class OddError(Exception):
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class Alike:
    def __repr__(self):
        return "<Alike>"


class Once:
    """Can be sent once, and not again."""

    def __reduce__(self):
        raise TypeError("not twice")


class Colour(enum.IntEnum):
    RED = 1


def circle():
    loop = []
    loop += [loop, loop]
    return loop


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def strict(text):
    """Parse what any JSON parser takes."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("value", "held"),
    [
        ([1, 2.5, "a", True, None, {"b": (1, 2)}], [1, 2.5, "a", True, None, {"b": [1, 2]}]),
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (Fraction(3, 4), 0.75),
        (Colour.RED, 1),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        ({"loss": [np.float64(0.25)]}, {"loss": [0.25]}),
        (2**100, 2**100),
        ("\ud800", "\ud800"),
    ],
    ids=str,
)
def test_what_json_holds(value, held):
    """Numbers of any type, small arrays and tuples, and what is in them."""
    converted = jsonable.exact(value)
    assert converted == held and type(converted) is type(held)
    assert strict(json.dumps(converted, allow_nan=False)) == held


@pytest.mark.parametrize(
    "value",
    [
        float("nan"), float("-inf"), np.float64("nan"), np.array([1.0, np.inf]), np.zeros(20_000),
        np.array([object()]), np.datetime64("2026-01-01"), Fraction(1, 3), Decimal(1), 1j, 10**5000,
        {1: "a"}, {"a": {1}}, b"bytes", type("Text", (str,), {})("a"), [Odd()], circle(),
        nested(200), nested(5000),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_json_cannot_hold(value):
    """Values that JSON would change are refused, not converted."""
    with pytest.raises(jsonable.NotJSONError, match=type(value).__name__):
        jsonable.exact(value)


def test_facts_are_never_refused():
    """What JSON cannot hold becomes text, or null if it is a number."""
    facts = {
        ("a", 1): [np.int64(1), Fraction(1, 3), float("inf"), 10**5000],
        Odd(): {"odd": Odd(), "bytes": b"b", "circle": circle()},
        np.int64(2): ({1: np.nan},),
    }
    converted = jsonable.loose(facts)
    assert converted["('a', 1)"] == [1, 1 / 3, None, None]
    assert converted["<Odd whose repr raises RuntimeError>"]["bytes"] == "b'b'"
    strict(json.dumps(converted, allow_nan=False))


def test_ids_that_read_the_same():
    """Each one has its own label, even if their reprs are useless."""
    ids = ["a", Alike(), Alike(), Odd(), Odd(), "<Alike>", 1, "1"]
    converted = labels(ids)
    assert list(converted) == ids and len(set(converted.values())) == len(ids)


def odd_result():
    """A run with nothing but unusual values."""
    good, bad, odd = ("x", np.int64(1)), frozenset({"bad"}), Odd()
    cost = {"cpu": np.int64(1), "memory": Fraction(1, 3), "gpu": np.float32(0.5)}
    tried = (Attempt(1, "tcp://a", "a", "h", 1.0, 2.0, cost=cost, message="\udcff"),)
    functions = {id_: Function(id_, [], int) for id_ in (good, bad, odd, "nan", "huge", "once")}
    return ExecutionResult(
        np.int64(7),
        {good: {"n": np.int64(3)}, odd: Odd(), "nan": [np.nan], "huge": 10**5000, "once": Once()},
        allocations={good: "tcp://a"},
        attempts={good: tried, "not in the dag": tried},
        errors={bad: OddError()},
        dag_functions=functions,
    )


def test_a_file_of_an_odd_result(tmp_path):
    """Everything that JSON can hold is written; the rest is named with its type."""
    file = OutputFile(tmp_path / "out.json")
    left_out = write_result(file, odd_result())
    document = strict((tmp_path / "out.json").read_text())
    assert document["results"] == {labels([("x", np.int64(1))])[("x", 1)]: {"n": 3}}
    assert sorted(document["left_out"].values()) == ["Odd", "Once", "int", "list"]
    assert len(left_out) == 4
    (error,) = document["errors"].values()
    assert error.startswith("OddError: ")
    ((attempt,), _) = document["attempts"].values()
    assert attempt["cost"] == {"cpu": 1, "memory": 1 / 3, "gpu": 0.5}
    assert list(tmp_path.iterdir()) == [tmp_path / "out.json"]


def test_a_pickle_of_an_odd_result(tmp_path):
    """Values that cannot be pickled are left out, and named with their types."""
    left_out = write_result(OutputFile(tmp_path / "out.pkl"), odd_result())
    document = pickle.loads((tmp_path / "out.pkl").read_bytes())
    assert left_out == ["once"] and document["left_out"] == {"once": "Once"}
    assert document["results"]["huge"] == 10**5000 and len(document["results"]) == 4


def test_the_document_of_plain_values_is_as_it_was():
    """Values that JSON can hold are unchanged."""
    result = ExecutionResult("d", {"a": [1, {"b": None}]}, allocations={"a": "tcp://a"})
    document, left_out = as_json(result)
    assert document == {**result.as_dict(), "left_out": {}} and left_out == []


@pytest.mark.parametrize("name", ["loop.json", "a" * 300 + ".json", "missing/out.json", "folder"])
def test_a_file_that_cannot_be_written_is_found_out_first(tmp_path, name):
    """If anything is wrong with the path, the error names it before anything runs."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop.json").symlink_to("loop.json")
    with pytest.raises(Problem, match=f"cannot write .*{name}") as caught:
        OutputFile(tmp_path / name)
    assert caught.value.code == 2
    assert sorted(os.listdir(tmp_path)) == ["folder", "loop.json"]
