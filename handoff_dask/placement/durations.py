"""How long functions take, learned from those that ended."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping

#: Averages are over about this many of the latest attempts. Older ones fade so that a lasting
#: change shows; the suite, where nothing changes, gains nothing.
_MEMORY = 16


class _Averages:
    """Fading averages of the most recently used keys."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def get(self, key: Hashable) -> float | None:
        known = self._values.get(key)
        return None if known is None else known[0]

    def items(self) -> Iterator[tuple[Hashable, float]]:
        """Return each key and its average."""
        return ((key, mean) for key, (mean, _) in self._values.items())

    def count(self, key: Hashable) -> int:
        """Return how many values an average is of, older ones included."""
        return self._values.get(key, (0.0, 0))[1]

    def add(self, key: Hashable, value: float) -> float:
        """Include `value` and return the average."""
        values = self._values
        known = values.get(key)
        if known is None:
            mean, count = value, 1
            if len(values) >= self._limit:
                values.popitem(last=False)
            values[key] = (mean, count)
        else:
            mean, count = known
            count += 1
            mean += (value - mean) / min(count, _MEMORY)
            values[key] = (mean, count)
            values.move_to_end(key)
        return mean


#: Of so many measured functions, the first weigh a fiftieth of what they did.
_SETTLED = 4 * _MEMORY
#: A function that takes this many times as long as others of its code is not of their kind.
FAR = 4
#: Shorter durations count as equal (s). Bounds what is remembered and how often runs are ranked.
NOTHING = 0.001


class Durations:
    """Measured seconds per function over runs, and per family of code; the latest of each."""

    def __init__(self, *, tokens: int = 200_000, codes: int = 10_000) -> None:
        self._tokens = _Averages(tokens)
        self._codes = _Averages(codes)

    def learn(self, token: Hashable | None, code: str, seconds: float) -> float:
        """Record a measured duration and return the family's average.

        A function that takes next to no time is not recorded by itself, only with its family.
        """
        if token is not None and (seconds >= NOTHING or self._tokens.get(token) is not None):
            self._tokens.add(token, seconds)
        return self._codes.add(code, seconds)

    def know(self, token: Hashable, seconds: float) -> None:
        """Record a duration that was measured elsewhere, for this function only."""
        self._tokens.add(token, seconds)

    def of_token(self, token: Hashable | None) -> float | None:
        """Seconds of this very function, if it was measured."""
        return None if token is None else self._tokens.get(token)

    def is_settled(self, code: str) -> bool:
        """Whether the first of a family, which may have loaded its code, weigh nothing any more."""
        return self._codes.count(code) >= _SETTLED

    def longer(self, seconds: Mapping[str, float]) -> set[tuple[str, str]]:
        """Return the tokens of functions that take far longer than others of their code.

        `seconds` has the codes in question, and what their functions take on average. A token is a
        pair of the code and what tells the function from others.
        """
        return {
            token
            for token, own in self._tokens.items()
            if isinstance(token, tuple) and own > FAR * seconds.get(token[0], own)
        }

    def of_code(self, code: str) -> float | None:
        """Seconds of a family, if one of it was measured."""
        return self._codes.get(code)
