"""Servers whose own copy of the package cannot be used."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from unittest import mock

import pytest
from distributed import Client, Worker
from distributed.utils_test import gen_cluster

from handoff_dask import (
    Function,
    HandoffError,
    HandoffPlugin,
    __version__,
    discover_nodes,
    execute,
    register_node,
    resources_available,
)
from handoff_dask.scheduler import registry
from handoff_dask.shipping import bootstrap, parcel
from handoff_dask.worker.worker_plugin import HandoffWorkerPlugin
from tests.integration.separate import Processes, bare_python
from tests.support import dag_of, where

__all__ = ["bare_python"]

#: {what is wrong with a copy: (its files, what is said of it)}
COPIES = {
    "text that is no Python": ({"__init__.py": "def"}, "SyntaxError"),
    "raises": ({"__init__.py": "1 / 0"}, "ZeroDivisionError"),
    "exits": ({"__init__.py": "import sys; sys.exit(3)"}, "SystemExit: 3"),
    "empty folder": ({}, "No module named 'handoff_dask._version'"),
    "lacks what it needs": ({"__init__.py": "import no_such_thing"}, "no_such_thing"),
    "broken inside": (
        {
            "__init__.py": "",
            "_version.py": f"__version__ = {__version__!r}",
            "worker/__init__.py": "",
            "worker/worker_plugin.py": "1 +",
        },
        "SyntaxError",
    ),
    "lacks the plugin": (
        {
            "__init__.py": "",
            "_version.py": f"__version__ = {__version__!r}",
            "worker/__init__.py": "",
            "worker/worker_plugin.py": "",
        },
        "HandoffWorkerPlugin",
    ),
    "too old": ({"__init__.py": "", "_version.py": "__version__ = '0.0.9'"}, "0.0.9"),
    "too new": ({"__init__.py": "", "_version.py": "__version__ = '99.1.0'"}, "99.1.0"),
}


def write(folder, what):
    package = folder / "handoff_dask"
    package.mkdir(parents=True)
    for name, text in COPIES[what][0].items():
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text(text)
    return str(folder)


@pytest.mark.parametrize("what", COPIES)
def test_why_a_copy_cannot_be_used(tmp_path, what):
    """Whatever is wrong with a copy, unpickling a plugin yields one that says where and why."""
    parcel = tmp_path / "parcel"
    parcel.write_bytes(pickle.dumps(HandoffWorkerPlugin()))
    (tmp_path / "distributed.py").write_text("class WorkerPlugin: pass")
    script = f"""
import pickle, sys
plugin = pickle.loads(open({str(parcel)!r}, "rb").read())
print(type(plugin).__mro__[1].__name__, plugin.setup.__func__.__closure__[0].cell_contents)
"""
    path = [write(tmp_path / "copy", what), str(tmp_path)]
    code = f"import sys; sys.path[:0] = {path}\n{script}"
    # Isolated: no other copy is to be found, nor Dask, which this does not need.
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("WorkerPlugin")
    assert str(tmp_path / "copy" / "handoff_dask") in done.stdout
    assert COPIES[what][1] in done.stdout


class Broken:
    """Unpickles to what a broken copy makes of our plugin."""

    def __reduce__(self):
        return bootstrap._idle, ("WorkerPlugin", "it is broken")


@mock.patch.object(registry, "PATIENCE", 3600)
@gen_cluster(client=True)
async def test_a_worker_that_cannot_be_used(c, s, a, b):
    """It runs plain tasks and gets no functions; clients are warned, and no run waits for it."""
    await discover_nodes()
    s.worker_plugins["handoff"] = pickle.dumps(Broken())
    async with Worker(s.address, nthreads=1, name="broken") as broken:
        assert await c.submit(where, workers=[broken.address]) == broken.address
        with pytest.warns(UserWarning, match=f"{broken.address} is given no functions: it is bro"):
            assert set(await discover_nodes()) == {a.address, b.address}
        with pytest.warns(UserWarning, match="it is broken"):
            result = await execute(dag_of(*(Function(id=i, args=[], code=where) for i in range(9))))
        assert set(result.results.values()) <= {a.address, b.address}
        for ask in (register_node, resources_available):
            for name in ("broken", broken.address):
                with (
                    pytest.warns(UserWarning, match="it is broken"),
                    pytest.raises(HandoffError, match="no functions: it is broken"),
                ):
                    await ask(name, {"licence": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await discover_nodes()


@gen_cluster(client=True, nthreads=[])
async def test_a_scheduler_that_cannot_be_used(c, s):
    """The client's error says what is wrong with the scheduler's copy."""
    name = bootstrap.NAME
    sent = pickle.dumps((HandoffPlugin, ("one", "too", "many")))
    with pytest.raises(ImportError, match=f"the copy of {name} in .* cannot be used.*TypeError"):
        bootstrap.unpack(b"", sent, __version__)
    broken = parcel._UNPACK.replace("parcel,", "b'',")
    said = f"on the scheduler, the copy of {name}"
    with mock.patch.object(parcel, "_UNPACK", broken), pytest.raises(HandoffError, match=said):
        await discover_nodes()
    assert await discover_nodes() == {}


def test_workers_with_a_copy_that_is_broken(bare_python, tmp_path):
    """A worker and its nanny join as plain ones, before or after Handoff, and the log says why."""
    with Processes(bare_python, tmp_path) as processes, Client(processes.address) as client:
        options = ("--nthreads", 1, "--memory-limit", "1GB")
        processes.environ["PYTHONPATH"] = write(tmp_path / "a", "text that is no Python")
        processes.worker("early", *options)
        client.wait_for_workers(1, timeout=60)
        with pytest.warns(UserWarning, match="is given no functions: the copy .*SyntaxError"):
            assert discover_nodes(client=client) == {}
        processes.environ["PYTHONPATH"] = write(tmp_path / "b", "empty folder")
        processes.worker("late", *options, "--no-nanny")
        client.wait_for_workers(2, timeout=60)
        for name in ("early", "late"):
            assert client.submit(int, "7", workers=[name], pure=False).result(60) == 7
        with pytest.warns(UserWarning, match="given no functions"):
            assert discover_nodes(client=client) == {}
        processes.check()
    logs = [(tmp_path / f"{i}.log").read_text() for i in (1, 2)]
    assert logs[0].count("gets no Handoff functions") == 2  # the nanny, too
    assert "No module named 'handoff_dask._version'" in logs[1]
