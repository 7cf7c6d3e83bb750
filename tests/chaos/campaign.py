"""A campaign whose results are stored; run as a script, it may be killed at any moment.

Usage: campaign.py SEED FOLDER. The folder gets the store and two logs: the functions that started,
and those that were reported done.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import numpy as np
from distributed import Client

from handoff_dask import DAG, execute
from handoff_dask.wire.run_events import FunctionEnded


def work(log, id, seconds, *values):
    """Note the start, take some time, and return something of some size."""
    append(Path(log), id)
    time.sleep(seconds)
    return np.full(1 + id % 5 * 20_000, id + sum(float(value[0]) for value in values))


def append(path, id):
    """Append a line at once, also if several processes do."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{id}\n".encode())
    os.close(file)


def campaign(seed, folder):
    """Return the DAG, and what the first element of each result must be."""
    rng = random.Random(seed)
    dag, refs, expected = DAG(f"campaign {seed}"), [], {}
    for id in range(40):
        needs = rng.sample(range(id), min(id, rng.randrange(4)))
        seconds = rng.choice([0.0, 0.0, 0.001, 0.03])
        inputs = [refs[i] for i in needs]
        refs.append(dag.add(work, str(folder / "started"), id, seconds, *inputs, id=id))
        expected[id] = id + sum(expected[i] for i in needs)
    return dag, expected


def main(seed, folder):
    """Run it, and check the results."""

    def on_event(event):
        if isinstance(event, FunctionEnded) and event.state == "done":
            append(folder / "done", event.function)

    dag, expected = campaign(seed, folder)
    with Client(processes=seed % 2 == 0, n_workers=2, threads_per_worker=1, dashboard_address=":0"):
        result = execute(dag, store=folder / "store", on_event=on_event, bundle="20 ms")
    assert {id: value[0] for id, value in result.results.items()} == expected


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
