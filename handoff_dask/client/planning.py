"""What would happen: a DAG on workers that need not exist, under simulated time."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean
from typing import Any, Literal, NamedTuple, Protocol

from handoff_dask.client.describing import Rows
from handoff_dask.client.options import RunOptions, StrategyName, bundle_work, seconds
from handoff_dask.graph.translation import code_prefixes
from handoff_dask.model.amounts import Amounts, Seconds
from handoff_dask.model.dag import DAG, require_dag
from handoff_dask.model.expansion import Node, expand, node_policy
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.placement import bundling
from handoff_dask.placement.events import WorkerSpec
from handoff_dask.placement.simulation import simulate
from handoff_dask.widgets import markup, plots, reports
from handoff_dask.wire.messages import allocation_error, function_specs
from handoff_dask.wire.offers import check_capabilities

#: Threads of a worker whose capabilities name no cpu.
_MANY_THREADS = 10**6

#: On a cluster no two functions end at the same instant, and which of two ends first decides what
#: is placed next. So functions end a little apart in each of several simulations, and the median
#: one is the plan. Their number: as many as place this number of functions, up to a maximum. Large
#: DAGs are their own average.
_PLACED, _SIMULATIONS = 5000, 15
#: As shares of the longest duration: how far ends are shifted, and the digits that are shown, which
#: hide the shift.
_JITTER, _DIGITS = 1e-9, 6
#: The assumed size of results: the engine prefers workers that have the inputs, as on a cluster.
_RESULT_BYTES = 64.0


class Tried(Protocol):
    """What has attempts by function, such as an :class:`ExecutionResult`."""

    @property
    def attempts(self) -> reports.Attempts:
        """The attempts of each function."""


class Slot(NamedTuple):
    """A function's place in a plan: seconds from the start of the run."""

    id: Hashable
    start: float
    stop: float


@dataclass(frozen=True)
class Plan:
    """How a DAG would run, by the engine that would place it.

    Attributes
    ----------
    makespan : float
        Seconds from the start of the run to the last end.
    timeline : Mapping
        {worker: list of (id, start, stop)}, in order of start; seconds from the start of the run.
    utilisation : Mapping
        {resource: share of what the workers offer over the makespan that is used}, from 0 to 1.
    """

    makespan: float
    timeline: Mapping[str, list[Slot]]
    utilisation: Mapping[str, float]

    def __str__(self) -> str:
        lines = [f"makespan {self.makespan:.3g} s"]
        for name, share in self.utilisation.items():
            lines.append(f"  {name:<12} {share:6.1%} used")
        for worker, slots in self.timeline.items():
            busy = sum(slot.stop - slot.start for slot in slots)
            lines.append(f"  {worker}: {len(slots)} functions, {busy:.3g} s of work")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return reports.plan(self.makespan, self.timeline, self.utilisation)

    def plot(self) -> Any:
        """Return the timeline by worker.

        Returns
        -------
        bokeh.plotting.figure
            For ``bokeh.io.show`` or ``bokeh.io.save``.

        Raises
        ------
        ImportError
            Bokeh is not installed.

        Examples
        --------
        >>> from handoff_dask import DAG, plan
        >>> dag = DAG()
        >>> f = dag.add(int, id="f")
        >>> plan(dag, {"laptop": {"cpu": 2}}, {"f": 1.5}).plot().title.text
        'plan: 1.5 s'
        """
        title = f"plan: {markup.seconds(self.makespan)}"
        return plots.figure(reports.slot_bars(self.timeline), title, {})


def plan(
    dag: DAG,
    capabilities: Mapping[str, Amounts],
    durations: Mapping[Hashable, Seconds] | Tried,
    *,
    allocation_strategy: StrategyName = "packed",
    max_concurrency: int | None = None,
    overhead: Seconds = 0.0,
    bundle: Seconds | Literal[False] | None = None,
) -> Plan:
    """Predict how a DAG would run.

    The engine that places functions on a cluster places them on imagined workers here, under
    simulated time. Functions take exactly their duration and start at once; results are small, and
    take 5 ms to move. When several functions end at once, chance decides which counts first, as on
    a cluster: of several simulations, the plan is the one of median makespan. The same arguments
    give the same plan.

    Parameters
    ----------
    dag
        The DAG.
    capabilities
        {worker name: {resource: amount}}, as :func:`discover_nodes` returns. A worker runs as many
        functions at once as it has ``"threads"`` or, if that is not named, cores of ``"cpu"``.
        Memory is in MB, or text such as ``"16 GB"``.
    durations
        {id: seconds, text such as ``"5 min"``, or a timedelta}, or the result of an earlier run of
        the DAG, which may have failed. A function takes the mean of its successful attempts.
        Without any, it takes as long as the longest of its attempts, and at least as long as others
        of its code on average.
    allocation_strategy, max_concurrency
        As for :func:`execute`.
    overhead
        How long messages take: from the decision to start a function to its start and, on average,
        from its end until the scheduler knows. ``"2 ms"`` suits a cluster on one machine.
    bundle
        The most work of short functions that travel together, as for :func:`execute`. Their retries
        are as the functions say; for others, retries without delay are assumed.

    Returns
    -------
    Plan
        Makespan (s), timeline by worker, utilisation by resource.

    Raises
    ------
    DAGError
        The DAG is not valid.
    AllocationError
        No worker could hold a function.
    ValueError
        A duration is missing or negative, nothing is known about a function or others of its code,
        a capability, the overhead or `bundle` is negative, one of these cannot be read, or there
        are no workers.

    Examples
    --------
    >>> from handoff_dask import DAG, plan
    >>> dag = DAG()
    >>> refs = dag.map(int, range(4), cost={"cpu": 1})
    >>> plan(dag, {"laptop": {"cpu": 2}}, dict.fromkeys(dag, "2 s")).makespan
    4.0
    """
    require_dag(dag)
    dag.validate()
    RunOptions(allocation_strategy=allocation_strategy, max_concurrency=max_concurrency)
    nodes = expand(dag.functions)
    prefixes = code_prefixes(nodes)
    attempts = getattr(durations, "attempts", None)
    if isinstance(attempts, Mapping):
        durations = _learned(nodes, prefixes, attempts)
    elif not isinstance(durations, Mapping):
        raise ValueError(
            f"durations must be {{function id: seconds}} or an ExecutionResult, not {durations!r}"
        )
    taken = _durations(nodes, durations)
    if not capabilities:
        raise ValueError("capabilities names no worker")
    overhead = seconds("overhead", overhead)
    specs = function_specs(Rows(nodes, prefixes).of(range(len(nodes))), int)
    workers = [_worker(name, offered) for name, offered in capabilities.items()]
    bundles = _bundles(nodes, taken, workers, bundle_work(bundle))
    longest = max(taken.values(), default=0.0)
    # Odd, so that there is a median.
    count = min(_SIMULATIONS, _PLACED // max(1, len(nodes))) | 1
    runs = [
        simulate(
            specs,
            workers,
            taken,
            strategy=allocation_strategy,
            max_concurrency=max_concurrency,
            overhead=overhead,
            sizes=dict.fromkeys(taken, _RESULT_BYTES),
            # As long again, on average, until the scheduler knows of its end.
            jitter=2 * overhead or _JITTER * longest,
            seed=seed,
            bundles=bundles,
        )
        for seed in range(count)
    ]
    run = sorted(runs, key=lambda run: run.makespan)[len(runs) // 2]
    node_of: dict[Hashable, Node] = {node.index: node for node in nodes}
    for index, finding in run.refused.items():
        node = node_of[index]
        raise allocation_error(node.function.id, node.cost, finding)
    rounded = partial(round, ndigits=_DIGITS - math.floor(math.log10(longest or 1)))
    timeline: dict[str, list[Slot]] = {name: [] for name in capabilities}
    for index, place in run.placements.items():
        node = node_of[index]
        if node.kind == "function":
            slot = Slot(node.function.id, rounded(place.start), rounded(place.stop))
            timeline[place.worker].append(slot)
    utilisation = {name: round(share, _DIGITS) for name, share in run.utilisation.items()}
    return Plan(rounded(run.makespan), timeline, utilisation)


def _bundles(
    nodes: Sequence[Node],
    durations: Mapping[Hashable, float],
    workers: Sequence[WorkerSpec],
    worth: float,
) -> list[tuple[int, ...]]:
    """Return which nodes travel together, in bundles of at most `worth` seconds of work."""
    if not worth:
        return []
    policies = [node_policy(node, RetryPolicy()) for node in nodes]
    expected = [durations[node.index] for node in nodes]
    candidates = bundling.candidates(nodes, policies, expected, worth)
    threads = partial(bundling.threads_for, workers=workers)
    return bundling.bundles(candidates, worth=worth, threads=threads)


def _worker(name: str, capabilities: Amounts) -> WorkerSpec:
    offered = check_capabilities(capabilities)
    threads = offered.pop("threads", None) or math.ceil(offered.get("cpu", _MANY_THREADS))
    return WorkerSpec(name, name, name, offered, max(int(threads), 1))


def _learned(
    nodes: Sequence[Node], prefixes: Sequence[str], attempts: reports.Attempts
) -> dict[Hashable, float]:
    """Return the seconds that functions take, as learned from a run."""
    codes = {
        node.function.id: prefix
        for node, prefix in zip(nodes, prefixes, strict=True)
        if node.kind == "function"
    }
    good: dict[Hashable, float] = {}
    # A failed attempt might have gone on: the longest says most.
    longest: dict[Hashable, float] = {}
    for id_ in codes:
        tried = attempts.get(id_, ())
        if ended_well := [a.duration for a in tried if a.outcome == "ok" or a.earlier]:
            good[id_] = mean(ended_well)
        elif tried:
            longest[id_] = max(a.duration for a in tried)
    well, badly = _by_code(good, codes), _by_code(longest, codes)
    learned: dict[Hashable, float] = {}
    for id_, code in codes.items():
        known = [good[id_]] if id_ in good else [longest.get(id_), well.get(code)]
        seconds = max((s for s in known if s is not None), default=badly.get(code))
        if seconds is None:
            raise ValueError(
                f"nothing is known of how long function {id_!r} takes: neither it nor another of "
                f"its code ran. Pass durations={{{id_!r}: seconds, ...}}"
            )
        learned[id_] = seconds
    return learned


def _by_code(
    durations: Mapping[Hashable, float], codes: Mapping[Hashable, str]
) -> dict[str, float]:
    """Return the mean of the functions of each code."""
    values_of: dict[str, list[float]] = {}
    for id_, value in durations.items():
        values_of.setdefault(codes[id_], []).append(value)
    return {code: mean(values) for code, values in values_of.items()}


def _durations(nodes: list[Node], durations: Mapping[Hashable, Seconds]) -> dict[Hashable, float]:
    """Return the seconds that each node takes; transforms take none."""
    taken: dict[Hashable, float] = {}
    for node in nodes:
        if node.kind != "function":
            taken[node.index] = 0.0
            continue
        id_ = node.function.id
        if id_ not in durations:
            raise ValueError(f"durations has no entry for function {id_!r}")
        taken[node.index] = seconds(f"the duration of function {id_!r}", durations[id_])
    return taken
