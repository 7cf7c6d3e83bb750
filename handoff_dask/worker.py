"""What lives on each worker: its capabilities, found and declared."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from dask.system import CPU_COUNT
from distributed import Status
from distributed.system import MEMORY_LIMIT

from handoff_dask import _bootstrap, _compat
from handoff_dask._compat import TaskEnds
from handoff_dask._version import __version__
from handoff_dask.devices import Devices, visible_gpus
from handoff_dask.fetches import Fetches
from handoff_dask.model.amounts import as_numbers
from handoff_dask.model.validation import cost_problem
from handoff_dask.nanny import VARIABLE, HandoffNannyPlugin
from handoff_dask.shipping import Shipped
from handoff_dask.starts import Starts
from handoff_dask.task import TOPIC

if TYPE_CHECKING:
    from distributed import Scheduler, Worker

logger = logging.getLogger(__name__)

#: Bytes in the unit of ``memory``.
MB = 10**6
#: Seconds that a worker that closes waits for its last word to reach the scheduler.
PATIENCE = 5.0


class HandoffWorkerPlugin(Shipped, TaskEnds):
    """Declares what a worker offers, as Dask resources, and tells the scheduler's plugin.

    A worker that declares no ``cpu``, ``memory`` or ``gpu`` offers its threads, its memory limit in
    MB (without a limit, its share of the host's memory by threads) and the GPUs that it may see.
    What an operator declared stays.
    """

    async def setup(self, worker: Worker) -> None:
        """Declare what the worker has and its operator did not declare."""
        self.worker = worker
        self.devices = Devices()
        self.fetches = Fetches(worker)
        #: What the worker declared without us.
        self._before = dict(worker.state.total_resources)
        worker.handlers.update(self.handlers)
        self.filter_log()
        worker.stream_handlers["handoff-withdraw"] = self.withdraw_one
        path = await self._starts_path()
        if worker.plugins.get(self.name) is not self:
            return  # replaced: a worker that joins may get the plugin twice
        # A thread runs one function and may have 128 handed ahead: see the placement engine.
        self.starts = Starts(1024 + 256 * worker.state.nthreads, path, worker.id)
        declared = {name.lower() for name in self._before}
        found = find_capabilities(worker)
        await self.declare({n: v for n, v in found.items() if n not in declared})
        self._report_given_up()

    @property
    def handlers(self) -> dict[str, Callable[..., Any]]:
        """What the scheduler may ask of a worker."""
        return {
            "handoff_declare": self.declare,
            "handoff_restore": self.restore,
            "handoff_withdraw": self.withdraw,
            **self.fetches.handlers,
        }

    async def declare(self, capabilities: Mapping[str, float]) -> dict[str, float]:
        """Declare resources, under the names that the worker has for them if it has any."""
        own = {name.lower(): name for name in self.worker.state.total_resources}
        await self.worker.set_resources(
            **{own.get(name.lower(), name.lower()): value for name, value in capabilities.items()}
        )
        total = dict(self.worker.state.total_resources)
        self.devices.declare(sum(v for n, v in total.items() if n.lower() == "gpu"))
        await self.worker.scheduler.handoff_capabilities(
            worker=self.worker.contact_address, capabilities=total, version=__version__
        )
        return total

    async def restore(self) -> dict[str, float]:
        """Take back what was declared on our behalf; return what the worker declares then."""
        _compat.restore_resources(self.worker, self._before)
        return self._before

    async def _starts_path(self) -> str | None:
        """Return the file that the nanny, if there is one, reads should this process be killed."""
        worker = self.worker
        path = None
        if worker.nanny:
            path = os.environ.get(VARIABLE)
            if path is None:
                # An RPC raises what the other side raised.
                with suppress(Exception):
                    asking = worker.rpc(str(worker.nanny)).handoff_starts()
                    path = await asyncio.wait_for(asking, PATIENCE)
        return path

    async def withdraw(self, calls: list[tuple[Any, int]]) -> list[tuple[int, float | None, bool]]:
        """Take placements back: of the calls (key, placement), those not started never will be.

        Returns
        -------
        list
            (placement, start in s since epoch, whether it still has a thread) of those that were
            started, or have a thread all the same: they were about to. When that is free, the
            scheduler is told.
        """
        assert self.starts is not None
        started = self.starts.withdraw(number for _, number in calls)
        found = []
        for key, number in calls:
            busy = self.busy(key)
            if busy:
                self.at_end(key, partial(self._over, key, number))
            if busy or number in started:
                found.append((number, started.get(number), busy))
        return found

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """Tell the scheduler that a function gave up its thread, itself or because it waits."""
        super().transition(key, start, finish, **kwargs)
        self.fetches.follow(key, start, finish)
        if finish == "long-running":
            ts = self.worker.state.tasks[key]
            if "handoff" in (ts.annotations or {}):
                message = {"action": "attempt-seceded", "key": key, "run_id": ts.run_id}
                self.worker.log_event(TOPIC, message)

    def withdraw_one(self, number: int) -> None:
        """Take a placement back that comes next on the same stream."""
        if self.starts is not None:
            self.starts.withdraw([number])

    def _report_given_up(self) -> None:
        """Report what still has a thread though its task was cancelled before we came."""
        worker = self.worker
        for ts in chain(worker.state.executing, worker.state.long_running):
            if ts.state == "cancelled":
                message = {
                    "action": "attempt-ending",
                    "key": ts.key,
                    "run_id": ts.run_id,
                    "worker": worker.contact_address,
                    "claims": dict(ts.resource_restrictions or {}),
                    "seceded": ts in worker.state.long_running,
                }
                # On the stream on which its end is reported, too: in this order.
                worker.log_event(TOPIC, message)
                self.at_end(ts.key, partial(self._over, ts.key, ts.run_id))

    def _over(self, key: Any, number: int) -> None:
        self.worker.log_event(TOPIC, {"action": "attempt-over", "key": key, "run_id": number})

    async def teardown(self, worker: Worker) -> None:
        """Leave the worker."""
        for name in self.handlers:
            worker.handlers.pop(name, None)
        self.unfilter_log()
        self.fetches.close()
        worker.stream_handlers.pop("handoff-withdraw", None)
        if self.starts is not None:
            if worker.status != Status.running:
                await self._last_word(self.starts)
            self.starts.close()
            self.starts = None
        _compat.restore_resources(worker, self._before)
        _bootstrap.remove()

    async def _last_word(self, starts: Starts) -> None:
        """Tell, when the worker closes, what it has started; it starts nothing any more."""
        worker = self.worker
        started = list(starts.seal().items())
        with suppress(Exception):  # an RPC raises what the other side raised
            await asyncio.wait_for(
                worker.scheduler.handoff_gone(worker=worker.contact_address, started=started),
                PATIENCE,
            )


async def send_plugins(scheduler: Scheduler) -> None:
    """Have our plugins on all workers and nannies, also on those that join later."""
    # Nannies first: workers turn to theirs.
    for register, plugin in (
        (scheduler.register_nanny_plugin, HandoffNannyPlugin()),
        (scheduler.register_worker_plugin, HandoffWorkerPlugin()),
    ):
        try:
            await register(None, pickle.dumps(plugin), name=plugin.name, idempotent=True)
        except OSError:
            # One went away meanwhile. It is on its way to the others, and those that come later
            # are told when they join.
            logger.info("Not everybody got %s", type(plugin).__name__, exc_info=True)


async def take_plugins_back(scheduler: Scheduler) -> None:
    """Have our plugins nowhere any more."""
    await scheduler.unregister_worker_plugin(None, name=HandoffWorkerPlugin.name)
    await scheduler.unregister_nanny_plugin(None, name=HandoffNannyPlugin.name)


def find_capabilities(worker: Worker) -> dict[str, float]:
    """Find what a worker offers: cores, memory in MB, and GPUs if it has any."""
    threads = worker.state.nthreads
    # Without a limit, by Dask's own rule for workers that share a host: by their threads.
    share = MEMORY_LIMIT * min(1, threads / CPU_COUNT)
    limit = worker.memory_manager.memory_limit or share
    found: dict[str, float] = {"cpu": threads, "memory": int(limit // MB)}
    if gpus := visible_gpus():
        found["gpu"] = gpus
    return found


def check_capabilities(capabilities: Any) -> dict[str, float]:
    """Return capabilities with lower case names.

    Raises
    ------
    ValueError
        They are not a mapping of names to finite numbers >= 0.
    """
    if problem := cost_problem(capabilities):
        raise ValueError(f"capabilities: {problem}")
    return {name.lower(): value for name, value in as_numbers(capabilities).items()}
