"""A cluster and its runs that keep their own books, played by a script of bytes."""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import FunctionSpec, WorkerSpec

COSTS: list[dict[str, float]] = [
    {}, {"cpu": 1}, {"cpu": 1}, {"cpu": 2}, {"cpu": 4}, {"cpu": 0.1}, {"cpu": 1 / 3, "memory": 1},
    {"cpu": 1, "memory": 3}, {"cpu": 1, "gpu": 1}, {"gpu": 0.5}, {"licence": 1},
    {"cpu": 4, "memory": 8, "gpu": 1},
]  # fmt: skip
CAPACITIES: list[dict[str, float]] = [
    {}, {"cpu": 1}, {"cpu": 2, "memory": 4}, {"cpu": 4, "memory": 8}, {"cpu": 4, "gpu": 1},
    {"cpu": 1, "memory": 1, "gpu": 1}, {"cpu": 2, "licence": 1},
]  # fmt: skip
BIG = WorkerSpec("tcp://big", "big", "h0", {"cpu": 4, "memory": 8, "gpu": 1}, slots=3)
FINAL = {**BIG.capacity, "licence": 1}
STRATEGIES = ["packed", "load_balanced", "first_available", "cost_optimized"]
GRACE = 5.0


class World:
    """A cluster and the runs on it: what really happens."""

    def __init__(self, script: bytes) -> None:
        self.script = script
        self.at = 0
        self.engine = Engine(lost_grace=GRACE, horizon=1.0, max_ahead=3)
        self.now = 0.0
        self.workers: dict[str, WorkerSpec] = {}
        self.paused: set[str] = set()
        #: Worker -> keys it was sent and has not started, in order; and those it runs.
        self.waiting: dict[str, deque[int]] = {}
        self.running: dict[str, dict[int, dict[str, float]]] = {}
        self.excess: set[str] = set()
        self.runs: dict[int, list[int]] = {}
        self.specs: dict[int, FunctionSpec] = {}
        self.cost: dict[int, dict[str, float]] = {}
        self.state: dict[int, str] = {}
        self.where: dict[int, str] = {}
        self.avoid: dict[int, tuple[str, ...]] = {}
        self.exclude: dict[int, set[str]] = {}
        self.insist: dict[int, bool] = {}
        #: Since when a function is ready.
        self.since: dict[int, float] = {}
        self.bound: dict[int, str] = {}
        self.foreign: dict[int, str] = {}
        self.seceded: set[int] = set()
        #: Functions sent ahead that the engine has not said to have started.
        self.unstarted: set[int] = set()
        #: Ends that the engine was not told yet, in order.
        self.news: deque[tuple[int, bool]] = deque()
        self.serial = 0
        self.join(BIG)

    def draw(self, n: int) -> int:
        """Return a number below n."""
        byte = self.script[self.at] if self.at < len(self.script) else 0
        self.at += 1
        return byte % n

    def pick(self, items: Any) -> Any:
        items = list(items)
        return items[self.draw(len(items))] if items else None

    # -- what happens

    def join(self, spec: WorkerSpec) -> None:
        self.workers[spec.address] = spec
        self.waiting[spec.address] = deque()
        self.running[spec.address] = {}
        self.engine.worker_added(spec)

    def add_worker(self) -> None:
        if len(self.workers) < 5:
            self.serial += 1
            i = self.draw(4)
            address = f"tcp://{self.serial}"
            spec = WorkerSpec(
                address,
                f"w{i}",
                f"h{i % 2}",
                CAPACITIES[self.draw(len(CAPACITIES))],
                1 + self.draw(3),
            )
            self.join(spec)

    def add_again(self) -> None:
        address = self.small()
        if address is not None:
            # Nothing that was placed is asked again whether its pin still holds.
            name = f"w{self.draw(4)}"
            self.workers[address] = dataclasses.replace(self.workers[address], name=name)
            self.bound = {k: a for k, a in self.bound.items() if a != address}
            self.declare(address)

    def small(self) -> str | None:
        return self.pick([a for a in self.workers if a != BIG.address])

    def remove_worker(self) -> None:
        address = self.small()
        if address is None:
            return
        lost = [*self.waiting.pop(address), *self.running.pop(address)]
        del self.workers[address]
        self.paused.discard(address)
        self.excess.discard(address)
        self.foreign = {k: a for k, a in self.foreign.items() if a != address}
        self.news = deque(n for n in self.news if self.where.get(n[0]) != address)
        self.bound = {k: a for k, a in self.bound.items() if a != address}
        self.engine.worker_removed(address, self.now if self.serial % 2 else None)
        for key in lost + [k for k, a in self.where.items() if a == address]:
            if self.where.pop(key, None) is not None:
                self.seceded.discard(key)
                self.state[key] = "waiting"
                self.engine.attempt_ended(key, self.now)  # late, and must do nothing
                self.ready(key)

    def pause(self) -> None:
        address = self.small()
        if address is not None:
            running = address in self.paused
            self.paused ^= {address}
            self.engine.worker_running(address, running)
            self.start(address)

    def change(self) -> None:
        address = self.small()
        if address is not None:
            old = self.workers[address]
            capacity, slots = CAPACITIES[self.draw(len(CAPACITIES))], 1 + self.draw(3)
            self.workers[address] = WorkerSpec(address, old.name, old.host, capacity, slots)
            self.excess.add(address)
            # A group that no longer fits is bound anew.
            self.bound = {k: a for k, a in self.bound.items() if a != address}
            self.declare(address)

    def declare(self, address: str) -> None:
        """Let the engine know what a worker offers now."""
        running = address not in self.paused
        self.engine.worker_added(dataclasses.replace(self.workers[address], running=running))

    def claim_foreign(self) -> None:
        key = self.draw(3)
        address = self.pick(self.workers)
        if self.draw(2):
            self.foreign[key] = address
            self.excess.add(address)
            self.engine.foreign_claimed(key, address, COSTS[self.draw(len(COSTS))])
        else:
            self.foreign.pop(key, None)
            self.engine.foreign_released(key)

    def open_run(self) -> None:
        if len(self.runs) >= 3:
            return
        self.serial += 1
        run = self.serial
        limit = [None, None, 1, 2][self.draw(4)]
        self.engine.run_opened(
            run,
            priority=self.draw(2),
            strategy=STRATEGIES[self.draw(4)],
            max_concurrency=limit,
            placement_timeout=float(self.draw(2) * 10),
        )
        keys: list[int] = []
        specs: list[FunctionSpec] = []
        for _ in range(1 + self.draw(14)):
            self.serial += 1
            key = self.serial
            extra: dict[str, Any] = {}
            choice = self.draw(12)
            if choice == 0:
                extra["pin"] = self.names()
            elif choice == 4:
                extra["preferred"] = self.names()
            elif choice in (1, 2) and keys:
                extra["collocated"] = self.pick(keys)
            elif choice == 3 and keys:
                extra["binds"] = self.pick(keys)
            depends = tuple({self.pick(keys) for _ in range(self.draw(3))} - {None})
            spec = FunctionSpec(
                key,
                COSTS[self.draw(len(COSTS))],
                depends,
                code="ab"[self.draw(2)],
                token=(self.draw(2), len(keys)),
                expected=[None, 0.1, 20.0][self.draw(3)],
                priority=[0, 0, 1, -1][self.draw(4)],
                **extra,
            )
            specs.append(spec)
            keys.append(key)
            self.specs[key] = spec
            self.state[key] = "waiting"
        if self.draw(2):
            specs.reverse()
        self.engine.functions_added(run, specs)
        self.runs[run] = keys
        for key in keys:
            self.ready(key)

    def names(self) -> tuple[str, ...]:
        """Return one or two names or hosts of workers, which there may be."""
        names = ["w0", "w1", "h0", "h1", "big", "nobody"]
        return tuple(names[self.draw(6)] for _ in range(1 + self.draw(2)))

    def close_run(self) -> None:
        run = self.pick(self.runs)
        if run is None:
            return
        for key in self.runs.pop(run):
            address = self.where.pop(key, None)
            if address is not None:
                # What runs is cancelled with it here; the engine may not be told more of it.
                self.running[address].pop(key, None)
                if key in self.waiting[address]:
                    self.waiting[address].remove(key)
            del self.specs[key], self.state[key]
            self.bound.pop(key, None)
            self.seceded.discard(key)
        self.news = deque(n for n in self.news if n[0] in self.specs)
        self.engine.run_closed(run)
        for address in self.workers:
            self.start(address)

    def ready(self, key: int, **options: Any) -> None:
        if self.state[key] != "waiting":
            return
        if all(self.state[d] == "done" for d in self.specs[key].dependencies):
            self.cost[key] = dict(options.get("cost") or self.specs[key].cost)
            self.avoid[key] = options.get("avoid", ())
            self.exclude[key] = set(options.get("exclude", ()))
            self.insist[key] = options.get("insist", False)
            self.since[key] = max(self.now, options.get("not_before", 0.0))
            inputs = {}
            for address in list(self.workers)[: self.draw(3)]:
                inputs[address] = [10.0, 1e6, 1e9][self.draw(3)]
            self.state[key] = "ready"
            total = max(inputs.values(), default=0.0)
            self.engine.function_ready(key, self.now, inputs=inputs, input_total=total, **options)

    def start(self, address: str) -> None:
        """Let a worker start what fits, looking at the head of its queue only, as Dask's does."""
        waiting, running = self.waiting[address], self.running[address]
        while waiting and address not in self.paused and self.room(address, self.cost[waiting[0]]):
            key = waiting.popleft()
            running[key] = dict(self.cost[key])

    def room(self, address: str, cost: dict[str, float]) -> bool:
        spec, running = self.workers[address], self.running[address]
        slots = sum(k not in self.seceded for k in running)
        return slots < spec.slots and all(
            sum(c.get(name, 0) for c in running.values()) + amount
            <= spec.capacity.get(name, 0) + 1e-6
            for name, amount in cost.items()
        )

    def end(self, key: int | None, ok: bool) -> None:
        """A function ends; the engine hears of it later."""
        if key is not None and key in self.running[self.where[key]]:
            address = self.where[key]
            del self.running[address][key]
            self.start(address)
            self.news.append((key, ok))

    def tell(self) -> None:
        """Let the engine hear of the oldest end."""
        if not self.news:
            return
        key, ok = self.news.popleft()
        address = self.where.pop(key)
        self.seceded.discard(key)
        duration = [None, 0.01, 0.2, 5.0][self.draw(4)]
        self.engine.attempt_ended(key, self.now, duration=duration, done=ok)
        if self.draw(2):
            self.engine.attempt_ended(key, self.now, duration=duration, done=ok)
        if ok:
            self.state[key] = "done"
            for other, spec in self.specs.items():
                if key in spec.dependencies:
                    self.ready(other)
        else:
            self.state[key] = "waiting"
            options: dict[str, Any] = {}
            if self.draw(2):
                options["not_before"] = self.now + self.draw(3)
            if self.draw(2):
                options["avoid"] = tuple({address, self.pick(self.workers)})
                options["insist"] = self.draw(2) == 1
            if self.draw(4) == 3:
                options["exclude"] = tuple({address, self.pick(self.workers)})
            if self.draw(3) == 0:
                options["cost"] = COSTS[self.draw(len(COSTS))]
            self.ready(key, **options)

    def readmit(self) -> None:
        """A worker that a function was not to use may be used again."""
        key = self.pick([k for k, s in self.state.items() if s == "ready" and self.exclude[k]])
        if key is not None:
            self.engine.exclusion_ended(key, self.exclude[key].pop())

    def any_running(self) -> int | None:
        return self.pick([k for r in self.running.values() for k in r])

    def secede(self) -> None:
        key = self.any_running()
        if key is not None and key not in self.seceded:
            self.seceded.add(key)
            if self.engine.questions.waits_ahead(key):
                # It runs, so it has a claim, even if its worker shrank since it started.
                self.excess.add(self.where[key])
            self.engine.slot_released(key)
            self.start(self.where[key])

    def withdraw(self) -> None:
        key = self.pick([k for k, s in self.state.items() if s == "ready"])
        if key is not None:
            self.engine.function_withdrawn(key)
            self.state[key] = "waiting"
            if self.draw(2):
                self.ready(key)

    def lose_result(self) -> None:
        key = self.pick([k for k, s in self.state.items() if s == "done"])
        if key is not None and all(self.state[d] == "done" for d in self.specs[key].dependencies):
            self.state[key] = "waiting"
            self.ready(key)
