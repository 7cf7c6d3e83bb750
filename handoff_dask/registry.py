"""What the workers of a cluster offer, as they said; and what clients ask about them."""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from handoff_dask import _compat
from handoff_dask._version import __version__, fits
from handoff_dask.errors import VersionError
from handoff_dask.offers import Declaration, check_capabilities, names_of, offered
from handoff_dask.placement.events import WorkerSpec
from handoff_dask.withdrawal import Withdrawal

if TYPE_CHECKING:
    from handoff_dask.plugin import HandoffPlugin

logger = logging.getLogger(__name__)

#: Seconds that a question waits for workers that have joined but not said what they offer.
PATIENCE = 10.0


class Registry:
    """The workers of a plugin's scheduler, and the handlers about them."""

    def __init__(self, plugin: HandoffPlugin) -> None:
        self.plugin = plugin
        self.scheduler = plugin.scheduler
        self.engine = plugin.engine
        #: {address: {resource in lower case: the worker's own names for it}}
        self.names: dict[str, dict[str, tuple[str, ...]]] = {}
        #: By address and name: what workers declare on our behalf.
        self.ours: dict[str, dict[str, Declaration]] = {}
        #: {address: version} of workers whose version is not the scheduler's.
        self.strangers: dict[str, str] = {}
        self._news = asyncio.Event()

    @property
    def handlers(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """The handlers by the name under which the scheduler knows them."""
        handlers = (self.joining, self.capabilities, self.declare, self.nodes, self.available)
        return {
            **{f"handoff_{handler.__name__}": handler for handler in handlers},
            "set_resources": self.set_resources,
        }

    async def joining(self, worker: str) -> tuple[dict[str, float], dict[str, Declaration]]:
        """Return what a worker is to declare, and what it declares for other people's tasks only.

        The latter was declared on our behalf, before Handoff was taken off the cluster.
        """
        withdrawal = Withdrawal.of(self.scheduler)
        return {}, {} if withdrawal is None else withdrawal.leaving.get(worker, {})

    async def capabilities(
        self,
        worker: str,
        capabilities: dict[str, float],
        version: str,
        ours: Mapping[str, Iterable[Any]] = MappingProxyType({}),
    ) -> None:
        """Record what a worker offers; from then on it is given functions.

        Parameters
        ----------
        worker
            Its address.
        capabilities
            What counts of what it declares, under its own names.
        version
            Its version of this package.
        ours
            What it declares on our behalf.
        """
        ws = self.scheduler.workers.get(worker)
        if ws is None:
            return
        if version != __version__:
            self.strangers[worker] = version
            if not fits(version):
                error = VersionError(f"worker {worker}", version, __version__)
                logger.error("It is given no functions: %s", error)
                self._news.set()
                return
        self.ours[worker] = {name: Declaration(*facts) for name, facts in ours.items()}
        if withdrawal := Withdrawal.of(self.scheduler):
            withdrawal.keep(worker, self.ours[worker])
        self.names[worker] = names_of(capabilities)
        self.plugin.losses.nannies[worker] = ws.nanny, ws.server_id
        self.plugin.claims.changed(worker)
        self.engine.worker_added(
            WorkerSpec(
                address=worker,
                name=str(ws.name),
                host=ws.host,
                capacity=offered(capabilities),
                slots=ws.nthreads,
                running=ws in self.scheduler.running,
            )
        )
        _compat.declare(self.scheduler, worker, capabilities)
        # Tasks of others may have started before it was known what they claim.
        for ts in ws.processing:
            if ts.key not in self.plugin.records:
                self.plugin.foreign.follow(ts.key, "processing")
        self._news.set()
        self.plugin.ask()

    async def set_resources(self, worker: str, resources: dict[str, float]) -> str:
        """Take in what somebody else has a worker declare; it counts for us, too."""
        if worker in self.scheduler.workers:
            _compat.declare(self.scheduler, worker, resources)
        if worker in self.names:
            with suppress(Exception):  # an RPC raises what the other side raised
                await self.scheduler.rpc(worker).handoff_declare(capabilities={})
        return "OK"

    def removed(self, worker: str) -> bool:
        """Forget a worker; the answer is whether it was given functions."""
        self.strangers.pop(worker, None)
        self.ours.pop(worker, None)
        return self.names.pop(worker, None) is not None

    async def withdraw(self) -> None:
        """Have every worker take back what it declares on our behalf, now or when it may."""
        withdrawal = Withdrawal.of(self.scheduler)
        if withdrawal is None:
            withdrawal = Withdrawal(self.scheduler)
            self.scheduler.add_plugin(withdrawal, name=Withdrawal.name)
        withdrawal.add(self.ours)
        for worker in list(self.names):
            self.plugin.remove_worker(self.scheduler, worker)  # it is given no functions any more
        number = time.monotonic_ns()
        answers = [
            self.scheduler.rpc(worker).handoff_taken_back(number=number)
            for worker in withdrawal.take_back(number)
        ]
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.gather(*answers, return_exceptions=True), PATIENCE)

    async def settled(self) -> None:
        """Wait until every worker has said what it offers."""
        deadline = time.monotonic() + PATIENCE
        while self.scheduler.workers.keys() - self.names.keys() - self.strangers.keys():
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), deadline - time.monotonic())
            except asyncio.TimeoutError:
                return

    def _resolve(self, worker: str) -> str | None:
        """Return the address of a worker called by its address or name."""
        if worker in self.scheduler.workers:
            return worker
        for address, ws in self.scheduler.workers.items():
            if str(ws.name) == worker:
                return address
        return None

    def _unknown(self) -> bytes:
        return pickle.dumps((None, [str(ws.name) for ws in self.scheduler.workers.values()]))

    async def declare(self, worker: str, capabilities: dict[str, float]) -> bytes:
        """Have a worker declare capabilities; the answer is what it offers then."""
        await self.settled()
        address = self._resolve(worker)
        if address is None:
            return self._unknown()
        offered = await self.scheduler.rpc(address).handoff_declare(
            capabilities=check_capabilities(capabilities)
        )
        return pickle.dumps((address, offered))

    async def nodes(self) -> dict[str, dict[str, Any]]:
        """Return what each worker offers, and what it answers to."""
        await self.settled()
        return {
            address: {
                "capabilities": dict(self.engine.capacity(address)),
                "names": [address, str(ws.name), ws.host],
            }
            for address, ws in self.scheduler.workers.items()
            if address in self.names
        }

    async def available(self, worker: str, cost: dict[str, float]) -> bytes:
        """Tell whether a worker has a cost free at this moment."""
        await self.settled()
        address = self._resolve(worker)
        if address is None:
            return self._unknown()
        free = self.engine.free(address)
        return pickle.dumps((address, all(free.get(n, 0) >= v for n, v in cost.items())))
