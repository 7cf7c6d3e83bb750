"""Random DAGs whose functions count their own starts and fail as planned."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
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
    # A worker that closes has taken its plugins off: nobody asks for the mark then.
    starts = task.starts
    name = f"{uuid4().hex}-{'closing' if starts is None else mark(starts._started[task.run_id][1])}"
    offered = {n: v for n, v in worker.state.total_resources.items() if n in COSTLY}
    facts = [
        worker.address, worker.state.nthreads, offered, dict(me.cost), is_bundle(task.key),
        time.time(),
    ]  # fmt: skip
    (folder / f"{me.dag_id}.{me.id}.{name}").write_text(json.dumps(facts))
    try:
        return _act(me, root, deeds, inputs)
    finally:
        Path(root, f"{name}.end").write_text(str(time.time()))


def mark(start):
    """Name a start as a worker records it: of a bundle, that is the latest one."""
    return f"{start.number}-{hexed(start.started)}"


def hexed(time):
    """Write a time exactly, as a part of a file's name."""
    return time.hex().replace(".", "_")


def note_unmarked(root, pid, starts):
    """Record which functions of a process have started and have not recorded themselves.

    Call this when nothing more starts there and its end is near: each of them may come to record
    itself until then, or not.
    """
    folder = Path(root, str(pid))
    folder.mkdir(exist_ok=True)
    marked = {name.partition("-")[2] for name in os.listdir(folder)}
    times = [start.started for start in starts if mark(start) not in marked]
    draft = folder / uuid4().hex
    draft.write_text(json.dumps(times))
    draft.rename(folder / f"unmarked-{draft.name}")  # another may end the process before


def _act(me, root, deeds, inputs):
    deed, seconds = deeds[me.attempt - 1] if me.attempt <= len(deeds) else ("return", 0)
    time.sleep(seconds)
    if deed == "raise":
        raise ValueError(f"attempt {me.attempt}")
    if deed == "raise stubborn":
        raise Stubborn("one", "two")
    if deed == "leave":
        sys.exit(3)
    if deed == "exit" or deed in DEATHS:
        if starts := running_here.get().task.starts:  # or else the worker is closing
            starts._lock.acquire()  # nothing starts from here on
            note_unmarked(root, os.getpid(), [start for _, start in starts._started.values()])
        os._exit(3) if deed == "exit" else os.kill(os.getpid(), DEATHS[deed])
        time.sleep(60)  # until the signal arrives
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


class Records(NamedTuple):
    """What functions recorded themselves."""

    #: {(dag id, function id): starts}
    starts: Counter[tuple[str, int]]
    #: The times of starts that are unrecorded because the process ended right then.
    unmarked: set[float]

    @classmethod
    def of(cls, root):
        """Read them."""
        starts, marked = Counter(), set()
        for path in Path(root).glob("*/*.*"):
            dag_id, id_, name = path.name.split(".")
            starts[dag_id, int(id_)] += 1
            marked.add(name.rpartition("-")[2])
        notes = [json.loads(path.read_text()) for path in Path(root).glob("*/unmarked-*")]
        times = {time for note in notes for time in note if hexed(time) not in marked}
        return cls(starts, times)


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
