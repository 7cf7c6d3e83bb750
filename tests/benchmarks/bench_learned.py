"""How long functions with heavy-tailed memory take: learned claims against declared ones.

    python tests/benchmarks/bench_learned.py [--pairs 3]

300 isolated functions hold memory for a while: lognormal amounts, the largest 20 times the median.
They run on two workers with more threads than memory, each with what it needs declared (true), with
the largest amount declared for all (most), and with AUTO, learned by a run before. Each pair is on
a new cluster. Figures are makespans in seconds, medians, and ratios of pairs.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from typing import Any

import numpy
from distributed import Client, LocalCluster

from handoff_dask import AUTO, DAG, ExecutionResult, execute

COUNT = 300
MEDIAN = 40.0
LARGEST = 20 * MEDIAN
#: What a process has without what its function allocates (MB).
BASE = 40.0
SECONDS = 0.5


def hold(mb: float) -> int:
    """Use some memory for a while."""
    block = numpy.ones(int(mb * 125_000))
    time.sleep(SECONDS)
    return len(block)


def sizes(seed: int) -> list[float]:
    """Return amounts of memory in MB."""
    draw = random.Random(seed)
    amounts = [draw.lognormvariate(0, 1) for _ in range(COUNT)]
    # The largest is so many times the median.
    power = numpy.log(LARGEST / MEDIAN) / numpy.log(max(amounts) / statistics.median(amounts))
    middle = statistics.median(amounts)
    return [MEDIAN * (amount / middle) ** power for amount in amounts]


def run(amounts: list[float], costs: list[Any]) -> ExecutionResult:
    """Run the functions with these claims of memory."""
    dag = DAG()
    for i, (amount, cost) in enumerate(zip(amounts, costs, strict=True)):
        dag.add(hold, amount, id=i, cost={"memory": cost}, isolate=True)
    return execute(dag)


def measure(seed: int) -> dict[str, float]:
    """Return the makespan of each way to declare (s)."""
    amounts = sizes(seed)
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=16,
            memory_limit=f"{2 * (LARGEST + BASE)}MB",
            dashboard_address=":0",
        ) as cluster,
        Client(cluster) as client,
    ):
        before = sorted(client.run(lambda: __import__("os").getpid()).values())
        learning = run(amounts, [AUTO] * COUNT)
        results = {
            "AUTO": run(amounts, [AUTO] * COUNT),
            "true": run(amounts, [amount + BASE for amount in amounts]),
            "most": run(amounts, [LARGEST + BASE] * COUNT),
        }
        assert before == sorted(client.run(lambda: __import__("os").getpid()).values())
    kills = sum(
        attempt.outcome == "out-of-memory"
        for tried in results["AUTO"].attempts.values()
        for attempt in tried
    )
    times = {name: result.makespan for name, result in results.items()}
    return {**times, "first": learning.makespan, "kills": kills}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    measured = [measure(seed) for seed in range(parser.parse_args().pairs)]
    for name in measured[0]:
        print(f"{name:>6}: {statistics.median(row[name] for row in measured):7.2f}")
    for other in ("most", "true"):
        ratio = statistics.median(row["AUTO"] / row[other] for row in measured)
        print(f"AUTO / {other}: {ratio:.2f}")


if __name__ == "__main__":
    main()
