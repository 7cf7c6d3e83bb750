"""What functions have used, by their code; several schedulers can merge what they measured.

For each code, only the latest measurements are kept, as sorted sets of tuples that begin with a
time. Merging keeps the latest of both sets, so it does not matter in which order, how often and by
whom measurements are merged. The time is that of the start: of functions that start together, those
that need more often end later, which would look as if needs grew.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, NamedTuple

from handoff_dask.learning.ladder import ENOUGH, LIFETIME, next_claim, rungs

#: How many durations and how many peaks are kept for a code.
_DURATIONS = 32
_PEAKS = 256
#: The duration of how many of its functions is kept one by one, and from which duration on (s).
_FUNCTIONS = 2_000
_SHORT = 0.01
#: How many codes are kept: those that were measured last.
_CODES = 10_000


class Measurement(NamedTuple):
    """A duration (s) or a peak (MB) of a function that started at a time (s since the epoch)."""

    started: float
    value: float


@dataclass
class _Measured:
    """The measurements of one code."""

    durations: list[Measurement] = field(default_factory=list)
    peaks: list[Measurement] = field(default_factory=list)
    #: The latest duration of single functions, by digests: those measured last come last.
    functions: dict[str, Measurement] = field(default_factory=dict)
    #: The most that a function needed more than (MB).
    exceeded: float = 0.0
    #: Ladders by the memory of the worker and the share of its cores. They are discarded when so
    #: many peaks more have been measured.
    ladders: dict[tuple[float, float], tuple[float, ...]] = field(
        default_factory=dict, compare=False
    )
    fresh: int = field(default=0, compare=False)

    def add_peak(self, peak: Measurement) -> None:
        _insert(self.peaks, peak, _PEAKS)
        self.fresh -= 1
        if self.fresh <= 0:
            self.ladders.clear()
            # The first peaks teach the most.
            self.fresh = LIFETIME if len(self.peaks) >= LIFETIME else 1

    def ladder(self, worker_memory: float, cpu_share: float) -> tuple[float, ...]:
        ladder = self.ladders.get((worker_memory, cpu_share))
        if ladder is None:
            peaks = [peak.value for peak in self.peaks]
            ladder = rungs(peaks, worker_memory=worker_memory, cpu_share=cpu_share)
            if len(peaks) < ENOUGH:
                # Those before it ran out of memory on the lower rungs.
                ladder = tuple(r for r in ladder if r > self.exceeded) or ladder[-1:]
            self.ladders[worker_memory, cpu_share] = ladder
        return ladder

    def add_function(self, name: str, duration: Measurement) -> None:
        self.functions.pop(name, None)
        self.functions[name] = duration
        if len(self.functions) > _FUNCTIONS:
            del self.functions[next(iter(self.functions))]

    def merge(self, other: _Measured) -> None:
        for name, duration in other.functions.items():
            self.functions[name] = max(duration, self.functions.get(name, duration))
        latest = sorted(self.functions.items(), key=lambda item: (item[1], item[0]))
        self.functions = dict(latest[-_FUNCTIONS:])
        self.durations = sorted({*self.durations, *other.durations})[-_DURATIONS:]
        self.peaks = sorted({*self.peaks, *other.peaks})[-_PEAKS:]
        self.exceeded = max(self.exceeded, other.exceeded)
        self.ladders.clear()

    @property
    def latest(self) -> float:
        """When the last function started that was measured (s since the epoch)."""
        return max((w[-1].started for w in (self.durations, self.peaks) if w), default=0.0)


def _insert(window: list[Measurement], item: Measurement, most: int) -> None:
    """Add a measurement, usually the latest, to a sorted set of the latest."""
    index = bisect_left(window, item)
    if window[index : index + 1] != [item]:
        window.insert(index, item)
        del window[:-most]


class Uses:
    """Durations and peaks of memory, by the identity of the code.

    Examples
    --------
    >>> uses = Uses()
    >>> for second in range(3):
    ...     uses.record("etl.load", started=second, seconds=2.0, peak=900.0)
    >>> uses.seconds("etl.load")
    2.0
    >>> uses.claim("etl.load", worker_memory=64_000)
    990
    """

    def __init__(self) -> None:
        # The codes that were measured last come last.
        self._codes: dict[str, _Measured] = {}

    def __len__(self) -> int:
        return len(self._codes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Uses) and self._codes == other._codes

    __hash__ = None  # type: ignore[assignment]

    def record(
        self,
        code: str,
        *,
        started: float,
        seconds: float,
        peak: float | None = None,
        function: str | None = None,
    ) -> None:
        """Record a function that succeeded.

        Parameters
        ----------
        code
            The identity of its code.
        started
            When its first attempt started (s since the epoch).
        seconds
            How long its last attempt took.
        peak
            The most memory that it used (MB), if that was measured.
        function
            What tells it from others of the code, also tomorrow. Its own duration is then kept,
            too, under a digest: the name may contain what is nobody's business.
        """
        # Short numbers make short files, and read back they are the same.
        started = round(started, 6)
        measured = self._measured(code)
        _insert(measured.durations, Measurement(started, round(seconds, 6)), _DURATIONS)
        if peak is not None:
            measured.add_peak(Measurement(started, round(peak, 1)))
        if function is not None and seconds >= _SHORT:
            duration = Measurement(started, round(seconds, 3))
            measured.add_function(digest(function), duration)

    def record_kill(self, code: str, *, exceeded: float) -> None:
        """Record a function that was killed because it needed more memory than this (MB)."""
        measured = self._measured(code)
        if exceeded > measured.exceeded:
            measured.exceeded = round(exceeded, 1)
            if len(measured.peaks) < ENOUGH:
                measured.ladders.clear()

    def _measured(self, code: str) -> _Measured:
        """Return the measurements of a code, to which some are about to be added."""
        measured = self._codes.pop(code, None)
        if measured is None:
            measured = _Measured()
            if len(self._codes) >= _CODES:
                del self._codes[next(iter(self._codes))]
        self._codes[code] = measured
        return measured

    def claim(
        self,
        code: str,
        *,
        worker_memory: float,
        cpu_share: float = 0.0,
        exceeded: float = 0.0,
    ) -> float | None:
        """Return how much memory the next attempt of a function claims (MB).

        Parameters
        ----------
        code
            The identity of its code.
        worker_memory, cpu_share
            See :func:`~handoff_dask.learning.ladder.rungs`.
        exceeded
            See :func:`~handoff_dask.learning.ladder.next_claim`.

        Returns
        -------
        float or None
            More than `exceeded`, at most `worker_memory`. None if a whole worker is not enough.
        """
        measured = self._codes.get(code) or _Measured()
        ladder = measured.ladder(worker_memory, cpu_share)
        return next_claim(ladder, worker_memory=worker_memory, exceeded=exceeded)

    def seconds(self, code: str) -> float | None:
        """Return how long functions of a code take on average (s), if any was measured."""
        measured = self._codes.get(code)
        if measured is None or not measured.durations:
            return None
        return math.fsum(d.value for d in measured.durations) / len(measured.durations)

    def seconds_of(self, code: str, function: str) -> float | None:
        """Return how long one of the functions of a code took (s), if that is known."""
        measured = self._codes.get(code)
        if measured is None or not measured.functions:
            return None
        duration = measured.functions.get(digest(function))
        return None if duration is None else duration.value

    def longer(self, code: str, than: float) -> Iterator[str]:
        """Yield digests of the functions of a code that are known to take longer than this (s)."""
        measured = self._codes.get(code)
        for name, duration in measured.functions.items() if measured else ():
            if duration.value > than:
                yield name

    def merge(self, other: Uses) -> None:
        """Include the measurements of another."""
        for code, measured in other._codes.items():
            self._codes.setdefault(code, _Measured()).merge(measured)
        by_time = sorted(self._codes.items(), key=lambda item: (item[1].latest, item[0]))
        self._codes = dict(by_time[-_CODES:])

    def copy(self) -> Uses:
        """Return the same measurements, independent of these."""
        copy = Uses()
        # Not merged, because that takes seconds if there are many.
        copy._codes = {
            code: replace(
                m,
                durations=[*m.durations],
                peaks=[*m.peaks],
                functions={**m.functions},
                ladders={},
            )
            for code, m in self._codes.items()
        }
        return copy

    def as_dict(self) -> dict[str, Any]:
        """Return the measurements in a form that JSON can hold."""
        return {
            code: {
                "durations": list(map(list, measured.durations)),
                "peaks": list(map(list, measured.peaks)),
                "functions": {n: list(d) for n, d in measured.functions.items()},
                "exceeded": measured.exceeded,
            }
            for code, measured in self._codes.items()
        }

    @classmethod
    def from_dict(cls, data: Any) -> Uses:
        """Return the measurements that `as_dict` returned.

        Raises
        ------
        ValueError
            `data` is something else.
        """
        uses = cls()
        for code, values in _mapping(data).items():
            values = _mapping(values)
            measured = _Measured(exceeded=_number(values.get("exceeded")))
            functions = _mapping(values.get("functions", {}))
            durations = _window(list(functions.values()))
            measured.merge(
                _Measured(
                    _window(values.get("durations")),
                    _window(values.get("peaks")),
                    dict(zip(functions, durations, strict=True)),
                )
            )
            uses._codes[code] = measured
        uses.merge(cls())
        return uses


def digest(name: str) -> str:
    """Return what the name of a function is kept as."""
    return blake2b(name.encode(errors="backslashreplace"), digest_size=6).hexdigest()


def _mapping(data: Any) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"not an object: {data!r:.80}")
    return data


def _window(data: Any) -> list[Measurement]:
    if not isinstance(data, Iterable):
        raise ValueError(f"not a list: {data!r:.80}")
    pairs = [item if isinstance(item, list) else [] for item in data]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"not a list of pairs: {data!r:.80}")
    return [Measurement(*map(_number, pair)) for pair in pairs]


def _number(value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise ValueError(f"not a finite number >= 0: {value!r:.80}")
    return float(value)
