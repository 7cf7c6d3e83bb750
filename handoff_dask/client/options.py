"""The options of a run, checked before anything is sent."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from inspect import iscoroutinefunction, signature
from typing import Any, Literal, Protocol, Union, cast, get_args, runtime_checkable

from handoff_dask import config
from handoff_dask.model.amounts import Seconds, as_count, as_number, as_seconds
from handoff_dask.model.function import Function
from handoff_dask.model.retry import RetryPolicy, count_problem, number_problem, time_problem
from handoff_dask.model.validation import limit_problems
from handoff_dask.placement.strategies import STRATEGIES
from handoff_dask.store.result_store import Store
from handoff_dask.wire.run_events import Event

OnError = Literal["raise", "continue"]
StrategyName = Literal["packed", "cost_optimized", "load_balanced", "first_available"]
#: Which results are kept and gathered: all, those that no function needs, or these.
ResultSelection = Union[Literal["all", "sinks"], Sequence[Hashable]]  # noqa: UP007 - 3.10


@runtime_checkable
class Allocator(Protocol):
    """A strategy of the user's own (``Handoff.Allocator``), asked once, at submission."""

    def allocate(
        self, functions: Sequence[Function], capabilities: Mapping[str, Mapping[str, float]]
    ) -> Mapping[Hashable, str]:
        """Assign functions to workers.

        Parameters
        ----------
        functions
            The regular functions of the DAG.
        capabilities
            {worker address: {resource: amount}}.

        Returns
        -------
        Mapping
            {function id: worker}, the worker by address, name or host, for every function.
        """
        ...


def seconds(name: str, value: Any) -> float:
    """Return an argument that is a time, in seconds; raise ValueError unless it is one, >= 0."""
    try:
        number: float = as_seconds(value)
        problem = time_problem(number)
    except ValueError as error:
        problem = str(error)
    if problem:
        raise ValueError(f"{name} {problem}")
    return number


def bundle_work(bundle: Seconds | Literal[False] | None) -> float:
    """Return the most work in a bundle, in seconds; 0: nothing is bundled.

    None is the setting ``handoff.bundle``.
    """
    name = "bundle"
    if bundle is None:
        name, bundle = "the setting handoff.bundle", config.get("bundle")
    return 0.0 if bundle is False else seconds(name, bundle)


def patience(timeout: Any) -> float | None:
    """Return how long a call waits, in seconds; None is for ever."""
    return None if timeout is None else seconds("timeout", timeout)


def _durations(given: Any) -> Mapping[Hashable, float]:
    """Return {function id: s} of those that are known."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {id_: seconds(f"the duration of function {id_!r}", s) for id_, s in given.items()}
    if not isinstance(getattr(given, "attempts", None), Mapping):
        problem = "must be {function id: seconds} or an ExecutionResult"
        raise ValueError(f"durations {problem}, not {given!r}")
    known = {}
    for id_, attempts in given.attempts.items():
        if ended_well := [a.duration for a in attempts if a.outcome == "ok" or a.earlier]:
            known[id_] = sum(ended_well) / len(ended_well)
    return known


def as_store(store: Any, **options: Any) -> Store | None:
    """Return a store, given by itself or by its URL; None is the setting ``handoff.store``.

    A URL goes with the options of the setting, unless `options` replace them.
    """
    setting = config.get("store")
    configured = setting if isinstance(setting, Mapping) else {"url": setting}
    configured = {str(key).replace("-", "_"): value for key, value in configured.items()}
    name = "store"
    if store is None:
        name, store = "the setting handoff.store", configured.get("url")
    if not store:  # the setting is empty, or False switches it off
        return None
    if isinstance(store, Store):
        return store
    if not isinstance(store, (str, os.PathLike)):
        raise ValueError(f"{name} must be a URL, a path or a Store, not {store!r}")
    if unknown := configured.keys() - signature(Store).parameters.keys():
        raise ValueError(f"there is no setting handoff.store.{min(unknown)}")
    return Store(**{**configured, **options, "url": os.fspath(store)})


def learned_url() -> str | None:
    """Return the setting ``handoff.learned``, where what is learned of functions is kept."""
    url = config.get("learned")
    if not url:
        return None
    if isinstance(url, (str, os.PathLike)):
        return os.fspath(url)
    raise ValueError(f"the setting handoff.learned must be a URL or a path, not {url!r}")


@dataclass(frozen=True)
class RunOptions:
    """What :func:`~handoff_dask.execute` and :func:`~handoff_dask.submit` take."""

    max_retries: int = 3
    retry: RetryPolicy | None = None
    max_concurrency: int | None = None
    allocation_strategy: StrategyName | Allocator = "packed"
    results: ResultSelection = "all"
    on_error: OnError = "raise"
    timeout: Seconds | None = None
    placement_timeout: Seconds = 0.0
    priority: float = 0
    detach: bool = False
    progress: bool = False
    on_event: Callable[[Event], Any] | None = None
    bundle: Seconds | Literal[False] | None = None
    isolate: bool | None = None
    #: {function id: seconds}, or the result of an earlier run.
    durations: Any = None
    #: A store or its URL; False: none.
    store: Any = None

    def __post_init__(self) -> None:
        for name in ("max_retries", "max_concurrency"):
            object.__setattr__(self, name, as_count(getattr(self, name)))
        object.__setattr__(self, "priority", as_number(self.priority))
        object.__setattr__(self, "timeout", patience(self.timeout))
        placement_timeout = seconds("placement_timeout", self.placement_timeout)
        object.__setattr__(self, "placement_timeout", placement_timeout)
        problems = {
            "max_retries": count_problem(self.max_retries),
            **dict(limit_problems(self.retry, self.timeout)),
            "priority": number_problem(self.priority, -math.inf),
        }
        if self.max_concurrency is not None:
            problems["max_concurrency"] = count_problem(self.max_concurrency) or (
                None if self.max_concurrency else "must be at least 1, not 0: nothing could run"
            )
        if self.on_event is not None and not callable(self.on_event):
            problems["on_event"] = f"must be a callable or None, not {self.on_event!r}"
        elif iscoroutinefunction(self.on_event):
            problems["on_event"] = f"must not be a coroutine function, as {self.on_event!r} is"
        if self.isolate is None:
            object.__setattr__(self, "isolate", config.get("isolate"))
        for name in ("detach", "progress", "isolate"):
            if not isinstance(value := getattr(self, name), bool):
                problems[name] = f"must be True or False, not {value!r}"
        if self.on_error not in get_args(OnError):
            problems["on_error"] = f"must be one of {get_args(OnError)}, not {self.on_error!r}"
        strategy = self.allocation_strategy
        if isinstance(strategy, str):
            if strategy not in STRATEGIES:
                names = ", ".join(map(repr, STRATEGIES))
                problems["allocation_strategy"] = (
                    f"must be one of {names} or an Allocator, not {strategy!r}"
                )
        elif isinstance(strategy, type) or not isinstance(strategy, Allocator):
            problems["allocation_strategy"] = (
                f"must be the name of a strategy or an object with an allocate() method, "
                f"not {strategy!r}"
            )
        object.__setattr__(self, "durations", _durations(self.durations))
        object.__setattr__(self, "store", as_store(self.store))
        object.__setattr__(self, "bundle", bundle_work(self.bundle))
        for name, problem in problems.items():
            if problem:
                raise ValueError(f"{name} {problem}")

    @classmethod
    def among(cls, arguments: Mapping[str, Any]) -> RunOptions:
        """Return the options among the arguments of a call."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: arguments[name] for name in names if name in arguments})

    @property
    def expected(self) -> Mapping[Hashable, float]:
        """How long functions take, as far as the user says: {function id: s}."""
        return cast("Mapping[Hashable, float]", self.durations)

    @property
    def stored_in(self) -> Store | None:
        """The store in which results are looked up and kept."""
        return cast("Store | None", self.store)

    @property
    def worth(self) -> float:
        """Seconds of work in a bundle, at most; 0: no function travels with others."""
        return cast("float", self.bundle)

    @property
    def policy(self) -> RetryPolicy:
        """The retry policy of functions that have none of their own."""
        return self.retry or RetryPolicy(self.max_retries)
