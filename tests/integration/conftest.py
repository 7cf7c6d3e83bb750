"""A cluster of real worker processes with different capabilities."""

from __future__ import annotations

import pytest
from distributed import Client, Nanny, Scheduler, SpecCluster

WORKERS = {
    "plain": {"cpu": 2, "memory": 1000},
    "gpu": {"cpu": 2, "memory": 1000, "gpu": 1},
    "large": {"cpu": 4, "memory": 4000},
}


@pytest.fixture(scope="module")
def cluster():
    """Three worker processes under nannies."""
    workers = {
        name: {
            "cls": Nanny,
            "options": {"nthreads": 2, "resources": resources, "memory_limit": 0},
        }
        for name, resources in WORKERS.items()
    }
    scheduler = {"cls": Scheduler, "options": {"dashboard": False, "dashboard_address": ":0"}}
    with SpecCluster(workers=workers, scheduler=scheduler) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    """A client of a cluster with all workers, and nothing of an earlier test."""
    with Client(cluster) as client:
        client.wait_for_workers(len(WORKERS), timeout=60)
        yield client
