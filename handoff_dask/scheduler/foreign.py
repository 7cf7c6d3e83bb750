"""Tasks of others that hold resources of the workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
    _keys: set[Any] = field(default_factory=set, init=False)

    def __len__(self) -> int:
        return len(self._keys)

    def follow(self, key: Any, finish: str) -> None:
        """Count a task that is being processed now, or is no longer."""
        if finish == "processing":
            ts = self.scheduler.tasks[key]
            if ts.resource_restrictions and ts.processing_on:
                self._keys.add(key)
                worker = ts.processing_on.address
                amounts = claimed_resources(self.names.get(worker, {}), ts.resource_restrictions)
                self.engine.foreign_claimed(key, worker, amounts)
        elif key in self._keys:
            self._keys.discard(key)
            self.engine.foreign_released(key)
            self.ask()
