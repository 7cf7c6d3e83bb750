"""Lines in the log of this process about the attempts of a run."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence

from handoff_dask.model.attempt import Attempt
from handoff_dask.model.function import Function, effective_policy
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.standins import for_a_log
from handoff_dask.widgets import markup
from handoff_dask.wire.run_events import AttemptEnded, Event, FunctionEnded, FunctionPlaced

logger = logging.getLogger("handoff_dask")

_VERBS = {
    "error": "failed on",
    "timeout": "timed out on",
    "worker-lost": "was lost with",
    "out-of-memory": "ran out of memory on",
    "process-died": "lost its process on",
}


class AttemptLog:
    """Logs failed attempts at level INFO, all starts and ends at level DEBUG.

    Parameters
    ----------
    functions
        {id: function} of the run.
    policy
        How they are retried, unless they have a policy of their own.
    """

    def __init__(self, functions: Mapping[Hashable, Function], policy: RetryPolicy) -> None:
        self._functions = functions
        self._policy = policy

    @staticmethod
    def enabled() -> bool:
        """Whether any of its lines would be logged."""
        return logger.isEnabledFor(logging.INFO)

    def __call__(self, events: Sequence[Event]) -> None:
        """Log events that the scheduler sent together."""
        failed = {
            event.function
            for event in events
            if isinstance(event, FunctionEnded) and event.state == "failed"
        }
        for event in events:
            if isinstance(event, FunctionPlaced):
                which = self._which(event.function, event.attempt)
                logger.debug("%s goes to %s", which, event.worker)
            elif isinstance(event, AttemptEnded):
                self._log_end(event.function, event.attempt, last=event.function in failed)

    def _log_end(self, function_id: Hashable, attempt: Attempt, last: bool) -> None:
        which = self._which(function_id, attempt.number)
        if attempt.outcome not in _VERBS:
            took = markup.seconds(attempt.duration)
            used = markup.usage(attempt.usage)
            logger.debug(
                "%s on %s: %s after %s%s",
                which,
                attempt.worker,
                attempt.outcome,
                took,
                f" ({used})" if used else "",
            )
            return
        reason = ": ".join(filter(None, (attempt.error_type, attempt.message)))
        logger.info(
            "%s %s %s%s%s",
            which,
            _VERBS[attempt.outcome],
            attempt.worker,
            f" ({for_a_log(reason)})" if reason else "",
            "" if last else self._next(function_id, attempt.number + 1),
        )

    def _which(self, function_id: Hashable, number: int) -> str:
        most = self._policy_of(function_id).max_retries + 1
        # There are more if some do not count.
        total = f" of {most}" if number <= most else ""
        return f"attempt {number}{total} of function {function_id!r}"

    def _policy_of(self, function_id: Hashable) -> RetryPolicy:
        return effective_policy(self._functions[function_id], self._policy)

    def _next(self, function_id: Hashable, number: int) -> str:
        """Say where and when the next attempt follows, if one is left."""
        policy = self._policy_of(function_id)
        if number > policy.max_retries + 1:
            return ""
        where = " on another worker, if there is one" if policy.avoid_last_worker else ""
        delay = policy.delay_before(number)
        return f"; next{where}{f', in {markup.seconds(delay)}' if delay else ''}"
