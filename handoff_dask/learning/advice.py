"""What functions should declare, by what they used."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

#: Share of memory that is added to the most that was used.
_HEADROOM = 0.1
#: Cores are advised in these steps; use that is so little above a step does not need the next one.
_STEP, _NEGLIGIBLE = 0.5, 0.05


class Use(NamedTuple):
    """What an attempt used; None where that was not measured."""

    seconds: float
    #: CPU seconds.
    cpu_time: float | None = None
    #: MB.
    peak_memory: float | None = None


class Spread(NamedTuple):
    """How a quantity is distributed over attempts."""

    median: float
    #: The 95th percentile.
    high: float
    most: float


@dataclass(frozen=True, slots=True)
class CodeAdvice:
    """What functions of a code declared and used, and what they should declare.

    Attributes
    ----------
    code : str
        The module and name of the code; for lambdas, local functions and those of a script, also
        the file and line of one of them.
    count : int
        Attempts that it is based on.
    declared : Mapping
        Their cost: {resource: amount or ``AUTO``}; empty if they have none.
    memory : Spread or None
        The most memory that each used: the median, the 95th percentile and the maximum (MB). None
        if it was not measured.
    cores : float or None
        The cores that they kept busy on average. None if that was not measured.
    advised : Mapping
        What they should declare instead: {resource: amount}, as far as it was measured. Memory has
        10 % of headroom.
    """

    code: str
    count: int
    declared: Mapping[str, Any]
    memory: Spread | None
    cores: float | None
    advised: Mapping[str, float]

    @property
    def cost(self) -> dict[str, Any]:
        """The declared cost with what is advised in it."""
        return {**self.declared, **self.advised}

    def as_dict(self) -> dict[str, Any]:
        """Return it in a form that JSON can hold."""
        return {
            "code": self.code,
            "count": self.count,
            "declared": {
                name: amount if isinstance(amount, int | float) else str(amount)
                for name, amount in self.declared.items()
            },
            "memory": None if self.memory is None else self.memory._asdict(),
            "cores": self.cores,
            "advised": dict(self.advised),
        }


def advise(code: str, declared: Mapping[str, Any] | None, uses: Iterable[Use]) -> CodeAdvice:
    """Return the advice for functions of a code that declare the same cost.

    Examples
    --------
    >>> uses = [Use(10.0, cpu_time=14.0, peak_memory=peak) for peak in (700, 800, 1000)]
    >>> row = advise("etl.load", {"memory": 8000}, uses)
    >>> row.memory
    Spread(median=800, high=1000, most=1000)
    >>> row.advised
    {'memory': 1100, 'cpu': 1.5}
    """
    uses = list(uses)
    advised: dict[str, float] = {}
    peaks = sorted(use.peak_memory for use in uses if use.peak_memory is not None)
    memory = Spread(_quantile(peaks, 0.5), _quantile(peaks, 0.95), peaks[-1]) if peaks else None
    if memory is not None:
        advised["memory"] = _readable(memory.most + _HEADROOM * memory.most)
    timed = [(use.cpu_time, use.seconds) for use in uses if use.cpu_time is not None]
    seconds = math.fsum(duration for _, duration in timed)
    # Over all attempts: those of short ones say little.
    cores = math.fsum(busy for busy, _ in timed) / seconds if seconds else None
    if cores is not None:
        advised["cpu"] = max(math.ceil((cores - _NEGLIGIBLE) / _STEP), 1) * _STEP
    return CodeAdvice(code, len(uses), dict(declared or {}), memory, cores, advised)


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[math.ceil(share * len(ordered)) - 1]


def _readable(amount: float) -> int:
    """Round up to a whole number of two digits and zeros."""
    whole = max(math.ceil(amount), 1)
    unit: int = 10 ** max(len(str(whole)) - 2, 0)
    return math.ceil(whole / unit) * unit
