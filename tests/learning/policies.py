"""What learned claims cost: six distributions of memory, and three ways to claim it."""

from __future__ import annotations

import math
import random
from bisect import insort
from collections.abc import Callable, Iterator
from statistics import median
from typing import Protocol

from handoff_dask.learning.uses import Uses

#: MB.
WORKER = 64_000.0
FUNCTIONS = 1000


def _normal(rng: random.Random, mean: float, spread: float) -> float:
    return max(rng.gauss(mean, spread * mean), mean / 20)


#: The peaks of functions (MB) by the distribution's name. Each takes a source of random numbers and
#: how far the run has come, from 0 to 1.
DISTRIBUTIONS: dict[str, Callable[[random.Random, float], float]] = {
    "normal": lambda rng, _: _normal(rng, 1100, 0.2),
    "lognormal": lambda rng, _: rng.lognormvariate(math.log(350), 0.65),
    "bimodal 90/10": lambda rng, _: _normal(rng, 250 if rng.random() < 0.9 else 3000, 0.1),
    "1 % outliers": lambda rng, _: _normal(rng, 1200 if rng.random() < 0.99 else 6000, 0.05),
    "Pareto 1.5": lambda rng, _: min(500 * rng.paretovariate(1.5), WORKER),
    "drift": lambda rng, progress: _normal(rng, 1000 + 8000 * progress, 0.005),
}


class Policy(Protocol):
    """Claims for functions of one code that run one after the other."""

    def claims(self) -> Iterator[float]:
        """Yield what the attempts of the next function claim until one is enough (MB)."""

    def ended(self, peak: float) -> None:
        """Learn from a function that succeeded."""


class Ladder:
    """Ours."""

    def __init__(self) -> None:
        self.uses = Uses()
        self.time = 0

    def claims(self) -> Iterator[float]:
        exceeded = 0.0
        while claim := self.uses.claim("code", worker_memory=WORKER, exceeded=exceeded):
            yield claim
            exceeded = claim

    def ended(self, peak: float) -> None:
        self.uses.record("code", started=self.time, seconds=1.0, peak=peak)
        self.time += 1


class MinWaste:
    """What minimises the expected waste, then the most seen, then a whole worker.

    A model of TaskVine's allocation mode of this name, recomputed every 25 functions.
    """

    def __init__(self) -> None:
        self.peaks: list[float] = []
        self.first: tuple[float, ...] = ()

    def claims(self) -> Iterator[float]:
        yield from self.first
        yield WORKER

    def ended(self, peak: float) -> None:
        insort(self.peaks, peak)
        count = len(self.peaks)
        if count % 25 == 0:
            most = self.peaks[-1]
            above = ((p, count - i - 1) for i, p in enumerate(self.peaks))
            _, best = min((p + most * n / count, p) for p, n in above)
            self.first = (best, most)


class Percentile:
    """The 95th percentile of all peaks * 1.2, then twice as much until it is enough."""

    def __init__(self) -> None:
        self.peaks: list[float] = []

    def claims(self) -> Iterator[float]:
        if len(self.peaks) < 3:
            yield from (WORKER / 8, WORKER / 2, WORKER)
        else:
            claim = 1.2 * self.peaks[math.ceil(0.95 * len(self.peaks)) - 1]
            while claim < WORKER:
                yield claim
                claim *= 2
            yield WORKER

    def ended(self, peak: float) -> None:
        insort(self.peaks, peak)


#: {policy: (its class, claimed over needed in each distribution as the design has it)}
POLICIES: dict[str, tuple[Callable[[], Policy], tuple[float, ...]]] = {
    "min waste": (MinWaste, (2.90, 6.29, 4.67, 2.50, 4.75, 12.6)),
    "95th percentile * 1.2": (Percentile, (1.62, 2.88, 6.69, 1.37, 4.15, 1.15)),
    "ladder of 3": (Ladder, (1.46, 2.09, 1.35, 1.28, 2.49, 1.12)),
}


def claimed_over_needed(policy: Callable[[], Policy], distribution: str, rounds: int = 5) -> float:
    """Return the memory that functions claim over what they need, where a kill costs a full run.

    The median of several rounds of a thousand functions.
    """
    return median(_round(policy(), distribution, seed) for seed in range(rounds))


def _round(policy: Policy, distribution: str, seed: int) -> float:
    rng = random.Random(seed)
    claimed = needed = 0.0
    for i in range(FUNCTIONS):
        peak = DISTRIBUTIONS[distribution](rng, i / FUNCTIONS)
        for claim in policy.claims():
            claimed += claim
            if claim >= peak:
                break
        else:
            raise AssertionError(f"{peak} MB do not fit in {WORKER}")
        policy.ended(peak)
        needed += peak
    return claimed / needed
