"""What learned claims of memory cost.

    python tests/benchmarks/bench_ladder.py

Prints the memory that a thousand functions claim over what they need, a kill costing a full run,
for three policies and six distributions: medians of five rounds, and in brackets the figures of
the design. Then the microseconds of a record and of a ladder that is computed again, of 256 peaks.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from handoff_dask.learning.ladder import rungs
from handoff_dask.learning.uses import Uses
from tests.benchmarks.tables import Table
from tests.learning.policies import DISTRIBUTIONS, POLICIES, WORKER, claimed_over_needed


def main() -> None:
    """Print the table."""
    body = []
    for name, (policy, designed) in POLICIES.items():
        pairs = zip(DISTRIBUTIONS, designed, strict=True)
        cells = (f"{claimed_over_needed(policy, d):.2f} ({figure})" for d, figure in pairs)
        body.append([name, *cells])
    print(Table(["claimed over needed", *DISTRIBUTIONS], body).text())
    rng = random.Random(0)
    peaks = [DISTRIBUTIONS["lognormal"](rng, 0) for _ in range(256)]
    uses = Uses()
    began = time.perf_counter()
    for i in range(10_000):
        uses.record("code", started=i, seconds=1.0, peak=peaks[i % 256])
    record = (time.perf_counter() - began) / 10_000
    began = time.perf_counter()
    for _ in range(100):
        rungs(peaks, worker_memory=WORKER)
    ladder = (time.perf_counter() - began) / 100
    print(f"record {record * 1e6:.1f} us, ladder {ladder * 1e6:.0f} us")


if __name__ == "__main__":
    main()
