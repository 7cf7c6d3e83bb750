"""Handoff for Python on Dask: DAGs of functions with resource costs.

Names are imported when they are first used: a process that needs few of them, such as that of an
isolated function, does not pay for Dask.
"""

from __future__ import annotations

from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from handoff_dask._version import __version__ as __version__

if TYPE_CHECKING:
    from handoff_dask.client.advising import Advice as Advice
    from handoff_dask.client.completion import AsCompleted as AsCompleted
    from handoff_dask.client.computing import compute as compute, persist as persist
    from handoff_dask.client.execution import execute as execute, submit as submit
    from handoff_dask.client.explaining import (
        Explanation as Explanation,
        Fetching as Fetching,
        RunExplanation as RunExplanation,
        Unready as Unready,
        explain as explain,
    )
    from handoff_dask.client.kept_runs import (
        RunInfo as RunInfo,
        forget as forget,
        get_result as get_result,
        get_run as get_run,
        list_runs as list_runs,
        uninstall as uninstall,
    )
    from handoff_dask.client.local import execute_local as execute_local
    from handoff_dask.client.nodes import (
        discover_nodes as discover_nodes,
        register_local_node as register_local_node,
        register_node as register_node,
        resources_available as resources_available,
    )
    from handoff_dask.client.options import Allocator as Allocator
    from handoff_dask.client.planning import Plan as Plan, Slot as Slot, plan as plan
    from handoff_dask.client.results import ExecutionResult as ExecutionResult
    from handoff_dask.client.run import Run as Run
    from handoff_dask.errors import (
        AllocationError as AllocationError,
        ClusterLostError as ClusterLostError,
        CyclicDependencyError as CyclicDependencyError,
        DAGError as DAGError,
        DuplicateFunctionError as DuplicateFunctionError,
        ForeignRefError as ForeignRefError,
        FunctionFailedError as FunctionFailedError,
        HandoffError as HandoffError,
        InvalidFunctionError as InvalidFunctionError,
        MissingFunctionError as MissingFunctionError,
        OutOfMemoryError as OutOfMemoryError,
        ProcessDiedError as ProcessDiedError,
        RunCancelledError as RunCancelledError,
        RunTimeoutError as RunTimeoutError,
        StandInError as StandInError,
        StoredResultMissing as StoredResultMissing,
        StoreError as StoreError,
        TransferError as TransferError,
        UnknownFunctionError as UnknownFunctionError,
        UnknownRunError as UnknownRunError,
        UnknownWorkerError as UnknownWorkerError,
        VersionError as VersionError,
        WorkerLostError as WorkerLostError,
    )
    from handoff_dask.graph.collection import DAG as DAG
    from handoff_dask.learning.advice import CodeAdvice as CodeAdvice, Spread as Spread
    from handoff_dask.model.amounts import AUTO as AUTO, Auto as Auto
    from handoff_dask.model.attempt import Attempt as Attempt, Usage as Usage
    from handoff_dask.model.function import (
        Argument as Argument,
        Collocated as Collocated,
        Function as Function,
        collocated as collocated,
    )
    from handoff_dask.model.marking import function as function
    from handoff_dask.model.refs import Ref as Ref
    from handoff_dask.model.retry import RetryPolicy as RetryPolicy, grow as grow
    from handoff_dask.placement.events import Finding as Finding, Waiting as Waiting
    from handoff_dask.scheduler.plugin import HandoffPlugin as HandoffPlugin
    from handoff_dask.store.result_store import Store as Store
    from handoff_dask.wire.run_events import (
        AttemptEnded as AttemptEnded,
        FunctionEnded as FunctionEnded,
        FunctionPlaced as FunctionPlaced,
        RunClosed as RunClosed,
        RunOpened as RunOpened,
        RunStopped as RunStopped,
    )
    from handoff_dask.worker.current import Current as Current, current as current

#: What a user may import, by the module that defines it. Type checkers read the imports above.
_EXPORTS = {
    "client.advising": ("Advice",),
    "client.completion": ("AsCompleted",),
    "client.computing": ("compute", "persist"),
    "client.execution": ("execute", "submit"),
    "client.explaining": ("Explanation", "Fetching", "RunExplanation", "Unready", "explain"),
    "client.kept_runs": ("RunInfo", "forget", "get_result", "get_run", "list_runs", "uninstall"),
    "client.local": ("execute_local",),
    "client.nodes": (
        "discover_nodes",
        "register_local_node",
        "register_node",
        "resources_available",
    ),
    "client.options": ("Allocator",),
    "client.planning": ("Plan", "Slot", "plan"),
    "client.results": ("ExecutionResult",),
    "client.run": ("Run",),
    "errors": (
        "AllocationError",
        "ClusterLostError",
        "CyclicDependencyError",
        "DAGError",
        "DuplicateFunctionError",
        "ForeignRefError",
        "FunctionFailedError",
        "HandoffError",
        "InvalidFunctionError",
        "MissingFunctionError",
        "OutOfMemoryError",
        "ProcessDiedError",
        "RunCancelledError",
        "RunTimeoutError",
        "StandInError",
        "StoreError",
        "StoredResultMissing",
        "TransferError",
        "UnknownFunctionError",
        "UnknownRunError",
        "UnknownWorkerError",
        "VersionError",
        "WorkerLostError",
    ),
    "graph.collection": ("DAG",),
    "learning.advice": ("CodeAdvice", "Spread"),
    "model.amounts": ("AUTO", "Auto"),
    "model.attempt": ("Attempt", "Usage"),
    "model.function": ("Argument", "Collocated", "Function", "collocated"),
    "model.marking": ("function",),
    "model.refs": ("Ref",),
    "model.retry": ("RetryPolicy", "grow"),
    "placement.events": ("Finding", "Waiting"),
    "scheduler.plugin": ("HandoffPlugin",),
    "store.result_store": ("Store",),
    "wire.run_events": (
        "AttemptEnded",
        "FunctionEnded",
        "FunctionPlaced",
        "RunClosed",
        "RunOpened",
        "RunStopped",
    ),
    "worker.current": ("Current", "current"),
}
_MODULES = {name: f"{__name__}.{module}" for module, names in _EXPORTS.items() for name in names}

__all__ = sorted([*_MODULES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        if not name.startswith("_"):
            with suppress(ModuleNotFoundError):  # `import handoff_dask` makes its modules usable
                return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
