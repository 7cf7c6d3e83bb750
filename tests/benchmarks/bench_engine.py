"""What a decision of the placement engine costs, without Dask.

    python tests/benchmarks/bench_engine.py

Prints microseconds, medians of three: per decision (an end, a new ready function, a poll) with
full workers and 100,000 ready functions of 20 costs; per placement when all workers are idle; and
per function when there is one cost, two workers and 10,000 short functions; and per function of
runs of 10,000 and of 100,000 ready functions whose durations are being learned.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import FunctionSpec, Place, WorkerSpec
from tests.benchmarks.tables import Table

READY = 100_000
COSTS = [
    {"cpu": cpu, "memory": memory, **({"gpu": 1} if gpu else {})}
    for cpu, memory, gpu in [
        (1, 100, 0), (1, 500, 0), (1, 1000, 0), (1, 2000, 0), (1, 8000, 0),
        (2, 100, 0), (2, 500, 0), (2, 1000, 0), (2, 4000, 0), (2, 12000, 0),
        (4, 100, 0), (4, 1000, 0), (4, 4000, 0), (4, 8000, 0), (8, 8000, 0),
        (1, 500, 1), (1, 4000, 1), (2, 2000, 1), (4, 2000, 1), (8, 16000, 1),
    ]
]  # fmt: skip


def workers(n: int) -> list[WorkerSpec]:
    """Return n workers of two kinds."""
    kinds: list[dict[str, float]] = [
        {"cpu": 8, "memory": 16000, "gpu": 1},
        {"cpu": 8, "memory": 16000},
    ]
    return [WorkerSpec(f"tcp://{i}", f"w{i}", f"h{i // 4}", kinds[i % 2], 8) for i in range(n)]


def loaded(n_workers: int, functions: int) -> Engine:
    """Return an engine with idle workers and ready functions, not polled yet."""
    rng = random.Random(0)
    engine = Engine()
    for worker in workers(n_workers):
        engine.worker_added(worker)
    engine.run_opened("run")
    specs = [
        FunctionSpec(i, COSTS[rng.randrange(20)], token=i, code=f"code-{i % 50}")
        for i in range(2 * functions)
    ]
    for spec in specs:
        engine.duration_known(spec.token, rng.uniform(1, 100))
    engine.functions_added("run", specs)
    for i in range(functions):
        engine.function_ready(i, 0.0)
    return engine


def fill_and_steady(n_workers: int, decisions: int = 5_000) -> tuple[float, float]:
    """Return microseconds per placement when idle workers are filled, and per decision after."""
    engine = loaded(n_workers, READY)
    gc.collect()
    gc.freeze()
    # Queueing 100,000 functions is not what is measured here.
    engine._placer.settle([])
    engine._rank()
    for function in engine._fresh:
        engine._ready.enqueue(function)
    engine._fresh.clear()
    engine._ready.stir = True
    started = time.process_time()
    places = engine.poll(0.0)
    fill = (time.process_time() - started) / len(places)
    rng = random.Random(1)
    running = [place.key for place in places]
    now, fresh = 0.0, READY
    started = time.process_time()
    for _ in range(decisions):
        now += 0.01
        i = rng.randrange(len(running))
        running[i], running[-1] = running[-1], running[i]
        engine.attempt_ended(running.pop(), now, done=True, duration=5.0)
        engine.function_ready(fresh, now)
        fresh += 1
        running += [d.key for d in engine.poll(now) if isinstance(d, Place)]
    steady = (time.process_time() - started) / decisions
    gc.unfreeze()
    return fill * 1e6, steady * 1e6


def one_class(functions: int = 10_000, batch: int = 16) -> float:
    """Return microseconds per short function: ready, placed, ended; a poll per `batch` ends."""
    engine = Engine()
    for worker in workers(2):
        engine.worker_added(worker)
    engine.run_opened("run")
    engine.functions_added(
        "run", [FunctionSpec(i, {"cpu": 1}, code="inc") for i in range(functions)]
    )
    engine.poll(0.0)
    gc.collect()
    started = time.process_time()
    for i in range(functions):
        engine.function_ready(i, 0.0)
    running = [place.key for place in engine.poll(0.0)]
    now, head = 0.0, 0
    while head < len(running):
        now += 0.001
        for key in running[head : head + batch]:
            engine.attempt_ended(key, now, duration=0.001, done=True)
        head += batch
        running += [d.key for d in engine.poll(now) if isinstance(d, Place)]
    assert len(running) == functions
    return (time.process_time() - started) / functions * 1e6


def learning(functions: int, *, codes: int = 8, batch: int = 16) -> float:
    """Return microseconds per function of a run that learns what its functions take.

    All are ready at once. How long those of a code take varies by a factor of about two, and codes
    differ in it, so that the ranks change again and again.
    """
    rng = random.Random(0)
    seconds = [rng.lognormvariate(i % codes, 0.7) * 0.01 for i in range(functions)]
    specs = [
        FunctionSpec(i, COSTS[i % 5], code=f"code-{i % codes}", token=i) for i in range(functions)
    ]
    gc.collect()
    gc.freeze()
    started = time.process_time()
    engine = Engine()
    for worker in workers(4):
        engine.worker_added(worker)
    engine.run_opened("run")
    engine.functions_added("run", specs)
    for i in range(functions):
        engine.function_ready(i, 0.0)
    running = [place.key for place in engine.poll(0.0) if isinstance(place, Place)]
    now, head = 0.0, 0
    while head < len(running):
        now += 0.01
        ended = running[head : head + batch]
        for key in ended:
            engine.attempt_ended(key, now, duration=seconds[key], done=True)
        head += len(ended)
        running += [d.key for d in engine.poll(now) if isinstance(d, Place)]
    assert len(running) == functions
    engine.run_closed("run")
    taken = time.process_time() - started
    gc.unfreeze()
    return taken / functions * 1e6


def scaling(rounds: int = 3) -> tuple[float, float]:
    """Return microseconds per function of runs of 10,000 and of 100,000, which take turns."""
    pairs = [(learning(10_000), learning(100_000)) for _ in range(rounds)]
    few, many = map(median, zip(*pairs, strict=True))
    return few, many


def measure(rounds: int = 3) -> Table:
    """Return the table: microseconds, medians of the rounds."""
    body = []
    for n in (10, 1_000):
        fill, steady = map(median, zip(*(fill_and_steady(n) for _ in range(rounds)), strict=True))
        body.append([f"{n} workers", f"{fill:.0f}", f"{steady:.0f}"])
    return Table(
        ["", "filling idle workers (us)", "workers are full (us)"],
        body,
        title="A decision",
        note="Microseconds per placement by the engine alone, without Dask, with 100,000 ready\n"
        "functions of 20 costs. While workers are full, a placement includes the end of one\n"
        "function and another one becoming ready.",
    )


def main() -> None:
    """Print the table, and what short functions of one cost take."""
    print(measure().text())
    for batch in (1, 16):
        each = median(one_class(batch=batch) for _ in range(3))
        print(
            f"one class, 2 workers, 10,000 functions, {batch:2} ends per poll: {each:.1f} us each"
        )
    few, many = scaling()
    print(
        f"a run that learns, 4 workers: 10,000 functions {few:.1f} us each,"
        f" 100,000 functions {many:.1f} us each, {many / few:.2f} times as much"
    )


if __name__ == "__main__":
    main()
