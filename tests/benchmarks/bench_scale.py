"""Microseconds a function against the number of functions: plain Dask, Ray and Handoff.

    python tests/benchmarks/bench_scale.py [--most 1000000] [--rounds 3] [--save docs/benchmarks]

Independent functions that add one, on two worker processes of one thread. Handoff has run the same
code before; plain Dask is given the finished graph. Runs of up to 10,000 are medians of the rounds,
larger ones are measured once. Ray is left out where it is not installed, and so are plain Dask and
Ray above 100,000 functions.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from handoff_dask import execute
from tests.benchmarks.bench_overhead import (
    add_one,
    flat,
    handoff_seconds,
    plain_seconds,
    two_workers,
)
from tests.benchmarks.measuring import has_ray
from tests.benchmarks.tables import Table

#: Colours that stay apart for colour-blind readers, as in the plot of makespans.
COLOURS = {"plain Dask": "#767676", "Ray": "#E69F00", "Handoff": "#0072B2"}
#: From here on, a run is measured once, and only with Handoff.
ONCE, ALONE = 100_000, 1_000_000

#: By system: microseconds a function, by the number of functions.
Figures = Mapping[str, Mapping[int, float]]


def ray_seconds(n: int) -> float:
    """Time Ray on n tasks."""
    import ray

    task = ray.remote(add_one)
    started = time.perf_counter()
    values = ray.get([task.remote(i) for i in range(n)])
    took = time.perf_counter() - started
    assert len(values) == n
    return took


def measure(most: int, rounds: int) -> Figures:
    """Measure all systems."""
    numbers = [10**power for power in range(2, round(math.log10(most)) + 1)]
    figures: dict[str, dict[int, float]] = {"plain Dask": {}, "Handoff": {}}

    def record(system: str, n: int, times: list[float]) -> None:
        figures.setdefault(system, {})[n] = median(times) / n * 1e6
        print(f"{system:>10} {n:>9,}: {figures[system][n]:.0f} us", flush=True)

    with two_workers() as client:
        execute(flat(2000), client=client)
        for n in numbers:
            dag = flat(n)
            times = range(rounds if n < ONCE else 1)
            if n < ALONE:
                record("plain Dask", n, [plain_seconds(client, dag) for _ in times])
            record("Handoff", n, [handoff_seconds(client, dag) for _ in times])
            del dag
    if has_ray():
        import ray

        ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
        ray_seconds(1000)
        for n in numbers:
            if n < ALONE:
                record("Ray", n, [ray_seconds(n) for _ in range(rounds if n < ONCE else 1)])
        ray.shutdown()
    return figures


def table(figures: Figures) -> Table:
    """Return the table: a row for each number of functions."""
    numbers = sorted({n for values in figures.values() for n in values})
    systems = [system for system in COLOURS if system in figures]
    body = [
        [f"{n:,}", *(f"{figures[s][n]:.0f}" if n in figures[s] else "" for s in systems)]
        for n in numbers
    ]
    return Table(
        ["functions", *(f"{system} (us)" for system in systems)],
        body,
        note="Microseconds per function that adds one, on two single-threaded worker processes.",
    )


def svg(figures: Figures) -> str:
    """Return a plot with logarithmic axes: a line for each system."""
    left, right, above, bottom, width = 70, 150, 30, 330, 760
    numbers = [math.log10(n) for values in figures.values() for n in values]
    costs = [math.log10(us) for values in figures.values() for us in values.values()]
    first, last = min(numbers), max(numbers)
    low, high = math.floor(min(costs)), math.ceil(max(costs))

    def x(n: float) -> float:
        return left + (math.log10(n) - first) / (last - first) * (width - left - right)

    def y(us: float) -> float:
        return bottom - (math.log10(us) - low) / (high - low) * (bottom - above)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 60}"'
        f' width="{width}" height="{bottom + 60}" font-family="DejaVu Sans, Arial, sans-serif"'
        ' font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for power in range(low, high + 1):
        at = y(10**power)
        out.append(
            f'<line x1="{left}" y1="{at:.1f}" x2="{width - right}" y2="{at:.1f}" stroke="#ddd"/>'
        )
        out.append(
            f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{10**power:,} us</text>'
        )
    for power in range(math.ceil(first), math.floor(last) + 1):
        at = x(10**power)
        out.append(f'<line x1="{at:.1f}" y1="{above}" x2="{at:.1f}" y2="{bottom}" stroke="#eee"/>')
        out.append(
            f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{10**power:,}</text>'
        )
    middle = (left + width - right) / 2
    out.append(f'<text x="{middle}" y="{bottom + 42}" text-anchor="middle">functions</text>')
    for system, colour in COLOURS.items():
        points = sorted(figures.get(system, {}).items())
        if not points:
            continue
        line = " ".join(f"{x(n):.1f},{y(us):.1f}" for n, us in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for n, us in points:
            out.append(
                f'<circle cx="{x(n):.1f}" cy="{y(us):.1f}" r="4.5" fill="{colour}" stroke="white">'
                f"<title>{system}, {n:,} functions: {us:.0f} us each</title></circle>"
            )
        n, us = points[-1]
        out.append(f'<text x="{x(n) + 10:.1f}" y="{y(us) + 4:.1f}" fill="{colour}">{system}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def main() -> None:
    """Print the table, or write it and the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--most", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    figures = measure(args.most, args.rounds)
    print(table(figures).text())
    if args.save is not None:
        (args.save / "short_functions.svg").write_text(svg(figures))


if __name__ == "__main__":
    main()
