"""The devices of a worker, and which function gets which."""

from __future__ import annotations

import threading
from unittest.mock import patch

import pytest
from distributed.diagnostics import nvml
from distributed.utils_test import gen_cluster

from handoff_dask import Function, current, discover_nodes, execute, execute_local
from handoff_dask.worker.devices import Devices, visible_gpus
from tests.support import dag_of


@pytest.mark.parametrize(
    ("named", "count"),
    [
        (None, 4),
        ("0", 1),
        ("2,3", 2),
        (" 1 , 0 ", 2),
        ("", 0),
        ("-1", 0),
        ("0,-1,1", 1),
        ("0,7,1", 1),
        ("1,1", 1),
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,MIG-3", 2),
    ],
)
def test_cuda_visible_devices(monkeypatch, named, count):
    """Counts the devices that CUDA would show: up to the first one that NVML does not find."""
    monkeypatch.setattr(nvml, "device_get_count", lambda: 4)
    assert visible_gpus({} if named is None else {"CUDA_VISIBLE_DEVICES": named}) == count


def test_no_devices(monkeypatch):
    """Without devices in NVML, names of devices count for nothing."""
    monkeypatch.setattr(nvml, "device_get_count", lambda: 0)
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "0,1"}) == 0


def test_whole_devices_are_not_shared():
    """Whole devices are exclusive; the rest of a shared device goes to fractions."""
    devices = Devices()
    devices.declare(4)
    with devices.held(0.5) as half, devices.held(2) as two, devices.held(0.25) as quarter:
        assert half == quarter
        assert len(two) == 2 and not set(two) & set(half)
        with devices.held(1) as one, devices.held(0.25) as rest:
            assert len({*one, *two, *half}) == 4
            assert rest == half
    assert devices.free == [1.0] * 4


def test_a_device_and_a_half():
    """It has one device to itself and shares the other."""
    devices = Devices()
    devices.declare(2)
    with devices.held(1.5) as first, devices.held(0.5) as second:
        assert set(first) == {0, 1}
        assert second == first[1:]


def test_free_in_pieces():
    """A claim of a whole device waits until one is whole again."""
    devices = Devices()
    devices.declare(2)
    first, second, third, fourth = (devices.held(0.5) for _ in range(4))
    held = [context.__enter__() for context in (first, second, third, fourth)]
    assert sorted(held) == [(0,), (0,), (1,), (1,)]
    first.__exit__(None, None, None)
    third.__exit__(None, None, None)
    got = []

    def whole():
        with devices.held(1) as mine:
            got.append(mine)

    thread = threading.Thread(target=whole)
    thread.start()
    assert not got
    second.__exit__(None, None, None)
    thread.join(10)
    fourth.__exit__(None, None, None)
    assert got == [(0,)]
    assert devices.free == [1.0, 1.0]


def test_a_declaration_that_changes():
    """Devices in use stay in use when the worker offers more or fewer."""
    devices = Devices()
    devices.declare(2.5)
    assert devices.free == [1.0, 1.0, 0.5]
    with devices.held(1):
        devices.declare(1)
        assert devices.free == [0.0, 0.0, 0.0]
        devices.declare(2)
        assert devices.free == [0.0, 1.0, 0.0]
    assert devices.free == [1.0, 1.0, 0.0]


def gpus(*_):
    return current().gpus


@gen_cluster(client=True, nthreads=[("127.0.0.1", 2, {"resources": {"GPU": 2}})])
async def test_current_gpus(c, s, a):
    """A function learns its devices, whatever the worker calls them; without a claim, none."""
    dag = dag_of(
        Function(id="two", args=[], code=gpus, cost={"gpu": 2}),
        Function(id="one", args=["two"], code=gpus, cost={"Gpu": 1}),
        Function(id="none", args=["one"], code=gpus, cost={"cpu": 1}),
        Function(id="inside", args=[], code=gpus, cost={"gpu": 2}, type="inline"),
        Function(id="outside", args=["inside"], code=tuple),
    )
    results = (await execute(dag)).results
    assert results == {"two": (0, 1), "one": (0,), "none": (), "outside": (0, 1)}
    assert a.plugins["handoff"].devices.free == [1.0, 1.0]


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1), ("127.0.0.1", 1, {"resources": {"GPU": 1}})])
async def test_gpus_that_are_found(c, s, a, b):
    """A worker offers the GPUs that it may see, unless its operator declared gpu."""
    with patch("handoff_dask.worker.worker_plugin.visible_gpus", return_value=3):
        nodes = await discover_nodes()
    assert nodes[a.address]["gpu"] == 3
    assert nodes[b.address]["gpu"] == 1


def test_local():
    """In this process a function gets as many indices as it asks for."""
    dag = dag_of(Function(id="f", args=[], code=gpus, cost={"gpu": 1.5}))
    assert execute_local(dag).results == {"f": (0, 1)}
