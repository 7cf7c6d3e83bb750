"""Runs that another client submitted: listing, following, cancelling them; taking Handoff off."""

from __future__ import annotations

import pytest
from distributed import Client, Event
from distributed.utils_test import gen_cluster

from handoff_dask import (
    Argument,
    Function,
    FunctionFailedError,
    HandoffError,
    RunCancelledError,
    UnknownRunError,
    VersionError,
    collocated,
    discover_nodes,
    execute,
    forget,
    get_result,
    get_run,
    list_runs,
    register_node,
    submit,
    uninstall,
)
from handoff_dask.client import connection as connecting
from tests.support import assert_clean, dag_of


def wait_for(name):
    Event(name).wait()
    return name


def fail(*_):
    raise LookupError("no such thing")


def waiting(id="a dag", **kwargs):
    """A DAG whose first function waits for an event of its name."""
    return dag_of(
        Function(id="first", args=[], code=wait_for, extra_args=[str(id)], cost={"cpu": 1}),
        Function(id=("second", 2), args=["first"], code="{}, then done".format),
        id=id,
        **kwargs,
    )


def add(data, source, target):
    return data + 1


def label(value):
    return f"<{value}>"


@gen_cluster(client=True)
async def test_a_later_client_follows_a_detached_run(c, s, a, b):
    """Its status, what holds it, its attempts and its results are there, with the ids as given."""
    async with Client(s.address, asynchronous=True) as other:
        await submit(waiting(("tuple", 1)), client=other, detach=True, priority=3)
    (info,) = await list_runs()
    assert (info.dag_id, info.detached, info.priority) == (("tuple", 1), True, 3)
    assert sum(info.counts.values()) == 2
    run = await get_run(("tuple", 1))
    assert run.dag_id == ("tuple", 1)
    status = await run.status()
    assert status["waiting"] == 1 and status["done"] == 0
    assert (await run.explain())["second", 2].dependencies == ("first",)
    await Event("('tuple', 1)").set()
    result = await run.result()
    assert result.results["second", 2] == "('tuple', 1), then done"
    assert [a.outcome for a in result.attempts["first"]] == ["ok"]
    assert set(result.allocations) == {"first", ("second", 2)}
    function = result.functions["first"]
    assert function.cost == {"cpu": 1}
    with pytest.raises(RuntimeError, match="wait_for is where the DAG was submitted"):
        function.code()
    await run.cancel()
    assert len(await list_runs()) == 1  # ended well; to let it go is forget()'s


@gen_cluster(client=True)
async def test_a_followed_run_of_every_kind(c, s, a, b):
    """Transforms, inline functions, collocation and unwanted sinks do not get in the way."""
    dag = dag_of(
        Function(id="source", args=[], code=int, extra_args=["42"]),
        Function(id="inline", args=["source"], code=label, type="inline"),
        Function(
            id="user",
            args=[Argument("source", serialization_fn=add), "inline"],
            code="{} {}".format,
            node=collocated("source"),
        ),
        Function(id="unwanted", args=["source"], code=label),
    )
    await submit(dag, detach=True, results=["user"])
    result = await (await get_run("a dag")).result()
    assert result.results == {"user": "43 <42>"}
    assert set(result.attempts) == {"source", "user", "unwanted"}


@gen_cluster(client=True)
async def test_async_with(c, s, a, b):
    """`async with` takes a run that is looked for, as it takes one that is submitted."""
    await submit(dag_of(Function(1, [], int)), detach=True)
    async with get_run("a dag") as run:
        assert (await run)[1] == 0


@gen_cluster(client=True)
async def test_a_followed_run_that_fails(c, s, a, b):
    """Who follows a run gets the error that its submitter gets."""
    dag = dag_of(Function(id="f", args=[], code=fail, max_retries=1))
    await submit(dag, detach=True)
    run = await get_run("a dag")
    with pytest.raises(FunctionFailedError, match="no such thing") as caught:
        await run.result()
    assert isinstance(caught.value.__cause__, LookupError)
    assert [a.outcome for a in caught.value.attempts] == ["error", "error"]


@gen_cluster(client=False)
async def test_a_client_that_is_not_the_current_one(s, a, b):
    """The client passed is the one that waits, whatever `on_error` is, and get_result() with it."""
    async with Client(s.address, asynchronous=True, set_as_default=False) as c:
        dag = dag_of(
            Function(id="good", args=[], code=int, extra_args=["7"]),
            Function(id="bad", args=[], code=fail, max_retries=0),
        )
        run = await submit(dag, client=c, on_error="continue", detach=True)
        result = await run.result()
        assert result.results == {"good": 7} and result.errors.keys() == {"bad"}
        assert await get_result("a dag", "good", client=c) == 7
        await forget("a dag", client=c)
        del run
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_cancelling_somebody_elses_run(c, s, a, b):
    """cancel() stops a detached run for everybody, and touches no other run of the same id."""
    async with Client(s.address, asynchronous=True) as other:
        mine = await submit(waiting(), client=c)
        theirs = await submit(waiting(), client=other, detach=True)
        await (await get_run("a dag")).cancel()
        with pytest.raises(RunCancelledError):
            await theirs.result()
        assert [info.detached for info in await list_runs()] == [False]
        await Event("a dag").set()
        assert (await mine.result()).results["second", 2] == "a dag, then done"
        del mine, theirs
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_cancelling_a_run_that_its_client_attends(c, s, a, b):
    """A follower's cancel() stops it too, and its submitter hears of it."""
    mine = await submit(waiting())
    async with Client(s.address, asynchronous=True) as other:
        await (await get_run("a dag", client=other)).cancel()
        with pytest.raises(RunCancelledError, match="cancelled on the cluster"):
            await mine.result()
    await Event("a dag").set()
    del mine
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_a_run_that_nobody_knows(c, s, a, b):
    """UnknownRunError names it, at once."""
    assert await list_runs() == []
    with pytest.raises(UnknownRunError, match="nowhere"):
        await get_run("nowhere")


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1, {"resources": {"GPU": 2}}), ("127.0.0.1", 2)])
async def test_uninstall(c, s, a, b):
    """Plugins, handlers, metadata and capabilities are gone; what was declared before stays."""
    before = set(s.handlers), set(s.plugins), set(a.handlers), set(b.handlers)
    await execute(dag_of(Function(id="f", args=[], code=int, cost={"gpu": 1})))
    await register_node(a.address, {"gpu": 3, "licence": 1})
    assert s.resources["handoff-cpu"] and "handoff" in s.worker_plugins
    await uninstall()
    assert (set(s.handlers), set(s.plugins), set(a.handlers), set(b.handlers)) == before
    assert "handoff" not in s.worker_plugins and not s.task_metadata
    assert "handoff" not in a.plugins and "handoff" not in b.plugins
    assert a.state.total_resources == a.state.available_resources == {"GPU": 2}
    assert b.state.total_resources == b.state.available_resources == {}
    assert s.resources == {"GPU": {a.address: 2}}
    assert s.workers[a.address].resources == {"GPU": 2}
    await uninstall()  # nothing there, nothing to do
    assert await c.submit(lambda: 1, resources={"GPU": 2}) == 1
    nodes = await discover_nodes()
    assert nodes[a.address]["gpu"] == 2 and nodes[b.address]["cpu"] == 2


@gen_cluster(client=True)
async def test_uninstall_spares_runs(c, s, a, b):
    """Runs under way or kept are named in an error; force cancels them."""
    run = await submit(waiting("under way"))
    with pytest.raises(HandoffError, match="'under way'"):
        await uninstall(client=c)
    await Event("under way").set()
    await run.result()
    await submit(waiting("kept"), detach=True)
    with pytest.raises(HandoffError, match="'kept'"):
        await uninstall(client=c)
    await uninstall(client=c, force=True)
    await Event("kept").set()
    assert "handoff" not in s.plugins
    del run
    await assert_clean(s, a, b)


@gen_cluster(client=True)
async def test_versions_that_do_not_fit(c, s, a, b):
    """Another first or second number is an error that names both; another third one a warning."""
    await discover_nodes()
    facts = s.task_metadata["handoff"]
    facts["version"] = "7.1.2"
    with pytest.raises(VersionError, match=r"the scheduler has handoff_dask 7\.1\.2"):
        await execute(dag_of(Function(id="f", args=[], code=int)))
    own = connecting.__version__
    facts["version"] = f"{own}.post1"
    with pytest.warns(UserWarning, match=f"the scheduler has handoff_dask {own}.post1"):
        await discover_nodes()


@gen_cluster(client=True)
async def test_a_worker_of_another_version(c, s, a, b):
    """It is given no functions, the client is warned, and nobody waits for it."""
    await discover_nodes()
    plugin = s.plugins["handoff"]
    plugin.remove_worker(s, b.address)
    await plugin.registry.unable(b.address, "it has version 99.0")
    with pytest.warns(UserWarning, match=rf"{b.address} is given no functions.*99\.0"):
        assert set(await discover_nodes()) == {a.address}
    with pytest.warns(UserWarning, match=r"99\.0"):
        result = await execute(dag_of(*(Function(id=i, args=[], code=int) for i in range(20))))
    assert set(result.allocations.values()) == {a.address}


@gen_cluster(client=True)
async def test_following_fetches_nothing_by_itself(c, s, a, b):
    """Results stay on the workers until somebody asks a followed run for them."""
    dag = dag_of(Function(id="f", args=[], code=bytes, extra_args=[10]))
    async with Client(s.address, asynchronous=True) as other:
        await (await submit(dag, client=other, detach=True)).result()
    run = await get_run("a dag")
    assert (await run.status())["done"] == 1
    assert run._follower.remark == ""
    assert (await run.result()).results == {"f": bytes(10)}
