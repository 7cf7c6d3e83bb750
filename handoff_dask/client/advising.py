"""What the functions of a run should declare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from handoff_dask.learning.advice import CodeAdvice
from handoff_dask.widgets import markup, reports


@dataclass(frozen=True)
class Advice:
    """What the functions of a run declared, used and should declare, by code.

    Printed, it is a table.

    Attributes
    ----------
    rows : tuple
        A :class:`CodeAdvice` for each code and cost.
    makespan, advised_makespan : float or None
        How long the run takes with the costs as declared and as advised, by :func:`plan` (s). None
        if that was not computed.
    """

    rows: tuple[CodeAdvice, ...]
    makespan: float | None = None
    advised_makespan: float | None = None

    def __str__(self) -> str:
        if not self.rows:
            return "nothing was measured"
        return "\n".join(
            filter(None, [markup.aligned(reports.advice_table(self.rows)), self._saving])
        )

    def _repr_html_(self) -> str:
        return reports.advice(self.rows, self._saving)

    @property
    def _saving(self) -> str:
        if self.makespan is None or self.advised_makespan is None:
            return ""
        before, after = map(markup.seconds, (self.makespan, self.advised_makespan))
        return (
            f"predicted makespan: {before} with the declared costs, {after} with the advised ones"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it in a form that JSON can hold."""
        return {
            "codes": [row.as_dict() for row in self.rows],
            "makespan": self.makespan,
            "advised_makespan": self.advised_makespan,
        }
