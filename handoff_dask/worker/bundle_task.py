"""The task that runs the functions of a bundle, and the one that takes a value out of it."""

from __future__ import annotations

import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from typing import Any

from handoff_dask.compat import worker as compat
from handoff_dask.errors import StoredResultMissing
from handoff_dask.model.attempt import Usage
from handoff_dask.packed_errors import packed, replaced
from handoff_dask.standins import type_of
from handoff_dask.wire.bundles import (
    LACKING,
    MEMBERS,
    EndedColumns,
    Member,
    MemberFailure,
    Values,
    size_of,
    unpacked,
)
from handoff_dask.wire.payload import Name, open_call
from handoff_dask.worker.saving import ABSENT, Saver
from handoff_dask.worker.task import log_failure, run_member

#: Seconds between reports of members that succeeded, and after which one is due even if the next
#: member still runs.
REPORT, LATEST = 0.05, 0.1


def run_bundle(members: bytes, names: tuple[Name, ...], *values: Any) -> Values:
    """Run the functions of a bundle, one after the other.

    `values` are the content of each name in `names`, then the inputs of the bundle. The scheduler
    annotates the task with what differs from one placement to the next:

    - ``positions``: the members that run; None: all,
    - ``keep``: the members whose values are returned; None: as each says,
    - ``attempts``: {position: (number of earlier attempts, how many of them use up a retry)},
    - ``errors``: {position: pickled exception} of members that failed in earlier placements,
    - ``patience``: seconds after which the bundle gives back those that have not started.

    A bundle also gives them back if it gave up its thread or was withdrawn, or if its worker is
    paused or closing. Then the values that they need are returned as well.
    """
    inputs = values[len(names) :]
    contents = dict(zip(names, values, strict=False))
    return _Bundle(unpacked(members), contents, inputs, compat.this_task()).run()


def take(index: int, values: Values) -> Any:
    """Return the value of a member, or raise what it raised."""
    if index in values.errors:
        compat.silence_failure()
        raise packed(pickle.loads(values.errors[index]))
    if index not in values and index not in values.problems:
        # It is just leaving, or was not needed when the bundle ran last: the scheduler knows.
        task = compat.this_task()
        if task is not None:
            task.send(LACKING, {})
        raise compat.NotStarted
    return values[index]


def collect(indices: Sequence[int], left: Sequence[int], values: Values, *own: Any) -> list[Any]:
    """Return the values of several members, or raise what the first raised that failed.

    `own` are the values of those that left the bundle since, whose indices are `left`.
    """
    others = dict(zip(left, own, strict=True))
    return [others[index] if index in others else take(index, values) for index in indices]


def run_collector(
    runner: Callable[..., Any],
    fixed: Sequence[Any],
    contents: int,
    places: Sequence[tuple[int, int | None]],
    *values: Any,
) -> Any:
    """Run a function that gets some of its inputs several at once.

    Parameters
    ----------
    runner, fixed
        What runs it, and the arguments of that which come before the values.
    contents
        How many of the values are the content of names.
    places
        For each dependency: which of the other values has it, and at which place in there; None if
        that is the dependency's value itself.
    *values
        The content of names, then the inputs.
    """
    inputs = values[contents:]
    spread = (
        inputs[number] if place is None else inputs[number][place] for number, place in places
    )
    return runner(*fixed, *values[:contents], *spread)


class _Bundle:
    """One placement of a bundle."""

    def __init__(
        self,
        members: Sequence[Member],
        contents: Mapping[Name, Any],
        inputs: Sequence[Any],
        task: compat.ThisTask | None,
    ) -> None:
        self._members = members
        self._contents = contents
        self._inputs = inputs
        self._task = task
        mark = {} if task is None else task.facts.get("handoff", {})
        positions, keep = mark.get("positions"), mark.get("keep")
        self._positions: Sequence[int] = range(len(members)) if positions is None else positions
        self._keep = {p for p in self._positions if members[p].keep} if keep is None else set(keep)
        self._attempts: Mapping[int, tuple[int, int]] = mark.get("attempts") or {}
        self._patience: float | None = mark.get("patience")
        #: {position: how many members still need its value}
        self._users = Counter(-1 - s for p in self._positions for s in members[p].sources if s < 0)
        #: By position: values that somebody still needs.
        self._values: dict[int, Any] = {}
        #: {member that failed for good, or that cannot run: the one that failed}
        self._failed: dict[int, int] = {}
        self._errors: dict[int, bytes] = dict(mark.get("errors") or {})
        self._report = _Report(task)
        self._starts = None if task is None else task.starts
        self._number = -1 if task is None else task.run_id
        self._begun = time.monotonic()
        self._place: int | None = None
        #: The first position that does not run.
        self._next = 0
        #: Whether some that have not ended are left to another placement.
        self._gave_back = False

    def run(self) -> Values:
        """Run the members; return the values that somebody still needs."""
        if self._starts is None and self._task is not None and self._task.closing:
            raise compat.NotStarted  # the worker has already reported what it started
        try:
            for position in self._positions:
                if self._place is not None and self._gives_back():
                    self._gave_back = True
                if not self._gave_back:
                    self._next = position + 1
                self._run(position)
        finally:
            if self._starts is not None and self._place is not None:
                self._starts.end(self._place, self._next)
        if self._place is None and self._withdrawn():
            raise compat.NotStarted
        self._report.send(self._gave_back)
        # What depends on a failed member fails with its error.
        self._errors.update((p, self._errors[because]) for p, because in self._failed.items())
        members = self._members
        return Values(
            {members[position].index: value for position, value in self._values.items()},
            {members[position].index: error for position, error in self._errors.items()},
        )

    def _withdrawn(self) -> bool:
        return self._starts is not None and self._starts.refuses(self._number)

    def _gives_back(self) -> bool:
        """Whether what has not started is left to another placement."""
        if self._patience is not None and time.monotonic() - self._begun > self._patience:
            return True
        return self._task is not None and (self._withdrawn() or not self._task.undisturbed)

    def _run(self, position: int) -> None:
        """Run a member until it succeeds or no attempt is left, unless it is given back."""
        member = self._members[position]
        lacking = [-1 - s for s in member.sources if s < 0 and -1 - s not in self._values]
        if lacking:
            self._leave_out(position, lacking)
        if lacking or self._gave_back:
            return
        tried, failures = self._attempts.get(position, (0, 0))
        while self._starts_now(position, tried + 1):
            tried += 1
            if self._attempt(position, tried, tried + member.max_retries - failures):
                self._release(member)
                return
            if self._gives_back():
                self._gave_back = True
                return
            failures += 1

    def _attempt(self, position: int, attempt: int, most: int) -> bool:
        """Start a member once; return whether it succeeded or that was its last attempt.

        `most` is the number of the last attempt that it has left.
        """
        member, last = self._members[position], attempt >= most
        started, cpu = time.time(), time.thread_time()
        identity = None
        try:
            identity, call = open_call(member.call, self._contents)
            values = [
                self._inputs[source] if source >= 0 else self._values[-1 - source]
                for source in member.sources
            ]
            saver = None if member.stored is None else Saver(member.stored)
            value = ABSENT if saver is None or attempt == 1 else saver.result()
            stored = value is not ABSENT
            if not stored:
                if saver is not None:
                    saver.check()
                # In a context of its own, so that nothing a function sets there reaches the next.
                value = copy_context().run(run_member, identity, call, values, attempt, self._task)
                if saver is not None:
                    used = Usage(time.thread_time() - cpu, None, size_of(value))
                    saver.save(value, started, time.time(), used)
        except BaseException as error:  # whatever a function raises is its failure
            # The client has what the store has lost made again, and the function goes on.
            lost = issubclass(type(error), StoredResultMissing)
            last = last or lost
            packed_error = replaced(error)
            failure = MemberFailure(
                position,
                started,
                time.time(),
                type_of(error),
                packed_error.message,
                last,
                pickle.dumps(packed_error) if last else None,
                time.thread_time() - cpu,
            )
        else:
            cpu = time.thread_time() - cpu
            self._report.ended(position, started, time.time(), cpu, size_of(value), stored)
            if position in self._keep or self._users[position]:
                self._values[position] = value
            return True
        if self._starts is not None:
            self._starts.failed(self._number, position, failure.final)
        self._report.failed(failure)
        if self._task is not None and not lost and compat.failures_shown():
            text = f"{failure.error_type}: {failure.message}"
            log_failure(identity or (self._task.key, None), text, attempt, most)
        if failure.exception is not None:
            self._errors[position] = failure.exception
            self._failed[position] = position
        return failure.final

    def _starts_now(self, position: int, attempt: int) -> bool:
        """Record that an attempt of a member starts; return False if it must not."""
        place = -1
        if self._starts is not None:
            begun = self._starts.begin(self._number, position, attempt)
            if begun is None:
                return False
            place = begun
        self._place = place
        return True

    def _leave_out(self, position: int, lacking: Sequence[int]) -> None:
        """Leave out a member because others have no value: for good, if one of these failed."""
        failed = [self._failed[source] for source in lacking if source in self._failed]
        if failed:
            self._failed[position] = failed[0]
            self._release(self._members[position])

    def _release(self, member: Member) -> None:
        """Drop the values that only this member needed."""
        for source in member.sources:
            if source < 0:
                position = -1 - source
                self._users[position] -= 1
                if not self._users[position] and position not in self._keep:
                    self._values.pop(position, None)


class _Report:
    """Tells the scheduler what became of members, before Dask's message about the task's end."""

    def __init__(self, task: compat.ThisTask | None) -> None:
        self._task = task
        #: The worker's loop sends, too, while a member runs.
        self._lock = threading.Lock()
        #: Whether the loop is about to.
        self._scheduled = False
        self._clear()

    def _clear(self) -> None:
        self._ended = EndedColumns()
        self._failures: list[MemberFailure] = []
        self._last = time.monotonic()

    def ended(self, position: int, *attempt: Any) -> None:
        """Add an attempt that succeeded."""
        with self._lock:
            self._ended.add(position, *attempt)
            if time.monotonic() - self._last > REPORT:
                self._send()
            elif not self._scheduled and self._task is not None:
                self._scheduled = True
                self._task.later(LATEST, self._send_late)

    def failed(self, failure: MemberFailure) -> None:
        """Report an attempt that failed, at once."""
        with self._lock:
            self._failures.append(failure)
            self._send()

    def send(self, gave_back: bool) -> None:
        """Send what was added since the last time, and whether what has not ended is given back."""
        with self._lock:
            self._send(gave_back)

    def _send_late(self) -> None:
        with self._lock:
            self._scheduled = False
            self._send()

    def _send(self, gave_back: bool = False) -> None:
        if self._task is not None and (self._ended or self._failures or gave_back):
            self._task.send(
                MEMBERS,
                {
                    "ended": self._ended.pack(),
                    "failures": [tuple(failure) for failure in self._failures],
                    "gave_back": gave_back,
                },
            )
        self._clear()
