"""Placement: which function runs where, and when.

A pure state machine (`Engine`), and a simulation that drives it. No Dask, no clock, no I/O.
"""

from __future__ import annotations

from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import (
    Backlog,
    Counts,
    Finding,
    FunctionSpec,
    Place,
    Refuse,
    Waiting,
    WorkerSpec,
)
from handoff_dask.placement.simulation import Simulated, SimulatedRun, simulate
from handoff_dask.placement.strategies import STRATEGIES, strategy

__all__ = [
    "STRATEGIES",
    "Backlog",
    "Counts",
    "Engine",
    "Finding",
    "FunctionSpec",
    "Place",
    "Refuse",
    "Simulated",
    "SimulatedRun",
    "Waiting",
    "WorkerSpec",
    "simulate",
    "strategy",
]
