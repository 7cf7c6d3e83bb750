"""What `dask handoff run` adds to a short run, against a script that does the same in plain Dask.

    python tests/benchmarks/bench_cli.py [--pairs 15]

Three functions in a row on a scheduler that runs already, with one worker process. Both are timed
from the start of their process to its end; pairs run one after the other, and the ratio is that of
the medians. The package must be installed, so that `dask` finds the command.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from distributed import LocalCluster

FUNCTIONS = """
import operator

def source(x):
    return x
"""

PLAIN = (
    FUNCTIONS
    + """
import sys

from dask import delayed
from distributed import Client

value = delayed(source)(42)
value = delayed(operator.mul)(value, 2)
value = delayed("The final answer is: {}".format)(value)
with Client(sys.argv[1]) as client:
    assert client.compute(value).result() == "The final answer is: 84"
"""
)

HANDOFF = (
    FUNCTIONS
    + """
from handoff_dask import DAG, Function

dag = (
    DAG()
    .add_function(Function(id="source", args=[], code=source, extra_args=[42]))
    .add_function(Function(id="transform", args=["source"], code=operator.mul, extra_args=[2]))
    .add_function(Function(id="sink", args=["transform"], code="The final answer is: {}".format))
)
"""
)


def seconds(*command: str) -> float:
    """Time a process."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15)
    pairs = parser.parse_args().pairs
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=True, dashboard_address=":0"
        ) as cluster,
    ):
        plain, handoff = Path(folder, "plain.py"), Path(folder, "handoff.py")
        plain.write_text(PLAIN)
        handoff.write_text(HANDOFF)
        address = cluster.scheduler_address
        commands = (
            (sys.executable, str(plain), address),
            (
                sys.executable,
                "-m",
                "dask",
                "handoff",
                "run",
                f"{handoff}:dag",
                "--scheduler",
                address,
            ),
        )
        for command in commands:
            seconds(*command)  # compiles what is imported, and sends the plugin
        times = [[seconds(*command) for command in commands] for _ in range(pairs)]
    ours, theirs = (median(column) for column in list(zip(*times, strict=True))[::-1])
    print(f"{pairs} pairs: plain Dask {theirs:.3f} s, dask handoff run {ours:.3f} s")
    print(f"ratio of the medians {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
