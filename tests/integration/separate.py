"""Clusters of separate processes, from an environment that lacks this package."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import dask
import pytest
from distributed import Security

#: Seconds for a process to start or to end.
PATIENCE = 60


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory):
    """A Python with everything that is installed here except handoff_dask."""
    folder = tmp_path_factory.mktemp("bare")
    python = bare_environment(folder)
    checked = run(python, "-c", "import dask, distributed; import handoff_dask", cwd=folder)
    if "No module named 'handoff_dask'" not in checked.stderr:
        pytest.skip("handoff_dask is installed beside Dask: no environment lacks it")
    return python


def bare_environment(folder):
    """Make an environment in a folder, and return its Python."""
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    (site,) = folder.rglob("site-packages")
    # What a .pth file adds is searched for modules, but not for further .pth files: an editable
    # installation of this package is not seen.
    (site / "others.pth").write_text(str(Path(dask.__file__).parents[1]))
    return python


def environment():
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "DASK_"))}


def run(python, *args, **kwargs):
    return subprocess.run(
        [python, *args], env=environment(), capture_output=True, text=True, check=False, **kwargs
    )


def certificates(folder):
    """Make certificates, for clients and as options of Dask's commands."""
    pytest.importorskip("cryptography")
    temporary = Security.temporary()
    certificate, key = folder / "cert.pem", folder / "key.pem"
    certificate.write_text(temporary.tls_client_cert)
    key.write_text(temporary.tls_client_key)
    files = {"cert": certificate, "key": key, "ca-file": certificate}
    options = [part for name, path in files.items() for part in (f"--tls-{name}", str(path))]
    client = Security(
        tls_ca_file=str(certificate),
        tls_client_cert=str(certificate),
        tls_client_key=str(key),
        require_encryption=True,
    )
    return client, options


class Processes:
    """A scheduler and workers, each a separate process, as an operator would start them."""

    def __init__(self, python, folder, security=(), scheduler=(), environ=None):
        self.python = python
        self.folder = folder
        self.security = list(security)
        self.environ = environment() | (environ or {})
        self._processes = []
        file = folder / "scheduler.json"
        protocol = "tls://" if security else "tcp://"
        self._start(
            "distributed.cli.dask_scheduler",
            *("--host", f"{protocol}127.0.0.1:0", "--no-dashboard", "--scheduler-file", file),
            *scheduler,
        )
        while not file.exists() or not file.read_text():
            self.check()
        self.address = json.loads(file.read_text())["address"]

    def _start(self, module, *args):
        log = (self.folder / f"{len(self._processes)}.log").open("w")
        with log:
            process = subprocess.Popen(
                [self.python, "-m", module, *map(str, args), *self.security],
                env=self.environ,
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._processes.append(process)
        return process

    @property
    def scheduler(self):
        """The scheduler's process."""
        return self._processes[0]

    def worker(self, name, *args):
        """Start a worker; it joins when it is ready."""
        self.check()
        arguments = ("--name", name, "--no-dashboard", *args)
        return self._start("distributed.cli.dask_worker", self.address, *arguments)

    def check(self):
        """Fail if a process ended by itself."""
        for number, process in enumerate(self._processes):
            if process.poll() is not None:
                raise AssertionError((self.folder / f"{number}.log").read_text())

    def close(self):
        # Workers first: one whose scheduler is gone takes its time.
        scheduler, *workers = self._processes
        for group in (workers, [scheduler]):
            self._end(group)

    def _end(self, processes):
        for process in processes:
            process.terminate()
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
            process.kill()
            process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


if sys.platform == "win32":
    pytest.skip("processes are ended by signals", allow_module_level=True)
