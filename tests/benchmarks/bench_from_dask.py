"""What plain Dask code costs through the gate, against dask.compute() of the same collections.

    python tests/benchmarks/bench_from_dask.py [--tasks 50000] [--pairs 5]

Both are timed from the call to the result, in turns, on one cluster of two worker processes of one
thread. Printed are the seconds that DAG.from_dask() takes, the medians, and their ratio.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
from pathlib import Path
from statistics import median

import dask
import dask.array
from distributed import Client, LocalCluster

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from handoff_dask import DAG, compute
from tests.benchmarks.tables import Table


@dask.delayed(pure=False)
def add_one(x):
    """Do next to nothing."""
    return x + 1


@dask.delayed(pure=False)
def add(values):
    """Do next to nothing with several results."""
    return sum(values)


def tree(tasks, width=10):
    """Return a delayed sum of about this many tasks."""
    level = [add_one(i) for i in range(tasks * (width - 1) // width)]
    while len(level) > 1:
        level = [add(level[i : i + width]) for i in range(0, len(level), width)]
    return level[0]


def mean(tasks, size=100):
    """Return the mean of an array and its transpose, of about this many tasks."""
    side = max(1, int((tasks * 16 / 37) ** 0.5))
    x = dask.array.random.default_rng(1).random((side * size, side * size), chunks=size)
    return (x + x.T).mean()


def seconds(call):
    """Return how long a call takes, and its result."""
    gc.collect()
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


def measure(tasks=50_000, pairs=5):
    """Return the table: seconds, medians of the pairs, and their ratio."""
    body = []
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster),
    ):
        for name, make in (("delayed, a tree of sums", tree), ("array, x + x.T, mean", mean)):
            # The first pair warms both up.
            warm = make(1000)
            assert compute(warm) == dask.compute(warm)
            collection = make(tasks)
            building, dag = seconds(lambda c=collection: DAG.from_dask(c))
            times = []
            for _ in range(pairs):
                plain, expected = seconds(lambda c=collection: dask.compute(c))
                ours, result = seconds(lambda c=collection: compute(c))
                assert result == expected
                times.append((plain, ours))
            plain, ours = map(median, zip(*times, strict=True))
            body.append(
                [
                    name,
                    f"{len(dag)}",
                    f"{building:.2f}",
                    f"{plain:.2f}",
                    f"{ours:.2f}",
                    f"{ours / plain:.2f}",
                ]
            )
    return Table(
        ["collection", "functions", "from_dask (s)", "dask.compute (s)", "compute (s)", "ratio"],
        body,
        title="Plain Dask code",
        note="Seconds from the call to the result, on two single-threaded worker processes.",
    )


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=50_000)
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    print(measure(args.tasks, args.pairs).text())


if __name__ == "__main__":
    main()
