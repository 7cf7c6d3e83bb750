"""The drawing of a DAG as SVG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence

from handoff_dask.errors import DAGError
from handoff_dask.model.function import Function
from handoff_dask.widgets import markup
from handoff_dask.widgets.boxes import Box, Line, Picture, picture
from handoff_dask.widgets.layout import Point, arrange
from handoff_dask.widgets.markup import PLAIN, WRONG, Html, escaped

_PAD = 12.0
_LINE_HEIGHT = 15.0
_SMALL = 11.0
#: Titles are as wide as text of this size: they are bold.
_TITLE = 13.5
#: Width of the narrowest and the widest box, and how many characters fit into the widest.
_NARROW, _BROAD, _LETTERS = 64.0, 240.0, 30
#: Stripes of functions that share a worker.
_STRIPES = (
    "#cc79a7", "#e69f00", "#56b4e9", "#009e73", "#b08d57", "#8c6bd1", "#d55e00", "#7f9f1f",
)  # fmt: skip


def draw(
    functions: Mapping[Hashable, Function],
    codes: Sequence[str],
    error: DAGError | None = None,
    *,
    alone: bool = False,
) -> str:
    """Return a DAG as SVG: see `picture`; `alone` if the drawing is for a file of its own."""
    return _svg(picture(functions, codes, error), alone)


def show(
    title: str,
    functions: Mapping[Hashable, Function],
    codes: Sequence[str],
    error: DAGError | None = None,
) -> str:
    """Return a DAG as HTML: its name, what is wrong with it, and the drawing."""
    inline = sum(f.type == "inline" for f in functions.values())
    summary = markup.count(len(functions), "function") + (f", {inline:,} inline" if inline else "")
    parts = []
    if error is not None:
        parts.append(markup.render("warning", value=escaped(str(error), 1000), colour=WRONG))
    if functions:
        drawn = picture(functions, codes, error)
        parts.append(markup.render("scrolled", drawing=_svg(drawn)))
        if drawn.collapsed:
            summary += "; those with the same code share a box"
        if drawn.hidden:
            summary += f"; the thinnest {drawn.hidden:,} lines are left out"
    return markup.panel(title, summary, *parts)


def _svg(drawn: Picture, alone: bool = False) -> Html:
    texts = [
        [_title(box), *(markup.shorten(line, _LETTERS) for line in box.lines)]
        for box in drawn.boxes
    ]
    wide = max(
        (
            markup.width(line, _TITLE if i == 0 else _SMALL)
            for lines in texts
            for i, line in enumerate(lines)
        ),
        default=0.0,
    )
    rows = max(map(len, texts), default=1)
    places = {box.place: None for box in drawn.boxes if box.place is not None}
    margin = 18 if places else 12  # with room for stripes
    size = min(max(wide + 2 * margin, _NARROW), _BROAD), rows * _LINE_HEIGHT + 13
    layout = arrange(len(texts), list(drawn.lines), size)
    stripes = {place: _STRIPES[i % len(_STRIPES)] for i, place in enumerate(places)}
    parts = [
        _loop(line, layout.centres[a], size)
        if a == b
        else _arrow(line, layout.lines[a, b], layout.downwards, 7.0 * ((b, a) in drawn.lines))
        for (a, b), line in drawn.lines.items()
    ]
    parts += [
        _box(box, lines, centre, size, stripes.get(box.place))
        for box, lines, centre in zip(drawn.boxes, texts, layout.centres, strict=True)
    ]
    legend, legend_size = _legend(drawn)
    height = layout.size[1] + 2 * _PAD + (10 if any(a == b for a, b in drawn.lines) else 0)
    parts = [f'<g transform="translate({_PAD},{_PAD})">', *parts, "</g>"]
    parts.append(f'<g transform="translate({_PAD},{height:.0f})">{legend}</g>')
    whole = max(layout.size[0], legend_size[0]) + 2 * _PAD, height + legend_size[1]
    return markup.svg(whole, "".join(parts), alone=alone, label=f"DAG of {len(drawn.boxes)} boxes")


def _title(box: Box) -> str:
    if box.size == 1:
        return markup.shorten(box.title, _LETTERS - 2)
    times = f" \N{MULTIPLICATION SIGN} {box.size:,}"
    return markup.shorten(box.title, _LETTERS - 2 - len(times)) + times


def _frame(kind: str, wrong: bool) -> str:
    """Return how a box is filled and framed."""
    colour = WRONG if wrong else PLAIN
    if kind == "missing":
        return f'fill="none" stroke="{WRONG}" stroke-width="1.5" stroke-dasharray="2 3"'
    if kind == "inline":
        return (
            f'fill="{colour}" fill-opacity=".04" stroke="{colour}" stroke-dasharray="5 3" '
            f'stroke-width="{1.8 if wrong else 1.2}"'
        )
    return (
        f'fill="{colour}" fill-opacity=".16" stroke="{colour}" stroke-width="{2 if wrong else 1.2}"'
    )


def _box(box: Box, lines: list[str], centre: Point, size: Point, stripe: str | None) -> str:
    x, y = centre[0] - size[0] / 2, centre[1] - size[1] / 2
    radius = size[1] / 2 if box.kind == "inline" and len(lines) == 1 else 6
    frame = _frame(box.kind, box.wrong)
    rect = f'width="{size[0]:.1f}" height="{size[1]:.1f}" rx="{radius:.0f}"'
    parts = [f"<g><title>{escaped(box.tooltip, 1000)}</title>"]
    if box.size > 1:  # a second one shows behind it
        parts.append(f'<rect x="{x + 4:.1f}" y="{y + 4:.1f}" {rect} {frame} stroke-opacity=".5"/>')
    parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" {rect} {frame}/>')
    if stripe is not None:
        parts.append(
            f'<rect x="{x + 5:.1f}" y="{y + 6:.1f}" width="4" height="{size[1] - 12:.1f}" rx="2" '
            f'fill="{stripe}"/>'
        )
    top = centre[1] - (len(lines) - 1) * _LINE_HEIGHT / 2 + 4
    for i, line in enumerate(lines):
        look = 'font-size="12.5" font-weight="600"' if i == 0 else 'font-size="11" opacity=".8"'
        if box.kind == "inline" and i == 0:
            look += ' font-style="italic"'
        parts.append(
            f'<text x="{centre[0]:.1f}" y="{top + i * _LINE_HEIGHT:.1f}" text-anchor="middle" '
            f"{look}>{escaped(line)}</text>"
        )
    return "".join([*parts, "</g>"])


def _arrow(line: Line, points: list[Point], downwards: bool, aside: float) -> str:
    """Return a line through its points, with an arrowhead and its size.

    It is moved aside by that many pixels, to one side or the other by its direction.
    """
    # As if the graph flowed to the right.
    flow = [(y, x) for x, y in points] if downwards else points
    back = flow[-1][0] < flow[0][0]
    flow = [(x, y + (aside if back else -aside)) for x, y in flow]
    path = [flow[0]]
    for (px, py), (qx, qy) in itertools.pairwise(flow):
        path += [((px + qx) / 2, py), ((px + qx) / 2, qy), (qx, qy)]
    return _stroke(line, path, -1 if back else 1, downwards)


def _loop(line: Line, centre: Point, size: Point) -> str:
    """Return the line from a box to itself, below it."""
    x, y = centre[0], centre[1] + size[1] / 2
    path = [(x + 16, y), (x + 16, y + 16), (x - 16, y + 16), (x - 16, y + 1)]
    return _stroke(line, [(y, x) for x, y in path], -1, downwards=True)


def _stroke(line: Line, path: list[Point], direction: int, downwards: bool) -> str:
    """Return a curve along the flow; `path` has its points and its control points."""

    def place(x: float, y: float) -> str:
        return f"{y:.1f} {x:.1f}" if downwards else f"{x:.1f} {y:.1f}"

    colour = f'"{WRONG}"' if line.wrong else '"currentColor"'
    (x, y), foot = path[-1], path[-1][0] - 7 * direction
    curve = f"M{place(*path[0])}C" + " ".join(place(*p) for p in path[1:])
    head = f"M{place(x, y)}L{place(foot, y - 3.5)}L{place(foot, y + 3.5)}Z"
    thick = 1.1 + 0.5 * math.log10(max(line.size, 1)) + 0.7 * line.wrong
    look = f'stroke={colour} stroke-width="{thick:.1f}"'
    parts = [f'<path d="{curve}" fill="none" {look}/><path d="{head}" fill={colour}/>']
    bends = path[:: len(path) - 1] if len(path) == 4 else path[:4:3]
    mx, my = (sum(p[i] for p in bends) / 2 for i in (0, 1))
    if line.transformed:
        cx, cy = (my, mx) if downwards else (mx, my)
        parts.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="3.5" fill={colour}/>')
    if line.size > 1:
        below = direction < 0
        cx, cy = (my + 5, mx + 4) if downwards else (mx, my + (13 if below else -5))
        anchor = "start" if downwards else "middle"
        parts.append(
            f'<text x="{cx:.1f}" y="{cy:.1f}" text-anchor="{anchor}" font-size="10.5">'
            f"{line.size:,}</text>"
        )
    return f'<g opacity="{1 if line.wrong else 0.65}">{"".join(parts)}</g>'


def _legend(drawn: Picture) -> tuple[str, Point]:
    """Return the legend of the looks that occur, and its size."""
    entries: list[tuple[str, str]] = []

    def swatch(kind: str, wrong: bool = False) -> str:
        return f'<rect x="0" y="-10" width="18" height="12" rx="4" {_frame(kind, wrong)}/>'

    kinds = {box.kind for box in drawn.boxes}
    if "inline" in kinds:
        entries.append((swatch("inline"), "inline: runs inside each function that uses it"))
    if any(box.place is not None for box in drawn.boxes):
        stripe = f'<rect x="7" y="-11" width="4" height="14" rx="2" fill="{_STRIPES[0]}"/>'
        entries.append((stripe, "same colour: same worker"))
    if any(line.startswith("@ ") for box in drawn.boxes for line in box.lines[-1:]):
        entries.append(('<text x="3" font-weight="600">@</text>', "pinned"))
    if any(line.transformed for line in drawn.lines.values()):
        entries.append(('<circle cx="9" cy="-4" r="3.5"/>', "transformed argument"))
    if any(box.wrong and box.kind != "missing" for box in drawn.boxes):
        entries.append((swatch("box", True), "error"))
    if "missing" in kinds:
        entries.append((swatch("missing"), "not in the DAG"))
    x, parts = 0.0, []
    for sample, words in entries:
        parts.append(
            f'<g transform="translate({x:.0f},14)">{sample}<text x="24">{words}</text></g>'
        )
        x += 24 + markup.width(words, 11) + 20
    if not entries:
        return "", (0.0, 0.0)
    return f'<g font-size="11" opacity=".85">{"".join(parts)}</g>', (x, 26.0)
