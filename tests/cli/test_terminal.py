"""What a terminal shows while a run goes on."""

from __future__ import annotations

import os
import pty
import re


def shown(start, *arguments, **options):
    """Run a command on a terminal; return what it wrote there, and its exit code."""
    ours, its = pty.openpty()
    process = start(*arguments, stderr=its, **options)
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


def test_a_bar(start):
    """With what is done, running, and held for which resource; it is removed at the end."""
    command = ("run", "pipeline.py:sleepers", "--worker", "cpu=1,memory=100")
    text, code = shown(start, *command, "--", "n=3", "seconds=1", "tag=shown")
    assert code == 0
    bars = re.findall(r"\r\x1b\[\?25l(shown  \[[^\r\n\x1b]*)", text)
    shape = r"shown  \[-{25}\]  0/3 done, 1 running, 2 held \(cpu: 1 needs 1, 0 free\) *"
    assert any(re.fullmatch(shape, bar) for bar in bars), text
    assert any(
        re.match(r"shown  \[#{16}-{9}\]  2/3 done, (.* left, )?1 running", bar) for bar in bars
    ), text
    assert max(map(len, bars)) < 100
    end = r"\r\x1b\[K\x1b\[\?25hshown: 3 of 3 functions done in [\d.]+ s on 1 worker\r\n$"
    assert re.search(end, text)


def test_a_narrow_terminal(start):
    """The bar never takes a second line, which could not be overwritten."""
    command = ("run", "pipeline.py:sleepers", "--worker", "cpu=1,memory=100")
    arguments = ("--", "n=2", "seconds=1", "tag=a-name-that-is-long")
    text, code = shown(start, *command, *arguments, env={"COLUMNS": "40"})
    assert code == 0
    bars = re.findall(r"\r\x1b\[\?25l([^\r\n\x1b]*)", text)
    assert bars and max(map(len, bars)) < 40


def test_the_time_left(start):
    """By the durations that the scheduler has learned from the functions that ended."""
    command = ("run", "pipeline.py:sleepers", "--worker", "cpu=1,memory=100")
    text, code = shown(start, *command, "--", "n=4", "seconds=1", "tag=timed")
    assert code == 0
    left = [float(n) for n in re.findall(r"1/4 done, ([\d.]+) s left", text)]
    assert left and all(1.0 <= seconds <= 4.0 for seconds in left), text


def test_a_failure_stays_on_the_screen(start):
    """The bar is removed before the error is printed."""
    text, code = shown(start, "run", "pipeline.py:failing", "--worker", "cpu=1,memory=100")
    assert code == 1
    assert text.splitlines()[-1].startswith("Error: function 'bad' failed after 2 attempts")
