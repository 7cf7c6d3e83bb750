"""One DAG, one outcome: the same scenarios with everything that runs a DAG."""

from __future__ import annotations

import asyncio
import operator
import threading
from datetime import timedelta
from typing import Any, NamedTuple

import dask
import pytest
from distributed import Client

from handoff_dask import (
    Argument,
    AttemptEnded,
    CyclicDependencyError,
    Function,
    FunctionEnded,
    FunctionFailedError,
    FunctionPlaced,
    InvalidFunctionError,
    RetryPolicy,
    RunOpened,
    RunStopped,
    RunTimeoutError,
    UnknownFunctionError,
    collocated,
    current,
    execute,
    execute_local,
    forget,
    get_run,
    submit,
)
from tests.support import dag_of


@pytest.fixture(scope="module")
def client():
    with Client(
        processes=False,
        # A timed out attempt keeps its thread, and its function goes on elsewhere.
        n_workers=3,
        threads_per_worker=4,
        dashboard_address="localhost:0",
        set_as_default=False,
    ) as client:
        yield client


# What runs a DAG


def run_execute(dag, client, **options):
    return execute(dag, client=client, **options)


def run_submit(dag, client, **options):
    return submit(dag, client=client, **options).result()


def run_detached(dag, client, **options):
    submit(dag, client=client, detach=True, **options)
    try:
        return get_run(dag.id, client=client).result()
    finally:
        forget(dag.id, client=client)


def run_local(dag, client, **options):
    return execute_local(dag, **options)


RUNNERS = {
    "execute": run_execute,
    "submit": run_submit,
    "detached": run_detached,
    "execute_local": run_local,
}
everywhere = pytest.mark.parametrize("run", RUNNERS.values(), ids=RUNNERS)


# What the functions do


def show(*args, **kwargs):
    """Return what arrived."""
    return (*args, kwargs) if kwargs else args


async def later(*args):
    await asyncio.sleep(0)
    return args


def attempt(*_):
    return current().attempt


class Refused(Exception):
    """An exception of the user's."""

    def __init__(self, code, text):
        super().__init__(f"{text} ({code})")
        self.code, self.text = code, text

    def __reduce__(self):
        return Refused, (self.code, self.text)


def fail(*_, error=None, until=99):
    """Fail in each attempt before one; then return the attempt and its cost."""
    if current().attempt < until:
        raise error or ValueError("no")
    return current().attempt, dict(current().cost)


#: Set when a test ends, for what still waits in a thread that was given up.
ended = threading.Event()


@pytest.fixture(autouse=True)
def release():
    ended.clear()
    yield
    ended.set()


def block(*_, until=99):
    """Exceed any time limit in each attempt before one."""
    if current().attempt < until:
        ended.wait(60)
    return current().attempt


def wrap(data, source, target, *static):
    assert isinstance(source, str) and isinstance(target, str)
    return [data, *static]


# Values


def two(*functions):
    """Return functions after two that make 1 and 2."""
    return (Function("a", [], int, [1]), Function("b", [], int, [2]), *functions)


class Values(NamedTuple):
    """A DAG whose functions succeed at once, and what they return."""

    functions: tuple[Function, ...]
    results: dict[Any, Any]
    options: dict[str, Any] = {}  # noqa: RUF012 - read only


AB = {"a": 1, "b": 2}
LIST_A, LIST_B = (Argument(id_, argument_inclusion="as_list") for id_ in "ab")

VALUES = {
    "no functions": Values((), {}),
    "a chain": Values(
        (
            Function("source", [], int, [42]),
            Function("transform", ["source"], operator.mul, [2]),
            Function("sink", ["transform"], "The final answer is: {}".format),
        ),
        {"source": 42, "transform": 84, "sink": "The final answer is: 84"},
    ),
    "results in order": Values(two(Function("c", ["b", "a", "b"], show)), {**AB, "c": (2, 1, 2)}),
    "extra arguments": Values(
        two(Function("c", ["a"], show, [7, [8]], {"k": {"x": 9}})),
        {**AB, "c": (1, 7, [8], {"k": {"x": 9}})},
    ),
    "as_list": Values(
        two(Function("c", ["b", "a"], show, [7], argument_inclusion="as_list")),
        {**AB, "c": ([2, 1], 7)},
    ),
    "as_list of nothing": Values(
        (Function("c", [], show, argument_inclusion="as_list"),), {"c": ([],)}
    ),
    "as_list arguments": Values(
        two(Function("c", [LIST_A, LIST_B, "a", LIST_B], show)), {**AB, "c": ([1, 2], 1, [2])}
    ),
    "nested arguments": Values(
        two(
            Function("i", ["a"], show, type="inline"),
            Function(
                "c",
                code=show,
                extra_args=[[Argument("b"), {"x": (Argument("a"), Argument("i"))}]],
                extra_kwargs={"k": Argument("a", wrap)},
            ),
        ),
        {**AB, "c": ([2, {"x": (1, (1,))}], {"k": [1]})},
    ),
    "places and priorities": Values(
        (
            Function("a", [], int, [1], priority=2),
            Function("b", [], int, [2], node=("nowhere", "there"), allow_other_workers=True),
        ),
        AB,
    ),
    "units": Values(
        (Function("a", [], int, [1], cost={"memory": "1 MB"}, timeout="5 min"),),
        {"a": 1},
        {"timeout": timedelta(minutes=5)},
    ),
    "transforms": Values(
        two(Function("c", [Argument("a", (wrap, [5]), (wrap, [6])), "b"], show)),
        {**AB, "c": ([[1, 5], 6], 2)},
    ),
    "inline": Values(
        two(
            Function("i", ["a"], show, [3], type="inline"),
            Function("j", ["i", "b"], show, type="inline"),
            Function("c", ["j", "i"], show),
        ),
        {**AB, "c": (((1, 3), 2), (1, 3))},
    ),
    "transforms of an inline function": Values(
        two(
            Function("i", [], int, [4], type="inline"),
            Function("c", [Argument("i", wrap, wrap)], show),
        ),
        {**AB, "c": ([[4]],)},
    ),
    "coroutines": Values(
        two(
            Function("i", ["b"], later, type="inline"),
            Function("c", ["a", "i"], later),
        ),
        {**AB, "c": (1, (2,))},
    ),
    "ids": Values(
        (
            Function(("t", 1), [], int, [1]),
            Function(None, [("t", 1), 0], show),
            Function(0, [], int),
        ),
        {("t", 1): 1, None: (1, 0), 0: 0},
    ),
    "collocated": Values(two(Function("c", ["a"], show, node=collocated("b"))), {**AB, "c": (1,)}),
    "time limits that are kept": Values(
        (Function("a", [], attempt, timeout=60), Function("b", ["a"], attempt)), {"a": 1, "b": 1}
    ),
    "options without effect": Values(
        two(),
        AB,
        {
            "max_concurrency": 1,
            "allocation_strategy": "load_balanced",
            "priority": 2,
            "timeout": 60,
        },
    ),
}


def check_shape(result, dag, kept):
    """Check everything of a result whose functions all succeeded in their first attempts."""
    regular = {f.id for f in dag.functions.values() if f.type == "regular"}
    assert result.dag_id == dag.id
    assert list(result.results) == list(kept)
    assert set(result.allocations) == set(result.attempts) == regular
    assert not result.errors
    for id_, attempts in result.attempts.items():
        (only,) = attempts
        assert (only.number, only.outcome, only.error_type, only.message) == (1, "ok", None, None)
        assert only.worker == result.allocations[id_]
        assert only.worker_name and only.host
        assert only.started <= only.stopped
    assert set(result.functions) == set(dag.functions)
    assert {id_: f.results for id_, f in result.functions.items() if id_ in kept} == result.results
    assert (result.makespan > 0) == bool(regular)


@everywhere
@pytest.mark.parametrize("scenario", VALUES.values(), ids=VALUES)
def test_values(scenario, run, client):
    """Whatever runs a DAG, the values are the same, and the record has the same shape."""
    dag = dag_of(*scenario.functions, id=("values", run.__name__))
    result = run(dag, client, **scenario.options)
    assert result.results == scenario.results
    check_shape(result, dag, scenario.results)


@pytest.mark.parametrize("scheduler", ["threads", "sync", "a cluster"])
@pytest.mark.parametrize("scenario", VALUES.values(), ids=VALUES)
def test_values_by_dask(scenario, scheduler, client):
    """A DAG is a Dask collection with the same results."""
    scheduler = client if scheduler == "a cluster" else scheduler
    assert dask.compute(dag_of(*scenario.functions), scheduler=scheduler) == (scenario.results,)


@everywhere
@pytest.mark.parametrize(
    ("results", "kept"),
    [("all", "abc"), ("sinks", "bc"), (["a"], "a"), (["c", "a"], "ca"), (("b",), "b"), ([], "")],
)
def test_results(results, kept, run, client):
    """Only the results asked for are kept, in that order, and all functions run."""
    functions = [Function(id_, ["a"][: id_ != "a"], show) for id_ in "abc"]
    dag = dag_of(*functions, id=("results", run.__name__))
    result = run(dag, client, results=results)
    check_shape(result, dag, kept)


@everywhere
def test_what_cannot_be_pickled(run, client):
    """A cluster names what cannot be pickled; in this process, nothing has to be."""
    lock = threading.Lock()
    dag = dag_of(Function("a", [], show, [lock]), id=("lock", run.__name__))
    if run is run_local:
        assert run(dag, client).results["a"][0] is lock
        return
    for attempt_to_run in (run, lambda dag, _: dag.compute()):
        with pytest.raises(InvalidFunctionError, match="pickled") as caught:
            attempt_to_run(dag, client)
        assert (caught.value.function_id, caught.value.field) == ("a", "extra_args")


@everywhere
def test_futures(run, client):
    """A future in the arguments, at any depth, is replaced by its result or fails the function."""
    good, bad = client.submit(int, 3), client.submit(operator.truediv, 1, 0, key="bad")
    dag = dag_of(
        Function("a", [], show, [[good]], {"k": {"x": good}}),
        Function("b", ["a"], show, [bad]),
        Function("c", ["b"], show),
        id=("futures", run.__name__),
    )
    result = run(dag, client, on_error="continue")
    assert result.results == {"a": ([3], {"k": {"x": 3}})}
    assert {id_: error.function_id for id_, error in result.errors.items()} == {"b": "b", "c": "b"}
    error = result.errors["b"]
    assert "its argument, the future 'bad', failed" in str(error)
    assert isinstance(error.__cause__, ZeroDivisionError)
    assert error.attempts == ()


# Failures


class Failures(NamedTuple):
    """A DAG whose functions fail; what became of them."""

    functions: tuple[Function, ...]
    #: {function id: the outcomes of its attempts}.
    outcomes: dict[Any, list[str]]
    #: {function id: what its error names}.
    errors: dict[Any, Any]
    results: dict[Any, Any] = {}  # noqa: RUF012 - read only
    options: dict[str, Any] = {}  # noqa: RUF012 - read only
    #: The exception of the user's, and the text of the error.
    cause: type[BaseException] = ValueError
    text: str = "ValueError: no"
    kind: type[Exception] = FunctionFailedError


BAD = Function("bad", [], fail)
ONCE = RetryPolicy(0)


def escalating(*costs):
    return RetryPolicy(2, escalate=lambda number, cost, error: {"cpu": costs[number - 1]})


FAILURES = {
    "retries of the run": Failures(
        (BAD,), {"bad": ["error"] * 3}, {"bad": "bad"}, options={"max_retries": 2}
    ),
    "policy of the run": Failures(
        (BAD,), {"bad": ["error"] * 2}, {"bad": "bad"}, options={"retry": RetryPolicy(1)}
    ),
    "retries by default": Failures((BAD,), {"bad": ["error"] * 4}, {"bad": "bad"}),
    "retries of the function": Failures(
        (Function("bad", [], fail, max_retries=0),), {"bad": ["error"]}, {"bad": "bad"}
    ),
    "policy of the function": Failures(
        (Function("bad", [], fail, retry=RetryPolicy(5), max_retries=1),),
        {"bad": ["error"] * 2},
        {"bad": "bad"},
        options={"retry": RetryPolicy(7)},
    ),
    "a delay": Failures(
        (Function("bad", [], fail, retry=RetryPolicy(2, delay=0.01, jitter=0.5)),),
        {"bad": ["error"] * 3},
        {"bad": "bad"},
    ),
    "retry_on": Failures(
        (
            Function("bad", [], fail, retry=RetryPolicy(retry_on=(KeyError,))),
            Function("ok", [], fail, (), {"error": KeyError(1), "until": 2}),
        ),
        {"bad": ["error"], "ok": ["error", "ok"]},
        {"bad": "bad"},
        {"ok": (2, {})},
    ),
    "give_up_on": Failures(
        (Function("bad", [], fail, retry=RetryPolicy(give_up_on=(ValueError,))),),
        {"bad": ["error"]},
        {"bad": "bad"},
    ),
    "what depends on a failure": Failures(
        (
            Function("bad", [], fail, retry=ONCE),
            Function("i", ["bad"], show, type="inline"),
            Function("after", ["bad"], show),
            Function("after that", ["after", "good"], show),
            Function("through i", ["i"], show),
            Function("good", [], int),
            Function("after good", ["good"], show),
        ),
        {"bad": ["error"], "good": ["ok"], "after good": ["ok"]},
        dict.fromkeys(["bad", "after", "after that", "through i"], "bad"),
        {"good": 0, "after good": (0,)},
    ),
    "two failures": Failures(
        (
            Function("bad", [], fail, retry=ONCE),
            Function("too", [], fail, retry=ONCE),
            Function("after", ["too"], show),
        ),
        {"bad": ["error"], "too": ["error"]},
        {"bad": "bad", "too": "too", "after": "too"},
    ),
    "an inline function": Failures(
        (
            Function("i", [], fail, type="inline"),
            Function("bad", ["i"], show, max_retries=1),
        ),
        {"bad": ["error"] * 2},
        {"bad": "bad"},
    ),
    "a serializer": Failures(
        (
            Function("a", [], int),
            Function("bad", [Argument("a", fail)], show, max_retries=1),
        ),
        {"a": ["ok"]},
        {"bad": "bad"},
        {"a": 0},
    ),
    "an exception of the user's": Failures(
        (Function("bad", [], fail, (), {"error": Refused(3, "not this")}, retry=ONCE),),
        {"bad": ["error"]},
        {"bad": "bad"},
        cause=Refused,
        text="Refused: not this (3)",
    ),
    "an exception that ends processes": Failures(
        (Function("bad", [], fail, (), {"error": SystemExit(3)}, max_retries=1),),
        {"bad": ["error"] * 2},
        {"bad": "bad"},
        cause=BaseException,
        text="SystemExit: 3",
    ),
    "a timeout": Failures(
        (
            Function("bad", [], block, timeout=0.05, max_retries=1),
            Function("after", ["bad"], show),
        ),
        {"bad": ["timeout"] * 2},
        {"bad": "bad", "after": "bad"},
        cause=TimeoutError,
        text="TimeoutError: it ran longer than its timeout of 0.05 s",
    ),
    "a timeout that is not retried": Failures(
        (Function("bad", [], block, timeout=0.05, retry=RetryPolicy(retry_on=(ValueError,))),),
        {"bad": ["timeout"]},
        {"bad": "bad"},
        cause=TimeoutError,
        text="TimeoutError: it ran longer than its timeout of 0.05 s",
    ),
    "a failure within a time limit": Failures(
        (Function("bad", [], fail, timeout=60, max_retries=1),),
        {"bad": ["error"] * 2},
        {"bad": "bad"},
    ),
    "a policy that is wrong": Failures(
        (
            Function("bad", [], fail, retry=escalating(-1)),
            Function("after", ["bad"], show),
        ),
        {"bad": ["error"]},
        {"bad": "bad", "after": "bad"},
        text="field 'retry.escalate': returned an invalid cost",
        kind=InvalidFunctionError,
    ),
}
SUCCESSES = {
    "after failures": Failures(
        (Function("a", [], fail, (), {"until": 3}), Function("b", ["a"], show)),
        {"a": ["error", "error", "ok"], "b": ["ok"]},
        {},
        {"a": (3, {}), "b": ((3, {}),)},
    ),
    "after a timeout": Failures(
        (Function("a", [], block, (), {"until": 2}, timeout=1),),
        {"a": ["timeout", "ok"]},
        {},
        {"a": 2},
    ),
    "at a higher cost": Failures(
        (Function("a", [], fail, (), {"until": 3}, cost={"CPU": 0.5}, retry=escalating(1, 1.5)),),
        {"a": ["error", "error", "ok"]},
        {},
        {"a": (3, {"cpu": 1.5})},
    ),
}


def check_failures(scenario, result, errors):
    """Check what a run left."""
    outcomes = {id_: [a.outcome for a in tried] for id_, tried in result.attempts.items()}
    assert outcomes == scenario.outcomes
    for tried in result.attempts.values():
        assert [a.number for a in tried] == list(range(1, len(tried) + 1))
        for attempt in tried:
            assert (attempt.outcome == "ok") == (attempt.error_type is None)
    assert result.results == scenario.results
    succeeded = {id_ for id_, tried in outcomes.items() if tried[-1] == "ok"}
    assert set(result.allocations) == succeeded
    assert {id_: error.function_id for id_, error in errors.items()} == scenario.errors
    for error in errors.values():
        check_error(scenario, error, result)


def check_error(scenario, error, result):
    assert type(error) is scenario.kind
    assert scenario.text in str(error)
    if scenario.kind is FunctionFailedError:
        assert isinstance(error.__cause__, scenario.cause)
        own = result.attempts.get(error.function_id)
        if own is not None:
            assert error.attempts == own
        assert error.attempts[-1].error_type == scenario.text.split(":")[0]


@everywhere
@pytest.mark.parametrize("scenario", FAILURES.values(), ids=FAILURES)
def test_failures(scenario, run, client):
    """Attempts, errors and what else was done are the same, whatever ran it."""
    dag = dag_of(*scenario.functions, id=("failures", run.__name__))
    result = run(dag, client, on_error="continue", **scenario.options)
    check_failures(scenario, result, result.errors)


@everywhere
@pytest.mark.parametrize("scenario", FAILURES.values(), ids=FAILURES)
def test_failures_are_raised(scenario, run, client):
    """By default the first failure is raised, with what was done before it."""
    dag = dag_of(*scenario.functions, id=("raised", run.__name__))
    with pytest.raises(scenario.kind) as caught:
        run(dag, client, **scenario.options)
    error = caught.value
    assert error.function_id in scenario.errors.values()
    if scenario.kind is FunctionFailedError:
        check_error(scenario, error, error.partial)
        assert error.partial.results.items() <= scenario.results.items()
        assert error.partial.errors[error.function_id] is error


@everywhere
@pytest.mark.parametrize(
    ("policy", "attempts"),
    [(RetryPolicy(1), 2), (RetryPolicy(give_up_on=(ValueError,)), 1), (escalating(1, 2), 3)],
    ids=["retries", "give_up_on", "escalate"],
)
def test_retries_of_a_transform(policy, attempts, run, client):
    """A transform is retried by its consumer's whole policy; it claims nothing."""
    consumer = Function("b", [Argument("a", fail)], show, cost={"cpu": 1}, retry=policy)
    dag = dag_of(Function("a", [], int), consumer, id=("transform", run.__name__))
    result = run(dag, client, on_error="continue")
    tried = result.errors["b"].attempts
    assert [(a.outcome, a.cost) for a in tried] == [("error", {})] * attempts


@everywhere
@pytest.mark.parametrize("scenario", SUCCESSES.values(), ids=SUCCESSES)
def test_success_in_the_end(scenario, run, client):
    """A function that succeeds in a later attempt is done; its attempts are on record."""
    dag = dag_of(*scenario.functions, id=("successes", run.__name__))
    check_failures(scenario, run(dag, client, **scenario.options), {})


# Events


def shape(event):
    """Return what an event says, but for times and names of workers and runs."""
    match event:
        case FunctionPlaced():
            return "placed", event.function, event.attempt
        case AttemptEnded():
            return event.attempt.outcome, event.function, event.attempt.number
        case FunctionEnded():
            return event.state, event.function, event.problem
        case RunStopped():
            return "stopped", event.kind, event.problem
        case RunOpened():
            return "opened", event.dag_id
    return "closed"


CHAIN = (
    Function("a", [], fail, (), {"until": 2}),
    Function("b", ["a"], fail, max_retries=0),
    Function("c", ["b"], show),
    Function("d", ["c"], show),
)
UP_TO_B = [
    ("placed", "a", 1),
    ("error", "a", 1),
    ("placed", "a", 2),
    ("ok", "a", 2),
    ("done", "a", None),
    ("placed", "b", 1),
    ("error", "b", 1),
    ("failed", "b", "no"),
    ("failed", "c", None),
    ("failed", "d", None),
]


@pytest.mark.parametrize("run", [run_execute, run_local], ids=["execute", "execute_local"])
@pytest.mark.parametrize("on_error", ["raise", "continue"])
def test_events(on_error, run, client):
    """The events of a run, and their order, do not depend on what runs it."""
    dag = dag_of(*CHAIN, id="events")
    events = []
    stopped = []
    if on_error == "continue":
        run(dag, client, on_error=on_error, on_event=events.append)
    else:
        stopped = [("stopped", "failed", "function 'b' failed: no")]
        with pytest.raises(FunctionFailedError):
            run(dag, client, on_error=on_error, on_event=events.append)
    assert [*map(shape, events)] == [("opened", dag.id), *UP_TO_B, *stopped, "closed"]
    assert len({event.run_id for event in events}) == 1
    times = [event.at for event in events]
    assert times == sorted(times)


@pytest.mark.parametrize("run", [run_execute, run_local], ids=["execute", "execute_local"])
def test_events_of_a_run_that_is_late(run, client):
    """What had not ended when the time was up is cancelled."""
    dag = dag_of(Function("a", [], block), Function("b", ["a"], show), id="late")
    events = []
    with pytest.raises(RunTimeoutError):
        run(dag, client, timeout=0.3, on_event=events.append)
    stopped = ("stopped", "timeout", "it did not end within 0.3 s")
    # Whether its time was up before anything was placed does not matter.
    shapes = [shape(event) for event in events if not isinstance(event, FunctionPlaced)]
    assert shapes[:2] == [("opened", dag.id), stopped]
    assert set(shapes[2:-1]) == {("cancelled", "a", None), ("cancelled", "b", None)}
    assert shapes[-1] == "closed"


@pytest.mark.parametrize("run", [run_execute, run_local], ids=["execute", "execute_local"])
def test_a_callable_that_fails(run, client, caplog):
    """What on_event raises is logged once, and the run goes on."""
    dag = dag_of(*two(), id="loud")
    assert run(dag, client, on_event=lambda event: 1 / 0).results == AB
    assert sum("on_event" in record.message for record in caplog.records) == 1


# The end of a run


@everywhere
@pytest.mark.parametrize(
    "functions",
    [
        [Function("a", [], block)],
        [Function("a", [], block, timeout=60)],
        [Function("a", [], fail, retry=RetryPolicy(delay=60))],
        [Function("a", [], block, timeout=0.05, retry=RetryPolicy(10**6)), Function("b", [], int)],
    ],
    ids=["running", "running with a limit", "waiting to be tried again", "failing for ever"],
)
@pytest.mark.parametrize("on_error", ["raise", "continue"])
def test_timeout_of_the_run(functions, on_error, run, client):
    """A run that is not done in time is an error, whatever its functions do."""
    dag = dag_of(*functions, Function("after", ["a"], show), id=("late", run.__name__))
    with pytest.raises(RunTimeoutError, match=r"did not end within 0\.2 s") as caught:
        run(dag, client, timeout=0.2, on_error=on_error)
    assert caught.value.dag_id == dag.id


# What is refused


@everywhere
@pytest.mark.parametrize(
    "options",
    [
        {"max_retries": -1},
        {"max_retries": 1.5},
        {"retry": 3},
        {"retry": RetryPolicy(delay=-1)},
        {"max_concurrency": 0},
        {"allocation_strategy": "best"},
        {"results": "some"},
        {"results": [["a"]]},
        {"on_error": "ignore"},
        {"timeout": 0},
        {"placement_timeout": -1},
        {"priority": "high"},
        {"on_event": "print"},
    ],
    ids=str,
)
def test_wrong_options(options, run, client):
    """A wrong option is named before anything runs."""
    calls = []
    (name,) = options
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        run(dag_of(Function("a", [], calls.append, [1])), client, **options)
    assert not calls


@everywhere
@pytest.mark.parametrize(
    ("functions", "options", "error"),
    [
        ([Function("a", ["a"], show)], {}, CyclicDependencyError),
        ([Function("a", [], len)], {}, InvalidFunctionError),
        ([Function("a", [], int)], {"results": ["b"]}, UnknownFunctionError),
        ([Function("a", [], int, type="inline")], {"results": ["a"]}, UnknownFunctionError),
    ],
)
def test_wrong_dags(functions, options, error, run, client):
    """A mistake in the DAG, or in the choice of results, is an error before anything runs."""
    with pytest.raises(error):
        run(dag_of(*functions, Function("z", [], int)), client, **options)
