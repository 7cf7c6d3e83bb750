"""Timelines: bars by worker, in lanes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from handoff_dask.widgets import markup
from handoff_dask.widgets.lanes import lay_out
from handoff_dask.widgets.markup import Html, escaped, seconds

#: More bars than this are drawn as how many run at a time.
MOST_BARS = 800
#: So are rows of more lanes than this.
MOST_LANES = 40
#: More workers than this share one row.
MOST_ROWS = 40

_WIDE = 900.0
_AXIS = 22.0
_LANE = 17.0
_ROW_GAP = 7.0
_PROFILE = 34.0
#: Units of the axis for a timeline at least that long (s), and their names.
_UNITS = ((180.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "\N{MICRO SIGN}s"))
#: Steps of a profile.
_STEPS = 300


class Bar(NamedTuple):
    """One span of work: seconds from the start of the timeline."""

    label: str
    start: float
    stop: float
    colour: str
    tooltip: str = ""


def lanes(bars: Sequence[Bar]) -> list[int]:
    """Return a lane for each bar; bars of one lane do not overlap."""
    return lay_out([(bar.start, bar.stop) for bar in bars])


def draw(rows: Mapping[str, Sequence[Bar]], length: float, legend: Mapping[str, str]) -> Html:
    """Return a timeline of `length` seconds, {worker: its bars}, as HTML; nothing without bars.

    Of the legend, {word: colour}, colours that no bar has are left out.
    """
    total = sum(map(len, rows.values()))
    if not total:
        return Html()
    length = max(length, *(bar.stop for bars in rows.values() for bar in bars), 1e-9)
    remarks = []
    if len(rows) > MOST_ROWS:
        names = list(rows)
        rest = [bar for name in names[MOST_ROWS:] for bar in rows[name]]
        remarks.append(f"the last {len(names) - MOST_ROWS:,} workers share the last row")
        rows = {name: rows[name] for name in names[:MOST_ROWS]}
        rows[f"{len(names) - MOST_ROWS:,} other workers"] = rest
    profiles = total > MOST_BARS
    placed = {} if profiles else {name: lanes(bars) for name, bars in rows.items()}
    profiles = profiles or any(max(at, default=0) >= MOST_LANES for at in placed.values())
    if profiles:
        remarks.append(f"{total:,} spans: the height shows how many run at a time")
    left = min(max(markup.width(markup.shorten(n, 28)) for n in rows) + 14, 200.0)
    scale = (_WIDE - left - 12) / length
    parts: list[str] = []
    colours = {bar.colour for bars in rows.values() for bar in bars}
    order = list(dict.fromkeys([*legend.values(), *colours]))
    y = _AXIS
    for name, bars in rows.items():
        high = _PROFILE if profiles else (max(placed[name], default=0) + 1) * _LANE
        parts.append(
            f'<text x="{left - 8:.1f}" y="{y + high / 2 + 4:.1f}" text-anchor="end">'
            f"<title>{escaped(name)}</title>{escaped(markup.shorten(name, 28))}</text>"
        )
        if profiles:
            parts.append(_profile(bars, left, y, scale, length, order))
        else:
            parts += [
                _bar(bar, lane, left, y, scale)
                for bar, lane in zip(bars, placed[name], strict=True)
            ]
        y += high + _ROW_GAP
        parts.append(
            f'<path d="M{left:.1f} {y - _ROW_GAP / 2:.1f}H{_WIDE - 12:.0f}" stroke="currentColor" '
            f'opacity=".12"/>'
        )
    axis = _axis(left, y, scale, length)
    drawing = markup.svg(
        (_WIDE, y), axis + "".join(parts), label=f"timeline of {len(rows)} workers"
    )
    words = {word: colour for word, colour in legend.items() if colour in colours}
    return markup.render("scrolled", drawing=drawing) + markup.legend(words, remarks=remarks)


def _bar(bar: Bar, lane: int, left: float, top: float, scale: float) -> str:
    x, y = left + bar.start * scale, top + lane * _LANE
    wide = max((bar.stop - bar.start) * scale - 0.8, 1.2)
    rect = (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{_LANE - 2:.0f}" rx="2.5" '
        f'fill="{bar.colour}" fill-opacity=".85"><title>{escaped(bar.tooltip)}</title></rect>'
    )
    letters = int((wide - 8) / 6.3)
    if letters < min(len(bar.label), 4):
        return rect
    return (
        f'{rect}<text x="{x + 4:.1f}" y="{y + _LANE - 5.5:.1f}" font-size="10.5" fill="#fff" '
        f'pointer-events="none">{escaped(markup.shorten(bar.label, letters))}</text>'
    )


def _profile(
    bars: Sequence[Bar], left: float, top: float, scale: float, length: float, order: Sequence[str]
) -> str:
    """Return how many bars of each colour there are at a time, on top of each other."""
    step = length / _STEPS
    present = {bar.colour for bar in bars}
    heights = {colour: [0.0] * _STEPS for colour in sorted(present, key=order.index)}
    for bar in bars:
        at = heights[bar.colour]
        first = min(int(bar.start / step), _STEPS - 1)
        last = min(int(bar.stop / step), _STEPS - 1)
        for i in range(first, last + 1):
            at[i] += max(min(bar.stop, (i + 1) * step) - max(bar.start, i * step), 0.0) / step
    most = max((sum(column) for column in zip(*heights.values(), strict=True)), default=0.0)
    if not most:
        return ""
    parts = []
    below = [0.0] * _STEPS
    for colour, column in heights.items():
        above = [a + b for a, b in zip(below, column, strict=True)]
        edges = [
            (
                left + i * step * scale,
                top + _PROFILE * (1 - above[i] / most),
                top + _PROFILE * (1 - below[i] / most),
            )
            for i in range(_STEPS)
            if column[i]
        ]
        parts.append(f'<path d="{_columns(edges, step * scale)}" fill="{colour}"/>')
        below = above
    title = f"<title>at most {most:.3g} at a time</title>"
    return f'<g fill-opacity=".85">{title}{"".join(parts)}</g>'


def _columns(edges: Sequence[tuple[float, float, float]], wide: float) -> str:
    """Return columns, (x, top, bottom) each, as a path; those alike and side by side are one."""
    path: list[str] = []
    start, stop, high, low = 0.0, -1.0, "", ""
    for x, top, bottom in [*edges, (math.inf, 0.0, 0.0)]:
        if abs(x - stop) < wide / 2 and (high, low) == (f"{top:.1f}", f"{bottom:.1f}"):
            stop = x + wide
            continue
        if stop > start:
            path.append(f"M{start:.1f} {low}V{high}H{stop:.1f}V{low}Z")
        start, stop, high, low = x, x + wide, f"{top:.1f}", f"{bottom:.1f}"
    return "".join(path)


def _axis(left: float, bottom: float, scale: float, length: float) -> str:
    unit, name = next((u, n) for u, n in _UNITS if length >= u or u == _UNITS[-1][0])
    parts = []
    for tick in ticks(length):
        x = left + tick * scale
        word = f"{tick / unit:g} {name}" if name != "min" else seconds(tick)
        parts.append(
            f'<path d="M{x:.1f} {_AXIS - 4}V{bottom:.1f}" stroke="currentColor" opacity=".15"/>'
            f'<text x="{x:.1f}" y="13" text-anchor="middle" font-size="11" '
            f'opacity=".75">{escaped(word)}</text>'
        )
    return "".join(parts)


def ticks(length: float, most: int = 8) -> Iterable[float]:
    """Yield round times from 0 to a length, in seconds.

    Examples
    --------
    >>> list(ticks(7.3, 4))
    [0, 2, 4, 6]
    """
    rough = length / most
    power = 10 ** math.floor(math.log10(rough))
    steps = [power * n for n in (1, 2, 5, 10)]
    if rough > 10:
        steps = [10, 15, 30, *(60 * n for n in (1, 2, 5, 10, 15, 30))]
        steps += [3600 * n for n in (1, 2, 3, 6, 12)] + [86400 * 2**n for n in range(40)]
    step = next(step for step in steps if step >= rough * (1 - 1e-9))
    for i in range(int(length / step * (1 + 1e-9)) + 1):
        yield i * step
