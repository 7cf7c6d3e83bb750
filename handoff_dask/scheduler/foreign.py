"""Tasks of others that hold resources of the workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from handoff_dask.compat import scheduler as compat
from handoff_dask.placement.engine import Engine
from handoff_dask.wire.offers import claimed_resources

if TYPE_CHECKING:
    from distributed import Scheduler


@dataclass(eq=False)
class Foreign:
    """Counts in the engine what tasks claim that are not of Handoff's runs."""

    scheduler: Scheduler
    engine: Engine
    names: Mapping[str, Mapping[str, tuple[str, ...]]]
    ask: Callable[[], None]

    def __post_init__(self) -> None:
        self._keys: set[Any] = set()

    def __len__(self) -> int:
        return len(self._keys)

    def follow(self, key: Any, finish: str) -> None:
        """Count a task that is being processed now, or is no longer."""
        if finish == "processing":
            claim = compat.claimed_by_task(self.scheduler.tasks[key])
            if claim is not None:
                worker, claimed = claim
                self._keys.add(key)
                amounts = claimed_resources(self.names.get(worker, {}), claimed)
                self.engine.foreign_claimed(key, worker, amounts)
        elif key in self._keys:
            self._keys.discard(key)
            self.engine.foreign_released(key)
            self.ask()
