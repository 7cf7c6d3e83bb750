"""Asks retry policies that contain users' code, where the user's modules are."""

from __future__ import annotations

import pickle
from collections.abc import Mapping

from handoff_dask.attempts.retries import Verdict, judged, unusable
from handoff_dask.model.retry import RetryPolicy


def judge(error: BaseException, pickled: bytes, attempt: int, cost: Mapping[str, float]) -> Verdict:
    """Ask a pickled retry policy about an attempt that claimed `cost` and failed with `error`."""
    try:
        policy: RetryPolicy = pickle.loads(pickled)
    except BaseException as problem:  # unpickling runs the user's code
        return unusable(problem)
    return judged(policy, error, attempt, cost)
