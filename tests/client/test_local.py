"""Running without a cluster: every row of the design's tables that can be seen there."""

from __future__ import annotations

import asyncio
import bdb
import contextvars
import enum
import operator
import threading
import time
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import pytest

from handoff_dask import (
    Argument,
    CyclicDependencyError,
    Function,
    FunctionFailedError,
    RetryPolicy,
    UnknownFunctionError,
    collocated,
    execute_local,
)
from tests import support

dag_of = partial(support.dag_of, id="d")


def run(*functions, **options):
    return execute_local(dag_of(*functions), **options)


def show(*args, **kwargs):
    """Return what arrived."""
    return (*args, kwargs) if kwargs else args


def give(value):
    """Return code that makes a value out of nothing."""
    return lambda: value


class Flaky:
    """Fails a number of times, then returns how often it was called."""

    def __init__(self, failures, error=ValueError):
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self, *args):
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error(f"call {self.calls}")
        return self.calls


# What is refused


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_retries": -1}, ValueError),
        ({"on_error": "ignore"}, ValueError),
        ({"results": "a"}, ValueError),
        ({"results": ["nobody"]}, UnknownFunctionError),
        ({"results": ["inline"]}, UnknownFunctionError),
    ],
)
def test_options_that_are_wrong(options, error):
    """A mistake in the options is found before anything runs."""
    code = Flaky(0)
    with pytest.raises(error):
        run(Function("a", [], code), Function("inline", [], code, type="inline"), **options)
    assert code.calls == 0


def test_invalid_dag():
    """A DAG that is not valid does not run."""
    code = Flaky(0)
    with pytest.raises(CyclicDependencyError):
        run(Function("a", [], code), Function("b", ["b"], code))
    assert code.calls == 0


# Failures


def test_failure():
    """A failure names the function, its attempts and its cause, and holds what did finish."""
    with pytest.raises(
        FunctionFailedError, match=r"'bad' failed after 4 attempts: .*call 4"
    ) as caught:
        run(
            Function("good", [], give(1)),
            Function("bad", ["good"], Flaky(9, KeyError)),
            Function("after", ["bad"], show),
        )
    error = caught.value
    assert isinstance(error.__cause__, KeyError)
    assert error.__cause__.__traceback__ is not None
    assert [(a.number, a.outcome, a.error_type) for a in error.attempts] == [
        (n, "error", "KeyError") for n in (1, 2, 3, 4)
    ]
    assert error.attempts[1].message == "'call 2'"
    assert error.partial.results == {"good": 1}
    assert error.partial.allocations == {"good": "local"}
    assert error.partial.attempts["bad"] == error.attempts


@pytest.mark.parametrize(
    ("fields", "run_retries", "starts"),
    [
        ({}, 0, 1),
        ({}, 2, 3),
        ({"max_retries": 0}, 5, 1),
        ({"max_retries": 4}, 1, 5),
        ({"retry": RetryPolicy(max_retries=1)}, 5, 2),
        ({"retry": RetryPolicy(max_retries=5), "max_retries": 2}, 0, 3),
    ],
)
def test_starts(fields, run_retries, starts):
    """max_retries=n is at most n+1 starts: one less fails, and that many succeed."""
    failing, passing = Flaky(starts), Flaky(starts - 1)
    with pytest.raises(FunctionFailedError) as caught:
        run(Function("a", [], failing, **fields), max_retries=run_retries)
    assert failing.calls == len(caught.value.attempts) == starts
    result = run(Function("a", [], passing, **fields), max_retries=run_retries)
    assert result.results == {"a": starts}
    assert [a.outcome for a in result.attempts["a"]] == ["error"] * (starts - 1) + ["ok"]


def test_interrupts_are_not_failures():
    """Ctrl-C is not retried and not wrapped."""
    code = Flaky(99, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run(Function("a", [], code), on_error="continue")
    assert code.calls == 1


def test_continue():
    """Functions that do not depend on a failed one run, and errors says who did not and why."""
    never = Flaky(0)
    result = run(
        Function("bad", [], Flaky(9), max_retries=0),
        Function("after", ["bad"], never),
        Function("inline", ["bad"], never, type="inline"),
        Function("after that", ["after", "good"], never),
        Function("through inline", ["inline"], never),
        Function("good", [], give(1)),
        Function("after good", ["good"], show),
        on_error="continue",
    )
    assert result.results == {"good": 1, "after good": (1,)}
    assert set(result.errors) == {"bad", "after", "after that", "through inline"}
    assert {e.function_id for e in result.errors.values()} == {"bad"}
    assert isinstance(result.errors["after that"].__cause__, ValueError)
    assert never.calls == 0
    assert set(result.attempts) == {"bad", "good", "after good"}
    assert set(result.allocations) == {"good", "after good"}


@pytest.mark.parametrize("which", [0, 1], ids=["serializer", "deserializer"])
def test_failing_transform(which):
    """A transform that fails is its consumer's failure, by the consumer's retries."""
    code = Flaky(9)
    transforms = [code, None] if which == 0 else [None, code]
    functions = (
        Function("a", [], give(1)),
        Function("b", [Argument("a", *transforms)], show, max_retries=1),
    )
    with pytest.raises(FunctionFailedError, match="'b'") as caught:
        run(*functions)
    assert code.calls == len(caught.value.attempts) == 2
    result = run(*functions, on_error="continue")
    assert result.results == {"a": 1}
    assert set(result.errors) == {"b"}


def test_failing_inline_function():
    """An inline function fails in its consumer's name and is tried again with it."""
    code = Flaky(1)
    result = run(Function("i", [], code, type="inline"), Function("a", ["i"], show))
    assert result.results == {"a": (2,)}
    assert [a.outcome for a in result.attempts["a"]] == ["error", "ok"]


# Calls


def test_the_seeds_example():
    """The three functions of the design's first example give the answer."""
    result = run(
        Function(id="source", args=[], code=lambda x: x, extra_args=[42]),
        Function(id="transform", args=["source"], code=operator.mul, extra_args=[2]),
        Function(id="sink", args=["transform"], code="The final answer is: {}".format),
    )
    assert result.dag_id == "d"
    assert result.results["sink"] == "The final answer is: 84"
    assert result.allocations["sink"] == "local"


LIST_A, LIST_B = (Argument(id_, argument_inclusion="as_list") for id_ in "ab")


@pytest.mark.parametrize(
    ("args", "fields", "arrived"),
    [
        ([], {}, ()),
        (["b", "a", "b"], {}, (2, 1, 2)),
        (["a"], {"extra_args": [7, [8]]}, (1, 7, [8])),
        (["a"], {"extra_args": [7], "extra_kwargs": {"k": 8}}, (1, 7, {"k": 8})),
        (["b", "a"], {"argument_inclusion": "as_list"}, ([2, 1],)),
        (["b", "a"], {"argument_inclusion": "as_list", "extra_args": [7]}, ([2, 1], 7)),
        ([], {"argument_inclusion": "as_list"}, ([],)),
        ([LIST_A, LIST_B, "a", LIST_B], {}, ([1, 2], 1, [2])),
        ([LIST_A, "b"], {"argument_inclusion": "as_list"}, ([1, 2],)),
    ],
)
@pytest.mark.parametrize("type_", ["regular", "inline"])
def test_arguments(args, fields, arrived, type_):
    """Results arrive in order, then extra_args, then extra_kwargs, in inline functions too."""
    result = run(
        Function("f", args, show, type=type_, **fields),
        Function("out", ["f"], lambda value: value),
        Function("a", [], give(1)),
        Function("b", [], give(2)),
    )
    assert result.results["out"] == arrived


@dataclass(frozen=True)
class Tile:
    x: int
    y: int


class Color(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    "id_", [("tile", 1), 0, None, Tile(1, 2), Color.RED, frozenset("a")], ids=repr
)
@pytest.mark.parametrize("arg", [lambda id_: id_, Argument], ids=["id", "Argument"])
def test_any_hashable_id(id_, arg):
    """Ids of any kind lead to results, as they are and in arguments."""
    result = run(
        Function((id_,), [arg(id_)], show), Function(id_, [], give(5)), results=[id_, (id_,)]
    )
    assert result.results == {id_: 5, (id_,): (5,)}


def test_coroutine_functions():
    """Coroutine code is run to its end, alone, inline and as a transform."""

    async def more(value=0, *_):
        await asyncio.sleep(0)
        return value + 1

    functions = (
        Function("a", [], more),
        Function("i", ["a"], more, type="inline"),
        Function("b", ["i", Argument("a", more, more), Argument("i", more)], show),
    )
    assert run(*functions).results == {"a": 1, "b": (2, 3, 3)}

    async def notebook():
        return run(*functions)

    assert asyncio.run(notebook()).results["b"] == (2, 3, 3)


def test_in_the_calling_thread():
    """A debugger's breakpoint is met in the thread that asked."""
    assert run(Function("a", [], threading.get_ident)).results["a"] == threading.get_ident()


def test_with_a_time_limit():
    """A function with a time limit runs in a thread of its own, with the caller's context."""
    here = contextvars.ContextVar("here", default="elsewhere")
    token = here.set("here")
    try:
        result = run(
            Function("limited", [], threading.get_ident, timeout=60),
            Function("context", [], here.get, timeout=60),
            Function("free", [], threading.get_ident),
        )
    finally:
        here.reset(token)
    assert result.results["limited"] != threading.get_ident() == result.results["free"]
    assert result.results["context"] == "here"
    limited = run(Function("a", [], threading.get_ident), timeout=60)
    assert limited.results["a"] != threading.get_ident()


def test_an_interrupt_in_a_thread():
    """Where Ctrl-C cannot come from, the exception is a failure like any other."""
    code = Flaky(9, KeyboardInterrupt)
    with pytest.raises(FunctionFailedError):
        run(Function("a", [], code, timeout=60, max_retries=1))
    assert code.calls == 2


@pytest.mark.parametrize("timeout", [None, 60])
def test_leaving_the_debugger(timeout):
    """`quit` in pdb ends the run; the function is not tried again."""
    code = Flaky(9, bdb.BdbQuit)
    with pytest.raises(bdb.BdbQuit):
        run(Function("a", [], code, timeout=timeout), on_error="continue")
    assert code.calls == 1


def test_delays():
    """Retries wait for as long as their policy says."""
    pauses = []
    policy = RetryPolicy(max_retries=3, delay=0.01, backoff=3, max_delay=0.05, jitter=0)
    tries = run(Function("a", [], Flaky(3), retry=policy)).attempts["a"]
    for before, after in pairwise(tries):
        pauses.append(after.started - before.stopped)
    assert all(pause >= least for pause, least in zip(pauses, [0.01, 0.03, 0.05], strict=True))


# Inline functions


def test_inline_is_evaluated_in_every_user():
    """Each function that uses an inline one evaluates it again; one that names it twice, once."""
    code = Flaky(0)
    result = run(
        Function("i", [], code, type="inline"),
        Function("a", ["i"], show),
        Function("b", ["i", "a", "i"], show),
    )
    assert result.results == {"a": (1,), "b": (2, (1,), 2)}
    assert code.calls == 2


def test_inline_within_inline():
    """Inline functions depend on regular and inline ones, each its own evaluation of them."""
    code = Flaky(0)
    result = run(
        Function("outer", ["i", "middle", "r"], show),
        Function("middle", ["r", "i"], show, type="inline", extra_args=["x"]),
        Function("i", [], code, type="inline"),
        Function("r", [], give("r")),
    )
    assert result.results["outer"] == (1, ("r", 2, "x"), "r")


def test_inline_is_absent():
    """Inline functions have no result, allocation or attempts; unused ones are not called."""
    code = Flaky(0)
    result = run(
        Function("i", [], give(1), type="inline"),
        Function("unused", [], code, type="inline"),
        Function("a", ["i"], show),
    )
    for mapping in (result.results, result.allocations, result.attempts):
        assert set(mapping) == {"a"}
    assert set(result.functions) == {"i", "unused", "a"}
    assert result.functions["i"].results is None
    assert code.calls == 0


# Transforms


def test_transforms():
    """The serializer comes first; both get the data, source, target and their static arguments."""
    result = run(
        Function("a", [], give(1)),
        Function("b", [Argument("a", (show, [7, 8]), show), "a"], show),
    )
    assert result.results["b"] == (((1, "local", "local", 7, 8), "local", "local"), 1)


@pytest.mark.parametrize("producer", ["regular", "inline"])
@pytest.mark.parametrize("consumer", ["regular", "inline"])
def test_transforms_of_and_in_inline_functions(producer, consumer):
    """Transforms do the same wherever producer and consumer are evaluated."""
    result = run(
        Function("a", [], give(1), type=producer),
        Function(
            "b", [Argument("a", (show, ["s"]), (show, ["d"]), "as_list")], show, type=consumer
        ),
        Function("out", ["b"], lambda value: value),
    )
    assert result.results["out"] == ([((1, "local", "local", "s"), "local", "local", "d")],)


# Results


FAN = (
    Function("a", [], give(1), cost={"gpu": 10**9}, node="nowhere"),
    Function("b", ["a"], show, node=collocated("a")),
    Function("c", ["a"], show),
)


@pytest.mark.parametrize(
    ("results", "kept"),
    [("all", "abc"), ("sinks", "bc"), (["a"], "a"), (["c", "a"], "ca"), ([], "")],
)
def test_results(results, kept):
    """Only the results asked for are kept, and all functions run; costs and pins do not matter."""
    result = run(*FAN, results=results)
    assert set(result.results) == set(kept)
    assert result.allocations == {"a": "local", "b": "local", "c": "local"}


def test_results_storage():
    """The functions of the result hold their results; those of the DAG do not."""
    result = run(*FAN, results=["b"])
    assert result.functions["b"].results == (1,)
    assert result.functions["a"].results is None
    assert result.functions["a"].node == "local"
    assert FAN[1].results is None


def test_attempts():
    """Each start is recorded with its times in order and what it would have claimed."""
    result = run(Function("a", [], int, cost={"CPU": 2, "gpu": 0}), Function("b", ["a"], show))
    (a,), (b,) = result.attempts["a"], result.attempts["b"]
    assert a.cost == {"cpu": 2}
    assert (a.number, a.worker, a.outcome, a.message) == (1, "local", "ok", None)
    assert a.started <= a.stopped <= b.started <= b.stopped
    assert result.makespan == b.stopped - a.started


def test_long_chain():
    """A chain longer than Python's stack runs."""
    n = 5_000
    chain = [Function(0, [], int), *(Function(i, [i - 1], operator.add, [1]) for i in range(1, n))]
    assert run(*reversed(chain), results="sinks").results == {n - 1: n - 1}


def test_empty_dag():
    """Nothing to do is done at once."""
    assert (run().results, run().errors, run().makespan) == ({}, {}, 0)


@pytest.mark.parametrize("timeout", [None, 60])
def test_what_attempts_use(timeout):
    """Processor time and the size of the result are measured, also in a thread of their own."""

    def spin():
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass
        return b"x" * 1000

    dag = dag_of(Function("f", [], spin, timeout=timeout))
    cpu_time, peak_memory, result_bytes = execute_local(dag).attempts["f"][0].usage
    assert 0.02 <= cpu_time < 10
    assert peak_memory is None
    assert 1000 <= result_bytes < 1100
