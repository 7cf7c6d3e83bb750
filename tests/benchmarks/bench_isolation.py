"""What it costs to run functions in processes of their own, without a cluster.

    python tests/benchmarks/bench_isolation.py [--rounds 2000]

Measured are a call that does nothing; the start of a process, with and without the first; the
memory of an idle one, by its share of the pages; arrays that go in and out, next to the same in
this process; and how long a function that allocates 1 GB/s is over its limit until it has ended.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from handoff_dask.pickling import dumps
from handoff_dask.worker.isolation.calls import Ended, Request, World
from handoff_dask.worker.isolation.pool import GRACE, Pool
from handoff_dask.worker.isolation.process_tree import children_of
from tests.benchmarks.tables import Table

ARRAY = 100_000_000
_keys = count()


def call(pool: Pool, function: Callable[..., Any], *values: Any, width: int | None = None) -> Ended:
    """Run a function in a process."""
    pickled = dumps((("f", "a dag"), function, tuple(range(len(values))), (), {}))
    return pool.run(Request((), pickled, values), World(width=width), key=next(_keys))


def seconds(function: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def median(function: Callable[[], Any], rounds: int) -> float:
    """Return how long a call takes in the middle."""
    return statistics.median(seconds(function) for _ in range(rounds))


def share(pid: int) -> float:
    """Return the memory of a process (MB), of shared pages only its share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Pss:"))


def overheads(pool: Pool, rounds: int) -> list[list[str]]:
    """Measure calls that do nothing, and what processes cost."""
    first = seconds(lambda: call(pool, lambda: None))
    pickled = dumps((("f", "a dag"), lambda: None, (), (), {}))
    request = Request((), pickled, ())
    again = median(lambda: pool.run(request, World(), key=0), rounds)
    cold = median(lambda: call(pool, lambda: None, width=next(_keys) + 1), 20)
    for width in range(1, 5):
        call(pool, lambda: None, width=width)
    time.sleep(1)  # until surplus ones have ended
    (server,) = children_of(os.getpid())
    idle = [share(pid) for pid in children_of(server)]
    return [
        ["first call of all", f"{first * 1e3:.0f} ms"],
        ["call that does nothing, warm", f"{again * 1e6:.0f} us"],
        ["call that does nothing, new process", f"{cold * 1e3:.1f} ms"],
        [f"memory of an idle process ({len(idle)} of them)", f"{statistics.mean(idle):.1f} MB"],
        ["memory of the server", f"{share(server):.1f} MB"],
    ]


def arrays(pool: Pool) -> list[list[str]]:
    """Measure functions of an array that return one, here and in a process."""
    array = np.random.default_rng(0).random((3500, ARRAY // 8 // 3500))
    passed_on = call(pool, lambda given: given.copy(), array).value
    existing = array.copy()
    works: dict[str, Callable[[Any], Any]] = {
        "nothing": lambda given: given,
        "x + 1": lambda given: given + 1,
        "exp(x)": lambda given: np.exp(given),
        "sort(x)": lambda given: np.sort(given, axis=None),
        "x @ x.T": lambda given: given @ given.T,
    }
    copied = median(lambda: np.copyto(existing, array), 5)
    body = [["one copy, no page faults", f"{copied * 1e3:.0f}", *[""] * 4]]
    for name, work in works.items():
        here = median(lambda work=work: work(array), 5)
        there = median(lambda work=work: call(pool, work, array), 5)
        after = median(lambda work=work: call(pool, work, passed_on), 5)
        body.append(
            [name, *(f"{s * 1e3:.0f}" for s in (here, there, after))]
            + [f"{s / here:.2f}" if here > 1e-3 else "" for s in (there, after)]
        )
    return body


def overrun(pool: Pool) -> float:
    """Return how long a function was over its limit when its end was known (s)."""

    def hoard() -> None:
        blocks = []
        while True:
            begun = time.monotonic()
            blocks.append(bytearray(10_000_000))
            if len(blocks) == 35:  # with the interpreter, past 364 MB
                print(time.monotonic(), flush=True)
            time.sleep(max(0, 0.01 - (time.monotonic() - begun)))

    pickled = dumps((("f", "a dag"), hoard, (), (), {}))
    with redirect_stdout(io.StringIO()):
        ended = pool.run(Request((), pickled, ()), World(), limit=300.0, key=0)
    assert ended.outcome == "out-of-memory"
    return time.monotonic() - float(ended.output or time.monotonic())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2000)
    rounds = parser.parse_args().rounds
    pool = Pool(4)
    body = overheads(pool, rounds)
    overruns = [overrun(pool) for _ in range(10)]
    body.append(
        [
            f"over a limit of 300 MB and {GRACE:.0f}, median",
            f"{statistics.median(overruns) * 1e3:.0f} ms",
        ]
    )
    body.append(["the same, at most", f"{max(overruns) * 1e3:.0f} ms"])
    print(Table(("what", "takes"), body).text(), "\n")
    head = ("100 MB in and out", "here (ms)", "isolated", "passed on", "ratio", "ratio passed on")
    print(Table(head, arrays(pool)).text())
    pool.close()


if __name__ == "__main__":
    main()
