"""What the workers of a cluster offer, as they said; and what clients ask about them."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from distributed import Status

from handoff_dask._version import __version__
from handoff_dask.compat import scheduler as compat
from handoff_dask.compat.streams import bound_log
from handoff_dask.errors import HandoffError
from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import WorkerSpec
from handoff_dask.scheduler.withdrawal import Withdrawal
from handoff_dask.wire.offers import Declaration, check_capabilities, is_detected, names_of, offered

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import WorkerState

#: Seconds that a question waits for workers that have joined but not said what they offer.
PATIENCE = 10.0
#: Most workers whose declarations are remembered: the latest.
REMEMBERED = 10_000


class Joining(NamedTuple):
    """What a worker learns about its declarations when it gets the plugin."""

    #: {resource: amount} that it declared before it restarted.
    again: Mapping[str, float]
    #: What it declares on our behalf already.
    ours: Mapping[str, Declaration]
    #: What it declared before Handoff was uninstalled; see `Withdrawal`.
    leaving: Mapping[str, Declaration]


def _identity(ws: WorkerState) -> Hashable:
    """Return what a worker is recognised by after it restarts."""
    if str(ws.name) != ws.address:
        return str(ws.name), ws.host
    # Nobody gave it a name. A worker that restarts gets another address, its nanny keeps its own.
    return ws.nanny or ws.address


@dataclass(eq=False)
class Registry:
    """The workers of a scheduler, and the handlers about them."""

    scheduler: Scheduler
    engine: Engine
    #: Is called with a worker that may be given functions, or whose declarations changed.
    joined: Callable[[WorkerState], None]
    #: Is called with the address of a worker that is given no more functions.
    left: Callable[[str], None]

    def __post_init__(self) -> None:
        #: {address: {resource in lower case: the worker's own names for it}}
        self.names: dict[str, dict[str, tuple[str, ...]]] = {}
        #: By address and name: what workers declare on our behalf.
        self.ours: dict[str, dict[str, Declaration]] = {}
        #: By what a worker is recognised by, and name: what it declares again after a restart.
        self.remembered: dict[Hashable, dict[str, Declaration]] = {}
        #: Workers that leave for good, and those that start anew after they left.
        self._retiring: set[str] = set()
        self._returning: set[str] = set()
        #: {address: version} of workers whose version is not the scheduler's.
        self.strangers: dict[str, str] = {}
        #: {address: why} of workers that cannot isolate functions.
        self.unavailable: dict[str, str] = {}
        #: {address: why} of workers whose copy of this package cannot be used.
        self.unusable: dict[str, str] = {}
        self._news = asyncio.Event()

    @property
    def handlers(self) -> dict[str, Callable[..., Awaitable[Any]]]:
        """The handlers by the name under which the scheduler knows them."""
        return {
            "handoff_joining": self.joining,
            "handoff_capabilities": self.capabilities,
            "handoff_unable": self.unable,
            "handoff_declare": self.declare,
            "handoff_nodes": self.nodes,
            "handoff_available": self.available,
            "set_resources": self.set_resources,
        }

    def publish(self) -> None:
        """Publish on the scheduler that the plugin is there, and what to warn clients about."""
        facts = {
            "version": __version__,
            "strangers": self.strangers,
            "unusable": self.unusable,
        }
        self.scheduler.set_metadata(["handoff"], facts)

    async def joining(self, worker: str) -> Joining:
        """Return what a worker that gets the plugin needs to know about its declarations."""
        withdrawal = Withdrawal.of(self.scheduler)
        ws = self.scheduler.workers[worker]
        again = {
            name: declaration.amount
            for name, declaration in self.remembered.get(_identity(ws), {}).items()
            if ws.resources.get(name) == declaration.before  # its operator did not change that
        }
        leaving = {} if withdrawal is None else withdrawal.leaving.get(worker, {})
        return Joining(again, self.ours.get(worker, {}), leaving)

    async def capabilities(
        self,
        worker: str,
        capabilities: dict[str, float],
        version: str,
        ours: Mapping[str, Iterable[Any]] = MappingProxyType({}),
        returns: bool = False,
        unavailable: str | None = None,
    ) -> None:
        """Record what a worker offers; from then on it is given functions.

        `capabilities` is what counts of what it declares, under its own names, and `ours` what it
        declares on our behalf. `returns` says whether it starts anew whenever its lifetime is
        over, and `unavailable` why it cannot isolate functions.
        """
        ws = self.scheduler.workers.get(worker)
        if ws is None:
            return
        if version != __version__:
            self.strangers[worker] = version
        bound_log(self.scheduler.stream_comms[worker])
        self.ours[worker] = {name: Declaration(*facts) for name, facts in ours.items()}
        self._remember(ws, self.ours[worker])
        if returns:
            self._returning.add(worker)
        if unavailable is not None:
            self.unavailable[worker] = unavailable
        leaving: Mapping[str, Declaration] = {}
        if withdrawal := Withdrawal.of(self.scheduler):
            withdrawal.keep(worker, self.ours[worker])
            leaving = withdrawal.leaving.get(worker, {})
        self.names[worker] = names_of(capabilities)
        self.engine.worker_added(
            WorkerSpec(
                address=worker,
                name=str(ws.name),
                host=ws.host,
                capacity=offered(capabilities),
                slots=ws.nthreads,
                running=ws in self.scheduler.running,
                identity=_identity(ws),
            )
        )
        # What the worker is to take back it still has: it counts for Dask, until then.
        declared = {name: v for name, v in capabilities.items() if name not in leaving}
        compat.declare(self.scheduler, worker, declared)
        self.joined(ws)
        self._news.set()

    async def unable(self, worker: str, problem: str) -> None:
        """Record that a worker reports that it cannot be given functions."""
        if worker in self.scheduler.workers:
            self.unusable[worker] = problem
            self._news.set()

    async def set_resources(self, worker: str, resources: dict[str, float]) -> str:
        """Record what somebody else has a worker declare: it is part of its offer."""
        if worker in self.scheduler.workers:
            compat.declare(self.scheduler, worker, resources)
        if worker in self.names:
            with suppress(Exception):  # an RPC raises what the other side raised
                await self.scheduler.rpc(worker).handoff_declare(capabilities={})
        return "OK"

    def _remember(self, ws: WorkerState, ours: Mapping[str, Declaration]) -> None:
        """Remember what a worker declares on our behalf, in case it restarts."""
        identity = _identity(ws)
        self.remembered.pop(identity, None)
        if declared := {name: d for name, d in ours.items() if not is_detected(name)}:
            self.remembered[identity] = declared
            while len(self.remembered) > REMEMBERED:
                del self.remembered[next(iter(self.remembered))]

    def status_changed(self, worker: str, status: str) -> None:
        """Record that a worker retires, also because the cluster scales down or by itself."""
        if status == Status.closing_gracefully.name and worker not in self._returning:
            self._retiring.add(worker)
        elif status in (Status.running.name, Status.paused.name):
            self._retiring.discard(worker)

    def may_return(self, worker: str) -> bool:
        """Whether a worker that leaves may come back: not if it was retired."""
        return worker not in self._retiring

    def removed(self, worker: str) -> bool:
        """Forget a worker; the answer is whether it was given functions."""
        self.strangers.pop(worker, None)
        self.unusable.pop(worker, None)
        self.unavailable.pop(worker, None)
        self._retiring.discard(worker)
        self._returning.discard(worker)
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
            self.left(worker)
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
        while self.scheduler.workers.keys() - self.names.keys() - self.unusable.keys():
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), deadline - time.monotonic())
            except asyncio.TimeoutError:
                return

    def _resolve(self, worker: str) -> str | None:
        """Return the address of a worker called by its address or name.

        Raise HandoffError if it is given no functions.
        """
        for address, ws in self.scheduler.workers.items():
            if worker in (address, str(ws.name)):
                if address in self.unusable:
                    problem = self.unusable[address]
                    raise HandoffError(f"worker {worker} is given no functions: {problem}")
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
                "capabilities": dict(self.engine.questions.capacity(address)),
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
        free = self.engine.questions.free(address)
        return pickle.dumps((address, all(free.get(n, 0) >= v for n, v in cost.items())))
