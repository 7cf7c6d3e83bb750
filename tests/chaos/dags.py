"""Random DAGs whose functions count their own starts and fail as planned."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from distributed import get_worker

from handoff_dask import DAG, Function, RetryPolicy, collocated, current
from handoff_dask.wire.keys import is_bundle
from handoff_dask.worker.current import running_here

COSTLY = ("cpu", "memory", "gpu")
COSTS = [None, {"cpu": 1}, {"cpu": 0.5, "memory": 200}, {"cpu": 2}, {"gpu": 1}, {"memory": 600}]


#: Signals that a function sends to its process.
DEATHS = {"kill": signal.SIGKILL, "crash": signal.SIGSEGV}


class Stubborn(Exception):
    """An exception that can be pickled, but not unpickled."""

    def __init__(self, one, two):
        super().__init__(one)


def act(root, deeds, *inputs):
    """Record the start, then do what is planned for this attempt."""
    me, worker, task = current(), get_worker(), running_here.get().task
    folder = Path(root, str(os.getpid()))
    folder.mkdir(exist_ok=True)
    _, start = worker.plugins["handoff"].starts._started[task.run_id]
    name = f"{uuid4().hex}-{mark(start)}"
    offered = {n: v for n, v in worker.state.total_resources.items() if n in COSTLY}
    facts = [
        worker.address, worker.state.nthreads, offered, dict(me.cost), is_bundle(task.key),
        time.time(),
    ]  # fmt: skip
    (folder / f"{me.dag_id}.{me.id}.{name}").write_text(json.dumps(facts))
    try:
        return _act(me, folder, deeds, inputs)
    finally:
        Path(root, f"{name}.end").write_text(str(time.time()))


def mark(start):
    """Name a start as a worker records it: of a bundle, that is the latest one."""
    return f"{start.number}-{start.started.hex().replace('.', '_')}"


def all_marked(folder, starts):
    """Whether the functions that these starts are of have recorded themselves."""
    marked = {name.partition("-")[2] for name in os.listdir(folder)}
    return all(mark(start) in marked for start in starts)


def _act(me, folder, deeds, inputs):
    deed, seconds = deeds[me.attempt - 1] if me.attempt <= len(deeds) else ("return", 0)
    time.sleep(seconds)
    if deed == "raise":
        raise ValueError(f"attempt {me.attempt}")
    if deed == "raise stubborn":
        raise Stubborn("one", "two")
    if deed == "leave":
        sys.exit(3)
    if deed == "exit" or deed in DEATHS:
        # Not while another function is between its start and its own word of it: listing gives the
        # interpreter away, what follows does not.
        starts, deadline = get_worker().plugins["handoff"].starts, time.monotonic() + 3
        while not all_marked(folder, [start for _, start in starts._started.copy().values()]):
            if time.monotonic() > deadline:
                break  # one was withdrawn just after it had started: its function never runs
        os._exit(3) if deed == "exit" else os.kill(os.getpid(), DEATHS[deed])
    if deed == "return a lock":
        return threading.Lock()
    return 1 + sum(inputs) % 1_000_003


class Interval(NamedTuple):
    """The interval in which a function ran, as it recorded itself."""

    name: str
    worker: str
    threads: int
    offered: dict[str, float]
    cost: dict[str, float]
    bundled: bool
    started: float
    stopped: float


def intervals(root):
    """Return the intervals of all functions that ended."""
    ended = []
    for path in Path(root).glob("*/*.*"):
        end = Path(root, path.name.rpartition(".")[2]).with_suffix(".end")
        # A process that was killed may not have come to write, or to the end of what it wrote.
        with suppress(OSError, ValueError):
            ended.append(Interval(path.name, *json.loads(path.read_text()), float(end.read_text())))
    return ended


def count_starts(root):
    """Return {(dag id, function id): starts}, as the functions recorded them."""
    starts = {}
    for path in Path(root).glob("*/*.*"):
        dag_id, id_, _ = path.name.split(".")
        starts[dag_id, int(id_)] = starts.get((dag_id, int(id_)), 0) + 1
    return starts


def random_dag(rng: random.Random, name: str, root: str, deadly: bool):
    """Return a DAG and the results it must have.

    Parameters
    ----------
    deadly
        Whether functions may kill the process they run in.
    """
    evil = ["raise", "raise", "raise stubborn", "leave"] + ["exit", "kill"] * deadly
    dag, values, costs = DAG(name), {}, {}
    n = rng.randint(5, 40)
    share = rng.choice([0, 0.05, 0.15])
    for i in range(n):
        args = rng.sample(range(i), min(i, rng.choice([0, 1, 1, 2, 3])))
        deeds = []
        for _ in range(4):
            deed = rng.choice(evil) if rng.random() < share else "return"
            deeds.append((deed, rng.choice([0, 0.001, 0.01, 0.05, 0.2])))
        costs[i] = rng.choice(COSTS)
        node = None
        if args and rng.random() < 0.1:
            node, costs[i] = collocated(args[0]), costs[args[0]]
        policy = RetryPolicy(rng.choice([0, 1, 2, 3, 3]), delay=rng.choice([0, 0, 0.02]))
        dag.add_function(
            Function(
                id=i,
                args=args,
                code=_Act(root, deeds),
                cost=costs[i],
                node=node,
                retry=policy,
                timeout=rng.choice([None, None, None, 0.1, 30]),
            )
        )
        values[i] = 1 + sum(values[a] for a in args) % 1_000_003
    return dag, values


def random_short_dag(rng: random.Random, name: str, root: str, deadly: bool):
    """Return a DAG of functions that travel together, as `random_dag` does.

    Most are as short as they are declared to be, but some take much longer.
    """
    evil = ["raise"] * 6 + ["raise stubborn", "leave", "return a lock"]
    evil += ["exit", "kill", "crash"] * deadly
    dag, values = DAG(name), {}
    n, length, share = rng.randint(80, 160), rng.choice([1, 5, 20]), rng.choice([0, 0.01, 0.03])
    cost = rng.choice([None, {"cpu": 1}, {"cpu": 0.5, "memory": 200}])
    for i in range(n):
        args = [i - 1] if i % length else []
        if i and rng.random() < 0.1:
            args = list({*args, rng.randrange(i)})
        deeds = [
            (rng.choice(evil) if rng.random() < share else "return", rng.choice([0] * 40 + [0.1]))
            for _ in range(4)
        ]
        policy = RetryPolicy(rng.choice([0, 1, 2, 3] if deadly else [1, 2, 3]))
        code = _Act(root, deeds)
        dag.add_function(Function(id=i, args=args, code=code, cost=cost, retry=policy))
        values[i] = 1 + sum(values[a] for a in args) % 1_000_003
    return dag, values


class _Act:
    """`act`, with its plan."""

    def __init__(self, root, deeds):
        self.root, self.deeds = root, deeds

    def __call__(self, *inputs):
        return act(self.root, self.deeds, *inputs)
