"""Names of results: by the code, the arguments and the results that go into them.

Two nodes have the same name only if they compute the same. What a function does is found in its
bytecode and in what that refers to: helpers, constants, defaults and variables that it closes over,
as they are when the DAG is submitted. Comments, docstrings, annotations of functions, the names of
functions, files and lines do not count. Code that is installed counts by the version of its
distribution. Files count by their paths, not by their content.

Arguments are equal if their types and contents are. The order counts in lists and dicts, but not in
sets, attributes and keyword arguments. Whether two arguments are one object does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import toolz

from handoff_dask.learning.identity import qualified_name
from handoff_dask.model.expansion import Call, Entry, Listed, Node
from handoff_dask.model.marking import code_name
from handoff_dask.store.fingerprints import Fingerprint, Fingerprints
from handoff_dask.store.hashing import digest, digest_of
from handoff_dask.store.installed import Versions, version
from handoff_dask.store.shapes import Unnameable, plain

__all__ = ["Namer", "ResultName", "Unnameable", "changes"]

#: Names of functions, classes and globals of the user's, with digests of their own content.
Pieces: TypeAlias = frozenset[tuple[str, bytes]]

#: What is hashed, and how. Another format gives other names.
_FORMAT = b"handoff-1"


class ResultName(NamedTuple):
    """What identifies a result."""

    #: 40 hexadecimal digits.
    key: str
    #: The module and name of the code, or its `store_key`.
    label: str
    #: Digests of the functions, classes and globals that went in, and versions of distributions.
    code: Mapping[str, str]
    #: Digests of the arguments.
    arguments: Mapping[str, str]
    #: Keys of the results that are passed, by argument.
    upstream: Mapping[str, str]


class Namer:
    """Names the results of one submission; each object is hashed once.

    Parameters
    ----------
    versions
        What counts of the versions of Python and of installed distributions: ``"exact"``, all;
        ``"minor"``, the first two numbers; ``"ignore"``, nothing.

    Examples
    --------
    >>> import threading
    >>> from handoff_dask import DAG
    >>> from handoff_dask.model.expansion import expand
    >>> def name(*args):
    ...     dag = DAG()
    ...     dag.add(pow, *args)
    ...     return Namer().names(expand(dag.functions))[0]
    >>> name(2, 3).label, list(name(2, 3).arguments)
    ('builtins.pow', ['argument 0', 'argument 1'])
    >>> changes(name(2, 4), name(2, 3))
    ['argument 1 changed']
    >>> name(2, threading.Lock())
    Unnameable('argument 1 -> lock')
    """

    def __init__(self, versions: Versions = "exact") -> None:
        self._versions = versions
        self._fingerprints = Fingerprints()
        self._codes: dict[int, _Code] = {}
        self._manifests: dict[tuple[Pieces, frozenset[str]], tuple[dict[str, str], bytes]] = {}

    def names(self, nodes: Sequence[Node]) -> list[ResultName | Unnameable]:
        """Return the name of each node's result, or why it has none, by the node's index."""
        by_index = {node.index: node for node in nodes}
        made: dict[int, ResultName | Unnameable] = {}
        #: By index: why results that depend on this node's have no name.
        reasons: dict[int, Unnameable] = {}
        pending = list(nodes)[::-1]
        while pending:
            node = pending[-1]
            ahead = [by_index[i] for i in node.dependencies if i not in made]
            if ahead:
                pending += ahead
                continue
            pending.pop()
            if node.index in made:
                continue
            reason = next((reasons[i] for i in node.dependencies if i in reasons), None)
            if reason is not None:
                made[node.index] = reasons[node.index] = reason
                continue
            try:
                made[node.index] = self._name(node, made)
            except Unnameable as problem:
                made[node.index] = Unnameable(str(problem))  # without its traceback
                reasons[node.index] = Unnameable(f"depends on {node.function.id!r}: {problem}")
        return [made[index] for index in sorted(made)]

    def _name(self, node: Node, made: Mapping[int, Any]) -> ResultName:
        description = _Description(self, [made[i].key for i in node.dependencies])
        description.call(node.call)
        pieces, libraries = description.pieces, description.libraries
        if (pieces, libraries) not in self._manifests:
            self._manifests[pieces, libraries] = self._manifest(pieces, libraries)
        code, versions = self._manifests[pieces, libraries]
        content = (_FORMAT, node.kind.encode(), versions, *description.content)
        return ResultName(
            digest_of(content).hex(),
            description.label,
            code,
            description.arguments,
            description.upstream,
        )

    def _manifest(self, pieces: Pieces, libraries: frozenset[str]) -> tuple[dict[str, str], bytes]:
        """Return `ResultName.code`, and the versions for the key."""
        digests: dict[str, list[bytes]] = {}
        for name, own in sorted(pieces):
            digests.setdefault(name, []).append(own)
        # Closures of one function have one name.
        code = {
            n: _short(own[0] if len(own) == 1 else digest_of(own)) for n, own in digests.items()
        }
        if self._versions == "ignore":
            return code, b""
        versions = {name: version(name, self._versions) for name in sorted(libraries)}
        return code | versions, repr(versions).encode()

    def code(self, code: Any) -> _Code:
        """Describe a callable."""
        if id(code) not in self._codes:
            label = qualified_name(code)
            made = self._fingerprints.of(code, code_name(code))
            pieces = made.pieces if made.piece else made.pieces | {(label, made.own)}
            self._codes[id(code)] = _Code(label, made.digest, pieces, made.libraries)
        return self._codes[id(code)]

    def value(self, value: Any, label: str) -> Fingerprint:
        """Return the fingerprint of an argument."""
        return self._fingerprints.of(value, label)


class _Code(NamedTuple):
    """A callable of one call or of many."""

    label: str
    digest: bytes
    pieces: Pieces
    libraries: frozenset[str]


class _Description:
    """What the key of one node is made of; `keys` are those of the node's dependencies."""

    def __init__(self, namer: Namer, keys: Sequence[str]) -> None:
        self._namer = namer
        self._keys = keys
        #: Numbers of the calls so far, by id. A call that is used twice is evaluated once.
        self._calls: dict[int, int] = {}
        self.label = ""
        self.content: list[bytes] = []
        self.pieces: Pieces = frozenset()
        self.libraries: frozenset[str] = frozenset()
        self.arguments: dict[str, str] = {}
        self.upstream: dict[str, str] = {}

    def call(self, call: Call, suffix: str = "") -> None:
        """Add a call, which stands at a place of another, or is the node's own."""
        self._calls[id(call)] = len(self._calls)
        code = call.code
        while type(code) in (partial, toolz.curry):
            self._arguments(code.args, code.keywords or {}, "bound ", suffix)
            code = code.func
        if call.store_key is None:
            label = self._code(code)
        else:
            label = call.store_key
            encoded = digest(label.encode("utf-8", "surrogatepass"))
            self.content.append(b"store_key" + encoded)
            self._add(frozenset([(f"store_key{suffix}", encoded)]), frozenset())
        self.label = self.label or label
        for number, entry in enumerate(call.args):
            self._entry(entry, f"argument {number}{suffix}")
        self._arguments(call.extra_args, call.extra_kwargs, "", suffix, len(call.args))
        for number, entry in enumerate(call.slots):
            self._entry(entry, f"nested argument {number}{suffix}")

    def _code(self, code: Any) -> str:
        made = self._namer.code(code)
        self.content.append(b"@" + made.digest)
        self._add(made.pieces, made.libraries)
        return made.label

    def _add(self, pieces: Pieces, libraries: frozenset[str]) -> None:
        # Most often there is only the code: then its own sets are kept, whose hashes are known.
        self.pieces = self.pieces | pieces if self.pieces else pieces
        self.libraries = self.libraries | libraries if self.libraries else libraries

    def _arguments(
        self,
        values: Sequence[Any],
        keywords: Mapping[str, Any],
        prefix: str,
        suffix: str,
        first: int = 0,
    ) -> None:
        self.content.append(b"(%d %d)" % (len(values), len(keywords)))
        for number, value in enumerate(values, first):
            self._value(value, f"{prefix}argument {number}{suffix}")
        for name in sorted(keywords):
            self.content.append(b"%a=" % name)
            self._value(keywords[name], f"{prefix}keyword {name}{suffix}")

    def _value(self, value: Any, label: str) -> None:
        encoded = plain(value)
        if encoded is not None:
            self.content.append(encoded)
            self.arguments[label] = _short(digest(encoded))
            return
        made = self._namer.value(value, label)
        self.content.append(b"@" + made.digest)
        self.arguments[label] = _short(made.own)
        self._add(made.pieces, made.libraries)

    def _entry(self, entry: Entry, label: str) -> None:
        if isinstance(entry, int):
            self.content.append(b"[%d %b]" % (entry, self._keys[entry].encode()))
            self.upstream[label] = self._keys[entry]
        elif isinstance(entry, Listed):
            self.content.append(b"[list %d]" % len(entry.items))
            for number, item in enumerate(entry.items):
                self._entry(item, f"{label}[{number}]")
        elif not isinstance(entry, Call):
            self.content.append(b"[transformed %d]" % len(entry.transforms))
            self._entry(entry.item, label)
            for code, static in entry.transforms:
                self._code(code)
                self._arguments(static, {}, "transform ", f" of {label}")
        elif id(entry) in self._calls:
            self.content.append(b"[again %d]" % self._calls[id(entry)])
        else:
            self.content.append(b"[call]")
            self.call(entry, f" of {label}")


def _short(digest: bytes) -> str:
    return digest.hex()[:12]


def changes(
    new: ResultName,
    old: ResultName | Mapping[str, Mapping[str, str]],
    makers: Mapping[str, str] | None = None,
) -> list[str]:
    """Say in words which parts of a name differ from those of another.

    The other one may be a mapping with `code`, `arguments` and `upstream`. `makers` gives the
    function that makes the result of each key in `upstream`.
    """

    def whose(name: str, key: str) -> str:
        return f"of {makers[key]}" if makers and key in makers else f"that is passed as {name}"

    if isinstance(old, ResultName):
        if old.key == new.key:
            return []
        old = old._asdict()
    changed = [
        *_changes(new.code, old["code"], _code_change),
        *_changes(new.arguments, old["arguments"], lambda name, *_: f"{name} changed"),
        *_changes(
            new.upstream,
            old["upstream"],
            lambda name, key, _: f"the result {whose(name, key)} changed",
        ),
    ]
    return changed or ["how the arguments are passed changed"]


def _code_change(name: str, new: str, old: str) -> str:
    if _is_version(new) or _is_version(old):
        return f"{name} is {new} instead of {old}"
    return f"{name} changed" if name.startswith("store_key") else f"code of {name} changed"


def _is_version(text: str) -> bool:
    return len(text) != 12 or not set(text) <= set("0123456789abcdef")


def _changes(
    new: Mapping[str, str], old: Mapping[str, str], words: Callable[[str, str, str], str]
) -> Iterator[str]:
    for name in sorted(new.keys() | old.keys()):
        if name not in old:
            yield f"{name} is new"
        elif name not in new:
            yield f"{name} is gone"
        elif new[name] != old[name]:
            yield words(name, new[name], old[name])
