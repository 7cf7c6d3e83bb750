"""What `dask handoff run` adds to a short run, and what its progress display adds to a long one.

    python tests/benchmarks/bench_cli.py [--pairs 15] [--functions 10000]

First, three functions in a row, against a script that does the same in plain Dask. Then many short
functions, with the display of a terminal and with --quiet. All on a scheduler that runs already,
with one worker process; timed from the start of a process to its end; pairs run one after the
other, and the ratios are those of the medians. The package must be installed, so that `dask` finds
the command.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pty
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from distributed import LocalCluster

FUNCTIONS = """
import operator

def source(x):
    return x
"""

PLAIN = (
    FUNCTIONS
    + """
import sys

from dask import delayed
from distributed import Client

value = delayed(source)(42)
value = delayed(operator.mul)(value, 2)
value = delayed("The final answer is: {}".format)(value)
with Client(sys.argv[1]) as client:
    assert client.compute(value).result() == "The final answer is: 84"
"""
)

HANDOFF = (
    FUNCTIONS
    + """
from handoff_dask import DAG, Function

dag = (
    DAG()
    .add_function(Function(id="source", args=[], code=source, extra_args=[42]))
    .add_function(Function(id="transform", args=["source"], code=operator.mul, extra_args=[2]))
    .add_function(Function(id="sink", args=["transform"], code="The final answer is: {}".format))
)


def many(n: int):
    dag = DAG()
    for i in range(n):
        dag.add_function(Function(id=i, args=[], code=source, extra_args=[i], cost={"cpu": 1}))
    return dag
"""
)


def seconds(command: list[str], terminal: bool = False) -> float:
    """Time a process, whose standard error may be a terminal."""
    ours, its = pty.openpty() if terminal else (None, subprocess.DEVNULL)
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=its)
    if ours is not None:
        os.close(its)
        with contextlib.suppress(OSError):  # as Linux says that the other end was closed
            while os.read(ours, 4096):
                pass
        os.close(ours)
    code = process.wait()
    took = time.perf_counter() - started
    if code:
        raise subprocess.CalledProcessError(code, command)
    return took


def compare(pairs: int, ours: Callable[[], float], theirs: Callable[[], float]) -> str:
    """Return the medians of paired times, and their ratio."""
    ours(), theirs()  # compiles what is imported, and sends the plugin
    a, b = zip(*((ours(), theirs()) for _ in range(pairs)), strict=True)
    return f"{median(a):.3f} s and {median(b):.3f} s, ratio {median(a) / median(b):.2f}"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--functions", type=int, default=10_000)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=True, dashboard_address=":0"
        ) as cluster,
    ):
        plain, handoff = Path(folder, "plain.py"), Path(folder, "handoff.py")
        plain.write_text(PLAIN)
        handoff.write_text(HANDOFF)
        address = cluster.scheduler_address
        script = [sys.executable, str(plain), address]
        run = [sys.executable, "-m", "dask", "handoff", "run", "--scheduler", address]
        three, many = f"{handoff}:dag", f"{handoff}:many"
        arguments = [many, "--", f"n={args.functions}"]
        print(f"medians of {args.pairs} pairs")
        short = compare(args.pairs, lambda: seconds([*run, three]), lambda: seconds(script))
        print(f"three functions, dask handoff run and plain Dask: {short}")
        long = compare(
            args.pairs,
            lambda: seconds([*run, *arguments], terminal=True),
            lambda: seconds([*run, "--quiet", *arguments]),
        )
        print(f"{args.functions} functions, on a terminal and with --quiet: {long}")


if __name__ == "__main__":
    main()
