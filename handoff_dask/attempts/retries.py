"""The next attempt of a function: whether there is one, when, where and at what cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from handoff_dask.attempts.life import Life
from handoff_dask.attempts.states import Waiting
from handoff_dask.model.amounts import as_amounts
from handoff_dask.model.expansion import effective_cost
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.model.validation import cost_problem
from handoff_dask.standins import shortened, text_of, type_of


class Verdict(NamedTuple):
    """What a retry policy says about a failed attempt."""

    #: Whether another attempt may follow, if any is left.
    retry: bool
    #: What that attempt claims; None leaves the cost as it is.
    cost: Mapping[str, float] | None = None
    #: The field of the function that is wrong, and why, if the policy itself failed.
    problem: tuple[str, str] | None = None


def judged(
    policy: RetryPolicy, error: BaseException, attempt: int, cost: Mapping[str, float]
) -> Verdict:
    """Ask a policy about an attempt that claimed `cost` and failed with `error`."""
    try:
        retry = policy.retries(error)
    except BaseException as problem:  # from __instancecheck__ of a metaclass, for example
        return unusable(problem)
    if not retry or policy.escalate is None:
        return Verdict(retry)
    return escalated(policy, attempt, cost, error)


def unusable(problem: BaseException) -> Verdict:
    """Return the verdict of a policy that cannot be asked."""
    raised = f"cannot be evaluated: {type_of(problem)}: {text_of(problem)}"
    return Verdict(False, problem=("retry", raised))


def escalated(
    policy: RetryPolicy, attempt: int, cost: Mapping[str, float], error: BaseException
) -> Verdict:
    """Ask a policy that escalates what the next attempt costs."""
    assert policy.escalate is not None
    try:
        answer = policy.escalate(attempt, dict(cost), error)
        if problem := cost_problem(answer):
            wrong = f"returned an invalid cost: {shortened(problem)}"
        else:
            return Verdict(True, effective_cost(as_amounts(answer)))
    except BaseException as raised:  # even SystemExit, which would end the scheduler
        wrong = f"raised {type_of(raised)}: {text_of(raised)}"
    return Verdict(False, problem=("retry.escalate", wrong))


class Terms(NamedTuple):
    """How the engine is to place the next attempt."""

    #: What it claims; None is the function's own cost.
    cost: Mapping[str, float] | None = None
    #: The earliest time to start (s of the engine's clock): the retry's delay.
    not_before: float | None = None
    #: Workers to use only if there is no other.
    avoid: tuple[str, ...] = ()
    #: Whether to wait for another worker for as long as the cluster has one.
    insist: bool = False
    #: Workers that must not be used.
    exclude: tuple[str, ...] = ()


def may_retry(life: Life) -> bool:
    """Whether another attempt would be left if the current one failed."""
    return life.failures < life.row.policy.max_retries


def terms(life: Life, now: float, random: float) -> Terms:
    """Decide how the next attempt of a function is to be placed.

    `now` is the time by the engine's clock (s); `random`, in [0, 1), picks the jitter of the
    delay.
    """
    policy = life.row.policy
    cost = None if life.cost is life.row.cost else life.cost
    # Where a thread still runs an earlier attempt, Dask would take it for the new one.
    exclude = life.late
    avoid = () if life.avoid is None else (life.avoid,)
    if not (isinstance(life.state, Waiting) and life.state.retry):
        return Terms(cost, avoid=avoid, exclude=exclude)
    delay = policy.delay_before(life.failures + 1, random)
    if policy.avoid_last_worker and life.worker is not None:
        avoid = (*avoid, life.worker)
    insist = policy.avoid_last_worker == "always"
    return Terms(cost, now + delay if delay else None, avoid, insist, exclude)
