"""Text of the command line becomes values."""

from __future__ import annotations

import click
import pytest

from handoff_dask.cli.connect import parse_worker
from handoff_dask.cli.dag_loader import call
from handoff_dask.cli.exit_codes import Problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("2.5", 2.5),
        ("true", True),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ('{"a": 1}', {"a": 1}),
        ('"3"', "3"),
        ("2026-03-01", "2026-03-01"),
        ("True", "True"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_a_parameter_that_is_not_annotated_str(text, value):
    """It gets what the text is in JSON or, if it is not JSON, the text."""

    def factory(x, y: int = 0, **rest: float):
        return x, y, rest

    assert call(factory, [f"x={text}", f"y={text}", f"z={text}"], "f") == (
        value,
        value,
        {"z": value},
    )


@pytest.mark.parametrize("text", ["3", "true", "a=b", ""])
def test_a_parameter_annotated_str(text):
    """It gets the text, whether the annotation is a type or a string."""

    def factory(x: str, *, y: str = "", **rest: str):
        return x, y, rest

    given = [f"x={text}", f"y={text}", f"z={text}"]
    assert call(factory, given, "f") == (text, text, {"z": text})
    factory.__annotations__ = dict.fromkeys(factory.__annotations__, str)
    assert call(factory, given, "f") == (text, text, {"z": text})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "f: missing a required argument: 'size'; its arguments are size, n "),
        (["3"], "the argument '3' is not of the form name=value"),
        (["size=3", "size=4"], "the argument 'size' of f is given twice"),
        (
            ["size=3", "colour=red"],
            "f: got an unexpected keyword argument 'colour'; its arg",
        ),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    """The argument and the function are named."""

    def factory(size: int, n: int = 1):
        raise AssertionError("called")

    with pytest.raises(Problem, match=message):
        call(factory, arguments, "f")


def test_a_parameter_that_has_no_name():
    """What a function takes only by position cannot be given."""

    def factory(size, /):
        raise AssertionError("called")

    with pytest.raises(Problem, match=r"f: .*'size'.*; its arguments are size "):
        call(factory, ["size=3"], "f")


def test_a_worker():
    """Cores, MB, units and a name; resources in lower case, spaces allowed."""
    assert parse_worker("cpu=4, memory=8000,GPU=1") == (None, {"cpu": 4, "memory": 8000, "gpu": 1})
    assert parse_worker("name=big,cpu=0.5") == ("big", {"cpu": 0.5})
    assert parse_worker("name=idle") == ("idle", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not of the form resource=amount"),
        ("cpu", "'cpu' is not of the form"),
        ("cpu=", "'cpu=' is not of the form"),
        ("=4", "'=4' is not of the form"),
        ("cpu=1,", "'' is not of the form"),
        ("cpu=four", "the amount of 'cpu' must be a finite number >= 0, not 'four'"),
        ("cpu=1,CPU=2", "'CPU' is given twice"),
        ("name=a,name=b", "'name' is given twice"),
        ("cpu=-1", "must be a finite number >= 0, not '-1'"),
        ("cpu=inf", "must be a finite number"),
        ("cpu=nan", "must be a finite number"),
        ("memory=8XB", "the amount of 'memory' must be a finite number >= 0, not '8XB'"),
        ("gpu=2GB", "the amount of 'gpu' must be a finite number >= 0, not '2GB'"),
    ],
)
def test_a_worker_that_does_not_parse(text, message):
    """The part that is wrong is shown."""
    with pytest.raises(click.BadParameter, match=message):
        parse_worker(text)
