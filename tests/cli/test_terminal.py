"""What a terminal shows while a run goes on."""

from __future__ import annotations

import os
import pty
import re

from tests.support import write_trace


def shown(start, *arguments):
    """Run a command on a terminal; return what it wrote there, and its exit code."""
    ours, its = pty.openpty()
    process = start(*arguments, stderr=its)
    os.close(its)
    text = b""
    while True:
        try:
            chunk = os.read(ours, 4096)
        except OSError:  # as Linux says that the other end was closed
            break
        if not chunk:
            break
        text += chunk
    os.close(ours)
    process.wait(60)
    return text.decode(), process.returncode


def test_one_line_that_changes(start):
    """Done, running, held and for what, failed; taken away at the end."""
    command = ("run", "pipeline.py:sleepers", "--worker", "cpu=1,memory=100")
    text, code = shown(start, *command, "--", "n=3", "seconds=1", "tag=shown")
    assert code == 0
    updates = re.findall(r"\r\x1b\[Kshown: ([^\r\n]*)", text)
    assert any(
        re.fullmatch(
            r"0/3 done, 1 running, 2 held \(cpu: 1 needs 1, 0 free\), 0 failed",
            update,
        )
        for update in updates
    ), text
    assert max(map(len, updates)) < 100
    assert re.search(r"\r\x1b\[Kshown: 3 of 3 functions done in [\d.]+ s on 1 worker\r\n$", text)


def test_the_time_left_by_the_plan(start, folder):
    """Where durations are known, as those of a workflow file are."""
    trace = write_trace(folder)
    text, code = shown(start, "run", trace, "--worker", "cpu=2,memory=100")
    assert code == 0
    left = [float(n) for n in re.findall(r"([\d.]+) s left", text)]
    assert left and left == sorted(left, reverse=True)
    assert left[0] <= 3.0


def test_a_failure_stays_on_the_screen(start):
    """The line is taken away before the error is told."""
    text, code = shown(start, "run", "pipeline.py:failing", "--worker", "cpu=1,memory=100")
    assert code == 1
    assert text.splitlines()[-1].startswith("Error: function 'bad' failed after 2 attempts")
