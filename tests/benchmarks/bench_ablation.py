"""What each tuned choice of the placement engine buys: the makespan with it switched off.

    python tests/benchmarks/bench_ablation.py [--rounds 10] [--only keeping patience]

Simulates the workloads of the makespan suite with one choice switched off at a time, and prints by
how many percent the makespan grows at the first run (durations unknown) and at the second
(learned): the geometric mean over workloads, and the worst workload. A few minutes on one core.
What is there for the cost of a decision, or so that nothing starves, may buy nothing here.

The last table (10 rounds; the constants' comments quote it):

switched off                             first run (%)  worst  second run (%)  worst
------------------------------------------------------------------------------------
nothing                                           +0.0   +0.0            +0.0   +0.0
nothing, other seeds                              -0.0   +0.2            +0.0   +0.2
reservations                                      +0.8   +3.9            +0.9   +3.7
patience: half                                    -0.1   +2.3            +0.5   +3.1
patience: twice                                   +0.0   +0.0            +0.0   +0.0
patience: the more urgent count                   +0.1   +0.7            -0.1   +0.2
patience: equals count less                       +0.5   +3.7            +0.2   +1.0
patience: equals never count                      +0.3   +2.6            +0.2   +0.8
soft reservations                                 +0.0   +0.0            +1.7   +8.0
soft reservations: 1 at a time                    +0.0   +0.0            +0.3   +1.1
soft reservations: 4 at a time                    +0.0   +0.0            +0.8   +3.8
soft reservations: from half a worker             +0.0   +0.0            +0.1   +0.7
soft reservations: from 0.8 of a worker           +0.0   +0.0            +0.2   +1.0
durations: fading                                 +0.0   +0.2            +0.0   +0.0
durations: of single functions                    +0.0   +0.0            +3.4   +7.6
ranks: learned within a run                       +0.2   +1.7            +0.2   +1.2
ranks: from a tenth of the functions              +0.1   +0.8            -0.0   +0.0
ranks: in steps                                   +0.0   +0.0            +0.1   +1.1
ranks: the widest of equals first                 +1.0   +7.7            +0.5   +2.1
packed: spare what is scarce                      +0.0   +2.0            +0.4   +2.4
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from handoff_dask.placement import (
    durations,
    fleet,
    ranking,
    reservations,
    soft_reservations,
    strategies,
)
from tests.benchmarks import measuring
from tests.benchmarks.suite import scaled
from tests.benchmarks.tables import Table
from tests.benchmarks.workloads import Workload

Patch = AbstractContextManager[Any]


def constant(module: Any, **values: Any) -> Callable[[], list[Patch]]:
    """Return what sets names of a module or class."""
    return lambda: [mock.patch.object(module, name, value) for name, value in values.items()]


#: What is switched off, and how.
OFF: dict[str, Callable[[], list[Patch]]] = {
    "nothing": lambda: [],
    "nothing, other seeds": lambda: [],
    "reservations": constant(reservations.Reserver, charge=lambda *_: False),
    "patience: half": constant(reservations, _PATIENCE=4.0),
    "patience: twice": constant(reservations, _PATIENCE=16.0),
    "patience: the more urgent count": constant(reservations, _URGENT=10**9),
    "patience: equals count less": constant(reservations, _EQUALS=1.0),
    "patience: equals never count": constant(reservations, _EQUALS=0.0),
    "soft reservations": constant(soft_reservations.SoftReserver, keep=lambda *_: None),
    "soft reservations: 1 at a time": constant(soft_reservations, _KEPT=1),
    "soft reservations: 4 at a time": constant(soft_reservations, _KEPT=4),
    "soft reservations: from half a worker": constant(soft_reservations, _WIDE=0.5),
    "soft reservations: from 0.8 of a worker": constant(soft_reservations, _WIDE=0.8),
    "durations: fading": constant(durations, _MEMORY=10**9),
    "durations: of single functions": constant(durations.Durations, of_token=lambda *_: None),
    "ranks: learned within a run": constant(ranking, _MOVED_SHARE=1e9),
    "ranks: from a tenth of the functions": constant(ranking, _MOVED_SHARE=0.0),
    "ranks: in steps": constant(ranking, _STEP=0.0),
    "ranks: the widest of equals first": constant(fleet.Fleet, footprint=lambda *_: 0.0),
    "packed: spare what is scarce": constant(strategies, _SPARE=0.0),
}


def makespans(suite: Sequence[Workload], rounds: int, overhead: float) -> list[list[float]]:
    """Return the mean makespan of each workload, at the first run and at the second."""
    means: list[list[float]] = [[], []]
    with mock.patch.object(measuring, "planned", lambda workload: 0.0):
        for workload in suite:
            columns = measuring.simulated(workload, overhead=overhead, rounds=rounds)
            means[0].append(fmean(columns["first"]))
            means[1].append(fmean(columns["second"]))
    return means


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--only", nargs="*", default=[], help="what to switch off, or how it begins"
    )
    args = parser.parse_args()
    suite = scaled([])
    whole = makespans(suite, args.rounds, 0.004)
    body = []
    for name, off in OFF.items():
        if args.only and not name.startswith(tuple(args.only)):
            continue
        with ExitStack() as stack:
            for patch in off():
                stack.enter_context(patch)
            # Other seconds between a decision and a start show what is chance.
            without = makespans(suite, args.rounds, 0.0041 if "seeds" in name else 0.004)
        row = [name]
        for before, after in zip(whole, without, strict=True):
            ratios = [b / a for a, b in zip(before, after, strict=True)]
            row += [f"{100 * (geometric_mean(ratios) - 1):+.1f}", f"{100 * (max(ratios) - 1):+.1f}"]
        body.append(row)
        print(*row, sep="  ", flush=True)
    table = Table(
        ["switched off", "first run (%)", "worst", "second run (%)", "worst"],
        body,
        title="What each choice buys",
        note="By how many percent the makespan grows without it, over the makespan suite's\n"
        "workloads in simulated time.",
    )
    print(f"\n{table.text()}")


if __name__ == "__main__":
    main()
