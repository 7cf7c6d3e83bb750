"""What ties a task to the worker that it is placed on, and what it claims there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from handoff_dask.compat import scheduler as compat

#: A set of one worker, and a cost under the worker's own names.
Claim = tuple[frozenset[str], dict[str, float]]


class Claims:
    """Makes the restrictions of tasks; functions of one cost on one worker share them.

    See ``compat.hold``.

    Parameters
    ----------
    names
        {address: {resource in lower case: the worker's own names for it}}.
    """

    def __init__(self, names: Mapping[str, Mapping[str, tuple[str, ...]]]) -> None:
        self._names = names
        self._shared: dict[str, dict[Any, Claim]] = {}

    def of(self, worker: str, cost: Mapping[str, float]) -> Claim:
        """Return the restrictions of a task that claims a cost of a worker."""
        shared = self._shared.setdefault(worker, {})
        amounts = tuple(cost.items())
        if amounts not in shared:
            names = self._names[worker]
            resources = {
                own: compat.exact(amount) for name, amount in amounts for own in names[name]
            }
            shared[amounts] = frozenset((worker,)), resources
        return shared[amounts]

    def changed(self, worker: str) -> None:
        """Forget what was derived from a worker's resources."""
        self._shared.pop(worker, None)
