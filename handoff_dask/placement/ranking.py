"""How urgent each function of a run is: the seconds from its start to the end of the run."""

from __future__ import annotations

from collections.abc import Iterable

from handoff_dask.placement.durations import NOTHING, Durations
from handoff_dask.placement.entities import DONE, Family, Function, Run

#: Rank anew once new knowledge concerns this share of the run's functions. Bounds the cost; to rank
#: whenever anything is learned would buy nothing. To rank only once would cost 0.2 %, in one
#: workload 1.7 %, and no short function would be handed ahead in a first run.
_MOVED_SHARE = 0.1
#: Remaining paths are compared in steps of this part of the run's longest: to measure the same
#: functions again changes them by as much. Bounds the strata of a queue, and buys 0.1 %; that the
#: widest of equals goes first buys 1.0 % at the first run and 0.5 % at the second.
_STEP = 0.01


def add(run: Run, functions: Iterable[Function]) -> None:
    """Add functions whose dependencies are linked to a run."""
    run.order += _dependencies_first(list(functions))
    run.stale = True


def learned(run: Run, family: Family, seconds: float) -> None:
    """Note that one of a family ended and what the family takes on average now."""
    run.ended += 1
    used = family.used
    if used is None or (abs(seconds - used) > NOTHING and not seconds / 2 <= used <= 2 * seconds):
        # A family counts once until the next ranking, by how many it concerns.
        family.used = seconds
        run.moved += family.count
    if run.ended >= run.rank_after and run.moved > _MOVED_SHARE * len(run.order):
        run.stale = True


def rank(run: Run, durations: Durations) -> None:
    """Compute the remaining paths: from a function's start to the end of the run.

    A function of unknown duration is taken for an average one of the run; when nothing
    is known, hops are counted.
    """
    order = run.order = [f for f in run.order if f.state != DONE]
    for family in run.families.values():
        family.used = durations.of_code(family.code)
        family.count = 0
    known = 0
    total = 0.0
    for f in order:
        f.tail = 0.0
        seconds = durations.of_token(f.token)
        f.measured = seconds is not None
        if seconds is None:
            f.family.count += 1
            seconds = f.family.used
            if seconds is None:
                seconds = f.expected
        f.seconds = seconds
        if seconds is not None:
            known += 1
            total += seconds
    mean = total / known if known else 1.0
    longest = 0.0
    for f in reversed(order):
        seconds = f.seconds
        rank = f.rank = f.tail + (mean if seconds is None else seconds)
        for dependency in f.dependencies:
            if dependency.tail < rank:
                dependency.tail = rank
        if rank > longest:
            longest = rank
    step = _STEP * longest
    for f in order:
        f.urgency = step * round(f.rank / step) if step else f.rank
    run.ranked = len(order)
    run.remaining = None
    run.stale = False
    run.moved = 0
    # Often in the beginning, as little is known; later ranking may only cost so much.
    run.rank_after = run.ended + min(max(1, run.ended), 1 + len(order) // 16)


def _dependencies_first(functions: list[Function]) -> list[Function]:
    """Sort functions so that dependencies come first; keeps an order that is fine already."""
    place = {f: i for i, f in enumerate(functions)}
    if all(place.get(d, -1) < i for i, f in enumerate(functions) for d in f.dependencies):
        return functions
    missing = {f: sum(d in place for d in f.dependencies) for f in functions}
    dependents: dict[Function, list[Function]] = {}
    for f in functions:
        for d in f.dependencies:
            dependents.setdefault(d, []).append(f)
    done = [f for f in functions if not missing[f]]
    for f in done:  # grows while it is walked
        for after in dependents.get(f, ()):
            missing[after] -= 1
            if not missing[after]:
                done.append(after)
    # What is left lies on a cycle and can never be ready; it only needs some rank.
    return done + [f for f in functions if missing[f]]
