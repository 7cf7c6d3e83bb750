"""Every life that a function may have, played at random against the engine."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from handoff_dask.attempts.states import PLACED, Asking, Held, Waiting
from handoff_dask.model.retry import RetryPolicy
from tests.attempts.cluster import Cluster, Sent

FUNCTIONS = 6
POLICIES = [
    RetryPolicy(0),
    RetryPolicy(1),
    RetryPolicy(2, avoid_last_worker=False),
    RetryPolicy(2, avoid_last_worker="always"),
    RetryPolicy(1, delay=1.0, jitter=0),
]
pick = st.integers(0, 63)


class Lives(RuleBasedStateMachine):
    """The ledger holds the starts that happened, claims last as long as threads, nothing hangs."""

    @initialize(
        policies=st.lists(st.sampled_from(POLICIES), min_size=FUNCTIONS, max_size=FUNCTIONS),
        pinned=st.integers(0, 2),
    )
    def begin(self, policies, pinned):
        pins = [("pinned",)] * pinned + [()] * (FUNCTIONS - pinned)
        self.cluster = Cluster(policies, pins)

    def functions(self, *states):
        return [f for f in self.cluster.functions if isinstance(f.state, states)]

    def attempts(self, **facts) -> list[Sent]:
        return [
            sent
            for sent in self.cluster.sent
            if not sent.over and all(getattr(sent, name) == value for name, value in facts.items())
        ]

    # What happens

    @rule(i=pick)
    def inputs_are_there(self, i):
        if due := self.cluster.due:
            self.cluster.ready(due[i % len(due)])

    @rule()
    def the_scheduler_works(self):
        self.cluster.work()

    @rule()
    def the_engine_decides(self):
        self.cluster.poll()

    @rule(i=pick)
    def a_worker_starts_one(self, i):
        if some := self.cluster.startable():
            self.cluster.start(some[i % len(some)])

    @rule()
    def workers_start_what_they_can(self):
        while some := self.cluster.startable():
            self.cluster.start(some[0])

    @rule(i=pick)
    def an_attempt_succeeds(self, i):
        if some := self.attempts(running=True, given_up=False):
            self.cluster.succeed(some[i % len(some)])

    @rule(i=pick, outcome=st.sampled_from(["error", "timeout", "process-died"]))
    def an_attempt_fails(self, i, outcome):
        if some := self.attempts(running=True, given_up=False):
            self.cluster.fail(some[i % len(some)], outcome)

    @rule(i=pick)
    def an_attempt_takes_too_long(self, i):
        if some := self.attempts(running=True, given_up=False):
            self.cluster.fail(some[i % len(some)], "timeout", late=True)

    @rule(i=pick)
    def an_attempt_secedes(self, i):
        # While it is asked about a worker, two may be taken for the one that has a thread: then
        # more is claimed there for a while than there is.
        asked = {sent.worker for sent, _ in self.cluster.questions}
        waits_ahead = self.cluster.engine.questions.waits_ahead
        some = [
            sent
            for sent in self.attempts(running=True, seceded=False)
            if not (sent.worker in asked and waits_ahead(sent.life.key))
        ]
        if some:
            sent = some[i % len(some)]
            sent.seceded = True
            if not self.cluster.endings.seceded(sent.life.key, sent.number):
                if not sent.given_up:
                    self.cluster.lives.thread_released(sent.life)

    @rule(i=pick)
    def dask_takes_one_back(self, i):
        if some := self.attempts(given_up=False):
            self.cluster.take_back(some[i % len(some)])

    @rule(i=pick)
    def a_worker_shrinks_just_then(self, i):
        before = len(self.cluster.sent)
        self.cluster.poll()
        if some := self.cluster.sent[before:]:
            self.cluster.turn_away(some, some[i % len(some)].worker)

    @rule(i=pick)
    def a_late_thread_ends(self, i):
        if some := self.attempts(promised=True):
            self.cluster.thread_over(some[i % len(some)])

    @rule(i=pick)
    def word_of_an_end_comes_twice(self, i):
        if ended := [sent for sent in self.cluster.sent if sent.over]:
            sent = ended[i % len(ended)]
            if not any(s is sent for s, _ in self.cluster.questions):
                assert not self.cluster.endings.over(sent.life.key, sent.number)

    @rule(i=pick)
    def the_result_of_a_late_one_comes(self, i):
        late = [
            sent
            for sent in self.attempts(promised=True)
            if sent.life.entries
            and sent.life.entries[-1].outcome == "timeout"
            and sent.life.entries[-1].started == sent.started
            and isinstance(sent.life.state, (Waiting, Held))
            and sent.life.forgiven < len(sent.life.entries)
        ]
        if late:
            sent = late[i % len(late)]
            before = len(sent.life.entries)
            departure = self.cluster.departure(sent, reported=True)
            self.cluster.lives.succeeded(sent.life, sent.worker, departure)
            self.cluster.charged[sent.life.key] -= 1  # it has ended well
            if sent.life in self.cluster.due:
                self.cluster.due.remove(sent.life)
            assert len(sent.life.entries) == before
            assert sent.life.entries[-1].outcome == "ok"

    @rule(i=pick, known=st.booleans())
    def a_question_is_answered(self, i, known):
        if questions := self.cluster.questions:
            self.cluster.settle(*questions[i % len(questions)], known=known)

    @precondition(lambda self: len(self.cluster.workers) < 4)
    @rule()
    def a_worker_joins(self):
        self.cluster.join()

    @rule(i=pick, died=st.booleans())
    def a_worker_leaves(self, i, died):
        if workers := sorted(self.cluster.workers):
            self.cluster.leave(workers[i % len(workers)], died=died)

    @rule(i=pick)
    def a_worker_pauses_or_goes_on(self, i):
        if workers := sorted(self.cluster.workers):
            worker = workers[i % len(workers)]
            self.cluster.paused ^= {worker}
            self.cluster.engine.worker_running(worker, worker not in self.cluster.paused)

    @rule(i=pick)
    def inputs_are_lost(self, i):
        if some := self.functions(Held, Asking):
            self.cluster.inputs_lost(some[i % len(some)])

    @rule(i=pick)
    def one_is_cancelled(self, i):
        life = self.cluster.functions[i % FUNCTIONS]
        for sent in self.attempts(life=life, given_up=False):
            self.cluster.take_back(sent)
        self.cluster.forget(life)

    @rule(i=pick)
    def one_fails_for_want_of_an_input(self, i):
        if some := self.functions(Waiting, Held, Asking):
            self.cluster.failed(some[i % len(some)])

    @rule(i=pick)
    def a_failed_one_is_tried_again(self, i):
        failed = [f for f in self.cluster.functions if f.state.name == "failed"]
        if failed:
            self.cluster.pardon(failed[i % len(failed)])

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0]))
    def time_passes(self, seconds):
        self.cluster.now += seconds

    # What must hold

    @invariant()
    def promises(self):
        if hasattr(self, "cluster"):
            self.cluster.check()

    def teardown(self):
        """Whatever happened, what may still go on does, and nothing stays claimed."""
        if not hasattr(self, "cluster"):
            return
        cluster = self.cluster
        for worker in sorted(cluster.paused):
            cluster.engine.worker_running(worker, True)
        cluster.paused.clear()
        if "pinned" not in cluster.workers.values():
            cluster.join(name="pinned")
        for _ in range(50):
            cluster.now += 100.0
            for sent, lost in list(cluster.questions):
                cluster.settle(sent, lost, known=True)
            for sent in self.attempts(promised=True):
                cluster.thread_over(sent)
            cluster.work()
            while some := cluster.startable():
                cluster.start(some[0])
            for sent in self.attempts(running=True, given_up=False):
                cluster.succeed(sent)
            cluster.check()
        assert not self.functions(Waiting, Held, Asking, *PLACED), [
            (f.state, f.late) for f in cluster.functions
        ]
        assert not cluster.endings
        for worker in cluster.workers:
            assert cluster.engine.questions.free(worker) == {"cpu": 2.0}
            assert cluster.engine.questions.slots(worker) == (2, 2)


TestLives = Lives.TestCase
TestLives.settings = settings(
    max_examples=int(os.environ.get("SOAK", 2000 if os.environ.get("CI") else 100)),
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
