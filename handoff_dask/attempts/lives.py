"""What the events of a cluster mean for the functions of all runs, and for what they claim."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import random
from typing import Any, NamedTuple, Protocol

from handoff_dask.attempts import retries
from handoff_dask.attempts.endings import Endings
from handoff_dask.attempts.life import Life
from handoff_dask.attempts.losses import End, Lost, charge
from handoff_dask.attempts.states import (
    DONE,
    FAILED,
    HELD,
    PLACED,
    RETRYING,
    WAITING,
    Asking,
    Assigned,
    Ended,
    Failing,
    Failure,
    Held,
    Placement,
    Running,
    Waiting,
)
from handoff_dask.errors import (
    HandoffError,
    InvalidFunctionError,
    OutOfMemoryError,
    WorkerLostError,
)
from handoff_dask.model.attempt import UNKNOWN, Outcome, Usage
from handoff_dask.placement.engine import Engine

#: How often an attempt that had ended may be lost with its worker without being charged.
UNREPORTED = 3


class Surroundings(Protocol):
    """What has to be known of the cluster and of users' code."""

    def input_sizes(self, life: Life) -> tuple[Mapping[str, float], float]:
        """Return the bytes of a function's inputs that each worker has, and those of all inputs."""

    def learned_claim(self, life: Life) -> float | None:
        """Return how much memory the next attempt claims (MB); None if no worker has enough."""

    def refusal(self, life: Life) -> Exception | None:
        """Return why no worker could hold what an escalated attempt claims."""

    def worker_lost(self, life: Life) -> WorkerLostError:
        """Return the error of a function that is out of attempts because workers died."""

    def escalate(self, life: Life) -> retries.Verdict:
        """Ask a policy with code what to claim after a worker's death."""

    def died_unstarted(self, life: Life, lost: Lost, reason: str) -> None:
        """Learn that a worker died before a function could start there."""

    def bundle_lost(self, life: Life, lost: Lost, end: End) -> None:
        """Charge the functions of a bundle that was lost."""

    def given_up(self, life: Life) -> None:
        """Learn that an attempt was given up that had given back its slot."""


class Departure(NamedTuple):
    """How a function left its worker, as far as Dask says."""

    #: The scheduler's number of the placement.
    number: int
    #: When: seconds since the epoch, and by the engine's clock.
    at: float
    now: float
    #: Whether the worker itself reported the end, so that its thread is free.
    reported: bool
    #: When it started and stopped (s since epoch), if that was reported.
    span: tuple[float, float] | None = None
    #: Whether the worker is there and has our plugin.
    worker_known: bool = True
    #: Whether the worker is gone.
    worker_gone: bool = False
    #: Whether it died, rather than closed in order.
    worker_died: bool = False
    #: What had to be brought to the worker.
    inputs: tuple[object, ...] = ()
    usage: Usage = UNKNOWN
    #: Whether the result was read from the store.
    stored: bool = False


@dataclass(eq=False)
class Lives:
    """Takes every function from state to state."""

    engine: Engine
    #: Keeps the claims of attempts that were given up.
    endings: Endings
    surroundings: Surroundings
    #: Draws the jitter of delays: a number in [0, 1).
    chance: Callable[[], float] = random
    #: Functions that wait for a place but are to fail instead, and why.
    doomed: list[tuple[Life, Exception]] = field(default_factory=list)

    # Before an attempt

    def ready(self, life: Life, now: float) -> None:
        """Have a function placed: its inputs are there."""
        state = life.state
        if isinstance(state, Asking):
            life.enter("ready", Asking(state.lost, ready=True))
            return
        if isinstance(state, Ended) and state.lost is not None:
            life.enter("ready while asking", Asking(state.lost, ready=True))
            return
        terms = self._terms(life, now)
        life.enter("ready", HELD)
        self._offer(life, now, terms)

    def place_again(self, life: Life, now: float) -> None:
        """Ask the engine once more for a held function that could not be sent where it decided."""
        self.engine.attempt_ended(life.key, now)
        self._offer(life, now, self._terms(life, now))

    def claim_again(self, life: Life, now: float) -> None:
        """Have a held function claim what has been learned by now."""
        if isinstance(life.state, Held):
            before = life.cost
            terms = dict(self._terms(life, now))
            if life.cost != before or life.doom is not None:
                why = self.engine.questions.why(life.key)
                if why is not None and why.reason == "delay":
                    terms["not_before"] = why.until
                self._offer(life, now, terms)

    def _terms(self, life: Life, now: float) -> Mapping[str, Any]:
        if life.row.learns_memory:
            self._learn(life)
        if life.untried and life.cost is life.row.cost:
            return {}
        return retries.terms(life, now, self.chance())._asdict()

    def _learn(self, life: Life) -> None:
        """Change what a function claims to what others of its code have used."""
        claim = self.surroundings.learned_claim(life)
        if claim is None:
            problem = (
                f"it used {life.exceeded:,.0f} MB of memory, and no worker that could run it has "
                "more"
            )
            life.doom = OutOfMemoryError(life.row.label, life.exceeded, life.exceeded, problem)
        else:
            life.cost = {**life.cost, "memory": claim}

    def _offer(self, life: Life, now: float, terms: Mapping[str, Any]) -> None:
        if terms and (error := self.verdict(life)) is not None:
            self.doomed.append((life, error))
            return
        inputs, total = self.surroundings.input_sizes(life)
        self.engine.function_ready(life.key, now, inputs=inputs, input_total=total, **terms)

    def verdict(self, life: Life) -> Exception | None:
        """Return the error that a function ends with instead of a further attempt, if it does."""
        if life.doom is not None:
            return life.doom
        if life.failures > life.row.policy.max_retries:
            return self.surroundings.worker_lost(life)
        # After a death, the engine waits for what the cluster has lost with the worker.
        if life.cost is not life.row.cost and not life.deaths and not life.row.learns_memory:
            return self.surroundings.refusal(life)
        return None

    def inputs_lost(self, life: Life) -> None:
        """Hold a function back again: inputs of it are gone."""
        if isinstance(life.state, Asking):
            life.enter("inputs lost", Asking(life.state.lost))
        else:
            self.engine.function_withdrawn(life.key)
            life.enter("inputs lost", WAITING)

    def placed(self, life: Life, placement: Placement, *, ahead: bool) -> None:
        """Record that a function was sent to a worker, to run or to wait for another to end."""
        if ahead:
            life.enter("handed ahead", Assigned(placement))
        else:
            life.enter("placed", Running(placement))

    def turned_away(self, life: Life, now: float) -> None:
        """Record that Dask did not send a function where it was placed."""
        life.enter("turned away", HELD)
        self.place_again(life, now)

    def taken(self, life: Life, placement: Placement) -> None:
        """Record that Dask sent a function to a worker although it was held."""
        self.engine.function_withdrawn(life.key)
        life.enter("taken by Dask", Assigned(placement))

    # While a worker has it

    def started(self, life: Life) -> None:
        """Record that what a function waited for on its worker has ended."""
        if isinstance(life.state, Assigned):
            life.enter("started", Running(life.state.placement))

    def thread_released(self, life: Life) -> None:
        """Record that a function that goes on gave its thread back: it seceded."""
        if isinstance(life.state, (Assigned, Running)):
            life.enter("thread released", Running(life.state.placement, seceded=True))
            self.engine.slot_released(life.key)

    def failure_reported(self, life: Life, failure: Failure) -> bool:
        """Record what a worker reports of a failed attempt; return whether another follows."""
        state = life.state
        assert isinstance(state, (Assigned, Running))
        if life.claimed_too_little(failure):
            peak = failure.usage.peak_memory or 0.0
            life.exceeded = max(life.exceeded, life.cost.get("memory", 0.0), peak)
            again = self.surroundings.learned_claim(life) is not None
        else:
            again = failure.retry and retries.may_retry(life)
        seceded = isinstance(state, Running) and state.seceded
        life.enter(
            "failure reported", Failing(state.placement, failure._replace(retry=again), seceded)
        )
        return again

    # The end of an attempt

    def succeeded(self, life: Life, worker: str, departure: Departure) -> None:
        """Record that a result is there, of an attempt under way or of one that was given up."""
        state, span = life.state, departure.span
        placed = isinstance(state, PLACED)
        self.endings.pass_on(worker, life.cost)
        self.engine.attempt_ended(
            life.key,
            departure.now,
            duration=None
            if span is None or life.is_bundle or departure.stored
            else span[1] - span[0],
            done=True,
        )
        # Without a start of its own, the worker had the result already, and Dask did not know.
        if span is not None and not life.has_result_of(worker, span[0]):
            if placed or life.lost is not None or not life.entries:
                outcome: Outcome = "stored" if departure.stored else "ok"
                life.record(worker, *span, outcome, usage=departure.usage)
            else:
                life.correct(*span, departure.usage)
        life.enter("succeeded" if placed else "result arrived", DONE)

    def returned(self, life: Life, departure: Departure) -> Lost | None:
        """Record that a function left its worker without a result and goes back to the gate.

        Return what has to be asked about, if nobody reported how the attempt ended.
        """
        state = life.state
        assert isinstance(state, PLACED)
        if isinstance(state, Failing):
            lost = self._leave(life, departure)
            self._failed(life, state.failure)
            if not state.failure.retry and life.doom is None:
                # Else it would be tried again, or end for another reason.
                text = f"{state.failure.error_type}: {state.failure.message}"
                life.doom = HandoffError(f"{text} (the exception was lost with its worker)")
            charged = life.entries[-1].counts
            life.enter("tried again", RETRYING if charged else WAITING)
            return lost
        lost = self._leave(life, departure)
        assert lost is not None
        life.enter("lost", Asking(lost))
        return lost

    def erred(self, life: Life, departure: Departure, error_type: str, message: str) -> Lost | None:
        """Record that the last attempt of a function failed, and it with that.

        `error_type` and `message` are Dask's, for a failure that the worker did not report: before
        the function itself, for example in loading it.
        """
        state = life.state
        assert isinstance(state, PLACED)
        lost = self._leave(life, departure)
        if isinstance(state, Failing):
            self._failed(life, state.failure)
        else:
            started, stopped = departure.span or (state.placement.at, departure.at)
            worker = state.placement.worker
            life.record(worker, started, stopped, "error", message, True, error_type)
        life.enter("failed", FAILED)
        return lost

    def _leave(self, life: Life, departure: Departure) -> Lost | None:
        """Release what an attempt claims, or keep it for as long as its thread may run."""
        state = life.state
        assert isinstance(state, PLACED)
        worker, placed = state.placement
        late = isinstance(state, Failing) and state.failure.late
        if departure.reported:
            self.endings.pass_on(worker, life.cost)
            self.engine.attempt_ended(life.key, departure.now)
            return None
        seceded = not isinstance(state, Assigned) and state.seceded
        if departure.worker_known:
            # A function handed ahead has no claim of its own: the one it waits for has it.
            claims = not self.engine.questions.waits_ahead(life.key)
            self.endings.begin(life, departure.number, worker, seceded=seceded, claims=claims)
        self.engine.attempt_ended(life.key, departure.now)
        if seceded:
            # It may wait for a run of its own that needs what it claims.
            self.surroundings.given_up(life)
        if late:
            return None  # its worker will report the end of the thread
        return Lost(
            worker,
            placed,
            departure.number,
            departure.at,
            departure.worker_gone,
            departure.worker_died,
            departure.inputs,
        )

    def _failed(self, life: Life, failure: Failure) -> None:
        """Record a failed attempt, and what it means for the next one."""
        state = life.state
        assert isinstance(state, Failing)
        life.record(
            state.placement.worker,
            failure.started,
            failure.stopped,
            failure.outcome,
            failure.message,
            not life.claimed_too_little(failure),
            failure.error_type,
            failure.usage,
        )
        self._change_terms(life, failure)

    def _change_terms(self, life: Life, said: Failure | retries.Verdict) -> None:
        """Apply what a policy with code says about the next attempt."""
        if said.cost is not None:
            life.cost = said.cost
        if said.problem is not None:
            life.doom = InvalidFunctionError(life.row.label, *said.problem)

    def settled(self, life: Life, lost: Lost, end: End, now: float) -> None:
        """Charge a lost attempt, once it is known what its worker had started, and go on."""
        if lost.number in end.busy:
            self.endings.confirm(life.key, lost.number)
        else:
            self.endings.over(life.key, lost.number)
        if life.lost is not lost:
            return  # it is in the ledger already: only the end of its thread was unknown
        reason = end.reason or "for a reason unknown"
        due = None if life.is_bundle else charge(lost, end)
        if due is not None and lost.died and not due.counts:
            # It had ended. Time and again, something about its result ends its workers.
            unreported = [e for e in life.entries if e.outcome == "worker-lost" and not e.counts]
            due = due._replace(counts=len(unreported) >= UNREPORTED)
        if life.is_bundle:
            self.surroundings.bundle_lost(life, lost, end)
        elif due is None:
            if lost.died:
                self.surroundings.died_unstarted(life, lost, reason)
        else:
            life.record(lost.worker, *due)
            if due.counts:
                self._change_terms(life, self.surroundings.escalate(life))
        state = life.state
        if isinstance(state, Asking):
            retry = due is not None and due.counts
            life.enter("answered", RETRYING if retry else WAITING)
            if state.ready:
                self.ready(life, now)
        else:
            life.enter("answered", Ended(state.name))

    # The end of a function

    def failed(self, life: Life) -> None:
        """Record that a function failed for good, without another attempt."""
        self.engine.function_withdrawn(life.key)
        life.enter("failed", Ended("failed", life.lost))

    def dropped(self, life: Life) -> None:
        """Record that nobody wants a function any more; what has ended stays what it is."""
        state = life.state
        if isinstance(state, (Waiting, Held, Asking)):
            self.engine.function_withdrawn(life.key)
            life.enter("dropped", Ended("cancelled", life.lost))

    def pardoned(self, life: Life) -> None:
        """Try a function that failed for good once more, with all its attempts."""
        life.forgiven = len(life.entries)
        life.doom = None
        life.cost = life.row.cost
        if life.lost is None:
            life.enter("pardoned", WAITING)
        else:
            life.enter("pardoned while asking", Asking(life.lost))
