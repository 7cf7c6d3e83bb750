"""What a short function costs through the gate, against plain Dask with the same graph.

    python tests/benchmarks/bench_overhead.py [--functions 10000] [--pairs 5]
    python tests/benchmarks/bench_overhead.py --growth [--pairs 3]

Plain Dask is given the very graph that execute() sends, annotations and all, already built;
execute() is timed from the DAG to the ExecutionResult. Pairs run one after the other on one
cluster of two worker processes; printed is the ratio of the medians. `--growth` shows what a
function of a run of 100,000 costs against one of 10,000, each run on a cluster of its own: the CPU
time of the process with client and scheduler, and the time from DAG to result.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from uuid import uuid4

from distributed import Client, LocalCluster

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from handoff_dask import DAG, Function, RetryPolicy, execute
from handoff_dask.graph.translation import translate
from handoff_dask.model.expansion import expand
from tests.benchmarks.tables import Table


def add_one(x):
    """Do next to nothing."""
    return x + 1


def flat(n):
    """Return a DAG of n independent functions."""
    dag = DAG()
    for i in range(n):
        dag.add_function(Function(id=i, args=[], code=add_one, extra_args=[i], cost={"cpu": 1}))
    return dag


def chains(n, length=100):
    """Return a DAG of n functions in chains."""
    dag = DAG()
    for chain in range(n // length):
        dag.add_function(
            Function(id=(chain, 0), args=[], code=add_one, extra_args=[0], cost={"cpu": 1})
        )
        for i in range(1, length):
            dag.add_function(
                Function(id=(chain, i), args=[(chain, i - 1)], code=add_one, cost={"cpu": 1})
            )
    return dag


def plain_seconds(client, dag):
    """Time plain Dask on the same graph."""
    translation = translate(expand(dag.functions), uuid4().hex, policy=RetryPolicy(3))
    keys = list(translation.keys)
    gc.collect()
    started = time.perf_counter()
    values = client.get(translation.graph, keys)
    took = time.perf_counter() - started
    assert len(values) == len(keys)
    return took


def handoff_seconds(client, dag):
    """Time execute()."""
    gc.collect()
    started = time.perf_counter()
    result = execute(dag, client=client)
    took = time.perf_counter() - started
    assert len(result.results) == len(dag)
    return took


@contextmanager
def two_workers():
    """Start a cluster of two worker processes of one thread; yield its client."""
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            resources={"cpu": 1},  # for plain Dask, which does not see what we detect
            processes=True,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def growth(pairs=3, small=10_000, large=100_000):
    """Return the table: microseconds per function of small and large runs, and their ratio."""
    measured = {small: [], large: []}
    for _ in range(pairs):
        for functions, times in measured.items():
            with two_workers() as client:
                execute(flat(2000), client=client)
                dag = flat(functions)
                cpu = time.process_time()
                wall = handoff_seconds(client, dag)
                times.append((wall, time.process_time() - cpu))
    body = []
    for what, column in (("from DAG to result", 0), ("CPU of client and scheduler", 1)):
        each = [median(t[column] for t in times) / n * 1e6 for n, times in measured.items()]
        body.append([what, *(f"{us:.0f}" for us in each), f"{each[1] / each[0]:.2f}"])
    return Table(
        ["microseconds a function", f"of {small}", f"of {large}", "ratio"],
        body,
        title="A function of a large run",
        note=f"Medians of {pairs} alternated pairs, each run on a new cluster.",
    )


def measure(functions=10_000, pairs=5):
    """Return the table: microseconds per function, medians of the pairs, and their ratio."""
    body = []
    with two_workers() as client:
        for name, make in (("independent", flat), ("in chains of 100", chains)):
            dag = make(functions)
            # The first pair warms both up.
            execute(make(1000), client=client)
            found = [
                (plain_seconds(client, dag), handoff_seconds(client, dag)) for _ in range(pairs)
            ]
            plain, ours = (median(times) / len(dag) * 1e6 for times in zip(*found, strict=True))
            body.append(
                [f"{functions} {name}", f"{plain:.0f}", f"{ours:.0f}", f"{ours / plain:.2f}"]
            )
    return Table(
        ["functions", "plain Dask (us)", "Handoff (us)", "ratio"],
        body,
        title="A short function",
        note="Microseconds per function that adds one, on two single-threaded worker processes:\n"
        "plain Dask with the finished graph, Handoff from the DAG to its result.",
    )


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--functions", type=int, default=10_000)
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--growth", action="store_true")
    args = parser.parse_args()
    if args.growth:
        print(growth(args.pairs or 3).text())
    else:
        print(measure(args.functions, args.pairs or 5).text())


if __name__ == "__main__":
    main()
