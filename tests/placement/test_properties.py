"""Random scripts of events, played against a model of the cluster that keeps its own books."""

from __future__ import annotations

import dataclasses
from unittest import mock

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handoff_dask.placement import index, ready_queues, size_classes
from handoff_dask.placement.events import Place, Refuse, Started
from tests.placement.invariants import invariants, nothing_overlooked
from tests.placement.world import BIG, FINAL, World


class Checked(World):
    """The same, with a check after each event."""

    def poll(self) -> None:
        for decision in self.engine.poll(self.now):
            key = decision.key
            if isinstance(decision, Started):
                assert self.state[key] == "placed" and key in self.unstarted
                self.unstarted.discard(key)
                continue
            assert self.state[key] == "ready", "decided once"
            if isinstance(decision, Refuse):
                self.refused(decision)
            else:
                self.placed(decision)
        self.unstarted = {key for key in self.unstarted if key in self.where}
        assert all(map(self.engine.questions.waits_ahead, self.unstarted)), "nobody is forgotten"
        nothing_overlooked(self.engine)
        self.ask()
        wake = self.engine.wake_at()
        assert wake is None or wake > self.now

    def ask(self) -> None:
        """Every ready function has a reason to wait, and no other has."""
        for key, state in self.state.items():
            why = self.engine.questions.why(key)
            assert (why is not None) == (state == "ready")
            assert why is None or (why.reason != "next" and str(why))
            if why is not None and why.reason == "excluded":
                assert self.exclude[key].issuperset(why.workers)

    def reason(self, key: int) -> str | None:
        why = self.engine.questions.why(key)
        return None if why is None else why.reason

    def refused(self, decision: Refuse) -> None:
        key = decision.key
        spec = self.specs[key]
        assert not decision.finding and str(decision.finding)
        if spec.binds is None and not self.grouped(key):
            assert not self.engine.questions.feasibility(self.cost[key], spec.pin)
        self.state[key] = "refused"

    def placed(self, decision: Place) -> None:
        key, address = decision.key, decision.worker
        spec, worker = self.specs[key], self.workers[address]
        assert address not in self.paused
        assert not spec.pin or {worker.address, worker.name, worker.host} & set(spec.pin)
        assert address not in self.exclude[key]
        if address in self.avoid[key] and not self.grouped(key):
            able = set(self.engine.questions.feasibility(self.cost[key], spec.pin).able)
            others = able.difference(self.avoid[key], self.exclude[key])
            if not self.insist[key]:
                others -= self.paused
            until = self.engine._functions[key].barred.until
            assert not others or (
                not self.insist[key] and until is not None and self.since[key] <= until <= self.now
            )
        if key in self.bound:
            assert self.bound[key] == address, "a bound function stays with its group"
        self.bind(key, address)
        if spec.binds is not None:
            assert decision.target in self.workers
            if spec.binds in self.bound:
                assert self.bound[spec.binds] == decision.target
            self.bind(spec.binds, decision.target)
        self.unstarted.discard(key)
        if decision.ahead:
            self.unstarted.add(key)
        else:
            free = self.engine.questions.free(address)
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
        action = self.draw(27)
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
                self.poll, self.add_again, self.readmit,
            ][action - 13 - 1]()  # fmt: skip
        # A worker that fits again may not get more than it has.
        for address in list(self.excess):
            worker = self.engine._fleet.workers[address]
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
            self.declare(address)
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
            elif excluded := [k for k in self.specs if self.reason(k) == "excluded"]:
                # Only now: as long as another worker is left, a function goes on without this.
                self.engine.exclusion_ended(excluded[0], self.exclude[excluded[0]].pop())
            else:
                break
        else:
            raise AssertionError("does not come to an end")
        stuck = {"refused"}
        for key in sorted(self.specs):  # a function's dependencies have lower keys
            if any(self.state[d] != "done" for d in self.specs[key].dependencies):
                continue
            assert self.state[key] in ("done", *stuck), (
                key, self.state[key], self.engine.questions.why(key), self.specs[key],
            )  # fmt: skip
        invariants(self.engine)
        for run in list(self.runs):
            self.engine.run_closed(run)
        for worker in self.engine._fleet.workers.values():
            assert worker.free == list(worker.shape.capacity), "every claim was released"
            assert not worker.groups and not worker.watchers and not worker.ahead
        ready = self.engine._ready
        assert not (ready.anywhere or ready.tied or ready.reserved or ready.stuck)
        assert not self.engine._functions
        assert self.engine.poll(self.now) == []
        assert self.engine.wake_at() is None


def play(script: bytes) -> None:
    """Play a script to its end, in one of the settings that only matter when there is much."""
    few, log, many = [(8, 4096, 64), (0, 4096, 64), (8, 3, 64), (0, 3, 0), (8, 4096, 0)][
        script[0] % 5
    ]
    with (
        mock.patch.object(ready_queues, "_FEW", few),
        mock.patch.object(ready_queues, "MANY", many),
        mock.patch.object(size_classes, "_HITS", 4 if many else 1),
        mock.patch.object(index, "LOG", log),
    ):
        world = Checked(script)
        world.open_run()
        while world.at < len(script):
            world.step()
        world.finish()


@given(st.binary(min_size=40, max_size=1200))
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
def test_any_script(script: bytes) -> None:
    """Whatever happens, claims fit, books agree, and what can run does run in the end."""
    play(script)
