"""How many bytes a run takes on its way from the client to the scheduler.

    python tests/benchmarks/bench_submission.py [--functions 100000]

Printed are, for independent functions and for chains, the bytes of the message that opens the run
and of the graph, as they are pickled; and the seconds that each takes to make.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from distributed.protocol import pickle

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from handoff_dask.client.options import RunOptions
from handoff_dask.client.submission import Submission
from tests.benchmarks.bench_overhead import chains, flat
from tests.benchmarks.tables import Table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--functions", type=int, default=100_000)
    functions = parser.parse_args().functions
    body = []
    for name, make in {"independent": flat, "chains": chains}.items():
        dag = make(functions)
        start = time.perf_counter()
        submission = Submission(dag, RunOptions())
        opening = len(submission.spec("client"))
        opened = time.perf_counter()
        graph = 0
        for number, calls in enumerate(submission.pieces()):
            graph += len(pickle.dumps(submission.translator.graph(number, calls, calls)))
        translated = time.perf_counter()
        body.append(
            [
                name,
                f"{opening:,}",
                f"{graph:,}",
                f"{(opening + graph) / functions:.0f}",
                f"{opened - start:.2f}",
                f"{translated - opened:.2f}",
            ]
        )
    head = ("DAG", "opening (B)", "graph (B)", "a function (B)", "opening (s)", "graph (s)")
    print(Table(head, body).text())


if __name__ == "__main__":
    main()
