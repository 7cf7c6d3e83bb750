"""What was computed once is found again, and everything that is promised of functions holds."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import signal
import threading
import time
import warnings
from pathlib import Path

import fsspec
import numpy as np
import pytest
from distributed import Client, LocalCluster, wait
from fsspec.implementations.memory import MemoryFileSystem

from handoff_dask import (
    DAG,
    Argument,
    FunctionFailedError,
    Ref,
    Store,
    StoreError,
    collocated,
    execute,
    forget,
    get_result,
    get_run,
    submit,
)
from handoff_dask.client.options import RunOptions
from handoff_dask.client.submission import Submission
from handoff_dask.errors import StoredResultMissing
from handoff_dask.store.opened import opened
from tests.support import dag_of
from tests.trust.stored_calls import (
    add,
    array,
    fail_at_first,
    fail_later,
    miss,
    never,
    noted,
    pack,
    unpack,
    until,
)


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit=0
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        client.wait_for_workers(2, timeout=60)
        yield client


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def log(tmp_path):
    return str(tmp_path / "log")


def diamond(log, start=1):
    """Return a DAG of four functions."""
    dag = DAG("diamond")
    a = dag.add(add, log, start, id="a")
    b, c = dag.add(add, log, a, 10, id="b"), dag.add(add, log, a, 20, id="c")
    dag.add(add, log, b, c, id="d")
    return dag


def outcomes(result):
    return {id: [a.outcome for a in attempts] for id, attempts in result.attempts.items()}


def entries(store):
    """Return the files of a store's entries."""
    return [p for p in Path(store).rglob("*") if p.is_file() and len(p.name) == 40]


def test_nothing_runs_twice(client, store, log):
    """The second run has the same results; each says who made it, when and how long that took."""
    first = execute(diamond(log), store=store)
    assert first.results == {"a": 1, "b": 11, "c": 21, "d": 32}
    second = execute(diamond(log), store=str(store))
    assert second.results == first.results
    assert noted(log) == ["a", "b", "c", "d"]
    assert second.allocations == {} and second.makespan == 0
    for id, (attempt,) in second.attempts.items():
        (made,) = first.attempts[id]
        assert attempt.outcome == "stored" and attempt.number == 0
        assert (attempt.worker, attempt.host) == (made.worker, platform.node())
        assert abs(attempt.started - made.started) < 1 and attempt.duration >= 0
        assert attempt.usage.result_bytes == made.usage.result_bytes
        assert str(store) in attempt.message
    assert "4 from the store" in second._repr_html_()


def test_only_what_is_needed(client, store, log):
    """What only stored functions need is not looked at; what runs reads stored values."""
    execute(diamond(log), store=store)
    dag = diamond(log)
    dag.add(add, log, Ref("d", dag.id), Ref("b", dag.id), id="e")
    result = execute(dag, store=store, results="sinks")
    assert result.results == {"e": 43}
    assert outcomes(result) == {"e": ["ok"], "d": ["stored"], "b": ["stored"]}
    assert list(result.allocations) == ["e"]
    assert noted(log) == ["a", "b", "c", "d", "e"]


def test_a_change_reaches_its_dependents(client, store, log):
    """Another argument: it and what depends on it run, and the result says why."""
    execute(diamond(log), store=store)
    result = execute(diamond(log, start=2), store=store)
    assert result.results == {"a": 2, "b": 12, "c": 22, "d": 34}
    assert noted(log) == sorted("abcd" * 2)
    assert "argument 1" in result.why["a"]
    assert result.why["b"] == "the result of 'a' changed"
    assert execute(diamond(log), store=store).allocations == {}


@pytest.mark.parametrize("bundle", [False, "1 s"])
def test_short_functions(client, store, log, bundle):
    """Each function of a bundle is stored by itself."""
    dag = DAG("short")
    refs = dag.map(add, [log] * 100, range(100))
    dag.add(add, log, *refs, id="total")
    durations = {id: "1 ms" for id in dag.functions}
    result = execute(dag, store=store, bundle=bundle, durations=durations, results="sinks")
    assert (result.tasks < 101) == bool(bundle)
    assert result.results == {"total": 4950}
    assert len(entries(store)) == 101
    entries(store)[0].unlink()
    again = execute(dag, store=store, durations=durations)
    assert len(again.results) == 101 and len(again.allocations) <= 1


def test_functions_that_leave_their_bundle(client, store, log, tmp_path):
    """They are stored as any other."""
    dag = DAG("leaving")
    dag.add(until, str(tmp_path / "open"), log, 1, id="slow", max_retries=1)
    dag.map(until, [str(tmp_path)] * 20, [log] * 20, range(20), max_retries=1)
    durations = {id: "1 ms" for id in dag.functions}
    run = submit(dag, store=store, bundle="50 ms", durations=durations)
    time.sleep(1)  # longer than a bundle waits for its members
    (tmp_path / "open").touch()
    assert run.result().tasks > 2
    assert len(entries(store)) == 21


def test_isolated_functions(client, store, log):
    """What a process of its own made is stored, too."""
    dag = DAG("isolated")
    a = dag.add(array, log, 1_000_000, 1, id="a", isolate=True)
    dag.add(np.sum, a, id="b", isolate=True)
    assert execute(dag, store=store, results="sinks").results == {"b": 1e6}
    assert execute(dag, store=store)["a"].nbytes == 8_000_000
    assert noted(log) == ["a"]


def test_transforms_inline_functions_and_places(client, store, log):
    """A stored result passes its transforms where it is read; where it ran binds nobody."""
    dag = DAG("places")
    a = dag.add(add, log, 5, id="a")
    argument = Argument(a.id, (pack, ["packed"]), unpack)
    inline = dag.add(add, log, a, 1, id="i", type="inline")
    dag.add(add, log, argument, inline, id="b", node=collocated("a"), max_retries=0)
    first = execute(dag, store=store)
    assert first.results == {"a": 5, "b": 11}
    kept = {p: p.read_bytes() for p in entries(store)}
    assert len(kept) == 2
    for path in kept:
        path.unlink()
        again = execute(dag, store=store)
        assert again.results == first.results
    assert len(noted(log)) >= 4


def test_opting_out(client, store, log):
    """`stored=False` runs each time; its dependents are found if it returns the same."""
    dag = DAG("opting out")
    a = dag.add(add, log, 1, id="a", stored=False)
    dag.add(add, log, a, 1, id="b")
    for _ in range(2):
        assert execute(dag, store=store).results == {"a": 1, "b": 2}
    assert noted(log) == ["a", "a", "b"]
    assert execute(dag, store=store, results="sinks").results == {"b": 2}
    assert noted(log) == ["a", "a", "b"]


def test_what_cannot_be_named(client, store, log):
    """It runs, a warning says what is in the way, and so does the result."""
    dag = DAG("unnamed")
    future = client.submit(int, 1)
    a = dag.add(add, log, future, id="a")
    dag.add(add, log, a, 1, id="b")
    dag.add(add, log, 7, id="c")
    for _ in range(2):
        with pytest.warns(UserWarning, match="'a' is not stored.*Future"):
            result = execute(dag, store=store)
        assert result.results == {"a": 1, "b": 2, "c": 7}
        assert set(result.not_stored) == {"a", "b"}
        assert "Future" in result.not_stored["a"] and "'a'" in result.not_stored["b"]
    assert noted(log) == ["a", "a", "b", "b", "c"]


def test_retries(client, store, log):
    """What succeeded at a later attempt is found."""
    dag = dag_of(id="retried")
    dag.add(fail_at_first, log, 3, id="a", max_retries=1)
    assert outcomes(execute(dag, store=store)) == {"a": ["error", "ok"]}
    assert outcomes(execute(dag, store=store)) == {"a": ["stored"]}


def test_a_lost_worker(client, store, log, tmp_path):
    """Results that were lost with it are read from the store instead of being computed again."""
    dag = DAG("lost")
    arrays = [dag.add(array, log, 1000, i, id=f"a{i}") for i in range(6)]
    gate = dag.add(until, str(tmp_path / "open"), log, 0, id="gate", node=None)
    dag.add(add, log, *[dag.add(np.sum, a, id=f"s{i}") for i, a in enumerate(arrays)], gate, id="b")
    run = submit(dag, store=store, bundle=False)
    futures = [run.futures[f"a{i}"] for i in range(6)]
    wait(futures, timeout=60)
    where = client.who_has(futures)
    workers = {w for holders in where.values() for w in holders}
    for worker in sorted(workers):
        pid = client.run(os.getpid, workers=[worker])[worker]
        os.kill(pid, signal.SIGKILL)
    Path(tmp_path / "open").touch()
    result = run.result(timeout=60)
    assert result["b"] == sum(1000.0 * i for i in range(6))
    for i in range(6):
        assert noted(log).count(f"a{i}") == 1
        assert [a.outcome for a in result.attempts[f"a{i}"]][:1] == ["ok"]
        assert set(outcomes(result)[f"a{i}"][1:]) <= {"stored"}
    assert any("stored" in outcomes(result)[f"a{i}"] for i in range(6))


@pytest.mark.parametrize("results", ["all", "sinks"])
@pytest.mark.parametrize("damage", ["removed", "cut", "changed"])
def test_an_entry_that_is_lost_since_it_was_seen(client, store, log, damage, results, tmp_path):
    """Exactly that part runs again, and it is repaired."""
    gate = tmp_path / "open"
    dag = DAG("repaired")
    a = dag.add(array, log, 100_000, 1, id="a")
    b = dag.add(array, log, 100_000, 2, id="b")
    sums = dag.add(np.add, a, b, id="sum")
    execute(dag, store=store)
    held = dag.add(until, str(gate), log, 1, id="held")
    dag.add(np.add, sums, held, id="end")
    dag.add(np.add, b, held, id="other end")
    run = submit(dag, store=store, results=results)
    for path in entries(store):
        if "sum" in str(path) or "add" in path.parent.name:
            spoil(path, damage)
    gate.touch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = run.result(timeout=60)
    assert result["end"][0] == 4 and result["other end"][-1] == 3
    assert noted(log).count("a") == noted(log).count("b") == 1
    assert "ok" in outcomes(result)["sum"]
    assert set(execute(dag, store=store, results=results).allocations) == set()


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("also", [(), ("b",)])
def test_damage_where_nothing_else_runs(client, store, log, detach, also):
    """A damaged entry is a miss, also if it is seen only after all seemed to be there."""
    dag = DAG("stored")
    dag.add(array, log, 100_000, 1, id="a")
    dag.add(array, log, 100_000, 2, id="b")
    execute(dag, store=store)
    for path in entries(store)[: 1 + len(also)]:
        spoil(path, "changed")
    run = submit(dag, store=store, detach=detach)
    result = run.result(timeout=60)
    assert result["a"][0] == 1 and result["b"][0] == 2
    assert sorted(map(tuple, outcomes(result).values())) == sorted(
        [("ok",), ("ok",) if also else ("stored",)]
    )
    assert len(noted(log)) == 3 + len(also)
    if detach:
        forget("stored")


def spoil(path, how):
    if how == "removed":
        path.unlink()
    elif how == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))


@pytest.mark.parametrize("on_error", ["raise", "continue"])
@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("bundle", [False, "1 s"])
def test_all_entries_are_lost(client, store, log, tmp_path, bundle, isolate, on_error):
    """Whoever was to read them: alone, in a bundle, in another process, or through a transform."""
    dag = DAG("repaired")
    a = dag.add(array, log, 100_000, 1, id="a")
    b = dag.add(array, log, 100_000, 2, id="b")
    sums = dag.add(np.add, a, b, id="sum")
    execute(dag, store=store)
    held = dag.add(until, str(tmp_path / "open"), log, 1, id="held")
    dag.add(np.add, Argument("sum", (pack, ["packed"]), unpack), held, id="end", isolate=isolate)
    dag.add(np.add, sums, held, id="other end", isolate=isolate)
    durations = {id: "1 ms" for id in dag.functions}
    run = submit(dag, store=store, bundle=bundle, durations=durations, on_error=on_error)
    for path in entries(store):
        path.unlink()
    (tmp_path / "open").touch()
    yielded = dict(run.as_completed(timeout=60))
    result = run.result(timeout=60)
    assert not result.errors and yielded.keys() == result.results.keys()
    assert result["end"][0] == result["other end"][0] == 4
    assert noted(log).count("a") == noted(log).count("b") == 2


@pytest.mark.parametrize("on_error", ["raise", "continue"])
@pytest.mark.parametrize("bundle", [False, "1 s"])
def test_a_lost_entry_harms_nothing_else(client, store, log, tmp_path, bundle, on_error):
    """What runs meanwhile goes on; what failed, or ran and is not stored, does not run again."""
    dag = DAG("repaired")
    a = dag.add(array, log, 100_000, 1, id="a")
    b = dag.add(array, log, 100_000, 2, id="b")
    execute(dag, store=store)
    first, second = tmp_path / "first", tmp_path / "second"
    held = dag.add(until, str(first), log, 1, id="held")
    dag.add(np.add, a, held, id="of a")
    dag.add(np.add, b, held, id="of b")
    dag.add(until, str(second), log, 2, id="long", timeout=60)
    dag.add(add, log, 3, id="side", stored=False)
    failing = on_error == "continue"
    if failing:
        failed = dag.add(never, log, id="failed", max_retries=1)
        dag.add(add, log, failed, id="after")
        dag.add(miss, log, id="own")
    durations = {id: "1 ms" for id in dag.functions}
    run = submit(dag, store=store, bundle=bundle, durations=durations, on_error=on_error)
    held_here = {id: run.futures[id] for id in ("of a", "of b")}
    remove_entry_of(store, "a")
    first.touch()
    wait_for_attempt(run, "of a")
    second.touch()
    result = run.result(timeout=60)
    assert noted(log) == sorted(
        ["a", "a", "b", "held", "long", "side", *["failed", "failed", "own"] * failing]
    )
    assert outcomes(result) == {
        "a": ["ok"],
        "b": ["stored"],
        "held": ["ok"],
        "of a": ["error", "ok"],
        "of b": ["ok"],
        "long": ["ok"],
        "side": ["ok"],
        **({"failed": ["error", "error"], "own": ["error"]} if failing else {}),
    }
    assert result["of a"][0] == 2 and result["of b"][0] == 3 and result["side"] == 3
    assert set(result.errors) == ({"failed", "after", "own"} if failing else set())
    assert result.why["a"] == "the last run did not store it, or its entry is gone"
    assert result.why["long"] == result.why["of b"] == "no earlier run of the DAG has stored it"
    assert run.futures["side"].result() == 3
    assert held_here["of b"].result()[0] == run.futures["of a"].result()[0] + 1 == 3
    with pytest.raises(StoredResultMissing):
        held_here["of a"].result()
    counts = run.counts()
    assert counts["done"] + counts["stored"] == 7 and counts["failed"] == 3 * failing
    if failing:
        with pytest.raises(FunctionFailedError, match="never"):
            run.futures["after"].result()


def wait_for_attempt(run, function):
    """Wait until an attempt of a function has ended."""
    deadline = time.monotonic() + 60
    while function not in run.attempts:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def remove_entry_of(store, function):
    """Remove the entry of a function's result."""
    for entry in opened(Store(store)).entries():
        if entry.made.function == repr(function):
            Path(entry.path).unlink()


def test_a_failure_beside_a_lost_entry(client, store, log, tmp_path):
    """The failure ends the run, and is its error."""
    dag = DAG("failing")
    a = dag.add(array, log, 100_000, 1, id="a")
    execute(dag, store=store)
    held = dag.add(until, str(tmp_path / "open"), log, 1, id="held")
    of_a = dag.add(np.add, a, held, id="of a")
    failed = dag.add(fail_later, str(tmp_path / "fail"), log, id="failed", max_retries=0)
    dag.add(add, log, of_a, failed, id="end")
    run = submit(dag, store=store, bundle=False)
    remove_entry_of(store, "a")
    (tmp_path / "open").touch()
    wait_for_attempt(run, "of a")
    (tmp_path / "fail").touch()
    with pytest.raises(FunctionFailedError, match="'failed' failed after 1 attempt") as caught:
        run.result(timeout=60)
    assert isinstance(caught.value.__cause__, ValueError)
    assert noted(log) == ["a", "failed", "held"]


def test_what_others_cannot_read(client, store, log):
    """A future that cannot be read fails what it is passed to; nothing is started again."""
    execute(diamond(log), store=store)
    futures = submit(diamond(log), store=store).futures
    for path in entries(store):
        path.unlink()
    dag = DAG("of futures")
    dag.add(add, log, futures["a"], id="b")
    with pytest.warns(UserWarning, match="is not stored"):
        run = submit(dag, store=store)
    with pytest.raises(FunctionFailedError) as failed:
        run.result(timeout=60)
    assert isinstance(failed.value.__cause__, StoredResultMissing)


def test_workers_that_see_another_store(client, log):
    """The run goes on without it after a few starts, with a warning."""
    dag = DAG("elsewhere")
    arrays = dag.map(array, [log] * 20, [10] * 20, range(20))
    with Client(processes=False, set_as_default=False, dashboard_address=":0") as here:
        execute(dag, store="memory://elsewhere", client=here)
    Path(log).unlink()
    for number, ref in enumerate(arrays):
        dag.add(np.sum, ref, id=number)
    result = execute(dag, store="memory://elsewhere", results="sinks", bundle=False)
    assert result.results == {number: 10.0 * number for number in range(20)}
    assert len(noted(log)) < 10 * 20


def test_the_limit_of_time(store):
    """It goes on while a run starts again."""
    submission = Submission(dag_of(), RunOptions(timeout=60, store=store))
    assert submission.again((), (), 20).again((), (), 30).options.timeout == 10


class HeldBack(MemoryFileSystem):
    """A file system that answers once it is allowed to."""

    protocol = "heldback"
    asked, allowed, waited_in_vain = threading.Event(), threading.Event(), False

    def cat_ranges(self, *args, **kwargs):
        """Wait, and read."""
        self.asked.set()
        type(self).waited_in_vain |= not self.allowed.wait(30)
        return super().cat_ranges(*args, **kwargs)


def test_a_slow_store(cluster, log):
    """The loop of an asynchronous client goes on while a store is looked at."""
    fsspec.register_implementation("heldback", HeldBack, clobber=True)

    async def main():
        async with Client(cluster.scheduler_address, asynchronous=True) as client:
            running = asyncio.create_task(
                execute(diamond(log), store="heldback://store", client=client)
            )
            while not HeldBack.asked.is_set():
                await asyncio.sleep(0.01)
            HeldBack.allowed.set()
            return await running

    assert asyncio.run(main())["d"] == 32
    assert not HeldBack.waited_in_vain


def test_a_store_that_cannot_be_used(client, log, tmp_path, caplog):
    """The run goes on without it, with a warning that names it; or fails, if it is required."""
    (tmp_path / "file").touch()
    wrong = tmp_path / "file" / "store"
    assert execute(diamond(log), store=wrong)["d"] == 32
    assert str(wrong) in caplog.text
    with pytest.raises((StoreError, FunctionFailedError), match=str(wrong)):
        execute(diamond(log), store=Store(wrong, required=True))


def test_a_store_that_goes_away(client, log, store, tmp_path):
    """What cannot be written is no failure of the function, unless the store is required."""
    for required in (False, True):
        gate = tmp_path / f"open {required}"
        dag = DAG("gone")
        held = dag.add(until, str(gate), log, int(required), id="held", max_retries=0)
        dag.add(add, log, held, 1, id="b")
        run = submit(dag, store=Store(store, required=required))
        shutil.rmtree(store, ignore_errors=True)
        store.write_text("in the way")
        gate.touch()
        if required:
            with pytest.raises(FunctionFailedError, match=str(store)):
                run.result(timeout=60)
        else:
            assert run.result(timeout=60)["b"] == 1
        store.unlink()


def test_two_runs_at_once(client, store, log):
    """They may write the same results; both are right."""
    dags = [DAG(f"twin {i}") for i in range(2)]
    for dag in dags:
        dag.map(array, [log] * 20, [10_000] * 20, range(20))
    runs = [submit(dag, store=store) for dag in dags]
    plain = client.submit(sum, [1, 2, 3])
    for run in runs:
        assert [value[0] for value in run.result().results.values()] == list(range(20))
    assert plain.result() == 6
    assert len(entries(store)) == 20


def test_futures_and_completion(client, store, log):
    """Stored results have futures, which read them, and come first in `as_completed`."""
    execute(diamond(log), store=store)
    dag = diamond(log)
    dag.add(add, log, Ref("d", dag.id), 1, id="e")
    run = submit(dag, store=store)
    assert client.submit(sum, [run.futures["a"], run.futures["e"]]).result() == 34
    assert dict(run.as_completed()) == {"a": 1, "b": 11, "c": 21, "d": 32, "e": 33}
    assert run.counts()["stored"] == 4 and run.counts()["done"] == 1


def test_detached(client, store, log):
    """Another client of the run has the stored results as well."""
    execute(diamond(log), store=store)
    dag = diamond(log)
    dag.add(add, log, Ref("d", dag.id), 1, id="e")
    with Client(client.scheduler.address) as submitter:
        submit(dag, store=store, detach=True, client=submitter)
    assert get_result("diamond", "d") == 32
    result = get_run("diamond").result()
    assert result.results == {"a": 1, "b": 11, "c": 21, "d": 32, "e": 33}
    assert outcomes(result)["a"] == ["stored"]
    forget("diamond")


def test_nothing_to_do_at_all(client, store, log):
    """Also as a detached run, under a limit of time, and by a client that is closed at once."""
    execute(diamond(log), store=store)
    assert submit(diamond(log), store=store, timeout=60).result()["d"] == 32
    submit(diamond(log), store=store, detach=True)
    assert get_run("diamond").result()["d"] == 32
    forget("diamond")


def test_nothing_is_left(client, store, log):
    """No task, no run and no temporary file stays behind."""
    execute(diamond(log), store=store)
    execute(diamond(log), store=store)
    left = client.run_on_scheduler(
        lambda dask_scheduler: (
            len(dask_scheduler.tasks),
            len(dask_scheduler.plugins["handoff"].runs),
        )
    )
    assert left == (0, 0)
    assert len([p for p in Path(store).rglob("*") if p.is_file() and "tmp" in p.name]) == 0
