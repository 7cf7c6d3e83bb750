"""The amount of chaos: a sample by default, all of it with `make chaos`."""

from __future__ import annotations

import os
import random

import pytest


def pytest_generate_tests(metafunc):
    """Give each chaos test its seeds, derived from the one in the environment."""
    if "seed" in metafunc.fixturenames:
        first = int(os.environ.get("CHAOS_SEED") or 1)
        rounds = int(os.environ.get("CHAOS_ROUNDS") or 1)
        metafunc.parametrize("seed", range(first, first + rounds))


@pytest.fixture
def rng(seed):
    """The only source of randomness in a test."""
    return random.Random(seed)
