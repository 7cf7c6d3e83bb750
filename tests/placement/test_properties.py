"""Random scripts of events, played against a model of the cluster that keeps its own books."""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handoff_dask.placement import Engine, FunctionSpec, Place, Refuse, WorkerSpec, index
from handoff_dask.placement import board as board_module
from handoff_dask.placement.runs import PLACED, QUEUED

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


def invariants(engine: Engine, excess: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Check that the engine's books agree with each other.

    `excess`: workers whose claims may exceed their capacity, as it shrank or others took it.
    """
    board, cluster = engine._board, engine._cluster
    placed: dict[Any, int] = {}
    for worker in cluster.workers.values():
        free = list(worker.shape.capacity)
        counts: dict[Any, int] = {}
        for f in worker.placed:
            assert f.worker is worker and f.state == PLACED and f not in worker.ahead
            placed[f.run] = placed.get(f.run, 0) + 1
            items = f.cost.rest if f in worker.seceded else f.cost.items
            if f not in worker.seceded:
                counts[f.cost] = counts.get(f.cost, 0) + 1
            for i, amount in items:
                free[i] -= amount
        for items in worker.foreign.values():
            for i, amount in items:
                free[i] -= amount
        assert worker.free == free, worker
        assert worker.counts == counts
        assert worker.seceded <= worker.placed.keys()
        assert len({f.cost for f in worker.ahead}) <= 1, "functions ahead are of one cost"
        for f in worker.ahead:
            assert f.worker is worker and f.state == PLACED
            placed[f.run] = placed.get(f.run, 0) + 1
        if not worker.ahead:
            assert abs(worker.ahead_work) < 1e-6
        if worker.address not in excess:
            assert min(free) >= 0, f"{worker} is over-committed"
        assert worker in worker.shape.workers
        for group in worker.groups:
            assert group.worker is worker
        assert set(worker.promised) <= set(worker.groups)
        for queue in worker.watchers:
            assert worker in queue.watched and queue.live
        if worker.reservation is not None:
            assert board.reserved[worker] is worker.reservation
            assert worker.reservation in worker.reservation.queue.reservations
        if worker.bucket is not None and worker not in cluster.index.changed | cluster.touched:
            assert worker.open and worker.bucket.free == tuple(worker.free)
    for run in engine._runs.values():
        assert run.placed == placed.get(run, 0)
        assert run.limit is None or run.placed <= run.limit
        for f in run.functions.values():
            assert (f.queue is not None) == (f.state == QUEUED)
            assert (f.worker is not None) == (f.state == PLACED)
    live = [*board.anywhere, *board.tied]
    assert sum(q.live for q in live) == sum(f.state == QUEUED for f in engine._functions.values())
    assert board.unclosed.keys() == {q for q in board.anywhere if not q.closed}
    for queue in live:
        functions = queue.functions()
        assert queue.live == len(functions) > 0
        assert all(f.queue is queue and f.cost is queue.cost for f in functions)
        assert queue.head() is functions[0].entry
        assert not queue.opened
    assert {r.worker for q in live for r in q.reservations} == board.reserved.keys()
    for group, worker in {
        (f.group, f.group.worker) for f in engine._functions.values() if f.group is not None
    }:
        assert worker is None or group in worker.groups


def nothing_overlooked(engine: Engine) -> None:
    """Check that after a poll no ready function could start on a worker that is free for all."""
    cluster = engine._cluster
    for queue in [*engine._board.anywhere, *engine._board.tied]:
        if queue.run is not None and queue.run.saturated:
            continue
        names = cluster.workers.values() if queue.pin is None else cluster.names.get(queue.pin, {})
        for worker in names:
            if queue.bound is not None and worker is not queue.bound:
                continue
            if worker.open and queue.cost.fits(worker.free):
                if queue.need.fits(worker.shape.capacity):
                    assert worker.address == queue.avoid, (queue, worker)


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
        self.avoid: dict[int, str | None] = {}
        self.bound: dict[int, str] = {}
        self.foreign: dict[int, str] = {}
        self.seceded: set[int] = set()
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
            spec = dataclasses.replace(self.workers[address], name=f"w{self.draw(4)}")
            if address in self.paused:
                spec = dataclasses.replace(spec, running=False)
            self.bound = {k: a for k, a in self.bound.items() if a != address}
            self.engine.worker_added(spec)
            # Nothing that was placed is asked again whether its pin still holds.
            self.workers[address] = dataclasses.replace(spec, running=True)

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
        self.engine.worker_removed(address)
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
            self.engine.worker_changed(address, capacity=capacity, slots=slots)

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
                extra["pin"] = ["w0", "w1", "h0", "h1", "big", "nobody"][self.draw(6)]
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
            self.avoid[key] = options.get("avoid")
            inputs = {}
            for address in list(self.workers)[: self.draw(3)]:
                inputs[address] = [10.0, 1e6, 1e9][self.draw(3)]
            self.state[key] = "ready"
            self.engine.function_ready(key, self.now, inputs=inputs, **options)

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
                options["avoid"] = address
            if self.draw(3) == 0:
                options["cost"] = COSTS[self.draw(len(COSTS))]
            self.ready(key, **options)

    def any_running(self) -> int | None:
        return self.pick([k for r in self.running.values() for k in r])

    def secede(self) -> None:
        key = self.any_running()
        if key is not None and key not in self.seceded:
            self.seceded.add(key)
            if self.engine.waits_ahead(key):
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

    def poll(self) -> None:
        for decision in self.engine.poll(self.now):
            key = decision.key
            assert self.state[key] == "ready", "decided once"
            if isinstance(decision, Refuse):
                self.refused(decision)
            else:
                self.placed(decision)
        nothing_overlooked(self.engine)
        self.ask()
        wake = self.engine.wake_at()
        assert wake is None or wake > self.now

    def ask(self) -> None:
        """Every ready function has a reason to wait, and every function is counted."""
        for key, state in self.state.items():
            why = self.engine.why(key)
            assert (why is not None) == (state == "ready")
            assert why is None or (why.reason != "next" and str(why))
        for run, keys in self.runs.items():
            counts = self.engine.counts(run)
            states = [self.state[key] for key in keys]
            assert counts.running + counts.ahead == states.count("placed")
            assert counts.held == states.count("ready") and counts.done == states.count("done")
            assert counts.waiting == states.count("waiting") + states.count("refused")

    def refused(self, decision: Refuse) -> None:
        key = decision.key
        spec = self.specs[key]
        assert not decision.finding and str(decision.finding)
        if spec.binds is None and not self.grouped(key):
            assert not self.engine.feasibility(self.cost[key], spec.pin)
        self.state[key] = "refused"

    def placed(self, decision: Place) -> None:
        key, address = decision.key, decision.worker
        spec, worker = self.specs[key], self.workers[address]
        assert address not in self.paused
        assert spec.pin in (None, worker.address, worker.name, worker.host)
        if self.avoid[key] == address and not self.grouped(key):
            able = self.engine.feasibility(self.cost[key], spec.pin).able
            assert all(a == address or a in self.paused for a in able)
        if key in self.bound:
            assert self.bound[key] == address, "a bound function stays with its group"
        self.bind(key, address)
        if spec.binds is not None:
            assert decision.target in self.workers
            if spec.binds in self.bound:
                assert self.bound[spec.binds] == decision.target
            self.bind(spec.binds, decision.target)
        if not decision.ahead:
            free = self.engine.free(address)
            assert all(amount >= 0 for amount in free.values())
        self.state[key] = "placed"
        self.where[key] = address
        self.waiting[address].append(key)
        self.start(address)

    def grouped(self, key: int) -> bool:
        """Whether a function runs where others say, or others where it does."""
        return self.specs[key].collocated is not None or any(
            key in (s.collocated, s.binds) for s in self.specs.values()
        )

    def bind(self, key: int, address: str) -> None:
        """Tie the group of a function to a worker."""
        group = {key}
        for _ in self.specs:
            group |= {k for k, s in self.specs.items() if s.collocated in group}
            group |= {self.specs[k].collocated for k in group if self.specs[k].collocated}
        if len(group) > 1 or self.grouped(key):
            for member in group:
                self.bound[member] = address

    def step(self) -> None:
        action = self.draw(26)
        if action < 6:
            self.poll()
        elif action < 10:
            self.end(self.any_running(), ok=self.draw(4) > 0)
        elif action < 13:
            self.tell()
        elif action == 13:
            self.now += [0.1, 1.0, 4.0, 20.0][self.draw(4)]
        else:
            [
                self.add_worker, self.remove_worker, self.pause, self.change, self.claim_foreign,
                self.open_run, self.close_run, self.secede, self.withdraw, self.lose_result,
                self.poll, self.add_again,
            ][action - 13 - 1]()  # fmt: skip
        # A worker that fits again may not get more than it has.
        for address in list(self.excess):
            worker = self.engine._cluster.workers[address]
            held = {i for i, amount in enumerate(worker.free) if amount < 0}
            if not held and address not in self.foreign.values():
                self.excess.discard(address)
        invariants(self.engine, self.excess)

    def finish(self) -> None:
        """Stop the chaos: everything ready must end, one way or the other."""
        for key in list(self.foreign):
            self.engine.foreign_released(key)
        for address in list(self.paused):
            self.engine.worker_running(address, True)
        self.paused.clear()
        for address in self.workers:
            # What was placed before a worker shrank could wait there for ever.
            self.workers[address] = dataclasses.replace(
                self.workers[address], capacity=FINAL, slots=BIG.slots
            )
            self.engine.worker_changed(address, capacity=FINAL, slots=BIG.slots)
        for key in list(self.specs):
            self.ready(key)
        for address in self.workers:
            self.start(address)
        for _ in range(2_000):
            self.poll()
            if key := next((k for r in self.running.values() for k in r), None):
                self.end(key, ok=True)
            elif self.news:
                self.tell()
            elif (wake := self.engine.wake_at()) is not None:
                self.now = max(self.now, wake)
            else:
                break
        else:
            raise AssertionError("does not come to an end")
        stuck = {"refused"}
        for key in sorted(self.specs):  # a function's dependencies have lower keys
            if any(self.state[d] != "done" for d in self.specs[key].dependencies):
                continue
            assert self.state[key] in ("done", *stuck), (
                key, self.state[key], self.engine.why(key), self.specs[key],
            )  # fmt: skip
        invariants(self.engine)
        for run in list(self.runs):
            self.engine.run_closed(run)
        for worker in self.engine._cluster.workers.values():
            assert worker.free == list(worker.shape.capacity), "every claim was released"
            assert not worker.groups and not worker.watchers and not worker.ahead
        board = self.engine._board
        assert not (board.anywhere or board.tied or board.reserved or board.stuck)
        assert not self.engine._functions
        assert self.engine.poll(self.now) == []
        assert self.engine.wake_at() is None


def play(script: bytes) -> None:
    """Play a script to its end, in one of the settings that only matter when there is much."""
    few, log, many = [(8, 4096, 64), (0, 4096, 64), (8, 3, 64), (0, 3, 0), (8, 4096, 0)][
        script[0] % 5
    ]
    with (
        mock.patch.object(board_module, "_FEW", few),
        mock.patch.object(board_module, "MANY", many),
        mock.patch.object(index, "LOG", log),
    ):
        world = World(script)
        world.open_run()
        while world.at < len(script):
            world.step()
        world.finish()


@given(st.binary(min_size=40, max_size=400))
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
def test_any_script(script: bytes) -> None:
    """Whatever happens, claims fit, books agree, and what can run does run in the end."""
    play(script)
