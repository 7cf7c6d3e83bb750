"""Which short functions travel together, as one task: a bundle.

A bundle starts when the inputs of all its members are there, and its values can be used when its
last member has ended. So its members depend on each other, or could start at the same time anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from graphlib import TopologicalSorter
from itertools import accumulate
from typing import NamedTuple

from handoff_dask.model.expansion import Node
from handoff_dask.model.function import time_limit
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.placement.events import WorkerSpec

#: A function is short if this number of them fits into a bundle.
_SHORT = 4
#: Of what can run at the same time, each thread gets at least this number of bundles.
_PER_THREAD = 4
#: From so many dependencies on, a node is a collector.
_MANY = 32
#: What a call costs at least, including its records (s).
_CALL = 30e-6
#: Limits are compared with sums of floats.
_SLACK = 1 + 1e-6


class Candidate(NamedTuple):
    """A node that may become a member of a bundle."""

    #: Its index.
    node: int
    #: Indices of nodes, each once; they need not be candidates.
    dependencies: tuple[int, ...]
    #: How many nodes of the whole DAG depend on it.
    users: int
    #: What it claims; equal costs are best one object.
    cost: Mapping[str, float]
    priority: float
    #: How long it is expected to take; None: it travels alone.
    seconds: float | None
    #: How many of its users are collectors.
    collectors: int = 0


def is_short(seconds: float, worth: float) -> bool:
    """Whether a function is short enough for bundles of `worth` seconds of work."""
    return seconds <= worth / _SHORT


def is_collector(node: Node) -> bool:
    """Whether a node needs so many values that it takes those of a bundle together, as one."""
    return node.kind == "function" and len(node.dependencies) >= _MANY


def bundleable(node: Node, policy: RetryPolicy) -> bool:
    """Whether a node asks for nothing more than to be called, and to be retried at once."""
    return not (
        node.pin
        or node.preferred
        or node.collocated is not None
        or node.kind != "function"
        or "gpu" in node.cost
        or node.isolated
        or time_limit(node.function) is not None
        or policy.delay
        or policy.has_code
        or policy.avoid_last_worker == "always"
        or is_collector(node)
    )


def companions(nodes: Iterable[Node]) -> set[int]:
    """Return the nodes whose worker matters to another node: they travel alone, too."""
    return {i for node in nodes for i in (node.collocated, node.binds) if i is not None}


def candidates(
    nodes: Sequence[Node],
    policies: Sequence[RetryPolicy],
    expected: Sequence[float | None],
    worth: float,
) -> list[Candidate]:
    """Return the nodes of a DAG as :func:`bundles` takes them.

    Parameters
    ----------
    nodes, policies
        All nodes, by index, and how each is retried.
    expected
        How long each is expected to take, in seconds, as far as that is known.
    worth
        The most work in a bundle, in seconds.
    """
    users, collectors = [0] * len(nodes), [0] * len(nodes)
    for node in nodes:
        collects = is_collector(node)
        for i in node.dependencies:
            users[i] += 1
            collectors[i] += collects
    needed = companions(nodes)
    made = []
    for i in _in_order(nodes):
        node, seconds = nodes[i], expected[i]
        if seconds is not None and not (
            is_short(seconds, worth) and i not in needed and bundleable(node, policies[i])
        ):
            seconds = None
        priority = node.function.priority
        made.append(
            Candidate(i, node.dependencies, users[i], node.cost, priority, seconds, collectors[i])
        )
    return made


def _in_order(nodes: Sequence[Node]) -> Iterable[int]:
    """Return the indices of nodes, each after those of its dependencies."""
    if all(i < node.index for node in nodes for i in node.dependencies):
        return range(len(nodes))
    return TopologicalSorter({node.index: node.dependencies for node in nodes}).static_order()


def threads_for(cost: Mapping[str, float], workers: Iterable[WorkerSpec]) -> int:
    """Return how many functions of a cost the workers can run at once."""
    return sum(
        int(min([w.slots, *(w.capacity.get(n, 0) / a * _SLACK for n, a in cost.items() if a)]))
        for w in workers
    )


def bundles(
    candidates: Sequence[Candidate],
    *,
    worth: float,
    threads: Callable[[Mapping[str, float]], int],
) -> list[tuple[int, ...]]:
    """Choose which functions travel together.

    Parameters
    ----------
    candidates
        In an order in which each comes after those of its dependencies that are among them.
    worth
        The most work in a bundle, in seconds; above 0.
    threads
        ``cost -> how many functions of that cost can run at once``.

    Returns
    -------
    list
        Bundles of at least two members: indices, in an order in which each comes after its
        dependencies. A bundle claims what its first member claims; no member claims more of any
        resource. All other nodes travel alone. There are fewer tasks than without bundles, even
        if one more takes each value out of its bundle that is used outside.

    Notes
    -----
    A chain can be one bundle, because only one thread can run it. Of anything else, no more goes
    into a bundle than a fourth of a thread's share of all the work at the depths of the members.

    If each bundle is seen as one node, the DAG stays acyclic:

    - A node joins the cluster that holds all its dependencies: no path leaves that cluster and
      comes back to the node. Or it joins several clusters whose values are used nowhere else: the
      only way out of them leads to the node, and no path leads from it back to its dependencies.
    - Clusters become one bundle if they take values from the same bundles and single nodes. A path
      from one cluster to another would enter the latter from one of these. The former takes values
      from it, too, so there would have been a cycle before.
    """
    cluster_of = _clusters(candidates, *_depths(candidates, worth, threads))

    def sources(cluster: _Cluster) -> frozenset[int]:
        near = ((i, cluster_of.get(i)) for i in cluster.inputs)
        return frozenset(
            i if source is None or source.leader is None else source.leader for i, source in near
        )

    levels: dict[int, list[_Cluster]] = {}
    for cluster in dict.fromkeys(cluster_of.values()):
        levels.setdefault(cluster.level, []).append(cluster)
    made: list[tuple[int, ...]] = []
    for _, level in sorted(levels.items()):
        # The bundles that a level takes values from are complete: they are of lower levels.
        groups: dict[object, list[_Cluster]] = {}
        for cluster in level:
            if cluster.saved:
                key = id(cluster.kind), cluster.priority, sources(cluster)
                groups.setdefault(key, []).append(cluster)
        for group in groups.values():
            for part in _even_parts(group):
                if sum(cluster.saved for cluster in part) > 1:  # the bundle is a task itself
                    members = tuple(i for cluster in part for i in cluster.members)
                    made.append(members)
                    for cluster in part:
                        cluster.leader = members[0]
    return made


class _Kind:
    """The functions of one cost."""

    __slots__ = ("_before", "cost", "threads", "work", "worth")

    def __init__(self, cost: Mapping[str, float], worth: float) -> None:
        self.cost = cost
        self.worth = worth * _SLACK
        #: How many of them can run at once.
        self.threads = 1
        #: Seconds by depth.
        self.work: list[float] = []

    def complete(self, threads: int) -> None:
        """Prepare :meth:`limit`, once all functions are counted."""
        self.threads = max(threads, 1)
        self._before = [0.0, *accumulate(self.work)]

    def limit(self, low: int, high: int) -> float:
        """Return the most work in a bundle of functions of these depths, unless it is a chain."""
        # Members that cost less may be deeper than any function of this cost.
        work = self._before[min(high + 1, len(self.work))] - self._before[low]
        return min(self.worth, work * _SLACK / (_PER_THREAD * self.threads))

    def covers(self, other: _Kind) -> bool:
        """Whether this cost is at least the other one in every resource."""
        return self is other or all(a <= self.cost.get(n, 0) for n, a in other.cost.items())


class _Cluster:
    """Functions that depend on each other, in an order in which they can run."""

    __slots__ = (
        "high", "inputs", "is_chain", "kind", "leader", "level", "low", "members", "priority",
        "saved", "seconds", "waiting",
    )  # fmt: skip

    def __init__(self, first: Candidate, kind: _Kind, seconds: float, depth: int) -> None:
        self.members = [first.node]
        #: The first member's; the others cost no more of any resource.
        self.kind = kind
        self.priority = first.priority
        self.seconds = seconds
        #: The least and the greatest depth of a member.
        self.low = self.high = depth
        #: Whether each member depends on the one before it.
        self.is_chain = True
        #: How often values of members are used outside.
        self.waiting = first.users
        #: How many tasks it saves: members, except those whose value is used outside, as it takes
        #: a task to take a value out of a bundle. Collectors take several at once.
        self.saved = 0 if first.users > first.collectors else 1
        #: The nodes outside whose values are used.
        self.inputs: tuple[int, ...] = ()
        #: The length of the longest path of clusters to it.
        self.level = 0
        #: The first member of the bundle that it is in, if any; stands for that bundle.
        self.leader: int | None = None

    def __len__(self) -> int:
        return len(self.members)

    def absorb(self, other: _Cluster) -> None:
        """Append the members of another cluster."""
        self.members += other.members
        self.seconds += other.seconds
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)
        self.waiting += other.waiting
        self.saved += other.saved
        self.inputs += other.inputs
        self.level = max(self.level, other.level)


def _depths(
    candidates: Sequence[Candidate], worth: float, threads: Callable[[Mapping[str, float]], int]
) -> tuple[Mapping[int, int], Mapping[int, _Kind]]:
    """Return the depth of each candidate, and the kind of each cost by its ``id()``."""
    depths: dict[int, int] = {}
    kinds: dict[int, _Kind] = {}
    equal: dict[frozenset[tuple[str, float]], _Kind] = {}
    for node, dependencies, _, cost, _, seconds, _ in candidates:
        depth = 0
        for i in dependencies:
            if depths.get(i, -1) >= depth:
                depth = depths[i] + 1
        depths[node] = depth
        if seconds is None:
            continue
        kind = kinds.get(id(cost))
        if kind is None:
            kind = equal.setdefault(frozenset(cost.items()), _Kind(cost, worth))
            kinds[id(cost)] = kind
        if depth >= len(kind.work):
            kind.work += [0.0] * (1 + depth - len(kind.work))
        kind.work[depth] += max(seconds, _CALL)
    for kind in equal.values():
        kind.complete(threads(kind.cost))
    return depths, kinds


def _clusters(
    candidates: Sequence[Candidate], depths: Mapping[int, int], kinds: Mapping[int, _Kind]
) -> Mapping[int, _Cluster]:
    """Put together what depends on each other; return the cluster of each node."""
    cluster_of: dict[int, _Cluster] = {}
    #: How many users of each node are still to come; infinite once one did not join its cluster.
    left: dict[int, float] = {}
    #: How many users of each node are not in its cluster.
    outside: dict[int, int] = {}
    for candidate in candidates:
        node, dependencies, users, cost, _, expected, collectors = candidate
        for i in dependencies:
            if i in left:
                left[i] -= 1
        if expected is None:
            continue
        left[node] = users
        outside[node] = users - collectors
        own = _Cluster(candidate, kinds[id(cost)], max(expected, _CALL), depths[node])
        cluster_of[node] = own
        if not dependencies:
            continue
        sources = dict.fromkeys(map(cluster_of.get, dependencies))
        near = [cluster for cluster in sources if cluster is not None]
        siblings = max([left.get(i, math.inf) for i in dependencies])
        if len(near) == len(sources) and _may_join(own, near, len(dependencies), siblings):
            # The largest absorbs the others, so that each node moves a few times at most.
            home = max(near, key=len)
            home.is_chain = _extends_chain(own, near)
            near.append(own)
            for cluster in near:
                if cluster is not home:
                    home.absorb(cluster)
                    for i in cluster.members:
                        cluster_of[i] = home
            home.waiting -= len(dependencies)
            for i in dependencies:
                outside[i] -= 1
                if not outside[i]:
                    home.saved += 1
        else:
            own.inputs = dependencies
            own.level = 1 + max((cluster.level for cluster in near), default=-1)
            left.update(dict.fromkeys(dependencies, math.inf))
    return cluster_of


def _may_join(own: _Cluster, near: Sequence[_Cluster], uses: int, siblings: float) -> bool:
    """Whether a node may join the clusters that hold its dependencies, which become one.

    Parameters
    ----------
    own, near
        The node, and these clusters.
    uses
        How many values of the clusters it uses.
    siblings
        How many other nodes that depend on the same are still to come.
    """
    kind = near[0].kind
    if not kind.covers(own.kind):
        return False
    work, others, low, high = own.seconds, -uses, own.low, own.high
    for cluster in near:
        if cluster.kind is not kind or cluster.priority != own.priority:
            return False
        work += cluster.seconds
        others += cluster.waiting
        low = min(low, cluster.low)
        high = max(high, cluster.high)
    if others and len(near) > 1:
        return False
    if not others and _extends_chain(own, near):
        return work <= kind.worth
    # Siblings join as well, all or none. Those that did not fit would wait for those that did.
    return work + siblings * own.seconds <= kind.limit(low, high)


def _extends_chain(own: _Cluster, near: Sequence[_Cluster]) -> bool:
    """Whether a node and the clusters that hold its dependencies are a chain."""
    return len(near) == 1 and near[0].is_chain and near[0].high < own.low


def _even_parts(group: Sequence[_Cluster]) -> list[list[_Cluster]]:
    """Cut a group into parts of about equal work, on average within the limit."""
    low, high = min(cluster.low for cluster in group), max(cluster.high for cluster in group)
    kind = group[0].kind
    left = sum(cluster.seconds for cluster in group)
    fitting = max(kind.worth // (left / len(group)), 1)
    count = math.ceil(max(left / kind.limit(low, high), len(group) / fitting))
    if count > kind.threads:  # each thread gets as many as the others, so that all end together
        count += -count % kind.threads
    parts: list[list[_Cluster]] = []
    work = even = 0.0
    for cluster in group:
        seconds = cluster.seconds
        if not parts or work + seconds > kind.worth or work + seconds / 2 > even:
            left -= work
            work = 0.0
            even = left / max(count - len(parts), 1)
            parts.append([])
        parts[-1].append(cluster)
        work += seconds
    return parts
