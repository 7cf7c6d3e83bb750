"""Tasks of others that hold resources of the workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from handoff_dask.compat import scheduler as compat
from handoff_dask.wire.offers import claimed_resources

if TYPE_CHECKING:
    from handoff_dask.scheduler.plugin import HandoffPlugin


class Foreign:
    """Counts in a plugin's engine what tasks claim that are not of its runs."""

    def __init__(self, plugin: HandoffPlugin) -> None:
        self.plugin = plugin
        self._keys: set[Any] = set()

    def __len__(self) -> int:
        return len(self._keys)

    def follow(self, key: Any, finish: str) -> None:
        """Take in that a task starts or stops being processed."""
        if finish == "processing":
            claim = compat.claimed_by_task(self.plugin.scheduler.tasks[key])
            if claim is not None:
                worker, claimed = claim
                self._keys.add(key)
                names = self.plugin.registry.names.get(worker, {})
                amounts = claimed_resources(names, claimed)
                self.plugin.engine.foreign_claimed(key, worker, amounts)
        elif key in self._keys:
            self._keys.discard(key)
            self.plugin.engine.foreign_released(key)
            self.plugin.ask()
