"""What it is worth that an isolated function's thread pools are as wide as its ``cpu``.

    python tests/benchmarks/bench_threads.py [--rounds 3]

A worker process with a thread for each core solves systems of linear equations with numpy: first in
functions that claim one core each, then in functions that claim all cores. In a worker's threads,
both have thread pools of the same width: 1, which Dask's nannies set, or the number of cores, which
is BLAS's own default. Printed is how long each kind takes, in the middle of the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from distributed import Client, LocalCluster

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from handoff_dask import DAG, execute
from tests.benchmarks.tables import Table

CORES = os.cpu_count() or 1
FUNCTIONS = 4 * CORES
SIZE, SYSTEMS = 1000, 4
WIDTHS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def solve(seed: int) -> float:
    """Solve some systems of linear equations."""
    matrix = np.random.default_rng(seed).random((SIZE, SIZE))
    return sum(float(np.linalg.solve(matrix, matrix)[0, 0]) for _ in range(SYSTEMS))


def makespan(cpu: int, *, isolate: bool) -> float:
    """Return how long functions take that claim so many cores each (s)."""
    dag = DAG()
    dag.map(solve, range(FUNCTIONS), cost={"cpu": cpu})
    begun = time.perf_counter()
    execute(dag, isolate=isolate)
    return time.perf_counter() - begun


def measure(width: int, *, isolate: bool, rounds: int) -> tuple[float, float]:
    """Return the makespan of functions that claim one core each, and of those that claim all."""
    os.environ.update(dict.fromkeys(WIDTHS, str(width)))  # which nannies heed
    with (
        LocalCluster(n_workers=1, threads_per_worker=CORES, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        one, every = (
            # The first time does not count: processes start and import numpy.
            statistics.median([makespan(cpu, isolate=isolate) for _ in range(rounds + 1)][1:])
            for cpu in (1, CORES)
        )
    return one, every


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    rows = []
    for name, width, isolate in (
        ("threads, pools of width 1", 1, False),
        (f"threads, pools of width {CORES}", CORES, False),
        ("isolated", 1, True),
    ):
        kinds = measure(width, isolate=isolate, rounds=rounds)
        rows.append([name, *(f"{seconds:.2f} s" for seconds in (*kinds, sum(kinds)))])
    print(Table(["", "cpu 1 each", f"cpu {CORES} each", "both"], rows).text())


if __name__ == "__main__":
    main()
