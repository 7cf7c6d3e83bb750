"""Adaptive clusters grow from zero workers and shrink back."""

from __future__ import annotations

import time

from distributed import Client, LocalCluster

from handoff_dask import DAG, Function, execute
from tests.support import where


def test_from_zero_and_back():
    """Held functions make an adaptive cluster grow from zero; afterwards it shrinks to zero."""
    dag = DAG()
    for i in range(20):
        dag.add_function(Function(id=i, args=[], code=where, cost={"cpu": 1}))
    with (
        LocalCluster(
            n_workers=0,
            threads_per_worker=1,
            processes=False,
            dashboard_address="localhost:0",
            scheduler_kwargs={"dashboard": False},
        ) as cluster,
        Client(cluster) as client,
    ):
        cluster.adapt(minimum=0, maximum=2, interval="50ms", wait_count=2)
        for _ in range(2):
            result = execute(dag, client=client)
            assert set(result.results.values()) == set(result.allocations.values())
            deadline = time.monotonic() + 30
            while cluster.scheduler.workers:
                assert time.monotonic() < deadline, "it never scaled down"
                time.sleep(0.05)
