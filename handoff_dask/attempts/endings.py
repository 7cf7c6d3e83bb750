"""Claims of attempts that were given up: they last until the attempts' threads have ended.

A thread cannot be stopped. Whatever happens to its function, its run or its client, the worker
stays as busy as before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from handoff_dask.attempts.life import Life
from handoff_dask.placement.engine import Engine


@dataclass(slots=True, eq=False)
class Ending:
    """An attempt that was given up, on its worker."""

    #: Where it runs, and what it claims there.
    worker: str
    cost: Mapping[str, float]
    #: Whether it gave its slot back.
    seceded: bool
    #: Whether it has a claim of its own. An attempt that waited on its worker, behind another of
    #: its cost, has none until that one ends or its worker reports that it runs.
    claims: bool = False
    #: Its function, until the run is forgotten.
    life: Life | None = None
    #: How to describe it.
    whose: str = "from before Handoff was installed"

    def __str__(self) -> str:
        """Say whose attempt it is."""
        return self.whose if self.life is None else self.life.whose


class Endings:
    """The attempts that were given up and whose threads have not ended."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: By key and number of the placement.
        self._endings: dict[tuple[Any, int], Ending] = {}

    def __len__(self) -> int:
        return len(self._endings)

    def begin(self, life: Life, number: int, worker: str, *, seceded: bool, claims: bool) -> None:
        """Give up an attempt whose worker is there; with `claims`, take over its claim.

        `number` is the scheduler's number of the placement; `seceded` says whether it gave its
        slot back.
        """
        self._endings[life.key, number] = Ending(worker, life.cost, seceded, life=life)
        life.late += (worker,)
        if claims:
            self._claim(life.key, number)

    def inherit(
        self, key: Any, number: int, worker: str, cost: Mapping[str, float], *, seceded: bool
    ) -> None:
        """Take over a task that was cancelled before its worker had our plugin."""
        if (key, number) not in self._endings:
            self._endings[key, number] = Ending(worker, cost, seceded)
            self._claim(key, number)

    def _claim(self, key: Any, number: int) -> None:
        ending = self._endings[key, number]
        ending.claims = True
        self._engine.foreign_claimed(
            ("ending", key, number), ending.worker, ending.cost, slot=not ending.seceded
        )

    def pass_on(self, worker: str, cost: Mapping[str, float]) -> None:
        """Give a claim that ends on a worker to an attempt that may have its thread by now."""
        for (key, number), ending in self._endings.items():
            if not ending.claims and ending.worker == worker and ending.cost == cost:
                self._claim(key, number)
                return

    def confirm(self, key: Any, number: int) -> None:
        """Record that an attempt has a thread, whose end its worker will report."""
        if (key, number) in self._endings:
            self._claim(key, number)

    def seceded(self, key: Any, number: int) -> bool:
        """Record that an attempt gave its slot back; return whether it is one of these."""
        ending = self._endings.get((key, number))
        if ending is None:
            return False
        ending.seceded = True
        self._claim(key, number)
        return True

    def over(self, key: Any, number: int) -> bool:
        """Release the claim of an attempt whose thread has ended, or that never had one.

        Its function may use the worker again. Returns whether it is one of these.
        """
        ending = self._endings.pop((key, number), None)
        if ending is None:
            return False
        if ending.claims:
            self.pass_on(ending.worker, ending.cost)
        self._engine.foreign_released(("ending", key, number))
        if ending.life is not None:
            late = list(ending.life.late)
            late.remove(ending.worker)
            ending.life.late = tuple(late)
            if ending.worker not in late:
                self._engine.exclusion_ended(key, ending.worker)
        return True

    def worker_removed(self, worker: str) -> None:
        """Forget what ran on a worker that is gone."""
        for key, number in [at for at, e in self._endings.items() if e.worker == worker]:
            self.over(key, number)

    def forget(self, lives: Collection[Life]) -> None:
        """Forget functions, and remember only how to describe them."""
        if self._endings:
            forgotten = set(map(id, lives))
            for ending in self._endings.values():
                life = ending.life
                if life is not None and id(life) in forgotten:
                    ending.life, ending.whose = None, life.whose

    def counts(self, workers: Collection[str] | None = None) -> Mapping[str, int]:
        """Count them on these workers, or on all, by owner."""
        return Counter(
            str(ending)
            for ending in self._endings.values()
            if workers is None or ending.worker in workers
        )

    def describe(self, workers: Collection[str] | None = None) -> str:
        """Describe them on these workers, or on all; empty if there are none."""
        counts = self.counts(workers)
        if not counts:
            return ""
        whose = (f"{n} function{'s'[: n != 1]} {text}" for text, n in counts.items())
        return f"still ending: {', '.join(whose)}"
