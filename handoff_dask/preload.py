"""Handoff on a scheduler from its start, for clusters whose operator wants it there.

``dask scheduler --preload handoff_dask.preload``, or the same name under
``distributed.scheduler.preload`` in Dask's configuration. It has the effect of a client's first
:func:`handoff_dask.execute`, and both may happen.
"""

from __future__ import annotations

from distributed import Scheduler, Worker

from handoff_dask.scheduler.plugin import HandoffPlugin


async def dask_setup(server: Scheduler | Worker) -> None:
    """Start the plugin; Dask calls this with the server that preloads the module.

    On a worker there is nothing to do: the scheduler gives workers what they need.
    """
    if isinstance(server, Scheduler):
        await server.register_scheduler_plugin(
            HandoffPlugin(), name=HandoffPlugin.name, idempotent=True
        )
