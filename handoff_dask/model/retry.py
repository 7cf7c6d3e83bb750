"""What happens after a failed attempt, as data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from handoff_dask.model.amounts import (
    TIME,
    Seconds,
    as_amount,
    as_count,
    as_number,
    as_seconds,
    is_number,
)

#: ``escalate(attempt, cost, last_error) -> cost`` of the next attempt.
Escalate = Callable[[int, Mapping[str, float], BaseException | None], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When and where a failed function is tried again.

    Parameters
    ----------
    max_retries
        Attempts after the first, whatever ended the earlier ones: an exception, a timeout or the
        death of the worker. 0 means a single attempt.
    delay
        How long to wait before the first retry: seconds, text such as ``"5 min"``, or a timedelta;
        it is kept in seconds.
    backoff
        Factor by which each further delay grows.
    max_delay
        The longest delay, given like `delay`.
    jitter
        Fraction of a delay by which it varies at random, so that retries do not come all at once.
    retry_on
        Exception types that are retried; ``(Exception,)`` retries whatever a function raises.
    give_up_on
        Exception types that are never retried, even if `retry_on` includes them.
    avoid_last_worker
        Prefer a worker other than the last one for a retry. If all others are busy, the retry waits
        for one, but no longer than the function is expected to run; then it may use the last worker
        again. ``"always"`` waits without that limit, as long as the cluster has another worker that
        could hold the function. False: no preference.
    escalate
        ``(attempt, cost, last_error) -> cost``: returns what the next attempt claims. See
        :func:`grow`.

    Examples
    --------
    >>> from handoff_dask import RetryPolicy
    >>> policy = RetryPolicy(max_retries=2, delay=1.0, jitter=0)
    >>> [policy.delay_before(attempt) for attempt in (2, 3)]
    [1.0, 2.0]
    """

    max_retries: int = 3
    delay: Seconds = 0.0
    backoff: float = 2.0
    max_delay: Seconds = 60.0
    jitter: float = 0.1
    retry_on: tuple[type[BaseException], ...] = (Exception,)
    give_up_on: tuple[type[BaseException], ...] = ()
    avoid_last_worker: bool | Literal["always"] = True
    escalate: Escalate | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_retries", as_count(self.max_retries))
        for name in ("backoff", "jitter"):
            object.__setattr__(self, name, as_number(getattr(self, name)))
        for name in ("delay", "max_delay"):
            try:
                object.__setattr__(self, name, as_seconds(getattr(self, name)))
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None

    def delay_before(self, attempt: int, random: float = 0.5) -> float:
        """Return the seconds to wait before an attempt.

        Parameters
        ----------
        attempt
            Number of the next attempt: 2 for the first retry.
        random
            A number in [0, 1) that selects the jitter; 0.5 means no jitter.
        """
        # They are kept in seconds.
        first, longest = cast("float", self.delay), cast("float", self.max_delay)
        try:
            delay = min(first * float(self.backoff) ** max(attempt - 2, 0), longest)
        except OverflowError:
            delay = longest if first else 0.0
        return min(max(delay * (1 + self.jitter * (2 * random - 1)), 0.0), longest)

    def with_max_retries(self, max_retries: int) -> RetryPolicy:
        """Return the same policy with another number of retries."""
        return replace(self, max_retries=max_retries)

    @property
    def numbers(self) -> RetryPolicy:
        """The policy without users' code: its exception types and `escalate`."""
        return replace(self, retry_on=(Exception,), give_up_on=(), escalate=None)

    @property
    def has_code(self) -> bool:
        """Whether only a process with the user's code can judge a failure."""
        return self.retry_on != (Exception,) or bool(self.give_up_on) or self.escalate is not None

    def retries(self, error: BaseException) -> bool:
        """Return whether an error is of a type that is retried."""
        # By default everything: SystemExit, for example, is just the failure of a function.
        retried = self.retry_on == (Exception,) or isinstance(error, self.retry_on)
        return retried and not isinstance(error, self.give_up_on)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield (field, what is wrong with it) for each invalid field."""
        if problem := count_problem(self.max_retries):
            yield "max_retries", problem
        for name, problem in (
            ("delay", time_problem(self.delay)),
            ("backoff", number_problem(self.backoff, 1)),
            ("max_delay", time_problem(self.max_delay)),
            ("jitter", number_problem(self.jitter)),
        ):
            if problem:
                yield name, problem
        for name in ("retry_on", "give_up_on"):
            types: Any = getattr(self, name)
            if not isinstance(types, tuple) or not all(
                isinstance(t, type) and issubclass(t, BaseException) for t in types
            ):
                yield name, f"must be a tuple of exception types, not {types!r}"
        if self.avoid_last_worker not in (True, False, "always"):
            wrong = repr(self.avoid_last_worker)
            yield "avoid_last_worker", f'must be True, False or "always", not {wrong}'
        if self.escalate is not None and not callable(self.escalate):
            yield "escalate", f"must be callable or None, not {self.escalate!r}"


@dataclass(frozen=True, slots=True)
class Grow:
    """An `escalate` that claims more of a resource after out of memory; see :func:`grow`."""

    resource: str
    factor: float = 2.0
    most: float = math.inf

    def __call__(
        self, attempt: int, cost: Mapping[str, float], last_error: BaseException | None
    ) -> Mapping[str, float]:
        """Return what the next attempt claims."""
        if not (isinstance(last_error, MemoryError) or getattr(last_error, "out_of_memory", False)):
            return cost
        return {
            name: min(amount * self.factor, max(amount, self.most))
            if name.lower() == self.resource
            else amount
            for name, amount in cost.items()
        }


def grow(resource: str = "memory", factor: float = 2.0, most: float | str = math.inf) -> Escalate:
    """Return an `escalate` for a :class:`RetryPolicy`: more of a resource after out of memory.

    It multiplies what the function declares after an attempt that was out of memory: an isolated
    function that exceeded its claim, one that raised ``MemoryError``, or one whose worker was ended
    at its memory limit. Any other failure changes nothing.

    Parameters
    ----------
    resource
        The resource whose claim grows.
    factor
        What it is multiplied by, more than 1.
    most
        It grows no further than this: a number, or text such as ``"64 GB"`` for memory. If no
        worker has as much as a further attempt would claim, the function fails.

    Examples
    --------
    >>> from handoff_dask import RetryPolicy, grow
    >>> policy = RetryPolicy(max_retries=3, escalate=grow("memory", factor=2))
    >>> policy.escalate(1, {"memory": 500, "cpu": 1}, MemoryError())
    {'memory': 1000, 'cpu': 1}
    """
    if problem := number_problem(factor, 1) or (None if factor > 1 else "must be more than 1"):
        raise ValueError(f"factor {problem}")
    if not isinstance(resource, str):
        raise TypeError(f"resource must be the name of a resource, not {resource!r}")
    amount = as_amount(resource, most)
    if amount != math.inf and (problem := number_problem(amount)):
        raise ValueError(f"most {problem}")
    return Grow(resource.lower(), as_number(factor), amount)


def count_problem(value: object) -> str | None:
    """Return why a value is not a whole number >= 0, or None."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return f"must be a whole number >= 0, not {value!r}"
    return None


def number_problem(value: object, least: float = 0) -> str | None:
    """Return why a value is not a finite number >= `least`, or None."""
    number = type(value) in (int, float) or is_number(value)
    try:
        if number and math.isfinite(value) and value >= least:  # type: ignore[arg-type, operator]
            return None
    except OverflowError:  # a whole number that no float can hold
        pass
    bound = "" if least == -math.inf else f" >= {least}"
    return f"must be a {'finite ' if number else ''}number{bound}, not {value!r}"


def time_problem(value: object) -> str | None:
    """Return why a value, which is kept in seconds, is not a time >= 0, or None."""
    return number_problem(value) if is_number(value) else f"must be {TIME}, not {value!r}"


def time_limit_problem(value: object) -> str | None:
    """Return why a value, which is kept in seconds, is not a time > 0, or None."""
    return time_problem(value) or (None if value else "must be greater than 0 seconds")
