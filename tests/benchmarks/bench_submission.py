"""What it takes a client to submit a run, step by step, in a process of its own.

    python tests/benchmarks/bench_submission.py [--functions 100000]

Printed are, for DAGs of independent functions and of chains, the microseconds that each step takes
for a function, and the bytes of its pickled call.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from handoff_dask import DAG, Function, collector
from handoff_dask.client.describing import packed_outlines
from handoff_dask.client.options import RunOptions
from handoff_dask.client.submission import Submission
from handoff_dask.wire.messages import packed_rows
from tests.benchmarks.bench_overhead import add_one
from tests.benchmarks.tables import Table

COST = {"cpu": 1}


def mapped(number: int) -> DAG:
    """Return independent functions that `map` makes."""
    dag = DAG()
    dag.map(add_one, range(number), cost=COST)
    return dag


def added(number: int) -> DAG:
    """Return independent functions that are added one by one."""
    return DAG(
        functions=[Function(i, [], add_one, extra_args=[i], cost=COST) for i in range(number)]
    )


def partials(number: int) -> DAG:
    """Return independent functions whose codes are partial calls of one function."""
    return DAG(functions=[Function(i, [], partial(add_one, i), cost=COST) for i in range(number)])


def chained(number: int) -> DAG:
    """Return chains of 100."""
    dag = DAG()
    for i in range(number):
        args, extra = ([i - 1], []) if i % 100 else ([], [i])
        dag.add_function(Function(i, args, add_one, extra_args=extra, cost=COST))
    return dag


def steps(dag: DAG) -> Iterator[object]:
    """Do what a client does with a DAG, step by step; yield what each step makes."""
    submission = Submission(dag, RunOptions())
    yield submission
    calls = {index: call for piece in submission.pieces() for index, call in piece.items()}
    yield calls
    yield submission.spec("client")
    nodes = [node.index for node in submission.outline.nodes]
    yield packed_rows(submission.rows.of(nodes)), packed_outlines(dag.functions.values())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--functions", type=int, default=100_000)
    functions = parser.parse_args().functions
    body = []
    for make in (mapped, added, partials, chained):
        begun = time.perf_counter()
        dag = make(functions)
        times = [time.perf_counter() - begun]
        made = []
        with collector.paused():  # as submit() does
            begun = time.perf_counter()
            for product in steps(dag):
                made.append(product)
                times.append(time.perf_counter() - begun)
                begun = time.perf_counter()
        size = sum(len(pickled) for _, pickled in made[1].values()) / functions
        micro = [f"{seconds / functions * 1e6:.1f}" for seconds in (*times, sum(times[1:]))]
        body.append([make.__name__, *micro, f"{size:.0f}"])
    head = ("DAG", "build", "check", "pickle", "open", "describe", "submission (us)", "call (B)")
    print(Table(head, body).text())


if __name__ == "__main__":
    main()
