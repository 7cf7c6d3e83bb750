"""Functions that travel in bundles keep every promise that is made of a single function."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections import Counter
from itertools import pairwise

import pytest
from distributed import secede, worker_client
from distributed.utils_test import gen_cluster

from handoff_dask import (
    Function,
    FunctionFailedError,
    RunCancelledError,
    TransferError,
    execute,
    forget,
    get_result,
    register_node,
    submit,
)
from tests.support import assert_clean, dag_of

#: Enough for bundles of several members on the two threads of a test's cluster.
COUNT = 64


def act(*values, do=None, with_=()):
    """Do something. Each function of these tests has this code, so that its duration is known."""
    return sum(values) if do is None else do(*values, *with_)


def doing(id, do=None, *with_, args=(), **fields):
    """Return a function that does something."""
    fields.setdefault("max_retries", 1)  # without, it is not bundled where there is no nanny
    return Function(id, list(args), act, extra_kwargs={"do": do, "with_": with_}, **fields)


def quick(count=COUNT):
    """Return functions that do nothing."""
    return [doing(i, int, i) for i in range(count)]


async def learn():
    """Have the scheduler learn how long the code takes."""
    # Of other names: one that happens to take long travels alone from then on.
    learning = dag_of(*(doing(("learn", i), int, i) for i in range(8)), id="learning")
    await execute(learning, bundle=False)


async def begin(s, dag, *together, **options):
    """Submit a DAG; return the run and its record, once these functions are in bundles."""
    run = await submit(dag, **options)
    record = list(s.plugins["handoff"].runs.values())[-1]
    assert record.spec.dag_id == dag.id
    await until(lambda: record.graphs)
    place = {id: i for i, id in enumerate(dag.functions)}
    assert record.bundles
    for id in together:
        assert record.homes[place[id]] >= 0, id
    return run, record


async def until(condition, timeout=30):
    async def waiting():
        while not condition():
            await asyncio.sleep(0.01)

    await asyncio.wait_for(waiting(), timeout)


#: What the functions of a test did, as workers run in this process.
DID = []
#: What they wait for.
GO = threading.Event()


def did(*values):
    DID.append(values[-1])
    return values[-1]


def fail(*_):
    raise ValueError("no")


def fail_first(times, name):
    DID.append(name)
    if DID.count(name) <= times:
        raise ValueError("not yet")
    return name


def wait_for(name, *_):
    DID.append(name)
    GO.wait(60)
    return 1


def check_attempts(result, count=None, **unlike):
    """Check that each function started once and succeeded, but for those given."""
    if count is not None:
        assert len(result.attempts) == count
    for id, attempts in result.attempts.items():
        assert [a.outcome for a in attempts] == unlike.get(str(id), ["ok"]), (id, attempts)
        assert [a.number for a in attempts] == list(range(1, len(attempts) + 1))
        for before, after in pairwise(attempts):
            assert before.stopped <= after.started


def on_cluster(**kwargs):
    """Run a test on two workers of one thread, after the scheduler has learned."""

    def decorate(test):
        @gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 2, **kwargs)
        async def wrapped(c, s, a, b):
            DID.clear()
            GO.clear()
            await learn()
            await test(c, s, a, b)
            gc.collect()  # errors refer to the frames that they came through
            await assert_clean(s, *(w for w in (a, b) if w.address in s.workers))

        wrapped.__name__ = wrapped.__qualname__ = test.__name__
        wrapped.__doc__ = test.__doc__
        return wrapped

    return decorate


# Failures


@on_cluster()
async def test_a_member_that_fails(c, s, a, b):
    """Others are done; what depends on it fails with it, in its bundle and elsewhere."""
    dag = dag_of(
        *quick(),
        doing("bad", fail, max_retries=2),
        *(doing(f"inside {i}", args=[f"inside {i - 1}" if i else "bad"]) for i in range(5)),
        Function("outside", ["inside 2"], abs, node=str(a.name)),
        Function("next", ["outside"], abs),
    )
    run, record = await begin(s, dag, "bad", "inside 4", on_error="continue")
    result = await run
    assert result.results == {i: i for i in range(COUNT)}
    assert set(result.errors) == set(dag.functions) - set(range(COUNT))
    error = result.errors["bad"]
    assert isinstance(error, FunctionFailedError) and isinstance(error.__cause__, ValueError)
    assert error.function_id == "bad" and len(error.attempts) == 3
    assert all("'bad'" in str(error) for error in result.errors.values())
    check_attempts(result, COUNT + 1, bad=["error"] * 3)
    assert record.counts["done"] == COUNT and record.counts["failed"] == 8
    assert not any(record.counts[state] for state in ("waiting", "held", "assigned", "running"))


@on_cluster()
async def test_a_member_that_fails_ends_the_run(c, s, a, b):
    """Without on_error="continue", the error is raised, with what was done by then."""
    dag = dag_of(*quick(), doing("bad", fail))
    with pytest.raises(FunctionFailedError) as caught:
        await execute(dag)
    assert caught.value.function_id == "bad"
    assert [a.outcome for a in caught.value.attempts] == ["error"] * 2


@on_cluster()
async def test_retries_in_place(c, s, a, b):
    """A member is tried again within its budget, and stays in its bundle."""
    dag = dag_of(*quick(), doing("bad", fail_first, 2, "bad", max_retries=2))
    run, record = await begin(s, dag, "bad")
    result = await run
    assert result.results["bad"] == "bad" and len(result.results) == COUNT + 1
    check_attempts(result, COUNT + 1, bad=["error", "error", "ok"])
    assert record.retries == 2 and not record.left


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_a_member_that_exits(kind):
    """Whatever it raises is its failure."""

    def leave():
        raise kind

    @on_cluster()
    async def test(c, s, a, b):
        dag = dag_of(*quick(), doing("bad", leave, max_retries=1))
        run, _ = await begin(s, dag, "bad", on_error="continue")
        result = await run
        assert len(result.results) == COUNT and list(result.errors) == ["bad"]
        check_attempts(result, bad=["error"] * 2)
        assert {ws.address for ws in s.workers.values()} == {a.address, b.address}

    test()


def chain(first, count):
    """Return functions of which each needs the one before it."""
    ids = [first, *((first, i) for i in range(count))]
    return [doing(id, before, args=[source]) for source, id in pairwise(ids)]


def before(value):
    return 1


class CannotBeOpened:
    def __reduce__(self):
        return int, ("no number",)


@on_cluster()
async def test_values_that_cannot_be_fetched(c, s, a, b):
    """A value that cannot be sent or opened is the error of its function alone."""
    dag = dag_of(*quick(), doing("lock", threading.Lock), doing("broken", CannotBeOpened))
    run, _ = await begin(s, dag, "lock", "broken", on_error="continue")
    result = await run
    assert len(result.results) == COUNT and set(result.errors) == {"lock", "broken"}
    assert "cannot be fetched" in str(result.errors["lock"])
    check_attempts(result, COUNT + 2)


@on_cluster()
async def test_values_that_other_functions_cannot_get(c, s, a, b):
    """A consumer elsewhere of a value that cannot be sent fails, and names who made it."""
    dag = dag_of(
        *quick(),
        doing("lock", threading.Lock),
        *chain("lock", 5),
        *(Function(f"use {w.name}", ["lock"], repr_all, node=str(w.name)) for w in (a, b)),
    )
    run, _ = await begin(s, dag, "lock", on_error="continue")
    result = await run
    used = [id for id in result.results if str(id).startswith("use")]
    assert len(used) == 1, result.errors
    (failed,) = {"use 0", "use 1"} & result.errors.keys()
    assert isinstance(result.errors[failed].__cause__, TransferError)
    assert result.errors[failed].__cause__.producer == "lock"


def repr_all(*values):
    return repr(values)


def ones(size):
    return bytes(size)


@on_cluster()
async def test_a_large_value_is_moved_alone(c, s, a, b):
    """What another task needs is moved without the rest of its bundle."""
    size = 1_000_000
    dag = dag_of(
        *(doing(i, ones, size) for i in range(COUNT)),
        *chain(0, 5),
        *(Function(f"use {w.name}", [0], repr_len, node=str(w.name)) for w in (a, b)),
    )
    run, _ = await begin(s, dag, 0, results=["use 0", "use 1"])
    result = await run
    assert set(result.results) == {"use 0", "use 1"}
    moved = sum(transfer["total"] for w in (a, b) for transfer in w.transfer_incoming_log)
    assert size <= moved < 1.5 * size


def repr_len(*values):
    return [len(value) for value in values]


# Lost workers


def last(*args):
    """Return a function that has no place yet."""
    return Function("last", list(args), sum_of, cost={"cpu": 1, "token": 1})


@on_cluster()
async def test_a_worker_lost_with_finished_bundles(c, s, a, b):
    """Before the results were gathered: only what is missing runs again."""
    run, record = await begin(s, dag_of(*quick(), last()), 0, placement_timeout=60)
    await until(lambda: record.counts["done"] == COUNT)
    on_a = {i for i in range(COUNT) if made_by(record, i) == a.address}
    assert 0 < len(on_a) < COUNT
    await a.close()
    await register_node(b.address, {"token": 1})
    result = await run
    assert result.results == {**{i: i for i in range(COUNT)}, "last": 0}
    check_attempts(result, COUNT + 1, **{str(i): ["ok", "ok"] for i in on_a})
    assert set(result.allocations.values()) == {b.address}
    assert record.retries == len(on_a)


@on_cluster()
async def test_a_worker_lost_whose_values_are_needed(c, s, a, b):
    """What needs a value of a bundle that was lost gets it; the rest does not run again."""
    chains = [f for i in range(16) for f in (doing(i, int, 1), *chain(i, 3))]
    dag = dag_of(*chains, last(*((i, 1) for i in range(16))))
    run, record = await begin(s, dag, 0, results=["last"], placement_timeout=60)
    await until(lambda: record.counts["done"] == COUNT)
    await a.close()
    await register_node(b.address, {"token": 1})
    result = await run
    assert result.results == {"last": 16}
    for i in range(16):
        assert len(result.attempts[i, 2]) == 1, "nobody needs it"


def made_by(record, index):
    """Return the worker that ran a member last."""
    blocks = [block for bundle in record.bundles for block in bundle.blocks]
    return next(block.worker for block in reversed(blocks) if index in block.indices)


def sum_of(*values):
    return sum(values)


@on_cluster()
async def test_a_worker_that_retires(c, s, a, b):
    """What it holds is moved, what runs there ends, and nothing is charged."""
    dag = dag_of(*quick(), doing("slow", wait_for, "go"))
    run, record = await begin(s, dag, "slow")
    await until(lambda: "go" in DID)
    (at,) = [ws for ws in s.workers if "slow" in str(ws) or s.workers[ws].processing][:1]
    retiring = asyncio.create_task(s.retire_workers([at]))
    await asyncio.sleep(0.1)
    GO.set()
    await retiring
    result = await run
    assert len(result.results) == COUNT + 1
    assert sum(len(attempts) for attempts in result.attempts.values()) >= COUNT + 1
    entries = [e for own in record.entries.values() for e in own]
    entries += [e for r in record.records.values() for e in r.entries]
    assert not any(entry.counts for entry in entries)


# The end of a run


@on_cluster()
async def test_cancel_between_two_members(c, s, a, b):
    """A bundle whose run is cancelled starts no more of its members."""
    dag = dag_of(*(doing(i, wait_for, "go") for i in range(COUNT)))
    run, record = await begin(s, dag, 0, 1)
    await until(lambda: len(DID) == 2)
    await run.cancel()
    GO.set()
    with pytest.raises(RunCancelledError):
        await run
    del run
    await assert_clean(s, a, b)
    assert len(DID) == 2
    assert sum(len(own) for own in record.entries.values()) == 2
    assert record.counts["cancelled"] == COUNT


@on_cluster()
async def test_a_run_that_is_dropped(c, s, a, b):
    """A client that lets go of a run ends it between two members."""
    dag = dag_of(*(doing(i, wait_for, "go") for i in range(COUNT)))
    run, _ = await begin(s, dag, 0, 1)
    await until(lambda: len(DID) == 2)
    del run
    await c.close()
    GO.set()
    await assert_clean(s, a, b)
    assert len(DID) == 2


# Members that give up their threads


def give_up():
    secede()
    return 5


def ask_client():
    with worker_client() as client:
        return client.submit(int, 7).result()


def ask_nested():
    return sum(execute(dag_of(*quick(16)), bundle="50 ms").results.values())


@pytest.mark.parametrize("code", [give_up, ask_client, ask_nested])
def test_a_member_that_gives_up_its_thread(code):
    """The rest of its bundle is given back, and runs."""

    @on_cluster()
    async def test(c, s, a, b):
        dag = dag_of(*(doing(i, *([code] if i == 3 else [int, i])) for i in range(COUNT)))
        run, _ = await begin(s, dag, 3)
        result = await asyncio.wait_for(run, 30)
        assert len(result.results) == COUNT
        assert result.results[3] in (5, 7, 120)
        check_attempts(result, COUNT)

    test()


# Futures


@on_cluster()
async def test_futures(c, s, a, b):
    """The future of a member can be had before, while and after it runs."""
    dag = dag_of(*(doing(i, int, i) for i in range(COUNT)), doing("slow", wait_for, "go"))
    run, _ = await begin(s, dag, 7, "slow")
    before = run.futures["slow"]
    assert before.status == "pending"
    await until(lambda: "go" in DID)
    during = run.futures["slow"]
    GO.set()
    assert await before == await during == 1
    assert await run.futures[7] == 7
    await run
    assert await run.futures[9] == 9
    plain = c.submit(lambda x, y: x + y, run.futures[10], run.futures[11])
    assert await plain == 21
    other = await execute(dag_of(Function("x", [], sum_of, extra_args=[run.futures[12]])))
    assert other.results == {"x": 12}
    kept = run.futures[20]
    del run, before, during
    assert await kept == 20
    assert await c.submit(abs, kept) == 20
    del kept, plain


@on_cluster()
async def test_a_future_kept_for_longer_than_its_run(c, s, a, b):
    """A future that was had before the end keeps its value when the run is let go."""
    run, _ = await begin(s, dag_of(*quick(), doing("slow", wait_for, "go")), 3, "slow")
    kept = run.futures["slow"]
    await until(lambda: "go" in DID)
    GO.set()
    await run
    del run
    assert await kept == 1
    del kept


@on_cluster()
async def test_failed_future(c, s, a, b):
    """The future of a member that failed raises what the function raised."""
    dag = dag_of(*quick(), doing("bad", fail), doing("next", args=["bad"]))
    run, _ = await begin(s, dag, "bad", on_error="continue")
    early = run.futures["next"]
    await run
    for future in (run.futures["bad"], early, run.futures["next"]):
        assert isinstance(await future.exception(), ValueError)
    del early, future


@on_cluster()
async def test_a_future_that_is_cancelled(c, s, a, b):
    """That function alone is cancelled; the run goes on and returns the others."""
    dag = dag_of(doing(0, wait_for, "go"), *(doing(i, did, i) for i in range(1, COUNT)))
    run, record = await begin(s, dag, 0)
    await until(lambda: "go" in DID)
    waiting = record.bundle_of(0).bundle.members[-1]
    await c.cancel([run.futures[waiting]])
    await until(lambda: record.counts["cancelled"] == 1)
    GO.set()
    result = await run
    assert waiting not in DID
    assert set(result.results) == set(range(COUNT)) - {waiting}
    assert isinstance(result.errors[waiting], RunCancelledError)
    assert (await run.status())["cancelled"] == 1


@on_cluster()
async def test_what_held_functions_wait_for(c, s, a, b):
    """The progress display counts functions, whether they are held alone or in bundles."""
    blocked = [doing(("held", i), did, args=["first"], cost={"slot": 1}) for i in range(COUNT)]
    await register_node(a.address, {"slot": 1})
    holding = await submit(dag_of(doing("holding", wait_for, "go", cost={"slot": 1})))
    await until(lambda: "go" in DID)
    run, record = await begin(s, dag_of(doing("first", int), *blocked), ("held", 0))
    await until(lambda: record.counts["held"] == COUNT)
    (held,) = s.plugins["handoff"].reasons.holds(record)
    assert (held[0], held[2].reason) == (COUNT, "resources")
    GO.set()
    await run
    await holding


# Time


def sleep(seconds, name):
    DID.append(name)
    time.sleep(seconds)
    return name


@on_cluster()
async def test_misjudged_durations(c, s, a, b):
    """A bundle that takes too long gives back what has not started; other workers help."""
    dag = dag_of(*(doing(i, sleep, 0.3 if i < 6 else 0, i) for i in range(COUNT)))
    run, record = await begin(s, dag, *range(8))
    result = await run
    assert result.results == {i: i for i in range(COUNT)}
    check_attempts(result, COUNT)
    assert Counter(DID) == dict.fromkeys(range(COUNT), 1)
    assert record.left
    on = {result.allocations[i] for i in range(6)}
    assert on == {a.address, b.address}


def sleep_with(_, seconds, name):
    return sleep(seconds, name)


@on_cluster()
async def test_inputs_of_what_is_given_back(c, s, a, b):
    """They are still there for the functions that a bundle gives back; nothing runs twice."""
    dag = dag_of(
        Function("first", [], did, extra_args=["first"]),
        # The last ones: no other bundle needs the input any more.
        *(doing(i, sleep_with, 0.3 * (i >= COUNT - 8), i, args=["first"]) for i in range(COUNT)),
    )
    run, record = await begin(s, dag, *range(8), results=list(range(COUNT)))
    result = await run
    assert record.left
    assert DID.count("first") == 1
    check_attempts(result, COUNT + 1)


@on_cluster()
async def test_what_ended_is_seen(c, s, a, b):
    """Members that ended are reported while the next one takes long."""
    dag = dag_of(*(doing(i, *([wait_for, "go"] if i == 3 else [int, i])) for i in range(COUNT)))
    events = []
    run, record = await begin(s, dag, 3, on_event=events.append)
    await until(lambda: "go" in DID)
    place = record.bundle_of(3).position(3)
    earlier = record.bundle_of(3).bundle.members[:place]
    assert earlier
    await until(lambda: not any(map(record.is_lacking, earlier)), 5)
    status = await run.status()
    assert {0, 1, 2} <= status["attempts"].keys()
    GO.set()
    await run


# Inputs


def make_unusable():
    return CannotBeOpened()


@on_cluster()
async def test_an_input_that_does_not_arrive(c, s, a, b):
    """Each function that needs it fails with a TransferError, and no other."""
    dag = dag_of(
        *quick(),
        Function("bad", [], make_unusable, node=str(a.name)),
        *(doing(("use", i), bool, args=["bad"]) for i in range(COUNT)),
    )
    run, _ = await begin(s, dag, ("use", 0), on_error="continue")
    result = await run
    assert set(range(COUNT)) <= result.results.keys()
    for id, error in result.errors.items():
        if id == "bad":
            continue
        assert isinstance(error.__cause__, TransferError), (id, error)
        assert error.__cause__.producer == "bad"
    assert len(result.errors) + len(result.results) >= 2 * COUNT + 1


# Detached


@on_cluster()
async def test_detached(c, s, a, b):
    """A detached run keeps what its members return until it is forgotten."""
    run, _ = await begin(s, dag_of(*quick(), id="kept"), 1, detach=True)
    await run
    del run
    assert await get_result("kept", 5) == 5
    await forget("kept")


# Events


@on_cluster()
async def test_events(c, s, a, b):
    """A listener hears of each member: placed, attempts, end, in this order."""
    events = []
    dag = dag_of(*quick(), doing("bad", fail_first, 1, "bad"), doing("worse", fail))
    run, _ = await begin(s, dag, "bad", on_event=events.append, on_error="continue")
    await run
    del run
    await until(lambda: type(events[-1]).__name__ == "RunClosed")
    own = {}
    for event in events:
        if hasattr(event, "function"):
            name = type(event).__name__
            own.setdefault(event.function, []).append((name, getattr(event, "state", None)))
    placed, attempt = ("FunctionPlaced", None), ("AttemptEnded", None)
    for i in range(COUNT):
        assert own[i] == [placed, attempt, ("FunctionEnded", "done")], own[i]
    assert own["bad"] == [placed, attempt, attempt, ("FunctionEnded", "done")]
    assert own["worse"] == [placed, attempt, attempt, ("FunctionEnded", "failed")]


# Everything at once


@on_cluster()
async def test_two_runs_and_plain_tasks(c, s, a, b):
    """Runs with bundles and plain tasks do not get in each other's way."""
    plain = c.map(lambda x: x + 1, range(50))
    runs = [
        await submit(dag_of(*quick(), id=f"run {i}"), max_concurrency=1, priority=i)
        for i in range(3)
    ]
    results = await asyncio.gather(*runs)
    for result in results:
        assert result.results == {i: i for i in range(COUNT)}
        check_attempts(result, COUNT)
    assert await c.gather(plain) == [x + 1 for x in range(50)]
    del plain


@on_cluster()
async def test_restart(c, s, a, b):
    """A restart of the cluster cancels the run, and the next one is as good as ever."""
    run, _ = await begin(s, dag_of(*(doing(i, time.sleep, 0.01) for i in range(COUNT))), 0)
    s.plugins["handoff"].restart(s)
    with pytest.raises(RunCancelledError):
        await run
