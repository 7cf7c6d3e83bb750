"""Which short functions travel together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handoff_dask import Argument, Function, RetryPolicy, collocated
from handoff_dask.model.expansion import expand, node_policy
from handoff_dask.placement.bundling import (
    Candidate,
    bundleable,
    bundles,
    companions,
    is_short,
    threads_for,
)
from handoff_dask.placement.bundling import candidates as candidates_of
from handoff_dask.placement.events import WorkerSpec

COST = {"cpu": 1.0}
MS = 0.001
#: What a call and a task cost at least (s), and how far sums of floats may be off.
CALL, TASK, NEARLY = 30e-6, MS, 1 + 1e-5


def candidates(
    dependencies: Sequence[Sequence[int]], seconds=MS, cost=COST, **fields
) -> list[Candidate]:
    """Return a DAG's nodes, which are numbered in order, all alike except for the given fields."""
    users = [0] * len(dependencies)
    for needed in dependencies:
        for i in needed:
            users[i] += 1
    made = [
        Candidate(i, tuple(needed), users[i], cost, 0, seconds)
        for i, needed in enumerate(dependencies)
    ]
    return [made[i]._replace(**{k: v[i] for k, v in fields.items()}) for i in range(len(made))]


def bundled(nodes: Sequence[Candidate], worth: float = 0.05, threads: int = 2):
    return bundles(nodes, worth=worth, threads=lambda cost: threads)


def tree(leaves: int) -> list[tuple[int, ...]]:
    """Return a binary reduction, level by level."""
    dependencies: list[tuple[int, ...]] = [()] * leaves
    first = 0
    while leaves > 1:
        dependencies += [(first + i, first + i + 1) for i in range(0, leaves, 2)]
        first += leaves
        leaves //= 2
    return dependencies


def copies(dependencies: Sequence[Sequence[int]], number: int) -> list[Sequence[int]]:
    """Return several DAGs like a given one, as one."""
    size = len(dependencies)
    return [
        [i + first for i in needed]
        for first in range(0, number * size, size)
        for needed in dependencies
    ]


def test_independent_functions_fill_bundles_evenly():
    """Neighbours travel together, as many as fit, and no bundle is a tiny rest."""
    assert bundled(candidates([()] * 1000)) == [tuple(range(i, i + 50)) for i in range(0, 1000, 50)]
    sizes = [len(bundle) for bundle in bundled(candidates([()] * 1001))]
    assert sum(sizes) == 1001 and set(sizes) == {45, 46}


def test_there_are_four_bundles_for_each_thread():
    """Where there is less work than that all bundles could be full, they are smaller."""
    assert [len(bundle) for bundle in bundled(candidates([()] * 80), threads=4)] == [5] * 16


def test_all_threads_get_the_same_number_of_bundles():
    """Otherwise all would wait for those that have one more."""
    sizes = [len(bundle) for bundle in bundled(candidates([()] * 1000, 5 * MS), threads=16)]
    assert len(sizes) == 112 and set(sizes) == {8, 9}
    # Sixteen of these fit, which makes 125.
    sizes = [len(bundle) for bundle in bundled(candidates([()] * 2000, 3 * MS), threads=4)]
    assert len(sizes) == 128 and set(sizes) == {15, 16}


def test_chains_stay_whole():
    """A hundred chains of a hundred: each is in one bundle, with others."""
    nodes = candidates([() if i < 100 else (i - 100,) for i in range(10_000)], CALL)
    made = bundled(nodes)
    assert 8 <= len(made) <= 10 and sum(map(len, made)) == 10_000
    chains = [{i % 100 for i in bundle} for bundle in made]
    assert sum(map(len, chains)) == 100


def test_one_chain_is_cut_where_a_bundle_is_full():
    """Threads do not matter to a chain."""
    nodes = candidates([() if not i else (i - 1,) for i in range(120)])
    assert [len(bundle) for bundle in bundled(nodes)] == [50, 50, 20]


def test_a_reduction_is_cut_into_subtrees():
    """Whole subtrees travel together; what joins them does not: it is too little."""
    made = bundled(candidates(tree(4096), CALL))
    assert [len(bundle) for bundle in made] == [1023] * 8


def test_a_fan_out_does_not_wait_for_a_part_of_itself():
    """The first of many that depend on one do not join it: the others would wait for them."""
    made = bundled(candidates([(), *[(0,)] * 1000]))
    assert sorted(i for bundle in made for i in bundle) == list(range(1, 1001))
    assert len(made) == 20


def test_a_fan_out_that_fits_is_one_bundle():
    """All that depend on a function join it, if all fit."""
    made = bundled(candidates(copies([(), *[(0,)] * 30], 8), CALL))
    assert made == [tuple(range(i, i + 31)) for i in range(0, 8 * 31, 31)]


def test_a_fan_in_travels_alone():
    """Each value would have to be taken out of its bundle by a task: nothing is saved."""
    assert bundled(candidates([*[()] * 1000, tuple(range(1000))])) == []


def test_a_diamond_is_one_bundle():
    """What leaves a function and comes together again stays together."""
    made = bundled(candidates(copies([(), (0,), (0,), (1, 2)], 8), CALL))
    assert made == [tuple(range(i, i + 4)) for i in range(0, 32, 4)]


def test_a_wide_map_between_reductions_keeps_its_parallelism():
    """A DAG that is long but narrow has much work, but not at the same time."""
    dependencies: list[Sequence[int]] = [()]
    for _ in range(100):
        last = len(dependencies) - 1
        dependencies += [[last]] * 24
        dependencies.append(range(last + 1, last + 25))
    nodes = candidates(dependencies, 2 * MS)
    assert all(len(bundle) <= 3 for bundle in bundled(nodes, threads=2))


def test_the_same_inputs_make_neighbours():
    """Those that could start at the same time travel together, whatever lies between them."""
    # Two inputs that travel alone, each with many that depend on it.
    nodes = candidates([(), (), *[(i % 2,) for i in range(100)]], seconds=MS)
    nodes = [node._replace(seconds=None) if node.node < 2 else node for node in nodes]
    made = bundled(nodes)
    assert sorted(i for bundle in made for i in bundle) == list(range(2, 102))
    assert all(len({i % 2 for i in bundle}) == 1 for bundle in made)


def test_different_values_of_the_same_bundle_are_the_same_input():
    """What waits for the same bundles could start at the same time."""
    dependencies: list[tuple[int, ...]] = [()]
    for _ in range(40):
        first = len(dependencies)
        # A chain whose value a subtree of four uses, as well as that of the very first function.
        dependencies += [(), (first,), (first + 1, 0), (), (first + 3,), (first + 2, first + 4)]
    nodes = candidates(dependencies, CALL)
    nodes[0] = nodes[0]._replace(seconds=None)
    made = bundled(nodes)
    home = {i: number for number, bundle in enumerate(made) for i in bundle}
    users = [[i for i in bundle if dependencies[i] and dependencies[i][-1] == 0] for bundle in made]
    assert sum(map(len, users)) == 40
    assert all(len(several) > 1 for several in users if several)
    assert all(len({home[i - 1] for i in several}) <= 1 for several in users)


def test_costs_and_priorities_are_kept_apart():
    """A bundle is of one cost and one priority; equal costs need not be one object."""
    costs = [{"cpu": 1.0 + i % 2} for i in range(400)]
    nodes = candidates([()] * 400, cost=None)
    nodes = [n._replace(cost=costs[n.node], priority=n.node // 2 % 2) for n in nodes]
    made = bundled(nodes)
    assert sum(map(len, made)) == 400
    assert all(len({i % 4 for i in bundle}) == 1 for bundle in made)


def test_a_chain_takes_in_what_costs_less():
    """A bundle claims what its first function claims: nothing that costs more follows."""
    nodes = candidates([(), (0,), (1,)])
    low, high = {"cpu": 1.0}, {"cpu": 2.0, "memory": 1.0}
    assert bundled([n._replace(cost=c) for n, c in zip(nodes, (high, low, high), strict=True)]) == [
        (0, 1, 2)
    ]
    assert bundled([n._replace(cost=c) for n, c in zip(nodes, (low, high, high), strict=True)]) == [
        (1, 2)
    ]


def test_portions():
    """What was sent earlier is an input like any other."""
    nodes = candidates([(), *[(0,)] * 99])[1:]
    assert sum(map(len, bundled(nodes))) == 99


def test_threads_are_counted_by_cost():
    """A worker has as many as its threads, or as its scarcest resource is enough for."""
    workers = [
        WorkerSpec("a", "a", "h", {"cpu": 4, "memory": 1000}, 8),
        WorkerSpec("b", "b", "h", {"cpu": float("inf")}, 2),
    ]
    assert threads_for({}, workers) == 10
    assert threads_for({"cpu": 0.1}, workers) == 10
    assert threads_for({"cpu": 1, "memory": 300}, workers) == 3
    assert threads_for({"cpu": 4 / 7}, workers) == 9
    assert threads_for({"gpu": 1}, workers) == 0


def test_short_is_a_fourth_of_a_bundle():
    """A bundle holds at least four of what is called short."""
    assert is_short(0.0125, 0.05) and not is_short(0.0126, 0.05)


def nothing(*_):
    pass


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({}, True),
        ({"cost": {"cpu": 1, "memory": 10}, "priority": 3, "max_retries": 0}, True),
        ({"cost": {"gpu": 1}}, False),
        ({"node": "a"}, False),
        ({"node": "a", "allow_other_workers": True}, False),
        ({"node": collocated("source")}, False),
        ({"timeout": 5}, False),
        ({"retry": RetryPolicy(delay=1)}, False),
        ({"retry": RetryPolicy(retry_on=(ValueError,))}, False),
        ({"retry": RetryPolicy(escalate=lambda attempt, cost, error: cost)}, False),
        ({"retry": RetryPolicy(avoid_last_worker="always")}, False),
        ({"retry": RetryPolicy(avoid_last_worker=False)}, True),
    ],
)
def test_who_may_be_bundled(fields, allowed):
    """Only a function that asks for nothing more than to be called, and to be retried at once."""
    functions = {
        "source": Function(id="source", code=nothing),
        "f": Function(id="f", args=["source"], code=nothing, **fields),
    }
    nodes = expand(functions)
    assert bundleable(nodes[1], node_policy(nodes[1], RetryPolicy())) == allowed
    assert companions(nodes) == ({0} if fields.get("node") == collocated("source") else set())


def test_the_policy_of_the_run_counts():
    """A delay of the run's policy is as good as a function's own."""
    (node,) = expand({"f": Function(id="f", code=nothing)})
    assert not bundleable(node, node_policy(node, RetryPolicy(delay=1)))


def test_transforms_travel_alone_and_so_do_both_their_ends():
    """A transform runs where its producer or its consumer does."""
    functions = {
        "a": Function(id="a", code=nothing),
        "b": Function(id="b", args=[Argument("a", nothing, nothing)], code=nothing),
        "c": Function(id="c", args=["b"], code=nothing),
    }
    nodes = expand(functions)
    assert companions(nodes) == {0, 1}
    assert [bundleable(node, RetryPolicy()) for node in nodes] == [True] * 3 + [False] * 2


def test_candidates_come_in_order():
    """Whatever order the functions of a DAG are in, users are counted over all of it."""
    functions = {
        "late": Function(id="late", args=["early", "long"], code=nothing, priority=2),
        "long": Function(id="long", args=["early"], code=nothing, cost={"cpu": 1}),
        "early": Function(id="early", code=nothing),
        "pinned": Function(id="pinned", code=nothing, node="a"),
    }
    nodes = expand(functions)
    made = candidates_of(nodes, [RetryPolicy()] * 4, [MS, 0.5, MS, MS], 0.05)
    by_node = {candidate.node: candidate for candidate in made}
    assert by_node == {
        0: Candidate(0, (2, 1), 0, {}, 2, MS),
        1: Candidate(1, (2,), 1, {"cpu": 1}, 0, None),
        2: Candidate(2, (), 2, {}, 0, MS),
        3: Candidate(3, (), 0, {}, 0, None),
    }
    order = [candidate.node for candidate in made]
    assert order.index(2) < order.index(1) < order.index(0)
    assert bundles(made, worth=0.05, threads=lambda cost: 1) == []


COSTS = [{}, {"cpu": 1.0}, {"cpu": 2.0}, {"cpu": 1.0, "memory": 5.0}]


@st.composite
def dags(draw):
    """DAGs of a few shapes, with much that is alike, and indices in no particular order."""
    count = draw(st.integers(1, 60))
    reach = draw(st.sampled_from([1, 2, 5, 60]))
    alike = draw(st.booleans())
    names = draw(st.permutations(range(count)))
    dependencies = [
        draw(st.sets(st.integers(max(0, i - reach), i - 1), max_size=3)) if i else set()
        for i in range(count)
    ]
    users = [sum(i in needed for needed in dependencies) for i in range(count)]
    seconds = st.sampled_from([None, 0.0, 1e-5, 3e-4, MS, 4 * MS])
    nodes = [
        Candidate(
            names[i],
            tuple(names[d] for d in dependencies[i]),
            users[i],
            COSTS[1] if alike else dict(draw(st.sampled_from(COSTS))),
            0 if alike else draw(st.sampled_from([0, 1])),
            MS if alike else draw(seconds),
        )
        for i in range(count)
    ]
    shown = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return nodes, [node for node, keep in zip(nodes, shown, strict=True) if keep or alike]


def work(members) -> float:
    return sum(max(node.seconds, CALL) for node in members)


def is_chain(members) -> bool:
    return all(before.node in after.dependencies for before, after in pairwise(members))


@given(dags(), st.sampled_from([5 * MS, 50 * MS]), st.integers(1, 3))
def test_bundles_keep_their_promises(dag, worth, threads):
    """Whatever the DAG: a partition, runnable, acyclic, within limits, and fewer tasks."""
    nodes, offered = dag
    made = bundled(offered, worth, threads)
    node_of = {node.node: node for node in nodes}
    members = [i for bundle in made for i in bundle]
    assert len(members) == len(set(members)) and all(len(bundle) > 1 for bundle in made)
    assert {node.node for node in offered if node.seconds is not None}.issuperset(members)

    unit = {i: i for i in node_of} | {i: bundle[0] for bundle in made for i in bundle}
    arrows = {u: set() for u in unit.values()}
    for node in nodes:
        arrows[unit[node.node]] |= {unit[i] for i in node.dependencies} - {unit[node.node]}
    while free := [u for u, sources in arrows.items() if not sources & arrows.keys()]:
        for u in free:
            del arrows[u]
    assert not arrows, "no bundle waits for itself"

    for bundle in made:
        inside = [node_of[i] for i in bundle]
        for position, node in enumerate(inside):
            later = {n.node for n in inside[position:]}
            assert not later & set(node.dependencies), "in an order in which they can run"
            assert node.priority == inside[0].priority
            assert all(a <= inside[0].cost.get(name, 0) for name, a in node.cost.items())
        assert work(inside) <= worth * NEARLY
        same = [n for n in offered if n.cost == inside[0].cost and n.seconds is not None]
        share = max(TASK, work(same) / (4 * threads))
        # A part of a group is a whole number of clusters.
        assert work(inside) <= 2 * share * NEARLY or is_chain(inside)

        taken = {i for n in nodes if unit[n.node] != bundle[0] for i in n.dependencies}
        assert 1 + len(taken.intersection(bundle)) < len(bundle), "tasks are saved"


@given(st.integers(1, 500), st.integers(1, 8))
def test_nobody_idles_for_bundles(count, threads):
    """Independent functions make four bundles for each thread, if there are that many."""
    made = bundled(candidates([()] * count, 4 * MS), threads=threads)
    alone = count - sum(map(len, made))
    assert len(made) + alone >= min(count, 4 * threads)
    if count <= 40 * threads:  # no bundle is full
        assert len(made) + alone == min(count, 4 * threads)


def test_the_order_of_the_answer_is_the_same_each_time():
    """Equal DAGs are bundled alike: nothing depends on addresses in memory."""
    nodes = candidates(tree(256), 3e-4)
    again = [replace_cost(node) for node in nodes]
    assert bundled(nodes) == bundled(again)


def replace_cost(node: Candidate) -> Candidate:
    return node._replace(cost=dict(node.cost))
