"""What an object consists of, as far as that decides what a function does with it."""

from __future__ import annotations

import copyreg
import functools
import importlib
import importlib.util
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple, cast

import toolz
from dask.base import is_dask_collection

from handoff_dask.learning.identity import instructions
from handoff_dask.model.expansion import Slot
from handoff_dask.model.marking import MARK
from handoff_dask.store.hashing import array_digest, digest
from handoff_dask.store.installed import PYTHON, compiled, distributions
from handoff_dask.store.references import Global, Import, names, references


class Unnameable(Exception):
    """Something cannot be named for certain.

    The text is the path to it, and what it is: ``f -> global client -> SSLContext``.
    """


class Edge(NamedTuple):
    """An object inside another."""

    #: What it is to the other, for people: ``global client``.
    label: str
    value: Any
    #: Of a global: its module and name.
    binding: str | None = None


class Shape(NamedTuple):
    """What an object consists of: bytes that say where they end, and other objects."""

    content: list[bytes | Edge]
    #: Of a function or class of the user's: its module and name.
    piece: str | None = None
    #: The distributions that it is from.
    libraries: frozenset[str] = frozenset()
    #: Whether the order of the content does not count.
    unordered: bool = False


def shape(value: Any) -> Shape:
    """Return what an object consists of, or raise `Unnameable` if it cannot be looked into."""
    kind = type(value)
    if id(value) in _LATE:
        raise Unnameable("finds code while it runs")
    if kind in _PLAIN:
        encoded = _PLAIN[kind](value)
        return Shape([encoded if len(encoded) <= _LONG else b"#" + digest(encoded)])
    if kind in _SHAPES:
        return _SHAPES[kind](value)
    if issubclass(kind, type):
        return _class(value)
    if issubclass(kind, ModuleType):
        return _module(value)
    return _of_numpy(value) or _of_pandas(value) or _instance(value)


def _tag(name: str, count: int = 0) -> bytes:
    return b"<%b %d>" % (name.encode(), count)


# Plain values


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"s%d:%b" % (len(encoded), encoded)


_PLAIN: dict[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"N",
    type(Ellipsis): lambda _: b"E",
    type(NotImplemented): lambda _: b"I",
    bool: lambda value: b"T" if value else b"F",
    int: lambda value: b"i%x;" % value,  # hexadecimal, whose digits have no limit
    float: lambda value: b"f%a;" % value,  # tells 0.0 from -0.0
    complex: lambda value: b"c%a,%a;" % (value.real, value.imag),
    str: _text,
    bytes: lambda value: b"b%d:%b" % (len(value), value),
    Slot: lambda value: b"$%d;" % value.number,  # what takes its place is named by itself
}
#: Bytes; longer text is hashed once, however often it occurs.
_LONG = 1000


def plain(value: Any) -> bytes | None:
    """Return the bytes that stand for a plain and short value; None for anything else."""
    kind = type(value)
    encode = _PLAIN.get(kind)
    if encode is None or (kind in (str, bytes) and len(value) > _LONG):
        return None
    return encode(value)


# Containers


def _sequence(value: Any) -> Shape:
    return Shape([_tag(type(value).__name__, len(value)), *_inside(value)])


def _inside(values: Iterable[Any], label: str = "") -> Iterator[bytes | Edge]:
    for number, value in enumerate(values):
        encoded = plain(value)
        yield Edge(f"{label}[{number}]", value) if encoded is None else encoded


def _set(value: Any) -> Shape:
    return Shape([_tag(type(value).__name__, len(value)), *_inside(value)], unordered=True)


def _dict(value: Mapping[Any, Any]) -> Shape:
    content: list[bytes | Edge] = [_tag("dict", len(value))]
    for key, item in value.items():
        shown = plain(key)
        content.append(Edge("key", key) if shown is None else shown)
        encoded = plain(item)
        content.append(Edge(f"[{_label(key)}]", item) if encoded is None else encoded)
    return Shape(content)


def _label(key: object) -> str:
    shown = repr(key) if type(key) in (str, int) else type(key).__name__
    return shown if len(shown) <= 40 else f"{shown[:40]}..."


def _named(values: Mapping[str, Any], label: str = "attribute") -> Iterator[bytes | Edge]:
    """Yield values that have names, whose order does not count."""
    yield _tag(label, len(values))
    for name in sorted(values):
        yield _text(name)
        yield Edge(f"{label} {name}", values[name])


_ABOUT_CALLABLE = {*functools.WRAPPER_ASSIGNMENTS, MARK}


def _attributes(value: Any) -> Iterator[bytes | Edge]:
    """Yield the attributes of a callable, but what it is called and what it costs."""
    yield from _named({name: v for name, v in vars(value).items() if name not in _ABOUT_CALLABLE})


# Code


#: What makes or finds code by a text: which code that is shows only when it runs.
_LATE = frozenset(
    map(id, (eval, exec, globals, __import__, importlib.import_module, importlib.__import__))
) | {id(sys.modules)}


def _home(function: FunctionType) -> tuple[str, bool]:
    """Return the module that a function was made in, and whether that is imported by this name."""
    namespace = function.__globals__
    home = str(namespace.get("__name__"))
    return home, getattr(sys.modules.get(home), "__dict__", None) is namespace


def _is_own(value: Any) -> bool:
    """Whether a function or class is from a module of the user's, whatever its name says."""
    if isinstance(value, FunctionType):
        home, known = _home(value)
        return known and distributions(home) is None
    return isinstance(value, type) and distributions(str(value.__module__)) is None


def _library(value: Any) -> Shape | None:
    """Return the name of what is installed and can be imported by that name."""
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if isinstance(module, str) and isinstance(name, str):
        return _imported_by(module, name, value)
    return None


def _imported_by(module: str, name: str, value: Any) -> Shape | None:
    libraries = distributions(module)
    if libraries is None or module not in sys.modules:
        return None
    met: Any = sys.modules[module]
    for part in name.split("."):
        met = getattr(met, part, None)
    if met is not value:
        return None
    return Shape([_tag("installed"), _text(module), _text(name)], libraries=libraries)


def _function(function: FunctionType) -> Shape:
    home, known = _home(function)
    # Of what encloses it, if that is installed: then what it refers to is installed as well.
    installed = distributions(home) if known else None
    # Own code may stand in the place of what is installed.
    library = None if known and installed is None else _library(function)
    if library is not None:
        return library
    code = function.__code__
    if home == "functools" and hasattr(function, "registry"):  # singledispatch; it has a cache
        registry = {"registry": dict(function.registry)}
        return Shape([_tag("singledispatch"), *_named(registry)])
    content: list[bytes | Edge] = [_tag("function"), Edge("code", code)]
    defaults = function.__defaults__ or ()
    content += [_tag("defaults", len(defaults)), *_inside(defaults, "default ")]
    content += _named(function.__kwdefaults__ or {}, "default")
    content.append(_tag("closure", len(code.co_freevars)))
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            encoded = plain(cell.cell_contents)
        except ValueError:
            content.append(b"empty;")
            continue
        content.append(Edge(f"closure {name}", cell.cell_contents) if encoded is None else encoded)
    content += _attributes(function)
    if installed:
        return Shape([*content, *map(_text, (home, function.__qualname__))], libraries=installed)
    for reference in references(code):
        if isinstance(reference, Global):
            content += _global(reference, function)
        else:
            content += _import(reference, function)
    content += [*_described(content, names(code))]
    label = f"{function.__module__}.{function.__qualname__}"
    return Shape(content, label, frozenset([PYTHON]))


#: What describes functions and classes, and by which names code gets at it.
_DESCRIPTIONS = {
    "__name__": {"__name__", "__qualname__"},
    "__doc__": {"__doc__", "getdoc"},
    "__annotations__": {
        "__annotations__", "get_annotations", "get_type_hints", "signature", "getfullargspec",
    },
}  # fmt: skip


def _described(content: Iterable[bytes | Edge], read: frozenset[str]) -> Iterator[Edge]:
    """Yield what describes the functions that code refers to, as far as code reads such things."""
    for attribute in (name for name, ways in _DESCRIPTIONS.items() if ways & read):
        for part in content:
            if isinstance(part, Edge) and isinstance(part.value, FunctionType | type):
                described = getattr(part.value, attribute, None)
                yield Edge(f"{part.label} {attribute}", described)


def _global(reference: Global, function: FunctionType) -> Iterator[bytes | Edge]:
    namespace, known = function.__globals__, cast("Any", function).__builtins__
    first, *attributes = reference.chain
    yield _text(first)
    if first in namespace:
        value, binding = namespace[first], f"{namespace.get('__name__')}.{first}"
    elif first in known:
        value, binding = known[first], None
    else:
        yield b"undefined;"
        return
    label = first
    for name in attributes:
        if not isinstance(value, ModuleType):
            break
        installed = distributions(value.__name__) is not None
        if installed and not isinstance(vars(value).get(name), ModuleType):
            break
        yield _text(name)
        try:
            inner = getattr(value, name)  # the module may make it when it is asked for
        except Exception:
            yield b"undefined;"
            return
        label += f".{name}"
        binding = f"{value.__name__}.{name}"
        value = inner
    yield Edge(f"global {label}", value, binding)
    if isinstance(value, ModuleType):
        yield from _put_into(value.__name__, names(function.__code__))


def _import(reference: Import, function: FunctionType) -> Iterator[bytes | Edge]:
    """Yield what an import inside of a function leads to; what is installed is not imported."""
    namespace = function.__globals__
    package = namespace.get("__package__") or str(namespace.get("__name__")).rpartition(".")[0]
    module = importlib.util.resolve_name("." * reference.level + reference.module, package)
    yield _text(module)
    installed = distributions(module)
    if installed is not None:
        yield Edge(f"import {module}", _Installed(module, installed))
        yield from _put_into(module, names(function.__code__))
        return
    try:
        value: Any = importlib.import_module(module)
        if reference.name is None:
            yield Edge(f"import {module}", value)
            return
        yield _text(reference.name)
        if not hasattr(value, reference.name):
            importlib.import_module(f"{module}.{reference.name}")
        value = getattr(value, reference.name)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        raise Unnameable(f"import {module} -> cannot be imported here ({problem})") from None
    yield Edge(f"import {module}.{reference.name}", value, f"{module}.{reference.name}")


def _put_into(module: str, read: frozenset[str]) -> Iterator[bytes | Edge]:
    """Yield what the version of an installed module does not tell of the names that are read.

    That is what own code has put there, and what finds code by a text.
    """
    if module not in sys.modules or distributions(module) is None:
        return
    inside = vars(sys.modules[module])
    for name in sorted(read & inside.keys()):
        value = inside[name]
        if id(value) in _LATE or _is_own(value):
            yield _text(name)
            yield Edge(f"{module}.{name}", value, f"{module}.{name}")


class _Installed(NamedTuple):
    """A module that is not imported, because it is enough to know what it belongs to."""

    module: str
    libraries: frozenset[str]


#: Attributes of modules that do not count: what Python's import sets.
_ABOUT_MODULE = {
    "__name__", "__doc__", "__package__", "__loader__", "__spec__", "__file__", "__cached__",
    "__path__", "__builtins__", "__annotations__", "__warningregistry__",
}  # fmt: skip


def _module(module: ModuleType) -> Shape:
    libraries = distributions(module.__name__)
    if libraries is not None:
        return _SHAPES[_Installed](_Installed(module.__name__, libraries))
    file = compiled(module)
    if file is not None:
        return Shape([_tag("compiled"), _text(file)])
    content: list[bytes | Edge] = [_tag("module")]
    for name, value in sorted(vars(module).items()):
        if name not in _ABOUT_MODULE:
            content.append(_text(name))
            content.append(Edge(f"attribute {name}", value, f"{module.__name__}.{name}"))
    return Shape(content)


#: Attributes of classes that say nothing, or nothing new, about what they do.
_NO_MEMBERS = {
    "__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__abstractmethods__",
    "_abc_impl", "__firstlineno__", "__static_attributes__", "__annotations_cache__", MARK,
    "__slotnames__", "_value2member_map_",  # which appear while classes are used
}  # fmt: skip


#: The flag of types that are made while a program runs (``Py_TPFLAGS_HEAPTYPE``).
_MADE_BY_CODE = 1 << 9


def _class(cls: type) -> Shape:
    library = _library(cls)
    if library is not None:
        return library
    # With its name, unlike a function: instances in results are found again by it.
    content: list[bytes | Edge] = [_tag("class"), _text(cls.__module__), _text(cls.__qualname__)]
    file = compiled(sys.modules.get(cls.__module__))
    if file is not None:
        return Shape([*content, _text(file)])
    if not cls.__flags__ & _MADE_BY_CODE and (installed := distributions(cls.__module__)):
        return Shape(content, libraries=installed)
    content += _inside((type(cls), *cls.__bases__), "base ")
    members = {name: v for name, v in vars(cls).items() if name not in _NO_MEMBERS}
    if not members.get("__annotations__"):  # empty ones appear when somebody looks for them
        members.pop("__annotations__", None)
    content += _named(members)
    label = f"{cls.__module__}.{cls.__qualname__}"
    return Shape(content, label, distributions(cls.__module__) or frozenset([PYTHON]))


def _builtin(value: Any) -> Shape:
    """Return the shape of a function in compiled code, or of a method bound to an object."""
    library = _library(value)
    if library is not None:
        return library
    owner = value.__self__
    if owner is not None and not isinstance(owner, ModuleType):
        return Shape([_tag("method"), _text(value.__name__), Edge("object", owner)])
    file = compiled(owner)
    if file is None:
        raise Unnameable(f"{type(value).__name__} {value.__name__}")
    return Shape([_tag("compiled"), _text(file), _text(value.__name__)])


def _descriptor(value: Any) -> Shape:
    return Shape([_tag("descriptor"), _text(value.__name__), Edge("class", value.__objclass__)])


def _wrapping(*names: str) -> Callable[[Any], Shape]:
    """Return what makes the shape of an object that only holds others, in these attributes."""

    def shaped(value: Any) -> Shape:
        held = {name: getattr(value, name) for name in names}
        return Shape([_tag(type(value).__name__), *_named(held)])

    return shaped


def _partial(value: Any) -> Shape:
    content: list[bytes | Edge] = [_tag(type(value).__name__), Edge("func", value.func)]
    content += [_tag("args", len(value.args)), *_inside(value.args, "argument ")]
    content += _named(value.keywords or {}, "keyword")
    return Shape([*content, *_attributes(value)])


def _cached(value: Any) -> Shape:
    held = value.cache_parameters()
    return Shape([_tag("lru_cache"), *_named(held), *_attributes(value)])


# Objects of other types


def _of_numpy(value: Any) -> Shape | None:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if isinstance(value, numpy.ufunc):
        for module in ("numpy", "scipy.special"):
            known = module in sys.modules and _imported_by(module, value.__name__, value)
            if known:
                return known
        raise Unnameable(f"ufunc {value.__name__}")
    if isinstance(value, numpy.generic) and value.dtype.kind in _FLAT:
        content: list[bytes | Edge] = [_tag("scalar"), _text(value.dtype.str)]
        return Shape([*content, b"#" + digest(value.tobytes())], libraries=_from(numpy))
    if type(value) not in (numpy.ndarray, numpy.memmap):
        return None
    dtype = value.dtype
    content = [_tag(type(value).__name__), _text(str(value.shape))]
    is_simple = dtype.kind in f"{_FLAT}O" and dtype.metadata is None
    content.append(_text(dtype.str) if is_simple else Edge("dtype", dtype))
    if dtype.names:
        content += _named({name: value[name] for name in dtype.names}, "field")
    elif dtype.kind == "O":
        content += _inside(value.ravel().tolist())
    elif dtype.kind in _FLAT or dtype.kind == "V":
        content.append(b"#" + array_digest(value))
    else:
        return None
    return Shape(content, libraries=_from(numpy))


#: Kinds of numpy's types whose bytes are all there is to a value.
_FLAT = "biufcmMSU"


def _of_pandas(value: Any) -> Shape | None:
    """Return the shape of what pandas pickles in a layout that depends on its history."""
    pandas = sys.modules.get("pandas")
    if pandas is None or not hasattr(pandas, "DataFrame"):  # it is being imported
        return None
    if type(value) is pandas.DataFrame:
        arrays = [value.iloc[:, i].array for i in range(value.shape[1])]
        parts = {"index": value.index, "columns": value.columns}
    elif type(value) is pandas.Series:
        arrays = [value.array]
        parts = {"index": value.index, "name": value.name}
    elif type(value) is pandas.arrays.NumpyExtensionArray:
        return Shape([_tag("array"), Edge("array", value.to_numpy())], libraries=_from(pandas))
    else:
        return None
    parts |= {"attrs": value.attrs, "flags": value.flags.allows_duplicate_labels}
    content = [_tag(type(value).__name__, len(arrays)), *_inside(arrays, "column ")]
    return Shape([*content, *_named(parts)], libraries=_from(pandas))


def _from(module: ModuleType) -> frozenset[str]:
    return distributions(module.__name__) or frozenset()


def _instance(value: Any) -> Shape:
    """Return the shape of any other object: its class, and what a copy would be made from."""
    cls = type(value)
    if any(str(base.__module__).partition(".")[0] == "distributed" for base in cls.__mro__):
        raise Unnameable(cls.__name__)  # stands for something on a cluster
    library = _library(value)
    if library is not None:
        return library
    content: list[bytes | Edge] = [_tag("object"), Edge("class", cls)]
    if is_dask_collection(value):
        raise Unnameable(cls.__name__)
    if hasattr(cls, "__dask_tokenize__"):
        # Dask's own tokens leave out the helpers and constants that functions refer to.
        if cls.__module__ == "dask._task_spec":
            held = ("func", "args", "kwargs", "target", "value")
            parts = {name: getattr(value, name) for name in held if hasattr(value, name)}
            return Shape([*content, *_named(parts)])
        if "dask" not in (distributions(cls.__module__) or ()):
            return Shape([*content, Edge("__dask_tokenize__()", value.__dask_tokenize__())])
    if issubclass(cls, (set, frozenset)) and cls.__reduce__ in (set.__reduce__, _FROZEN_REDUCE):
        content.append(Edge("elements", frozenset(value)))  # its own copy has no stable order
        return Shape([*content, *_named(getattr(value, "__dict__", {}))])
    reduced: Any
    try:
        reduced = cast("Any", copyreg.dispatch_table.get(cls, _reduce))(value)
    except Exception:
        raise Unnameable(cls.__name__) from None
    if isinstance(reduced, str):
        known = _imported_by(str(getattr(value, "__module__", "")), reduced, value)
        if known is None:
            raise Unnameable(f"{cls.__name__} {reduced}")
        return known
    padded: tuple[Any, ...] = (*reduced, None, None, None, None)
    make, args, state, items, pairs, set_state = padded[:6]
    content += [Edge("made by", make), _tag("args", len(args))]
    content += [b"class;" if arg is cls else Edge("made of", arg) for arg in args]
    if type(state) is dict and MARK in state:
        state = {name: v for name, v in state.items() if name != MARK} or None
    content += _state(state)
    for label, many in (("items", items), ("pairs", pairs)):
        content.append(_tag(label))
        content += [] if many is None else [Edge(label, list(many))]
    content += [] if set_state is None else [Edge("state set by", set_state)]
    return Shape(content)


_FROZEN_REDUCE = frozenset.__reduce__


def _reduce(value: Any) -> Any:
    return value.__reduce_ex__(4)


def _state(state: Any) -> Iterator[bytes | Edge]:
    """Yield the attributes of an object; those in slots come in a second dict."""
    kinds = [type(part) for part in state] if type(state) is tuple else []
    if len(kinds) == 2 and {*kinds} <= {dict, type(None)}:
        for part in state:
            yield from _state(part)
    elif type(state) is dict and all(type(name) is str for name in state):
        yield from _named(state)
    else:
        yield Edge("state", state)


_SHAPES: dict[type, Callable[[Any], Shape]] = {
    list: _sequence,
    tuple: _sequence,
    set: _set,
    frozenset: _set,
    dict: _dict,
    types.MappingProxyType: lambda value: _dict(dict(value)),
    FunctionType: _function,
    CodeType: lambda code: Shape([_tag("code"), b"#" + _code_digest(code)]),
    MethodType: _wrapping("__func__", "__self__"),
    property: _wrapping("fget", "fset", "fdel"),
    staticmethod: _wrapping("__func__"),
    classmethod: _wrapping("__func__"),
    functools.cached_property: _wrapping("func", "attrname"),
    functools.partial: _partial,
    toolz.curry: _partial,
    type(functools.lru_cache(len)): _cached,
    _Installed: lambda it: Shape([_tag("installed"), _text(it.module)], libraries=it.libraries),
    types.BuiltinFunctionType: _builtin,
    types.MethodWrapperType: _builtin,
    types.WrapperDescriptorType: _descriptor,
    types.MethodDescriptorType: _descriptor,
    types.ClassMethodDescriptorType: _descriptor,
    types.GetSetDescriptorType: _descriptor,
    types.MemberDescriptorType: _descriptor,
    typing.TypeVar: _wrapping("__name__", "__constraints__", "__bound__"),
    typing.ParamSpec: _wrapping("__name__"),
    typing.NewType: _wrapping("__name__", "__supertype__"),
}


def _code_digest(code: CodeType) -> bytes:
    text = "\n".join(instructions(code))
    return digest(text.encode("utf-8", "surrogatepass"))
