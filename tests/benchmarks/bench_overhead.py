"""What a short function costs through the gate, against plain Dask with the same graph.

    python tests/benchmarks/bench_overhead.py [--functions 10000] [--pairs 5] [--bundle 0]
    python tests/benchmarks/bench_overhead.py --first [--pairs 3]
    python tests/benchmarks/bench_overhead.py --growth [--pairs 3]
    python tests/benchmarks/bench_overhead.py --long [--pairs 3]
    python tests/benchmarks/bench_overhead.py --million

Plain Dask is given the same graph, a task for each function with the same annotations, already
built; execute() is timed from the DAG to the ExecutionResult. Pairs run one after the other on one
cluster of two worker processes; printed is the ratio of the medians. The cluster has run functions
of the same code before, except with `--first`: there each run has a new cluster. `--bundle 0` sends
each function by itself. `--growth` does, too, and shows what a function of a run of 100,000 costs
against one of 10,000, each run on a cluster of its own: the CPU time of the process with client and
scheduler, and the time from DAG to result. `--long` compares the makespans of functions of 20 ms
with and without bundles. `--million` runs a million functions once, and shows the memory as well.
"""

from __future__ import annotations

import argparse
import gc
import logging
import resource
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from uuid import uuid4

import psutil
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


def tree(n):
    """Return a DAG that reduces about n / 2 leaves, two values at a time."""
    dag = DAG()
    level = [dag.add(add_one, i, id=(0, i), cost={"cpu": 1}) for i in range(n // 2)]
    depth = 0
    while len(level) > 1:
        depth += 1
        level = [
            dag.add(add, *level[i : i + 2], id=(depth, i // 2), cost={"cpu": 1})
            for i in range(0, len(level), 2)
        ]
    return dag


def add(x, y=0):
    """Do next to nothing with two values."""
    return x + y


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


def handoff_seconds(client, dag, bundle=None):
    """Time execute()."""
    gc.collect()
    started = time.perf_counter()
    result = execute(dag, client=client, bundle=bundle)
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
                execute(flat(2000), client=client, bundle=False)
                dag = flat(functions)
                cpu = time.process_time()
                wall = handoff_seconds(client, dag, bundle=False)
                times.append((wall, time.process_time() - cpu))
    body = []
    for what, column in (("from DAG to result", 0), ("CPU of client and scheduler", 1)):
        each = [median(t[column] for t in times) / n * 1e6 for n, times in measured.items()]
        body.append([what, *(f"{us:.0f}" for us in each), f"{each[1] / each[0]:.2f}"])
    return Table(
        ["microseconds a function", f"of {small}", f"of {large}", "ratio"],
        body,
        title="A function of a large run",
        note=f"Medians of {pairs} alternated pairs, each run on a new cluster, without bundles.",
    )


def measure(functions=10_000, pairs=5, bundle=None):
    """Return the table: microseconds per function, medians of the pairs, and their ratio."""
    body = []
    with two_workers() as client:
        for name, make in (
            ("independent", flat),
            ("in chains of 100", chains),
            ("in a binary tree", tree),
        ):
            dag = make(functions if make is not tree else 8192 * functions // 10_000)
            # The first run teaches how long functions take, and warms up.
            execute(dag, client=client)
            pair = [
                (plain_seconds(client, dag), handoff_seconds(client, dag, bundle))
                for _ in range(pairs)
            ]
            body.append(_row(f"{len(dag)} {name}", dag, pair))
    return _table(body, "A short function", "after a first run")


def first(functions=10_000, pairs=3):
    """Return the table of first runs, each on a new cluster."""
    dag = flat(functions)
    pair = []
    for _ in range(pairs):
        with two_workers() as client:
            plain = plain_seconds(client, dag)
        with two_workers() as client:
            pair.append((plain, handoff_seconds(client, dag)))
    name = f"{len(dag)} independent"
    return _table([_row(name, dag, pair)], "A short function in a first run", "on a new cluster")


def _row(name, dag, pairs):
    plain, ours = (median(times) / len(dag) * 1e6 for times in zip(*pairs, strict=True))
    return [name, f"{plain:.0f}", f"{ours:.0f}", f"{ours / plain:.2f}"]


def _table(body, title, when):
    return Table(
        ["functions", "plain Dask (us)", "Handoff (us)", "ratio"],
        body,
        title=title,
        note="Microseconds per function that adds one, on two single-threaded worker processes,\n"
        f"{when}: plain Dask with the finished graph, Handoff from the DAG to its result.",
    )


def work(seconds):
    """Compute for some time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def long(functions=2000, pairs=3, seconds=0.02):
    """Return the table of the makespans of longer functions, with and without bundles."""
    dag = DAG()
    dag.map(work, [seconds] * functions, cost={"cpu": 1})
    with two_workers() as client:
        execute(dag, client=client)
        spans = [
            [execute(dag, client=client, bundle=bundle).makespan for bundle in (None, False)]
            for _ in range(pairs)
        ]
    bundled, alone = map(median, zip(*spans, strict=True))
    return Table(
        ["functions", "with bundles (s)", "without (s)", "ratio"],
        [
            [
                f"{functions} of {seconds:g} s",
                f"{bundled:.2f}",
                f"{alone:.2f}",
                f"{bundled / alone:.3f}",
            ]
        ],
        title="Makespan of functions that are not short",
    )


def million(functions=1_000_000):
    """Return the table of one run of a million functions: time and memory of this process."""
    with two_workers() as client:
        execute(flat(20_000), client=client)
        gc.collect()
        before = psutil.Process().memory_info().rss
        dag = flat(functions)
        built = psutil.Process().memory_info().rss
        started = time.perf_counter()
        result = execute(dag, client=client)
        took = time.perf_counter() - started
        after = psutil.Process().memory_info().rss
        assert len(result.results) == len(result.allocations) == functions
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    body = [
        [
            f"{functions}",
            f"{took / functions * 1e6:.0f}",
            *(f"{(bytes_ - before) / functions / 1000:.2f}" for bytes_ in (built, after, peak)),
        ]
    ]
    return Table(
        ["functions", "us each", "DAG (kB each)", "with result (kB each)", "peak (kB each)"],
        body,
        title="A million functions",
        note="Memory of the process that holds client and scheduler, beyond what it had before.",
    )


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--functions", type=int, default=10_000)
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--bundle", type=float)
    for name in ("first", "growth", "long", "million"):
        parser.add_argument(f"--{name}", action="store_true")
    args = parser.parse_args()
    if args.growth:
        table = growth(args.pairs or 3)
    elif args.first:
        table = first(args.functions, args.pairs or 3)
    elif args.long:
        table = long(pairs=args.pairs or 3)
    elif args.million:
        table = million()
    else:
        table = measure(args.functions, args.pairs or 5, args.bundle)
    print(table.text())


if __name__ == "__main__":
    main()
