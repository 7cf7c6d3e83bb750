from __future__ import annotations

import pytest

from handoff_dask.placement.durations import Durations


def test_a_function_s_own_time_is_finer_than_its_family_s() -> None:
    """Each token has its own average; the family has the average of all."""
    durations = Durations()
    durations.learn("a", "code", 1.0)
    durations.learn("b", "code", 3.0)
    assert durations.of_token("a") == 1.0
    assert durations.of_code("code") == pytest.approx(2.0)
    assert durations.of_token("c") is None and durations.of_code("other") is None


def test_old_measurements_fade() -> None:
    """An average follows a lasting change."""
    durations = Durations()
    for seconds in [10.0] * 100 + [1.0] * 100:
        mean = durations.learn(None, "code", seconds)
    assert mean == pytest.approx(1.0, abs=0.1)


def test_memory_is_bounded() -> None:
    """The least recently measured are forgotten first."""
    durations = Durations(tokens=2, codes=2)
    for token in "abac":
        durations.learn(token, "code", 1.0)
    assert durations.of_token("a") == 1.0
    assert durations.of_token("b") is None
