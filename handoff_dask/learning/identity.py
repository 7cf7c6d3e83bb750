"""Which functions count as the same code, in every process and from one day to the next."""

from __future__ import annotations

import dis
import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from inspect import CO_VARARGS, CO_VARKEYWORDS
from itertools import pairwise
from pathlib import PurePath
from types import CodeType
from typing import Any

import toolz

#: Flags that say how a function is called and what it is: variadic, a generator, a coroutine.
_FLAGS = 0x3AC
#: What the body of a class stores about its source.
_ABOUT_SOURCE = ("__doc__", "__firstlineno__", "__static_attributes__")


def code_identity(code: Callable[..., Any]) -> str:
    """Return a text that is the same for functions of the same code.

    It has the module and the qualified name of what is called in the end: below partial calls,
    bound methods and ``functools.wraps``. Instances without a name have those of their class. Names
    in ``__main__``, lambdas and local functions can mean something else tomorrow, so a fingerprint
    of what they do follows. Comments, docstrings, line numbers and files do not change it.

    Examples
    --------
    >>> from functools import partial
    >>> import json
    >>> code_identity(json.dumps), code_identity(partial(json.dumps, indent=2))
    ('json.dumps', 'json.dumps')
    >>> code_identity(", ".join)
    'builtins.str.join'
    >>> code_identity(lambda: 1) == code_identity(lambda: 1) != code_identity(lambda: 2)
    True
    """
    name, source = _called(code)
    return name if source is None else f"{name}#{fingerprint(source)}"


def qualified_name(code: Callable[..., Any]) -> str:
    """Return the module and the qualified name of what a callable calls in the end.

    Examples
    --------
    >>> qualified_name(partial(lambda x: x))
    'handoff_dask.learning.identity.<lambda>'
    """
    return _called(code)[0]


def code_title(code: Callable[..., Any]) -> str:
    """Return a text by which people know a code: where names can mean something else, its line.

    Examples
    --------
    >>> import json
    >>> code_title(json.dumps)
    'json.dumps'
    """
    name, source = _called(code)
    if source is None:
        return name
    file = PurePath(source.co_filename)
    # The files of notebooks' cells are temporary and named by numbers.
    in_cell = file.parent.name.startswith("ipykernel_")
    line = source.co_firstlineno
    return f"{name} at " + (f"line {line} of a cell" if in_cell else f"{file.name}:{line}")


def _called(code: Callable[..., Any]) -> tuple[str, CodeType | None]:
    """Return the name of what is called in the end, and its code if the name is not enough."""
    inner = _innermost(code)
    name = getattr(inner, "__qualname__", None) or getattr(inner, "__name__", None)
    source = getattr(inner, "__code__", None)
    if name is None:
        inner = type(inner)
        name = inner.__qualname__
        source = getattr(inner.__call__, "__code__", None)
    module = getattr(inner, "__module__", None) or "builtins"
    ambiguous = isinstance(source, CodeType) and (module == "__main__" or "<" in name)
    return f"{module}.{name}", source if ambiguous else None


def _innermost(code: Any) -> Any:
    """Return what a callable calls in the end."""
    seen: set[int] = set()
    while id(code) not in seen:  # a function may claim to wrap itself
        seen.add(id(code))
        if isinstance(code, partial | toolz.curry):
            code = code.func
        else:
            code = getattr(code, "__func__", code)
            code = getattr(code, "__wrapped__", code)
    return code


def fingerprint(code: CodeType) -> str:
    """Return 12 hexadecimal digits that stand for what a code object does."""
    parts = "\n".join(instructions(code)).encode(errors="backslashreplace")
    return hashlib.sha256(parts).hexdigest()[:12]


def instructions(code: CodeType) -> Iterator[str]:
    """Yield what a code object does, as text that is the same in every process.

    Nested ones are part of its constants. Instructions refer to constants and names by value
    instead of by number: a new docstring renumbers the constants. Local variables have numbers,
    unless the code can get their names.
    """
    arguments = code.co_argcount + code.co_kwonlyargcount
    arguments += sum(bool(code.co_flags & flag) for flag in (CO_VARARGS, CO_VARKEYWORDS))
    variables: dict[Any, int] = {}
    if not {"locals", "vars", "dir", "f_locals"} & {*code.co_names}:
        variables = {n: i for i, n in enumerate(code.co_varnames[arguments:])}
    yield f"{code.co_argcount} {code.co_posonlyargcount} {code.co_kwonlyargcount}"
    yield f"{code.co_flags & _FLAGS} {code.co_varnames[:arguments]}"
    yield repr(getattr(code, "co_exceptiontable", b""))
    for instruction, following in pairwise((*dis.get_instructions(code), None)):
        assert instruction is not None
        is_description = instruction.opname == "LOAD_CONST" and _is_about_source(following)
        if not is_description and not _is_about_source(instruction):
            value = instruction.argval
            if instruction.opcode in dis.haslocal:  # of two variables from Python 3.13 on
                local = value if isinstance(value, tuple) else (value,)
                value = tuple(variables.get(name, name) for name in local)
            yield f"{instruction.opname} {_stable(value)}"


def _is_about_source(following: dis.Instruction | None) -> bool:
    """Whether an instruction stores the constant before it as something about the source."""
    return (
        following is not None
        and following.opname == "STORE_NAME"
        and following.argval in _ABOUT_SOURCE
    )


def _stable(value: Any) -> str:
    """Return a text for what an instruction refers to, the same in every process."""
    if isinstance(value, CodeType):
        return f"code({' '.join(instructions(value))})"
    if isinstance(value, tuple):
        return f"tuple({', '.join(map(_stable, value))})"
    if isinstance(value, frozenset):  # in the order of its hashes
        return f"frozenset({', '.join(sorted(map(_stable, value)))})"
    return repr(value)
