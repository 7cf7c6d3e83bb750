"""What it takes to build large DAGs, and to check and expand them.

    python tests/benchmarks/bench_building.py [--functions 100000]

Prints seconds of CPU time, the best of five.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from handoff_dask import DAG, Function
from handoff_dask.model.expansion import expand
from tests.benchmarks.tables import Table


def load(path: str, level: int = 1) -> str:
    """Stand for a function of the user's."""
    return path


def mapped(number: int) -> DAG:
    """Return functions made by one call of `map`."""
    dag = DAG()
    dag.map(load, [f"{i}.csv" for i in range(number)], level=2, cost={"cpu": 1})
    return dag


def two_stages(number: int) -> DAG:
    """Return functions made by two calls of `map`, the second of which takes the first's refs."""
    dag = DAG()
    refs = dag.map(load, [f"{i}.csv" for i in range(number // 2)], cost={"cpu": 1})
    dag.map(load, refs, cost={"cpu": 1})
    return dag


def nested(number: int) -> DAG:
    """Return functions whose dependencies are in a list and by keyword."""
    dag = DAG()
    ref = dag.add(load, "first")
    dag.map(load, [[ref, i] for i in range(number)], level=ref)
    return dag


def added(number: int) -> DAG:
    """Return functions made by as many calls of `add`, with default names."""
    dag = DAG()
    for i in range(number):
        dag.add(load, f"{i}.csv", level=2, cost={"cpu": 1})
    return dag


def recorded(number: int) -> DAG:
    """Return functions that were written as records."""
    return DAG(functions=[Function(i, code=load, extra_args=[i]) for i in range(number)])


def best(call: Callable[[], object]) -> float:
    """Return the least CPU time (s) of five calls."""
    seconds = []
    for _ in range(5):
        begun = time.process_time()
        made = call()
        seconds.append(time.process_time() - begun)
        del made
    return min(seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--functions", type=int, default=100_000)
    number = parser.parse_args().functions
    body = []
    for make in (mapped, two_stages, nested, added, recorded):
        dag = make(number)
        times = (
            best(lambda make=make: make(number)),  # type: ignore[misc]
            best(dag.validate),
            best(lambda dag=dag: expand(dag.functions)),  # type: ignore[misc]
        )
        body.append([make.__name__, *(f"{seconds:.2f}" for seconds in times)])
    print(Table(("DAG", "build (s)", "validate (s)", "expand (s)"), body).text())


if __name__ == "__main__":
    main()
