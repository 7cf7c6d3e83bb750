"""Numbers of any type become int or float."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import IntEnum
from fractions import Fraction

import numpy
import pytest
from distributed import Event

from handoff_dask import (
    Function,
    InvalidFunctionError,
    RetryPolicy,
    current,
    discover_nodes,
    execute,
    execute_local,
    plan,
    register_node,
    resources_available,
    submit,
)
from handoff_dask.client.options import RunOptions
from handoff_dask.model.retry import RetryPolicy as Policy
from tests.scheduler.dashboard.viewing import get_json, on_cluster
from tests.support import dag_of


def fail_once():
    if current().attempt == 1:
        raise ValueError


class Size(IntEnum):
    one = 1


NUMBERS = [
    numpy.int64(1),
    numpy.uint8(1),
    numpy.float32(1.5),
    numpy.float64(1.5),
    numpy.longdouble(1.5),
    Fraction(3, 2),
    Size.one,
]


def of_python(value):
    """Whether all numbers in a value are of Python's own types."""
    if isinstance(value, dict):
        return all(map(of_python, value.values()))
    return type(value) in (int, float, bool, str, type(None), tuple, list)


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: type(n).__name__)
def test_numbers_come_in_as_python_has_them(number):
    """Costs, times, counts: the same amount, as an int if it is whole by its type."""
    whole = number == 1
    counts = {"max_retries": number} if whole else {}
    policy = Policy(delay=number, backoff=number, max_delay=number, jitter=number, **counts)
    function = Function("f", [], int, cost={"CPU": number}, timeout=number, **counts, retry=policy)
    options = RunOptions(
        timeout=number,
        placement_timeout=number,
        priority=number,
        **counts,
        **({"max_concurrency": number} if whole else {}),
    )
    dag_of(function).validate()
    assert of_python(asdict(policy) | {"retry_on": None})
    assert of_python(function.cost) and of_python(function.timeout)
    assert of_python({n: v for n, v in vars(options).items() if n != "retry"})
    assert function.cost == {"CPU": number}
    assert type(function.cost["CPU"]) is (int if whole else float)
    assert (policy.delay, options.timeout) == (number, number)


@pytest.mark.parametrize(
    "value", [numpy.bool_(True), True, 1j, numpy.nan, numpy.float32("inf"), "1", 10**400, None]
)
def test_what_is_no_number_is_still_none(value):
    """It is refused, and the error shows it."""
    with pytest.raises(InvalidFunctionError) as caught:
        dag_of(Function("f", [], int, cost={"cpu": value})).validate()
    assert caught.value.field == "cost"


def test_a_plan_of_such_numbers():
    """Capabilities, durations and overhead too."""
    dag = dag_of(Function("f", [], int, cost={"cpu": numpy.float32(0.5)}))
    prediction = plan(
        dag,
        {"w": {"cpu": numpy.int64(1)}},
        {"f": Fraction(1, 2)},
        overhead=Fraction(0),
        max_concurrency=numpy.int64(1),
    )
    assert of_python(prediction.makespan) and prediction.makespan == 0.5
    json.dumps([prediction.utilisation, prediction.timeline["w"]])


def hold():
    Event("started").set()
    Event("go").wait()


def fail():
    raise ValueError("always")


@on_cluster()
async def test_results_and_routes_are_json(c, s, a, b):
    """Files and JSON with such numbers can be written."""
    worker = next(iter(await discover_nodes()))
    offered = await register_node(worker, {"licence": numpy.int64(2), "half": Fraction(1, 2)})
    assert of_python(offered)
    assert await resources_available(worker, {"licence": numpy.float32(1)})
    policy = RetryPolicy(
        max_retries=numpy.int64(1), escalate=lambda *_: {"licence": numpy.int64(2)}
    )
    dag = dag_of(
        Function("holds", [], hold, cost={"cpu": numpy.int64(1), "half": Fraction(1, 2)}),
        Function("held", [], int, cost={"half": Fraction(1, 4)}),
        Function("fails", [], fail, cost={"licence": numpy.float32(0.1)}, retry=policy),
    )
    run = await submit(dag, on_error="continue", priority=numpy.int64(1))
    await Event("started").wait()
    state = await get_json(s, "/handoff/runs.json")
    assert state["resources"]["half"] == {"declared": 0.5, "claimed": 0.5, "asked": 0.25}
    await Event("go").set()
    result = await run.result()
    written = json.loads(json.dumps(result.as_dict()))
    assert written["results"] == {"holds": None, "held": 0}
    costs = [attempt.cost for attempt in result.attempts["fails"]]
    assert costs == [{"licence": float(numpy.float32(0.1))}, {"licence": 2}]
    assert all(map(of_python, costs))


def test_a_local_result_is_json():
    """The same in this process."""
    result = execute_local(
        dag_of(Function("f", [], int, cost={"cpu": numpy.int64(1)})), max_retries=numpy.int64(1)
    )
    json.dumps(result.as_dict())


def test_the_embedded_cluster():
    """The same if execute() starts its own workers."""
    dag = dag_of(Function("f", [], int, cost={"cpu": numpy.int64(1), "memory": Fraction(1, 2)}))
    result = execute(dag, timeout=Fraction(60), max_concurrency=numpy.int64(1))
    json.dumps(result.as_dict())


LARGE = [2**63 - 1, 2**63, 10**30]


@pytest.mark.parametrize("amount", LARGE)
@on_cluster(timeout=60)
async def test_large_numbers_break_no_connection(c, s, a, b, amount):
    """Numbers that Dask's messages cannot hold become floats; amounts are claimed as declared."""
    other = c.submit(int, 7)
    await register_node(a.address, {"tokens": amount})
    policy = RetryPolicy(1, escalate=lambda attempt, cost, error: {"tokens": amount})

    functions = [
        Function("all", [], int, cost={"tokens": amount}, timeout=amount, priority=amount),
        Function("more", [], fail_once, cost={"tokens": 1}, retry=policy),
    ]
    limits = {"priority": amount, "timeout": amount, "placement_timeout": amount}
    result = await execute(dag_of(*functions), **limits)
    assert result.attempts["more"][-1].cost == pytest.approx({"tokens": amount})
    assert await other == 7
    assert {a.address, b.address} == s.workers.keys()


@on_cluster()
async def test_counts_without_bound(c, s, a, b):
    """Any whole number of retries works, even one that Dask's messages cannot hold."""
    count = 10**30
    functions = [
        Function("own", [], fail_once, max_retries=count),
        Function("policy", [], fail_once, retry=RetryPolicy(max_retries=count)),
        Function("run", [], fail_once),
    ]
    options = {"max_retries": count, "max_concurrency": numpy.uint64(2**63)}
    result = await execute(dag_of(*functions), **options)
    assert [len(attempts) for attempts in result.attempts.values()] == [2, 2, 2]
    assert {a.address, b.address} == s.workers.keys()


def test_amounts_that_are_too_large():
    """An amount whose sums would not be finite is refused by name."""
    with pytest.raises(InvalidFunctionError, match=r"'f'.*'cpu' must be at most 1e\+100"):
        dag_of(Function("f", [], int, cost={"cpu": 1e300})).validate()
