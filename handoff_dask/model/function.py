"""Functions, the arguments they take from each other, and where they may run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from handoff_dask.model.amounts import as_count, as_number, as_numbers
from handoff_dask.model.comparing import Comparable

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


@dataclass(frozen=True, slots=True, eq=False)
class Argument(Comparable):
    """A dependency whose value is transformed in transit (``Handoff.Function.Argument``).

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
        ``"variadic"``: an argument by itself. ``"as_list"``: adjacent as_list arguments arrive
        together in one list.

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
    """

    id: Hashable
    serialization_fn: Transform | None = None
    deserialization_fn: Transform | None = None
    argument_inclusion: ArgumentInclusion = "variadic"


@dataclass(frozen=True, eq=False)
class Function(Comparable):
    """A function of a DAG (``Handoff.Function``).

    Parameters
    ----------
    id
        Unique in the DAG; any hashable.
    args
        The functions whose results are passed, in order: ids, or :class:`Argument` objects.
    code
        The callable. It gets the dependencies' results, then `extra_args`, then `extra_kwargs`.
        The coroutine of a coroutine function is run to its end.
    extra_args, extra_kwargs
        Further arguments, fixed when the DAG is built. A Dask future among them, or inside lists,
        tuples, sets, dicts or partial calls, is replaced by its result. Like `code`, they are
        pickled once per run and unpickled at every start, so each start has its own objects.
    cost
        What an attempt claims while it runs: ``{"cpu": 2, "memory": 2048, "gpu": 1}`` in cores, MB
        (10**6 bytes) and units; any other name is a custom resource. Names are case-insensitive,
        fractions are allowed, None costs nothing.
    node
        A pin: a worker's name, address or host, or ``collocated(id)``.
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
        Seconds an attempt may run; None is no limit.
    results
        Output storage: filled on the copies in ``ExecutionResult.functions``.

    Notes
    -----
    Mistakes are reported when the DAG is validated.

    Examples
    --------
    >>> import operator
    >>> from handoff_dask import Function
    >>> double = Function(id="double", args=["source"], code=operator.mul, extra_args=[2])
    >>> double.extra_args
    (2,)
    """

    id: Hashable
    args: Sequence[Hashable | Argument]
    code: Callable[..., Any]
    extra_args: Sequence[Any] = ()
    extra_kwargs: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, float] | None = None
    node: str | int | Collocated | None = None
    type: FunctionType = "regular"
    argument_inclusion: ArgumentInclusion = "variadic"
    max_retries: int | None = None
    retry: RetryPolicy | None = None
    timeout: float | None = None
    results: Any = None

    def __post_init__(self) -> None:
        # Copies, so that later changes to a list do not change the function. Other types stay as
        # they are, so that validate() can report them.
        for name in ("args", "extra_args"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        if isinstance(self.extra_kwargs, Mapping):
            object.__setattr__(self, "extra_kwargs", dict(self.extra_kwargs))
        if isinstance(self.cost, Mapping):
            object.__setattr__(self, "cost", as_numbers(self.cost))
        object.__setattr__(self, "max_retries", as_count(self.max_retries))
        object.__setattr__(self, "timeout", as_number(self.timeout))


def argument_id(arg: Hashable | Argument) -> Hashable:
    """Return the id that an entry of ``Function.args`` refers to."""
    return arg.id if isinstance(arg, Argument) else arg


def is_listed(arg: Hashable | Argument) -> bool:
    """Whether an entry of ``Function.args`` is passed in a list, with those next to it."""
    return isinstance(arg, Argument) and arg.argument_inclusion == "as_list"


def given_by_field(function: Function) -> dict[str, Iterable[Any]]:
    """Return the code and the arguments of a function, by the field that holds them."""
    transforms = [
        transform
        for arg in function.args
        if isinstance(arg, Argument)
        for transform in (arg.serialization_fn, arg.deserialization_fn)
    ]
    return {
        "code": (function.code,),
        "extra_args": function.extra_args,
        "extra_kwargs": function.extra_kwargs.values(),
        "args": transforms,
    }


def effective_policy(function: Function, default: RetryPolicy) -> RetryPolicy:
    """Return the retry policy of a function in a run whose policy is `default`."""
    policy = function.retry or default
    if function.max_retries is None or function.max_retries == policy.max_retries:
        return policy
    return policy.with_max_retries(function.max_retries)
