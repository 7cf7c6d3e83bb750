"""The suite's table, its page and its plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from statistics import median

from tests.benchmarks.tables import Table

__all__ = ["GOAL", "Figures", "markdown", "svg", "table"]

#: Seconds that the best schedule known takes.
GOAL = 5.0

#: What each column is, in order; those that nobody measured are left out.
COLUMNS = {
    "plain": "plain Dask",
    "ray": "Ray",
    "first": "Handoff, first run",
    "second": "Handoff, second run",
    "plan": "plan()",
}

#: By column: colours that stay apart for colour-blind readers.
_COLOURS = {"plain": "#767676", "ray": "#E69F00", "first": "#56B4E9", "second": "#0072B2"}


@dataclass
class Figures:
    """The makespans (s) of a workload, by column, one per round; and how late functions woke."""

    workload: str
    size: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    late: list[float] = field(default_factory=list)

    def ratio(self, column: str) -> float | None:
        """Return the median makespan of a column over the best known one."""
        found = self.seconds.get(column)
        return median(found) / GOAL if found else None

    @property
    def error(self) -> float | None:
        """How far the plan is off what then happened: -0.02 is 2 % too short."""
        planned, happened = self.ratio("plan"), self.ratio("second")
        return planned / happened - 1 if planned and happened else None


def table(figures: Sequence[Figures]) -> Table:
    """Return the table: a row per workload, the geometric mean and the worst."""
    columns = [c for c in COLUMNS if any(f.seconds.get(c) for f in figures)]
    head = ["workload", *(COLUMNS[c] for c in columns)]
    body = [[f"{f.workload} ({f.size})", *map(_number, map(f.ratio, columns))] for f in figures]
    ratios = {c: [r for f in figures if (r := f.ratio(c)) is not None] for c in columns}
    body.append(["geometric mean", *(_number(_geometric_mean(ratios[c])) for c in columns)])
    body.append(["worst", *(_number(max(ratios[c])) for c in columns)])
    errors = [f.error for f in figures]
    known = [e for e in errors if e is not None]
    if known:
        head.append("plan() off by")
        mean = sum(map(abs, known)) / len(known)
        worst = max(known, key=abs)
        for row, error in zip(body, [*errors, None, worst], strict=True):
            # Rounded first: there is no -0.0 %.
            row.append("" if error is None else f"{round(error, 3) + 0.0:+.1%}")
        body[-2][-1] = f"{mean:.1%}"
    return Table(head, body, totals=2)


def _number(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.3f}"


def _geometric_mean(ratios: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios))


def markdown(
    figures: Sequence[Figures], facts: Mapping[str, str], plot: str, others: Sequence[Table] = ()
) -> str:
    """Return the page: the table, what it means and how it was made.

    Parameters
    ----------
    figures
        What was measured.
    facts
        Where and how, a line each.
    plot
        File name of the plot, beside the page.
    others
        Tables of other things measured in the same run.
    """
    lines = [
        "# Benchmarks",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        "",
        "## Makespan",
        "",
        "Makespan divided by that of the best known schedule: 1 equals it, lower is better.",
        "",
        f"![Makespan over the best known, per workload]({plot})",
        "",
        *table(figures).markdown(),
        "",
        "Functions only sleep, so that nothing but placement is measured. There are four worker",
        "processes of different capacity. The makespan is measured by the functions' own clocks,",
        "from the first start to the last stop. The best known schedule is the best of 200",
        "perturbed list schedules that know every duration; durations are scaled so that it takes",
        f"{GOAL:g} s. Each figure is the median of the rounds.",
        "",
        "- plain Dask: the graph that `execute()` sends, with the same `resources` annotations.",
        "- Ray: the same requests, one Ray node per worker; memory and gpu are custom resources.",
        "- first run: on a new cluster, which learns durations only as functions end.",
        "- second run: the same DAG again, on the same cluster.",
        "- `plan()`: its prediction from the durations and 2 ms of overhead, and how far it is off",
        "  the second run.",
        "",
    ]
    for other in others:
        lines += [*other.markdown(), ""]
    lines += [
        "## A short function, against the number of functions",
        "",
        "![Microseconds a function against the number of functions](short_functions.svg)",
        "",
        "Independent functions that add one, as above; made with",
        "`python tests/benchmarks/bench_scale.py --save docs/benchmarks`.",
        "",
    ]
    return "\n".join(lines)


def svg(figures: Sequence[Figures]) -> str:
    """Return a dot plot: a row per workload and one for the geometric mean, a dot per column."""
    columns = [c for c in _COLOURS if any(f.seconds.get(c) for f in figures)]
    rows = [(f.workload, {c: r for c in columns if (r := f.ratio(c)) is not None}) for f in figures]
    means = {c: [ratios[c] for _, ratios in rows if c in ratios] for c in columns}
    rows.append(("geometric mean", {c: _geometric_mean(means[c]) for c in columns}))
    top = max(max(ratios.values()) for _, ratios in rows)
    low = min(1.0, *(min(ratios.values()) for _, ratios in rows))
    first, last = math.floor(low * 10) / 10, math.ceil(top * 10 + 0.2) / 10
    left, right, above, step, width = 260, 30, 64, 32, 900
    bottom = above + step * len(rows)

    def x(ratio: float) -> float:
        return left + (ratio - first) / (last - first) * (width - left - right)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 56}"'
        f' width="{width}" height="{bottom + 56}" font-family="DejaVu Sans, Arial, sans-serif"'
        ' font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for i, column in enumerate(columns):
        at = left + i * (width - left - right) / len(columns)
        out.append(f'<circle cx="{at + 6:.1f}" cy="26" r="6" fill="{_COLOURS[column]}"/>')
        out.append(f'<text x="{at + 18:.1f}" y="30.5" fill="#222">{COLUMNS[column]}</text>')
    for tenth in range(round(first * 10), round(last * 10) + 1):
        at = x(tenth / 10)
        best = tenth == 10
        out.append(
            f'<line x1="{at:.1f}" y1="{above - 8}" x2="{at:.1f}" y2="{bottom}"'
            f' stroke="{"#222" if best else "#ddd"}" stroke-width="{1.5 if best else 1}"/>'
        )
        label = f"{tenth / 10:.1f}"
        out.append(f'<text x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>')
    out.append(
        f'<text x="{(left + width - right) / 2}" y="{bottom + 42}" text-anchor="middle"'
        ' fill="#222">makespan over the best schedule known</text>'
    )
    for i, (name, ratios) in enumerate(rows):
        y = above + step * i + step / 2
        total = i == len(rows) - 1
        if total:
            out.append(
                f'<line x1="12" y1="{y - step / 2}" x2="{width - right}" y2="{y - step / 2}"'
                ' stroke="#999"/>'
            )
        weight = ' font-weight="bold"' if total else ""
        out.append(
            f'<text x="{left - 16}" y="{y + 4.5}" text-anchor="end"{weight}>{escape(name)}</text>'
        )
        ends = sorted(ratios.values())
        out.append(
            f'<line x1="{x(ends[0]):.1f}" y1="{y}" x2="{x(ends[-1]):.1f}" y2="{y}"'
            ' stroke="#bbb" stroke-width="2"/>'
        )
        for j, (column, ratio) in enumerate(ratios.items()):
            # One above the other, so that none hides behind another.
            at = y + 4 * (j - (len(ratios) - 1) / 2)
            title = f"{name}, {COLUMNS[column]}: {ratio:.3f}"
            out.append(
                f'<circle cx="{x(ratio):.1f}" cy="{at:.1f}" r="5.5" fill="{_COLOURS[column]}"'
                f' stroke="white"><title>{escape(title)}</title></circle>'
            )
    out.append("</svg>")
    return "\n".join(out) + "\n"
