"""What Handoff costs on a cluster that runs already, of 8 worker processes without the package.

    python tests/benchmarks/bench_cluster.py [--rounds 15]

First the very first execute() of a DAG of three functions, which brings the package along. Then
later ones, paired with plain Dask on the same graph. Then the throughput of plain Dask, with the
plugin installed and without, in turns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from distributed import Client

from handoff_dask import DAG, Function, discover_nodes, execute, uninstall

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.bench_overhead import handoff_seconds, plain_seconds
from tests.integration.separate import Processes, bare_environment

WORKERS = 8


def three():
    """Return a DAG of three functions in a chain."""
    dag = DAG()
    dag.add_function(Function(id=0, args=[], code=int, extra_args=["42"], cost={"cpu": 1}))
    dag.add_function(Function(id=1, args=[0], code=float, cost={"cpu": 1}))
    dag.add_function(Function(id=2, args=[1], code=str, cost={"cpu": 1}))
    return dag


def throughput(client, tasks):
    """Time plain Dask on tasks that nobody places."""
    started = time.perf_counter()
    client.gather(client.map(int, range(tasks), pure=False))
    return time.perf_counter() - started


def main():
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tasks", type=int, default=10_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = bare_environment(folder / "python")
        with Processes(python, folder) as processes:
            for i in range(WORKERS):
                processes.worker(i, "--nthreads", 1, "--no-nanny", "--memory-limit", 0)
            with Client(processes.address) as client:
                client.wait_for_workers(WORKERS, timeout=120)
                measure(client, args)


def measure(client, args):
    """Measure on a cluster that has never seen Handoff."""
    dag = three()
    print(f"first execute, package included: {handoff_seconds(client, dag):.2f} s")
    pairs = [(plain_seconds(client, dag), handoff_seconds(client, dag)) for _ in range(args.rounds)]
    plain, ours = (1000 * median(times) for times in zip(*pairs, strict=True))
    print(f"later ones: {ours:.1f} ms, plain Dask {plain:.1f} ms: {ours / plain:.2f} times")
    with_us, without = [], []
    throughput(client, args.tasks)
    for _ in range(args.rounds):
        discover_nodes(client=client)
        with_us.append(throughput(client, args.tasks))
        uninstall(client=client)
        without.append(throughput(client, args.tasks))
    ratio = median(a / b for a, b in zip(with_us, without, strict=True))
    per_task = 1e6 * median(without) / args.tasks
    print(f"plain Dask beside the plugin: {ratio:.3f} times ({per_task:.0f} us per task without)")
    assert execute(dag, client=client).results[2] == "42.0"


if __name__ == "__main__":
    main()
