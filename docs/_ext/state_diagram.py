"""Draws a table of transitions as SVG: ``{(state, event): next state}``.

States stand in a column, in the order of the table. Each arrow leaves its state beside the name of
the event: downwards on the right, back up on the left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from handoff_dask.widgets import markup

#: Pixels: width of a state, height of a line of text, space between states and between arrows.
BOX, LINE, GAP, LANE = 150, 18, 26, 12
#: An event that leads to one state from this many others is written into that state's box.
COMMON = 4
STYLE = """
.life { --ink: #1f2933; --soft: #68737d; --line: #b6bec6; --box: #f5f7f9; --go: #0072b2;
 --back: #d55e00; font: 12px system-ui, "Segoe UI", Helvetica, Arial, sans-serif;
 width: 100%; height: auto; }
@media (prefers-color-scheme: dark) { .life { --ink: #e6eaee; --soft: #a0a9b2; --line: #55606a;
 --box: #1d2226; --go: #56b4e9; --back: #e69f00; } }
body[data-theme="light"] .life { --ink: #1f2933; --soft: #68737d; --line: #b6bec6; --box: #f5f7f9;
 --go: #0072b2; --back: #d55e00; }
body[data-theme="dark"] .life { --ink: #e6eaee; --soft: #a0a9b2; --line: #55606a; --box: #1d2226;
 --go: #56b4e9; --back: #e69f00; }
.life text { fill: var(--ink); } .life .name { font-size: 14px; font-weight: 600; }
.life .soft { fill: var(--soft); font-size: 11px; }
.life rect { fill: var(--box); stroke: var(--line); stroke-width: 1.2; }
.life path { fill: none; stroke: var(--go); stroke-width: 1.4; marker-end: url(#life-go); }
.life .back path { stroke: var(--back); marker-end: url(#life-back); }
.life marker path { fill: var(--go); stroke: none; marker-end: none; }
.life #life-back path { fill: var(--back); }
"""


class Arrow(NamedTuple):
    """The events that lead from one state to another, by their places in the column."""

    start: int
    end: int
    events: str


def drawing(transitions: Mapping[tuple[str, str], str]) -> str:
    """Return the SVG of a table of transitions."""
    states = list(dict.fromkeys([*(s for s, _ in transitions), *transitions.values()]))
    arrows, notes = _split(transitions, states)
    sides = [a for a in arrows if a.end > a.start], [a for a in arrows if a.end < a.start]
    tops, heights = _rows(states, sides, notes)
    lanes = [_lanes(side) for side in sides]
    labels = [max((markup.width(a.events) for a in side), default=0) + 24 for side in sides]
    left = labels[1] + (max(lanes[1], default=0) + 1) * LANE
    right = labels[0] + (max(lanes[0], default=0) + 1) * LANE
    noted = max((markup.width(n, 11) for lines in notes.values() for n in lines), default=0)
    box = max(BOX, noted + 24)
    parts = []
    for back, (side, numbers) in enumerate(zip(sides, lanes, strict=True)):
        ports = _ports(side, tops, heights)
        edge, step = (left, -1) if back else (left + box, 1)
        paths = []
        for (start, end, events), lane, (out, into) in zip(side, numbers, ports, strict=True):
            far = edge + step * (labels[back] + lane * LANE)
            anchor = "end" if back else "start"
            paths.append(
                f'<path d="M{edge} {out:g}H{far:g}V{into:g}H{edge + step * 2}">'
                f"<title>{markup.escaped(f'{states[start]}: {events} → {states[end]}')}</title>"
                f'</path><text x="{edge + step * 8}" y="{out - 3:g}" text-anchor="{anchor}">'
                f"{markup.escaped(events)}</text>"
            )
        parts.append(f'<g class="{"back" if back else "on"}">{"".join(paths)}</g>')
    for state, top, height in zip(states, tops, heights, strict=True):
        middle = left + box / 2
        lines = notes.get(state, ())
        y = top + height / 2 - len(lines) * LINE / 2 + 5
        parts.append(
            f'<rect x="{left:g}" y="{top:g}" width="{box:g}" height="{height:g}" rx="7"/>'
            f'<text class="name" x="{middle:g}" y="{y:g}" text-anchor="middle">'
            f"{markup.escaped(state)}</text>"
        )
        for i, line in enumerate(lines, 1):
            parts.append(
                f'<text class="soft" x="{middle:g}" y="{y + i * LINE:g}" text-anchor="middle">'
                f"{markup.escaped(line)}</text>"
            )
    tips = "".join(
        f'<marker id="life-{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 10 5 0 10z"/></marker>'
        for name in ("go", "back")
    )
    size = left + box + right, tops[-1] + heights[-1] + 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="life" viewBox="0 0 {size[0]:g} '
        f'{size[1]:g}" style="max-width:{size[0]:g}px" role="img" '
        f'aria-label="States and transitions"><style>{STYLE}</style><defs>{tips}</defs>'
        f"{''.join(parts)}</svg>"
    )


def _split(
    transitions: Mapping[tuple[str, str], str], states: list[str]
) -> tuple[list[Arrow], dict[str, list[str]]]:
    """Return the arrows, and what is written into the boxes instead, by state."""
    sources = defaultdict(list)
    for (state, event), after in transitions.items():
        if after != state:
            sources[event, after].append(state)
    notes: dict[str, list[str]] = defaultdict(list)
    events: dict[tuple[int, int], list[str]] = defaultdict(list)
    for (event, after), starts in sources.items():
        if len(starts) >= COMMON:
            notes[after] += _folded(f"{event}: from", starts)
        else:
            for state in starts:
                events[states.index(state), states.index(after)].append(event)
    for state in states:
        if same := [e for (before, e), after in transitions.items() if before == after == state]:
            notes[state] += _folded("stays:", same)
    return [Arrow(a, b, ", ".join(e)) for (a, b), e in events.items()], notes


def _folded(head: str, names: Iterable[str]) -> list[str]:
    """Return names after a heading, in lines that fit a box."""
    lines = [head]
    for name in names:
        if len(lines[-1]) + len(name) > 42:
            lines.append("")
        lines[-1] = f"{lines[-1]} {name},".strip()
    lines[-1] = lines[-1].removesuffix(",")
    return lines


def _rows(
    states: list[str],
    sides: tuple[list[Arrow], list[Arrow]],
    notes: Mapping[str, list[str]],
) -> tuple[list[float], list[float]]:
    """Return where each box begins, and its height."""
    tops, heights, top = [], [], 2.0
    for i, state in enumerate(states):
        ends = max(sum((a.start == i) + (a.end == i) for a in side) for side in sides)
        height = max(ends * LINE + 10, (1 + len(notes.get(state, ()))) * LINE + 14)
        tops.append(top)
        heights.append(float(height))
        top += height + GAP
    return tops, heights


def _ports(side: list[Arrow], tops: list[float], heights: list[float]) -> list[tuple[float, float]]:
    """Return at what height each arrow leaves its state and enters the other."""
    places: dict[tuple[Arrow, bool], float] = {}
    for state, (top, height) in enumerate(zip(tops, heights, strict=True)):
        # What comes from above enters above what leaves downwards, and the other way round.
        ends = [(a, True) for a in side if a.end == state]
        ends += [(a, False) for a in side if a.start == state]
        ends.sort(key=lambda end: (end[0].start if end[1] else end[0].end) - state)
        first = top + (height - (len(ends) - 1) * LINE) / 2
        places.update({end: first + i * LINE for i, end in enumerate(ends)})
    return [(places[arrow, False], places[arrow, True]) for arrow in side]


def _lanes(side: list[Arrow]) -> list[int]:
    """Return a lane for each arrow, the short ones inside, so that none lies on another."""
    taken: list[list[tuple[int, int]]] = [[] for _ in side]
    lanes: dict[Arrow, int] = {}
    for arrow in sorted(side, key=lambda a: abs(a.end - a.start)):
        low, high = sorted((arrow.start, arrow.end))
        lanes[arrow] = next(
            lane
            for lane, spans in enumerate(taken)
            if all(high < other_low or low > other_high for other_low, other_high in spans)
        )
        taken[lanes[arrow]].append((low, high))
    return [lanes[arrow] for arrow in side]
