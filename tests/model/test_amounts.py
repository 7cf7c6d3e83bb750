"""Amounts of memory and times may be written with their unit."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import pickle
from datetime import timedelta

import numpy
import pytest

from handoff_dask import DAG, Function, InvalidFunctionError, RetryPolicy
from handoff_dask.cli.connect import parse_worker
from handoff_dask.client.options import RunOptions
from handoff_dask.model.amounts import as_amount, as_seconds
from handoff_dask.model.validation import cost_problem
from handoff_dask.wire.offers import check_capabilities
from tests.support import dag_of

MEMORY = {
    "2 GB": 2000.0,
    "1.5GB": 1500.0,
    "500 MiB": 524.288,
    " 300  mb ": 300.0,
    "5Gi": 5368.70912,
    "7g": 7000.0,
    "1e3 kB": 1.0,
    ".5 TB": 500_000.0,
    "10 B": 1e-5,
}
TIMES = {
    "5 min": 300.0,
    "30s": 30.0,
    "1.5 hours": 5400.0,
    "250ms": 0.25,
    "2us": 2e-6,
    "1 Day": 86400.0,
    "2 weeks": 1209600.0,
    timedelta(minutes=5, microseconds=1): 300.000001,
    numpy.float32(0.5): 0.5,
    30: 30,
}
UNREADABLE = [
    "",
    "2",
    "GB",
    "2 XB",
    "2 GB 3 MB",
    "1,5 GB",
    "nan GB",
    "2 GB/s",
    "5 mins ago",
    "1h30m",
]


@pytest.mark.parametrize(("text", "megabytes"), MEMORY.items())
def test_memory(text, megabytes):
    """In costs and in what workers offer, memory becomes MB, whatever the case of its name."""
    assert as_amount("memory", text) == pytest.approx(megabytes, rel=1e-12)
    function = Function("f", code=int, cost={"cpu": 1, "Memory": text})
    assert function.cost == {"cpu": 1, "Memory": pytest.approx(megabytes, rel=1e-12)}
    dag_of(function).validate()
    offered = {"cpu": 4, "memory": pytest.approx(megabytes, rel=1e-12)}
    assert check_capabilities({"cpu": 4, "MEMORY": text}) == offered
    assert parse_worker(f"cpu=4,memory={text}") == (None, offered)


@pytest.mark.parametrize(("time", "seconds"), TIMES.items(), ids=str)
def test_times(time, seconds):
    """Wherever seconds are, a unit or a timedelta may be instead."""
    assert as_seconds(time) == pytest.approx(seconds, rel=1e-12)
    policy = RetryPolicy(delay=time, max_delay=time)
    function = Function("f", code=int, timeout=time, retry=policy)
    dag_of(function).validate()
    options = RunOptions(timeout=time, placement_timeout=time)
    fields = policy.delay, policy.max_delay, function.timeout
    for value in (*fields, options.timeout, options.placement_timeout):
        assert value == pytest.approx(seconds, rel=1e-12)
        assert type(value) in (int, float)


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_cannot_be_read(text):
    """It raises at once, names the field, shows the text and the right form."""
    with pytest.raises(InvalidFunctionError, match=r"'memory' must be .* like '2 GB'") as caught:
        Function("f", code=int, cost={"memory": text})
    assert (caught.value.function_id, caught.value.field) == ("f", "cost")
    assert repr(text) in str(caught.value)
    with pytest.raises(InvalidFunctionError, match=r"must be .* like '5 min'") as caught:
        Function("f", code=int, timeout=text)
    assert caught.value.field == "timeout" and repr(text) in str(caught.value)
    for field in ("delay", "max_delay"):
        with pytest.raises(ValueError, match=rf"^{field} must be .* like '5 min'"):
            RetryPolicy(**{field: text})
    with pytest.raises(ValueError, match=r"capabilities: the amount of 'memory' must be"):
        check_capabilities({"memory": text})


@pytest.mark.parametrize("resource", ["cpu", "gpu", "licence"])
def test_only_memory_takes_text(resource):
    """Text for another resource is an error that says so."""
    with pytest.raises(InvalidFunctionError, match=f"'{resource}' must be a number.*only memory"):
        Function("f", code=int, cost={resource: "2"})
    assert "only memory takes text" in cost_problem({resource: "2 GB"})


@pytest.mark.parametrize("cost", [{"memory": "-2 GB"}, {"memory": "1e999 GB"}, {"memory": True}])
def test_an_amount_that_can_be_read_is_checked_like_a_number(cost):
    """A negative or infinite amount is an error of validate(), with its unit or without."""
    with pytest.raises(InvalidFunctionError, match="'memory' must be a") as caught:
        dag_of(Function("f", code=int, cost=cost)).validate()
    assert caught.value.field == "cost"


@pytest.mark.parametrize("unit", ["s", "ms", "ns"])
def test_times_of_numpy(unit):
    """A duration of numpy's is a time in its own unit, and no number where a number is needed."""
    time = numpy.timedelta64(3, "s").astype(f"timedelta64[{unit}]")
    assert as_seconds(time) == 3.0
    assert Function("f", code=int, timeout=time).timeout == 3.0
    for field, value in (("cost", {"cpu": time}), ("max_retries", time), ("priority", time)):
        with pytest.raises(InvalidFunctionError, match="number") as caught:
            dag_of(Function("f", code=int, **{field: value})).validate()
        assert caught.value.field == field


def test_no_time_of_numpy():
    """Numpy's missing time is refused."""
    with pytest.raises(InvalidFunctionError, match="timeout"):
        dag_of(Function("f", code=int, timeout=numpy.timedelta64("NaT"))).validate()


@pytest.mark.parametrize("wrong", [[5], None, True, datetime.time(0, 5)], ids=repr)
def test_what_is_no_time(wrong):
    """The error shows all forms that a time may have."""
    form = r"must be a number of seconds, a timedelta or text like '5 min', not"
    for name in ("delay", "max_delay"):
        with pytest.raises(InvalidFunctionError, match=rf"'retry\.{name}': {form}"):
            dag_of(Function("f", code=int, retry=RetryPolicy(**{name: wrong}))).validate()
    with pytest.raises(ValueError, match=f"placement_timeout {form}"):
        RunOptions(placement_timeout=wrong)
    if wrong is not None:  # no limit
        with pytest.raises(InvalidFunctionError, match=f"'timeout': {form}"):
            dag_of(Function("f", code=int, timeout=wrong)).validate()
        with pytest.raises(ValueError, match=f"timeout {form}"):
            RunOptions(timeout=wrong)


def test_a_negative_time():
    """The same for times."""
    with pytest.raises(InvalidFunctionError, match=r"timeout.* >= 0, not -5"):
        dag_of(Function("f", code=int, timeout="-5 s")).validate()
    with pytest.raises(ValueError, match=r"timeout .* >= 0, not -60"):
        RunOptions(timeout=timedelta(minutes=-1))


def test_ids_of_units_do_not_collide():
    """A minute is no millisecond, a megabyte no mebibyte."""
    assert as_seconds("1m") == 60 and as_seconds("1ms") == 0.001
    assert as_amount("memory", "1m") == 1 and as_amount("memory", "1mi") == 1.048576


def test_equal_costs_are_one_object():
    """However many functions have the same cost, it is in memory once."""
    costs = [Function(i, code=int, cost={"cpu": 1, "memory": "2 GB"}).cost for i in range(3)]
    assert all(cost is costs[0] for cost in costs)
    assert pickle.loads(pickle.dumps(costs[0])) is copy.deepcopy(costs[0]) is costs[0]
    assert costs[0] == {"cpu": 1, "memory": 2000}
    assert repr(costs[0]) == "{'cpu': 1, 'memory': 2000.0}"
    assert list(Function(0, code=int, cost={"memory": 2000.0, "cpu": 1}).cost) == ["memory", "cpu"]


@pytest.mark.parametrize("cost", [{"cpu": True}, {"cpu": [1]}, {"cpu": float("nan")}, {1: 1}])
def test_wrong_costs_stay_as_they_are(cost):
    """What is no cost is reported as it was written, whatever it equals."""
    assert Function("fine", code=int, cost={"cpu": 1}).cost == {"cpu": 1}
    (amount,) = Function("f", code=int, cost=cost).cost.values()
    assert amount is next(iter(cost.values()))
    with pytest.raises(InvalidFunctionError, match="cost"):
        DAG(functions=[Function("f", code=int, cost=cost)]).validate()


@pytest.mark.parametrize(
    "change",
    [
        lambda cost: cost.update(cpu=2),
        lambda cost: cost.__setitem__("cpu", 2),
        lambda cost: cost.pop("cpu"),
        lambda cost: cost.__ior__({"cpu": 2}),
        lambda cost: cost.clear(),
    ],
)
def test_costs_cannot_be_changed(change):
    """A change to the cost of one function would be a change to that of others."""
    function = Function("f", code=int, cost={"cpu": 1})
    with pytest.raises(TypeError, match="replace"):
        change(function.cost)
    assert function.cost == {"cpu": 1}
    assert function.cost | {"cpu": 2} == {"cpu": 2}
    assert dataclasses.replace(function, cost={"cpu": 2}).cost == {"cpu": 2}
