"""Handoff for Python on Dask: DAGs of functions with resource costs."""

from handoff_dask._version import __version__
from handoff_dask.client.completion import AsCompleted
from handoff_dask.client.computing import compute, persist
from handoff_dask.client.execution import execute, submit
from handoff_dask.client.explaining import (
    Explanation,
    Fetching,
    RunExplanation,
    Unready,
    explain,
)
from handoff_dask.client.kept_runs import RunInfo, forget, get_result, get_run, list_runs, uninstall
from handoff_dask.client.local import execute_local
from handoff_dask.client.nodes import (
    discover_nodes,
    register_local_node,
    register_node,
    resources_available,
)
from handoff_dask.client.options import Allocator
from handoff_dask.client.planning import Plan, Slot, plan
from handoff_dask.client.results import ExecutionResult
from handoff_dask.client.run import Run
from handoff_dask.errors import (
    AllocationError,
    ClusterLostError,
    CyclicDependencyError,
    DAGError,
    DuplicateFunctionError,
    ForeignRefError,
    FunctionFailedError,
    HandoffError,
    InvalidFunctionError,
    MissingFunctionError,
    RunCancelledError,
    RunTimeoutError,
    StandInError,
    TransferError,
    UnknownFunctionError,
    UnknownRunError,
    UnknownWorkerError,
    VersionError,
    WorkerLostError,
)
from handoff_dask.graph.collection import DAG
from handoff_dask.model.attempt import Attempt
from handoff_dask.model.function import Argument, Collocated, Function, collocated
from handoff_dask.model.marking import function
from handoff_dask.model.refs import Ref
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.placement.events import Finding, Waiting
from handoff_dask.scheduler.plugin import HandoffPlugin
from handoff_dask.wire.run_events import (
    AttemptEnded,
    FunctionEnded,
    FunctionPlaced,
    RunClosed,
    RunOpened,
    RunStopped,
)
from handoff_dask.worker.task import Current, current

__all__ = [
    "DAG",
    "AllocationError",
    "Allocator",
    "Argument",
    "AsCompleted",
    "Attempt",
    "AttemptEnded",
    "ClusterLostError",
    "Collocated",
    "Current",
    "CyclicDependencyError",
    "DAGError",
    "DuplicateFunctionError",
    "ExecutionResult",
    "Explanation",
    "Fetching",
    "Finding",
    "ForeignRefError",
    "Function",
    "FunctionEnded",
    "FunctionFailedError",
    "FunctionPlaced",
    "HandoffError",
    "HandoffPlugin",
    "InvalidFunctionError",
    "MissingFunctionError",
    "Plan",
    "Ref",
    "RetryPolicy",
    "Run",
    "RunCancelledError",
    "RunClosed",
    "RunExplanation",
    "RunInfo",
    "RunOpened",
    "RunStopped",
    "RunTimeoutError",
    "Slot",
    "StandInError",
    "TransferError",
    "UnknownFunctionError",
    "UnknownRunError",
    "UnknownWorkerError",
    "Unready",
    "VersionError",
    "Waiting",
    "WorkerLostError",
    "__version__",
    "collocated",
    "compute",
    "current",
    "discover_nodes",
    "execute",
    "execute_local",
    "explain",
    "forget",
    "function",
    "get_result",
    "get_run",
    "list_runs",
    "persist",
    "plan",
    "register_local_node",
    "register_node",
    "resources_available",
    "submit",
    "uninstall",
]
