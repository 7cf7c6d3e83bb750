"""Where a command runs: a cluster's address, or one of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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

from handoff_dask.cli import arguments
from handoff_dask.cli.failing import CLUSTER, Problem, leave

#: Seconds until the command says what it waits for, and for a scheduler to finish its file once it
#: has begun.
_AT_ONCE, _COMPLETE = 1.0, 3.0
#: Above every level of a log.
_NOTHING = logging.CRITICAL + 1

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Where:
    """The options of a command that say where it runs."""

    scheduler: str | None = None
    scheduler_file: str | None = None
    tls_ca_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    #: (name, capabilities) of each worker of an embedded cluster.
    workers: tuple[tuple[str | None, Mapping[str, float]], ...] = ()

    @property
    def remote(self) -> bool:
        """Whether it names a cluster that runs already."""
        return self.address is not None or self.scheduler_file is not None

    @property
    def address(self) -> str | None:
        """The scheduler's address, from the command line or, where nothing is said, from Dask."""
        if self.scheduler or self.scheduler_file or self.workers:
            return self.scheduler
        found: str | None = dask.config.get("scheduler-address", None)
        return found

    @property
    def capabilities(self) -> dict[str, Mapping[str, float]]:
        """What the workers of an embedded cluster offer, by name."""
        return {
            str(name or f"worker-{number}"): offered
            for number, (name, offered) in enumerate(self.workers)
        }

    def check(self) -> None:
        """Raise the problem of options that exclude each other."""
        if self.scheduler and self.scheduler_file:
            raise Problem("--scheduler and --scheduler-file say the same thing: give one of them")
        if self.workers and (self.scheduler or self.scheduler_file):
            raise Problem(
                "--worker describes a cluster of this command's own; a scheduler has its workers"
            )
        if len(self.capabilities) < len(self.workers):
            raise Problem("two workers have the same name")
        if (self.tls_cert or self.tls_key) and not self.tls_ca_file:
            raise Problem("--tls-cert and --tls-key need --tls-ca-file")

    @property
    def security(self) -> Security | None:
        """The TLS files, if there are any."""
        if not self.tls_ca_file:
            return None
        return Security(
            tls_ca_file=self.tls_ca_file,
            tls_client_cert=self.tls_cert,
            tls_client_key=self.tls_key,
            require_encryption=True,
        )


def _worker_option(
    ctx: click.Context, param: click.Parameter, given: Sequence[str]
) -> tuple[tuple[str | None, Mapping[str, float]], ...]:
    try:
        return tuple(arguments.worker(text) for text in given)
    except ValueError as error:
        raise click.BadParameter(f'{error}. Write it as "cpu=4,memory=8000,gpu=1".') from None


def cluster_options(*, workers: bool = True) -> Callable[[F], F]:
    """Give a command the options that say where it runs, as one argument `where`.

    Parameters
    ----------
    workers
        Whether it can have an embedded cluster.
    """
    file = click.Path(exists=True, dir_okay=False)
    options = [
        click.option("--scheduler", metavar="ADDRESS", help="Address of a running scheduler."),
        click.option(
            "--scheduler-file",
            type=click.Path(dir_okay=False),
            help="File in which the scheduler wrote its address.",
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
                multiple=True,
                metavar="RESOURCES",
                callback=_worker_option,
                help='A worker of an embedded cluster, such as "cpu=4,memory=8000,gpu=1" (cores, '
                'MB, units; "name=..." for pins); once for each.',
            )
        )

    def decorate(command: F) -> F:
        def wrapped(
            scheduler: str | None,
            scheduler_file: str | None,
            tls_ca_file: str | None,
            tls_cert: str | None,
            tls_key: str | None,
            workers: Any = (),
            **rest: Any,
        ) -> Any:
            where = Where(scheduler, scheduler_file, tls_ca_file, tls_cert, tls_key, workers)
            where.check()
            return command(where=where, **rest)

        wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
        wrapped.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped  # type: ignore[return-value]

    return decorate


@contextlib.contextmanager
def connected(
    where: Where, *, embedded: bool = True, processes: bool = False, debug: bool = False
) -> Iterator[Client]:
    """Provide a client of the cluster, which is this command's own if none was named.

    Parameters
    ----------
    where
        The options.
    embedded
        Whether there may be a cluster of its own.
    processes
        Whether the workers of that are processes, as functions need that compute.
    debug
        Whether Dask's log is shown.

    Raises
    ------
    Problem
        The scheduler cannot be reached, or none was named and one is needed.
    """
    if not debug:
        # What matters of it is told as the command's own error.
        _hush("distributed", "tornado")
    if where.remote:
        with _client(where) as client:
            yield client
    elif not embedded:
        raise Problem(
            "which cluster? Say --scheduler ADDRESS or --scheduler-file FILE, or set "
            "DASK_SCHEDULER_ADDRESS"
        )
    else:
        with _cluster(where.workers, processes, debug) as cluster:
            try:
                with Client(cluster, set_as_default=False) as client:
                    yield client
            finally:
                # Nobody waits any more for what may still run there.
                cluster.sync(_stop_workers, list(cluster.workers.values()))


async def _stop_workers(workers: Sequence[Any]) -> None:
    await asyncio.gather(*(worker.close(timeout=1) for worker in workers))


def _hush(*names: str) -> None:
    """Keep loggers quiet, and those below them, which have levels of their own."""
    for name in (*names, *logging.root.manager.loggerDict):
        if name.partition(".")[0] in names:
            logging.getLogger(name).setLevel(_NOTHING)


def _client(where: Where) -> Client:
    timeout = parse_timedelta(dask.config.get("distributed.comm.timeouts.connect"))
    address = where.address or _announced(str(where.scheduler_file), timeout)
    security = where.security or Security()
    try:
        scheme, _ = parse_address(address)
        get_address_host_port(address)
    except (ValueError, NotImplementedError) as error:
        raise Problem(f"{address!r} is not the address of a scheduler: {error}") from None
    if scheme == "tls" and security.get_connection_args("client").get("ssl_context") is None:
        raise Problem(f"{address} needs --tls-ca-file, --tls-cert and --tls-key, or Dask's own")
    with _notice(f"connecting to {address}; giving up after {timeout:g} s"):
        try:
            # Not with a client, which waits for ever if the other side accepts but never answers.
            asyncio.run(_meet(address, security, timeout))
            return Client(address, security=security, set_as_default=False)
        except Problem:
            raise
        except Exception as error:
            root: BaseException = error
            while root.__cause__ is not None and str(root.__cause__):
                root = root.__cause__
            why = str(root) or f"it did not answer within {timeout:g} s"
            raise Problem(f"cannot reach the scheduler {address}: {why}", CLUSTER) from error


async def _meet(address: str, security: Security, timeout: float) -> None:
    """Make sure that a scheduler answers at an address."""

    async def identity() -> Mapping[str, Any]:
        args = security.get_connection_args("client")
        async with rpc(address, timeout=timeout, connection_args=args) as server:
            answer: Mapping[str, Any] = await server.identity()
            return answer

    # The reason why it cannot be reached comes only at the end of the timeout.
    facts = await asyncio.wait_for(identity(), timeout + _AT_ONCE)
    if "workers" not in facts:
        raise Problem(f"{address} is the address of a {facts['type']}, not of a scheduler", CLUSTER)


@contextlib.contextmanager
def _notice(text: str) -> Iterator[None]:
    """Say what the command waits for, if it takes a while."""
    timer = threading.Timer(_AT_ONCE, click.echo, [text], {"err": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _announced(file: str, timeout: float) -> str:
    """Return the address that a scheduler writes into its file, once it does."""
    # A batch job may be ahead of its scheduler. What is in the file is complete soon.
    started = time.monotonic()
    with _notice(f"waiting for the scheduler file {file}; giving up after {timeout:g} s"):
        while True:
            patience = timeout
            try:
                written = Path(file).read_text()
                if written:
                    patience = min(timeout, _COMPLETE)
                return str(json.loads(written)["address"])
            except FileNotFoundError:
                problem = f"did not appear within {timeout:g} s"
            except OSError as error:
                problem = f"cannot be read: {error.strerror or error}"
            except (ValueError, KeyError, TypeError):
                problem = "is not that of a scheduler" if written else "is empty"
            if time.monotonic() - started > patience:
                raise Problem(f"the scheduler file {file} {problem}", CLUSTER)
            time.sleep(0.1)


def _cluster(
    workers: Sequence[tuple[str | None, Mapping[str, float]]], processes: bool, debug: bool
) -> SpecCluster:
    """Start workers that declare the capabilities given; without any, one that has it all."""
    level = logging.INFO if debug else _NOTHING
    declared = workers or [(None, {})]
    specs: dict[str | int, Any] = {}
    for number, (name, offered) in enumerate(declared):
        options: dict[str, Any] = {
            "nthreads": max(1, math.ceil(offered["cpu"])) if "cpu" in offered else CPU_COUNT,
            "resources": dict(offered),
            # What is declared is not measured; what is not declared is this machine's share.
            "memory_limit": 0 if "memory" in offered else MEMORY_LIMIT // len(declared),
            "dashboard": False,
            "host": "127.0.0.1",
        }
        if processes:
            options["silence_logs"] = level
        specs[name or f"worker-{number}"] = {
            "cls": Nanny if processes else Worker,
            "options": options,
        }
    scheduler = {
        "cls": Scheduler,
        "options": {
            "dashboard": False,
            "dashboard_address": ":0",
            "host": "127.0.0.1",
            "port": 0,
        },
    }
    try:
        return SpecCluster(workers=specs, scheduler=scheduler, silence_logs=level)
    except KeyboardInterrupt:
        # What is half started cannot be stopped, only ended.
        leave()
