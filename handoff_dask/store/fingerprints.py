"""Digests of objects, the same in every process: of what they consist of, code included.

An object is hashed from its shape and the digests of the objects inside it. Objects that contain
each other, such as functions that call each other, are hashed together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from handoff_dask.store.hashing import digest_of
from handoff_dask.store.shapes import Edge, Shape, Unnameable, shape


class Fingerprint(NamedTuple):
    """What identifies an object."""

    #: Of everything that belongs to it.
    digest: bytes
    #: Of all but its pieces, which count by their names only.
    own: bytes
    #: Functions, classes and globals of the user's that belong to it, with their own digests.
    pieces: frozenset[tuple[str, bytes]] = frozenset()
    #: Distributions that belong to it.
    libraries: frozenset[str] = frozenset()
    #: Its name if it is a function or class of the user's, and so a piece itself.
    piece: str | None = None


#: How deeply objects may be nested. Some make another of their kind whenever they are inspected.
_DEEPEST = 10_000


@dataclass(slots=True)
class _Visit:
    """An object on the way from the root to the one that is looked at."""

    label: str
    id: int
    edges: Iterator[Edge]
    #: Its number in the order of visits, and the lowest number known to be in its cycle.
    number: int
    earliest: int


class Fingerprints:
    """Fingerprints of objects, each made once; they must not change meanwhile."""

    def __init__(self) -> None:
        self._made: dict[int, Fingerprint] = {}
        self._failed: dict[int, str] = {}
        #: Objects, so that no other gets their ids.
        self._alive: list[Any] = []

    def of(self, value: Any, label: str) -> Fingerprint:
        """Return the fingerprint of an object, or raise `Unnameable`; `label` begins the path."""
        if id(value) in self._failed:
            raise Unnameable(f"{label} -> {self._failed[id(value)]}")
        if id(value) not in self._made:
            try:
                self._make(value)
            except Unnameable as problem:
                self._failed[id(value)] = str(problem)
                self._alive.append(value)
                raise Unnameable(f"{label} -> {problem}") from None
        return self._made[id(value)]

    def _make(self, root: Any) -> None:
        """Make the fingerprints of an object and of those inside it (Tarjan's algorithm)."""
        shapes: dict[int, Shape] = {}
        numbers: dict[int, int] = {}
        open_: list[int] = []  # reached, but not known yet which of them contain each other
        path: list[_Visit] = []

        def visit(label: str, value: Any) -> None:
            try:
                if len(path) > _DEEPEST:
                    raise Unnameable("nested too deeply")
                made = shape(value)
            except Exception as error:
                what = str(error) if isinstance(error, Unnameable) else type(value).__name__
                labels = [*(step.label for step in path[1:]), *([label] if path else [])]
                raise Unnameable(" -> ".join([*labels, what])) from None
            self._alive.append(value)
            shapes[id(value)] = made
            number = numbers[id(value)] = len(numbers)
            open_.append(id(value))
            edges = (part for part in made.content if isinstance(part, Edge))
            path.append(_Visit(label, id(value), edges, number, number))

        visit("", root)
        while path:
            here = path[-1]
            for edge in here.edges:
                inner = id(edge.value)
                if inner in self._made:
                    continue
                if inner not in numbers:
                    visit(edge.label, edge.value)
                    break
                here.earliest = min(here.earliest, numbers[inner])
            else:
                path.pop()
                if path:
                    path[-1].earliest = min(path[-1].earliest, here.earliest)
                if here.earliest == here.number:
                    first = open_.index(here.id) if open_[-1] != here.id else len(open_) - 1
                    self._finish({member: shapes.pop(member) for member in open_[first:]})
                    del open_[first:]

    def _finish(self, members: Mapping[int, Shape]) -> None:
        """Make the fingerprints of objects that contain each other, or of a single one."""
        digests = self._digests(members, pieces_by_name=False)
        own = digests
        edges = [part for m in members.values() for part in m.content if isinstance(part, Edge)]
        if any(self._piece(edge, members) or self._has_pieces(edge) for edge in edges):
            own = self._digests(members, pieces_by_name=True)
        inside = [self._made[id(e.value)] for e in edges if id(e.value) in self._made]
        pieces = {(m.piece, own[id_]) for id_, m in members.items() if m.piece is not None}
        for edge in edges:
            if edge.binding is not None and self._piece(edge, members) == edge.binding:
                value = id(edge.value)
                pieces.add((edge.binding, own[value] if value in own else self._made[value].own))
        all_pieces = frozenset(pieces).union(*(i.pieces for i in inside))
        libraries = frozenset[str]().union(
            *(m.libraries for m in members.values()), *(i.libraries for i in inside)
        )
        for id_, member in members.items():
            self._made[id_] = Fingerprint(
                digests[id_], own[id_], all_pieces, libraries, member.piece
            )

    def _has_pieces(self, edge: Edge) -> bool:
        inner = self._made.get(id(edge.value))
        return inner is not None and inner.own != inner.digest

    def _piece(self, edge: Edge, members: Mapping[int, Shape]) -> str | None:
        """Return the name of what an edge leads to, if that is a piece."""
        inner = id(edge.value)
        if inner in members:
            return members[inner].piece or edge.binding
        made = self._made[inner]
        # What is installed counts as a library.
        return made.piece or (None if made.libraries and not made.pieces else edge.binding)

    def _digests(self, members: Mapping[int, Shape], pieces_by_name: bool) -> dict[int, bytes]:
        """Return a digest of each object, the same whichever of them was reached first.

        Objects that contain each other are distinguished by their content to a growing depth, until
        a greater depth distinguishes no more of them.
        """

        def digest(shape: Shape, known: Mapping[int, bytes]) -> bytes:
            parts = []
            for part in shape.content:
                if isinstance(part, bytes):
                    parts.append(part)
                elif pieces_by_name and (name := self._piece(part, members)):
                    parts.append(b"&%b;" % name.encode("utf-8", "surrogatepass"))
                elif id(part.value) in known:
                    parts.append(b"@" + known[id(part.value)])
                else:
                    made = self._made[id(part.value)]
                    parts.append(b"@" + (made.own if pieces_by_name else made.digest))
            return digest_of(sorted(parts) if shape.unordered else parts)

        if len(members) == 1:
            ((id_, alone),) = members.items()
            if all(isinstance(part, bytes) or id(part.value) != id_ for part in alone.content):
                return {id_: digest(alone, {})}
        before = dict.fromkeys(members, bytes(20))
        while True:
            after = {id_: digest(shape, before) for id_, shape in members.items()}
            if len(set(after.values())) == len(set(before.values())):
                break
            before = after
        together = digest_of(sorted({before[id_] + after[id_] for id_ in members}))
        return {id_: digest_of((after[id_], together)) for id_ in members}
