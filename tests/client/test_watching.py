"""A run in a notebook, while it goes on."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from functools import partial

import pytest
from distributed import Client, Event
from distributed.utils_test import gen_cluster

from handoff_dask import Function, FunctionFailedError, submit
from handoff_dask.client import watching
from handoff_dask.client.following import Follower
from handoff_dask.widgets import live
from tests import support
from tests.support import assert_clean
from tests.widgets.test_live import Widget

WORKERS = [
    ("127.0.0.1", 2, {"resources": {"cpu": 2}}),
    ("127.0.0.1", 2, {"resources": {"cpu": 2, "gpu": 1}}),
]
on_cluster = partial(gen_cluster, nthreads=WORKERS, client=True)


def hold(*args):
    Event("started").set()
    Event("go").wait()


def fail(*args):
    raise ValueError("<b>always</b>")


dag_of = partial(support.dag_of, id="a <dag>")


GPUS = [Function(i, [], hold, cost={"gpu": 1}) for i in range(4)]


@pytest.fixture
def widgets(monkeypatch):
    """Pretend to be in a notebook with ipywidgets; these are the widgets that it shows."""
    made = []

    class Module:
        @staticmethod
        def HTML(value):
            made.append(Widget(value))
            return made[-1]

    monkeypatch.setitem(sys.modules, "ipywidgets", Module)
    monkeypatch.setattr(watching, "is_kernel", lambda: True)
    monkeypatch.setattr(live, "PAUSE", 0.01)
    monkeypatch.setattr(live, "SHARE", 0.0)
    return made


@on_cluster()
async def test_what_functions_are_held_for(c, s, a, b):
    """The drawing tells how far a run is, and of what cost how many wait for which resource."""
    started, go = await Event("started"), await Event("go")
    run = await submit(dag_of(*GPUS, Function("after", [0], int, extra_args=[])))
    await started.wait()
    html, ended = await watching.draw(run._follower)
    assert not ended
    assert "a &lt;dag&gt;" in html
    for words in ("1 running", "3 held", "1 waiting", "gpu: 1 needed, at most free 0", b.address):
        assert words in html
    await run.cancel()
    await go.set()
    await assert_clean(s, a, b)


@on_cluster()
async def test_the_time_left(c, s, a, b, monkeypatch):
    """What the scheduler estimates is shown until the run has ended."""

    asked = Follower.progress

    async def progress(follower):
        return (await asked(follower))._replace(remaining=75.0)

    monkeypatch.setattr(Follower, "progress", progress)
    run = await submit(dag_of(*GPUS[:1]), client=c)
    await Event("started").wait()
    html, ended = await watching.draw(run._follower)
    assert "75 s left" in html and not ended
    await Event("go").set()
    await run.result()
    html, ended = await watching.draw(run._follower)
    assert "left" not in html and "ended" in html and ended


@on_cluster()
async def test_holds(c, s, a, b):
    """Functions that wait for the same are one entry; asking changes nothing."""
    started, go = await Event("started"), await Event("go")
    functions = [*GPUS, Function("cpus", [], hold, cost={"cpu": 2, "gpu": 1})]
    run = await submit(dag_of(*functions), max_concurrency=3)
    await started.wait()
    engine, (key,) = s.plugins["handoff"].engine, s.plugins["handoff"].runs
    held = engine.questions.holds(key)
    assert sorted(len(keys) for keys, _ in held) in ([4], [1, 3])
    assert {why.reason for _, why in held} == {"resources"}
    assert engine.questions.holds(key) == held
    await go.set()
    await run.result()
    assert engine.questions.holds(key) == []
    del run
    await assert_clean(s, a, b)


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_follow(widgets, ends):
    """What is displayed changes with the run, to its end, and is drawn no more after that."""

    @on_cluster()
    async def follow(c, s, a, b):
        started, go = await Event("started"), await Event("go")
        functions = [Function("last", [0], fail, max_retries=0)] if ends == "badly" else []
        run = await submit(dag_of(GPUS[0], *functions))
        await started.wait()
        bundle = run._repr_mimebundle_()
        assert bundle["text/plain"] == repr(run)
        (widget,) = widgets
        while "1 running" not in widget.value:
            await asyncio.sleep(0.01)
        await go.set()
        if ends == "badly":
            with pytest.raises(FunctionFailedError):
                await run.result()
        else:
            await run.result()
        while live._following:
            await asyncio.sleep(0.01)
        if ends == "badly":
            assert "1 done" in widget.value
            assert "1 failed" in widget.value
            assert "FunctionFailedError" in widget.value
            assert "&lt;b&gt;always" in widget.value
        else:
            assert "1 of 1 function done" in widget.value
            assert "ended" in widget.value
        del run
        await assert_clean(s, a, b)

    follow()


def test_a_look_keeps_nothing_alive(widgets):
    """A run that is displayed and then dropped is dropped: its results leave the cluster."""

    @on_cluster()
    async def drop(c, s, a, b):
        started, go = await Event("started"), await Event("go")
        run = await submit(dag_of(GPUS[0]))
        await started.wait()
        run._repr_mimebundle_()
        gone = weakref.ref(run)
        await go.set()
        await run.result()
        del run
        while gone() is not None or live._following:
            gc.collect()
            await asyncio.sleep(0.01)
        await assert_clean(s, a, b)

    drop()


def test_a_synchronous_client():
    """With a client that blocks, HTML is asked of the scheduler; outside of notebooks no widget."""
    with Client(
        processes=False, n_workers=1, threads_per_worker=2, dashboard_address=":0"
    ) as client:
        run = submit(dag_of(Function("a", [], int), Function("b", ["a"], int)), client=client)
        run.result()
        assert "2 of 2 functions done" in run._repr_html_()
        assert run._repr_mimebundle_() == {}
    assert "2 of 2 functions done" in run._repr_html_()


@on_cluster()
async def test_an_asynchronous_client(c, s, a, b):
    """With a client that must not block, HTML tells what the futures know."""
    go = await Event("go")
    run = await submit(dag_of(GPUS[0], Function("quick", [], int)))
    await run.futures["quick"]
    html = run._repr_html_()
    assert "1 of 2 functions done" in html
    assert "1 waiting" in html
    await run.cancel()
    html = run._repr_html_()
    assert "1 of 2 functions done" in html and "1 cancelled" in html
    await go.set()
    await assert_clean(s, a, b)


@on_cluster()
async def test_a_scheduler_that_does_not_answer(c, s, a, b, monkeypatch):
    """A look at a run is no place for the cluster's troubles: it shows what is known."""

    async def hang(**kwargs):
        await asyncio.Event().wait()

    run = await submit(dag_of(Function("a", [], int)))
    await run.result()
    monkeypatch.setattr(watching, "PATIENCE", 0.01)
    monkeypatch.setitem(s.handlers, "handoff_progress", hang)
    html, ended = await watching.draw(run._follower)
    assert "1 of 1 function done" in html
    assert ended
    del run
    await assert_clean(s, a, b)
