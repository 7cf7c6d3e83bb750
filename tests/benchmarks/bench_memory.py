"""How much memory a large run takes, in each process.

    python tests/benchmarks/bench_memory.py [--functions 100000]

Client, scheduler and two workers of one thread are processes of their own. Printed is by how much
each grew at its peak, from before the DAG was made until its result was there.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from pathlib import Path

import psutil
from distributed import Client
from distributed.deploy.subprocess import SubprocessCluster

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from handoff_dask import DAG, submit
from tests.benchmarks.bench_overhead import add_one
from tests.benchmarks.tables import Table

#: Seconds between looks.
EVERY = 0.2


def two_stages(number: int) -> DAG:
    """Return functions that add one, half of them to the results of the others."""
    dag = DAG()
    dag.map(add_one, dag.map(add_one, range(number // 2), cost={"cpu": 1}), cost={"cpu": 1})
    return dag


class Peaks:
    """The most memory that each of some processes had, looked at in a thread of its own."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peaks:
        self.before = self._look()
        self.most = dict(self.before)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> dict[str, int]:
        return {name: process.memory_info().rss for name, process in self._processes.items()}

    def _watch(self) -> None:
        while not self._stop.wait(EVERY):
            now = self._look()
            self.most = {name: max(most, now[name]) for name, most in self.most.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--functions", type=int, default=100_000)
    functions = parser.parse_args().functions
    with SubprocessCluster(n_workers=2, worker_kwargs={"nthreads": 1}) as cluster:
        with Client(cluster) as client:
            client.wait_for_workers(2)
            submit(two_stages(1000)).result()
            pids = {"client": os.getpid(), "scheduler": client.run_on_scheduler(os.getpid)}
            for number, pid in enumerate(client.run(os.getpid).values(), start=1):
                pids[f"worker {number}"] = pid
            with Peaks(pids) as peaks:
                begun = time.perf_counter()
                run = submit(two_stages(functions))
                submitted = time.perf_counter() - begun
                run.result()
                ended = time.perf_counter() - begun
    grown = {name: peaks.most[name] - before for name, before in peaks.before.items()}
    body = [
        [name, f"{bytes_ / 1e6:.0f}", f"{bytes_ / functions / 1e3:.1f}"]
        for name, bytes_ in grown.items()
    ]
    print(Table(("process", "grew by (MB)", "a function (kB)"), body).text())
    print(f"submitted after {submitted:.1f} s, ended after {ended:.1f} s")


if __name__ == "__main__":
    main()
