"""What every drawing is made of: escaped text, readable numbers, tables, colours."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup, escape

from handoff_dask.model.amounts import AUTO, Auto
from handoff_dask.model.attempt import Usage
from handoff_dask.widgets import templates

#: Colours that colour-blind people can tell apart, on white and on black.
OUTCOME_COLOURS: dict[str, str] = {
    "ok": "#009e73",
    "stored": "#7fceb9",
    "error": "#d55e00",
    "worker-lost": "#cc79a7",
    "timeout": "#e69f00",
    "out-of-memory": "#0072b2",
    "process-died": "#99336b",
    "cancelled": "#8f959b",
}
STATE_COLOURS = {
    "done": "#009e73",
    "stored": "#7fceb9",
    "running": "#3f97d6",
    "assigned": "#9ccbee",
    "held": "#e69f00",
    "waiting": "#b9bec4",
    "failed": "#d55e00",
    "cancelled": "#8f959b",
}
PLAIN = "#3f97d6"
WRONG = "#d94f3a"

FONT = "font-family:var(--jp-ui-font-family,system-ui,sans-serif)"

#: Characters that XML cannot contain.
_UNSPEAKABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

#: Between the parts of a line.
_SEPARATOR = " \N{MIDDLE DOT} "
_SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))

_DIGITS = re.compile("([0-9]+)")


class Html(Markup):
    """Text that is markup already: it is not escaped again."""

    __slots__ = ()


def plain(value: object) -> str:
    """Return a string as it is, and the repr of anything else."""
    return value if isinstance(value, str) else repr(value)


def shorten(text: str, limit: int) -> str:
    """Shorten a text in its middle, since ids often differ only at their end."""
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail - 1]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - tail :]}"


def escaped(value: object, limit: int = 300) -> Html:
    """Return a value as markup, shortened to `limit` characters.

    Examples
    --------
    >>> print(escaped("<b>"))
    &lt;b&gt;
    >>> print(escaped(Html("<b>")))
    <b>
    """
    if isinstance(value, Html):
        return value
    text = shorten(plain(value), limit)
    return Html(escape(_UNSPEAKABLE.sub("\N{REPLACEMENT CHARACTER}", text)))


#: Templates of the HTML. Values are escaped by `escaped`.
_TEMPLATES = Environment(
    loader=DictLoader(templates.TEMPLATES),
    autoescape=True,
    finalize=escaped,
    undefined=StrictUndefined,
)


def width(text: str, size: float = 12) -> float:
    """Return about how wide a text is drawn (pixels), at a font size (pixels)."""
    units = 0.0
    for character in text:
        if unicodedata.east_asian_width(character) in "WF":
            units += 1.0
        elif character in "iljtfrI.,:;'|!()[] ":
            units += 0.36
        elif character in "mwMW@%":
            units += 0.9
        else:
            units += 0.6
    return units * size


def number(value: float) -> str:
    """Return an amount with separators.

    Examples
    --------
    >>> number(2048.0), number(0.5)
    ('2,048', '0.5')
    """
    return f"{int(value):,}" if float(value).is_integer() else f"{value:,.4g}"


def seconds(value: float) -> str:
    """Return a duration, given in seconds, in readable units.

    Examples
    --------
    >>> seconds(0.0123), seconds(12.345), seconds(4000)
    ('12.3 ms', '12.3 s', '1 h 7 min')
    """
    if value >= 3600:
        hours, minutes = divmod(round(value / 60), 60)
        return f"{hours:,} h {minutes} min"
    if value >= 99.95:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest} s"
    if value >= 1:
        return f"{value:.3g} s"
    if value >= 0.001:
        return f"{value * 1e3:.3g} ms"
    return f"{value * 1e6:.3g} \N{MICRO SIGN}s" if value > 0 else "0 s"


def natural(text: str) -> list[tuple[int, str]]:
    """Return a sort key that puts ``worker-2`` before ``worker-10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in _DIGITS.split(text)]


def size(value: float) -> str:
    """Return a size, given in bytes, in readable units.

    Examples
    --------
    >>> size(28), size(1_234_567), size(1_500_000_000)
    ('28 B', '1.23 MB', '1.5 GB')
    """
    unit, name = next((u, n) for u, n in _SIZES if value >= 0.9995 * u or u == 1)
    return f"{value / unit:.3g} {name}"


def usage(used: Usage) -> str:
    """Return what an attempt used as one line, as far as it is known.

    Examples
    --------
    >>> usage(Usage(cpu_time=2.5, result_bytes=28))
    'cpu time 2.5 s · result 28 B'
    """
    return _SEPARATOR.join(f"{name} {value}" for name, value in used_by(used).items() if value)


def used_by(used: Usage) -> dict[str, str]:
    """Return the readable values of what an attempt used; empty where that is unknown."""
    cpu_time, peak, result = used
    return {
        "cpu time": "" if cpu_time is None else seconds(cpu_time),
        "peak memory": "" if peak is None else f"{number(round(peak, 1))} MB",
        "result": "" if result is None else size(result),
    }


def cost(amounts: Mapping[str, float | Auto]) -> str:
    """Return a cost as one line."""
    return cost_range([amounts])


def cost_range(costs: Iterable[Mapping[str, float | Auto]]) -> str:
    """Return the costs of many functions as one line of ranges.

    Examples
    --------
    >>> cost_range([{"cpu": 1, "memory": AUTO}, {"cpu": 1, "memory": 500}])
    'cpu 1 · memory 500 MB or AUTO'
    """
    amounts: dict[str, set[float | Auto]] = {}
    for each in costs:
        for name, amount in each.items():
            amounts.setdefault(name, set()).add(amount)
    return _SEPARATOR.join(f"{name} {_range(name, values)}" for name, values in amounts.items())


def _range(name: str, amounts: set[float | Auto]) -> str:
    numbers = sorted(amount for amount in amounts if not isinstance(amount, Auto))
    words = []
    if numbers:
        low, high = number(numbers[0]), number(numbers[-1])
        unit = " MB" if name == "memory" else ""
        words.append((low if low == high else f"{low}\N{EN DASH}{high}") + unit)
    if AUTO in amounts:
        words.append(str(AUTO))
    return " or ".join(words)


def names(ids: Sequence[object], shown: int = 3) -> str:
    """Name the first few of many functions."""
    first = ", ".join(shorten(plain(id_), 60) for id_ in ids[:shown])
    more = len(ids) - shown
    return f"{first} and {more:,} more" if more > 0 else first


def count(n: int, what: str) -> str:
    """Return a number of things.

    Examples
    --------
    >>> count(1, "worker"), count(1200, "worker")
    ('1 worker', '1,200 workers')
    """
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows with aligned columns: the first to the left, the others to the right.

    Examples
    --------
    >>> print(aligned([("worker", "cpu"), ("a", "16")]))
    worker  cpu
    a        16
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def render(template: str, /, **values: object) -> Html:
    """Fill in a template; values that are not `Html` are escaped."""
    return Html(_TEMPLATES.get_template(template).render(values))


def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], right: str = "", remark: str = ""
) -> Html:
    """Return a table, with a remark below if there is one.

    `right` has an ``r`` in the place of each column of numbers: these are aligned right.
    """
    looks = {True: "text-align:right;white-space:nowrap", False: "text-align:left"}
    styles = [looks[right[i : i + 1] == "r"] for i in range(len(head))]
    return render("table", head=head, rows=rows, styles=styles, value=remark)


def dot(colour: str, label: str) -> Html:
    """Return a word with its colour before it."""
    return render("dot", colour=colour, label=label)


def legend(colours: Mapping[str, str], title: str = "", remarks: Sequence[str] = ()) -> Html:
    """Return what colours mean: {word: colour}, after a title and before remarks."""
    return render("legend", colours=colours, title=title, remarks=remarks)


def panel(title: object, summary: object, *parts: str) -> Html:
    """Return a block of output: a bold title, a summary beside it, the parts below."""
    return render("panel", title=title, summary=summary, parts=parts, font=FONT)


def note(value: object) -> Html:
    """Return a remark in small print."""
    return render("note", value=escaped(value, 1000))


def svg(size: tuple[float, float], inner: str, *, alone: bool = False, label: str = "") -> Html:
    """Return a drawing of some width and height (pixels), with a description for screen readers.

    `alone` says that it is for a file of its own, and so needs a background.
    """
    wide, high = (f"{x:.0f}" for x in size)
    colour = "color:#24292f;" if alone else ""
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>' if alone else ""
    return Html(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" '
        f'viewBox="0 0 {wide} {high}" role="img" aria-label="{escaped(label)}" '
        f'style="{colour}{FONT}" font-size="12" fill="currentColor">{ground}{inner}</svg>'
    )
