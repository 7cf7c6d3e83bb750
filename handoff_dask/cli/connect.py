"""The options that say where a command runs, and a client of that cluster."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click
import dask.config
from dask.system import CPU_COUNT
from dask.utils import parse_timedelta
from distributed import Client, Nanny, Scheduler, Security, SpecCluster, Worker
from distributed.comm.addressing import get_address_host_port, parse_address
from distributed.core import rpc
from distributed.system import MEMORY_LIMIT

from handoff_dask.cli.command import DEBUG
from handoff_dask.cli.exit_codes import CLUSTER, Problem
from handoff_dask.cli.signals import leave
from handoff_dask.model.amounts import as_amount

#: Seconds until the command says what it waits for.
_NOTICE_AFTER = 1.0
#: Seconds that a scheduler may take to finish a file that it has begun to write.
_FILE_COMPLETE = 3.0
#: Above every level of a log.
_SILENT = logging.CRITICAL + 1

F = TypeVar("F", bound=Callable[..., Any])
#: A worker of an embedded cluster: its name, if it has one, and its capabilities.
WorkerSpec = tuple[str | None, Mapping[str, float]]


def parse_worker(text: str) -> WorkerSpec:
    """Return the name, if there is one, and the capabilities of a worker (cores, MB, units).

    Examples
    --------
    >>> parse_worker("cpu=4,memory=8GB"), parse_worker("name=big,memory=8000")
    ((None, {'cpu': 4.0, 'memory': 8000.0}), ('big', {'memory': 8000.0}))
    """

    def bad(problem: str) -> click.BadParameter:
        return click.BadParameter(f'{problem}. Write it as "cpu=4,memory=8GB,gpu=1".')

    name: str | None = None
    capabilities: dict[str, float] = {}
    for part in text.split(","):
        key, _, amount = (piece.strip() for piece in part.partition("="))
        if not key or not amount:
            raise bad(f"{part!r} is not of the form resource=amount")
        if key.lower() in capabilities or (key == "name" and name is not None):
            raise bad(f"{key!r} is given twice")
        if key == "name":
            name = amount
            continue
        number = math.nan
        for read in (float, functools.partial(as_amount, key)):
            with contextlib.suppress(ValueError):
                number = read(amount)
                break
        if not (math.isfinite(number) and number >= 0):
            raise bad(f"the amount of {key!r} must be a finite number >= 0, not {amount!r}")
        capabilities[key.lower()] = number
    return name, capabilities


@dataclass(frozen=True)
class Where:
    """The options of a command that say where it runs."""

    scheduler: str | None = None
    scheduler_file: str | None = None
    tls_ca_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    #: The workers of an embedded cluster.
    workers: tuple[WorkerSpec, ...] = ()
    #: Whether Dask's log is shown.
    debug: bool = False

    def __post_init__(self) -> None:
        if self.scheduler and self.scheduler_file:
            raise Problem("--scheduler and --scheduler-file exclude each other")
        if self.workers and (self.scheduler or self.scheduler_file):
            raise Problem("--worker is for embedded clusters; a running scheduler has its workers")
        if len(self.capabilities) < len(self.workers):
            raise Problem("two workers have the same name")
        if (self.tls_cert or self.tls_key) and not self.tls_ca_file:
            raise Problem("--tls-cert and --tls-key need --tls-ca-file")

    @property
    def remote(self) -> bool:
        """Whether the command uses a running cluster."""
        return self.address is not None or self.scheduler_file is not None

    @property
    def address(self) -> str | None:
        """The scheduler's address, from the command line or else from Dask's configuration."""
        if self.scheduler or self.scheduler_file or self.workers:
            return self.scheduler
        address: str | None = dask.config.get("scheduler-address", None)
        return address

    @property
    def capabilities(self) -> dict[str, Mapping[str, float]]:
        """What each worker of an embedded cluster offers, by name."""
        return {
            str(name or f"worker-{number}"): offered
            for number, (name, offered) in enumerate(self.workers)
        }

    @property
    def security(self) -> Security:
        """The TLS files of the command line or else of Dask's configuration."""
        if not self.tls_ca_file:
            return Security()
        return Security(
            tls_ca_file=self.tls_ca_file,
            tls_client_cert=self.tls_cert,
            tls_client_key=self.tls_key,
            require_encryption=True,
        )


def cluster_options(*, workers: bool = True) -> Callable[[F], F]:
    """Add the options that say where a command runs, and pass them to it as `where`.

    `workers` says whether the command can start an embedded cluster.
    """
    file = click.Path(exists=True, dir_okay=False)
    options = [
        click.option("--scheduler", metavar="ADDRESS", help="Address of a running scheduler."),
        click.option(
            "--scheduler-file",
            type=click.Path(dir_okay=False),
            help="File to which the scheduler writes its address.",
        ),
        click.option("--tls-ca-file", type=file, help="CA certificates for TLS (PEM)."),
        click.option("--tls-cert", type=file, help="Certificate for TLS (PEM)."),
        click.option("--tls-key", type=file, help="Private key for TLS (PEM)."),
    ]
    if workers:
        options.append(
            click.option(
                "--worker",
                "workers",
                type=parse_worker,
                multiple=True,
                metavar="RESOURCES",
                help='A worker of an embedded cluster, such as "cpu=4,memory=8GB,gpu=1" (cores, '
                'memory, units); "name=..." is what pins refer to. Repeat for each worker.',
            )
        )

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def wrapped(**params: Any) -> Any:
            own = {f.name: params.pop(f.name) for f in fields(Where) if f.name in params}
            debug = click.get_current_context().meta[DEBUG]
            return command(where=Where(**own, debug=debug), **params)

        for option in reversed(options):
            option(wrapped)
        return wrapped  # type: ignore[return-value]

    return decorate


@contextlib.contextmanager
def connected(where: Where, *, embedded: bool = True, processes: bool = False) -> Iterator[Client]:
    """Provide a client of the cluster that was named or else, if allowed, of an embedded one.

    `processes` says whether its workers are processes, which functions that compute need.
    """
    if not where.debug:
        # The command's own errors say what matters of it.
        _hush("distributed", "tornado")
    if where.remote:
        with _client(where) as client:
            yield client
    elif not embedded:
        raise Problem(
            "which cluster? Give --scheduler ADDRESS or --scheduler-file FILE, or set "
            "DASK_SCHEDULER_ADDRESS"
        )
    else:
        with _cluster(where, processes) as cluster:
            try:
                with Client(cluster, set_as_default=False) as client:
                    yield client
            finally:
                # Nobody waits for functions that may still run there.
                cluster.sync(_stop_workers, list(cluster.workers.values()))


async def _stop_workers(workers: Sequence[Any]) -> None:
    await asyncio.gather(*(worker.close(timeout=1) for worker in workers))


def _hush(*names: str) -> None:
    """Silence loggers and their descendants, which may have levels of their own."""
    for name in (*names, *logging.root.manager.loggerDict):
        if name.partition(".")[0] in names:
            logging.getLogger(name).setLevel(_SILENT)


def _client(where: Where) -> Client:
    timeout = parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"))
    address = where.address or _address_in(str(where.scheduler_file), timeout)
    security = where.security
    try:
        scheme, _ = parse_address(address)
        get_address_host_port(address)
    except (ValueError, NotImplementedError) as error:
        raise Problem(f"{address!r} is not the address of a scheduler: {error}") from None
    if scheme == "tls" and security.get_connection_args("client").get("ssl_context") is None:
        raise Problem(
            f"{address} needs --tls-ca-file, --tls-cert and --tls-key, or Dask's own settings"
        )
    with _notice(f"connecting to {address}; giving up after {timeout:g} s"):
        try:
            # A client would wait forever if the other side accepts but never answers.
            asyncio.run(_check_scheduler(address, security, timeout))
            return Client(address, security=security, set_as_default=False)
        except Problem:
            raise
        except Exception as error:
            root: BaseException = error
            while root.__cause__ is not None and str(root.__cause__):
                root = root.__cause__
            why = str(root) or f"it did not answer within {timeout:g} s"
            raise Problem(f"cannot reach the scheduler {address}: {why}", CLUSTER) from error


async def _check_scheduler(address: str, security: Security, timeout: float) -> None:
    """Raise unless a scheduler answers at an address."""

    async def identity() -> Any:
        args = security.get_connection_args("client")
        async with rpc(address, timeout=timeout, connection_args=args) as server:
            return await server.identity()

    # Dask raises the reason only when its own timeout ends: let that come first.
    facts = await asyncio.wait_for(identity(), timeout + 1)
    if "workers" not in facts:
        raise Problem(f"{address} is the address of a {facts['type']}, not of a scheduler", CLUSTER)


@contextlib.contextmanager
def _notice(text: str) -> Iterator[None]:
    """Say what the command waits for, if it takes a while."""
    timer = threading.Timer(_NOTICE_AFTER, click.echo, [text], {"err": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _address_in(file: str, timeout: float) -> str:
    """Return the address in a scheduler's file, once the scheduler has written it."""
    # A batch job may start before its scheduler. Once the file is there, it is soon complete.
    started = time.monotonic()
    with _notice(f"waiting for the scheduler file {file}; giving up after {timeout:g} s"):
        while True:
            patience = timeout
            try:
                written = Path(file).read_text()
                if written:
                    patience = min(timeout, _FILE_COMPLETE)
                return str(json.loads(written)["address"])
            except FileNotFoundError:
                problem = f"did not appear within {timeout:g} s"
            except OSError as error:
                problem = f"cannot be read: {error.strerror or error}"
            except (ValueError, KeyError, TypeError):
                problem = "was not written by a scheduler" if written else "is empty"
            if time.monotonic() - started > patience:
                raise Problem(f"the scheduler file {file} {problem}", CLUSTER)
            time.sleep(0.1)


def _cluster(where: Where, processes: bool) -> SpecCluster:
    """Start a worker for each that was described, or else a single one with the whole machine."""
    level = logging.INFO if where.debug else _SILENT
    declared = where.capabilities or {"worker-0": {}}
    specs: dict[str | int, Any] = {}
    for name, offered in declared.items():
        options: dict[str, Any] = {
            "nthreads": max(1, math.ceil(offered["cpu"])) if "cpu" in offered else CPU_COUNT,
            "resources": dict(offered),
            # A memory that was declared is not enforced; otherwise workers share the machine's.
            "memory_limit": 0 if "memory" in offered else MEMORY_LIMIT // len(declared),
            "dashboard": False,
            "host": "127.0.0.1",
        }
        if processes:
            options["silence_logs"] = level
        specs[name] = {"cls": Nanny if processes else Worker, "options": options}
    options = {"dashboard": False, "dashboard_address": ":0", "host": "127.0.0.1", "port": 0}
    scheduler = {"cls": Scheduler, "options": options}
    try:
        return SpecCluster(workers=specs, scheduler=scheduler, silence_logs=level)
    except KeyboardInterrupt:
        # A cluster that is starting cannot be stopped in an orderly way.
        leave()
