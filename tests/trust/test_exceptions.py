"""Whatever a function raises is its failure: it arrives quickly and unchanged."""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import copy
import dataclasses
import pickle
import sys
import threading
import traceback
from fractions import Fraction

import pytest
from distributed import Client, Reschedule
from distributed.client import FutureCancelledError
from distributed.comm import CommClosedError
from distributed.protocol import pickle as dask_pickle
from distributed.utils_test import gen_cluster

from handoff_dask import (
    Argument,
    Function,
    FunctionFailedError,
    InvalidFunctionError,
    RetryPolicy,
    StandInError,
    execute,
    execute_local,
    packed_errors,
)
from handoff_dask.packed_errors import packed
from handoff_dask.standins import TEXT, text_of
from tests.support import assert_clean, dag_of

#: Exceptions that functions raise, and keep.
KEPT = []


def throw(make):
    raise make()


async def throw_later(make):
    raise make()


@gen_cluster(client=True)
async def failures(c, s, a, b, makers, code=throw, retries=0):
    """Return the failures of functions that raise what the makers make."""
    dag = dag_of(*(Function(id=n, args=[], code=code, extra_args=[m]) for n, m in makers.items()))
    result = await execute(dag, on_error="continue", max_retries=retries)
    await assert_clean(s, a, b)
    return result.errors


def causes(**makers):
    return {name: error.__cause__ for name, error in failures(makers=makers).items()}


# Depth and length


def endless(n=0):
    return endless(n + 1)


def deep(n):
    if n:
        deep(n - 1)
    raise KeyError("at the bottom")


def chained(n, how):
    error = None
    for i in range(n):
        new = ValueError(i)
        setattr(new, how, error)
        error = new
    return error


def circular(how):
    first, second = ValueError("first"), ValueError("second")
    setattr(first, how, second)
    setattr(second, how, first)
    return first


def chain_of(error):
    chain = []
    while error is not None:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain


def test_deep_stacks():
    """The first and the last frames of a deep stack arrive, and how many were left out."""
    arrived = causes(endless=endless, deep=lambda: deep(400), far=lambda: deep(900))
    assert type(arrived["endless"]) is RecursionError
    assert type(arrived["deep"]) is type(arrived["far"]) is KeyError
    for error in arrived.values():
        stack = traceback.extract_tb(error.__traceback__)
        assert stack[0].name == "throw"
        assert stack[-1].name in ("endless", "deep")
        assert "calls left out" in stack[20].filename
        assert len(stack) == 41


@pytest.mark.parametrize("how", ["__cause__", "__context__"])
def test_long_chains(how):
    """Both ends of a long chain of exceptions arrive."""
    arrived = causes(
        short=lambda: chained(5, how),
        long=lambda: chained(1500, how),
        longer=lambda: chained(20_000, how),
    )
    assert [error.args for error in chain_of(arrived["short"])] == [(4,), (3,), (2,), (1,), (0,)]
    for name, n in (("long", 1500), ("longer", 20_000)):
        chain = chain_of(arrived[name])
        assert [e.args[0] for e in chain[:10]] == list(range(n - 1, n - 11, -1))
        assert str(chain[10]) == f"{n - 20:,} exceptions are left out here"
        assert [e.args[0] for e in chain[11:]] == list(range(9, -1, -1))


@pytest.mark.parametrize("how", ["__cause__", "__context__"])
def test_circular_chains(how):
    """A circular chain is cut."""
    (error,) = causes(circular=lambda: circular(how)).values()
    assert [e.args for e in chain_of(error)] == [("first",), ("second",)]


ExceptionGroup = getattr(builtins, "ExceptionGroup", None)


@pytest.mark.skipif(ExceptionGroup is None, reason="Python has none")
def test_groups():
    """Groups arrive as groups, with the causes and the notes of their exceptions."""

    def wide():
        return ExceptionGroup("wide", [ValueError(i) for i in range(5000)])

    def nested():
        error = chained(2, "__cause__")
        error.add_note("a note")
        for i in range(2000):
            error = ExceptionGroup(str(i), [error])
        return error

    def few():
        error = chained(2, "__cause__")
        error.add_note("a note")
        return ExceptionGroup("few", [error, KeyError("x")])

    arrived = causes(wide=wide, nested=nested, few=few)
    assert {type(error) for error in arrived.values()} == {ExceptionGroup}
    assert len(arrived["wide"].exceptions) == 5000
    assert [e.args for e in arrived["wide"].exceptions[:3]] == [(0,), (1,), (2,)]
    assert arrived["nested"].exceptions[0].message == "1998"
    first, second = arrived["few"].exceptions
    assert first.__cause__.args == (0,)
    assert first.__notes__ == ["a note"]
    assert second.args == ("x",)
    for error in arrived.values():  # printed without a problem
        assert traceback.format_exception(error)


# Size


class Wordy(Exception):
    def __str__(self):
        return "x" * 50_000_000


def with_data(size):
    error = OSError("with data")
    error.data = b"x" * size
    return error


def test_large_exceptions():
    """An exception that is too large arrives as a stand-in, with the beginning of its text."""
    size = 50_000_000
    arrived = causes(
        message=lambda: ValueError("x" * size),
        attribute=lambda: with_data(size),
        arguments=lambda: ValueError(*range(5_000_000)),
        small=lambda: with_data(100_000),
        wordy=Wordy,
    )
    assert type(arrived["message"]) is StandInError
    assert arrived["message"].type_name == "ValueError"
    assert arrived["message"].message == f"{'x' * TEXT}... ({size:,} characters)"
    assert str(arrived["attribute"]) == "OSError: with data"
    assert arrived["arguments"].message.startswith("(0, 1, 2, 3")
    assert arrived["small"].data == b"x" * 100_000
    assert type(arrived["wordy"]) is Wordy
    for name in ("message", "attribute", "arguments"):
        assert traceback.extract_tb(arrived[name].__traceback__)[-1].name == "throw"
        assert "in throw" in arrived[name].traceback_text


# Pickling and printing


class Strange(Exception):
    """Has strange methods."""

    def __init__(self, reduce=None, text=None):
        super().__init__("strange")
        self.reduce, self.text = reduce, text

    def __reduce__(self):
        return super().__reduce__() if self.reduce is None else self.reduce(self)

    def __str__(self):
        return "strange" if self.text is None else self.text(self)

    __repr__ = __str__


def leave(*_):
    raise SystemExit


def again(error):
    return error.__reduce__()


@pytest.mark.parametrize(
    "reduce",
    [
        leave,
        again,
        lambda _: 42,
        lambda _: "nowhere",
        lambda _: (int, ("3",)),
        lambda _: (SystemExit, ()),
        lambda _: (leave, ()),
    ],
)
def test_strange_ways_to_pickle(reduce):
    """Whatever __reduce__ does: a stand-in with type, text and the user's frames arrives."""
    (error,) = causes(strange=lambda: Strange(reduce)).values()
    assert type(error) is StandInError
    assert str(error) == "Strange: strange"
    assert traceback.extract_tb(error.__traceback__)[-1].name == "throw"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (leave, "(no text: str() raised SystemExit)"),
        (str, "(no text: str() raised RecursionError)"),
        (lambda _: 3, "(no text: str() raised TypeError)"),
        (lambda _: "\ud800", "\\ud800"),
        (lambda _: type("Text", (str,), {})("text"), "text"),
    ],
)
def test_strange_texts(text, shown):
    """Whatever __str__ does: the error has a text, which can be printed and sent."""
    (error,) = failures(makers={"strange": lambda: Strange(text=text)}).values()
    assert error.problem == f"Strange: {shown}"
    assert error.attempts[0].message == shown
    assert type(error.attempts[0].message) is str


GO_ON = threading.Event()


class Closed(Exception):
    """Raises whenever an attribute is read."""

    def __getattribute__(self, name):
        raise RuntimeError(name)


class Classless(Exception):
    """Raises when its class is asked for, as ``isinstance`` does."""

    @property
    def __class__(self):
        raise RuntimeError("no class")


def test_exceptions_without_a_class():
    """An exception that ``isinstance`` cannot judge arrives; the run has its result."""
    arrived = causes(classless=lambda: Classless("no"))["classless"]
    assert (type(arrived), str(arrived)) == (Classless, "no")


def test_exceptions_that_cannot_be_looked_into():
    """An exception without readable attributes arrives with type, text and the user's frames."""
    arrived = causes(
        closed=lambda: Closed("closed"), long=lambda: type("E" * 10**6, (Exception,), {})()
    )
    assert str(arrived["closed"]) == "Closed: closed"
    assert traceback.extract_tb(arrived["closed"].__traceback__)[-1].name == "throw"
    assert type(arrived["long"]).__name__ == "E" * 10**6


def hang(*_):
    GO_ON.wait(60)


def test_user_code_that_hangs(monkeypatch):
    """An exception whose own code does not return is not waited for."""
    monkeypatch.setattr(packed_errors, "PATIENCE", 0.3)

    @gen_cluster(client=True)
    async def run(c, s, a, b):
        makers = {"reduce": lambda: Strange(hang), "text": lambda: Strange(text=hang)}
        result = await execute(
            dag_of(
                *(Function(id=n, args=[], code=throw, extra_args=[m]) for n, m in makers.items())
            ),
            on_error="continue",
            max_retries=0,
        )
        assert not GO_ON.is_set()
        GO_ON.set()
        return result.errors

    errors = run()
    assert str(errors["reduce"].__cause__) == "Strange: strange"
    assert str(errors["text"].__cause__) == "Strange: (its text is not available)"


class Frozen(Exception):
    def __setattr__(self, name, value):
        if name.startswith("__"):
            raise AttributeError(name)
        super().__setattr__(name, value)


@dataclasses.dataclass(frozen=True)
class Icy(Exception):
    code: int


class Demanding(Exception):
    """Its __init__ takes other arguments than its args."""

    def __init__(self, code, *, reason):
        super().__init__(f"{code} because of {reason}")
        self.code = code


def holding(what, error=None):
    error = error or RuntimeError("holding")
    error.what = what
    return error


def holding_traceback():
    try:
        deep(900)
    except KeyError as error:
        return holding(error.__traceback__)


def holding_itself():
    error = RuntimeError("holding")
    error.args = ("holding", error)
    return error


def test_what_exceptions_hold():
    """Attributes that can be pickled arrive with the exception; otherwise a stand-in arrives."""

    def local():
        class Local(Exception):
            pass

        return Local("local")

    arrived = causes(
        lock=lambda: holding(threading.Lock()),
        generator=lambda: holding(i for i in ()),
        future=lambda: holding(concurrent.futures.Future()),
        frame=lambda: holding(sys._getframe()),
        frozen=lambda: Frozen("frozen"),
        icy=lambda: Icy(3),
        traceback=holding_traceback,
        error=lambda: holding(chained(1500, "__cause__")),
        itself=holding_itself,
        local=local,
        demanding=lambda: Demanding(3, reason="this"),
        file=lambda: FileNotFoundError(2, "No such file", "name"),
        text=lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "wrong"),
    )
    for name in ("lock", "generator", "future", "frame"):
        assert str(arrived[name]) == "RuntimeError: holding"
    assert str(arrived["frozen"]) == "Frozen: frozen"
    assert str(arrived["icy"]) == "Icy: 3"
    assert len(traceback.extract_tb(arrived["traceback"].what)) == 41
    assert arrived["error"].what.args == (1499,)
    assert type(arrived["itself"]) is RuntimeError
    assert type(arrived["local"]).__name__ == "Local"
    assert type(arrived["demanding"]) is Demanding
    assert str(arrived["demanding"]) == "3 because of this"
    assert arrived["demanding"].code == 3
    assert arrived["file"].filename == "name"
    assert str(arrived["text"]).startswith("'utf-8' codec can't decode byte 0xff")


# Types that mean something to others


SIGNALS = {
    "cancelled": concurrent.futures.CancelledError,
    "future": lambda: FutureCancelledError("key", "reason"),
    "task": asyncio.CancelledError,
    "timeout": lambda: TimeoutError("mine"),
    "slow": asyncio.TimeoutError,
    "comm": lambda: CommClosedError("closed"),
    "connection": lambda: ConnectionResetError("reset"),
    "reschedule": Reschedule,
    "interrupt": KeyboardInterrupt,
    "exit": lambda: SystemExit(3),
    "generator": GeneratorExit,
    "stop": lambda: StopIteration(1),
    "memory": MemoryError,
}


@pytest.mark.parametrize("code", [throw, throw_later])
def test_an_exception_is_no_signal(code):
    """Whatever a function raises is its failure, retried and reported, whatever its type means."""
    errors = failures(makers=SIGNALS, code=code, retries=1)
    assert errors.keys() == SIGNALS.keys()
    for name, error in errors.items():
        assert type(error) is FunctionFailedError
        made = SIGNALS[name]()
        if code is throw_later and isinstance(made, StopIteration):
            made = RuntimeError("coroutine raised StopIteration")
        cause = error.__cause__
        if isinstance(made, Exception):
            assert type(cause) is type(made)
            assert str(cause) == str(made)
        else:  # would end more than a function when raised
            assert type(cause) is StandInError
            assert str(cause) == f"{type(made).__name__}: {made}"
        for attempt in error.attempts:
            assert (attempt.outcome, attempt.error_type) == ("error", type(made).__name__)
        assert len(error.attempts) == 2


@gen_cluster(client=True)
async def test_policies_judge_whatever_is_raised(c, s, a, b):
    """A retry policy judges every type."""
    cases = {
        "given up": RetryPolicy(max_retries=2, give_up_on=(asyncio.CancelledError,)),
        "others": RetryPolicy(max_retries=2, give_up_on=(KeyError,)),
        "named": RetryPolicy(max_retries=2, retry_on=(asyncio.CancelledError,)),
    }
    maker = [asyncio.CancelledError]
    dag = dag_of(
        *(Function(id=n, args=[], code=throw, extra_args=maker, retry=p) for n, p in cases.items())
    )
    counts = {}
    for name, run in (("cluster", execute(dag, on_error="continue")), ("local", None)):
        result = await run if run else execute_local(dag, on_error="continue")
        counts[name] = {id_: len(attempts) for id_, attempts in result.attempts.items()}
    assert counts["cluster"] == counts["local"] == {"given up": 1, "others": 3, "named": 3}


def test_without_a_cluster():
    """The same goes for execute_local; only Ctrl-C stops it."""
    for name, make in SIGNALS.items():
        dag = dag_of(Function(id=name, args=[], code=throw, extra_args=[make], max_retries=0))
        if name == "interrupt":
            with pytest.raises(KeyboardInterrupt):
                execute_local(dag)
            continue
        with pytest.raises(FunctionFailedError) as caught:
            execute_local(dag)
        assert type(caught.value.__cause__) is type(make())


# Around the function


class Unasked(type):
    def __instancecheck__(cls, instance):
        raise SystemExit


class Odd(Exception, metaclass=Unasked):
    pass


@gen_cluster(client=True)
async def test_transforms(c, s, a, b):
    """The failure of a transform is the failure of its function."""

    def endless_transform(data, source, target):
        return endless()

    for transforms in ((endless_transform, None), (None, endless_transform)):
        dag = dag_of(
            Function(id="a", args=[], code=int),
            Function(id="b", args=[Argument("a", *transforms)], code=abs),
        )
        result = await execute(dag, on_error="continue", max_retries=0)
        assert type(result.errors["b"].__cause__) is RecursionError


@pytest.mark.parametrize(
    ("policy", "match"),
    [
        (RetryPolicy(give_up_on=(Odd,)), "'retry': cannot be evaluated: SystemExit"),
        (RetryPolicy(escalate=leave), "'retry.escalate': raised SystemExit"),
        (RetryPolicy(escalate=lambda *_: endless()), "'retry.escalate': raised RecursionError"),
    ],
)
def test_policies_that_fail(policy, match):
    """A policy that cannot be evaluated is an error that names it."""

    @gen_cluster(client=True)
    async def run(c, s, a, b):
        dag = dag_of(Function(id="f", args=[], code=throw, extra_args=[KeyError], retry=policy))
        with pytest.raises(InvalidFunctionError, match=match):
            await execute(dag)

    run()


@gen_cluster(client=True)
async def test_numbers_of_a_policy(c, s, a, b):
    """Whatever kind of numbers an escalation answers with, the next attempt costs that."""
    policy = RetryPolicy(max_retries=1, escalate=lambda *_: {"memory": Fraction(3, 2)})
    dag = dag_of(Function(id="f", args=[], code=throw, extra_args=[KeyError], retry=policy))
    result = await execute(dag, on_error="continue")
    assert [attempt.cost for attempt in result.attempts["f"]] == [{}, {"memory": 1.5}]


class Unopened:
    """Cannot be unpickled."""

    def __init__(self, how):
        self.how = how

    def __reduce__(self):
        return self.how, ()


def test_arguments_that_cannot_be_opened():
    """An error before the function starts is its failure, too."""
    arrived = failures(makers={"endless": Unopened(endless), "leave": Unopened(leave)})
    assert type(arrived["endless"].__cause__) is RecursionError
    assert str(arrived["leave"].__cause__) == "SystemExit: "


# What the user holds


def keep(make):
    """Raise the same exception at each attempt."""
    if not KEPT:
        KEPT.append(make())
    raise KEPT[0]


class Locked(Exception):
    def __init__(self, text="locked"):
        super().__init__(text)
        self.lock = threading.Lock()


def reasoned():
    error, cause, context = ValueError("no"), Locked(), Locked("context")
    error.__context__ = context
    error.__cause__ = cause
    cause.__context__ = context
    return error


def links(error):
    return [error, error.__cause__, error.__context__, error.__cause__.__context__]


@gen_cluster(client=True)
async def test_an_exception_that_a_function_keeps(c, s, a, b):
    """Sending an exception does not change the one that the function keeps."""
    KEPT.append(reasoned())
    before = links(KEPT[0])
    try:
        dag = dag_of(Function(id="f", args=[], code=keep, extra_args=[reasoned]))
        result = await execute(dag, on_error="continue", max_retries=2)
        assert all(x is y for x, y in zip(links(KEPT[0]), before, strict=True))
    finally:
        KEPT.clear()
    cause = result.errors["f"].__cause__
    assert type(cause) is ValueError
    assert str(cause.__cause__) == "Locked: locked"


@pytest.mark.parametrize(
    "journey",
    [
        lambda error: pickle.loads(pickle.dumps(error)),
        lambda error: dask_pickle.loads(dask_pickle.dumps(error)),
        lambda error: pickle.loads(pickle.dumps(packed(error))),
        copy.copy,
    ],
    ids=["pickle", "dask", "packed", "copy"],
)
def test_a_failure_that_the_user_holds(journey):
    """Pickling a failure changes neither it nor its causes."""
    dag = dag_of(Function(id="f", args=[], code=throw, extra_args=[reasoned], max_retries=0))
    with pytest.raises(FunctionFailedError) as caught:
        execute_local(dag)
    error = caught.value
    before, place = links(error.__cause__), error.__cause__.__traceback__
    arrived = journey(error)
    assert all(x is y for x, y in zip(links(error.__cause__), before, strict=True))
    assert error.__cause__.__traceback__ is place
    assert str(arrived) == str(error)
    assert type(arrived.__cause__) is ValueError
    assert str(arrived.__cause__.__cause__) == "Locked: locked"


def test_a_failure_of_a_nested_run():
    """A failure of a run inside of a function arrives with its own cause and partial result."""

    def inner():
        execute_local(
            dag_of(
                Function(id="done", args=[], code=int),
                Function(id="failed", args=[], code=throw, extra_args=[reasoned], max_retries=0),
            )
        )

    (error,) = causes(inner=lambda: inner()).values()
    assert type(error) is FunctionFailedError
    assert error.function_id == "failed"
    assert error.partial.results == {"done": 0}
    assert type(error.__cause__) is ValueError
    assert str(error.__cause__.__cause__) == "Locked: locked"


def test_a_partial_result_that_is_too_large():
    """The failure of a nested run arrives as such, without the results if they are too large."""
    error = FunctionFailedError("f", (), "no")
    error.partial = b"x" * 50_000_000
    arrived = pickle.loads(pickle.dumps(packed(error)))
    assert type(arrived) is FunctionFailedError
    assert arrived.partial is None


# On real processes


def exit_when_opened():
    return Strange(lambda _: (sys.exit, ()))


def test_between_processes():
    """The same with separate processes: deep stacks, long chains and strange types arrive."""
    makers = {
        "endless": endless,
        "chain": lambda: chained(1500, "__cause__"),
        "strange": exit_when_opened,
        "large": lambda: with_data(50_000_000),
    }
    with Client(n_workers=1, threads_per_worker=1, dashboard_address=":0") as client:
        functions = (Function(id=n, args=[], code=throw, extra_args=[m]) for n, m in makers.items())
        result = execute(dag_of(*functions), client=client, on_error="continue", max_retries=0)
        for name, error in result.errors.items():
            assert type(error) is FunctionFailedError, name
        run_error = pytest.raises(FunctionFailedError)
        with run_error as caught:
            execute(dag_of(Function(id="f", args=[], code=endless, max_retries=0)), client=client)
    assert result.errors.keys() == makers.keys()
    assert type(caught.value.__cause__) is RecursionError


def test_texts():
    """An exception's text is shortened."""
    assert text_of(ValueError("short")) == "short"
    assert text_of(ValueError("x" * 3000)) == f"{'x' * TEXT}... (3,000 characters)"
