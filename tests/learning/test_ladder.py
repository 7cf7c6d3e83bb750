from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handoff_dask.learning.ladder import next_claim, rungs
from tests.learning.policies import DISTRIBUTIONS, POLICIES, claimed_over_needed

PEAKS = st.lists(st.floats(0, 1e6) | st.floats(0, 1e308), max_size=300)
WORKER = st.floats(1, 1e6)
SHARE = st.floats(0, 1)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_ladder_claims_little(distribution: str) -> None:
    """Claimed over needed memory is at most 10 % above what the design promises."""
    policy, designed = POLICIES["ladder of 3"]
    promised = dict(zip(DISTRIBUTIONS, designed, strict=True))[distribution]
    assert claimed_over_needed(policy, distribution, rounds=3) <= 1.1 * promised


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("name", ["min waste", "95th percentile * 1.2"])
def test_the_distributions_are_those_of_the_design(distribution: str, name: str) -> None:
    """The two policies that the design compares with have the figures here that they have there."""
    policy, designed = POLICIES[name]
    there = dict(zip(DISTRIBUTIONS, designed, strict=True))[distribution]
    assert claimed_over_needed(policy, distribution) == pytest.approx(there, rel=0.15)


@given(PEAKS, WORKER, SHARE)
def test_rungs_rise_and_fit(peaks: list[float], worker: float, share: float) -> None:
    """A ladder has one to three rungs, rising, that fit the worker and leave no cores unused."""
    ladder = rungs(peaks, worker_memory=worker, cpu_share=share)
    assert 1 <= len(ladder) <= 3 and sorted(set(ladder)) == list(ladder)
    assert 0 < ladder[0] and ladder[-1] <= worker
    assert ladder[0] >= share * worker


@given(st.lists(st.integers(1, 3000), min_size=3, max_size=9), SHARE)
def test_no_ladder_is_cheaper(peaks: list[int], share: float) -> None:
    """Of all ladders of up to three of the claims, none is expected to claim less."""

    def expected(ladder: Sequence[float]) -> float:
        likely = [(sum(p > claim for p in peaks) + 1) / (len(peaks) + 1) for claim in ladder]
        following = [*ladder[1:], 3000.0 if ladder[-1] < 3000 else 0.0]
        return ladder[0] + sum(p * claim for p, claim in zip(likely, following, strict=True))

    claims = {min(max(math.ceil(peak + 0.1 * peak), share * 3000), 3000.0) for peak in peaks}
    ladders = (c for n in (1, 2, 3) for c in combinations(sorted(claims), n))
    best = min(map(expected, ladders))
    ladder = rungs(peaks, worker_memory=3000, cpu_share=share)
    assert expected(ladder) == pytest.approx(best)


@given(PEAKS, WORKER, SHARE)
def test_claims_rise_to_a_whole_worker(peaks: list[float], worker: float, share: float) -> None:
    """A function that always runs out of memory claims more each time, ends at a whole worker."""
    ladder = rungs(peaks, worker_memory=worker, cpu_share=share)
    claims = [0.0]
    while (claim := next_claim(ladder, worker_memory=worker, exceeded=claims[-1])) is not None:
        assert claims[-1] < claim <= worker
        claims.append(claim)
    assert claims[-1] == worker
    assert len(claims) < 30


def test_unknown_functions_claim_an_eighth_then_half_then_all() -> None:
    """Fewer than three peaks teach nothing."""
    for peaks in ([], [5.0], [5.0, 5.0]):
        ladder = rungs(peaks, worker_memory=800)
        claims = [next_claim(ladder, worker_memory=800, exceeded=e) for e in (0, 100, 400, 800)]
        assert claims == [100, 400, 800, None]


def test_what_was_used_when_killed_counts() -> None:
    """No claim is below what a function is known to have used."""
    assert next_claim((100, 200, 300), worker_memory=800, exceeded=210) == 300
    assert next_claim((100, 200, 300), worker_memory=800, exceeded=310) == 620
    assert next_claim((100, 200, 300), worker_memory=800, exceeded=500) == 800


def test_cores_that_limit_make_claims_wide() -> None:
    """Memory that cannot be used by more functions anyway is claimed."""
    peaks = [100.0, 900.0] * 50
    assert rungs(peaks, worker_memory=64_000, cpu_share=1 / 64) == (1000,)
    assert rungs(peaks, worker_memory=64_000, cpu_share=1) == (64_000,)


def test_growth_is_followed() -> None:
    """Functions that grow from one to the next claim what the next ones will need."""
    peaks = [1000 * 1.01**i for i in range(100)]
    first = rungs(peaks, worker_memory=64_000)[0]
    assert 1000 * 1.01**110 <= first <= 1.2 * 1000 * 1.01**110


def test_a_jump_is_no_growth_without_end() -> None:
    """After peaks have jumped, claims are not far above the new ones, and soon close to them."""
    at_once = rungs([100.0] * 40 + [2000.0] * 24, worker_memory=64_000)
    assert at_once[-1] <= 3 * 2000
    assert rungs([100.0] * 40 + [2000.0] * 70, worker_memory=64_000)[-1] == 2200


def test_a_ladder_is_computed_fast() -> None:
    """256 peaks take milliseconds at most, here with much to spare for a slow machine."""
    peaks = [float(i * 7919 % 5003) for i in range(256)]
    began = time.process_time()
    for _ in range(20):
        rungs(peaks, worker_memory=64_000)
    assert (time.process_time() - began) / 20 < 0.01
