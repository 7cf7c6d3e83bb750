"""What functions use is measured, and those that use too much memory are killed."""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import time

import pytest

from handoff_dask.worker.isolation.memory import Meter, Watch
from handoff_dask.worker.isolation.pool import GRACE
from tests.worker.isolation.calling import alive, run, value


def test_what_a_call_uses(pool):
    """CPU time, the most memory and the size of the result are measured."""

    def work():
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        return bytes(100_000)

    usage = run(pool, work).usage
    assert 0.2 <= usage.cpu_time < 0.5
    assert 0 < usage.peak_memory < 50
    assert 100_000 <= usage.result_bytes < 101_000


def burn(seconds):
    """Use processor time."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def _hoard(burn=burn):
    burn(0.3)
    blocks = []
    while True:
        blocks.append(bytearray(b"x" * 10_000_000))


def _die(burn=burn):
    burn(0.3)
    os._exit(1)


def _die_with_a_child(burn=burn):
    if not os.fork():
        burn(0.3)
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(100)
    time.sleep(100)


@pytest.mark.parametrize("call", [_hoard, _die, _die_with_a_child])
def test_the_cpu_time_of_calls_that_are_killed(pool, call):
    """It is known, with that of descendants and without that of earlier calls in the process."""
    value(run(pool, burn, 5))
    ended = run(pool, call, limit=300)
    assert ended.outcome in ("out-of-memory", "process-died")
    assert 0.3 <= ended.usage.cpu_time < 5


def _forked(burn, last):
    """Burn in a forked process, and let it do something last; return when it has burnt."""
    read, write = os.pipe()
    if not os.fork():
        burn(0.3)
        os.write(write, b"x")
        last()
        os._exit(0)
    os.read(read, 1)


def test_the_cpu_time_of_processes_that_are_left(pool):
    """It counts, whether they have ended without being waited for or are killed."""

    def ends(burn=burn, forked=_forked):
        forked(burn, bool)
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)

    def stays(burn=burn, forked=_forked):
        forked(burn, signal.pause)

    for call in (ends, ends, stays):
        assert 0.3 <= run(pool, call).usage.cpu_time < 0.5


def test_a_short_spike(pool):
    """Memory that a call had for a moment is seen within 5 %."""

    def spike():
        big = bytearray(400_000_000)
        big[::4096] = b"x" * len(big[::4096])

    before = run(pool, lambda: None).usage.peak_memory
    assert run(pool, spike).usage.peak_memory - before == pytest.approx(400, rel=0.05)


def test_the_next_call_starts_from_nothing(pool):
    """What one call used is not counted for the next one in the child."""

    def big():
        blocks = [bytes(1000) for _ in range(300_000)]
        return os.getpid(), len(bytearray(500_000_000)) + len(blocks)

    ended = run(pool, big)
    assert ended.usage.peak_memory > 300
    after = run(pool, os.getpid)
    assert value(after) == value(ended)[0]
    assert after.usage.peak_memory < 50


def test_what_a_function_keeps(pool):
    """A child that keeps much memory between calls is replaced."""

    def keep():
        import sys

        sys.kept = bytearray(b"x" * 400_000_000)
        return os.getpid()

    value(run(pool, os.getpid))
    child = value(run(pool, keep))
    assert value(run(pool, os.getpid)) != child


def test_a_limit(pool):
    """Who uses more than its claim and some grace is killed, and the error says how much it was."""

    def hoard():
        blocks = []
        while True:
            blocks.append(bytearray(10_000_000))
            time.sleep(0.01)

    ended = run(pool, hoard, limit=300)
    assert (ended.outcome, ended.value) == ("out-of-memory", None)
    assert 300 + GRACE < ended.usage.peak_memory < 420
    assert "MB of memory, more than its claim of 300 MB and 64 MB of grace" in ended.detail
    assert value(run(pool, lambda: "next", limit=300)) == "next"


def test_fast_allocation(pool):
    """Memory that is taken as fast as possible never reaches twice the limit."""

    def hoard():
        blocks = []
        while True:
            blocks.append(bytearray(b"x" * 20_000_000))

    ended = run(pool, hoard, limit=1000)
    assert ended.outcome == "out-of-memory"
    assert ended.usage.peak_memory < 2000


def test_processes_with_any_name(pool):
    """A process that is named like a field of what the kernel says of it is measured, too."""

    def call():
        with open("/proc/self/comm", "w") as file:
            file.write("RssAnon: x")
        time.sleep(0.3)  # it is looked at
        return bytes(300_000_000)

    assert 300 < run(pool, call, limit=1_000).usage.peak_memory < 350
    assert run(pool, call, limit=10).outcome == "out-of-memory"


def test_without_a_limit(pool):
    """Without a claim, nothing is killed."""
    ended = run(pool, lambda: len(bytearray(b"x" * 300_000_000)))
    assert value(ended) == 300_000_000


def test_processes_count_together(pool):
    """The processes that a function starts count, too, and are killed with it."""

    def hoard():
        import subprocess
        import sys

        code = "x = bytearray(b'x' * 200_000_000); import time; time.sleep(100)"
        programs = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
        print(*[program.pid for program in programs], flush=True)
        time.sleep(100)

    ended = run(pool, hoard, limit=400)
    assert ended.outcome == "out-of-memory"
    assert ended.usage.peak_memory > 464
    assert not any(alive(int(pid)) for pid in ended.output.split())


def test_shared_pages_count_once(pool):
    """Forked processes that share 500 MB use 500 MB, not 500 MB each."""

    def share():
        big = bytearray(b"x" * 500_000_000)
        pids = []
        for _ in range(4):
            pid = os.fork()
            if not pid:
                time.sleep(1.5)
                os._exit(big[0] - ord("x"))
            pids.append(pid)
        return [os.waitpid(pid, 0)[1] for pid in pids]

    # bytes and bytearray exist at the same time for a moment.
    ended = run(pool, share, limit=1100)
    assert value(ended) == [0, 0, 0, 0]
    assert ended.usage.peak_memory < 1200


def test_inputs_do_not_count(pool):
    """Inputs are the worker's memory: who only reads them does not use any."""
    array = bytearray(500_000_000)

    def read(given):
        return sum(memoryview(given)[::4096])

    ended = run(pool, read, pickle.PickleBuffer(array), limit=100)
    assert value(ended) == 0
    assert ended.usage.peak_memory < 50


def test_files_do_not_count(tmp_path):
    """Files that were mapped when a process was looked at are not part of its peak."""
    (tmp_path / "large").write_bytes(bytes(400_000_000))
    watch = Watch(os.getpid(), 0, None, lambda: None)
    meter = Meter()
    meter.start(0)
    watch.look()
    before = watch.peak
    with open(tmp_path / "large", "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    assert sum(mapped[::4096]) == 0
    assert meter.stop().files > 400
    watch.look()
    mapped.close()
    watch.look()
    used = meter.stop()
    assert used.highest > before + 300
    watch.note(used.now, used.highest, used.files)
    assert watch.peak < before + 100
