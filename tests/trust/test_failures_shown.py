"""What users see of a failure: in a notebook, in a traceback, in the log of a worker."""

from __future__ import annotations

import logging
import re
import time
import traceback

import pytest
from distributed import Client, LocalCluster
from distributed.utils_test import captured_logger, gen_cluster

from handoff_dask import (
    AllocationError,
    Function,
    FunctionFailedError,
    RetryPolicy,
    UnknownWorkerError,
    current,
    execute,
    execute_local,
    get_result,
    register_node,
    submit,
    uninstall,
)
from tests.support import dag_of


def divide(x):
    return x / 0


async def divide_later(x):
    return divide(x)


def failing(code=divide):
    argument = "none" if code is float else 1
    return dag_of(Function(id="f", args=[], code=code, extra_args=[argument]), id="shown")


def shown_by_ipython(error):
    """Return the lines that a notebook shows."""
    ultratb = pytest.importorskip("IPython.core.ultratb")
    lines = ultratb.FormattedTB(mode="Context").structured_traceback(
        type(error), error, error.__traceback__
    )
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(lines)).splitlines()


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def result_of_a_run(client, code):
    submit(failing(code), client=client).result()


def result_that_is_kept(client, code):
    submit(failing(code), client=client, detach=True)
    get_result("shown", "f", client=client)


WAYS = {
    "execute": lambda client, code: execute(failing(code), client=client),
    "result": result_of_a_run,
    "get_result": result_that_is_kept,
    "local": lambda client, code: execute_local(failing(code)),
}


@pytest.mark.parametrize("code", [divide, divide_later])
@pytest.mark.parametrize("way", WAYS)
def test_a_failure_is_short(client, way, code):
    """The user's frames and the message; of ours and Dask's, at most the call of execute()."""
    with pytest.raises(FunctionFailedError) as caught:
        WAYS[way](client, code)
    assert_short(caught.value)


@pytest.mark.parametrize("way", WAYS)
def test_a_failure_without_code_of_the_users(client, way):
    """A function that is not written in Python has no traceback, and none of ours replaces it."""
    with pytest.raises(FunctionFailedError) as caught:
        WAYS[way](client, float)
    assert type(caught.value.__cause__) is ValueError
    assert caught.value.__cause__.__traceback__ is None


def test_again(client):
    """Asking again for a result shows the same."""
    run = submit(failing(), client=client)
    lengths = set()
    for _ in range(3):
        with pytest.raises(FunctionFailedError) as caught:
            run.result()
        lengths.add(len(traceback.format_exception(caught.value)))
        assert_short(caught.value)
    assert len(lengths) == 1


@gen_cluster(client=True)
async def test_asynchronous(c, s, a, b):
    """The same with an asynchronous client."""
    with pytest.raises(FunctionFailedError) as caught:
        await execute(failing())
    assert_short(caught.value)
    run = await submit(failing())
    with pytest.raises(FunctionFailedError) as caught:
        await run.result()
    assert_short(caught.value)


def assert_short(error):
    """Few lines, the user's code first, and besides it only a frame of the client."""
    own = traceback.extract_tb(error.__cause__.__traceback__)
    assert [frame.filename for frame in own] == [__file__] * len(own)
    assert own[-1].line == "return x / 0"
    notebook = shown_by_ipython(error)
    plain = "".join(traceback.format_exception(error)).splitlines()
    for lines in (notebook, plain):
        assert sum("return x / 0" in line for line in lines) == 1
        text = "\n".join(lines)
        assert text.index("in divide") < text.index("FunctionFailed")
        assert "distributed" not in text
        assert "task.py" not in text
        assert "ZeroDivisionError: division by zero" in text
    assert len(notebook) <= 45
    assert len(plain) <= 40


# The log of a worker


def fails(key=None):
    raise ValueError("of plain Dask" if key == "plain" else "several\nlines")


@gen_cluster(client=True)
async def test_a_failed_attempt_is_a_line(c, s, a, b):
    """Each failed attempt writes one line to the worker's log, which says what follows."""
    with (
        captured_logger("handoff_dask.worker") as ours,
        captured_logger("distributed.worker") as dasks,
    ):
        dag = dag_of(Function(id="f", args=[], code=fails, max_retries=2), id="d")
        with pytest.raises(FunctionFailedError):
            await execute(dag)
        policy = RetryPolicy(max_retries=2, give_up_on=(ValueError,))
        with pytest.raises(FunctionFailedError):
            await execute(dag_of(Function(id="g", args=[], code=fails, retry=policy), id="d"))
    failed = "failed: ValueError: several lines;"
    assert [line for line in ours.getvalue().splitlines() if "attempt" in line] == [
        f"Function 'f' of DAG 'd': attempt 1 of 3 {failed} it will be retried",
        f"Function 'f' of DAG 'd': attempt 2 of 3 {failed} it will be retried",
        f"Function 'f' of DAG 'd': attempt 3 of 3 {failed} no attempt is left",
        f"Function 'g' of DAG 'd': attempt 1 of 3 {failed} its retry policy allows no further "
        "attempt",
    ]
    assert "Compute Failed" not in dasks.getvalue()


def fail_twice_after_a_success():
    if 1 < current().attempt < 4:
        raise ValueError("no")


@gen_cluster(client=True)
async def test_the_number_of_an_attempt_after_a_lost_result(c, s, a, b):
    """An attempt that does not count makes more attempts possible, which the log knows."""
    f = Function("f", [], fail_twice_after_a_success, max_retries=2)
    dag = dag_of(f, Function("uses it", ["f"], repr, cost={"token": 1}), id="d")
    run = await submit(dag, placement_timeout=60)
    await run.futures["f"]
    (ws,) = s.tasks[run.futures["f"].key].who_has
    at, other = (a, b) if ws.address == a.address else (b, a)
    with captured_logger("handoff_dask.worker") as ours:
        await at.close()
        await register_node(other.address, {"token": 1})
        await run
    failed = "failed: ValueError: no; it will be retried"
    assert [line for line in ours.getvalue().splitlines() if "attempt" in line] == [
        f"Function 'f' of DAG 'd': attempt {number} of 4 {failed}" for number in (2, 3)
    ]


@pytest.mark.parametrize("by_handler", [False, True])
def test_quiet_workers(by_handler, monkeypatch):
    """Nothing is logged if Dask's workers are silenced, for example by silence_logs."""
    dasks = logging.getLogger("distributed.worker")

    @gen_cluster(client=True)
    async def run(c, s, a, b):
        if by_handler:
            quiet = logging.StreamHandler()
            quiet.setLevel(logging.CRITICAL)
            monkeypatch.setattr(dasks, "propagate", False)
            monkeypatch.setattr(dasks, "handlers", [quiet])
        else:
            monkeypatch.setattr(dasks, "disabled", True)
        with captured_logger("handoff_dask.worker") as ours, pytest.raises(FunctionFailedError):
            await execute(dag_of(Function(id="f", args=[], code=fails)))
        late = Function(id="l", args=[], code=time.sleep, extra_args=[0.3], timeout=0.05)
        with captured_logger("handoff_dask.worker") as of_late, pytest.raises(FunctionFailedError):
            await execute(dag_of(late), max_retries=0)
        assert "attempt" not in ours.getvalue() + of_late.getvalue()

    run()


@gen_cluster(client=True)
async def test_the_log_of_others(c, s, a, b):
    """Plain Dask still logs its own tasks; after uninstall, nothing filters the log."""
    filters = list(logging.getLogger("distributed.worker").filters)
    with pytest.raises(FunctionFailedError):
        await execute(dag_of(Function(id="f", args=[], code=fails, max_retries=0)))
    with captured_logger("distributed.worker") as dasks:
        with pytest.raises(ValueError, match="plain"):
            await c.submit(fails, "plain")
    assert "Compute Failed" in dasks.getvalue()
    await uninstall()
    assert logging.getLogger("distributed.worker").filters == filters


# Names of workers


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_errors_name_workers(c, s, a):
    """Errors include the name of a worker if it has one."""
    with pytest.raises(AllocationError, match=rf"nearest is {a.address} \({a.name}\): needs gpu"):
        await execute(dag_of(Function(id="f", args=[], code=int, cost={"gpu": 9})))

    class Nowhere:
        def allocate(self, functions, capabilities):
            return {f.id: "nowhere" for f in functions}

    with pytest.raises(UnknownWorkerError, match=f"workers are: {a.name}$"):
        await execute(dag_of(Function(id="f", args=[], code=int)), allocation_strategy=Nowhere())
