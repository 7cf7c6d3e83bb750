"""How far a run is, and how long it will still take."""

from __future__ import annotations

from handoff_dask.attempts.states import STATES
from handoff_dask.cli.command import print_table
from handoff_dask.cli.progress_display import Display, reasons, summary, watch
from handoff_dask.client.explaining import RunExplanation
from handoff_dask.placement.events import Waiting


class Recorder(Display):
    """Keeps what it is to show."""

    interval = 0.0

    def __init__(self):
        self.updates = []

    def update(self, counts, why, left):
        self.updates.append((counts, why, left))


class FakeRun:
    """A run that ends after some looks at it."""

    def __init__(self, *progress, lost=False):
        self.left = list(progress)
        self.lost = lost

    def wait(self, timeout):
        if self.left:
            raise TimeoutError

    def progress(self):
        if self.lost:
            self.left.clear()
            raise OSError("gone")
        return self.left[0][0]

    def explain(self, held):
        self.asked = held
        return RunExplanation({})

    def remaining(self):
        return self.left.pop(0)[1]


def test_what_is_shown_while_a_run_goes_on():
    """Counts and the scheduler's estimate of the time left; reasons only where functions wait."""
    held, running = {"held": 1, "done": 0}, {"held": 0, "done": 1}
    run, display = FakeRun((held, None), (running, 7.5)), Recorder()
    watch(run, display)
    assert display.updates == [(held, {}, None), (running, {}, 7.5)]
    assert run.asked == 0


def test_a_scheduler_that_went_away():
    """It is for the run to tell, not for a look at it."""
    display = Recorder()
    watch(FakeRun(({}, None), lost=True), display)
    assert display.updates == []


def test_why_functions_are_held():
    """Each resource with the first that wants it; threads only where nothing else is short."""
    short = {"threads": (1.0, 0.0), "gpu": (2.0, 1.0)}
    why = RunExplanation(
        {
            "a": Waiting("resources", resources=short),
            "b": Waiting("resources", resources={"gpu": (1.0, 0.0), "cpu": (8.0, 2.5)}),
            "c": Waiting("delay"),
            "d": Waiting("resources", resources={"threads": (1.0, 0.0)}),
        }
    )
    assert reasons(why) == (
        "gpu: 'a' needs 2, 1 free; cpu: 'b' needs 8, 2.5 free; delay; threads: 'd' needs 1, 0 free"
    )


def test_a_summary():
    """Counts, reasons and, where it is known, the time left."""
    counts = {"done": 1, "running": 2, "held": 1, "failed": 1, "cancelled": 3}
    why = RunExplanation({"a": Waiting("delay")})
    assert summary(counts, 9, why, None) == (
        "1/9 done, 3 cancelled, 1 failed, 2 running, 1 held (delay)"
    )
    assert summary(counts, 9, why, 3.21).startswith("1/9 done, 3.21 s left, 3 canc")


def test_every_state_is_shown():
    """A state that is added appears without further ado."""
    text = summary(dict.fromkeys(STATES, 4), 24, RunExplanation({}), None)
    assert all(f"4 {state}" in text for state in STATES if state != "done")


def test_a_table(capsys):
    """Columns in line."""
    print_table([["a", "number"], ["long name", "7"]])
    assert capsys.readouterr().out == "a          number\nlong name       7\n"
