"""What lives on each worker: its capabilities, found and declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dask.system import CPU_COUNT
from distributed.system import MEMORY_LIMIT

from handoff_dask import _bootstrap, _compat
from handoff_dask._compat import TaskEnds
from handoff_dask._version import __version__
from handoff_dask.devices import Devices, visible_gpus
from handoff_dask.model.validation import cost_problem
from handoff_dask.shipping import Shipped

if TYPE_CHECKING:
    from distributed import Worker

#: Bytes in the unit of ``memory``.
MB = 10**6


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
        #: What the worker declared without us.
        self._before = dict(worker.state.total_resources)
        worker.handlers.update(self.handlers)
        declared = {name.lower() for name in self._before}
        found = find_capabilities(worker)
        await self.declare({n: v for n, v in found.items() if n not in declared})

    @property
    def handlers(self) -> dict[str, Callable[..., Any]]:
        """What the scheduler may ask of a worker."""
        return {"handoff_declare": self.declare, "handoff_restore": self.restore}

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

    async def teardown(self, worker: Worker) -> None:
        """Leave the worker."""
        for name in self.handlers:
            worker.handlers.pop(name, None)
        _bootstrap.remove()


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
    return {name.lower(): value for name, value in capabilities.items()}
