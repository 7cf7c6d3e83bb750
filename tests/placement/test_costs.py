from __future__ import annotations

import math

import pytest

from handoff_dask.placement.costs import UNIT, Resources


@pytest.mark.parametrize("n", [3, 6, 7, 10, 13])
def test_n_parts_of_a_unit_fit_into_it(n: int) -> None:
    """n functions that cost 1/n fit at once on a worker that declares 1, and not one more."""
    resources = Resources()
    cost = resources.cost({"gpu": 1 / n})
    free = list(resources.capacity({"gpu": 1}, n + 1))
    for _ in range(n):
        assert cost.fits(free)
        for i, amount in cost.items:
            free[i] -= amount
    assert not cost.fits(free)


def test_a_tiny_cost_is_not_nothing() -> None:
    """What costs something, however little, does not fit where there is nothing of it."""
    resources = Resources()
    cost = resources.cost({"licence": 1e-15})
    assert not cost.fits(resources.capacity({"cpu": 1}, 1))


def test_equal_costs_are_one() -> None:
    """Costs of equal amounts are the same object, in whatever order and type they are given."""
    resources = Resources()
    cost = resources.cost({"cpu": 1, "memory": 2})
    assert resources.cost({"memory": 2.0, "cpu": 1.0}) is cost
    assert resources.cost({"memory": 2, "cpu": 1, "gpu": 0}) is cost


@pytest.mark.parametrize("amount", [-1, math.nan, math.inf])
def test_an_impossible_cost_names_its_resource(amount: float) -> None:
    """A cost that is no finite number >= 0 is an error that names the resource."""
    with pytest.raises(ValueError, match="memory"):
        Resources().cost({"memory": amount})


def test_an_endless_capacity_holds_anything() -> None:
    """A worker may declare an infinite amount."""
    resources = Resources()
    assert resources.cost({"disk": 1e15}).fits(resources.capacity({"disk": math.inf}, 1))


def test_amounts_are_exact() -> None:
    """A thousand claims of 0.1 given back leave exactly what was there."""
    resources = Resources()
    cost = resources.cost({"cpu": 0.1})
    free = list(resources.capacity({"cpu": 100}, 1000))
    before = list(free)
    for sign in (-1, 1):
        for _ in range(1000):
            for i, amount in cost.items:
                free[i] += sign * amount
    assert free == before == [1000 * UNIT, 100 * UNIT]
