"""The record of an attempt."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError

import pytest

from handoff_dask.model.attempt import Attempt

FAILED = Attempt(
    number=2,
    worker="tcp://10.0.0.1:4000",
    worker_name="alice",
    host="10.0.0.1",
    started=100.0,
    stopped=102.5,
    cost={"cpu": 2},
    outcome="error",
    error_type="ValueError",
    message="no",
)


def test_history_does_not_change():
    """A record cannot be changed."""
    with pytest.raises(FrozenInstanceError):
        FAILED.outcome = "ok"


def test_an_attempt_that_went_well():
    """By default, a record is of a success that cost nothing."""
    attempt = Attempt(1, "w", "w", "h", 0.0, 1.0)
    assert (attempt.outcome, attempt.error_type, attempt.message) == ("ok", None, None)
    assert attempt.cost == {}


def test_duration():
    """The duration is the seconds between start and stop."""
    assert FAILED.duration == 2.5


def test_pickle():
    """A record survives the way from the scheduler."""
    assert pickle.loads(pickle.dumps(FAILED)) == FAILED
