"""The best schedule known: the best of many perturbed list schedules that know every duration.

A yardstick, independent of the engine it measures: at each moment the ready task with the longest
remaining path goes first, onto a worker that has all of its cost free.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from tests.benchmarks.workloads import WORKERS, Workload

__all__ = ["Schedule", "best_known", "list_schedule", "remaining_path"]

#: Amounts are compared in whole thousandths, so that tenths of a core add up.
_UNIT = 1000

#: (free, taken, capacity) -> score; the worker with the lowest gets the task.
Rule = Callable[[list[int], tuple[int, ...], tuple[int, ...]], float]


@dataclass(frozen=True)
class Schedule:
    """Where each task runs, from when to when (s): {id: (worker, start, stop)}."""

    tasks: Mapping[str, tuple[str, float, float]]

    @property
    def makespan(self) -> float:
        """Seconds until the last task ends."""
        return max((stop for _, _, stop in self.tasks.values()), default=0.0)


def remaining_path(workload: Workload) -> dict[str, float]:
    """Return the seconds from each task's start to the end of the longest path from it."""
    tail = dict.fromkeys((task.id for task in workload.tasks), 0.0)
    length: dict[str, float] = {}
    for task in reversed(workload.tasks):
        length[task.id] = tail[task.id] + task.seconds
        for parent in task.parents:
            tail[parent] = max(tail[parent], length[task.id])
    return length


def _best_fit(free: list[int], taken: tuple[int, ...], capacity: tuple[int, ...]) -> float:
    """Least left of what the task takes; nothing that it does not take, if another will do."""
    score = 0.0
    for left, amount, offered in zip(free, taken, capacity, strict=True):
        if amount:
            score += (left - amount) / offered
        elif offered:
            score += 10
    return score


def _tightest(free: list[int], taken: tuple[int, ...], capacity: tuple[int, ...]) -> float:
    """Least left of everything."""
    return sum(
        (left - amount) / offered
        for left, amount, offered in zip(free, taken, capacity, strict=True)
        if offered
    )


def _emptiest(free: list[int], taken: tuple[int, ...], capacity: tuple[int, ...]) -> float:
    """Most left of everything."""
    return -_tightest(free, taken, capacity)


def _first(free: list[int], taken: tuple[int, ...], capacity: tuple[int, ...]) -> float:
    """Whichever comes first."""
    return 0.0


_RULES: tuple[Rule, ...] = (_best_fit, _tightest, _emptiest, _first)


def list_schedule(
    workload: Workload,
    rank: Mapping[str, float],
    rule: Rule = _best_fit,
    workers: Mapping[str, Mapping[str, float]] = WORKERS,
) -> Schedule:
    """Schedule the ready task of the highest rank first, wherever `rule` says, and never wait.

    A worker runs no more tasks at once than it has cores: a task takes a thread.

    Raises
    ------
    ValueError
        A task that fits on no worker.
    """
    names = sorted({name for task in workload.tasks for name in task.cost})
    capacity = [
        (_UNIT * int(offer["cpu"]), *(round(_UNIT * offer.get(n, 0)) for n in names))
        for offer in workers.values()
    ]
    free = [list(amounts) for amounts in capacity]
    address = list(workers)
    cost = {
        task.id: (_UNIT, *(round(_UNIT * task.cost.get(n, 0)) for n in names))
        for task in workload.tasks
    }
    seconds = {task.id: task.seconds for task in workload.tasks}
    missing = {task.id: len(set(task.parents)) for task in workload.tasks}
    children: dict[str, list[str]] = {task.id: [] for task in workload.tasks}
    for task in workload.tasks:
        for parent in set(task.parents):
            children[parent].append(task.id)

    # Tasks of one cost fit or don't together: only the first of each is looked at.
    ready: dict[tuple[int, ...], list[tuple[float, str]]] = {}
    running: list[tuple[float, str, int]] = []
    placed: dict[str, tuple[str, float, float]] = {}
    fresh = [id_ for id_, number in missing.items() if not number]
    now = 0.0
    while len(placed) < len(seconds):
        for id_ in fresh:
            heappush(ready.setdefault(cost[id_], []), (-rank[id_], id_))
        fresh = []
        heads = [(queue[0], taken) for taken, queue in ready.items() if queue]
        heapify(heads)
        while heads:
            _, taken = heappop(heads)
            best, least = -1, 0.0
            for worker, left in enumerate(free):
                if all(map(int.__ge__, left, taken)):
                    score = rule(left, taken, capacity[worker])
                    if best < 0 or score < least:
                        best, least = worker, score
            if best < 0:
                continue
            _, id_ = heappop(ready[taken])
            free[best] = list(map(int.__sub__, free[best], taken))
            stop = now + seconds[id_]
            placed[id_] = (address[best], now, stop)
            heappush(running, (stop, id_, best))
            if ready[taken]:
                heappush(heads, (ready[taken][0], taken))
        if not running:
            break
        now = running[0][0]
        while running and running[0][0] <= now:
            _, id_, worker = heappop(running)
            free[worker] = list(map(int.__add__, free[worker], cost[id_]))
            for child in children[id_]:
                missing[child] -= 1
                if not missing[child]:
                    fresh.append(child)
    if len(placed) < len(seconds):
        left_out = next(id_ for id_ in seconds if id_ not in placed)
        raise ValueError(f"{workload.name}: {left_out} never runs; does its cost fit a worker?")
    return Schedule(placed)


def best_known(
    workload: Workload,
    *,
    tries: int = 200,
    seed: int = 0,
    workers: Mapping[str, Mapping[str, float]] = WORKERS,
) -> Schedule:
    """Return the best of `tries` list schedules.

    The first has the true ranks; in the others each rank is off by a random factor, up to a half
    either way. The rules for choosing a worker take turns.
    """
    rng = random.Random(seed)
    true = remaining_path(workload)
    best: Schedule | None = None
    for number in range(tries):
        spread = 0.0 if number < len(_RULES) else rng.choice((0.05, 0.15, 0.3, 0.5))
        rank = {id_: path * (1 + rng.uniform(-spread, spread)) for id_, path in true.items()}
        schedule = list_schedule(workload, rank, _RULES[number % len(_RULES)], workers)
        if best is None or schedule.makespan < best.makespan:
            best = schedule
    assert best is not None
    return best
