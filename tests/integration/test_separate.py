"""Existing clusters: `dask scheduler` and `dask worker` in an environment without the package."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from cloudpickle import register_pickle_by_value
from distributed import Client, get_worker

import handoff_dask
from handoff_dask import (
    DAG,
    Argument,
    Function,
    HandoffError,
    collocated,
    current,
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
from tests.integration.separate import Processes, bare_python, certificates

pipeline = pytest.importorskip("image_pipeline", exc_type=ImportError)

__all__ = ["bare_python"]
# Workers have no such module.
register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def plain(bare_python, tmp_path_factory):
    """A scheduler and three different workers, one with a single thread and without a nanny."""
    with Processes(bare_python, tmp_path_factory.mktemp("plain")) as processes:
        processes.worker("small", "--nthreads", 1, "--no-nanny", "--memory-limit", "4GB")
        processes.worker("gpu", "--nthreads", 2, "--memory-limit", "4GB", "--resources", "GPU=2")
        processes.worker("large", "--nthreads", 4, "--memory-limit", "6GB")
        yield processes


@pytest.fixture
def client(plain):
    with Client(plain.address) as client:
        client.wait_for_workers(3, timeout=60)
        yield client


def has_module():
    """Return whether a process has the package installed, or got it from a client."""
    import sys

    shipped = any(getattr(finder, "ships", None) == "handoff_dask" for finder in sys.meta_path)
    return "handoff_dask" in sys.modules, shipped


def run_pipeline(client, folder):
    photographs = pipeline.find_photographs(None)[:2]
    dag = pipeline.build_dag(photographs, folder)
    return execute(dag, client=client)


def test_the_image_pipeline_where_nobody_has_the_package(client, tmp_path):
    """The first execute sends the package; capabilities are detected or as declared."""
    assert client.run_on_scheduler(has_module) == (False, False)
    result = run_pipeline(client, tmp_path)
    assert (tmp_path / "collage.png").stat().st_size > 1000
    names = {a.worker: a.worker_name for tried in result.attempts.values() for a in tried}
    edges = {names[w] for id_, w in result.allocations.items() if id_[0] == "edges"}
    assert edges == {"gpu"}
    assert client.run_on_scheduler(has_module) == (True, True)
    assert set(client.run(has_module).values()) == {(True, True)}
    offered = {names[address]: offer for address, offer in discover_nodes(client=client).items()}
    assert offered["small"] == {"cpu": 1, "memory": 4000}
    assert offered["gpu"] == {"cpu": 2, "memory": 4000, "gpu": 2}


def test_workers_that_join_later(plain, client):
    """They get the package and functions, also a worker that its nanny restarts."""
    plain.worker("late", "--nthreads", 1, "--memory-limit", "1GB", "--resources", "licence=1")
    dag = DAG().add_function(Function(id="f", args=[], code=who, cost={"licence": 1}))
    for _ in range(2):
        result = execute(dag, client=client, placement_timeout=60)
        assert result.results == {"f": ("f", 1)}
        client.restart_workers([result.allocations["f"]], timeout=60)


def who():
    me = current()
    return me.id, me.attempt


def gpus():
    return current().gpus


def test_devices_of_their_own(client):
    """Functions that claim whole devices never share one."""
    dag = DAG()
    for i in range(8):
        dag.add_function(Function(id=i, args=[], code=gpus, cost={"gpu": 1}))
    dag.add_function(Function(id="both", args=[], code=gpus, cost={"gpu": 2}))
    results = execute(dag, client=client).results
    assert results.pop("both") == (0, 1)
    assert set(results.values()) <= {(0,), (1,)}


def test_a_detached_run_from_another_client(plain, client):
    """It ends after its client is gone; later clients list it, read its results and forget it."""
    dag = (
        DAG("night")
        .add_function(Function(id="f", args=[], code=int, extra_args=["42"]))
        .add_function(Function(id="g", args=["f"], code=str, node=collocated("f")))
    )
    with Client(plain.address, set_as_default=False) as other:
        submit(dag, client=other, detach=True)
    assert get_result("night", "g", timeout=60, client=client) == "42"
    run = get_run("night", client=client)
    assert run.result(60).results == {"f": 42, "g": "42"}
    assert [info.dag_id for info in list_runs(client=client)] == ["night"]
    forget("night", client=client)
    assert not any(info.detached for info in list_runs(client=client))


def test_uninstall_leaves_nothing(client):
    """None of our modules, plugins and capabilities is left in any process."""
    discover_nodes(client=client)
    uninstall(client=client)
    assert client.run_on_scheduler(has_module) == (False, False)
    assert set(client.run(has_module).values()) == {(False, False)}
    workers = client.scheduler_info(n_workers=-1)["workers"] if newer() else None
    if workers:
        declared = {w["name"]: w["resources"] for w in workers.values()}
        assert declared["small"] == {} and declared["gpu"] == {"GPU": 2}
    assert client.submit(lambda: 1).result() == 1


def newer():
    import inspect

    return "n_workers" in inspect.signature(Client.scheduler_info).parameters


@pytest.fixture(scope="module")
def security(tmp_path_factory):
    """Return certificates for clients, and options for Dask's command line."""
    return certificates(tmp_path_factory.mktemp("tls"))


def test_the_image_pipeline_on_a_tls_cluster(bare_python, security, tmp_path):
    """The same over encrypted connections."""
    own, options = security
    with Processes(bare_python, tmp_path, options) as processes:
        processes.worker("gpu", "--nthreads", 2, "--memory-limit", "6GB", "--resources", "gpu=1")
        with Client(processes.address, security=own) as client:
            client.wait_for_workers(1, timeout=60)
            assert processes.address.startswith("tls://")
            result = run_pipeline(client, tmp_path)
            assert all(worker.startswith("tls://") for worker in result.allocations.values())
            assert (tmp_path / "collage.png").exists()


def blocked(*handlers):
    return {"DASK_DISTRIBUTED__SCHEDULER__BLOCKED_HANDLERS": repr(list(handlers))}


def test_a_scheduler_that_takes_no_plugins(bare_python, tmp_path):
    """The error says to use the preload."""
    environ = blocked("register_scheduler_plugin")
    with (
        Processes(bare_python, tmp_path, environ=environ) as processes,
        Client(processes.address) as client,
        pytest.raises(HandoffError, match=r"--preload handoff_dask\.preload"),
    ):
        discover_nodes(client=client)


def test_a_scheduler_with_the_preload(bare_python, tmp_path):
    """Workers get the package from it; clients need not send it, and do no harm."""
    root = str(Path(handoff_dask.__file__).parents[1])
    environ = {**blocked("register_scheduler_plugin"), "PYTHONPATH": root}
    preload = ("--preload", "handoff_dask.preload")
    with Processes(bare_python, tmp_path, scheduler=preload, environ=environ) as processes:
        processes.environ.pop("PYTHONPATH")
        processes.worker("a", "--nthreads", 2, "--memory-limit", "2GB")
        with Client(processes.address) as client:
            client.wait_for_workers(1, timeout=60)
            assert client.run_on_scheduler(has_module) == (True, False)
            dag = DAG().add_function(Function(id="f", args=[], code=who, cost={"cpu": 2}))
            assert execute(dag, client=client).results == {"f": ("f", 1)}
            assert set(client.run(has_module).values()) == {(True, True)}


def addresses(value, source, target):
    return source, target


def where(value):
    return value, get_worker().contact_address


def test_workers_that_are_reached_elsewhere(bare_python, tmp_path):
    """Workers listen on one address and are known by another, which the client cannot reach."""
    with Processes(bare_python, tmp_path) as processes:
        for number, name in enumerate(("a", "b"), 2):
            port = free_port()
            processes.worker(
                name,
                *("--nthreads", 1, "--no-nanny", "--memory-limit", "1GB"),
                *("--listen-address", f"tcp://0.0.0.0:{port}"),
                *("--contact-address", f"tcp://127.0.0.{number}:{port}"),
            )
        with Client(processes.address) as client:
            client.wait_for_workers(2, timeout=60)
            register_node("b", {"licence": 1}, client=client)
            argument = Argument("f", serialization_fn=addresses)
            dag = (
                DAG()
                .add_function(Function(id="f", args=[], code=int, node="127.0.0.2"))
                .add_function(Function(id="g", args=[argument], code=where, cost={"licence": 1}))
            )
            result = execute(dag, client=client)
            first, second = result.allocations["f"], result.allocations["g"]
            assert first.startswith("tcp://127.0.0.2:") and second.startswith("tcp://127.0.0.3:")
            assert result.results["g"] == ((first, second), second)


def free_port():
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
