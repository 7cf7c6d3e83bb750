from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import Decision, FunctionSpec, Place, WorkerSpec


class Driver:
    """An engine with one run, spoken to tersely."""

    def __init__(
        self,
        workers: Mapping[str, Mapping[str, float]],
        *,
        slots: int = 8,
        run: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.engine = Engine(**options)
        self.now = 0.0
        self.engine.run_opened("run", **(run or {}))
        for name, capacity in workers.items():
            self.join(name, capacity, slots=slots)

    def join(self, name: str, capacity: Mapping[str, float], *, slots: int = 8) -> None:
        self.engine.worker_added(WorkerSpec(name, f"{name}-name", "host", capacity, slots))

    def add(self, costs: Mapping[Any, Mapping[str, float]], **options: Any) -> None:
        """Add functions that are ready."""
        self.engine.functions_added(
            "run", [FunctionSpec(k, c, **options) for k, c in costs.items()]
        )
        self.ready(*costs)

    def specs(self, *specs: FunctionSpec) -> None:
        """Add functions that are not ready."""
        self.engine.functions_added("run", specs)

    def ready(self, *keys: Any, **options: Any) -> None:
        """Let functions become ready; without a total, each of their inputs lies on one worker."""
        if "inputs" in options:
            options.setdefault("input_total", sum(options["inputs"].values()))
        for key in keys:
            self.engine.function_ready(key, self.now, **options)

    def poll(self, *, after: float = 0.0) -> list[Decision]:
        self.now += after
        return self.engine.poll(self.now)

    def places(self, *, after: float = 0.0) -> dict[Any, str]:
        """Poll; return where what was placed with a claim goes."""
        return {
            d.key: d.worker for d in self.poll(after=after) if isinstance(d, Place) and not d.ahead
        }

    def count(self) -> tuple[int, int, int]:
        """Return how many functions run, wait ahead, and are held."""
        keys, ask = self.engine._functions, self.engine.questions
        ahead = sum(map(ask.waits_ahead, keys))
        placed = sum(function.worker is not None for function in keys.values())
        return placed - ahead, ahead, sum(ask.why(key) is not None for key in keys)

    def end(self, *keys: Any, after: float = 0.0, duration: float | None = None) -> None:
        self.now += after
        for key in keys:
            self.engine.attempt_ended(key, self.now, duration=duration, done=True)


@pytest.fixture
def drive() -> Callable[..., Driver]:
    return Driver
