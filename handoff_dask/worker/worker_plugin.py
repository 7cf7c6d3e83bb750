"""The plugin of workers: it declares what the worker offers, and answers the scheduler."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from dask.system import CPU_COUNT
from distributed import Scheduler, Status, Worker
from distributed.system import MEMORY_LIMIT

from handoff_dask._version import __version__
from handoff_dask.collector import Spacing
from handoff_dask.compat import worker as compat
from handoff_dask.compat.worker import WORKER_ANY_RUNNING, TaskEnds
from handoff_dask.shipping import bootstrap
from handoff_dask.shipping.parcel import Shipped
from handoff_dask.wire.bundles import WITHDRAW_MEMBER
from handoff_dask.wire.offers import Declaration, Declarations, offered
from handoff_dask.worker import isolation
from handoff_dask.worker.devices import Devices, visible_gpus
from handoff_dask.worker.fetches import Fetches
from handoff_dask.worker.nanny_plugin import VARIABLE, HandoffNannyPlugin
from handoff_dask.worker.starts import Starts, StartsFile
from handoff_dask.worker.task import TOPIC

if TYPE_CHECKING:
    from handoff_dask.worker.isolation.pool import Pool

logger = logging.getLogger(__name__)

#: Bytes in one unit of ``memory``.
MB = 10**6
#: Seconds that a worker waits for its nanny's answer.
PATIENCE = 5.0
#: So many functions held make full garbage collections slow.
MANY = 10_000
#: The stream message by which the scheduler withdraws declarations.
TAKE_BACK = "handoff_take_back"
#: Seconds between checks whether a thread that holds such a resource has ended.
LOOK = 0.2


class HandoffWorkerPlugin(Shipped, TaskEnds):
    """Declares what a worker offers, as Dask resources, and reports it to the scheduler's plugin.

    Unless declared, ``cpu`` is the worker's threads, ``memory`` its memory limit in MB (without a
    limit, its share of the host's memory by threads), and ``gpu`` the GPUs that it may see; see
    ``offers`` for the names. What an operator declared stays.
    """

    base = "WorkerPlugin"
    starts: Starts | None

    async def setup(self, worker: Worker) -> None:
        """Declare what the worker has and its operator did not declare."""
        self.worker = worker
        self.devices = Devices()
        self._pool: Pool | None = None
        self._pool_lock = threading.Lock()
        #: The worker's plugins when a function was last isolated.
        self._plugins: list[object] = []
        self._spacing = Spacing(self._holds_many)
        self.fetches = Fetches(worker)
        self.declarations = Declarations()
        #: By number: set when the message to withdraw declarations has arrived.
        self._withdrawals: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)
        worker.handlers.update(self.handlers)
        self.filter_log()
        worker.stream_handlers[TAKE_BACK] = self.take_back
        worker.stream_handlers.update(self.stream_handlers)
        starts = await self._starts_address()
        address = worker.contact_address
        again, ours, leaving = await worker.scheduler.handoff_joining(worker=address)
        if worker.plugins.get(self.name) is not self:
            return  # replaced: a worker that is joining may get the plugin twice
        self.starts = self._new_starts(starts)
        self.declarations = Declarations(_declarations(ours), _declarations(leaving))
        total = worker.state.total_resources
        self._set(self.declarations.detect(total, find_capabilities(worker)))
        await self.declare(again)
        self._report_given_up()

    def processes(self) -> Pool:
        """Return the processes of isolated functions; any thread may call this."""
        from handoff_dask.worker.isolation.pool import Pool  # not everywhere

        with self._pool_lock:
            if self._pool is None:
                self._pool = Pool(self.worker.state.nthreads)
            plugins: list[object] = [*self.worker.plugins.values()]
            if [*map(id, plugins)] != [*map(id, self._plugins)]:
                # A new one may have replaced modules, as that of ``client.upload_file`` does.
                self._pool.renew()
                self._plugins = plugins
            return self._pool

    def _holds_many(self) -> bool:
        tasks = self.worker.state.tasks
        if len(tasks) < MANY:
            return False
        # A copy, because another thread may change it meanwhile.
        ours = ("handoff" in (ts.annotations or ()) for ts in list(tasks.values()))
        return sum(ours) >= MANY

    @property
    def handlers(self) -> dict[str, Callable[..., Any]]:
        """The handlers that the scheduler may call."""
        return {
            "handoff_declare": self.declare,
            "handoff_taken_back": self.taken_back,
            "handoff_withdraw": self.withdraw,
            "handoff_transfers": self.fetches.transfers,
            "handoff_serializing": self.fetches.serializing,
            "handoff_abandon": self.fetches.abandon,
        }

    @property
    def stream_handlers(self) -> dict[str, Callable[..., Any]]:
        """The messages that the scheduler may send on the worker's stream."""
        return {"handoff-withdraw": self.withdraw_one, WITHDRAW_MEMBER: self.withdraw_member}

    async def declare(self, capabilities: Mapping[str, float]) -> dict[str, float]:
        """Declare resources, under the worker's own names for them if it has any.

        Return everything that the worker now offers, by resource.
        """
        declarations, total = self.declarations, self.worker.state.total_resources
        self._set(declarations.declare(total, capabilities))
        names = declarations.offer(total)
        offer = offered(names)
        self.devices.declare(offer.get("gpu", 0))
        await self.worker.scheduler.handoff_capabilities(
            worker=self.worker.contact_address,
            capabilities=names,
            version=__version__,
            ours=declarations.ours,
            returns=bool(self.worker.lifetime and self.worker.lifetime_restart),
            unavailable=isolation.unavailable(),
        )
        return offer

    def _set(self, resources: Mapping[str, float]) -> None:
        for name, amount in resources.items():
            compat.set_resource(self.worker, name, amount)

    def take_back(self, names: Mapping[str, Any], number: int | None = None) -> None:
        """Stop declaring what was declared on our behalf, {name: declaration}; see ``Withdrawal``.

        What the thread of a cancelled function still holds is withdrawn when that thread ends.
        `number` is what :meth:`taken_back` is called with.
        """
        worker, declarations = self.worker, self.declarations
        held = {}
        for name, declaration in _declarations(names).items():
            if declarations.ours.get(name, declaration).stamp != declaration.stamp:
                continue  # declared again since
            if compat.set_resource(worker, name, declaration.before):
                declarations.ours.pop(name, None)
                declarations.leaving.pop(name, None)
            else:
                held[name] = declaration
        if number is not None:
            self._withdrawals[number].set()
        if held and worker.status != Status.closed:
            again = worker.stream_handlers[TAKE_BACK]
            asyncio.get_running_loop().call_later(LOOK, lambda: again(names=held))
        self._leave()

    async def taken_back(self, number: int) -> None:
        """Return when :meth:`take_back` has been called."""
        await self._withdrawals[number].wait()
        del self._withdrawals[number]

    def _leave(self) -> None:
        """Remove the handler when nothing declared on our behalf is left."""
        worker, left = self.worker, self.declarations
        gone = worker.plugins.get(self.name) is not self
        if gone and not left.ours and not left.leaving:
            if worker.stream_handlers.get(TAKE_BACK) == self.take_back:
                del worker.stream_handlers[TAKE_BACK]

    async def _starts_address(self) -> str | None:
        """Return the file that the nanny, if any, reads if this process is killed."""
        worker = self.worker
        if not worker.nanny:
            return None
        # A nanny cannot answer before it is up. The variable is outdated if its plugin changed.
        address = os.environ.get(VARIABLE)
        if address is None or not StartsFile.exists(address):
            with suppress(Exception):  # an RPC raises what the other side raised
                asking = worker.rpc(str(worker.nanny)).handoff_starts()
                return str(await asyncio.wait_for(asking, PATIENCE))
        return address

    def _new_starts(self, address: str | None) -> Starts:
        # A thread runs one function and may have 128 handed ahead: see the placement engine.
        places = 1024 + 256 * self.worker.state.nthreads
        with suppress(OSError, ValueError):
            return Starts(places, address, self.worker.id)
        return Starts(places)

    async def withdraw(self, calls: list[tuple[Any, int]]) -> dict[str, Any]:
        """Withdraw placements, given as (key, placement): what has not started never will.

        Return the latest starts of those that have started, as the fields of ``Start``, and the
        placements that still have a thread, possibly because they were about to start. The end of
        each thread is reported to the scheduler.
        """
        assert self.starts is not None
        started = self.starts.withdraw(number for _, number in calls)
        busy = [(key, number) for key, number in calls if self.busy(key)]
        for key, number in busy:
            self.at_end(key, partial(self._over, key, number))
        return {
            "started": [tuple(start) for start in started],
            "busy": [number for _, number in busy],
        }

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """Tell the scheduler when a function gives up its thread, for good or while it waits."""
        super().transition(key, start, finish, **kwargs)
        self.fetches.follow(key, start, finish)
        if self._pool is not None and self.given_up(key):
            self._pool.kill(key, "it was given up")
        if finish == "long-running":
            ts = self.worker.state.tasks[key]
            if "handoff" in (ts.annotations or {}):
                message = {"action": "attempt-seceded", "key": key, "run_id": ts.run_id}
                self.worker.log_event(TOPIC, message)

    def withdraw_one(self, number: int) -> None:
        """Withdraw a placement that arrives later on the same stream."""
        if self.starts is not None:
            self.starts.withdraw([number])

    def withdraw_member(self, number: int, position: int) -> None:
        """Withdraw a function of a bundle: it is skipped, unless it has started."""
        if self.starts is not None:
            self.starts.withdraw_member(number, position)

    def _report_given_up(self) -> None:
        """Report tasks that were cancelled before the plugin was installed and still run."""
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
                # On the same stream as the report of its end, so that they arrive in this order.
                worker.log_event(TOPIC, message)
                self.at_end(ts.key, partial(self._over, ts.key, ts.run_id))

    def _over(self, key: Any, number: int) -> None:
        self.worker.log_event(TOPIC, {"action": "attempt-over", "key": key, "run_id": number})

    async def teardown(self, worker: Worker) -> None:
        """Remove everything from the worker."""
        for name in self.handlers:
            worker.handlers.pop(name, None)
        self.unfilter_log()
        self._spacing.close()
        self.fetches.close()
        for name in self.stream_handlers:
            worker.stream_handlers.pop(name, None)
        pool, self._pool = self._pool, None
        if self.starts is not None and worker.status not in WORKER_ANY_RUNNING:
            self._last_word(self.starts)
        if pool is not None:
            try:
                await asyncio.to_thread(pool.close)
            except RuntimeError:  # the interpreter ends, and starts no more threads
                pool.close()
        self.starts = None
        self._leave()
        bootstrap.remove()

    def _last_word(self, starts: Starts) -> None:
        """Report what a closing worker has started; it starts nothing from here on.

        The message goes out on the stream, after the ends of all functions and before the worker is
        gone. If it does not arrive, the nanny knows.
        """
        started = [tuple(start) for start in starts.seal()]
        if started or self.worker.state.tasks:
            self.worker.batched_send({"op": "handoff_gone", "started": started})


def _declarations(facts: Mapping[str, Any]) -> dict[str, Declaration]:
    return {name: Declaration(*declaration) for name, declaration in facts.items()}


async def send_plugins(scheduler: Scheduler) -> None:
    """Install our plugins on all workers and nannies, including those that join later."""
    # Nannies first, because workers ask theirs.
    for register, plugin in (
        (scheduler.register_nanny_plugin, HandoffNannyPlugin()),
        (scheduler.register_worker_plugin, HandoffWorkerPlugin()),
    ):
        try:
            await register(None, pickle.dumps(plugin), name=plugin.name, idempotent=True)
        except OSError:
            # One left meanwhile. The others get the plugin all the same, and those that join later
            # get it then.
            logger.info("Not every worker got %s", type(plugin).__name__, exc_info=True)


async def take_plugins_back(scheduler: Scheduler) -> None:
    """Remove our plugins from all workers and nannies."""
    await scheduler.unregister_worker_plugin(None, name=HandoffWorkerPlugin.name)
    await scheduler.unregister_nanny_plugin(None, name=HandoffNannyPlugin.name)


def find_capabilities(worker: Worker) -> dict[str, float]:
    """Detect what a worker offers: cores, memory in MB, and GPUs if it has any."""
    threads = worker.state.nthreads
    # Without a limit, Dask's rule for workers that share a host applies: by threads.
    share = MEMORY_LIMIT * min(1, threads / CPU_COUNT)
    limit = worker.memory_manager.memory_limit or share
    capabilities: dict[str, float] = {"cpu": threads, "memory": int(limit // MB)}
    if gpus := visible_gpus():
        capabilities["gpu"] = gpus
    return capabilities
