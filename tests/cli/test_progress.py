"""How far a run is, and how long it will still take."""

from __future__ import annotations

import time

import pytest

from handoff_dask.cli.progress import Forecast, duration, reasons, summary, table
from handoff_dask.client.explaining import RunExplanation
from handoff_dask.client.planning import Plan, Slot
from handoff_dask.placement.events import Waiting


def forecast(*stops):
    made = Forecast(
        lambda: Plan(max(stops), {"w": [Slot(i, 0, stop) for i, stop in enumerate(stops)]}, {})
    )
    deadline = time.monotonic() + 10
    while made.left(0) is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return made


def test_the_time_left():
    """What the plan has left at as many ends, less the time since, up to the next end due."""
    made = forecast(100.0, 300.0, 700.0)
    assert 690 < made.left(0) <= 700.001
    assert 590 < made.left(1) <= 600.001
    assert 390 < made.left(2) <= 400.001
    assert made.left(3) == pytest.approx(0, abs=1e-6)


def test_a_run_that_is_late():
    """It stays at the end that is due; it never goes below nothing."""
    made = forecast(0.01, 500.0)
    made.left(0)
    time.sleep(0.05)
    assert made.left(0) == pytest.approx(499.99)


def test_no_plan_no_forecast():
    """Neither without one, nor where it cannot be made."""
    assert Forecast(None).left(1) is None

    def fail():
        raise ValueError("durations has no entry for function 'a'")

    made = Forecast(fail)
    time.sleep(0.05)
    assert made.left(1) is None


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
        "1/9 done, 2 running, 1 held (delay), 1 failed, 3 cancelled"
    )
    assert summary(counts, 9, why, 3.21).endswith("3 cancelled, 3.2 s left")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.99, "10.0 s"), (59.7, "1 min 0 s"), (3600, "1 h 0 m")]
)
def test_durations_for_people(seconds, text):
    """Seconds, minutes, hours."""
    assert duration(seconds).startswith(text)


def test_a_table(capsys):
    """Columns in line."""
    table([["a", "number"], ["long name", "7"]])
    assert capsys.readouterr().out == "a          number\nlong name       7\n"
