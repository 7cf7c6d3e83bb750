"""Functions that rather run on some workers than on others.

A preference weighs like inputs that the preferred workers hold: it decides between workers that
have room, and how long a function waits for one of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from handoff_dask.placement.entities import QUEUED, Function
from handoff_dask.placement.ready_queues import ReadyQueues

#: For what part of its duration a function waits for a worker that it prefers. With 1, equal
#: functions would wait for each other's end where half of them could have run elsewhere.
_PATIENCE = 0.9


@dataclass(eq=False, slots=True)
class _Wish:
    #: The workers that answer to what is preferred.
    addresses: tuple[str, ...]
    #: Functions that were queued with it, with their true inputs and the bytes of these.
    functions: dict[Function, tuple[dict[str, float], float]] = field(default_factory=dict)


class Preferences:
    """The preferences of ready functions."""

    def __init__(self, ready: ReadyQueues, *, bandwidth: float) -> None:
        self._ready = ready
        self._bandwidth = bandwidth
        self._wishes: dict[tuple[str, ...], _Wish] = {}
        self._epoch = -1

    def weigh(self, function: Function) -> None:
        """Add what a function prefers to its inputs, before it is queued."""
        names = function.preferences
        wish = self._wishes.get(names)
        if wish is None:
            wish = self._wishes[names] = _Wish(self._answering(names))
        given = ({}, 0.0) if function.inputs is None else (function.inputs, function.input_total)
        wish.functions[function] = given
        self._apply(function, wish)

    def refresh(self) -> None:
        """Weigh the preferences of queued functions anew, as workers came or went."""
        if self._epoch == self._ready.fleet.epoch:
            return
        self._epoch = self._ready.fleet.epoch
        for names, wish in list(self._wishes.items()):
            wish.functions = {f: given for f, given in wish.functions.items() if f.state == QUEUED}
            if not wish.functions:
                del self._wishes[names]
                continue
            addresses = self._answering(names)
            if addresses != wish.addresses:
                wish.addresses = addresses
                for function in wish.functions:
                    self._apply(function, wish)
                    self._ready.requeue(function)

    def forget(self, functions: Iterable[Function]) -> None:
        """Forget the preferences of functions of a run that is closed."""
        for function in functions:
            if wish := self._wishes.get(function.preferences):
                wish.functions.pop(function, None)

    def _answering(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(worker.address for worker in self._ready.fleet.answering(names))

    def _apply(self, function: Function, wish: _Wish) -> None:
        inputs, total = wish.functions[function]
        weight = _PATIENCE * function.guess * self._bandwidth if wish.addresses else 0.0
        held = {address: inputs.get(address, 0.0) + weight for address in wish.addresses}
        function.inputs = {**inputs, **held} or None
        function.input_total = total + weight
