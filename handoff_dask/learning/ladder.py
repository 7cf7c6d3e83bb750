"""How much memory a function claims that does not say what it needs.

A ladder is a short, rising sequence of claims. A function starts on its lowest rung and is tried
again on the next one if it runs out of memory. Low rungs leave room for other functions, but each
kill wastes a run. Above its highest rung, claims double up to a whole worker.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence

#: Fewer peaks than this teach nothing: the claims are `_FIRST`, in shares of a worker.
ENOUGH = 3
_FIRST = (1 / 8, 1 / 2)
#: Rungs of a learned ladder at most.
_RUNGS = 3
#: Rungs are chosen among this many quantiles of the peaks, with this share added as headroom.
_QUANTILES = 40
_HEADROOM = 0.1
#: Growth is looked for in this many of the latest peaks, and believed if it is this many times its
#: standard error.
_TREND = 64
_CERTAIN = 5
#: A ladder serves about this many functions before it is computed again.
LIFETIME = 10


def rungs(
    peaks: Sequence[float], *, worker_memory: float, cpu_share: float = 0.0
) -> tuple[float, ...]:
    """Return the ladder that minimises what a function is expected to claim over all its attempts.

    Parameters
    ----------
    peaks
        What functions of the code needed (MB), in the order in which they started.
    worker_memory
        The memory of a worker (MB).
    cpu_share
        The share of the worker's cores that a function claims. If it is larger than the share of
        the memory, the cores limit how many functions run at once, and the claim grows to the same
        share of the memory for free.

    Returns
    -------
    tuple
        One to three claims (MB), rising, at most `worker_memory`.

    Examples
    --------
    >>> rungs([], worker_memory=64_000)
    (8000.0, 32000.0)
    >>> rungs([*[100] * 9, 2000] * 10, worker_memory=64_000)
    (110, 2200)
    >>> rungs([*[100] * 9, 2000] * 10, worker_memory=64_000, cpu_share=1 / 16)
    (4000.0,)
    """
    floor = cpu_share * worker_memory
    if len(peaks) < ENOUGH:
        return _rising((share * worker_memory for share in _FIRST), floor, worker_memory)
    ordered = sorted(_without_trend([min(peak, worker_memory) for peak in peaks]))
    count = len(ordered)
    quantiles = (ordered[math.ceil(count * i / _QUANTILES) - 1] for i in range(1, _QUANTILES + 1))
    # Whole numbers: claims are read by people.
    padded = (max(math.ceil(peak + _HEADROOM * peak), 1) for peak in quantiles)
    candidates = _rising(padded, floor, worker_memory)
    # How likely it is that a candidate is not enough: one more peak is assumed above all.
    beyond = [(count - bisect_right(ordered, c) + 1) / (count + 1) for c in candidates]
    return _cheapest(candidates, beyond, worker_memory)


def _cheapest(
    candidates: Sequence[float], beyond: Sequence[float], worker_memory: float
) -> tuple[float, ...]:
    """Return the ladder of candidates that is expected to claim the least.

    The first rung is always claimed, each further one if the one before it is not enough, and a
    whole worker if none is. `beyond` says how likely each candidate is not enough.
    """
    # For each candidate, a ladder that begins there: what it is expected to claim above its first
    # rung, and its rungs. First the ladders of one rung, then ever longer ones.
    single: list[tuple[float, tuple[float, ...]]] = [
        (p * worker_memory if claim < worker_memory else 0.0, (claim,))
        for claim, p in zip(candidates, beyond, strict=True)
    ]
    best = single
    for _ in range(_RUNGS - 1):
        longer = list(single)
        for i, p in enumerate(beyond):
            for above, ladder in best[i + 1 :]:
                expected = p * ladder[0] + above
                if expected < longer[i][0]:
                    longer[i] = expected, (candidates[i], *ladder)
        best = longer
    return min((ladder[0] + above, ladder) for above, ladder in best)[1]


def _rising(claims: Iterable[float], least: float, most: float) -> tuple[float, ...]:
    return tuple(sorted({min(max(claim, least), most) for claim in claims}))


def _without_trend(peaks: Sequence[float]) -> Sequence[float]:
    """Raise older peaks to what they would be next if peaks grow from one to the next.

    Otherwise a ladder lags behind, and nearly every function is killed.
    """
    latest = [math.log(max(peak, 1.0)) for peak in peaks[-_TREND:]]
    count = len(latest)
    middle, mean = (count - 1) / 2, math.fsum(latest) / count
    places = count * (count**2 - 1) / 12  # the sum of (i - middle)²
    growth = math.fsum((i - middle) * value for i, value in enumerate(latest)) / places
    explained = growth**2 * places
    rest = math.fsum((value - mean) ** 2 for value in latest) - explained
    if count < LIFETIME or growth <= 0 or explained * (count - 2) < _CERTAIN**2 * rest:
        return peaks
    last = count - 1 + LIFETIME
    highest = max(latest) + growth * LIFETIME
    raised = (value + growth * (last - i) for i, value in enumerate(latest))
    return [math.exp(min(value, highest)) for value in raised]


def next_claim(
    ladder: Sequence[float], *, worker_memory: float, exceeded: float = 0.0
) -> float | None:
    """Return what the next attempt of a function claims (MB).

    Parameters
    ----------
    ladder
        The claims to try, rising.
    worker_memory
        The memory of a worker (MB).
    exceeded
        The most that earlier attempts are known to have needed more than (MB): their claims, and
        what they used when they were killed. 0 if none ran out of memory.

    Returns
    -------
    float or None
        More than `exceeded`, at most `worker_memory`. None if a whole worker is not enough.
    """
    if exceeded >= worker_memory:
        return None
    for claim in ladder:
        if claim > exceeded:
            return min(claim, worker_memory)
    return min(2 * exceeded, worker_memory)
