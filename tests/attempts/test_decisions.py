"""What is decided about attempts, case by case."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from handoff_dask.attempts.life import Life
from handoff_dask.attempts.losses import (
    End,
    KnownStart,
    Lost,
    by_placement,
    charge,
    ending_of_process,
)
from handoff_dask.attempts.retries import may_retry, terms
from handoff_dask.attempts.states import (
    DONE,
    HELD,
    RETRYING,
    STATES,
    TRANSITIONS,
    WAITING,
    Failure,
    IllegalTransitionError,
    Placement,
    Running,
)
from handoff_dask.model.retry import RetryPolicy
from tests.attempts.cluster import Cluster

OWN = {"cpu": 1.0}


def life(policy=None, **fields):
    new = Life(
        "f",
        SimpleNamespace(
            label="'f'", cost=OWN, policy=policy or RetryPolicy(2), learns_memory=False
        ),
    )
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def after_failure(policy=None):
    """Return a function that waits for its first retry."""
    new = life(policy)
    new.record("tcp://a", 1.0, 2.0, "error", "no", True, "ValueError")
    new.state = RETRYING
    return new


# The table


def test_an_event_that_the_state_does_not_allow():
    """An event that a state does not allow is an error that names both, and changes nothing."""
    new = life()
    with pytest.raises(IllegalTransitionError, match=r"'started'.*'waiting'"):
        new.enter("started", Running(Placement("tcp://a", 0.0)))
    with pytest.raises(IllegalTransitionError, match=r"'ready'.*'waiting'.*'held', not 'done'"):
        new.enter("ready", DONE)
    assert new.state is WAITING


def test_every_state_leads_somewhere_and_can_be_reached():
    """From each state, each end can be reached, and each state can be reached from the first."""
    ahead, reached = ["waiting"], set()
    while ahead:
        state = ahead.pop()
        if state not in reached:
            reached.add(state)
            ahead += [after for (before, _), after in TRANSITIONS.items() if before == state]
    assert reached == {state for state, _ in TRANSITIONS} == set(TRANSITIONS.values())
    assert set(STATES) <= reached


# (a) Whether a retry may use a worker


def test_the_first_attempt_may_use_any_worker():
    """A function that was never tried has no terms."""
    assert life().untried
    assert terms(life(), 10.0, 0.5) == (None, None, (), False, ())


@pytest.mark.parametrize(
    ("avoid_last_worker", "avoid", "insist"),
    [(True, ("tcp://a",), False), ("always", ("tcp://a",), True), (False, (), False)],
)
def test_a_retry_avoids_the_last_worker(avoid_last_worker, avoid, insist):
    """A retry prefers another worker, insists on one, or takes any, as its policy says."""
    retrying = after_failure(RetryPolicy(2, avoid_last_worker=avoid_last_worker))
    assert terms(retrying, 10.0, 0.5) == (None, None, avoid, insist, ())


def test_a_worker_whose_thread_goes_on_is_excluded():
    """Where a given-up attempt still has a thread, no policy allows the next one."""
    retrying = after_failure(RetryPolicy(2, avoid_last_worker=False))
    retrying.late = ("tcp://a", "tcp://b")
    assert terms(retrying, 10.0, 0.5).exclude == ("tcp://a", "tcp://b")


def test_the_delay_is_the_retry_s_own():
    """A delay holds for a retry, not for a start that lost its inputs since."""
    retrying = after_failure(RetryPolicy(2, delay=3.0, jitter=0))
    assert terms(retrying, 10.0, 0.5).not_before == 13.0
    retrying.enter("ready", HELD)
    retrying.enter("inputs lost", WAITING)
    assert terms(retrying, 20.0, 0.5).not_before is None


def test_the_cost_of_the_next_attempt():
    """An escalated cost is passed on; the function's own is left to the engine."""
    retrying = after_failure()
    assert terms(retrying, 0.0, 0.5).cost is None
    retrying.cost = {"cpu": 2.0}
    assert terms(retrying, 0.0, 0.5).cost == {"cpu": 2.0}


def test_attempts_that_count():
    """max_retries=2 allows three attempts that count; orderly ends and pardons are not counted."""
    new = life(RetryPolicy(2))
    for _ in range(2):
        assert may_retry(new)
        new.record("tcp://a", 1.0, 2.0, "error", counts=True)
    new.record("tcp://a", 1.0, 2.0, "worker-lost")
    assert new.failures == 2
    assert not may_retry(new)
    new.forgiven = len(new.entries)
    assert may_retry(new)
    assert [entry.number for entry in new.entries] == [1, 2, 3]


# (c) What a lost attempt is charged


def lost(**fields):
    facts = {"worker_gone": True, "died": True, **fields}
    return Lost("tcp://a", placed=1.0, number=7, lost=5.0, **facts)


def test_an_attempt_that_had_not_started_costs_nothing():
    """A worker dies or closes before a function starts: the ledger does not hear of it."""
    assert charge(lost(), End({})) is None
    assert charge(lost(died=False), End({8: (KnownStart(-1, 2.0),)})) is None


def test_a_death_uses_up_an_attempt_of_what_had_started():
    """What a dead worker had started is charged, with the time of its start and the reason."""
    due = charge(lost(), End({7: (KnownStart(-1, 2.0),)}, reason="killed by signal 9 (SIGKILL)"))
    assert due == (2.0, 5.0, "worker-lost", "killed by signal 9 (SIGKILL)", True)


def test_starts_by_placement():
    """Starts are arranged by placement, in order; a function that travels alone has one."""
    starts = [(7, -1, 1.0, 1), (8, 0, 2.0, 1), (9, -1, 3.0, 1), (8, 1, 4.0, 2)]
    assert by_placement(starts) == {
        7: (KnownStart(-1, 1.0),),
        8: (KnownStart(0, 2.0), KnownStart(1, 4.0, 2)),
        9: (KnownStart(-1, 3.0),),
    }


def test_an_orderly_end_is_recorded_but_uses_up_nothing():
    """A worker that closes in order costs no attempt; nor does Dask, when it takes a task back."""
    due = charge(lost(died=False), End({7: (KnownStart(-1, 2.0),)}))
    assert due is not None
    assert (due.outcome, due.counts) == ("worker-lost", False)
    assert "does not count" in due.message
    due = charge(lost(worker_gone=False, died=False), End({7: (KnownStart(-1, 2.0),)}))
    assert due is not None
    assert (due.outcome, due.message, due.counts) == ("cancelled", None, False)


def test_without_an_answer_everything_placed_counts_as_started():
    """If nobody knows what a dead worker had started, the function is charged, and told so."""
    due = charge(lost(), End(None))
    assert due is not None
    assert (due.started, due.counts) == (1.0, True)
    assert "not known whether it had started" in due.message


@pytest.mark.parametrize(
    ("code", "memory", "text"),
    [
        (3, False, "exited with status 3"),
        (-9, False, "killed by signal 9 (SIGKILL)"),
        (-99, False, "killed by signal 99"),
        (-9, True, "out of memory: its nanny ended it at its memory limit"),
    ],
)
def test_how_a_process_ended(code, memory, text):
    """A process's end is described by its signal or status, or by the limit that it exceeded."""
    assert ending_of_process(code, memory) == text


def test_a_last_failure_whose_exception_is_lost_with_the_worker():
    """A function that has failed for good is not tried again because its worker dies as well."""
    cluster = Cluster([RetryPolicy(2)], [None])
    cluster.work()
    (sent,) = cluster.sent
    cluster.start(sent)
    failure = Failure("error", 0.0, 0.0, "ValueError", "no", retry=False)
    assert not cluster.lives.failure_reported(sent.life, failure)
    cluster.take_back(sent, gone=True, died=True)
    cluster.ready(sent.life)
    ((doomed, error),) = cluster.lives.doomed
    assert doomed is sent.life
    assert str(error).startswith("ValueError: no")
    assert [entry.outcome for entry in doomed.entries] == ["error"]
