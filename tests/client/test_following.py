"""The end of a run at its client, while the cluster goes on to change."""

from __future__ import annotations

import asyncio

import pytest
from distributed import Client, Event

from handoff_dask import ClusterLostError, Function, FunctionFailedError, submit
from handoff_dask.client import waiting
from handoff_dask.client.following import Follower
from tests.support import assert_clean, dag_of
from tests.unlike import RAN, on_cluster

#: Enough for bundles of several functions on the two workers.
COUNT = 64


def work(number, fails):
    """Return a number; fail instead if this ran before and is to."""
    RAN.append(number)
    if fails and RAN.count(number) > 1:
        raise LookupError("not twice")
    return number


@on_cluster()
@pytest.mark.parametrize("bundle", ["200 ms", False])
async def test_a_failure_after_the_report(c, s, a, b, monkeypatch, bundle):
    """What ran again because its worker was lost, and failed, has an error in the result."""
    RAN.clear()
    asked, closed = Follower._final_report, []

    async def final_report(self):
        """Lose the results, and have the functions run again, between the report and its use."""
        answer = await asked(self)
        if not closed:
            (record,) = s.plugins["handoff"].runs.values()
            holder = next(iter(s.tasks[record.unit_key(5)].who_has)).address
            closed.extend(worker for worker in (a, b) if worker.address == holder)
            await closed[0].close()
            while record.counts["done"] != COUNT - 1 or record.counts["failed"] != 1:
                await asyncio.sleep(0.01)
        return answer

    monkeypatch.setattr(Follower, "_final_report", final_report)
    ids = range(COUNT)
    dag = dag_of(*(Function(i, [], work, extra_args=[i, i == 5], max_retries=1) for i in ids))
    durations = dict.fromkeys(ids, 0.001)
    run = await submit(dag, bundle=bundle, durations=durations, on_error="continue")
    result = await run.result()
    assert closed
    assert result.results == {i: i for i in ids if i != 5}
    assert isinstance(result.errors[5], FunctionFailedError)
    assert isinstance(result.errors[5].__cause__, LookupError)
    assert [attempt.outcome for attempt in result.attempts[5]] == ["ok", "error", "error"]
    assert bool(bundle) == (result.tasks < COUNT)
    del run, result
    await assert_clean(s, *({a, b} - {*closed}))


def hold():
    Event("go").wait()


@on_cluster()
async def test_a_client_that_learns_of_the_loss_first(c, s, a, b, monkeypatch):
    """The error names the DAG, whichever question to the scheduler is the first that fails."""

    async def never(client, futures):
        """Be slower than that question."""
        await asyncio.Event().wait()

    monkeypatch.setattr(waiting, "_all_ended", never)
    async with Client(s.address, asynchronous=True, set_as_default=False) as other:
        run = await submit(dag_of(Function("f", [], hold), id="cut off"), client=other)
        waits = asyncio.create_task(run.result())
        while not s.plugins["handoff"].runs:
            await asyncio.sleep(0.01)
    with pytest.raises(ClusterLostError, match="run 'cut off': its client was closed"):
        await waits
    await (await Event("go")).set()
    del run, waits
    await assert_clean(s, a, b)
