"""compute() and persist() without a client, and with an asynchronous one."""

from __future__ import annotations

import operator

import dask.array
import pytest
from dask import delayed
from distributed import Event, futures_of, wait

from handoff_dask import compute, persist
from tests.gate import until
from tests.support import assert_clean
from tests.unlike import on_cluster


@delayed(pure=False)
def show(*args, **kwargs):
    return args, kwargs


def test_without_a_client():
    """compute() starts a cluster of its own; persist() says that the data would be lost."""
    assert compute(show(1)) == (((1,), {}),)
    with pytest.raises(ValueError, match="no client"):
        persist(show(1))


@on_cluster()
async def test_asynchronous(c, s, a, b):
    """With an asynchronous client both are awaited; nothing is left behind."""
    x = dask.array.arange(10, chunks=2)
    assert await compute(x.sum(), [1, show(2)]) == (45, [1, ((2,), {})])
    assert await compute(1) == (1,)
    (y,) = await persist(x)
    assert await compute(y.sum()) == (45,)
    await wait(futures_of(y))
    assert s.tasks
    del y
    await assert_clean(s, a, b)


@on_cluster()
async def test_persisted_while_running(c, s, a, b):
    """persist() does not wait for the tasks, and plain Dask can build on what is not there yet."""
    event = Event("go")

    def held(x):
        Event("go").wait()
        return x

    (x,) = await persist(delayed(held)(1))
    total = c.compute(delayed(operator.add)(x, 1))
    await until(lambda: any(ts.state == "processing" for ts in s.tasks.values()))
    await event.set()
    assert await total == 2
    del x, total
    await assert_clean(s, a, b)
