"""The layout of a graph: layers by longest path, few crossings, short lines."""

from __future__ import annotations

import itertools
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]
Edge = tuple[int, int]

#: Pixels between layers, to the right and downwards, and between boxes of one layer.
LAYER_GAPS = (44.0, 30.0)
BOX_GAP = 14.0
#: Breadth that is kept free for a line that passes through a layer.
_LINE = 6.0
#: Lines go around the boxes of layers that they pass, unless that takes more bends than this.
_BENDS = 3000
_SWEEPS = 8


@dataclass(frozen=True)
class Layout:
    """A graph laid out."""

    #: The middle of each box (pixels).
    centres: list[Point]
    #: {edge: the points of its line, from box to box}.
    lines: dict[Edge, list[Point]]
    #: Width and height of the graph.
    size: Point
    #: Whether it flows downwards instead of to the right.
    downwards: bool


def levels(count: int, edges: Sequence[Edge]) -> list[int]:
    """Return for each node the length of the longest path to it from a node without dependencies.

    In a cycle, the edge that closes it does not count.
    """
    users: list[list[int]] = [[] for _ in range(count)]
    sources: list[list[int]] = [[] for _ in range(count)]
    missing = [0] * count
    for a, b in edges:
        if a != b:
            users[a].append(b)
            sources[b].append(a)
            missing[b] += 1
    level = [0] * count
    placed = [not n for n in missing]
    ready = deque(i for i in range(count) if placed[i])
    rest = iter(range(count))
    while True:
        while ready:
            here = ready.popleft()
            for user in users[here]:
                if placed[user]:
                    continue
                level[user] = max(level[user], level[here] + 1)
                missing[user] -= 1
                if not missing[user]:
                    placed[user] = True
                    ready.append(user)
        stuck = next((i for i in rest if not placed[i]), None)
        if stuck is None:
            return level
        # Follow the edges backwards, from a node behind a cycle into the cycle.
        seen: set[int] = set()
        start = stuck
        while start not in seen:
            seen.add(start)
            start = next(i for i in sources[start] if not placed[i])
        placed[start] = True
        ready.append(start)
        rest = iter(range(stuck, count))


def arrange(count: int, edges: Sequence[Edge], box: Point, view: float = 1000.0) -> Layout:
    """Lay out a graph from left to right or, if it fits the view better, downwards.

    The nodes are the numbers below `count`; edges lead to the node that depends on the other.
    `box` is the width and height of each box, `view` the width that is visible without scrolling
    (pixels).
    """
    edges = list(dict.fromkeys(edges))
    level = _near_users(levels(count, edges), edges)
    depth = max(level, default=-1) + 1
    wide = box[0]
    broadest = max((level.count(i) for i in set(level)), default=0)
    across = depth * (wide + LAYER_GAPS[0])
    down = broadest * (wide + BOX_GAP)
    return _Drawing(level, edges, box, downwards=across > max(view, down)).layout()


def _near_users(level: list[int], edges: Sequence[Edge]) -> list[int]:
    """Move nodes without dependencies to just before their first user."""
    first: dict[int, int] = {}
    fed = {b for a, b in edges if a != b}
    for a, b in edges:
        if a not in fed and a != b:
            first[a] = min(first.get(a, level[b]), level[b])
    return [max(0, first[i] - 1) if i in first else at for i, at in enumerate(level)]


class _Drawing:
    """A layout in progress, in coordinates along the flow and across it."""

    def __init__(
        self, level: list[int], edges: Sequence[Edge], box: Point, downwards: bool
    ) -> None:
        self.box = box
        self.downwards = downwards
        self.long, self.broad = (box[1], box[0]) if downwards else box
        self.gap = LAYER_GAPS[downwards]
        self.count = len(level)
        self.level = list(level)
        self.layers: list[list[int]] = [[] for _ in range(max(level, default=-1) + 1)]
        for node, at in enumerate(level):
            self.layers[at].append(node)
        #: The nodes that an edge passes, its ends included, always in the direction of the flow.
        self.chains: dict[Edge, list[int]] = {}
        bends = sum(max(0, abs(level[b] - level[a]) - 1) for a, b in edges)
        for a, b in edges:
            low, high = (a, b) if level[a] <= level[b] else (b, a)
            chain = [low]
            if bends <= _BENDS:
                for at in range(level[low] + 1, level[high]):
                    chain.append(len(self.level))
                    self.layers[at].append(len(self.level))
                    self.level.append(at)
            self.chains[a, b] = [*chain, high]
        self.before: list[list[int]] = [[] for _ in self.level]
        self.after: list[list[int]] = [[] for _ in self.level]
        for chain in self.chains.values():
            for p, q in itertools.pairwise(chain):
                if self.level[p] < self.level[q]:
                    self.after[p].append(q)
                    self.before[q].append(p)

    def layout(self) -> Layout:
        self._order()
        across = self._across()
        along = [at * (self.long + self.gap) + self.long / 2 for at in range(len(self.layers))]
        lines = {edge: self._line(edge, along, across) for edge in self.chains}
        centres = [self._point(along[self.level[i]], across[i]) for i in range(self.count)]
        length = len(self.layers) * (self.long + self.gap) - self.gap
        breadth = max((x + self._breadth(i) / 2 for i, x in enumerate(across)), default=0.0)
        size = self._point(max(length, 0.0), breadth)
        return Layout(centres, lines, size, self.downwards)

    def _point(self, along: float, across: float) -> Point:
        return (across, along) if self.downwards else (along, across)

    def _breadth(self, node: int) -> float:
        return self.broad if node < self.count else _LINE

    def _line(self, edge: Edge, along: list[float], across: list[float]) -> list[Point]:
        chain, half = self.chains[edge], self.long / 2
        points: list[Point] = []
        for node in chain:
            at, x = along[self.level[node]], across[node]
            points += [self._point(at - half, x), self._point(at + half, x)]
        points = points[1:-1]
        return points if chain[0] == edge[0] else points[::-1]

    def _order(self) -> None:
        """Sort each layer by the places of its neighbours, back and forth; keep the best order."""
        best, fewest = [list(layer) for layer in self.layers], self._crossings()
        for sweep in range(_SWEEPS):
            if not fewest:
                break
            forth = sweep % 2 == 0
            steps = range(1, len(self.layers)) if forth else range(len(self.layers) - 2, -1, -1)
            for at in steps:
                beside = self.before if forth else self.after
                place = {n: i for i, n in enumerate(self.layers[at - 1 if forth else at + 1])}
                pull: dict[int, float] = {}
                for i, node in enumerate(self.layers[at]):
                    near = beside[node]
                    pull[node] = sum(place[n] for n in near) / len(near) if near else i
                self.layers[at].sort(key=pull.__getitem__)
            crossings = self._crossings()
            if crossings < fewest:
                best, fewest = [list(layer) for layer in self.layers], crossings
        self.layers = best

    def _crossings(self) -> int:
        total = 0
        for here, there in zip(self.layers, self.layers[1:], strict=False):
            place = {n: i for i, n in enumerate(there)}
            seen: list[int] = []
            for node in here:
                # Lines without bends may skip the next layer.
                ends = sorted(place[n] for n in self.after[node] if n in place)
                total += sum(len(seen) - bisect_right(seen, end) for end in ends)
                for end in ends:
                    insort(seen, end)
        return total

    def _across(self) -> list[float]:
        """Place the nodes of each layer close to the mean of their neighbours."""
        across = [0.0] * len(self.level)
        for layer in self.layers:
            at = 0.0
            for node in layer:
                across[node] = at + self._breadth(node) / 2
                at += self._breadth(node) + BOX_GAP
        rounds = [(self.before, 1), (self.after, -1)] * 3
        for beside, step in rounds:
            for layer in self.layers[::step]:
                wanted = [
                    sum(across[n] for n in beside[node]) / len(beside[node])
                    if beside[node]
                    else across[node]
                    for node in layer
                ]
                # Straight lines matter more than boxes near their neighbours.
                weights = [1.0 if node < self.count else 2.0 for node in layer]
                breadths = [self._breadth(node) for node in layer]
                for node, x in zip(layer, spread(wanted, weights, breadths), strict=True):
                    across[node] = x
        first = min((x - self._breadth(i) / 2 for i, x in enumerate(across)), default=0.0)
        return [x - first for x in across]


def spread(
    wanted: Sequence[float], weights: Sequence[float], breadths: Sequence[float]
) -> list[float]:
    """Return places in the given order, as near as possible to those wanted, without overlap.

    The larger the weight of one, the more it matters that it gets the place that it would have
    alone. Between them, each with its breadth, ``BOX_GAP`` is left.

    Examples
    --------
    >>> spread([0, 0], [1, 1], [10, 10])
    [-12.0, 12.0]
    """
    shift = 0.0
    shifts: list[float] = []
    for i, breadth in enumerate(breadths):
        if i:
            shift += (breadths[i - 1] + breadth) / 2 + BOX_GAP
        shifts.append(shift)
    # Less their breadths, places must not decrease: those that would are pooled at their mean.
    pools: list[tuple[float, float, int]] = []
    for goal, weight, offset in zip(wanted, weights, shifts, strict=True):
        mean, total, size = goal - offset, weight, 1
        while pools and pools[-1][0] > mean:
            other, mass, members = pools.pop()
            mean = (mean * total + other * mass) / (total + mass)
            total += mass
            size += members
        pools.append((mean, total, size))
    places = [mean for mean, _, size in pools for _ in range(size)]
    return [place + offset for place, offset in zip(places, shifts, strict=True)]
