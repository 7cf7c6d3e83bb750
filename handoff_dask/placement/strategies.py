"""Which of the workers that have a cost free gets the function.

A strategy scores a worker by its capacity and what is free of it: the lowest wins, and among
equals the one registered first. So workers of equal capacity and equal load are scored once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from handoff_dask.placement.costs import SLOT, Cost

Score = Callable[[Cost, Sequence[int], Sequence[int], Collection[int]], float]

#: What sparing a scarce resource is worth: more than any difference in fit. A promise of "packed",
#: which buys 0.4 %.
_SPARE = 1000.0


@dataclass(frozen=True, eq=False, slots=True)
class Strategy:
    """How a run chooses among the workers that have room."""

    #: What `run_opened` knows it by.
    name: str
    #: ``(cost, capacity, free, scarce) -> float``; None: the order of registration.
    score: Score | None
    #: Whether a worker with room that holds the inputs is taken at once.
    local: bool


def load(capacity: Sequence[int], free: Sequence[int]) -> float:
    """Return the dominant share of what is claimed: 0 is idle, 1 is full in some resource."""
    return max(1 - left / all_ for left, all_ in zip(free, capacity, strict=False) if all_)


def _load_balanced(
    cost: Cost, capacity: Sequence[int], free: Sequence[int], scarce: Collection[int]
) -> float:
    return load(capacity, free)


def _packed(
    cost: Cost, capacity: Sequence[int], free: Sequence[int], scarce: Collection[int]
) -> float:
    """Least left over of what the cost is made of; nothing scarce that it does not need.

    A function that costs nothing packs nowhere: it goes where most threads are free.
    """
    if not cost.rest:
        score = -free[SLOT] / capacity[SLOT]
    else:
        score = sum([(free[i] - amount) / capacity[i] for i, amount in cost.rest])
    if scarce:
        used = {i for i, _ in cost.rest}
        score += _SPARE * sum(i not in used for i in scarce if capacity[i])
    return score


_PACKED = Strategy("packed", _packed, local=True)

#: By name; an alias is a second name of the same strategy.
STRATEGIES = {
    "cost_optimized": _PACKED,
    "first_available": Strategy("first_available", None, local=False),
    "load_balanced": Strategy("load_balanced", _load_balanced, local=False),
    "packed": _PACKED,
}


def strategy(name: str) -> Strategy:
    """Return the strategy of a name; raise ValueError, with the names that exist, if it is none."""
    try:
        return STRATEGIES[name]
    except (KeyError, TypeError):
        known = ", ".join(sorted(STRATEGIES))
        raise ValueError(f"unknown allocation strategy {name!r}; known are {known}") from None
