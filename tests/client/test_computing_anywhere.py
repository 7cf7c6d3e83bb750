"""compute() and persist() without a client, and with an asynchronous one."""

from __future__ import annotations

import operator
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

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


EXPRESSIONS = """
import dask, dask.array
from distributed import Client
from handoff_dask import compute, persist

with Client(processes=False, n_workers=1, dashboard_address="localhost:0"):
    x = dask.array.ones((40, 40), chunks=20)
    assert hasattr(type(x), "expr")
    y = x + x.T
    with dask.annotate(retries=2):
        assert compute(y.sum(), [x.rechunk((10, 40)).mean()]) == (3200, [1])
    (z,) = persist(y)
    assert type(z) is type(y)
    assert compute(z.sum()) == dask.compute(z.sum()) == (3200,)
"""


@pytest.mark.skipif(not find_spec("dask.array._array_expr"), reason="this Dask has no such arrays")
def test_arrays_that_are_expressions():
    """Arrays that Dask keeps as expressions, as it does dataframes, work as others do."""
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "DASK_ARRAY__QUERY_PLANNING": "True", "PYTHONPATH": root}
    # Dask reads the setting when it is imported.
    done = subprocess.run(
        [sys.executable, "-c", EXPRESSIONS], env=env, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
