"""What it takes to draw large DAGs and long results in a notebook.

    python tests/benchmarks/bench_drawing.py

Prints seconds, the best of three, and the size of the HTML.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from handoff_dask import DAG, Function, collocated
from handoff_dask.client.results import ExecutionResult
from handoff_dask.model.attempt import Attempt

N = 10_000


def work(*args: object) -> None:
    """Stand for a function of the user's."""


def wide() -> DAG:
    """Return stages of functions that share their code, as most large DAGs have."""
    dag = DAG("wide")
    stages = [type(f"Stage{i}", (), {"__call__": work})() for i in range(4)]
    for i in range(N // 4):
        for level, code in enumerate(stages):
            node = collocated((level - 1, i)) if level == 1 else None
            args = [(level - 1, i)] if level else []
            dag.add_function(Function((level, i), args, code, cost={"cpu": 1 + i % 4}, node=node))
    return dag


def chain() -> DAG:
    """Return functions that follow one another."""
    dag = DAG("chain")
    for i in range(N):
        dag.add_function(Function(i, [i - 1] if i else [], work))
    return dag


def tangled() -> DAG:
    """Return functions of 100 codes, each with four inputs at random."""
    rng = random.Random(0)
    dag = DAG("tangled")
    codes = [type(f"Code{i}", (), {"__call__": work})() for i in range(100)]
    for i in range(N):
        args = sorted({rng.randrange(i) for _ in range(4)}) if i else []
        dag.add_function(Function(i, args, rng.choice(codes), cost={"memory": rng.random()}))
    return dag


def single() -> DAG:
    """Return as many functions as are drawn one by one, with lines across many layers."""
    rng = random.Random(0)
    dag = DAG("100 of them")
    for i in range(100):
        args = sorted({rng.randrange(i) for _ in range(3)}) if i else []
        dag.add_function(Function(i, args, work))
    return dag


def result(workers: int) -> ExecutionResult:
    """Return a result of that many functions."""
    rng = random.Random(0)
    ends = dict.fromkeys(range(workers), 1e9)
    attempts = {}
    for i in range(N):
        worker = min(ends, key=ends.__getitem__)
        start, stop = ends[worker], ends[worker] + rng.uniform(0.1, 2)
        attempts[i] = (Attempt(1, f"tcp://{worker}", f"w{worker}", "h", start, stop),)
        ends[worker] = stop
    allocations = {i: tried[0].worker for i, tried in attempts.items()}
    return ExecutionResult("long", {}, allocations, attempts)


def measure(name: str, draw: Callable[[], str]) -> None:
    """Print what a drawing takes."""
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        html = draw()
        seconds.append(time.perf_counter() - begun)
    print(f"{name:<34} {min(seconds):6.3f} s  {len(html) / 1e3:8.1f} kB")


def main() -> None:
    """Measure and print."""
    for make in (wide, chain, tangled, single):
        dag = make()
        measure(f"DAG {dag.id}, {len(dag):,} functions", dag._repr_html_)
    for workers in (4, 200):
        shown = result(workers)
        measure(f"result, {N:,} on {workers} workers", shown._repr_html_)


if __name__ == "__main__":
    main()
