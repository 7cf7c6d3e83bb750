"""The workers of a cluster as Handoff sees them: what they offer, and what of it is free."""

from __future__ import annotations

import asyncio
import pickle
import threading
from typing import Any, cast

from distributed import Client, Worker, get_worker

from handoff_dask.client import connection
from handoff_dask.client.answers import DictAnswer, ScalarAnswer
from handoff_dask.errors import UnknownWorkerError
from handoff_dask.model.amounts import Amounts
from handoff_dask.wire.offers import check_capabilities
from handoff_dask.worker.worker_plugin import HandoffWorkerPlugin


def register_node(
    worker: str, capabilities: Amounts, *, client: Client | None = None
) -> DictAnswer[str, float]:
    """Declare what a worker offers (``Handoff.SimpleResourceTracker.register``).

    Parameters
    ----------
    worker
        Its address or name.
    capabilities
        {resource: amount}: cores, MB or text such as ``"16 GB"``, units. Resources not named keep
        what they had.
    client
        A client of the cluster; None takes the current one.

    Returns
    -------
    dict
        All that the worker offers now.

    Raises
    ------
    UnknownWorkerError
        The cluster has no such worker.
    HandoffError
        The worker is given no functions: its copy of the package cannot be used.
    ValueError
        A capability cannot be read, or is not a finite number >= 0.

    Examples
    --------
    >>> from distributed import Client
    >>> from handoff_dask import discover_nodes, register_node
    >>> with Client(processes=False, n_workers=1, dashboard_address="localhost:0") as client:
    ...     (worker,) = discover_nodes()
    ...     _ = register_node(worker, {"licence": 2})
    ...     discover_nodes()[worker]["licence"]
    2
    """
    client = connection.require_client(client)
    capabilities = check_capabilities(capabilities)

    offered = _ask_about(client, "declare", worker, capabilities=capabilities)
    return cast("DictAnswer[str, float]", offered)


def register_local_node(
    capabilities: Amounts, *, dask_worker: Worker | None = None
) -> DictAnswer[str, float]:
    """Declare what this worker offers (``Handoff.DistributedExecutor.register_local_node``).

    Called from code that runs on a worker: ``client.run(register_local_node, {"licence": 1})``, or
    inside a function.

    Parameters
    ----------
    capabilities
        {resource: amount}: cores, MB or text such as ``"16 GB"``, units. Resources not named keep
        what they had.
    dask_worker
        The worker; ``client.run`` fills it in. None finds it by itself.

    Returns
    -------
    dict
        All that the worker offers now. On a worker's event loop, an awaitable of it.

    Raises
    ------
    ValueError
        A capability cannot be read, or is not a finite number >= 0; this is not a Dask worker; or
        the worker does not have the Handoff plugin yet.
    """
    capabilities = check_capabilities(capabilities)
    worker = dask_worker or get_worker()
    plugin = worker.plugins.get(HandoffWorkerPlugin.name)
    if not isinstance(plugin, HandoffWorkerPlugin):
        raise ValueError(
            f"worker {worker.address} does not have the Handoff plugin yet: run a DAG, call "
            "discover_nodes(), or preload it"
        )
    offered: Any = plugin.declare(capabilities)
    if threading.get_ident() != worker.thread_id:
        loop: Any = worker.loop
        offered = asyncio.run_coroutine_threadsafe(offered, loop.asyncio_loop).result()
    return cast("DictAnswer[str, float]", offered)


# On an event loop it returns an awaitable: with this, client.run waits for it.
register_local_node.__tornado_coroutine__ = True  # type: ignore[attr-defined]


@connection.keyword_client
def discover_nodes(*, client: Client | None = None) -> DictAnswer[str, dict[str, float]]:
    """Return what each worker offers (``Handoff.DistributedExecutor.discover_nodes``).

    Parameters
    ----------
    client
        A client of the cluster; None takes the current one.

    Returns
    -------
    dict
        {worker address: {resource: amount}}; names in lower case, memory in MB.
    """
    client = connection.require_client(client)

    async def discover() -> dict[str, dict[str, float]]:
        await connection.install(client)
        nodes = await connection.call(client, "nodes")
        return {address: dict(node["capabilities"]) for address, node in nodes.items()}

    return cast("DictAnswer[str, dict[str, float]]", connection.sync(client, discover))


def resources_available(
    worker: str, cost: Amounts, *, client: Client | None = None
) -> ScalarAnswer:
    """Tell whether a worker has a cost free at this moment (``ResourceTracker.available?``).

    What running functions claim is subtracted.

    Parameters
    ----------
    worker
        Its address or name.
    cost
        {resource: amount}; memory in MB or as text.
    client
        A client of the cluster; None takes the current one.

    Returns
    -------
    bool
        With an asynchronous client, an awaitable of it.

    Raises
    ------
    UnknownWorkerError
        The cluster has no such worker.
    HandoffError
        The worker is given no functions: its copy of the package cannot be used.
    ValueError
        The cost is not a mapping of names to finite numbers >= 0.
    """
    client = connection.require_client(client)
    return _ask_about(client, "available", worker, cost=check_capabilities(cost, "cost"))


def _ask_about(client: Client, handler: str, worker: str, **kwargs: Any) -> Any:
    """Call a handler of the plugin that is about one worker."""

    async def ask() -> Any:
        await connection.install(client)
        answer = await connection.call(client, handler, worker=str(worker), **kwargs)
        address, value = pickle.loads(answer)
        if address is None:
            raise UnknownWorkerError(str(worker), value)
        return value

    return connection.sync(client, ask)
