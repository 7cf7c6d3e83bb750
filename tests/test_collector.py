"""What is done about the garbage collector of a process."""

from __future__ import annotations

import gc

import pytest
from distributed.utils_test import gen_cluster, inc

from handoff_dask import Function, collector, execute, submit, uninstall
from handoff_dask.collector import Spacing
from handoff_dask.worker import worker_plugin
from tests.support import dag_of

USUAL = gc.get_threshold()


def has_threshold():
    """Whether this Python lets programs say how often full collections come."""
    try:
        gc.set_threshold(*USUAL[:2], 77)
        return gc.get_threshold()[2] == 77
    finally:
        gc.set_threshold(*USUAL)


pytestmark = pytest.mark.skipif(not has_threshold(), reason="no threshold for full collections")


def is_spaced():
    """Whether full collections are rare; if they are, young ones are as often as before."""
    now = gc.get_threshold()
    assert now[:2] == USUAL[:2]
    assert now[2] in (USUAL[2], collector._NEVER)
    return now != USUAL


@pytest.fixture(autouse=True)
def as_it_was():
    """Whatever happens, the collector is in the end as it was."""
    yield
    assert gc.get_threshold() == USUAL


@pytest.fixture
def spacing():
    """Return an object that spaces full collections while `many` is not empty."""
    many = [1]
    spacing = Spacing(lambda: bool(many))
    spacing.many = many
    yield spacing
    spacing.close()


def test_full_collections_are_rare_while_there_are_many(spacing):
    """From the first full collection with many objects to one with few."""
    assert not is_spaced()
    gc.collect(1)
    assert not is_spaced()
    gc.collect()
    assert is_spaced()
    spacing.many.clear()
    gc.collect()
    assert not is_spaced()


def test_a_full_collection_is_due_in_the_end(spacing, monkeypatch):
    """Garbage that had lived long is found without anybody asking, if a while later."""
    gc.collect()
    gc.collect(0)
    assert is_spaced()
    monkeypatch.setattr(collector, "_LONGEST", 0.0)
    gc.collect()
    gc.collect(0)
    assert not is_spaced()


def test_two_in_a_process(spacing):
    """It stays as long as one of them needs it."""
    other = Spacing(lambda: False)
    gc.collect()
    assert is_spaced()
    other.close()
    assert is_spaced()
    other = Spacing(lambda: True)
    spacing.many.clear()
    gc.collect()
    assert is_spaced()
    other.close()
    gc.collect()
    assert not is_spaced()


def test_the_threshold_of_somebody_else_stays(spacing):
    """Whoever sets it while full collections are rare has the last word."""
    gc.collect()
    gc.set_threshold(*USUAL[:2], 77)
    try:
        spacing.many.clear()
        gc.collect()
        assert gc.get_threshold()[2] == 77
    finally:
        gc.set_threshold(*USUAL)


@pytest.mark.parametrize("end", ["forgotten", "uninstalled", "closed"])
@gen_cluster(client=True, nthreads=[("", 1)] * 2)
async def test_a_worker_with_many_functions(c, s, a, b, monkeypatch, end):
    """Its full collections are rare until they are gone, or the plugin or all workers are."""
    monkeypatch.setattr(worker_plugin, "MANY", 10)
    dag = dag_of(*(Function(i, [], int, extra_args=[i]) for i in range(40)))
    run = await submit(dag, client=c, bundle=False)
    await run.wait()
    gc.collect()
    assert is_spaced()
    if end == "forgotten":
        del run
        while s.tasks or a.state.tasks or b.state.tasks:
            await a.heartbeat()
        gc.collect()
    elif end == "uninstalled":
        await uninstall(client=c)
    else:
        await a.close()
        assert is_spaced()
        await b.close()
    assert not is_spaced()


@gen_cluster(client=True, nthreads=[("", 1)])
async def test_a_worker_with_many_tasks_of_others(c, s, a, monkeypatch):
    """It collects garbage as always."""
    monkeypatch.setattr(worker_plugin, "MANY", 10)
    dag = dag_of(Function("f", [], int))
    await execute(dag, client=c)
    futures = c.map(inc, range(20))
    await c.gather(futures)
    gc.collect()
    assert not is_spaced()
