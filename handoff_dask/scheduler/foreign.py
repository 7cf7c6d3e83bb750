"""Tasks of others that hold resources of the workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from handoff_dask.compat import scheduler as compat
from handoff_dask.placement.engine import Engine
from handoff_dask.wire.offers import claimed_resources

if TYPE_CHECKING:
    from distributed import Scheduler


class Foreign:
    """Counts in the engine what tasks claim that are not of Handoff's runs.

    Parameters
    ----------
    scheduler, engine
        Where the tasks are, and where their claims are counted.
    names
        {address: {resource in lower case: the worker's own names for it}}.
    ask
        Has the engine decide soon.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        engine: Engine,
        names: Mapping[str, Mapping[str, tuple[str, ...]]],
        ask: Callable[[], None],
    ) -> None:
        self._scheduler = scheduler
        self._engine = engine
        self._names = names
        self._ask = ask
        self._keys: set[Any] = set()

    def __len__(self) -> int:
        return len(self._keys)

    def follow(self, key: Any, finish: str) -> None:
        """Count a task that is being processed now, or is no longer."""
        if finish == "processing":
            claim = compat.claimed_by_task(self._scheduler.tasks[key])
            if claim is not None:
                worker, claimed = claim
                self._keys.add(key)
                amounts = claimed_resources(self._names.get(worker, {}), claimed)
                self._engine.foreign_claimed(key, worker, amounts)
        elif key in self._keys:
            self._keys.discard(key)
            self._engine.foreign_released(key)
            self._ask()
