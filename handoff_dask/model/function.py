"""Functions, the arguments they take from each other, and where they may run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from handoff_dask.errors import InvalidFunctionError
from handoff_dask.model.amounts import (
    AUTO,
    Amounts,
    Seconds,
    as_count,
    as_number,
    as_seconds,
    shared_amounts,
)
from handoff_dask.model.comparing import Comparable
from handoff_dask.model.contents import are_simple, contents

if TYPE_CHECKING:
    from handoff_dask.model.retry import RetryPolicy

#: A transform: a callable, or a callable and the static arguments after the three fixed ones.
Transform = Callable[..., Any] | tuple[Callable[..., Any], Sequence[Any]]
ArgumentInclusion = Literal["variadic", "as_list"]
FunctionType = Literal["regular", "inline"]


@dataclass(frozen=True, slots=True)
class Collocated:
    """A pin to the worker where another function runs; made by :func:`collocated`."""

    id: Hashable


def collocated(id: Hashable) -> Collocated:
    """Pin a function to the worker where another function runs.

    Handoff writes ``{:collocated, id}``.

    Parameters
    ----------
    id
        The other function. It may be collocated itself; chains are followed.

    Examples
    --------
    >>> from handoff_dask import Function, collocated
    >>> Function(id="thumbnail", args=["load"], code=len, node=collocated("load")).node
    Collocated(id='load')
    """
    return Collocated(id)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Argument(Comparable):
    """A dependency, whose value may be transformed in transit (``Handoff.Function.Argument``).

    In ``Function.args`` a plain id says the same, unless there are transforms. In `extra_args` and
    `extra_kwargs`, also inside lists, tuples, sets, dicts and partial calls, only an `Argument`
    is replaced by the function's result.

    The serializer runs on the producer's worker, the deserializer on the consumer's. Each is a
    callable or a pair ``(callable, static_args)``, and is called as
    ``fn(data, source_node, target_node, *static_args)``, where the nodes are worker addresses.

    Parameters
    ----------
    id
        The function whose result is passed.
    serialization_fn, deserialization_fn
        The transforms; None passes the value unchanged.
    argument_inclusion
        ``"variadic"``: an argument by itself. ``"as_list"``: adjacent as_list arguments in `args`
        arrive together in one list.

    Examples
    --------
    >>> import zlib
    >>> from handoff_dask import DAG, Argument, Function, execute_local
    >>> pack = lambda data, source, target, level: zlib.compress(data, level)
    >>> unpack = lambda data, source, target: zlib.decompress(data)
    >>> dag = (
    ...     DAG()
    ...     .add_function(Function(id="text", args=[], code=bytes, extra_args=[1000]))
    ...     .add_function(
    ...         Function(id="size", args=[Argument("text", (pack, [9]), unpack)], code=len)
    ...     )
    ... )
    >>> execute_local(dag).results["size"]
    1000

    By keyword, and inside a list:

    >>> dag = (
    ...     DAG()
    ...     .add_function(Function(id="digits", code=str, extra_args=["42"]))
    ...     .add_function(
    ...         Function(
    ...             id="show",
    ...             code=print,
    ...             extra_args=[[Argument("digits"), 1]],
    ...             extra_kwargs={"end": Argument("digits")},
    ...         )
    ...     )
    ... )
    >>> _ = execute_local(dag)
    ['42', 1]42
    """

    id: Hashable
    serialization_fn: Transform | None = None
    deserialization_fn: Transform | None = None
    argument_inclusion: ArgumentInclusion = "variadic"


@dataclass(frozen=True, eq=False, repr=False)
class Function(Comparable):
    """A function of a DAG (``Handoff.Function``).

    Parameters
    ----------
    id
        Unique in the DAG; any hashable.
    args
        The functions whose results are passed first, in order: ids, or :class:`Argument` objects.
    code
        The callable. It gets the dependencies' results, then `extra_args`, then `extra_kwargs`.
        The coroutine of a coroutine function is run to its end.
    extra_args, extra_kwargs
        Further arguments, fixed when the DAG is built. An :class:`Argument` or a Dask future among
        them, or inside lists, tuples, sets, dicts or partial calls, is replaced by the result.
        Like `code`, they are pickled once per run and unpickled at every start, so each start has
        its own objects.
    cost
        What an attempt claims while it runs: ``{"cpu": 2, "memory": "2 GB", "gpu": 1}`` in cores,
        MB (10**6 bytes) and units; any other name is a custom resource. Only memory takes text:
        ``"2 GB"``, ``"500 MiB"``; it is kept as a number. Names are case-insensitive, fractions are
        allowed, None costs nothing. ``{"memory": AUTO}`` claims what functions of the same code
        have been seen to need.
    node
        A pin: a worker's name, address or host, a tuple of them (any of these workers), or
        ``collocated(id)``. See `allow_other_workers`.
    type
        ``"regular"``, or ``"inline"``: evaluated inside every function that uses it, and never
        scheduled by itself. A function that uses it claims, for each resource, the larger of the
        two costs.
    argument_inclusion
        ``"variadic"``, or ``"as_list"``: the dependencies' results arrive as one list, first.
    max_retries
        Attempts after the first; None uses the run's value.
    retry
        A full :class:`RetryPolicy`; `max_retries` is its shorthand.
    timeout
        How long an attempt may run: seconds, text such as ``"5 min"``, or a timedelta; it is kept
        in seconds. None is no limit.
    results
        Output storage: filled on the copies in ``ExecutionResult.functions``.
    priority
        Of the functions that are ready, those of a higher priority go first. It is added to the
        run's, is not passed on to what the function depends on, and has no effect on an inline
        function.
    allow_other_workers
        Whether `node` is only a preference: if none of these workers has room, the function waits
        for one for about as long as it is expected to run, at most. Then it runs anywhere, and at
        once if nobody answers to `node`.
    isolate
        Whether it runs in a process of its own beside its worker, which is killed when it uses more
        memory than it claims, takes longer than its `timeout`, or is cancelled. None uses the run's
        value. Linux only.
    stored
        Whether a run with a store keeps the result in it, and looks for it there. An inline
        function has no result of its own, so it has no effect there.
    store_key
        Text that stands for `code` when the result gets its name in a store: the name stays when
        the code changes, until you change the text. The arguments still count, those of partial
        calls included. None derives the name from what the code does.

    Notes
    -----
    Mistakes are reported when the DAG is validated; only text whose unit cannot be read raises at
    once.

    Raises
    ------
    InvalidFunctionError
        Text for a time or an amount of memory cannot be read, or another resource has text.

    Examples
    --------
    >>> import operator
    >>> from handoff_dask import Function
    >>> Function("double", ["source"], operator.mul, extra_args=[2])
    Function('double', args=('source',), code=<built-in function mul>, extra_args=(2,))
    """

    id: Hashable
    args: Sequence[Hashable | Argument] = ()
    # None is a mistake that validate() reports.
    code: Callable[..., Any] = None  # type: ignore[assignment]
    extra_args: Sequence[Any] = ()
    extra_kwargs: Mapping[str, Any] = field(default_factory=dict)
    cost: Amounts | None = None
    node: str | int | Sequence[str | int] | Collocated | None = None
    type: FunctionType = "regular"
    argument_inclusion: ArgumentInclusion = "variadic"
    max_retries: int | None = None
    retry: RetryPolicy | None = None
    timeout: Seconds | None = None
    results: Any = None
    priority: float = 0
    allow_other_workers: bool = False
    isolate: bool | None = None
    stored: bool = True
    store_key: str | None = None

    def __post_init__(self) -> None:
        # Copies, so that later changes to a list do not change the function. Other types stay as
        # they are, so that validate() can report them.
        for name in ("args", "extra_args", "node"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        if isinstance(self.extra_kwargs, Mapping):
            object.__setattr__(self, "extra_kwargs", dict(self.extra_kwargs))
        for name, convert in (("cost", shared_amounts), ("timeout", as_seconds)):
            value = getattr(self, name)
            if value is None or (name == "cost" and not isinstance(value, Mapping)):
                continue
            try:
                object.__setattr__(self, name, convert(value))
            except ValueError as error:
                raise InvalidFunctionError(self.id, name, str(error)) from None
        object.__setattr__(self, "max_retries", as_count(self.max_retries))
        object.__setattr__(self, "priority", as_number(self.priority))


def claims(function: Function) -> Mapping[str, float] | None:
    """Return the cost of a function, which is kept in numbers."""
    return cast("Mapping[str, float] | None", function.cost)


def learns_memory(function: Function) -> bool:
    """Whether a function claims as much memory as others of its code have used."""
    return isinstance(function.cost, Mapping) and any(a is AUTO for a in function.cost.values())


def time_limit(function: Function) -> float | None:
    """Return the timeout of a function, which is kept in seconds."""
    return cast("float | None", function.timeout)


def with_arguments(
    function: Function, id: Hashable, args: tuple[Any, ...], extra_args: tuple[Any, ...]
) -> Function:
    """Return a copy of a function with another id and other arguments.

    Does what ``dataclasses.replace`` does, but in a fraction of the time.
    """
    copy = object.__new__(Function)
    copy.__dict__.update(function.__dict__, id=id, args=args, extra_args=extra_args)
    return copy


def argument_id(arg: Hashable | Argument) -> Hashable:
    """Return the id that a dependency refers to."""
    return arg.id if isinstance(arg, Argument) else arg


def nested_arguments(function: Function) -> list[Argument]:
    """Return the dependencies of a function that are not in its `args`, in their order."""
    values: list[Any] = [function.code]
    if isinstance(function.extra_args, tuple):
        values += function.extra_args
    if isinstance(function.extra_kwargs, dict):
        values += function.extra_kwargs.values()
    if are_simple(values):
        return []
    return [value for value in contents(values) if isinstance(value, Argument)][::-1]


def dependencies(function: Function) -> list[Hashable | Argument]:
    """Return all dependencies of a function, which need not be valid, as they were given."""
    args = function.args if isinstance(function.args, tuple) else ()
    return [*args, *nested_arguments(function)]


def dependency_ids(function: Function) -> list[Hashable]:
    """Return the ids of the functions whose results a function gets."""
    return list(map(argument_id, dependencies(function)))


def is_listed(arg: Hashable | Argument) -> bool:
    """Whether an entry of ``Function.args`` is passed in a list, with those next to it."""
    return isinstance(arg, Argument) and arg.argument_inclusion == "as_list"


def transforms(args: Iterable[Any]) -> list[Any]:
    """Return the transforms of those values that are an :class:`Argument`."""
    pairs = [(a.serialization_fn, a.deserialization_fn) for a in args if isinstance(a, Argument)]
    return [transform for pair in pairs for transform in pair]


def given_by_field(function: Function) -> dict[str, Iterable[Any]]:
    """Return the code and the arguments of a function, by the field that holds them."""
    given: dict[str, Iterable[Any]] = {
        "code": (function.code,),
        "extra_args": function.extra_args,
        "extra_kwargs": function.extra_kwargs.values(),
    }
    if nested_arguments(function):
        given = {field: [*v, *transforms(contents(v))] for field, v in given.items()}
    return {**given, "args": transforms(function.args)}


def effective_policy(function: Function, default: RetryPolicy) -> RetryPolicy:
    """Return the retry policy of a function in a run whose policy is `default`."""
    policy = function.retry or default
    if function.max_retries is None or function.max_retries == policy.max_retries:
        return policy
    return policy.with_max_retries(function.max_retries)
