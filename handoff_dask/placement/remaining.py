"""How long a run still takes, from sums that are kept up to date as its functions end."""

from __future__ import annotations

from itertools import chain

from handoff_dask.placement.durations import Durations
from handoff_dask.placement.entities import Function, Run
from handoff_dask.placement.fleet import Fleet

__all__ = ["estimate", "uncount"]

#: Path and work overlap, but not wholly: this part of the shorter one is added. With all durations
#: known, the suite's estimates are 0.77 to 1.20 times the truth; without this, 0.64 to 1.02.
_BETWEEN = 0.25


def uncount(function: Function) -> None:
    """Take a function that ended for good out of the sums."""
    work = function.counted
    if work is not None:
        work.add(function.own_cost, -1, -function.weight)
        function.counted = None
        levels = function.run.levels
        if levels is not None:
            levels[function.urgency] -= 1


def estimate(run: Run, fleet: Fleet, durations: Durations, now: float) -> float | None:
    """Return how long a run still takes (s), as if it had the workers to itself.

    It takes at least as long as its longest remaining path, and as its work keeps the scarcest
    resource busy. The call costs as much as the run has codes, costs and running functions; the
    first one after a ranking goes through all functions.

    Returns
    -------
    None
        If the duration of more than half of the functions left is unknown, or no worker runs.
    """
    known, seconds = run.single.count, run.single.seconds
    sums = [(1.0, run.single)]
    unknown = []
    for family in run.families.values():
        left = family.left
        mean = durations.of_code(family.code)
        if left.count and mean is None:
            unknown.append(left)
        elif left.count and mean is not None:
            known += left.count
            seconds += mean * left.count
            sums.append((mean, left))
    guessed = sum(left.count for left in unknown)
    if not known and not guessed:
        return None if run.stale else 0.0
    totals = fleet.totals()
    if known < guessed or not any(totals):
        return None
    average = seconds / known
    seconds += average * guessed
    work = [0.0] * len(totals)
    for mean, left in chain(sums, ((average, left) for left in unknown)):
        for cost, weight in left.costs.items():
            for i, amount in cost.items:
                work[i] += mean * weight * amount
    if run.levels is None:
        run.levels = {}
        for function in run.order:
            if function.counted is not None:
                run.levels[function.urgency] = run.levels.get(function.urgency, 0) + 1
    levels = dict(run.levels)
    path = 0.0
    for function in run.placed:
        if function.counted is not None:
            levels[function.urgency] -= 1
            takes = average if function.seconds is None else function.seconds
            ran = 0.0 if function.ahead else min(max(0.0, now - function.started), takes)
            path = max(path, function.tail + takes - ran)
            seconds -= ran
            for i, amount in function.own_cost.items:
                work[i] -= ran * amount
    path = max([path, *(urgency for urgency, count in levels.items() if count)])
    spread = max((amount / totals[i] for i, amount in enumerate(work) if totals[i]), default=0.0)
    if run.limit is not None:
        spread = max(spread, seconds / run.limit)
    return max(path, spread) + _BETWEEN * min(path, spread)
