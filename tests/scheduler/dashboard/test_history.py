"""What the dashboard remembers of the plugin's events."""

from __future__ import annotations

import gc
from collections import Counter
from types import SimpleNamespace

import pytest

from handoff_dask.model.attempt import UNKNOWN, Attempt, Usage
from handoff_dask.scheduler.dashboard.history import ATTEMPTS, History
from handoff_dask.wire.run_events import AttemptEnded, FunctionPlaced, RunClosed, RunOpened


class Run(SimpleNamespace):
    """As much of a run's record as the dashboard reads."""


def fake_run(labels, transforms=()):
    """Return a run of functions with these labels."""
    rows = [
        SimpleNamespace(label=label, source=0 if label in transforms else None) for label in labels
    ]
    return Run(
        spec=SimpleNamespace(run_id="run", dag_id="dag", events=False),
        row=rows.__getitem__,
        counted=lambda: {"done": len(labels)},
        retries=0,
        opened=1.0,
        portions=[b""] if labels else [],
    )


@pytest.fixture
def runs():
    return {"run": fake_run(["'f'", "g", "f -> g"], transforms=["f -> g"])}


@pytest.fixture
def history(runs):
    history = History(runs)
    history(RunOpened("run", "dag", 1.0))
    return history


def ended(function, number, outcome, stopped=2.0, usage=UNKNOWN):
    attempt = Attempt(number, "tcp://a", "a", "host", 1.0, stopped, {}, outcome, usage=usage)
    return AttemptEnded("run", stopped, function, attempt)


def test_attempts(history):
    """Attempts are counted by outcome, retries apart; those of transforms are not."""
    history(FunctionPlaced("run", 1.0, 0, 1, "tcp://a", ahead=False))
    for event in (ended(0, 1, "error"), ended(0, 2, "ok"), ended(2, 1, "ok"), ended(1, 1, "ok")):
        history(event)
    assert history.outcomes == {"error": 1, "ok": 2}
    assert history.retries == 1
    assert [a.label for a in history.attempts.values()] == ["f", "f", "g"]


@pytest.mark.parametrize("between", [0, 2 * ATTEMPTS])
def test_a_late_result_is_counted_once(between):
    """An attempt whose result came late is one attempt, however many ended meanwhile.

    It stays counted under its first outcome, since counters never go down, and is shown as it
    ended in the end.
    """
    run = fake_run([f"f{i}" for i in range(1 + between)])
    runs = {"run": run}
    history = History(runs)
    history(RunOpened("run", "dag", 1.0))
    history(ended(0, 2, "timeout"))
    for i in range(between):
        history(ended(1 + i, 1, "ok"))
    before = Counter(history.outcomes)
    history(ended(0, 2, "ok", stopped=9.0))
    assert history.outcomes == before
    assert history.ended == 1 + between
    assert history.late_results == {"timeout": 1}
    assert history.retries == 1
    shown = history.attempts.get(("run", 0, 2))
    assert between or (shown.state, shown.stopped) == ("ok", 9.0)
    assert len(history.attempts) == min(ATTEMPTS, 1 + between)


def test_processor_time(history):
    """It is summed over attempts, once for each: what a late result adds to it, it adds."""
    history(ended(0, 1, "timeout", usage=Usage(cpu_time=2.0)))
    history(ended(1, 1, "ok", usage=Usage(cpu_time=0.5)))
    history(ended(0, 1, "ok", stopped=9.0, usage=Usage(cpu_time=3.0)))
    assert history.cpu_seconds == 3.5
    history(ended(1, 2, "worker-lost"))
    assert history.cpu_seconds == 3.5
    assert history.attempts["run", 0, 1].usage == Usage(cpu_time=3.0)


def test_runs(history, runs):
    """A run that closed is remembered as it was, unless its functions never arrived."""
    history(RunClosed("run", 5.0))
    (view,) = history.closed_runs
    assert (view.dag_id, view.functions, view.closed) == ("dag", {"done": 3}, 5.0)
    runs["none"] = fake_run([])
    history(RunOpened("none", "dag", 6.0))
    history(RunClosed("none", 7.0))
    assert len(history.closed_runs) == 1


def test_attempts_that_end_after_their_run(history, runs):
    """An attempt that ends after its run has closed counts while somebody holds the run."""
    history(RunClosed("run", 5.0))
    run = runs.pop("run")
    history(ended(0, 1, "cancelled"))
    assert history.outcomes == {"cancelled": 1}
    del run
    gc.collect()
    history(ended(0, 2, "cancelled"))
    assert history.outcomes == {"cancelled": 1}
    assert not history._known
    assert not history._unsuccessful
