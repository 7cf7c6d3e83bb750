"""From the calls that users write to the functions of a DAG."""

from __future__ import annotations

import itertools
import sys
from collections.abc import (
    Callable,
    Hashable,
    Iterator,
    Mapping,
    MappingView,
    Sequence,
    Sized,
)
from dataclasses import replace
from inspect import Parameter
from typing import Any

from handoff_dask.errors import ForeignRefError
from handoff_dask.model.contents import Replacing, are_simple
from handoff_dask.model.function import Argument, Collocated, Function, with_arguments
from handoff_dask.model.function_table import MappedFunctions
from handoff_dask.model.marking import Fields, code_name, did_you_mean, fields_of
from handoff_dask.model.refs import Ref
from handoff_dask.model.signatures import signature_of

#: Keywords of `add` and `map` that are not passed to the code.
KEYWORDS = ("id", "args", "extra_args", "extra_kwargs", "fields", *Fields.__annotations__)
#: Most items of an iterator whose length is not known: more than a DAG can hold.
MOST_ITEMS = 10_000_000

#: Words of Dask's and of ``Function`` for what is written otherwise here.
_SLIPS = {
    "code": " here: it is the first argument",
    "resources": " (did you mean 'cost'?)",
    "workers": " (did you mean 'node'?)",
}
_NAMED = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


class Draft:
    """What all functions of one call of `add` or `map` have in common.

    `known` are the functions of the DAG, to which refs may refer.
    """

    def __init__(
        self,
        code: Any,
        keywords: Mapping[str, Any],
        dag_id: Hashable,
        known: Mapping[Hashable, Function],
    ) -> None:
        if isinstance(code, Ref) or not callable(code):
            hint = "use add_function()" if isinstance(code, Function) else "as in add(load, path)"
            raise TypeError(
                f"the first argument must be the code, a callable, not {code!r}: {hint}"
            )
        fields, keywords = _split_keywords(code, keywords)
        #: None: the name of the code, numbered if it is taken.
        self.given_id: Hashable = fields.pop("id", None)
        self.name = code_name(code)
        #: What errors call the function.
        self._label = self.name if self.given_id is None else self.given_id
        self._dag_id = dag_id
        self._known = known
        self._replace = Replacing((Ref, Argument), self._argument)
        self._first = tuple(map(self._entry, _listed(fields, "args")))
        self._last = self._replaced(_listed(fields, "extra_args"))
        node = fields.get("node")
        if isinstance(node, Collocated) and isinstance(node.id, Ref):
            fields["node"] = Collocated(self._checked(node.id))
        (code,) = self._replaced((code,))
        values = self._replaced(tuple(keywords.values()))
        keywords = dict(zip(keywords, values, strict=True))
        self._template = Function(self._label, (), code, (), keywords, **fields)

    def function(self, id: Hashable, positional: tuple[Any, ...]) -> Function:
        """Return the function that a call with these positional arguments makes."""
        first = self._first
        if not are_simple(positional):
            leading = tuple(itertools.takewhile(_is_dependency, positional))
            first += tuple(map(self._entry, leading))
            positional = self._replaced(positional[len(leading) :])
        return with_arguments(self._template, id, first, positional + self._last)

    def functions(self, name: Hashable, columns: Sequence[Sequence[Any]]) -> Sequence[Function]:
        """Return the functions of calls whose positional arguments are given in columns."""
        leading = 0
        for column in columns:
            kinds = set(map(_is_dependency, column))
            if len(kinds) > 1:  # then calls differ in how many of their arguments are dependencies
                calls = enumerate(zip(*columns, strict=True))
                return [self.function((name, i), call) for i, call in calls]
            if kinds != {True}:
                break
            leading += 1
        args = [tuple(map(self._entry, column)) for column in columns[:leading]]
        extra_args = [self._replaced(column) for column in columns[leading:]]
        size = len(columns[0])
        return MappedFunctions(
            name, size, self._template, self._first, args, extra_args, self._last
        )

    def _entry(self, arg: Any) -> Any:
        """Return an entry of ``Function.args``."""
        if isinstance(arg, Ref):
            return self._checked(arg)
        return self._argument(arg) if isinstance(arg, Argument) else arg

    def _replaced(self, values: Sequence[Any]) -> Any:
        """Return values with an Argument in the place of each Ref."""
        return values if are_simple(values) else self._replace(values)

    def _argument(self, value: Ref | Argument) -> Argument:
        if isinstance(value, Ref):
            return Argument(self._checked(value))
        return replace(value, id=self._checked(value.id)) if isinstance(value.id, Ref) else value

    def _checked(self, ref: Ref) -> Hashable:
        if ref.dag_id != self._dag_id or ref.id not in self._known:
            raise ForeignRefError(self._label, ref.id, ref.dag_id, self._dag_id)
        return ref.id


def _is_dependency(value: object) -> bool:
    return isinstance(value, (Ref, Argument))


def _listed(fields: dict[str, Any], name: str) -> tuple[Any, ...]:
    value = fields.pop(name, ())
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name} must be a list or tuple, not {value!r}")
    return tuple(value)


def _split_keywords(
    code: Callable[..., Any], given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the keywords of a call into fields of the function and keywords of its code."""
    fields = fields_of(code)
    if not given:
        return fields, {}
    name = code_name(code)
    signature = signature_of(code)
    parameters = {} if signature is None else signature.parameters
    named = {p.name for p in parameters.values() if p.kind in _NAMED}
    takes_any = signature is None or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    own: dict[str, Any] = {}
    keywords: dict[str, Any] = {}
    for key, value in given.items():
        if key in KEYWORDS and key in named and key != "id":
            raise TypeError(
                f"{key!r} is a parameter of {name}() and a field of Function. Write "
                f"extra_kwargs={{{key!r}: ...}} for the parameter, or fields={{{key!r}: ...}} for "
                "the field"
            )
        if key in KEYWORDS:
            own[key] = value
        elif key in named or takes_any:
            keywords[key] = value
        elif key in parameters:
            raise TypeError(f"{key!r} of {name}() is passed by position only")
        else:
            hint = _SLIPS.get(key) or did_you_mean(key, (*named, *KEYWORDS))
            raise TypeError(f"{key!r} is neither a parameter of {name}() nor a field{hint}")
    for key, value in _mapping(own, "fields").items():
        if key not in KEYWORDS or key == "fields":
            raise TypeError(f"fields: Function has no field {key!r}{did_you_mean(key, KEYWORDS)}")
        if key in own:
            raise TypeError(f"the field {key!r} is given twice: as a keyword and in fields")
        own[key] = value
    for key, value in _mapping(own, "extra_kwargs").items():
        if key in keywords:
            raise TypeError(f"{key!r} is given twice: as a keyword and in extra_kwargs")
        keywords[key] = value
    return {**fields, **own}, keywords


def _mapping(fields: dict[str, Any], name: str) -> Mapping[str, Any]:
    value = fields.pop(name, {})
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping such as {{'key': value}}, not {value!r}")
    return value


# What `map` iterates over


def columns(args: Sequence[Any]) -> list[Sequence[Any]]:
    """Return the positional arguments of the calls that `map` makes: a column for each."""
    numbered = {number: arg for number, arg in enumerate(args, 1) if _is_iterated(number, arg)}
    if not numbered:
        raise TypeError(
            "map() needs a list or another iterable as a positional argument. Text, dicts and "
            "keywords are passed to each call; a Ref is too, because the length of its result is "
            "not known yet. For a single call use add()"
        )
    most = min(
        (len(arg) for arg in numbered.values() if isinstance(arg, Sized)), default=MOST_ITEMS
    )
    sizes: list[str] = []
    for number, arg in numbered.items():
        cut = False
        if not isinstance(arg, Sized):
            arg = numbered[number] = list(itertools.islice(arg, most + 1))
            cut = len(arg) > most
        if len(arg) > MOST_ITEMS:
            problem = f"has no end, or more than {MOST_ITEMS:,} items"
            raise ValueError(f"argument {number} of map() {problem}")
        sizes.append(f"more than {most}" if cut else f"{len(arg)}")
    if len(set(sizes)) > 1:
        texts = [
            f"argument {number} has {size}" for number, size in zip(numbered, sizes, strict=True)
        ]
        raise ValueError(f"the arguments of map() differ in length: {', '.join(texts)}")
    size = len(next(iter(numbered.values())))
    return [
        _column(numbered[number]) if number in numbered else (arg,) * size
        for number, arg in enumerate(args, 1)
    ]


def _column(values: Any) -> Sequence[Any]:
    """Return values that do not change any more."""
    return values if type(values) is range else tuple(values)


def _is_iterated(number: int, value: Any) -> bool:
    """Whether `map` iterates over an argument instead of passing it to each call."""
    kind = type(value)
    endless = kind in (itertools.count, itertools.cycle)
    if endless or (kind is itertools.repeat and _repeats_forever(value)):
        raise ValueError(
            f"argument {number} of map(), itertools.{kind.__name__}, has no end. Pass a range, or "
            "the value itself to repeat it"
        )
    if isinstance(value, (set, frozenset)):
        raise TypeError(
            f"argument {number} of map() is a set, which has no order. Pass sorted(...), or use a "
            "keyword to pass the set to each call"
        )
    if issubclass(kind, (str, bytes, bytearray, memoryview)) or hasattr(kind, "_fields"):
        return False
    if issubclass(kind, (Sequence, Iterator, MappingView)):
        return True
    numpy = sys.modules.get("numpy")
    if numpy is not None and issubclass(kind, numpy.ndarray):
        return bool(value.ndim)
    pandas = sys.modules.get("pandas")
    return pandas is not None and issubclass(kind, (pandas.Series, pandas.Index))


def _repeats_forever(repeat: Any) -> bool:
    try:
        repeat.__length_hint__()
    except TypeError:
        return True
    return False
