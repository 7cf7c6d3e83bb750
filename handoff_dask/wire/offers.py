"""What a worker offers: what its operator declared, what was declared through us, what we detected.

Pure bookkeeping, for both ends of the wire. What we detected is declared under names of its own, so
that plain tasks see only what was declared.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from handoff_dask.model.amounts import as_amounts
from handoff_dask.model.validation import cost_problem

#: Before the name of a resource that nobody declared.
_DETECTED = "handoff-"


def detected_name(resource: str) -> str:
    """Return the name under which a worker declares a resource that we detected."""
    return _DETECTED + resource


def is_detected(name: str) -> bool:
    """Whether a worker's resource of this name is one that we detected."""
    return name.startswith(_DETECTED)


def names_of(declared: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the names that a worker has for each resource, among all that it declares.

    Functions claim a resource under all of its names. The amount is that of the first name: what
    was declared replaces what was detected.

    Examples
    --------
    >>> names_of(["GPU", "handoff-cpu", "handoff-memory", "memory"])
    {'gpu': ('GPU',), 'cpu': ('handoff-cpu',), 'memory': ('memory', 'handoff-memory')}
    """
    owned: dict[str, tuple[str, ...]] = {}
    for name in declared:
        if is_detected(name):
            resource = name.removeprefix(_DETECTED)
            owned[resource] = (*owned.get(resource, ()), name)
        else:
            others = owned.get(name.lower(), ())
            if all(map(is_detected, others)):
                owned[name.lower()] = (name, *others)
    return owned


def offered(total: Mapping[str, float]) -> dict[str, float]:
    """Return {resource in lower case: amount} of what a worker declares.

    Examples
    --------
    >>> offered({"handoff-cpu": 4, "handoff-memory": 4000, "memory": 8})
    {'cpu': 4, 'memory': 8}
    """
    return {resource: total[names[0]] for resource, names in names_of(total).items()}


def check_capabilities(capabilities: Any, what: str = "capabilities") -> dict[str, float]:
    """Return capabilities, or a cost, with lower case names; raise ValueError if not valid."""
    if problem := cost_problem(capabilities):
        raise ValueError(f"{what}: {problem}")
    return {name.lower(): value for name, value in as_amounts(capabilities).items()}


class Declaration(NamedTuple):
    """A resource that a worker declares on our behalf."""

    #: How much. If the worker has another amount, somebody else has declared that since.
    amount: float
    #: What it had declared without us; None if nothing.
    before: float | None
    #: Distinguishes it from earlier declarations of the same name.
    stamp: int

    def stands(self, total: Mapping[str, float], name: str) -> bool:
        """Whether a worker's resource is still as this declared it."""
        return total.get(name) == self.amount


@dataclass(eq=False)
class Declarations:
    """What a worker declares on our behalf."""

    ours: dict[str, Declaration] = field(default_factory=dict)
    #: What was declared before Handoff was uninstalled, and stays while plain tasks claim it: not
    #: part of the offer.
    leaving: dict[str, Declaration] = field(default_factory=dict)

    def offer(self, total: Mapping[str, float]) -> dict[str, float]:
        """Return the declared resources that are part of the offer."""
        self.settle(total)
        counts: dict[str, float] = {}
        for name, amount in total.items():
            left = self.leaving.get(name)
            if left is None:
                counts[name] = amount
            elif left.before is not None:
                counts[name] = left.before
        return counts

    def settle(self, total: Mapping[str, float]) -> None:
        """Drop declarations that somebody else has replaced or removed."""
        self.ours = {n: d for n, d in self.ours.items() if d.stands(total, n)}
        self.leaving = {n: d for n, d in self.leaving.items() if d.stands(total, n)}

    def detect(
        self, total: Mapping[str, float], capabilities: Mapping[str, float]
    ) -> dict[str, float]:
        """Record what was detected; return what is to be declared: what nobody declared."""
        known = names_of(n for n in self.offer(total) if not is_detected(n))
        return self._note(
            total, {detected_name(n): v for n, v in capabilities.items() if n not in known}
        )

    def declare(
        self, total: Mapping[str, float], capabilities: Mapping[str, float]
    ) -> dict[str, float]:
        """Record capabilities; return what is to be declared, under the worker's names."""
        known = names_of(n for n in total if not is_detected(n))
        changes = {known.get(n, (n,))[0]: value for n, value in capabilities.items()}
        # Functions also claim what was detected, and some claim only that: it must have room for
        # all that was declared in its place.
        after = {**self.offer(total), **changes}
        for resource, (first, *others) in names_of(after).items():
            name = detected_name(resource)
            if name in others and after[name] < after[first]:
                changes[name] = after[first]
        return self._note(total, changes)

    def _note(self, total: Mapping[str, float], changes: dict[str, float]) -> dict[str, float]:
        for name, value in changes.items():
            earlier = self.leaving.pop(name, None) or self.ours.get(name)
            before = None if is_detected(name) else total.get(name)
            if earlier is not None:
                before = earlier.before
            self.ours[name] = Declaration(value, before, time.monotonic_ns())
        return changes


def claimed_resources(
    names: Mapping[str, Sequence[str]], claimed: Mapping[str, float]
) -> dict[str, float]:
    """Return {resource: amount} of what a task claims under a worker's own names for resources."""
    return {
        resource: max(claimed.get(own, 0) for own in owned) for resource, owned in names.items()
    }
