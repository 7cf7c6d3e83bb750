"""Why functions are held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from handoff_dask.attempts.endings import Endings
from handoff_dask.attempts.states import Asking
from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import Waiting
from handoff_dask.scheduler.inquiries import Inquiries
from handoff_dask.scheduler.records import RunRecord, UnitRecord


@dataclass(eq=False)
class Reasons:
    """Says what held functions wait for."""

    engine: Engine
    endings: Endings
    inquiries: Inquiries
    functions: Mapping[Any, UnitRecord]

    def why(self, record: UnitRecord) -> Waiting:
        """Say what a held function waits for, and what is still ending where it waits."""
        if isinstance(record.state, Asking):
            whom = self.inquiries.whom(record.state.lost)
            return Waiting(f"asking {whom} what had started")
        return self._completed(self.engine.questions.why(record.key) or Waiting("next"))

    def holds(self, run: RunRecord) -> Sequence[tuple[int, Mapping[str, float], Waiting]]:
        """Say what functions of a run are held for: how many, what they cost, and why."""
        # The engine does not know those whose last attempt is being asked about.
        return [
            (
                sum(self.functions[key].size for key in keys),
                dict(self.functions[keys[0]].cost),
                self._completed(why),
            )
            for keys, why in self.engine.questions.holds(run.spec.run_id)
        ] + [
            (record.size, dict(record.cost), self.why(record))
            for record in run.units
            if isinstance(record.state, Asking) and record.state.ready
        ]

    def _completed(self, why: Waiting) -> Waiting:
        """Add what is still ending on the workers that a function waits for."""
        if why.reason == "next" or not why.workers:
            return why
        return replace(why, ending=self.endings.describe(why.workers))
