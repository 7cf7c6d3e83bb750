from __future__ import annotations

import random

import pytest

from handoff_dask.placement.engine import Engine
from handoff_dask.placement.events import FunctionSpec, WorkerSpec
from handoff_dask.placement.simulation import simulate

WORKERS = [WorkerSpec(w, w, "h", {"cpu": 2, "memory": 4}, 4) for w in ("a", "b")]


def test_the_makespan_of_a_small_dag_is_exact() -> None:
    """Starts, stops, workers and use of resources are those of the schedule."""
    specs = [
        FunctionSpec("x", {"cpu": 2}),
        FunctionSpec("y", {"cpu": 2}),
        FunctionSpec("z", {"cpu": 1, "memory": 4}, ("x", "y")),
    ]
    run = simulate(specs, WORKERS, {"x": 2.0, "y": 3.0, "z": 1.0})
    assert run.makespan == 4.0
    assert run.placements["z"].start == 3.0 and run.placements["z"].stop == 4.0
    assert {run.placements[k].worker for k in "xy"} == {"a", "b"}
    assert run.utilisation == pytest.approx({"cpu": 11 / 16, "memory": 4 / 32})


def test_what_no_worker_holds_is_refused_at_once() -> None:
    """It is reported with its finding; what depends on it does not run, the rest does."""
    specs = [
        FunctionSpec("bad", {"cpu": 9}),
        FunctionSpec("after", {}, ("bad",)),
        FunctionSpec("fine", {}),
    ]
    run = simulate(specs, WORKERS, dict.fromkeys(("bad", "after", "fine"), 1.0))
    assert set(run.placements) == {"fine"}
    assert run.refused["bad"].shortfall == {"cpu": (9, 2)}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("strategy", ["packed", "load_balanced", "first_available"])
def test_no_worker_is_over_committed_at_any_time(strategy: str, known: bool) -> None:
    """Summed over what overlaps, no resource exceeds its capacity; inputs come first."""
    rng = random.Random(strategy)
    specs = []
    for i in range(200):
        needs = tuple({rng.randrange(i) for _ in range(rng.randrange(3))}) if i else ()
        cost = {"cpu": rng.choice([0.1, 1, 2]), "memory": rng.choice([0, 1, 4])}
        specs.append(FunctionSpec(i, cost, needs, code=f"c{i % 5}"))
    durations = {i: rng.choice([0.001, 0.01, 1.0]) for i in range(200)}
    run = simulate(specs, WORKERS, durations, strategy=strategy, known=known)
    assert len(run.placements) == 200
    events = []
    for spec in specs:
        place = run.placements[spec.key]
        assert all(run.placements[d].stop <= place.start for d in spec.dependencies)
        events += [(place.start, 1, spec, place.worker), (place.stop, -1, spec, place.worker)]
    used: dict[tuple[str, str], float] = {}
    for _, sign, spec, worker in sorted(events, key=lambda e: e[:2]):
        for name, amount in spec.cost.items():
            used[worker, name] = used.get((worker, name), 0.0) + sign * amount
            assert used[worker, name] <= WORKERS[0].capacity[name] + 1e-6


def test_known_durations_make_a_better_schedule() -> None:
    """The long function is started first when it is known to be long."""
    specs = [FunctionSpec(i, {"cpu": 2}) for i in range(5)]
    durations = {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0, 4: 4.0}
    assert simulate(specs, WORKERS, durations, known=True).makespan == 4.0
    assert simulate(specs, WORKERS, durations, known=False).makespan > 4.0


def test_an_engine_keeps_what_a_simulation_taught_it() -> None:
    """The second run on one engine is ranked by what the first one took."""
    engine = Engine()
    specs = [FunctionSpec(i, {"cpu": 2}, token=i) for i in range(5)]
    durations = {0: 1.0, 1: 1.0, 2: 1.0, 3: 1.0, 4: 4.0}
    first = simulate(specs, WORKERS, durations, known=False, engine=engine)
    second = simulate(specs, WORKERS, durations, known=False, engine=engine)
    assert first.makespan > second.makespan == 4.0


def test_overhead_delays_every_placement() -> None:
    """The seconds from a decision to the start count."""
    run = simulate([FunctionSpec("f", {})], WORKERS, {"f": 1.0}, overhead=0.5)
    assert run.makespan == 1.5


def test_jitter_is_small_and_the_same_for_a_seed() -> None:
    """Functions take up to that much longer, each its own; a seed always draws the same."""
    specs = [FunctionSpec(i, {"cpu": 1}) for i in range(4)]
    durations = dict.fromkeys(range(4), 1.0)
    run = simulate(specs, WORKERS, durations, jitter=0.1)
    took = {place.stop - place.start for place in run.placements.values()}
    assert len(took) == 4 and all(1.0 <= seconds <= 1.1 for seconds in took)
    assert run == simulate(specs, WORKERS, durations, jitter=0.1)
    assert run != simulate(specs, WORKERS, durations, jitter=0.1, seed=1)


def test_nothing_takes_no_time() -> None:
    """An empty DAG is an empty run."""
    run = simulate([], WORKERS, {})
    assert run.makespan == 0.0 and run.placements == {}


def test_bundles_run_as_one() -> None:
    """Members run one after the other where their bundle is placed; others wait for its end."""
    specs = [
        FunctionSpec("a", {"cpu": 2}),
        FunctionSpec("b", {"cpu": 1}, ("a", "x")),
        FunctionSpec("x", {"cpu": 1}),
        FunctionSpec("after", {}, ("a",)),
    ]
    durations = {"a": 1.0, "b": 2.0, "x": 1.0, "after": 1.0}
    run = simulate(specs, WORKERS[:1], durations, bundles=[("a", "b")])
    assert {key: (place.start, place.stop) for key, place in run.placements.items()} == {
        "x": (0.0, 1.0),
        "a": (1.0, 2.0),
        "b": (2.0, 4.0),
        "after": (4.0, 5.0),
    }
    # The bundle claims what its first member claims.
    assert run.utilisation["cpu"] == pytest.approx((1 + 3 * 2) / (5 * 2))


def test_the_first_of_a_bundle_waits_for_the_inputs_of_all() -> None:
    """Moving inputs takes time once, before the first member ends."""
    specs = [
        FunctionSpec("x", {}, pin=("a",)),
        FunctionSpec("f", {}, ("x",), pin=("b",)),
        FunctionSpec("g", {}, ("f",)),
    ]
    durations = dict.fromkeys("xfg", 1.0)
    run = simulate(
        specs, WORKERS, durations, bundles=[("f", "g")], sizes={"x": 100.0}, bandwidth=100.0
    )
    f, g = run.placements["f"], run.placements["g"]
    assert (f.start, f.stop, g.start, g.stop) == pytest.approx((1.0, 3.005, 3.005, 4.005))


def test_a_bundle_that_no_worker_holds_is_refused() -> None:
    """It is refused by its first member, which claims the most."""
    specs = [FunctionSpec("f", {"cpu": 9}), FunctionSpec("g", {}, ("f",))]
    run = simulate(specs, WORKERS, {"f": 1.0, "g": 1.0}, bundles=[("f", "g")])
    assert set(run.refused) == {"f"} and not run.placements
