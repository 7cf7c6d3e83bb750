"""How much chaos: a sample by default, all of it by `make chaos`."""

from __future__ import annotations

import os
import random

import pytest


def pytest_generate_tests(metafunc):
    """Give each test of chaos its seeds, which follow from the one that the environment names."""
    if "seed" in metafunc.fixturenames:
        first = int(os.environ.get("CHAOS_SEED") or 1)
        rounds = int(os.environ.get("CHAOS_ROUNDS") or 1)
        metafunc.parametrize("seed", range(first, first + rounds))


@pytest.fixture
def rng(seed):
    """The one source of all that is random in a test."""
    return random.Random(seed)
