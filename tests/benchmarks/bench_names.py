"""What it takes to name the results of a DAG, and to hash large arguments.

    python tests/benchmarks/bench_names.py [--functions 10000] [--megabytes 1000]

Prints the best of five.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from handoff_dask import DAG
from handoff_dask.model.expansion import expand
from handoff_dask.store.naming import Namer
from tests.benchmarks.tables import Table


def clean(path: str, level: int = 1) -> str:
    """Stand for a function of the user's, which uses others."""
    return helper(path) * level


def helper(path: str) -> str:
    """Stand for what a function of the user's uses."""
    return path.upper()


def closure(number: int) -> Callable[[str], str]:
    """Return a function of its own."""
    return lambda path: clean(path, number)


def mapped(number: int) -> DAG:
    """Return functions of one code with plain arguments."""
    dag = DAG()
    dag.map(clean, [f"{i}.csv" for i in range(number)], level=2)
    return dag


def two_stages(number: int) -> DAG:
    """Return functions half of which get the results of the others."""
    dag = DAG()
    refs = dag.map(clean, [f"{i}.csv" for i in range(number // 2)])
    dag.map(clean, refs)
    return dag


def closures(number: int) -> DAG:
    """Return functions each of which closes over a number."""
    dag = DAG()
    for i in range(number):
        dag.add(closure(i), "a.csv")
    return dag


def shared(number: int) -> DAG:
    """Return functions that have one large argument in common."""
    dag = DAG()
    dag.map(clean, range(number), level={"levels": np.zeros(10**6), "names": ["a"] * 10**5})
    return dag


def best(call: Callable[[], object]) -> float:
    """Return the least time (s) of five calls."""
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        made = call()
        seconds.append(time.perf_counter() - begun)
        del made
    return min(seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--functions", type=int, default=10_000)
    parser.add_argument("--megabytes", type=int, default=1000)
    options = parser.parse_args()
    body = []
    for make in (mapped, two_stages, closures, shared):
        nodes = expand(make(options.functions).functions)
        seconds = best(lambda nodes=nodes: Namer().names(nodes))  # type: ignore[misc]
        body.append([make.__name__, f"{seconds / options.functions * 1e6:.1f}"])
    print(Table(("DAG", "us for each function"), body).text())
    array = np.ones(options.megabytes * 10**6, "u1")
    dag = DAG()
    dag.add(len, array)
    nodes = expand(dag.functions)
    seconds = best(lambda: Namer().names(nodes))
    print(f"an array of {options.megabytes} MB: {array.nbytes / seconds / 1e9:.2f} GB/s")


if __name__ == "__main__":
    main()
