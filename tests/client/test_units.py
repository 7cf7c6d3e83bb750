"""The tasks of a run as its client holds them: which results are fetched, when, and once."""

from __future__ import annotations

import asyncio
import pickle
from types import SimpleNamespace

import pytest

from handoff_dask.client import gathering, units
from handoff_dask.client.describing import InStore
from handoff_dask.client.units import Unit, Units
from handoff_dask.wire.bundles import Values

#: Functions of the run.
COUNT = 6


class FakeFuture:
    """A future that ends when a test says so."""

    def __init__(self, key, client=None):
        self.key, self.client = key, client
        self.status = "pending"
        self.releases = 0

    def release(self):
        self.releases += 1


class FakeClient:
    """A client that only records what is sent to the scheduler."""

    def __init__(self):
        self.sent = []

    def _send_to_scheduler(self, message):
        self.sent.append(message)


@pytest.fixture
def client():
    return FakeClient()


@pytest.fixture
def gathered(monkeypatch):
    """What the cluster has: {key: value}, and the keys that were fetched, call by call."""
    here = SimpleNamespace(values={}, calls=[])

    async def finished(client, futures):
        here.calls.append([future.key for future in futures.values()])
        found = {n: here.values[f.key] for n, f in futures.items() if f.key in here.values}
        values = {n: v for n, v in found.items() if not isinstance(v, Exception)}
        return values, {n: v for n, v in found.items() if isinstance(v, Exception)}

    monkeypatch.setattr(gathering, "finished", finished)
    monkeypatch.setattr(units, "Future", FakeFuture)
    return here


@pytest.fixture
def run(client, gathered):
    """A run of functions named f0, f1, ... with the results of all but the last asked for."""
    names = [f"f{i}" for i in range(COUNT)]
    nodes = [SimpleNamespace(function=SimpleNamespace(id=name)) for name in names]
    outline = SimpleNamespace(
        run_id="a run",
        dag_id="a dag",
        nodes=nodes,
        wanted=names[:-1],
        awaited={name: i for i, name in enumerate(names)},
        key=lambda index: ("code-a run", index),
        stored=InStore(),
        stored_ids={},
    )
    return Units(outline, client)


def bundle(number, *indices):
    return Unit(FakeFuture(("bundle", number)), indices, True)


def alone(index):
    return Unit(FakeFuture(("code-a run", index)), (index,), False)


def end(gathered, unit, value):
    unit.future.status = "finished"
    gathered.values[unit.future.key] = value


def fetch(run):
    asyncio.run(run.fetch())


def test_fetch(run, gathered):
    """Results are fetched as their tasks end, each task once."""
    first, second, single = bundle(0, 0, 1), bundle(1, 2, 3), alone(4)
    run.add([first, second, single])
    fetch(run)
    assert gathered.calls == [] and not run.complete
    end(gathered, first, Values({0: "zero", 1: "one"}))
    end(gathered, single, "four")
    fetch(run)
    assert run.values == {"f0": "zero", "f1": "one", "f4": "four"}
    assert not run.complete
    end(gathered, second, Values({2: "two", 3: None}))
    fetch(run)
    fetch(run)
    assert gathered.calls == [[("bundle", 0), ("code-a run", 4)], [("bundle", 1)]]
    assert run.values["f3"] is None and run.complete


def test_a_task_whose_result_was_lost_meanwhile(run, gathered):
    """It is fetched when it has been made again."""
    unit = bundle(0, 0)
    run.add([unit])
    unit.future.status = "finished"
    fetch(run)
    assert not run.complete
    end(gathered, unit, Values({0: 1}))
    fetch(run)
    assert run.values == {"f0": 1} and run.complete


def test_problems(run, gathered):
    """One value that cannot be fetched is the error of its function alone."""
    together, single = bundle(0, 0, 1), alone(2)
    run.add([together, single])
    end(gathered, together, Values({1: 1}, problems={0: "of type lock cannot be sent: no"}))
    end(gathered, single, ValueError("cannot be opened"))
    fetch(run)
    assert run.values == {"f1": 1}
    assert {id_: str(error) for id_, error in run.problems.items()} == {
        "f0": "the value of type lock cannot be sent: no",
        "f2": "cannot be opened",
    }
    assert run.complete


@pytest.mark.parametrize("status", ["error", "cancelled"])
def test_tasks_that_failed(run, status):
    """Nothing of them is fetched; the run is complete without."""
    unit = bundle(0, 0)
    run.add([unit])
    unit.future.status = status
    fetch(run)
    assert run.complete and not run.values


def test_functions_that_failed_in_a_bundle(run, gathered):
    """Their errors are not results; nothing more is to come of them."""
    unit = bundle(0, 0, 1)
    run.add([unit])
    end(gathered, unit, Values({0: 1}, errors={1: pickle.dumps(ValueError())}))
    fetch(run)
    assert run.values == {"f0": 1} and run.complete


def test_functions_that_left(run, gathered):
    """Those that left a bundle are adopted once, and fetched by themselves."""
    unit = bundle(0, 0, 1)
    run.add([unit])
    (new,) = run.adopt([1])
    assert new.key == ("code-a run", 1) and run.adopt([1]) == []
    assert run.by_function["f1"] is new
    assert [other.indices for other in run] == [(0, 1), (1,)]
    end(gathered, unit, Values({0: 1}))
    fetch(run)
    assert not run.complete
    new.status = "finished"
    gathered.values[new.key] = "one"
    fetch(run)
    assert run.values == {"f0": 1, "f1": "one"} and run.complete


def test_functions_that_leave_late(run, gathered):
    """A function that a bundle lacks may have left it since: the scheduler is asked once more."""
    unit = bundle(0, 0, 1)
    run.add([unit])
    run.adopt([])
    end(gathered, unit, Values({0: 1}))
    fetch(run)
    assert not run.complete
    (new,) = run.adopt([1])
    assert not run.complete
    new.status = "finished"
    gathered.values[new.key] = "one"
    fetch(run)
    assert run.complete and run.values["f1"] == "one"


def test_a_function_that_a_bundle_lacks_for_good(run, gathered):
    """A cancelled one has no result, and did not leave: nothing more is waited for."""
    unit = bundle(0, 0, 1)
    run.add([unit])
    end(gathered, unit, Values({0: 1}))
    fetch(run)
    assert not run.complete
    run.adopt([])
    assert run.complete


def test_futures(run, client):
    """The future of a function in a bundle is made when asked for, with a task that has it."""
    single = alone(2)
    run.add([bundle(0, 0, 1), single])
    futures = run.by_function
    assert list(futures) == [f"f{i}" for i in range(COUNT - 1)] and len(futures) == COUNT - 1
    assert futures["f2"] is single.future and not client.sent
    assert futures["f1"] is futures["f1"]
    assert futures["f1"].key == ("code-a run", 1)
    assert client.sent == [{"op": "handoff-take", "run_id": "a run", "indices": [1]}]
    with pytest.raises(KeyError):
        futures[f"f{COUNT - 1}"]  # not asked for
    assert repr(futures) == f"<futures of {COUNT - 1} functions of 'a dag'>"


def test_release(run):
    """All are released: the tasks, and the futures that were made."""
    together, single = bundle(0, 0, 1), alone(2)
    run.add([together, single])
    made = run.by_function["f0"]
    assert run.futures == [together.future, single.future]
    run.release()
    assert together.future.releases == 1 and made.releases == 1 and single.future.releases
    assert run.futures == []
