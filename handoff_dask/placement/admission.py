"""Admitting functions: check them, link them, and put them in groups."""

from __future__ import annotations

from collections.abc import Container, Hashable, Sequence

from handoff_dask.placement.costs import Resources
from handoff_dask.placement.entities import Family, Function, Group, Run
from handoff_dask.placement.events import FunctionSpec
from handoff_dask.placement.placer import Placer


def admit(
    run: Run, specs: Sequence[FunctionSpec], known: Container[Hashable], placer: Placer, number: int
) -> dict[Hashable, Function]:
    """Make functions from specs and link them with their dependencies. Changes nothing else.

    Keys in `known` are taken. Functions are numbered in order, the first is `number` + 1. Raises
    ValueError as `Engine.functions_added` does.
    """
    new: dict[Hashable, Function] = {}
    families = run.families
    for spec in specs:
        key = spec.key
        if key in new or key in known:
            raise ValueError(f"function {key!r} was added before")
        family = families.get(spec.code)
        if family is None:
            family = families[spec.code] = Family(spec.code)
        number += 1
        try:
            cost = placer.fleet.cost(spec.cost)
        except ValueError as error:
            raise ValueError(f"cost of function {key!r}: {error}") from None
        new[key] = Function(spec, run, cost, family, number)
    old = run.functions
    for spec in specs:
        if spec.dependencies:
            new[spec.key].dependencies = [
                function
                for key in spec.dependencies
                if (function := new.get(key) or old.get(key)) is not None
            ]
        for key in (spec.collocated, spec.binds):
            if key is not None and key not in new and key not in old:
                raise ValueError(f"function {spec.key!r} names {key!r}, which is not in the run")
    return new


def tie(run: Run, specs: Sequence[FunctionSpec], placer: Placer) -> None:
    """Put functions that run together, and those that others bind, in groups."""
    functions = run.functions
    resources = placer.fleet.resources
    for spec in specs:
        if spec.collocated is not None:
            _join(functions[spec.key], functions[spec.collocated], resources, placer)
    for spec in specs:
        if spec.binds is not None:
            target = functions[spec.binds]
            functions[spec.key].binds = target
            if target.group is None:
                _join(target, target, resources, placer)


def _join(function: Function, other: Function, resources: Resources, placer: Placer) -> None:
    """Put two functions, and all that run with them, into one group."""
    group = other.group
    if group is None:
        group = other.group = Group(other.own_cost)
        group.members.append(other)
        group.pin, group.preferred = other.pin, other.preferred
    old = function.group
    if old is group:
        return
    if old is None:
        joining, pin, preferred = [function], function.pin, function.preferred
    else:
        joining, pin, preferred = old.members, old.pin, old.preferred
        placer.unbind(old)
    group.pin = group.pin or pin
    group.preferred = group.preferred or preferred
    for member in joining:
        member.group = group
        group.members.append(member)
    group.need = resources.union([group.need, *(member.own_cost for member in joining)])
