from __future__ import annotations

import pytest

from handoff_dask.placement.engine import Engine
from handoff_dask.placement.strategies import STRATEGIES, strategy

GPU = {"cpu": 8, "memory": 100, "gpu": 1}
CPU = {"cpu": 8, "memory": 100}


def test_an_unknown_strategy_names_the_known() -> None:
    """The error for a name that does not exist lists those that do."""
    with pytest.raises(ValueError, match=r"'bogus'.*cost_optimized.*first_available.*packed"):
        Engine().run_opened("run", strategy="bogus")


def test_an_alias_is_the_same_strategy() -> None:
    """cost_optimized is packed."""
    assert strategy("cost_optimized") is strategy("packed")
    assert set(STRATEGIES) == {"cost_optimized", "first_available", "load_balanced", "packed"}


def test_first_available_takes_the_first_registered(drive) -> None:
    """The first worker in order of registration that has the cost free gets it, again and again."""
    d = drive({"z": CPU, "a": CPU, "m": CPU}, run={"strategy": "first_available"})
    d.add({key: {"cpu": 4} for key in range(5)})
    assert list(d.places().values()) == ["z", "z", "a", "a", "m"]
    d.end(2)
    d.add({5: {"cpu": 4}})
    d.add({6: {"cpu": 4}})
    assert d.places() == {5: "a", 6: "m"}
    d.end(0)
    d.end(4)
    d.add({7: {"cpu": 4}})
    assert d.places() == {7: "z"}


def test_load_balanced_takes_the_least_loaded(drive) -> None:
    """The worker with the smallest dominant share claimed gets it."""
    d = drive({"a": CPU, "b": CPU}, run={"strategy": "load_balanced"})
    d.add({0: {"cpu": 1, "memory": 80}})
    assert d.places() == {0: "a"}
    for key, worker in [(1, "b"), (2, "b"), (3, "b"), (4, "a")]:
        # a is at 0.8 by memory; b goes 0, 0.375, 0.75, 1 by cpu.
        d.add({key: {"cpu": 3 if key < 3 else 2}})
        assert d.places() == {key: worker}


def test_packed_fills_a_worker_before_the_next(drive) -> None:
    """The tightest fit wins, so that whole workers stay free for what needs one."""
    d = drive({"a": CPU, "b": CPU})
    d.add({0: {"cpu": 4}})
    d.places()
    d.add({1: {"cpu": 4}})
    assert d.places() == {1: "a"}
    d.add({2: {"cpu": 8}})
    assert d.places() == {2: "b"}


def test_packed_spares_the_only_gpu(drive) -> None:
    """CPU-only work goes to the only GPU worker only if no other fits."""
    d = drive({"gpu": GPU, "cpu": CPU})
    d.add({key: {"cpu": 4} for key in range(3)})
    assert list(d.places().values()) == ["cpu", "cpu", "gpu"]


def test_what_costs_nothing_spreads(drive) -> None:
    """Functions without a cost share the threads of all workers evenly."""
    d = drive({"a": CPU, "b": CPU})
    d.add({key: {} for key in range(4)})
    assert sorted(d.places().values()) == ["a", "a", "b", "b"]
