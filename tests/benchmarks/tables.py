"""Tables, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Table"]


@dataclass(frozen=True)
class Table:
    """Cells by row; the first column is text, the others are figures.

    Parameters
    ----------
    head, body
        The cells.
    totals
        How many rows at the end sum the others up.
    title, note
        What stands above it on a page, and below it.
    """

    head: Sequence[str]
    body: Sequence[Sequence[str]]
    totals: int = 0
    title: str = ""
    note: str = ""

    def text(self) -> str:
        """Return it for a terminal."""
        rows = (self.head, *self.body)
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.head))]
        lines = []
        for first, *rest in rows:
            cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
            lines.append("  ".join([first.ljust(widths[0]), *cells]))
        rule = "-" * len(lines[0])
        above, totals = len(lines) - self.totals, lines[len(lines) - self.totals :]
        return "\n".join([lines[0], rule, *lines[1:above], *([rule, *totals] if totals else [])])

    def markdown(self) -> list[str]:
        """Return its lines on a page."""
        above = len(self.body) - self.totals
        totals = [[f"**{cell}**" if cell else "" for cell in row] for row in self.body[above:]]
        return [
            *([f"## {self.title}", ""] if self.title else []),
            _line(self.head),
            "|---" + "|---:" * (len(self.head) - 1) + "|",
            *map(_line, self.body[:above]),
            *map(_line, totals),
            *(["", self.note] if self.note else []),
        ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
