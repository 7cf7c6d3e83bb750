"""The options of a run are checked before anything is sent."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import get_args

import dask
import pytest

from handoff_dask import DAG, Function, Store, execute, execute_local, explain, plan, submit
from handoff_dask.client.options import (
    Allocator,
    RunOptions,
    StrategyName,
    learned_url,
    patience,
)
from handoff_dask.placement.strategies import STRATEGIES

planned = partial(plan, capabilities={"w": {"cpu": 1}}, durations={})


class Mine:
    def allocate(self, functions, capabilities):
        return {}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_retries", -1),
        ("max_retries", 1.5),
        ("max_retries", None),
        ("max_retries", True),
        ("max_concurrency", 0),
        ("max_concurrency", -1),
        ("max_concurrency", 2.0),
        ("allocation_strategy", "best"),
        ("allocation_strategy", None),
        ("allocation_strategy", Mine),
        ("allocation_strategy", len),
        ("on_error", "ignore"),
        ("on_error", None),
        ("timeout", -1),
        ("timeout", math.nan),
        ("timeout", "10 parsecs"),
        ("timeout", "10"),
        ("placement_timeout", "soon"),
        ("placement_timeout", None),
        ("placement_timeout", -0.5),
        ("placement_timeout", math.inf),
        ("priority", "high"),
        ("priority", None),
        ("priority", True),
        ("priority", math.nan),
        ("priority", math.inf),
        ("detach", "no"),
        ("progress", 1),
    ],
)
def test_option_that_is_wrong(option, value):
    """What an option cannot be is refused; the error names the option and what was given."""
    with pytest.raises(ValueError, match=f"^{option} ") as caught:
        RunOptions(**{option: value})
    if value != 0:
        assert repr(value) in str(caught.value)


@pytest.mark.parametrize("value", ["a/b.json", "memory://a/b.json", Path("a/b.json"), None, ""])
def test_where_what_is_learned_is_kept(value):
    """The setting is a URL or a path; without one, nothing is kept."""
    with dask.config.set({"handoff.learned": value}):
        assert learned_url() == (str(value) if value else None)


@pytest.mark.parametrize("value", [5, True, ["a"], b"a"])
def test_what_is_no_place_for_what_is_learned(value):
    """The error names the setting."""
    with dask.config.set({"handoff.learned": value}):
        with pytest.raises(ValueError, match=r"^the setting handoff\.learned must be "):
            learned_url()


def test_the_names_of_strategies():
    """Type checkers know the names that the engine knows."""
    assert {*get_args(StrategyName)} == {*STRATEGIES}


@pytest.mark.parametrize("value", ["first_available", "load_balanced", "packed", "cost_optimized"])
def test_strategies(value):
    """The strategies of the design are known by name, and offered to who misspells one."""
    assert RunOptions(allocation_strategy=value).allocation_strategy == value
    with pytest.raises(ValueError, match=repr(value)):
        RunOptions(allocation_strategy="best")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_retries", 0),
        ("max_concurrency", 1),
        ("allocation_strategy", Mine()),
        ("on_error", "continue"),
        ("timeout", 0.5),
        ("placement_timeout", 60),
        ("priority", -2.5),
        ("detach", True),
    ],
)
def test_option(option, value):
    """What an option can be is kept as it is."""
    assert getattr(RunOptions(**{option: value}), option) is value


def test_defaults():
    """The defaults are those of execute() in the design."""
    options = RunOptions()
    assert (options.max_retries, options.max_concurrency) == (3, None)
    assert (options.allocation_strategy, options.results) == ("packed", "all")
    assert (options.on_error, options.timeout) == ("raise", None)
    assert (options.placement_timeout, options.priority, options.detach) == (0, 0, False)


def test_options_do_not_change():
    """What was checked stays what it was."""
    with pytest.raises(FrozenInstanceError):
        RunOptions().max_retries = -1


def test_allocators_are_known_by_their_method():
    """An allocator needs no base class of ours."""
    assert isinstance(Mine(), Allocator)
    assert not isinstance(object(), Allocator)


@pytest.mark.parametrize("timeout", ["soon", "5", -1, math.nan, True, []])
def test_a_wait_that_is_no_time(timeout):
    """Whoever waits gives a time or None; anything else is named, not passed on to asyncio."""
    with pytest.raises(ValueError, match=r"^timeout must be"):
        patience(timeout)


def test_a_wait_with_a_unit():
    """Seconds, text, a timedelta, or None for no limit."""
    waits = [patience(t) for t in (None, 0, 1.5, "5 min", timedelta(hours=1))]
    assert waits == [None, 0, 1.5, 300.0, 3600.0]


@pytest.mark.parametrize(
    ("wrong", "form"),
    [
        ([Function("f", code=int)], r"not of type list: write DAG\(id, functions=\["),
        (Function("f", code=int), r"not of type Function: write DAG\(id, functions=\["),
        ("a dag", r"not of type str: write DAG\(id"),
        (DAG, r"not of type type: write DAG\(id"),
        (dask.delayed(int)(1), r"write DAG\.from_dask\("),
    ],
    ids=["list", "Function", "str", "class", "Delayed"],
)
@pytest.mark.parametrize(
    "call",
    [execute, submit, execute_local, explain, planned],
    ids=["execute", "submit", "execute_local", "explain", "plan"],
)
def test_what_is_no_dag(call, wrong, form):
    """The error says what the first argument must be, and shows the form."""
    with pytest.raises(TypeError, match=rf"the first argument must be a DAG, .*{form}"):
        call(wrong)


def test_a_store_with_options_in_the_settings():
    """The setting may be a group of options; a URL that is given replaces only its URL."""
    options = {"hmac-key": "secret", "required": True, "storage_options": {"profile": "science"}}
    secret = {"hmac_key": "secret", "required": True, "storage_options": {"profile": "science"}}
    with dask.config.set({"handoff.store": {"url": "/kept", **options}}):
        assert RunOptions().stored_in == Store("/kept", **secret)
        assert RunOptions(store="/other").stored_in == Store("/other", **secret)
        assert RunOptions(store=Store("/other")).stored_in == Store("/other")
        assert RunOptions(store=False).stored_in is None
    with dask.config.set({"handoff.store": options}):
        assert RunOptions().stored_in is None
        assert RunOptions(store="/other").stored_in == Store("/other", **secret)
    with (
        dask.config.set({"handoff.store": {"ulr": "/kept"}}),
        pytest.raises(ValueError, match=r"there is no setting handoff\.store\.ulr"),
    ):
        RunOptions(store="/other")
