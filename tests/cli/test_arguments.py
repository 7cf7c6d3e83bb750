"""Text of the command line becomes values."""

from __future__ import annotations

import datetime
import enum
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest

from handoff_dask.cli.arguments import call, convert, worker
from handoff_dask.cli.failing import Problem


class Colour(enum.Enum):
    RED = "r"


@pytest.mark.parametrize(
    ("text", "wanted", "value"),
    [
        ("a=b", str, "a=b"),
        ("3", Any, "3"),
        ("3", int, 3),
        ("3", float, 3.0),
        ("No", bool, False),
        ("x/y", Path, Path("x/y")),
        ("2026-03-01", datetime.date, datetime.date(2026, 3, 1)),
        ("RED", Colour, Colour.RED),
        ("r", Colour, Colour.RED),
        ("2", Literal[1, 2], 2),
        ("none", Optional[int], None),  # noqa: UP045 - both spellings
        ("4", int | None, 4),
        ("4", str | int, 4),
        ("x", int | str, "x"),
        ("1, 2", list[int], [1, 2]),
        ("1,2", Sequence[float], [1.0, 2.0]),
        ("a,b", tuple[str, ...], ("a", "b")),
        ("a,b,a", set, {"a", "b"}),
        ('{"a": 1}', dict[str, int], {"a": 1}),
        ("5", Annotated[int, "of them"], 5),
    ],
)
def test_conversion(text, wanted, value):
    """A text becomes what the annotation says."""
    found = convert(text, wanted)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "wanted", "message"),
    [
        ("x", int, "'x' is not an int"),
        ("x", float, "'x' is not a float"),
        ("perhaps", bool, "'perhaps' is neither true nor false"),
        ("BLUE", Colour, "'BLUE' is not a Colour"),
        ("3", Literal[1, 2], "'3' is none of 1, 2"),
        ("x", int | None, "'x' is not an int"),
        ("1,x", list[int], "'x' is not an int"),
        ("[1]", dict, r"'\[1\]' is not a JSON object"),
        ("tomorrow", datetime.date, "'tomorrow' is not a date"),
    ],
)
def test_a_text_that_is_no_such_value(text, wanted, message):
    """A message that shows the text and says what it should have been."""
    with pytest.raises(ValueError, match=message):
        convert(text, wanted)


def test_call_by_the_types_of_a_function():
    """Annotations count, else the types of defaults; further names go where they are taken."""

    def factory(size: int, ratio=0.5, fast=False, *, tag: str = "x", **rest: float):
        return size, ratio, fast, tag, rest

    given = ["size=3", "ratio=2", "fast=true", "tag=a=b", "more=1"]
    assert call(factory, given, "f") == (3, 2.0, True, "a=b", {"more": 1.0})
    assert call(factory, ["size=3"], "f") == (3, 0.5, False, "x", {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "f needs the argument 'size': give it after --, as size=VALUE"),
        (["3"], "the argument '3' is not of the form name=value"),
        (["size=3", "size=4"], "the argument 'size' of f is given twice"),
        (["size=3", "colour=red"], "f takes no argument 'colour'; its arguments are: size, n"),
        (["size=big"], "the argument 'size' of f: 'big' is not an int"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    """The argument and the function are named."""

    def factory(size: int, n: int = 1):
        raise AssertionError("called")

    with pytest.raises(Problem, match=message):
        call(factory, arguments, "f")


def test_annotations_that_cannot_be_resolved():
    """As those under TYPE_CHECKING: the text is passed as it is."""

    def factory(size: Unknown):  # noqa: F821
        return size

    assert call(factory, ["size=3"], "f") == "3"


def test_a_worker():
    """Cores, MB, units and a name; resources in lower case, spaces allowed."""
    assert worker("cpu=4, memory=8000,GPU=1") == (None, {"cpu": 4, "memory": 8000, "gpu": 1})
    assert worker("name=big,cpu=0.5") == ("big", {"cpu": 0.5})
    assert worker("name=idle") == ("idle", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not of the form resource=amount"),
        ("cpu", "'cpu' is not of the form"),
        ("cpu=", "'cpu=' is not of the form"),
        ("=4", "'=4' is not of the form"),
        ("cpu=1,", "'' is not of the form"),
        ("cpu=four", "the amount of 'cpu' is 'four', which is no number"),
        ("cpu=1,CPU=2", "'CPU' is given twice"),
        ("name=a,name=b", "'name' is given twice"),
        ("cpu=-1", "must be finite and not below 0, not -1"),
        ("cpu=inf", "must be finite"),
        ("cpu=nan", "must be finite"),
    ],
)
def test_a_worker_that_does_not_parse(text, message):
    """The part that is wrong is shown."""
    with pytest.raises(ValueError, match=message):
        worker(text)
