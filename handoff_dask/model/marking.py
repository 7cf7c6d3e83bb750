"""Codes that carry the fields of their functions."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from handoff_dask.model.amounts import Amounts, Seconds
from handoff_dask.model.function import ArgumentInclusion, Collocated, Function, FunctionType

if TYPE_CHECKING:
    from typing_extensions import Never, Unpack

    from handoff_dask.model.retry import RetryPolicy

Code = TypeVar("Code", bound=Callable[..., Any])

#: The attribute of a callable that has its fields.
MARK = "__handoff_fields__"


class Fields(TypedDict, total=False):
    """The fields of a :class:`Function` that say how its code runs."""

    cost: Amounts | None
    node: str | int | Sequence[str | int] | Collocated | None
    type: FunctionType
    argument_inclusion: ArgumentInclusion
    max_retries: int | None
    retry: RetryPolicy | None
    timeout: Seconds | None
    priority: float
    allow_other_workers: bool
    isolate: bool | None
    stored: bool
    store_key: str | None


def function(*args: Never, **fields: Unpack[Fields]) -> Callable[[Code], Code]:
    """Give a callable the fields that its functions get in every DAG.

    The callable itself is returned and still behaves as before. ``DAG.add`` and ``DAG.map`` use the
    fields, also for partial calls of it; what is passed to them overrides the fields.

    Parameters
    ----------
    **fields
        `cost`, `node`, `type`, `argument_inclusion`, `max_retries`, `retry`, `timeout`, `priority`,
        `allow_other_workers`, `isolate`, `stored`, `store_key`: as for :class:`Function`.

    Raises
    ------
    TypeError
        A field does not exist, or the object cannot carry fields, as those of most builtins.
    InvalidFunctionError
        Text for a time or an amount of memory cannot be read, or another resource has text.

    Examples
    --------
    >>> from handoff_dask import DAG, function
    >>> @function(cost={"cpu": 2}, max_retries=2)
    ... def double(x):
    ...     return 2 * x
    >>> double(21)
    42
    >>> dag = DAG()
    >>> dag[dag.add(double, 21)].cost
    {'cpu': 2}
    """
    if args:
        raise TypeError(
            "function() takes fields by keyword: write @function(cost={'cpu': 2}), for example"
        )
    for name in fields:
        if name not in Fields.__annotations__:
            names = ", ".join(Fields.__annotations__)
            hint = did_you_mean(name, Fields.__annotations__)
            raise TypeError(f"function() has no field {name!r}{hint}; its fields are {names}")

    def mark(code: Code) -> Code:
        # What a method is made of, if it is one.
        target = getattr(code, "__func__", code)
        if not callable(target):
            raise TypeError(f"function() marks callables, not {code!r}")
        # As a record has them: its own copies, and numbers for text.
        record = Function(code_name(code), code=code, **fields)
        own = {name: getattr(record, name) for name in fields}
        try:
            setattr(target, MARK, {**getattr(target, MARK, {}), **own})
        except (AttributeError, TypeError):
            raise TypeError(f"{code!r} cannot carry fields: pass them to DAG.add()") from None
        return code

    return mark


def fields_of(code: Any) -> dict[str, Any]:
    """Return the fields that a callable carries."""
    while isinstance(code, partial) and not hasattr(code, MARK):
        code = code.func
    fields = getattr(code, MARK, None)
    return dict(fields) if isinstance(fields, dict) else {}


def code_name(code: Any) -> str:
    """Return the name of a callable: a partial call has that of its function.

    Examples
    --------
    >>> code_name(len), code_name(partial(int, base=2)), code_name(lambda: 0)
    ('len', 'int', 'lambda')
    """
    while isinstance(code, partial):
        code = code.func
    name = getattr(code, "__name__", None)
    return (name if isinstance(name, str) else type(code).__name__).strip("<>")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint at the known name that resembles a wrong one, or an empty string."""
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
