"""Makespans of workflow traces and random DAGs, against the best schedule known.

    python tests/benchmarks/suite.py [--rounds 3] [--workloads bwa random] [--save docs/benchmarks]
    python tests/benchmarks/suite.py --simulate

Prints the ratio of plain Dask with the same annotations, of Handoff at its first run (durations
unknown) and at its second (learned), and of Ray where it is installed, to the best of 200 perturbed
list schedules; and how far `plan()` is off. About a minute per workload for three rounds.
`--simulate` shows what the engine does in simulated time instead: seconds in all, for tuning it.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import measuring
from tests.benchmarks.listing import best_known
from tests.benchmarks.report import GOAL, Figures, markdown, svg, table
from tests.benchmarks.workloads import TRACES, WORKERS, Workload, workloads

PAGE, PLOT = "makespan.md", "makespan.svg"


def scaled(names: Sequence[str]) -> list[Workload]:
    """Return the workloads, scaled so that the best schedule known takes `GOAL` seconds."""
    if not TRACES.is_dir():
        print(f"without the workflow traces: there is no {TRACES}")
    found = workloads(names)
    if not found:
        raise SystemExit(f"no workload is called {' or '.join(names)}")
    return [workload.scaled(GOAL / best_known(workload).makespan) for workload in found]


def simulate(suite: Sequence[Workload], overhead: float) -> list[Figures]:
    """Fill the table from the simulation."""
    found = []
    for workload in suite:
        columns = measuring.simulated(workload, overhead=overhead)
        found.append(Figures(workload.name, len(workload.tasks), columns))
    return found


def measure(suite: Sequence[Workload], rounds: int, systems: Sequence[str]) -> list[Figures]:
    """Fill the table from real runs. Nothing learned in a round is known in the next."""
    found = [Figures(workload.name, len(workload.tasks)) for workload in suite]
    work = list(zip(suite, found, strict=True))

    def note(figures: Figures, column: str, seconds: float) -> None:
        figures.seconds.setdefault(column, []).append(seconds)
        print(f"  {figures.workload:32}{column:8}{seconds / GOAL:6.3f}", flush=True)

    for number in range(1, rounds + 1):
        print(f"round {number} of {rounds}", flush=True)
        for workload, figures in work:
            if "dask" in systems:
                with measuring.dask_cluster() as client:
                    note(figures, "plain", measuring.plain(client, workload))
            if "handoff" in systems:
                with measuring.dask_cluster() as client:
                    note(figures, "first", measuring.handoff(client, workload))
                    note(figures, "second", measuring.handoff(client, workload))
    if "handoff" in systems:
        for workload, figures in work:
            figures.seconds["plan"] = [measuring.planned(workload)]
    if "ray" in systems and measuring.has_ray():
        print("Ray", flush=True)
        with measuring.ray_cluster() as ray:
            for workload, figures in work * rounds:
                note(figures, "ray", measuring.ray(ray, workload))
    return found


def facts(rounds: int) -> dict[str, str]:
    """Return where and how the figures were made, for the page."""
    command = " ".join(["python tests/benchmarks/suite.py", *sys.argv[1:]])
    packages = [f"distributed {version('distributed')}"]
    if measuring.has_ray():
        packages.append(f"Ray {version('ray')}")
    workers = "; ".join(
        ", ".join(f"{name} {amount:g}" for name, amount in offer.items() if amount)
        for offer in WORKERS.values()
    )
    return {
        "made with": f"`{command}`",
        "on": f"{date.today()}, Python {platform.python_version()}, {', '.join(packages)}, "
        f"{os.cpu_count()} cores",
        "rounds": str(rounds),
        "workers": workers,
    }


def main() -> None:
    """Print the table, and save it if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workloads", nargs="*", default=[], help="names, or how they begin")
    parser.add_argument("--systems", nargs="*", default=["dask", "handoff", "ray"])
    parser.add_argument("--save", type=Path, help="folder for the page and the plot")
    parser.add_argument("--simulate", action="store_true", help="in simulated time")
    parser.add_argument(
        "--overhead", type=float, default=0.004, help="simulated seconds from placing to starting"
    )
    args = parser.parse_args()
    suite = scaled(args.workloads)
    if args.simulate:
        print(table(simulate(suite, args.overhead)))
        return
    figures = measure(suite, args.rounds, args.systems)
    print(f"\n{table(figures)}")
    if args.save is not None:
        args.save.mkdir(parents=True, exist_ok=True)
        (args.save / PAGE).write_text(markdown(figures, facts(args.rounds), PLOT))
        (args.save / PLOT).write_text(svg(figures))
        print(f"\nsaved as {args.save / PAGE} and {PLOT}")


if __name__ == "__main__":
    main()
