"""Expands the functions of a DAG into the nodes that are scheduled.

Inline functions become part of the calls that use them; each transform of an ``Argument`` becomes a
node of its own. The result is a plain graph of calls: the Dask graph, the simulation and the local
executor are all made from it.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal, NamedTuple, Union

from handoff_dask.model.amounts import AUTO
from handoff_dask.model.contents import Replacing
from handoff_dask.model.function import (
    Argument,
    Collocated,
    Function,
    Transform,
    argument_id,
    claims,
    effective_policy,
    is_listed,
    learns_memory,
    nested_arguments,
)
from handoff_dask.model.retry import RetryPolicy

NodeKind = Literal["function", "serializer", "deserializer"]


class Listed(NamedTuple):
    """Values that are passed as one list."""

    items: tuple[Entry, ...]


class Transformed(NamedTuple):
    """A value whose transforms are applied where it is used, because it is also made there."""

    item: Entry
    transforms: tuple[tuple[Any, tuple[Any, ...]], ...]


@dataclass(frozen=True, slots=True)
class Slot:
    """Stands in a call's further arguments where the value of an entry of `slots` belongs."""

    number: int


class Call(NamedTuple):
    """A callable, and where its arguments come from."""

    code: Any
    args: tuple[Entry, ...]
    extra_args: tuple[Any, ...]
    extra_kwargs: Mapping[str, Any]
    #: What the slots in the code and in the further arguments are replaced by, by number.
    slots: tuple[Entry, ...] = ()
    #: What stands for the code in the name of the result.
    store_key: str | None = None


#: An argument of a call: the position of a dependency, or something to evaluate.
Entry = Union[int, Call, Listed, Transformed]  # noqa: UP007 - recursive, evaluated at run time


def map_entries(entry: Any, change: Callable[[Entry], Entry]) -> Any:
    """Return an entry with a change made to each entry directly inside it."""
    if isinstance(entry, Call):
        return entry._replace(
            args=tuple(map(change, entry.args)), slots=tuple(map(change, entry.slots))
        )
    if isinstance(entry, Listed):
        return Listed(tuple(map(change, entry.items)))
    return entry._replace(item=change(entry.item))


def map_given(call: Call, change: Callable[[Any], Any]) -> Call:
    """Return a call with a change made to all codes and arguments in it."""
    # An entry that occurs twice must stay one object, because it is evaluated once.
    changed: dict[int, Entry] = {}

    def entry(old: Any) -> Any:
        if isinstance(old, int):
            return old
        if id(old) not in changed:
            new = old
            if isinstance(old, Call):
                new = old._replace(
                    code=change(old.code),
                    extra_args=change(old.extra_args),
                    extra_kwargs=change(old.extra_kwargs),
                )
            elif isinstance(old, Transformed):
                new = old._replace(transforms=change(old.transforms))
            changed[id(old)] = map_entries(new, entry)
        return changed[id(old)]

    result: Call = entry(call)
    return result


def with_dependencies(call: Call, entries: Mapping[int, Entry]) -> Call:
    """Return a call with other entries in place of its dependencies, by their position."""
    # What is one object in the call must stay one: it is evaluated once.
    replaced: dict[int, Entry] = {}

    def replace(entry: Entry) -> Entry:
        if isinstance(entry, int):
            return entries[entry]
        if id(entry) not in replaced:
            replaced[id(entry)] = map_entries(entry, replace)
        return replaced[id(entry)]

    result: Call = map_entries(call, replace)
    return result


def untransformed(
    nodes: Sequence[Node], index: int
) -> tuple[int, tuple[tuple[Any, tuple[Any, ...]], ...]]:
    """Return the function whose result a node returns, and the transforms between, in order."""
    steps: list[tuple[Any, tuple[Any, ...]]] = []
    while nodes[index].kind != "function":
        step = nodes[index]
        steps.insert(0, (step.call.code, step.call.extra_args))
        (index,) = step.dependencies
    return index, tuple(steps)


def given(call: Call) -> Iterator[Any]:
    """Yield all codes and arguments in a call."""
    pending: list[Any] = [call]
    seen: set[int] = set()
    while pending:
        entry = pending.pop()
        if isinstance(entry, int) or id(entry) in seen:
            continue
        seen.add(id(entry))
        if isinstance(entry, Call):
            yield entry.code
            yield from entry.extra_args
            yield from entry.extra_kwargs.values()
            pending += entry.args + entry.slots
        elif isinstance(entry, Listed):
            pending += entry.items
        else:
            for code, static in entry.transforms:
                yield code
                yield from static
            pending.append(entry.item)


@dataclass(frozen=True, slots=True)
class Node:
    """A call that is scheduled."""

    #: Its place in the expansion; regular functions come first, in the order of the DAG.
    index: int
    kind: NodeKind
    #: The function that it runs; for a transform, the consumer.
    function: Function
    #: What to call; positions in it count `dependencies`.
    call: Call
    #: Nodes whose results the call needs.
    dependencies: tuple[int, ...]
    #: What it claims. For each resource, the larger amount of its own and its inline functions'
    #: costs counts. Lower case names, no zeros.
    cost: Mapping[str, float]
    #: Names, addresses or hosts of the only workers that may run it; empty: any may.
    pin: tuple[str, ...] = ()
    #: Names, addresses or hosts of the workers that it rather runs on.
    preferred: tuple[str, ...] = ()
    #: The node whose worker it must share.
    collocated: int | None = None
    #: For a transform: the producer and the consumer.
    source: int | None = None
    target: int | None = None
    #: The inline functions in the call; for a transform, the one whose argument it is.
    inlined: tuple[Function, ...] = ()
    #: Whether it also claims memory, as much as others of its code have used.
    learns_memory: bool = False
    #: Whether it runs in a process of its own.
    isolated: bool = False

    @property
    def binds(self) -> int | None:
        """The node that must be bound to a worker before this one may start."""
        return self.target if self.kind == "serializer" else None


def expand(functions: Mapping[Hashable, Function], *, isolate: bool = False) -> list[Node]:
    """Return the nodes of a valid DAG; `isolate` is for functions that do not say it themselves."""
    regular = [f for f in functions.values() if f.type == "regular"]
    indices = {f.id: i for i, f in enumerate(regular)}
    transforms: list[Node] = []
    # One object for each distinct cost: there are few, and they are sent to the cluster.
    costs: dict[tuple[tuple[str, float], ...], dict[str, float]] = {}
    nodes: list[Node] = []
    for index, function in enumerate(regular):
        if not _is_source(function):
            expansion = _Expansion(functions, indices, function, transforms, costs)
            nodes.append(expansion.node(isolate))
            continue
        call = Call(
            function.code,
            (),
            tuple(function.extra_args),
            function.extra_kwargs,
            store_key=function.store_key,
        )
        cost = effective_cost(claims(function))
        cost = costs.setdefault(tuple(cost.items()), cost)
        learns = learns_memory(function)
        isolated = learns or _isolated((function,), isolate)
        nodes.append(
            Node(
                index, "function", function, call, (), cost, learns_memory=learns, isolated=isolated
            )
        )
    return nodes + transforms


def _isolated(functions: Iterable[Function], default: bool) -> bool:
    """Whether a function, whose inline functions follow, runs in a process of its own."""
    own = [function.isolate for function in functions if function.isolate is not None]
    return any(own) if own else default


def _is_source(function: Function) -> bool:
    """Whether a function needs nothing, and may run anywhere: most of a large DAG are like that."""
    return (
        not function.args
        and function.node is None
        and function.argument_inclusion == "variadic"
        and not nested_arguments(function)
    )


def sinks(nodes: Sequence[Node]) -> list[Hashable]:
    """Return the functions whose results no other node needs."""
    used = {i for node in nodes for i in node.dependencies}
    return [n.function.id for n in nodes if n.kind == "function" and n.index not in used]


def node_policy(node: Node, default: RetryPolicy) -> RetryPolicy:
    """Return how a node is retried in a run whose policy is `default`."""
    policy = effective_policy(node.function, default)
    if node.kind == "function" or policy.escalate is None:
        return policy
    return replace(policy, escalate=None)  # a transform costs nothing


def effective_cost(cost: Mapping[str, Any] | None) -> dict[str, float]:
    """Return a cost with lower case names, without zeros and without what is learned."""
    if not cost:
        return {}
    return {name.lower(): amount for name, amount in cost.items() if amount and amount is not AUTO}


@dataclass(slots=True)
class _Expansion:
    """Expands one regular function; transform nodes are appended to a shared list."""

    functions: Mapping[Hashable, Function]
    indices: Mapping[Hashable, int]
    function: Function
    transforms: list[Node]
    costs: dict[tuple[tuple[str, float], ...], dict[str, float]]
    positions: dict[int, int] = field(default_factory=dict)
    inlined: dict[Hashable, Function] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)

    @property
    def index(self) -> int:
        return self.indices[self.function.id]

    def node(self, isolate: bool) -> Node:
        function = self.function
        call = self.call(function)
        workers: tuple[str, ...] = ()
        collocated = None
        if isinstance(function.node, Collocated):
            collocated = self.indices[function.node.id]
        elif function.node is not None:
            node = function.node if isinstance(function.node, tuple) else (function.node,)
            workers = tuple(dict.fromkeys(map(str, node)))
        together = (function, *self.inlined.values())
        learns = any(map(learns_memory, together))
        pin, preferred = ((), workers) if function.allow_other_workers else (workers, ())
        return Node(
            self.index,
            "function",
            function,
            call,
            tuple(self.positions),
            self.costs.setdefault(tuple(self.cost.items()), self.cost),
            pin,
            preferred,
            collocated,
            inlined=tuple(self.inlined.values()),
            learns_memory=learns,
            isolated=learns or _isolated(together, isolate),
        )

    def call(self, function: Function) -> Call:
        if function.cost:
            for name, amount in effective_cost(claims(function)).items():
                self.cost[name] = max(amount, self.cost.get(name, 0))
        # An inline function that a function names twice is evaluated once for it.
        inline: dict[Hashable, Call] = {}
        groups: Iterable[tuple[bool, Iterable[Any]]] = groupby(function.args, is_listed)
        if function.argument_inclusion == "as_list":
            groups = [(True, function.args)]
        args: list[Entry] = []
        for as_list, group in groups:
            entries = tuple(self.entry(function, arg, inline) for arg in group)
            args += [Listed(entries)] if as_list else entries
        given: tuple[Any, ...] = function.code, function.extra_args, function.extra_kwargs
        slots: list[Entry] = []
        if nested_arguments(function):

            def slot(arg: Argument) -> Slot:
                slots.append(self.entry(function, arg, inline))
                return Slot(len(slots) - 1)

            given = Replacing(Argument, slot)(given)
        code, extra_args, extra_kwargs = given
        return Call(code, tuple(args), extra_args, extra_kwargs, tuple(slots), function.store_key)

    def entry(
        self, user: Function, arg: Hashable | Argument, inline: dict[Hashable, Call]
    ) -> Entry:
        id_ = argument_id(arg)
        producer = self.functions[id_]
        if producer.type == "inline":
            if id_ not in inline:
                self.inlined[id_] = producer
                inline[id_] = self.call(producer)
            if not isinstance(arg, Argument):
                return inline[id_]
            both = (arg.serialization_fn, arg.deserialization_fn)
            steps = tuple(_step(t) for t in both if t is not None)
            return Transformed(inline[id_], steps) if steps else inline[id_]
        index = self.indices[id_]
        if isinstance(arg, Argument):
            index = self.transformed(user, arg, index)
        return self.positions.setdefault(index, len(self.positions))

    def transformed(self, user: Function, arg: Argument, producer: int) -> int:
        """Append the nodes of an argument's transforms; return the index of the last one."""
        last = producer
        for kind, transform, collocated in (
            ("serializer", arg.serialization_fn, producer),
            ("deserializer", arg.deserialization_fn, self.index),
        ):
            if transform is None:
                continue
            code, static = _step(transform)
            index = len(self.indices) + len(self.transforms)
            self.transforms.append(
                Node(
                    index,
                    kind,  # type: ignore[arg-type]
                    self.function,
                    Call(code, (0,), static, {}),
                    (last,),
                    {},
                    collocated=collocated,
                    source=producer,
                    target=self.index,
                    inlined=() if user is self.function else (user,),
                )
            )
            last = index
        return last


def _step(transform: Transform) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    if callable(transform):
        return transform, ()
    code, static = transform
    return code, tuple(static)


def evaluate(call: Call, values: Sequence[Any], here: Callable[[], str]) -> Any:
    """Evaluate a call, and run the coroutines that it or any call inside it returns.

    `values` are the results of the node's dependencies; `here` returns the address of this worker,
    the source and target of transforms that are applied in place.
    """
    # An inline function that is named twice is one object: evaluated once, passed twice.
    made: dict[int, Any] = {}
    args = [_value(entry, values, here, made) for entry in call.args]
    code, extra_args, extra_kwargs = call.code, call.extra_args, call.extra_kwargs
    if call.slots:
        filled = [_value(entry, values, here, made) for entry in call.slots]
        fill = Replacing(Slot, lambda slot: filled[slot.number])
        code, extra_args, extra_kwargs = fill((code, extra_args, extra_kwargs))
    return finish(code(*args, *extra_args, **extra_kwargs))


def _value(
    entry: Entry, values: Sequence[Any], here: Callable[[], str], made: dict[int, Any]
) -> Any:
    """Return the value of an entry; `made` has those of calls, by id."""
    if isinstance(entry, int):
        return values[entry]
    if isinstance(entry, Call):
        if id(entry) not in made:
            made[id(entry)] = evaluate(entry, values, here)
        return made[id(entry)]
    if isinstance(entry, Listed):
        return [_value(item, values, here, made) for item in entry.items]
    data, node = _value(entry.item, values, here, made), here()
    for transform, static in entry.transforms:
        data = finish(transform(data, node, node, *static))
    return data


def finish(result: Any) -> Any:
    """Run a coroutine to its end and return its result; return anything else unchanged."""
    if not inspect.iscoroutine(result):
        return result
    try:
        asyncio.get_running_loop()
        running = True
    except RuntimeError:
        running = False
    if not running:  # not in the handler, whose error would become the context of the user's
        return asyncio.run(result)
    # A loop already runs in this thread, as in a notebook, so the coroutine needs another thread.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, asyncio.run, result).result()
