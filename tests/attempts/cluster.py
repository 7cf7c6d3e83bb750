"""A cluster whose every start is known, played against the functions' lives and the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace

from handoff_dask.attempts.endings import Endings
from handoff_dask.attempts.life import Life
from handoff_dask.attempts.lives import Departure, Lives
from handoff_dask.attempts.losses import End, KnownStart
from handoff_dask.attempts.retries import Verdict
from handoff_dask.attempts.states import PLACED, Asking, Failing, Failure, Placement
from handoff_dask.errors import WorkerLostError
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import FunctionSpec, Place, Started, WorkerSpec

CAPACITY = {"cpu": 2.0}
SLOTS = 2
COSTS = [{"cpu": 1.0}, {"cpu": 1.0}, {"cpu": 2.0}, {"cpu": 0.5}]


@dataclass(eq=False)
class Sent:
    """A function that was sent to a worker: what is true of it."""

    life: Life
    number: int
    worker: str
    started: float | None = None
    #: Whether its thread has ended, or it never will have one.
    over: bool = False
    #: Whether the scheduler has given it up.
    given_up: bool = False
    #: The worker told the scheduler to expect word of its thread's end.
    promised: bool = False
    seceded: bool = False

    @property
    def running(self) -> bool:
        return self.started is not None and not self.over


@dataclass(eq=False)
class Cluster:
    """Workers that know what they started, a scheduler that has to find out."""

    policies: list[RetryPolicy]
    pins: list[tuple[str, ...]]
    engine: Engine = field(default_factory=lambda: Engine(horizon=1000.0, max_ahead=3))

    def __post_init__(self):
        self.now = 0.0
        self.numbers = count(1)
        self.endings = Endings(self.engine)
        self.lives = Lives(self.engine, self.endings, self, chance=lambda: 0.5)
        self.sent: list[Sent] = []
        #: Lost attempts that nobody was asked about yet: (sent, lost, whether the worker knows).
        self.questions: list[tuple[Sent, object]] = []
        #: By key: starts that happened, or that count as such because nobody knows.
        self.starts: dict[int, int] = {}
        #: By key: those that count against the retries, since it was last pardoned.
        self.charged: dict[int, int] = {}
        #: By address: the worker's name.
        self.workers: dict[str, str] = {}
        self.paused: set[str] = set()
        self.names = count(1)
        self.functions = [
            Life(
                i,
                SimpleNamespace(
                    label=str(i), cost=COSTS[i % len(COSTS)], policy=policy, learns_memory=False
                ),
            )
            for i, policy in enumerate(self.policies)
        ]
        self.engine.run_opened("run", placement_timeout=1e9)
        self.engine.functions_added(
            "run",
            [
                FunctionSpec(f.key, f.row.cost, pin=pin, code="f")
                for f, pin in zip(self.functions, self.pins, strict=True)
            ],
        )
        #: Functions that Dask will report as ready.
        self.due = list(self.functions)
        self.join(name="pinned")
        self.join()

    # What the lives ask

    def input_sizes(self, life):
        return {}, 0.0

    def refusal(self, life):
        return None

    def worker_lost(self, life):
        return WorkerLostError(life.row.label, [entry.worker for entry in life.deaths])

    def escalate(self, life):
        return Verdict(retry=True)

    def died_unstarted(self, life, lost, reason):
        assert not any(s.number == lost.number and s.started for s in self.sent)

    def given_up(self, life):
        pass

    # Workers

    def join(self, name=None):
        address = f"w{next(self.names)}"
        self.workers[address] = name or address
        self.engine.worker_added(
            WorkerSpec(address, name or address, "host", CAPACITY, slots=SLOTS)
        )

    def on(self, worker):
        return [s for s in self.sent if s.worker == worker and not s.over]

    def leave(self, worker, *, died):
        """A worker goes: Dask gives its tasks back before it tells of the worker's end."""
        del self.workers[worker]
        self.paused.discard(worker)
        for sent in self.on(worker):
            if not sent.given_up:
                self.take_back(sent, gone=True, died=died)
        self.engine.worker_removed(worker, self.now)
        self.endings.worker_removed(worker)
        for sent in self.on(worker):
            sent.over = True

    def room(self, worker):
        running = [s for s in self.on(worker) if s.running]
        used = sum(s.life.cost["cpu"] for s in running)
        return CAPACITY["cpu"] - used, SLOTS - sum(not s.seceded for s in running)

    # Functions

    def ready(self, life):
        self.due.remove(life)
        self.lives.ready(life, self.now)

    def work(self):
        for life in list(self.due):
            self.ready(life)
        self.poll()

    def inputs_lost(self, life):
        if not (isinstance(life.state, Asking) and not life.state.ready):
            self.lives.inputs_lost(life)
            self.due.append(life)

    def forget(self, life):
        if life in self.due:
            self.due.remove(life)
        self.lives.dropped(life)

    def failed(self, life):
        if life in self.due:
            self.due.remove(life)
        self.lives.failed(life)

    def pardon(self, life):
        self.charged[life.key] = 0
        self.lives.pardoned(life)
        self.due.append(life)

    def startable(self):
        some = []
        for sent in self.sent:
            if sent.over or sent.started is not None or sent.worker not in self.workers:
                continue
            if sent.worker in self.paused:
                continue  # Dask's worker starts nothing while it is paused
            cpu, slots = self.room(sent.worker)
            # A placement that was taken back may start until its worker was asked about it.
            asked = any(s is sent for s, _ in self.questions)
            if sent.life.cost["cpu"] <= cpu and slots and (asked or not sent.given_up):
                some.append(sent)
        return some

    def poll(self):
        doomed, self.lives.doomed = self.lives.doomed, []
        for life, _ in doomed:
            if life.state.name == "held":
                self.failed(life)
        for decision in self.engine.poll(self.now):
            life = self.functions[decision.key]
            if isinstance(decision, Started):
                self.lives.started(life)
                continue
            assert isinstance(decision, Place)
            assert decision.worker not in life.late, "Dask would take the old thread for the new"
            placement = Placement(decision.worker, self.now)
            self.lives.placed(life, placement, ahead=decision.ahead)
            self.sent.append(Sent(life, next(self.numbers), decision.worker))

    def start(self, sent):
        sent.started = self.now
        self.starts[sent.life.key] = self.starts.get(sent.life.key, 0) + 1

    def departure(self, sent, *, reported, gone=False, died=False):
        span = (sent.started, self.now) if reported and sent.started is not None else None
        return Departure(
            sent.number, self.now, self.now, reported, span,
            worker_known=not gone, worker_gone=gone, worker_died=died,
        )  # fmt: skip

    def succeed(self, sent):
        sent.over = True
        self.lives.succeeded(sent.life, sent.worker, self.departure(sent, reported=True))

    def fail(self, sent, outcome, *, late=False):
        """An attempt fails; if it is late, its thread goes on."""
        self.charge(sent)
        failure = Failure(outcome, sent.started, self.now, "Error", "it failed", True, late=late)
        again = self.lives.failure_reported(sent.life, failure)
        sent.over, sent.given_up, sent.promised = not late, True, late
        departure = self.departure(sent, reported=not late)
        if again:
            assert self.lives.returned(sent.life, departure) is None
            self.due.append(sent.life)
        else:
            assert self.lives.erred(sent.life, departure, "Error", "it failed") is None

    def take_back(self, sent, *, gone=False, died=False):
        """Dask takes a task back, or loses it with its worker; its end is not reported."""
        sent.given_up = True
        lost = self.lives.returned(
            sent.life, self.departure(sent, reported=False, gone=gone, died=died)
        )
        assert lost is not None
        self.questions.append((sent, lost))
        self.due.append(sent.life)

    def turn_away(self, some, worker):
        """Dask does not send tasks where they were just placed: the worker declares less now."""
        self.paused.add(worker)
        self.engine.worker_running(worker, False)
        for sent in some:
            if sent.worker == worker:
                sent.given_up = sent.over = True
                self.lives.turned_away(sent.life, self.now)

    def settle(self, sent, lost, *, known):
        """It is answered what the worker had started."""
        self.questions.remove((sent, lost))
        if sent.worker in self.workers:
            known = True
            if sent.started is None:
                sent.over = True  # it never will be
            sent.promised = sent.running
        end = End(
            {sent.number: (KnownStart(-1, sent.started),)} if sent.started is not None else {},
            frozenset([sent.number] if sent.running else []),
        )
        if not known:
            end = End()
            if sent.started is None:
                self.starts[sent.life.key] = self.starts.get(sent.life.key, 0) + 1
        if lost.died and (sent.started is not None or not known):
            self.charge(sent)
        self.lives.settled(sent.life, lost, end, self.now)

    def charge(self, sent):
        self.charged[sent.life.key] = self.charged.get(sent.life.key, 0) + 1

    def thread_over(self, sent):
        sent.over = True
        assert self.endings.over(sent.life.key, sent.number)

    # What must hold

    def check(self):
        for life in self.functions:
            mine = [s for s in self.sent if s.life is life]
            open_ = sum(s.started is not None and not s.given_up and not s.over for s in mine)
            open_ += sum(s.life is life and s.started is not None for s, _ in self.questions)
            assert len(life.entries) == self.starts.get(life.key, 0) - open_, life.entries
            assert [entry.number for entry in life.entries] == [
                i + 1 for i in range(len(life.entries))
            ]
            counting = sum(entry.counts for entry in life.entries[life.forgiven :])
            assert counting == self.charged.get(life.key, 0)
            assert counting <= life.row.policy.max_retries + 1
            assert isinstance(life.state, PLACED) == any(
                not s.given_up and not s.over for s in mine
            )
            assert not isinstance(life.state, Failing)
            if isinstance(life.state, Asking):
                assert any(lost is life.state.lost for _, lost in self.questions)
            late = sorted(s.worker for s in mine if s.given_up and not s.over)
            assert sorted(life.late) == late, (life.late, late)
        ask = self.engine.questions
        for worker in self.workers:
            used = sum(s.life.cost["cpu"] for s in self.on(worker) if s.running)
            assert ask.claimed(worker)["cpu"] >= used - 1e-6, "a thread has no claim"
            assert ask.free(worker)["cpu"] >= -1e-6
