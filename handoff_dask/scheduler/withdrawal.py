"""What is left of declarations after uninstalling: what plain tasks still claim."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distributed import SchedulerPlugin

from handoff_dask.compat import scheduler as compat
from handoff_dask.wire.offers import Declaration

if TYPE_CHECKING:
    from distributed import Scheduler

#: States of tasks that run, or will.
_PENDING = ("waiting", "no-worker", "queued", "processing")


class Withdrawal(SchedulerPlugin):
    """Has workers take declarations back, each as soon as no task claims it.

    Removing a name that a task still claims would corrupt the accounting of the scheduler or the
    worker. So this stays on the scheduler until every declaration is gone.
    """

    name = "handoff-withdrawal"

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        #: By worker and name.
        self.leaving: dict[str, dict[str, Declaration]] = {}
        #: The tasks that claim each name. `add` looks up those that exist already.
        self._claims: defaultdict[str, set[Any]] = defaultdict(set)
        self._asked = False

    @classmethod
    def of(cls, scheduler: Scheduler) -> Any:
        """Return the one that is under way on a scheduler, if any."""
        return scheduler.plugins.get(cls.name)

    def add(self, declarations: Mapping[str, Mapping[str, Declaration]]) -> None:
        """Have these taken back, by worker and name."""
        for worker, ours in declarations.items():
            self.leaving.setdefault(worker, {}).update(ours)
        for key, ts in self._scheduler.tasks.items():
            self._follow(key, ts.state)

    def keep(self, worker: str, names: Mapping[str, Declaration]) -> None:
        """Let a worker keep what it has declared anew."""
        for name in names:
            self.leaving.get(worker, {}).pop(name, None)

    def take_back(self, number: int | None = None) -> set[str]:
        """Take back what no task claims; return the workers that were told, with that number."""
        self._asked = False
        notified = set()
        for worker, names in list(self.leaving.items()):
            gone = {n: d for n, d in names.items() if self._may_go(worker, n, d)}
            for name in gone:
                del names[name]
            if not names:
                del self.leaving[worker]
            ws = self._scheduler.workers.get(worker)
            # What somebody else has declared since is not ours to take back.
            gone = {n: d for n, d in gone.items() if ws and d.stands(ws.resources, n)}
            for name, declaration in gone.items():
                compat.undeclare(self._scheduler, worker, name, declaration.before)
            if gone:
                # On the stream: after the tasks that the worker got before.
                order = {"op": "handoff_take_back", "names": gone, "number": number}
                self._scheduler.worker_send(worker, order)
                notified.add(worker)
        if not self.leaving and self.name in self._scheduler.plugins:
            self._scheduler.remove_plugin(self.name)
        return notified

    def _may_go(self, worker: str, name: str, declaration: Declaration) -> bool:
        before = declaration.before
        more = before is not None and before >= declaration.amount
        return more or not self._claims.get(name)

    def _follow(self, key: Any, state: str) -> None:
        """Record which names a task claims."""
        if state in _PENDING:
            for name in self._scheduler.tasks[key].resource_restrictions or ():
                self._claims[name].add(key)
            return
        for name, keys in list(self._claims.items()):
            keys.discard(key)
            if not keys:
                del self._claims[name]
                if not self._asked:
                    # Not within a transition, which may lead to another claim.
                    self._asked = True
                    asyncio.get_running_loop().call_soon(self.take_back)

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Follow a task from one state to the next."""
        self._follow(key, finish)

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """Forget a worker."""
        if self.leaving.pop(worker, None):
            self.take_back()
