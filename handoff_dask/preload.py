"""Installs Handoff when a scheduler starts.

Use ``dask scheduler --preload handoff_dask.preload``, or list the module under
``distributed.scheduler.preload`` in Dask's configuration. The effect is that of a client's first
:func:`handoff_dask.execute`; using both is fine.
"""

from __future__ import annotations

from distributed import Scheduler, Worker

from handoff_dask.scheduler.plugin import HandoffPlugin


async def dask_setup(server: Scheduler | Worker) -> None:
    """Start the plugin; Dask calls this with the server that preloads the module.

    Workers need no preload: the scheduler sends them their plugins.
    """
    if isinstance(server, Scheduler):
        await server.register_scheduler_plugin(
            HandoffPlugin(), name=HandoffPlugin.name, idempotent=True
        )
