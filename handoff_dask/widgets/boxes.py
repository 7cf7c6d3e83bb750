"""The boxes and lines of a DAG's drawing. The DAG need not be valid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from handoff_dask.errors import CyclicDependencyError, DAGError
from handoff_dask.model.function import (
    Argument,
    Collocated,
    Function,
    argument_id,
    claims,
    dependencies,
    dependency_ids,
)
from handoff_dask.widgets import markup
from handoff_dask.widgets.layout import Edge, levels

#: More functions than this are drawn as boxes of functions that share their code.
MOST_SINGLE = 100
#: More groups than this are not split by depth in the graph; of those, the largest get boxes.
MOST_GROUPS = 48
#: Of more lines than this between groups, the thickest are drawn.
MOST_LINES = 300


@dataclass(slots=True)
class Box:
    """One box of the drawing."""

    #: Its text.
    title: str
    lines: list[str] = field(default_factory=list)
    #: The text shown while the pointer rests on it.
    tooltip: str = ""
    #: ``"box"``, ``"inline"``, or ``"missing"`` for ids that are not in the DAG.
    kind: str = "box"
    #: Whether an error is about it.
    wrong: bool = False
    #: How many functions it stands for.
    size: int = 1
    #: The same for all functions that are collocated; None for others.
    place: Hashable = None


@dataclass(slots=True)
class Line:
    """One line of the drawing: how many dependencies it stands for, and how it looks."""

    size: int = 1
    wrong: bool = False
    transformed: bool = False


@dataclass(frozen=True)
class Picture:
    """The boxes, and the lines between them by the indices of the boxes."""

    boxes: list[Box]
    lines: dict[Edge, Line]
    collapsed: bool = False
    #: Lines between groups that were left out.
    hidden: int = 0


def picture(
    functions: Mapping[Hashable, Function], codes: Sequence[str], error: DAGError | None = None
) -> Picture:
    """Return the boxes and lines of a DAG.

    The functions, by id, may be in any state; `codes` has the name of each function's code, in the
    same order. The culprits of the error are marked.
    """
    numbers: dict[Hashable, int] = {id_: i for i, id_ in enumerate(functions)}
    lines: dict[Edge, Line] = {}
    missing: dict[str, int] = {}
    for function in functions.values():
        for arg in dependencies(function):
            id_ = argument_id(arg)
            number = _number(id_, numbers)
            if number is None:
                number = missing.setdefault(markup.plain(id_), len(functions) + len(missing))
            line = lines.setdefault((number, numbers[function.id]), Line(0))
            line.size += 1
            if isinstance(arg, Argument):
                plain = arg.serialization_fn is None and arg.deserialization_fn is None
                line.transformed = line.transformed or not plain
    wrong = _culprits(error, numbers, lines)
    if len(functions) + len(missing) > MOST_SINGLE:
        return _collapsed(functions, codes, lines, missing, wrong)
    places = _places(functions)
    boxes = [
        _box(function, code, function.id in wrong, places.get(function.id))
        for function, code in zip(functions.values(), codes, strict=True)
    ]
    boxes += [
        Box(text, ["not in the DAG"], f"{text} is not in the DAG", "missing", True)
        for text in missing
    ]
    for line in lines.values():
        line.size = 1
    return Picture(boxes, lines)


def _number(id_: Hashable, numbers: Mapping[Hashable, int]) -> int | None:
    try:
        return numbers.get(id_)
    except TypeError:  # not hashable, and so no id
        return None


def _culprits(
    error: DAGError | None, numbers: Mapping[Hashable, int], lines: Mapping[Edge, Line]
) -> set[Hashable]:
    """Mark the lines that an error is about; return the ids of the functions it is about."""
    if not isinstance(error, CyclicDependencyError):
        culprit = getattr(error, "function_id", None)
        return {culprit} if _number(culprit, numbers) is not None else set()
    for here, there in zip(error.cycle, (*error.cycle[1:], error.cycle[0]), strict=True):
        line = lines.get((numbers[here], numbers[there]))
        if line is not None:
            line.wrong = True
    return set(error.cycle)


def _places(functions: Mapping[Hashable, Function]) -> dict[Hashable, Hashable]:
    """Return, for collocated functions, the function whose worker they share."""
    numbers = dict.fromkeys(functions, 0)
    towards = {
        f.id: f.node.id
        for f in functions.values()
        if isinstance(f.node, Collocated) and _number(f.node.id, numbers) is not None
    }
    places: dict[Hashable, Hashable] = {}
    for id_ in towards:
        end, seen = id_, set()
        while end in towards and end not in seen:
            seen.add(end)
            end = towards[end]
        places[id_] = places[end] = end
    return places


def _box(function: Function, code: str, wrong: bool, place: Hashable) -> Box:
    title = markup.plain(function.id)
    lines = [] if code == title else [code]
    cost = claims(function)
    if isinstance(cost, Mapping) and cost:
        lines.append(markup.cost(cost))
    node = function.node
    if isinstance(node, Collocated):
        lines.append(f"with {markup.plain(node.id)}")
    elif node is not None:
        workers = node if isinstance(node, tuple) else (node,)
        lines.append(f"@ {' or '.join(map(markup.plain, workers))}")
    return Box(title, lines, _tooltip(function, code), _kind(function), wrong, 1, place)


def _kind(function: Function) -> str:
    return "inline" if function.type == "inline" else "box"


def _tooltip(function: Function, code: str) -> str:
    parts = [f"{markup.plain(function.id)} ({function.type})", f"code: {code}"]
    if ids := dependency_ids(function):
        parts.append(f"takes {markup.names(ids, 8)}")
    if function.cost:
        parts.append(f"costs {function.cost!r}")
    if function.node is not None:
        preferred = " (preferred)" if function.allow_other_workers else ""
        parts.append(f"node: {function.node!r}{preferred}")
    if function.priority:
        parts.append(f"priority: {function.priority!r}")
    if function.max_retries is not None:
        parts.append(f"max_retries: {function.max_retries!r}")
    if function.timeout is not None:
        parts.append(f"timeout: {function.timeout!r} s")
    return "\n".join(parts)


def _collapsed(
    functions: Mapping[Hashable, Function],
    codes: Sequence[str],
    lines: Mapping[Edge, Line],
    missing: Mapping[str, int],
    wrong: set[Hashable],
) -> Picture:
    """Draw functions that share their code as one box: one for each depth, if those are few."""
    nothing = "not in the DAG"
    total = len(functions) + len(missing)
    kinds = [str(f.type) for f in functions.values()] + ["missing"] * len(missing)
    by_code = list(zip([*codes, *[nothing] * len(missing)], kinds, strict=True))
    by_depth = list(zip(by_code, levels(total, list(lines)), strict=True))
    groups: list[Hashable] = list(by_depth)
    if len(set(by_depth)) > MOST_GROUPS:
        groups = list(by_code)
        sizes = Counter(by_code)
        if len(sizes) > MOST_GROUPS:
            kept = {group for group, _ in sizes.most_common(MOST_GROUPS - 1)}
            groups = [group if group in kept else None for group in by_code]
    members: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    numbers = {group: number for number, group in enumerate(members)}
    box_of = [numbers[group] for group in groups]
    all_functions = list(functions.values())
    boxes = []
    for group, inside in members.items():
        if inside[0] >= len(all_functions):
            texts = list(missing)[: len(inside)]
            boxes.append(Box(nothing, [], markup.names(texts, 8), "missing", True, len(inside)))
            continue
        stacked = [all_functions[i] for i in inside if i < len(all_functions)]
        different = len({by_code[i] for i in inside})
        title = f"{different:,} other codes" if group is None else codes[inside[0]]
        boxes.append(_stack(title, stacked, any(f.id in wrong for f in stacked)))
    merged: dict[Edge, Line] = {}
    for (a, b), line in lines.items():
        into = merged.setdefault((box_of[a], box_of[b]), Line(0))
        into.size += line.size
        into.wrong = into.wrong or line.wrong
        into.transformed = into.transformed or line.transformed
    shown = sorted(merged, key=lambda e: (not merged[e].wrong, -merged[e].size))[:MOST_LINES]
    return Picture(boxes, {e: merged[e] for e in shown}, True, len(merged) - len(shown))


def _stack(title: str, functions: Sequence[Function], wrong: bool) -> Box:
    """Return a box that stands for many functions."""
    lines = []
    costs = [cost for cost in map(claims, functions) if isinstance(cost, Mapping) and cost]
    if costs:
        lines.append(markup.cost_range(costs))
    collocated = sum(isinstance(f.node, Collocated) for f in functions)
    pinned = sum(f.node is not None for f in functions) - collocated
    where = [f"{n:,} {what}" for n, what in ((pinned, "pinned"), (collocated, "collocated")) if n]
    if where:
        lines.append(", ".join(where))
    ids = markup.names([f.id for f in functions], 8)
    tooltip = f"{markup.count(len(functions), 'function')}: {ids}"
    return Box(title, lines, tooltip, _kind(functions[0]), wrong, len(functions))
