"""Which functions that wait have their claims revised."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from handoff_dask.attempts.states import HELD, WAITING
from handoff_dask.learning.ladder import ENOUGH
from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import WorkerSpec
from handoff_dask.scheduler.measurements import Measurements
from handoff_dask.wire.run_events import RunClosed


@pytest.fixture
def engine():
    engine = Engine()
    for name, memory in (("small", 1000), ("large", 4000)):
        engine.worker_added(WorkerSpec(name, name, name, {"cpu": 4, "memory": memory}, 4))
    return engine


class Record(SimpleNamespace):
    """A function of a run, as far as it matters here."""

    __hash__ = object.__hash__

    def __init__(self, run_id="run", exceeded=0.0):
        spec = SimpleNamespace(learned=None, codes={"f": "module.f"}, run_id=run_id)
        row = SimpleNamespace(cost={}, pin=(), prefix="f")
        run = SimpleNamespace(spec=spec)
        super().__init__(run=run, row=row, exceeded=exceeded, state=HELD, cost={"memory": 0.0})


class Claims(Measurements):
    """Notes which functions claim again."""

    def __init__(self, engine):
        self.again = []
        super().__init__({}, engine.questions, self._again)

    def hold(self, record):
        record.cost["memory"] = self.claim(record)

    def _again(self, record):
        self.again.append(record)
        self.hold(record)


def test_a_kill_hides_no_others(engine):
    """What was killed claims more from then on; others of its code are still seen to."""
    claims = Claims(engine)
    for second in range(ENOUGH):
        claims._uses[None].record("module.f", started=second, seconds=1.0, peak=10.0)
    waiting, *killed = (Record() for _ in range(30))
    for record in (waiting, *killed):
        claims.hold(record)
    for record in killed:
        record.exceeded = 300.0
        claims.hold(record)
    assert waiting.cost["memory"] == 250
    assert {record.cost["memory"] for record in killed} == {600}
    engine.worker_added(WorkerSpec("tiny", "tiny", "tiny", {"cpu": 4, "memory": 100}, 4))
    claims.workers_changed()
    assert waiting.cost["memory"] == 25
    assert {record.cost["memory"] for record in killed} == {600}


def test_nothing_is_kept_of_runs_that_are_over(engine):
    """Neither of functions that ended as nobody noticed, nor does it hide those of other runs."""
    claims = Claims(engine)
    ended, waiting = Record("over"), Record("other")
    for record in (ended, waiting):
        claims.hold(record)
    ended.state = WAITING
    claims(RunClosed("over", 0.0))
    engine.worker_removed("large", None)
    claims.workers_changed()
    assert claims.again == [waiting]
    claims(RunClosed("other", 0.0))
    assert not claims._held
