"""The retry policy: invalid values, and delays."""

from __future__ import annotations

import math
import pickle
from dataclasses import FrozenInstanceError
from fractions import Fraction

import pytest

from handoff_dask.model.retry import RetryPolicy, count_problem, number_problem

BEYOND_FLOAT = 10**400


@pytest.mark.parametrize("value", [-1, 1.0, 2.5, True, "3", None, math.inf])
def test_no_count(value):
    """A number of retries is a whole number >= 0; the error shows any other value."""
    assert repr(value) in count_problem(value)


@pytest.mark.parametrize("value", [0, 1, 10**30])
def test_count(value):
    """Whole numbers from 0 on count retries."""
    assert count_problem(value) is None


@pytest.mark.parametrize(
    "value",
    [-1, -0.001, math.nan, math.inf, -math.inf, True, False, "1", None, 1j, BEYOND_FLOAT, []],
)
def test_no_number(value):
    """Anything but a finite number >= 0 is refused and shown, including bools."""
    assert repr(value) in number_problem(value)


@pytest.mark.parametrize("value", [0, 0.0, 1, 0.25, Fraction(1, 3)])
def test_number(value):
    """Fractions of any type are numbers."""
    assert number_problem(value) is None


def test_number_with_another_bound():
    """The message includes the bound, if any."""
    assert ">= 1" in number_problem(0.5, 1)
    assert number_problem(-5, -math.inf) is None
    assert "inf" not in number_problem("x", -math.inf)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_retries", -1),
        ("max_retries", 1.5),
        ("delay", -1),
        ("delay", math.nan),
        ("backoff", 0.5),
        ("backoff", "2"),
        ("max_delay", math.inf),
        ("jitter", -0.1),
        ("jitter", True),
        ("retry_on", ValueError),
        ("retry_on", (int,)),
        ("retry_on", [ValueError]),
        ("give_up_on", (ValueError(),)),
        ("escalate", "more"),
    ],
)
def test_problems(field, value):
    """Exactly the invalid field is named."""
    ((named, problem),) = RetryPolicy(**{field: value}).problems()
    assert named == field
    assert repr(value) in problem


@pytest.mark.parametrize(
    "policy",
    [
        RetryPolicy(),
        RetryPolicy(0, 0, 1, 0, 0, (), (), False, max),
        RetryPolicy(retry_on=(KeyboardInterrupt, OSError), give_up_on=(FileNotFoundError,)),
    ],
)
def test_no_problems(policy):
    """The defaults and the bounds themselves are valid."""
    assert list(policy.problems()) == []


def test_every_problem_is_found():
    """Both mistakes of a policy are reported."""
    assert [f for f, _ in RetryPolicy(-1, -1).problems()] == ["max_retries", "delay"]


def test_delays_grow_by_the_factor():
    """The first retry waits `delay`, each later one `backoff` times as long."""
    policy = RetryPolicy(delay=2, backoff=3, jitter=0)
    assert [policy.delay_before(n) for n in (2, 3, 4)] == [2, 6, 18]


def test_no_delay_by_default():
    """A policy without a delay retries at once, at every attempt."""
    assert {RetryPolicy().delay_before(n, 0.9) for n in (2, 3, 5000)} == {0}


@pytest.mark.parametrize("attempt", [10, 500, 10**6])
@pytest.mark.parametrize("backoff", [2, 2.0, 1e9])
@pytest.mark.parametrize(("random", "delay"), [(0.0, 4), (0.25, 4.5), (0.5, 5), (0.999, 5)])
def test_no_delay_exceeds_the_longest(attempt, backoff, random, delay):
    """No delay exceeds `max_delay`, whatever the attempt and the jitter."""
    policy = RetryPolicy(delay=1, backoff=backoff, max_delay=5, jitter=0.2)
    assert policy.delay_before(attempt, random) == pytest.approx(delay, rel=1e-9)


def test_a_zero_delay_stays_zero_when_the_power_overflows():
    """A delay of 0 stays 0, whatever the backoff."""
    assert RetryPolicy(delay=0, backoff=1e9).delay_before(10**6) == 0


@pytest.mark.parametrize(("random", "delay"), [(0.0, 8.0), (0.5, 10.0), (0.75, 11.0)])
def test_jitter(random, delay):
    """The jitter is a fraction of the delay, in both directions."""
    assert RetryPolicy(delay=10, jitter=0.2).delay_before(2, random) == pytest.approx(delay)


def test_jitter_never_makes_a_delay_negative():
    """A jitter larger than the delay does not make it negative."""
    assert RetryPolicy(delay=1, jitter=3).delay_before(2, 0.0) == 0


def test_a_policy_is_data():
    """Policies are immutable, compare by value and survive pickling."""
    policy = RetryPolicy(max_retries=5, delay=1.5, give_up_on=(KeyError,), escalate=max)
    assert pickle.loads(pickle.dumps(policy)) == policy
    with pytest.raises(FrozenInstanceError):
        policy.delay = 0


def test_with_max_retries():
    """Only the number of retries changes, and the original is unchanged."""
    policy = RetryPolicy(delay=4, jitter=0)
    assert policy.with_max_retries(9) == RetryPolicy(max_retries=9, delay=4, jitter=0)
    assert policy.max_retries == 3
