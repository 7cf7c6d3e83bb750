"""How far a run is, and how long it will still take."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from distributed.utils_test import gen_cluster

from handoff_dask import ExecutionResult, Function, FunctionFailedError, execute
from handoff_dask.attempts.states import STATES
from handoff_dask.cli.command import print_table
from handoff_dask.client import progress_display
from handoff_dask.client.explaining import RunExplanation
from handoff_dask.client.progress_display import Bar, Display, Lines, reasons, summary, watch_async
from handoff_dask.errors import ClusterLostError
from handoff_dask.placement.events import Waiting
from tests.support import dag_of


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
        self.asked = []

    def ending(self):
        self.outcome = asyncio.get_running_loop().create_future()
        return self.outcome

    async def progress(self):
        counts = self.left.pop(0)
        if not self.left:
            self.outcome.set_result(None)
        if self.lost:
            raise ClusterLostError("a dag", "gone")
        return counts

    async def explain(self, held):
        self.asked.append(held)
        return RunExplanation({"f": Waiting("delay")})


def test_what_is_shown_while_a_run_goes_on():
    """Counts and the scheduler's estimate of the time left; reasons only where functions wait."""
    held, running = {"held": 1, "done": 0}, {"held": 0, "done": 1}
    run, display = FakeRun((held, None), (running, 7.5)), Recorder()
    asyncio.run(watch_async(run, display))
    why = {"f": Waiting("delay")}
    assert display.updates == [(held, why, None), (running, {}, 7.5)]
    assert run.asked == [20]


def test_a_scheduler_that_went_away():
    """The run reports it, not the display."""
    display = Recorder()
    asyncio.run(watch_async(FakeRun(({}, None), lost=True), display))
    assert display.updates == []


def test_a_terminal_that_went_away():
    """The run goes on unseen."""

    class Broken(Display):
        interval = 0.0

        def update(self, counts, why, left):
            raise BrokenPipeError

    run = FakeRun(({"held": 0}, None), ({"held": 0}, None))
    asyncio.run(watch_async(run, Broken()))
    assert not run.left


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
    assert summary(counts, why, None) == (
        "1/8 done, 3 cancelled, 1 failed, 2 running, 1 held (delay)"
    )
    assert summary(counts, why, 3.21).startswith("1/8 done, 3.21 s left, 3 canc")


def test_every_state_is_shown():
    """A state that is added appears without further ado."""
    text = summary(dict.fromkeys(STATES, 4), RunExplanation({}), None)
    assert all(f"4 {state}" in text for state in STATES if state != "done")


def test_a_table(capsys):
    """Columns in line."""
    print_table([["a", "number"], ["long name", "7"]])
    assert capsys.readouterr().out == "a          number\nlong name       7\n"


def fail():
    raise LookupError("no such thing")


@pytest.mark.parametrize("kind", [Lines, Bar])
def test_an_id_that_cannot_be_printed(capsys, kind):
    """It stays in its line, and a terminal obeys nothing that it holds."""
    display = kind()
    display.start(dag_of(Function(1, [], int), id="two\nlines \x1b[31m"))
    display.update(dict.fromkeys(STATES, 0), RunExplanation({}), None)
    display.end(ExecutionResult("id", {}), None)
    err = capsys.readouterr().err
    assert err.startswith(r"'two\nlines \x1b[31m': 1 function")
    assert "lines \x1b" not in err


def test_execute_with_progress(capsys):
    """Where no terminal is: a line at the start and one at the end, on standard error."""
    assert execute(dag_of(Function(1, [], int)), progress=True)[1] == 0
    printed = capsys.readouterr()
    first, last = printed.err.splitlines()
    assert first == "a dag: 1 function"
    assert re.fullmatch(r"a dag: 1 of 1 functions done in [\d.]+ m?s on 1 worker", last)
    assert printed.out == ""


@gen_cluster(client=True)
async def test_with_an_asynchronous_client(c, s, a, b, capsys, monkeypatch):
    """The same; and what was done before a failure."""
    monkeypatch.setattr(progress_display.Lines, "interval", 0.01)
    monkeypatch.setattr(progress_display, "_SHARE", 1)  # also on a slow machine
    dag = dag_of(
        Function(1, [], int),
        Function("wait", [1], lambda _: __import__("time").sleep(0.3)),
        Function(2, ["wait"], lambda _: fail(), max_retries=0),
    )
    with pytest.raises(FunctionFailedError):
        await execute(dag, progress=True)
    first, *lines, last = capsys.readouterr().err.splitlines()
    assert first == "a dag: 3 functions"
    assert any("1/3 done" in line for line in lines)
    assert last.startswith("a dag: 2 of 3 functions done in")


def test_in_a_notebook(monkeypatch):
    """The progress is drawn in the cell, to its end."""
    IPython = pytest.importorskip("IPython.display")
    drawn = []

    class Handle:
        def update(self, html):
            drawn.append(html.data)

    def display(html, display_id):
        drawn.append(html.data)
        return Handle()

    monkeypatch.setattr(IPython, "display", display)
    monkeypatch.setattr(progress_display, "is_kernel", lambda: True)
    monkeypatch.setattr(progress_display.Cell, "interval", 0.01)
    slow = Function("slow", [], lambda: __import__("time").sleep(0.3))
    execute(dag_of(slow, id="<b>"), progress=True)
    with pytest.raises(FunctionFailedError):
        execute(dag_of(Function("bad", [], fail, max_retries=0)), progress=True)
    assert len(drawn) > 4
    assert "&lt;b&gt;" in drawn[0]
    assert any("ended after" in html for html in drawn)
    assert "FunctionFailedError" in drawn[-1] and "no such thing" in drawn[-1]


SCRIPT = """
import signal
import sys
import time

from handoff_dask import DAG, Function, execute

def work(mode):
    if mode == "fail":
        time.sleep(0.5)
        raise LookupError("no such thing")
    time.sleep(600 if mode == "interrupt" else 1)

signal.signal(signal.SIGINT, signal.default_int_handler)  # else it may be ignored, as with nohup
dag = DAG("shown").add_function(Function("f", [], work, extra_args=sys.argv[1:], max_retries=0))
execute(dag, progress=True)
"""


@pytest.mark.parametrize("mode, end", [("well", "1 of 1"), ("fail", "0 of 1"), ("interrupt", "")])
def test_on_a_terminal(mode, end):
    """A bar, which is gone at the end: after a result, an error and Ctrl-C alike."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, mode],
        stderr=its,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    os.close(its)
    text, deadline = b"", time.monotonic() + 60
    while True:
        if not select.select([ours], [], [], max(0, deadline - time.monotonic()))[0]:
            process.kill()
            process.wait()
            pytest.fail(f"it did not end; on the terminal: {text!r}")
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # the other end was closed
            break
        text += chunk
        if mode == "interrupt" and b"1 running" in text:
            process.send_signal(signal.SIGINT)
            mode = "interrupted"
    os.close(ours)
    assert (process.wait(60) == 0) is (mode == "well")
    shown = text.decode()
    assert re.search(r"\r\x1b\[\?25lshown  \[-+\]  0/1 done, 1 running", shown)
    after = shown.rpartition("\r\x1b[K\x1b[?25h")[2]
    assert "\x1b[?25l" not in after
    if end:
        assert f"shown: {end} functions done in" in after
    else:
        assert "KeyboardInterrupt" in after
