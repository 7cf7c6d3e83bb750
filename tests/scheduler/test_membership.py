"""How functions leave their bundles on the scheduler, and what becomes of reports about them."""

from __future__ import annotations

import asyncio
import gc
import pickle
import time

import pytest
from distributed import Status

from handoff_dask import Function, FunctionFailedError, RunCancelledError, submit
from handoff_dask.attempts.losses import End, KnownStart, Lost
from handoff_dask.attempts.members import CANCELLED, DONE, FAILED, LEFT, OPEN, with_dependents
from handoff_dask.compat import scheduler as compat
from handoff_dask.wire.bundles import EndedColumns, MemberFailure, Values
from handoff_dask.wire.keys import is_collected
from tests.support import dag_of
from tests.trust.test_bundles import (
    COUNT,
    DID,
    GO,
    begin,
    chain,
    check_attempts,
    did,
    doing,
    fail,
    made_by,
    on_cluster,
    sum_of,
    until,
    wait_for,
)
from tests.trust.test_bundles_disturbed import wait_and_fail

#: Seconds for a run to end.
LONG = 60


def members(count=COUNT, **fields):
    """Return functions that wait, with their bundles, for the one named "first"."""
    return [doing(i, did, i, args=["first"], **fields) for i in range(count)]


async def waiting(s, *functions, together=(0,), **options):
    """Submit functions whose bundles wait for "first"; return plugin, run, record and a bundle."""
    first = Function("first", [], wait_for, extra_args=["first"])
    run, record = await begin(s, dag_of(first, *functions), *together, **options)
    await until(lambda: "first" in DID)
    index = 1 + [function.id for function in functions].index(together[0])
    return s.plugins["handoff"], run, record, record.bundle_of(index)


async def ended(run):
    """Let "first" end; return the result."""
    GO.set()
    return await asyncio.wait_for(run, LONG)


def columns(*positions):
    """Return a report that some members ended well."""
    report = EndedColumns()
    for position in positions:
        report.add(position, 1.0 + position, 1.5 + position)
    return report.pack()


def lost_of(worker, number=1, **facts):
    """Return the loss of a placement."""
    return Lost(worker.address, 10.0, number, 20.0, **{"worker_gone": True, "died": True, **facts})


def sum_of_states(record):
    """Return the number of functions that the run knows the state of."""
    return sum(record.counted().values())


# Reports


@on_cluster()
async def test_reports(c, s, a, b):
    """Each end is recorded once it is reported, whatever the bundle does meanwhile."""
    plugin, run, record, bundle = await waiting(s, *members())
    record.workers[a.address] = ("a", "host")
    last = len(bundle.members.states) - 1
    report = plugin.bundles.reported
    report(bundle.key, 0, columns(0, 2), [], a.address)
    no = MemberFailure(last, 5.0, 6.0, "ValueError", "no", False, None)
    report(bundle.key, 0, columns(), [no], a.address)
    at = {p: bundle.bundle.members[p] for p in (0, 2, last)}
    attempts = (await run.status())["attempts"]
    assert [x.outcome for x in attempts[at[0] - 1]] == ["ok"]
    assert (attempts[at[2] - 1][0].started, attempts[at[2] - 1][0].stopped) == (3.0, 3.5)
    assert [x.message for x in attempts[at[last] - 1]] == ["no"]
    # Reports of a placement that is not under way are attempts, but end nothing.
    assert bundle.members.open_count == last + 1
    result = await ended(run)
    assert [x.outcome for x in result.attempts[at[last] - 1]] == ["error", "ok"]
    assert [x.outcome for x in result.attempts[at[0] - 1]] == ["ok", "ok"]
    check_attempts(result, COUNT + 1, **{str(at[p] - 1): ["ok", "ok"] for p in (0, 2)},
                   **{str(at[last] - 1): ["error", "ok"]})  # fmt: skip


@on_cluster()
async def test_reports_of_what_is_forgotten(c, s, a, b):
    """A report that comes after its run is ignored."""
    plugin, run, record, bundle = await waiting(s, *members())
    key = bundle.key
    await run.cancel()
    GO.set()
    with pytest.raises(RunCancelledError):
        await run
    del run
    await until(lambda: not s.tasks)
    plugin.bundles.reported(key, 0, columns(0), [], a.address)
    assert not bundle.blocks
    assert record.counts["cancelled"] == COUNT + 1


# Losses


@on_cluster()
async def test_the_member_that_ran(c, s, a, b):
    """It is charged and leaves with what depends on it; those before it did not count."""
    after = [doing(("after", i), did, i, args=[i]) for i in range(COUNT)]
    plugin, run, record, bundle = await waiting(s, *members(), *after)
    record.workers[a.address] = ("a", "host")
    plugin.bundles.lost(bundle, lost_of(a), End({1: (KnownStart(2, 15.0),)}, reason="boom"))
    states = bundle.members.states
    left = {p for p, state in enumerate(states) if state == LEFT}
    sources = plugin.bundles.sources(bundle)
    assert left == {2, *(p for p, needs in enumerate(sources) if 2 in needs)}
    assert set(states) == {OPEN, LEFT}
    assert record.left == {bundle.bundle.members[p] for p in left}
    assert sum_of_states(record) == 2 * COUNT + 1
    # A late report of what is charged already is no second attempt.
    plugin.bundles.reported(bundle.key, 1, columns(0, 1), [], a.address)
    result = await ended(run)
    ids = [function.id for function in (*members(), *after)]
    own = {p: result.attempts[ids[bundle.bundle.members[p] - 1]] for p in range(4)}
    for p in (0, 1):
        assert [x.outcome for x in own[p]] == ["worker-lost", "ok"]
        assert "does not count" in own[p][0].message
    assert [x.outcome for x in own[2]] == ["worker-lost", "ok"]
    assert own[2][0].message == "boom"
    assert [x.outcome for x in own[3]] == ["ok"]
    assert len(result.results) == 2 * COUNT + 1


@pytest.mark.parametrize("known", [True, False])
def test_reports_between_a_loss_and_its_charge(known):
    """What was reported by then is charged no more, whether it is known what had started or not."""

    @on_cluster()
    async def test(c, s, a, b):
        plugin, run, record, bundle = await waiting(s, *members())
        record.workers[a.address] = ("a", "host")
        plugin.bundles.reported(bundle.key, 1, columns(0, 1), [], a.address)
        plugin.bundles.lost(bundle, lost_of(a), End({1: (KnownStart(3, 15.0),)} if known else None))
        result = await ended(run)
        own = [result.attempts[index - 1] for index in bundle.bundle.members[:4]]
        outcomes = [[x.outcome for x in attempts] for attempts in own]
        assert outcomes == [["ok", "ok"]] * 2 + [["worker-lost", "ok"]] * 2

    test()


@on_cluster()
async def test_a_failure_between_a_loss_and_its_charge(c, s, a, b):
    """It is the end of what failed for good, and what depends on it is neither charged nor run."""
    after = [doing(("after", i), did, i, args=[i]) for i in range(COUNT)]
    plugin, run, record, bundle = await waiting(s, *members(), *after)
    record.workers[a.address] = ("a", "host")
    error = pickle.dumps(LookupError("no"))
    no = MemberFailure(0, 11.0, 12.0, "LookupError", "no", True, error)
    plugin.bundles.reported(bundle.key, 1, columns(), [no], a.address)
    behind = with_dependents({0}, plugin.bundles.sources(bundle))
    last = len(bundle.members.states) - 1
    assert last not in behind
    plugin.bundles.lost(bundle, lost_of(a), End({1: (KnownStart(last, 15.0, 1, 1, (-1,)),)}))
    assert set(bundle.members.having(FAILED)) == behind
    GO.set()
    with pytest.raises(FunctionFailedError, match="no") as caught:
        await asyncio.wait_for(run, LONG)
    ids = [function.id for function in (*members(), *after)]
    own = [ids[index - 1] for index in bundle.bundle.members]
    assert caught.value.function_id == own[0]
    attempts = caught.value.partial.attempts
    assert [x.outcome for x in attempts[own[0]]] == ["error"]
    assert attempts.keys().isdisjoint(own[p] for p in behind - {0})


@on_cluster()
async def test_a_failure_whose_report_was_lost(c, s, a, b):
    """It counts; what depends on it had not started, and fails with it if no attempt is left."""
    after = [doing(("after", i), did, i, args=[i]) for i in range(COUNT)]
    functions = [*members(), *after]
    plugin, run, record, bundle = await waiting(s, *functions, on_error="continue")
    record.workers[a.address] = ("a", "host")
    behind = with_dependents({0}, plugin.bundles.sources(bundle))
    last = len(bundle.members.states) - 1
    start = KnownStart(last, 15.0, 1, 2, (0, -1))
    plugin.bundles.lost(bundle, lost_of(a), End({1: (start,)}, reason="boom"))
    result = await ended(run)
    own = [functions[index - 1].id for index in bundle.bundle.members]
    tried = {p: result.attempts[id] for p, id in enumerate(own) if id in result.attempts}
    assert [x.outcome for x in tried.pop(0)] == ["error", "error"]
    assert tried.keys() == {*range(last + 1)} - behind
    for attempts in tried.values():
        assert [x.outcome for x in attempts] == ["worker-lost", "ok"]
    assert set(result.errors) == {own[p] for p in behind}
    assert "its error was not reported" in str(result.errors[own[0]])


@on_cluster()
async def test_nobody_knows_what_started(c, s, a, b):
    """All are charged once and travel alone; the run is complete."""
    plugin, run, record, bundle = await waiting(s, *members())
    record.workers[a.address] = ("a", "host")
    plugin.bundles.lost(bundle, lost_of(a), End())
    assert set(bundle.members.states) == {LEFT}
    result = await ended(run)
    gone = {index - 1 for index in bundle.bundle.members}
    check_attempts(result, COUNT + 1, **{str(i): ["worker-lost", "ok"] for i in gone})


@on_cluster()
async def test_nothing_had_started(c, s, a, b):
    """A bundle that was lost before it started costs nothing, and stays together."""
    plugin, run, record, bundle = await waiting(s, *members())
    plugin.bundles.lost(bundle, lost_of(a), End({}))
    assert set(bundle.members.states) == {OPEN} and not record.left
    check_attempts(await ended(run), COUNT + 1)


@on_cluster()
async def test_inputs_that_did_not_arrive(c, s, a, b):
    """If a worker took it back for want of its inputs, each travels alone and gets its own try."""
    plugin, run, _, bundle = await waiting(s, *members())
    lost = lost_of(a, worker_gone=False, died=False, inputs=["something"])
    plugin.bundles.lost(bundle, lost, End({}))
    assert set(bundle.members.states) == {LEFT}
    # The bundle itself needs no inputs any more.
    await until(lambda: s.tasks[bundle.key].state == "memory")
    assert not GO.is_set()
    check_attempts(await ended(run), COUNT + 1)


# Leaving


@on_cluster()
async def test_leave(c, s, a, b):
    """Those that leave get tasks of their own, in which they run once; the others stay."""
    plugin, run, record, bundle = await waiting(s, *members())
    plugin.bundles.leave(bundle, [1, 3])
    own = [bundle.bundle.members[p] for p in (1, 3)]
    for index in own:
        ts = s.tasks[record.key_of(index)]
        assert ts.state == "waiting" and plugin.functions[ts.key] is record.records[index]
        assert record.bundle_of(index) is None
    assert sum_of_states(record) == COUNT + 1
    # Again, and of those that are not to run any more: nothing happens.
    plugin.bundles.leave(bundle, [1, 3])
    assert record.left == set(own)
    mark = plugin.bundles.mark(bundle, s.tasks[bundle.key])
    assert mark["positions"] == bundle.members.open and not {1, 3} & set(mark["positions"])
    result = await ended(run)
    assert sorted(DID[1:]) == list(range(COUNT))
    check_attempts(result, COUNT + 1)
    assert result.tasks == 1 + len(record.bundles) + 2


@on_cluster()
async def test_leaving_with_a_value_that_stays(c, s, a, b):
    """One that leaves gets what it needs of those that stay by a task that takes it out."""
    pairs = [f for i in range(COUNT) for f in (
        doing(i, did, i, args=["first"]), doing(("after", i), did, args=[i]))]  # fmt: skip
    plugin, run, record, bundle = await waiting(s, *pairs)
    source, needs = next(
        (needs[0], p) for p, needs in enumerate(plugin.bundles.sources(bundle)) if needs
    )
    plugin.bundles.leave(bundle, [needs])
    taken = s.tasks[record.key_of(bundle.bundle.members[source])]
    assert {ts.key for ts in taken.dependencies} == {bundle.key}
    assert bundle.members.states[source] == OPEN
    mark = plugin.bundles.mark(bundle, s.tasks[bundle.key])
    assert source in mark["keep"]
    result = await ended(run)
    assert all(result.results["after", i] == i for i in range(COUNT))
    check_attempts(result, 2 * COUNT + 1)


@on_cluster()
async def test_a_bundle_that_fails_after_one_has_left(c, s, a, b):
    """What left it, and depends on it, goes with it when the run is let go."""
    first = Function("first", [], wait_and_fail, extra_args=["first"])
    pairs = [f for i in range(COUNT) for f in (
        doing(i, did, i, args=["first"]), doing(("after", i), did, args=[i]))]  # fmt: skip
    run, record = await begin(s, dag_of(first, *pairs), 0, on_error="continue")
    await until(lambda: "first" in DID)
    plugin, bundle = s.plugins["handoff"], record.bundle_of(1)
    needs = next(p for p, needs in enumerate(plugin.bundles.sources(bundle)) if needs)
    plugin.bundles.leave(bundle, [needs])
    result = await ended(run)
    assert len(result.errors) == 2 * COUNT + 1
    assert s.tasks[bundle.key].state == "erred"
    del run, result
    gc.collect()
    await until(lambda: not s.tasks)


@on_cluster()
async def test_dissolve(c, s, a, b):
    """A bundle that cannot be placed is no more: all its functions travel alone."""
    plugin, run, record, bundle = await waiting(s, *members())
    plugin.bundles.dissolve(bundle)
    assert set(bundle.members.states) == {LEFT}
    result = await ended(run)
    check_attempts(result, COUNT + 1)
    assert plugin.runs.member(record.key_of(bundle.bundle.members[0])) is None


@on_cluster()
async def test_redirect(c, s, a, b):
    """What takes values together gets those from elsewhere that left the bundle."""
    collector = Function("all", list(range(COUNT)), sum_of)
    plugin, run, record, bundle = await waiting(s, *members(), collector, results=["all"])
    left = bundle.bundle.members[0]
    plugin.bundles.leave(bundle, [0])
    (ts,) = [ts for ts in s.tasks[bundle.key].dependents if is_collected(ts.key)]
    indices, elsewhere, *_ = compat.arguments(ts)
    assert left in indices and elsewhere == (left,)
    assert {d.key for d in ts.dependencies} == {bundle.key, record.key_of(left)}
    plugin.bundles.leave(bundle, [1])
    assert compat.arguments(ts)[1] == (left, bundle.bundle.members[1])
    result = await ended(run)
    assert result.results == {"all": sum(range(COUNT))}
    check_attempts(result, COUNT + 2)


# Inputs that fail


@on_cluster()
async def test_an_input_that_fails(c, s, a, b):
    """Only members that need it fail with it; the others run, alone."""
    chains = [
        f for i in range(COUNT) for f in (doing(i, *([fail] if i == 5 else [int, i])), *chain(i, 3))
    ]
    # They cost more, so they are in bundles of their own, each with inputs from one other bundle.
    uses = [doing(("use", i), did, args=[(i, 2)], cost={"cpu": 1}) for i in range(COUNT)]
    run, record = await begin(s, dag_of(*chains, *uses), 5, ("use", 5), on_error="continue")
    beside = set(record.bundle_of(len(chains) + 5).bundle.members) - {len(chains) + 5}
    assert beside
    result = await asyncio.wait_for(run, LONG)
    assert set(result.errors) == {5, (5, 0), (5, 1), (5, 2), ("use", 5)}
    # On a slow machine, others leave bundles that take too long.
    assert record.left >= beside and len(chains) + 5 not in record.left
    assert all(result.results["use", i] == 1 for i in range(COUNT) if i != 5)
    check_attempts(result, 5 * COUNT - 4, **{"5": ["error", "error"]})


# Results by themselves


@on_cluster()
async def test_take(c, s, a, b):
    """The result of a member can be asked for at any time; there is one task for it."""
    plugin, run, record, bundle = await waiting(s, *members())
    index = bundle.bundle.members[1]
    key = record.key_of(index)
    run_id = record.spec.run_id
    assert plugin.runs.member(key) == (bundle, 1)
    assert plugin.runs.member(bundle.key) is None
    assert plugin.runs.member(("nothing", 1)) is plugin.runs.member("x") is None
    for _ in range(2):
        plugin.requests.take(run_id, [index], c.id)
    ts = s.tasks[key]
    assert ts.state == "waiting" and {d.key for d in ts.dependencies} == {bundle.key}
    assert [cs.client_key for cs in ts.who_wants] == [c.id]
    plugin.requests.take("no run", [index], c.id)
    # Of one that travels alone, its own task is wanted.
    plugin.bundles.leave(bundle, [2])
    alone = bundle.bundle.members[2]
    plugin.requests.take(run_id, [alone], c.id)
    assert c.id in {cs.client_key for cs in s.tasks[record.key_of(alone)].who_wants}
    result = await ended(run)
    assert result.results[index - 1] == index - 1
    s.client_releases_keys(keys=[key, record.key_of(alone)], client=c.id)


@on_cluster()
async def test_a_value_that_a_bundle_returns_no_more(c, s, a, b):
    """A bundle that ran again without a member runs once more when its value is asked for."""
    run, record = await begin(s, dag_of(*(doing(i, did, i) for i in range(COUNT))), 0)
    await run.wait()
    bundle = record.bundle_of(0)
    (a if made_by(record, 0) == a.address else b).data[bundle.key] = Values({})
    assert await asyncio.wait_for(run.futures[0], LONG) == 0
    assert bundle.members.tries[bundle.position(0)] == 2


# Cancelling


@on_cluster()
async def test_cancel(c, s, a, b):
    """A member that has not ended is cancelled with what depends on it in its bundle."""
    chains = [f for i in range(COUNT) for f in (
        doing(i, did, i, args=["first"]), doing(("after", i), did, args=[i]))]  # fmt: skip
    plugin, run, record, bundle = await waiting(s, *chains)
    source, needs = next(
        (needs[0], p) for p, needs in enumerate(plugin.bundles.sources(bundle)) if needs
    )
    assert plugin.requests.cancel(bundle, source)
    assert [bundle.members.states[p] for p in (source, needs)] == [CANCELLED] * 2
    assert plugin.requests.cancel(bundle, source), "it is"
    assert record.counts["cancelled"] == 2
    result = await ended(run)
    done = next(p for p, state in enumerate(bundle.members.states) if state == DONE)
    assert not plugin.requests.cancel(bundle, done), "it has ended"
    gone = {chains[bundle.bundle.members[p] - 1].id for p in (source, needs)}
    assert set(result.errors) == gone and gone.isdisjoint(result.attempts)
    assert all(isinstance(error, RunCancelledError) for error in result.errors.values())
    check_attempts(result, 2 * COUNT + 1 - 2)


@on_cluster()
async def test_cancel_what_others_need(c, s, a, b):
    """A member whose value is needed outside its bundle cannot be cancelled alone."""
    use = Function("use", [3], abs, node=str(a.name))
    plugin, run, _, bundle = await waiting(s, *members(), *chain(3, 5), use, together=(3,))
    assert not plugin.requests.cancel(bundle, bundle.position(4))
    assert bundle.members.states[bundle.position(4)] == OPEN
    check_attempts(await ended(run), COUNT + 7)


@on_cluster()
async def test_cancel_what_those_depend_on_that_others_need(c, s, a, b):
    """A member cannot be cancelled alone if what depends on it is needed outside."""
    use = Function("use", [(3, 1)], abs, node=str(a.name))
    plugin, run, _, bundle = await waiting(s, *members(), *chain(3, 5), use, together=(3,))
    assert not plugin.requests.cancel(bundle, bundle.position(4))
    assert bundle.members.states[bundle.position(4)] == OPEN
    check_attempts(await ended(run), COUNT + 7)


@on_cluster()
async def test_cancel_while_the_bundle_runs(c, s, a, b):
    """The worker does not start it."""
    dag = dag_of(doing(0, wait_for, "go"), *(doing(i, did, i) for i in range(1, COUNT)))
    run, record = await begin(s, dag, 0)
    await until(lambda: "go" in DID)
    plugin, bundle = s.plugins["handoff"], record.bundle_of(0)
    assert plugin.requests.cancel(bundle, 2)
    worker = a if bundle.worker == a.address else b
    await until(lambda: worker.plugins["handoff"].starts._skipped)
    result = await ended(run)
    cancelled = bundle.bundle.members[2]
    assert set(result.errors) == {cancelled} and cancelled not in DID
    check_attempts(result, COUNT - 1)


# The end


@on_cluster()
async def test_released(c, s, a, b):
    """What left a bundle goes with it; of one that failed, the error is kept for the client."""
    functions = [doing(i, *([fail] if i == 0 else [did, i]), args=["first"]) for i in range(COUNT)]
    plugin, run, record, bundle = await waiting(s, *functions, on_error="continue")
    index = bundle.bundle.members[bundle.position(1)]
    plugin.bundles.leave(bundle, [bundle.position(index)])
    left = record.key_of(index)
    assert record.spec.keeper in {cs.client_key for cs in s.tasks[left].who_wants}
    result = await ended(run)
    assert list(result.errors) == [0] and isinstance(result.errors[0], FunctionFailedError)
    assert record.records[index].state.name == "failed"
    assert set(bundle.members.states) == {LEFT, DONE}
    s.client_releases_keys(keys=[bundle.key], client=c.id)
    await until(lambda: index in record.errors)
    del run, result
    gc.collect()
    await until(lambda: not s.tasks)


@on_cluster()
async def test_leaving_after_the_run_was_let_go(c, s, a, b):
    """Only what others need of it is still made; nothing else stays, not the bundle either."""
    pairs = [f for i in range(COUNT) for f in (
        doing(i, did, i, args=["first"]), doing(("after", i), did, args=[i]))]  # fmt: skip
    plugin, run, record, bundle = await waiting(s, *pairs)
    source, needs = next(
        (needs[0], p) for p, needs in enumerate(plugin.bundles.sources(bundle)) if needs
    )
    index = bundle.bundle.members[source]
    outside = c.submit(abs, run.futures[index // 2])
    await until(lambda: outside.key in s.tasks)
    await run.cancel()
    await until(lambda: not s.tasks[bundle.key].who_wants)
    plugin.bundles.leave(bundle, [source])
    assert record.key_of(index) in s.tasks
    assert bundle.key not in s.tasks
    assert record.key_of(bundle.bundle.members[needs]) not in s.tasks
    GO.set()
    assert await outside == index // 2
    assert DID == ["first", index // 2]
    outside.release()
    del run
    gc.collect()
    await until(lambda: not s.tasks)


@on_cluster(config={"distributed.worker.memory.pause": False})
async def test_letting_a_run_go_whose_results_were_lost(c, s, a, b):
    """What left a bundle that waits to run again is not waited for."""
    pairs = [f for i in range(COUNT) for f in (
        doing(i, did, i), doing(("after", i), did, args=[i]))]  # fmt: skip
    run, record = await begin(s, dag_of(*pairs), 0)
    await run.wait()  # or else the client still fetches its results, and holds the run for that
    plugin, bundle = s.plugins["handoff"], record.bundle_of(0)
    at, other = (a, b) if made_by(record, 0) == a.address else (b, a)
    other.status = Status.paused
    await until(lambda: s.workers[other.address].status == Status.paused)
    await at.close()
    await until(lambda: s.tasks[bundle.key].state == "no-worker")
    needs = next(p for p, needs in enumerate(plugin.bundles.sources(bundle)) if needs)
    plugin.bundles.leave(bundle, [needs])
    assert record.left and s.tasks[bundle.key].waiters
    del run
    gc.collect()
    await until(lambda: not s.tasks)


@on_cluster()
async def test_reports_of_failures(c, s, a, b):
    """A member that failed for good ends with what depends on it in its bundle."""
    chains = [f for i in range(COUNT) for f in (
        doing(i, *([fail] if i == 7 else [did, i]), args=["first"]),
        doing(("after", i), did, args=[i]))]  # fmt: skip
    _, run, record, bundle = await waiting(s, *chains, together=(7,), on_error="continue")
    begun = time.time()
    result = await ended(run)
    assert set(result.errors) == {7, ("after", 7)}
    assert bundle.members.having(FAILED) == sorted(
        bundle.position(1 + i) for i, f in enumerate(chains) if f.id in result.errors
    )
    (error, _) = result.attempts[7]
    assert begun - 1 < error.started <= error.stopped
    assert record.failed.keys() == {bundle.bundle.members[bundle.position(15)]}


@on_cluster()
async def test_what_is_asked_of_functions_to_come(c, s, a, b):
    """A result that is asked for before its function came is made once it has come."""
    run = await submit(dag_of(*members(), Function("first", [], wait_for, extra_args=["first"])))
    plugin = s.plugins["handoff"]
    (record,) = plugin.runs.values()
    if not record.graphs:  # otherwise it was too quick
        plugin.requests.take(record.spec.run_id, [1], c.id)
        assert record.asked
        await until(lambda: not record.asked)
        await until(lambda: c.id in {cs.client_key for cs in s.tasks[record.key_of(1)].who_wants})
    result = await ended(run)
    check_attempts(result, COUNT + 1)
    s.client_releases_keys(keys=[record.key_of(1)], client=c.id)
