"""What a code object refers to beyond itself."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType
from typing import NamedTuple


class Global(NamedTuple):
    """A global name, and the attributes that are read off it: ``helpers.sub.util``."""

    chain: tuple[str, ...]


class Import(NamedTuple):
    """``import module``, or a name that is imported from it."""

    module: str
    #: How many dots the module has in front.
    level: int
    name: str | None


_LOADS_NAME = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_LOADS_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")


# Closures of one body share their code.
@lru_cache(maxsize=10_000)
def references(code: CodeType) -> tuple[Global | Import, ...]:
    """Return what a code object and those inside it refer to, each once, sorted.

    Examples
    --------
    >>> def f(x):
    ...     from math import pi
    ...     return os.path.join(x, str(pi))
    >>> for reference in references(f.__code__):
    ...     print(reference)
    Global(chain=('os', 'path', 'join'))
    Global(chain=('str',))
    Import(module='math', level=0, name='pi')
    """
    met = set(_references(code))
    return tuple(sorted(met, key=lambda each: (type(each).__name__, repr(each))))


@lru_cache(maxsize=10_000)
def names(code: CodeType) -> frozenset[str]:
    """Return all names of globals and attributes in a code object and in those inside it."""
    inside = (names(part) for part in code.co_consts if isinstance(part, CodeType))
    return frozenset(code.co_names).union(*inside)


def _references(code: CodeType) -> Iterator[Global | Import]:
    chain: tuple[str, ...] = ()
    constants: list[object] = []  # those just before an import: its level and its names
    module, level, previous = "", 0, ""
    for instruction in dis.get_instructions(code):
        operation, value = instruction.opname, instruction.argval
        if operation == "EXTENDED_ARG":
            continue
        if chain and operation in _LOADS_ATTRIBUTE:
            chain += (value,)
            continue
        if chain:
            yield Global(chain)
            chain = ()
        if operation in _LOADS_NAME:
            chain = (value,)
        elif operation == "IMPORT_NAME":
            module, level = value, int(constants[-2])  # type: ignore[call-overload]
            if not constants[-1]:
                yield Import(module, level, None)
        elif previous == "IMPORT_NAME" and operation.startswith("STORE"):
            # `import a.b` binds a; only `import a.b as c` binds the module itself.
            yield Import(module.partition(".")[0], level, None)
        elif operation == "IMPORT_FROM" and constants[-1]:
            yield Import(module, level, value)
        elif operation in ("LOAD_CONST", "LOAD_SMALL_INT"):
            constants = [*constants[-1:], value]
        previous = operation
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _references(constant)
