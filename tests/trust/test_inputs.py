"""Values that cannot reach their consumer are reported soon, by name; others are unaffected."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import pytest
from distributed import Event, Future, Status, get_worker
from distributed.comm.tcp import _add_frames_header
from distributed.comm.utils import to_frames
from distributed.protocol import to_serialize
from distributed.utils_test import gen_cluster

from handoff_dask import (
    Argument,
    Function,
    FunctionFailedError,
    TransferError,
    collocated,
    submit,
)
from handoff_dask.client.connection import install
from handoff_dask.scheduler.inputs import Progress
from tests.gate import until
from tests.support import assert_clean, dag_of, where

ON_TWO = [("127.0.0.1", 2, {"resources": {"cpu": 2, "ssd": 1}})] * 2
ON_THREE = [*ON_TWO, ("127.0.0.1", 2, {"resources": {"cpu": 2}})]
on_cluster = partial(gen_cluster, nthreads=ON_TWO, client=True)
impatient = partial(on_cluster, config={"handoff.fetch-timeout": "300ms"})


def raise_(error):
    raise error


class Unpicklable:
    def __reduce__(self):
        raise FileNotFoundError("no such template")


class FarDown:
    def __reduce__(self):
        return self.descend(30)

    def descend(self, depth):
        if depth:
            return self.descend_further(depth)
        raise FileNotFoundError("no such template")

    def descend_further(self, depth):
        return self.descend(depth - 1)


class Garbage:
    def __reduce__(self):
        return 7


class Unopenable:
    """Pickles, and raises an error when it is unpickled."""

    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        return raise_, (self.error,)


class Large(Unopenable):
    """Above the size from which Dask opens values in a thread."""

    def __sizeof__(self):
        return 100_000_000


def numbers():
    yield from range(3)


def unopenable(error, type_=Unopenable):
    return lambda: type_(error)


UNUSABLE = {
    "a generator": (numbers, "generator", "cannot be sent", "TypeError: cannot pickle 'generator'"),
    "a lock": (threading.Lock, "lock", "cannot be sent", "TypeError: cannot pickle"),
    "in a list": (lambda: [1, numbers()], "list", "cannot be sent", "TypeError: cannot pickle"),
    "pickling raises": (Unpicklable, "Unpicklable", "cannot be sent", "no such template"),
    "pickling raises far down": (FarDown, "FarDown", "cannot be sent", "no such template"),
    "pickling returns garbage": (Garbage, "Garbage", "cannot be sent", "__reduce__"),
    "no module": (unopenable(ImportError("no tf")), "Unopenable", "cannot be opened", "ImportErr"),
    "no file": (unopenable(FileNotFoundError("x.txt")), "Unopenable", "cannot be opened", "x.txt"),
    "no connection": (unopenable(OSError("refused")), "Unopenable", "cannot be opened", "refused"),
    "time out": (unopenable(TimeoutError("slow")), "Unopenable", "cannot be opened", "slow"),
    "end of file": (unopenable(EOFError("cut")), "Unopenable", "cannot be opened", "cut"),
    "recursion": (unopenable(RecursionError("deep")), "Unopenable", "cannot be opened", "deep"),
    "memory": (unopenable(MemoryError("full")), "Unopenable", "cannot be opened", "full"),
    "large": (unopenable(OSError("big"), Large), "Large", "cannot be opened", "big"),
}


def pair(name, make, a, b):
    """Return a function on one worker, and one on another that needs its result."""
    return (
        Function(id=f"make {name}", args=[], code=make, node=a.address, cost={"cpu": 0.1}),
        Function(id=name, args=[f"make {name}"], code=type, node=b.address, cost={"cpu": 0.1}),
    )


# Values that cannot be sent or opened


@on_cluster()
async def test_unusable_values(c, s, a, b):
    """Each consumer fails without a start, and names the producer, the type and the reason."""
    run = await submit(
        dag_of(
            *(f for name, (make, *_) in UNUSABLE.items() for f in pair(name, make, a, b)),
            *pair("sound", int, a, b),
        ),
        results=[*UNUSABLE, "sound"],
        on_error="continue",
    )
    result = await run.result(10)
    assert result.results["sound"] is int
    assert result.errors.keys() == UNUSABLE.keys()
    for name, (_, type_name, phase, why) in UNUSABLE.items():
        error, cause = result.errors[name], result.errors[name].__cause__
        assert str(error).startswith(f"function '{name}' failed: TransferError: the result of")
        for text in (f"'make {name}'", type_name, phase, why):
            assert text in str(error)
        assert isinstance(cause, TransferError)
        assert cause.producer == f"make {name}"
        assert cause.type_name.endswith(type_name)
        assert error.attempts == ()
        assert name not in result.attempts
    del run, result, error, cause
    await assert_clean(s, a, b)


@pytest.mark.parametrize("max_retries", [0, 5])
def test_ends_the_run(max_retries):
    """The run ends with the consumer's failure, whatever its retries."""

    @on_cluster()
    async def test(c, s, a, b):
        run = await submit(dag_of(*pair("use", numbers, a, b)), max_retries=max_retries)
        with pytest.raises(FunctionFailedError, match="the result of function 'make use'") as e:
            await run.result(10)
        assert (e.value.function_id, e.value.attempts) == ("use", ())
        assert set(e.value.partial.attempts) == {"make use"}
        # The connection that the value came on is as good as new.
        assert await c.submit(len, c.submit(bytes, 9, workers=a.address), workers=b.address) == 9
        del run, e
        await assert_clean(s, a, b)

    test()


@gen_cluster(nthreads=ON_THREE, client=True)
async def test_several_consumers(c, s, a, b, d):
    """Each consumer of one value fails by itself; the one beside its producer succeeds."""
    makes = Function(id=("m", 1), args=[], code=numbers, node=a.address)
    uses = [
        Function(id=i, args=[("m", 1)], code=list, node=w.address) for i, w in enumerate((b, b, d))
    ]
    beside = Function(id="beside", args=[("m", 1)], code=type, node=collocated(("m", 1)))
    run = await submit(
        dag_of(makes, beside, *uses), results=["beside", 0, 1, 2], on_error="continue"
    )
    result = await run.result(10)
    assert result.results["beside"].__name__ == "generator"
    assert result.errors.keys() == {0, 1, 2}
    assert {error.__cause__.producer for error in result.errors.values()} == {("m", 1)}
    del run, result
    await assert_clean(s, a, b, d)


OPENED = []


def open_at_last():
    OPENED.append(1)
    if len(OPENED) == 1:
        raise MemoryError("for a moment")
    return "mended"


class Fickle:
    def __reduce__(self):
        return open_at_last, ()


@on_cluster()
async def test_a_mended_value(c, s, a, b):
    """A value that arrives at the second try is used."""
    OPENED.clear()
    run = await submit(dag_of(*pair("use", Fickle, a, b)), results=["use"])
    result = await run.result(10)
    assert result.results["use"] is str
    del run
    await assert_clean(s, a, b)


@on_cluster()
async def test_serialized_values(c, s, a, b):
    """The result of a serializer must be sendable; otherwise the error names the consumer."""
    make_numbers = Argument("make", lambda *_: numbers(), lambda data, *_: data)
    run = await submit(
        dag_of(
            Function(id="make", args=[], code=int, node=a.address),
            Function(id="use", args=[make_numbers], code=type, node=b.address),
        ),
        on_error="continue",
    )
    result = await run.result(10)
    error = result.errors["use"]
    assert "serialized result of function 'make' (generator) cannot be sent" in str(error)
    assert error.__cause__.producer == "make"
    del run, result, error
    await assert_clean(s, a, b)


@on_cluster(worker_kwargs={"validate": False})
async def test_plain_tasks(c, s, a, b):
    """A plain task that waits for such a value is left to Dask; functions fail all the same."""
    run = await submit(
        dag_of(
            *pair("use", numbers, a, b),
            Function(id="gate", args=[], code=lambda: Event("go").wait(), node=a.address),
            Function(id="late", args=["make use", "gate"], code=type, node=b.address),
        ),
        results=["use", "late"],
        on_error="continue",
    )
    await until(lambda: a.data)
    made = Future(next(iter(a.data)), c)
    plain = c.submit(type, made, workers=b.address)
    while run.futures["use"].status != "error":
        await asyncio.sleep(0.01)
    await until(lambda: {ts.state for ts in b.state.tasks.values()} == {"waiting", "error"})
    await Event("go").set()
    assert (await run.result(10)).errors.keys() == {"use", "late"}
    assert plain.status == "pending"
    assert await c.submit(next, made, workers=a.address) == 0
    await plain.cancel()
    del run, plain, made
    await assert_clean(s, a, b)


@on_cluster(nthreads=[("127.0.0.1", 16)] * 2)
async def test_in_one_message(c, s, a, b):
    """Good values in the same message as bad ones arrive, for the run and for plain tasks."""
    a.handlers["get_data"] = refuse
    plain = c.submit(len, c.submit(bytes, 7, workers=a.address), workers=b.address)
    names = ["a generator", "no module", *range(8)]
    makes = {name: UNUSABLE[name][0] for name in names[:2]}
    run = await submit(
        dag_of(*(f for name in names for f in pair(name, makes.get(name, int), a, b))),
        results=names,
        on_error="continue",
    )
    await until(lambda: [ts.state for ts in b.state.tasks.values()].count("waiting") == 11)
    a.handlers["get_data"] = a.get_data
    result = await run.result(10)
    assert result.results == dict.fromkeys(range(8), int)
    assert result.errors.keys() == makes.keys()
    assert await plain == 7
    del run, result, plain
    await assert_clean(s, a, b)


async def refuse(*args, **kwargs):
    return {"status": "busy"}


# Values that make no progress


class Trickle:
    """A worker's answer to requests for data: it sends one more piece for each look at it."""

    def __init__(self, sender, receiver, pieces):
        self.sender = sender
        self.pieces = pieces
        self.looks = asyncio.Semaphore(0)
        self.look = receiver.handlers["handoff_transfers"]
        sender.handlers["get_data"] = self.get_data
        receiver.handlers["handoff_transfers"] = self.transfers

    async def transfers(self, keys):
        answer = await self.look(keys)
        self.looks.release()
        return answer

    async def get_data(self, comm, keys, who=None, serializers=None):
        data = {key: to_serialize(self.sender.data[key]) for key in keys}
        frames, *_ = _add_frames_header(await to_frames({"status": "OK", "data": data}))
        message = b"".join(map(bytes, frames))
        size = len(message) // self.pieces + 1
        for start in range(0, len(message), size):
            await self.looks.acquire()
            await comm.stream.write(message[start : start + size])
        assert await comm.read() == "OK"
        return Status.dont_reply


@impatient()
async def test_a_slow_transfer(c, s, a, b):
    """A transfer that makes progress is never aborted, even if it takes many times the limit."""
    await install(c)
    Trickle(a, b, pieces=12)
    run = await submit(dag_of(*pair("use", lambda: bytes(100_000), a, b)), results=["use"])
    result = await run.result(60)
    assert result.results["use"] is bytes
    assert len(result.attempts["make use"]) == 1
    del run, result
    await assert_clean(s, a, b)


async def never(*args, **kwargs):
    await asyncio.Event().wait()


def looks_at(worker):
    """Return a list that grows with each look at the transfers to a worker."""
    look, seen = worker.handlers["handoff_transfers"], []

    async def noted(keys):
        seen.append(await look(keys))
        return seen[-1]

    worker.handlers["handoff_transfers"] = noted
    return seen


#: The worker that made a value first.
MADE = []


def make_once(stop):
    if not MADE:
        MADE.append(get_worker())
        stop(get_worker())
    return where()


def silence(worker):
    worker.handlers["get_data"] = never


@pytest.mark.parametrize("how", ["silent", "unreachable"])
def test_lost_on_the_way(how):
    """A value that does not arrive is computed again elsewhere, and the run continues."""

    @gen_cluster(nthreads=ON_THREE, client=True, config={"handoff.fetch-timeout": "300ms"})
    async def test(c, s, a, b, d):
        MADE.clear()
        connect = d.rpc.connect

        async def connect_to_others(address, timeout=None):
            if [address] == [worker.address for worker in MADE]:
                raise OSError("no route to host")
            return await connect(address, timeout)

        if how == "unreachable":
            d.rpc.connect = connect_to_others
        stop = silence if how == "silent" else id
        run = await submit(
            dag_of(
                Function(id="make", args=[], code=make_once, extra_args=[stop], cost={"ssd": 1}),
                Function(id="use", args=["make"], code=lambda at: (at, where()), node=d.address),
            ),
            max_retries=0,
            results=["use"],
        )
        result = await run.result(20)
        first, second = MADE[0].address, (b if MADE[0] is a else a).address
        assert result.results["use"] == (second, d.address)
        assert [(x.worker, x.outcome) for x in result.attempts["make"]] == [
            (first, "ok"),
            (second, "ok"),
        ]
        assert [x.outcome for x in result.attempts["use"]] == ["ok"]
        del run, result
        await assert_clean(s, a, b, d)

    test()


@impatient()
async def test_a_busy_worker(c, s, a, b):
    """A worker told to come back later waits, and explain() says what it fetches from where."""
    await install(c)
    a.handlers["get_data"] = refuse
    looks = looks_at(b)
    transforms = Argument("make use", lambda data, *_: data, lambda data, *_: data)
    run = await submit(
        dag_of(
            *pair("use", int, a, b),
            Function(id="transformed", args=[transforms], code=type, node=b.address),
        ),
        results=["use", "transformed"],
    )
    await until(lambda: len(looks) >= 12)
    text = f"fetching 'make use' from {a.address}"
    assert str(await run.explain()) == f"2 functions wait\n  'use', 'transformed': {text}"
    a.handlers["get_data"] = a.get_data
    result = await run.result(10)
    assert result.results == {"use": int, "transformed": int}
    assert str(await run.explain()) == "nothing waits"
    del run, result
    await assert_clean(s, a, b)


@impatient()
async def test_lost_twice(c, s, a, b):
    """A value that never arrives fails its consumer; others can still use it where it is."""
    a.handlers["get_data"] = never
    run = await submit(
        dag_of(*pair("use", int, a, b), Function(id="a", args=[], code=where)), results=["use"]
    )
    expected = r"does not arrive from .* twice it made no progress for 0.3 s"
    with pytest.raises(FunctionFailedError, match=expected) as e:
        await run.result(20)
    assert (e.value.function_id, e.value.attempts) == ("use", ())
    assert e.value.__cause__.producer == "make use"
    del run, e
    await assert_clean(s, a, b)


def test_progress():
    """Progress is a change of the amount within a phase; a new phase is not progress."""
    progress = Progress()
    assert progress.idle("x", [("receiving", 0)], now=1) == 0
    assert progress.idle("x", [("receiving", 0)], now=2) == 1
    assert progress.idle("x", [("missing", 5)], now=3) == 2
    assert progress.idle("x", [("receiving", 10)], now=4) == 0
    assert progress.idle("x", [("missing", 5)], now=5) == 1
    assert progress.idle("x", [("receiving", 10), ("serializing", 1.0)], now=6) == 2
    assert progress.idle("y", [("receiving", 10)], now=6) == 0
    assert progress.idle("x", [("receiving", 10), ("serializing", 1.5)], now=7) == 0
    progress.reset()
    assert progress.idle("x", [("receiving", 10)], now=100) == 0
