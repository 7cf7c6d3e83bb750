"""What a store adds to a run of small functions, and how long a run takes that has nothing to do.

    python tests/benchmarks/bench_stored_runs.py [--functions 10000] [--rounds 5]

Runs with and without a store come in pairs, on one cluster in this process and with a new folder
each. Figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import count
from pathlib import Path

import numpy
from distributed import Client

from handoff_dask import DAG, execute

#: Makes the arguments of each round new.
ROUND = count()


def small(number: int, shared: numpy.ndarray | None = None) -> int:
    """Return something small."""
    return number + 1


def dag(functions: int, *shared: numpy.ndarray) -> DAG:
    """Return a DAG of independent functions."""
    made, first = DAG(f"small {next(ROUND)}"), functions * next(ROUND)
    for number in range(functions):
        made.add(small, first + number, *shared)
    return made


def seconds(made: DAG, store: Path | None) -> float:
    """Return how long a run takes."""
    start = time.perf_counter()
    result = execute(made, store=store or False)
    took = time.perf_counter() - start
    assert len(result.results) == len(made.functions)
    return took


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--functions", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    without, more, nothing, large = [], [], [], []
    array = numpy.random.default_rng(0).random(10_000_000 // 8)
    with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0"):
        execute(dag(100))
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                store = Path(folder)
                made = dag(options.functions)
                without.append(seconds(made, None))
                more.append(seconds(made, store) - without[-1])
                nothing.append(seconds(made, store))
                made = dag(options.functions, array)
                seconds(made, store)
                large.append(seconds(made, store))
    each = [more_ / options.functions * 1e3 for more_ in more]
    print(f"{options.functions} functions without a store: {statistics.median(without):.2f} s")
    print(f"with one: {statistics.median(each):.3f} ms more for each")
    print(f"all stored: {statistics.median(nothing):.2f} s")
    print(f"all stored, an array of 10 MB passed to each: {statistics.median(large):.2f} s")


if __name__ == "__main__":
    main()
