"""Checks a DAG before anything is sent to a cluster."""

from __future__ import annotations

import difflib
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from itertools import chain
from operator import attrgetter

from handoff_dask.errors import CyclicDependencyError, InvalidFunctionError, MissingFunctionError
from handoff_dask.model.amounts import AUTO, as_amount
from handoff_dask.model.contents import are_simple, contents
from handoff_dask.model.function import (
    Argument,
    Collocated,
    Function,
    argument_id,
    dependency_ids,
    given_by_field,
    is_listed,
    learns_memory,
)
from handoff_dask.model.refs import Ref
from handoff_dask.model.retry import RetryPolicy, count_problem, number_problem, time_limit_problem
from handoff_dask.model.signatures import check_signatures

_INCLUSIONS = ("variadic", "as_list")
_TYPES = ("regular", "inline")
_COMPUTE = (
    "call .compute() first, or pass the future that client.compute() returns, which is replaced "
    "by its result"
)


def validate(functions: Mapping[Hashable, Function]) -> None:
    """Raise the error of the first mistake in the functions of a DAG."""
    fine: set[tuple[int, ...]] = set()
    for function in functions.values():
        # Most functions of a DAG have the same settings as others.
        settings = tuple(map(id, _settings(function)))
        others = () if settings in fine else _setting_problems(function)
        for field, problem in chain(_problems(function), others):
            raise InvalidFunctionError(function.id, field, problem)
        fine.add(settings)
    needed = {function.id: dependency_ids(function) for function in functions.values()}
    _check_references(functions, needed)
    _check_cycles(needed, "depends on")
    _check_cycles(
        {f.id: [f.node.id] for f in functions.values() if isinstance(f.node, Collocated)},
        "is collocated with",
    )
    check_signatures(functions)


def _problems(function: Function) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the arguments and the cost of a function, regardless of others."""
    if not isinstance(function.args, tuple):
        hint = "; pass a callable as code=..." if callable(function.args) else ""
        yield "args", f"must be a list of function ids, not {function.args!r}{hint}"
    if not isinstance(function.extra_args, tuple):
        yield "extra_args", f"must be a list or tuple, not {function.extra_args!r}"
    if not isinstance(function.extra_kwargs, dict) or not all(
        isinstance(name, str) for name in function.extra_kwargs
    ):
        yield "extra_kwargs", f"must be a mapping with string keys, not {function.extra_kwargs!r}"
    for arg in function.args:
        yield from _argument_problems("args", arg)
    yield from _content_problems(function)


#: The fields that functions often have in common.
_settings = attrgetter(
    "code", "type", "argument_inclusion", "node", "allow_other_workers", "priority",
    "max_retries", "retry", "timeout", "isolate", "stored", "store_key",
    "cost",
)  # fmt: skip


def _setting_problems(function: Function) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with what `_settings` returns."""
    if function.code is None:
        yield "code", "is missing: pass a callable, as in Function(id, code=...)"
    elif not callable(function.code):
        yield "code", f"must be callable, not {function.code!r}"
    if function.type not in _TYPES:
        yield "type", f"must be one of {_TYPES}, not {function.type!r}"
    if function.argument_inclusion not in _INCLUSIONS:
        yield "argument_inclusion", _inclusion_problem(function.argument_inclusion)
    if function.cost is not None and (problem := cost_problem(function.cost, learned=True)):
        yield "cost", problem
    yield from _node_problems(function)
    yield from _isolate_problems(function)
    yield from _store_problems(function.stored, function.store_key)
    if problem := number_problem(function.priority, -math.inf):
        yield "priority", problem
    if function.max_retries is not None and (problem := count_problem(function.max_retries)):
        yield "max_retries", problem
    yield from limit_problems(function.retry, function.timeout)


def _content_problems(function: Function) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with dependencies outside of `args`, and each Dask collection.

    A collection, such as another DAG, stands where a value is expected.
    """
    if are_simple((function.code, *function.extra_args, *function.extra_kwargs.values())) and not (
        any(isinstance(arg, Argument) for arg in function.args)
    ):
        return
    given = given_by_field(function)
    everything = list(chain.from_iterable(given.values()))
    if are_simple(everything) or not any(map(_is_checked, contents(everything))):
        return
    for field, values in given.items():
        for value in filter(_is_checked, contents(values)):
            if isinstance(value, Argument):
                yield from _argument_problems(field, value)
            elif isinstance(value, Ref):
                yield field, f"contains {value!r}: write Argument({value.id!r}), or use DAG.add()"
            elif value is function.code:
                problem = "which is computed, not called: pass the plain function"
                yield field, f"is a {_kind(value)}, {problem}"
            else:
                yield field, f"contains a {_kind(value)}, which is not computed yet: {_COMPUTE}"


def _isolate_problems(function: Function) -> Iterator[tuple[str, str]]:
    if function.isolate not in (None, True, False):
        yield "isolate", f"must be True, False or None, not {function.isolate!r}"
    elif learns_memory(function) and function.isolate is False:
        yield "isolate", "must not be False if memory is AUTO: only a process can be measured"


def _store_problems(stored: object, key: object) -> Iterator[tuple[str, str]]:
    if not isinstance(stored, bool):
        yield "stored", f"must be True or False, not {stored!r}"
    if key is not None and not (isinstance(key, str) and key):
        yield "store_key", f"must be None or text that is not empty, not {key!r}"


def _is_checked(value: object) -> bool:
    return isinstance(value, (Argument, Ref)) or _is_collection(value)


def _kind(value: object) -> str:
    return f"{type(value).__module__.split('.')[0]} {type(value).__name__}"


def _is_collection(value: object) -> bool:
    """Whether a value implements Dask's collection protocol and has a graph."""
    if not hasattr(type(value), "__dask_graph__"):
        return False
    try:
        graph: object = value.__dask_graph__()  # type: ignore[attr-defined]
    except Exception:
        return True  # an invalid DAG raises, for example
    return graph is not None


def _inclusion_problem(value: object) -> str:
    return f"must be one of {_INCLUSIONS}, not {value!r}"


def _argument_problems(field: str, arg: Hashable | Argument) -> Iterator[tuple[str, str]]:
    id_ = argument_id(arg)
    try:
        hash(id_)
    except TypeError:
        yield field, f"contains {id_!r}, which is not an id: ids must be hashable"
    if isinstance(id_, Ref):
        yield field, f"contains {id_!r}: a Function takes ids, {id_.id!r}; DAG.add() takes Refs"
    elif isinstance(id_, Argument):
        yield field, f"contains {arg!r}: the id of an Argument is a function's, {id_.id!r}"
    elif _is_collection(id_):
        yield field, f"contains a {_kind(id_)}, which is not an id: {_COMPUTE}, in extra_args"
    elif hasattr(type(id_), "add_done_callback"):
        yield field, f"contains {id_!r}, a future, which is not an id: pass it in extra_args"
    if not isinstance(arg, Argument):
        return
    for name in ("serialization_fn", "deserialization_fn"):
        transform = getattr(arg, name)
        if transform is None or callable(transform):
            continue
        if (
            not isinstance(transform, (tuple, list))
            or len(transform) != 2
            or not callable(transform[0])
            or not isinstance(transform[1], (tuple, list))
        ):
            yield (
                field,
                f"{name} of the argument {id_!r} must be a callable or (callable, static_args), "
                f"not {transform!r}",
            )
    if arg.argument_inclusion not in _INCLUSIONS:
        problem = _inclusion_problem(arg.argument_inclusion)
        yield field, f"argument_inclusion of the argument {id_!r} {problem}"
    elif field != "args" and is_listed(arg):
        problem = f'is for "args": write [Argument({id_!r})] for a list'
        yield field, f"argument_inclusion of the argument {id_!r} {problem}"


def _node_problems(function: Function) -> Iterator[tuple[str, str]]:
    node, anywhere = function.node, function.allow_other_workers
    if not isinstance(anywhere, bool):
        yield "allow_other_workers", f"must be True or False, not {anywhere!r}"
    elif anywhere and (node is None or isinstance(node, Collocated)):
        problem = "is for functions whose node is a worker or several: it makes these a preference"
        yield "allow_other_workers", problem
    if node is None:
        return
    if function.type == "inline":
        yield (
            "node",
            "an inline function runs inside each function that uses it, so it cannot have a node "
            "or be collocated",
        )
    elif isinstance(node, Collocated):
        try:
            hash(node.id)
        except TypeError:
            yield "node", f"collocated({node.id!r}) does not refer to an id: ids must be hashable"
        if isinstance(node.id, Ref):
            problem = f"write collocated({node.id.id!r}), or use DAG.add(), which takes Refs"
            yield "node", f"is collocated with {node.id!r}: {problem}"
    elif not all(map(_is_worker, node if isinstance(node, tuple) and node else [node])):
        yield (
            "node",
            "must be a worker's name, address or host, several of these in a tuple, or "
            f"collocated(id), not {node!r}",
        )


def _is_worker(node: object) -> bool:
    return isinstance(node, (str, int)) and not isinstance(node, bool) and node != ""


def limit_problems(retry: object, timeout: object) -> Iterator[tuple[str, str]]:
    """Yield (field, what is wrong with it) for a retry policy and a time limit, or None."""
    if isinstance(retry, RetryPolicy):
        for field, misfit in retry.problems():
            yield f"retry.{field}", misfit
    elif retry is not None:
        yield "retry", f"must be a RetryPolicy or None, not {retry!r}"
    if timeout is not None and (problem := time_limit_problem(timeout)):
        yield "timeout", problem


#: The largest amount of a resource: sums of them stay finite.
LARGEST = 1e100


def cost_problem(cost: object, *, learned: bool = False) -> str | None:
    """Return why a value is not a valid cost, or None; `learned`: whether memory may be AUTO."""
    if not isinstance(cost, Mapping):
        return f"must be a mapping such as {{'cpu': 2, 'memory': '2 GB'}} or None, not {cost!r}"
    seen: dict[str, str] = {}
    for name, amount in cost.items():
        if not isinstance(name, str) or not name:
            return f"resource names must be strings, not {name!r}"
        try:
            number = as_amount(name, amount)
        except ValueError as error:
            return str(error)
        if number is AUTO and learned and name.lower() == "memory":
            number = 0
        elif number is AUTO:
            return f"the amount of {name!r} cannot be AUTO: only that of memory in a cost can"
        if problem := number_problem(number):
            return f"the amount of {name!r} {problem}"
        if number > LARGEST:
            return f"the amount of {name!r} must be at most {LARGEST:g}, not {amount!r}"
        twin = seen.setdefault(name.lower(), name)
        if twin != name:
            return f"{twin!r} and {name!r} are the same resource: names are case-insensitive"
    return None


def _check_references(
    functions: Mapping[Hashable, Function], needed: Mapping[Hashable, Iterable[Hashable]]
) -> None:
    missing: list[tuple[Hashable, Hashable]] = []
    for function in functions.values():
        missing += [(function.id, id_) for id_ in needed[function.id] if id_ not in functions]
        if isinstance(function.node, Collocated):
            target = functions.get(function.node.id)
            if target is None:
                missing.append((function.id, function.node.id))
            elif target.type == "inline":
                raise InvalidFunctionError(
                    function.id,
                    "node",
                    f"is collocated with {target.id!r}, an inline function, which does not run on "
                    "a worker of its own",
                )
    if missing:
        known = {str(i): i for i in functions}
        near = difflib.get_close_matches(str(missing[0][1]), known, n=1)
        raise MissingFunctionError(missing, known[near[0]] if near else None)


def _check_cycles(towards: Mapping[Hashable, Iterable[Hashable]], relation: str) -> None:
    """Raise for the first cycle; `towards` leads from a function to those it waits for."""
    done: set[Hashable] = set()
    for start, ahead in towards.items():
        if start in done:
            continue
        if done.issuperset(ahead):
            done.add(start)
            continue
        # Depth first, without recursion: chains may be longer than Python's stack.
        path: dict[Hashable, Iterator[Hashable]] = {start: iter(ahead)}
        while path:
            here = next(reversed(path))
            for there in path[here]:
                if there in path:
                    ids = list(path)
                    # The path runs against the flow of results, so it is reversed.
                    raise CyclicDependencyError(ids[ids.index(there) :][::-1], relation)
                if there not in done:
                    path[there] = iter(towards.get(there, ()))
                    break
            else:
                done.add(here)
                # Not `del`: reversed() would then step over every entry deleted so far.
                path.popitem()
