"""Connections to clusters: the current client or an embedded cluster, and the plugin there."""

from __future__ import annotations

import asyncio
import atexit
import copyreg
import pickle
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import wraps
from inspect import Parameter, signature
from typing import Any, ParamSpec, TypeVar, cast

from dask.system import CPU_COUNT
from distributed import Client, LocalCluster, get_client
from distributed.core import clean_exception
from distributed.protocol.serialize import dask_deserialize, dask_serialize

from handoff_dask import config
from handoff_dask._version import __version__, fits
from handoff_dask.compat import client_side as compat
from handoff_dask.compat.streams import bound_log
from handoff_dask.compat.worker import process_client
from handoff_dask.errors import (
    ClusterLostError,
    FunctionFailedError,
    HandoffError,
    StandInError,
    VersionError,
)
from handoff_dask.packed_errors import packed
from handoff_dask.scheduler.plugin import HandoffPlugin
from handoff_dask.standins import text_of
from handoff_dask.tracebacks import without_ours
from handoff_dask.worker.current import refuse_isolated

T = TypeVar("T")
P = ParamSpec("P")
#: Seconds between checks that a scheduler which has not answered yet is still there.
PULSE = 0.5


def current_client(client: Client | None = None) -> Client | None:
    """Return the client given, or else the default one, that of this worker, or None."""
    refuse_isolated("using a cluster")
    if client is not None:
        if not isinstance(client, Client):
            raise TypeError(f"client must be a dask.distributed.Client or None, not {client!r}")
        return client
    try:
        return get_client()
    except ValueError:
        return process_client()


def require_client(client: Client | None = None) -> Client:
    """Return the client given or the current one; raise ValueError if there is none."""
    client = current_client(client)
    if client is None:
        raise ValueError("no client: create a dask.distributed.Client first, or pass client=")
    return client


def keyword_client(function: Callable[P, T]) -> Callable[P, T]:
    """Accept the keyword `client` also as the next positional argument, and warn."""
    kinds = [parameter.kind for parameter in signature(function).parameters.values()]
    positional = kinds.count(Parameter.POSITIONAL_OR_KEYWORD)

    @wraps(function)
    def accepting(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if len(args) == positional + 1 and "client" not in kwargs:
            *args, kwargs["client"] = args  # type: ignore[assignment]
            warnings.warn(
                f"{function.__name__}() will take its client by keyword only: write client=...",
                DeprecationWarning,
                stacklevel=2,
            )
        return function(*args, **kwargs)

    return cast("Callable[P, T]", accepting)


class EmbeddedCluster:
    """A cluster in this process, for as long as a run needs it."""

    def __init__(self) -> None:
        self.cluster = LocalCluster(
            n_workers=1,
            threads_per_worker=CPU_COUNT,
            processes=config.get("embedded.processes"),
            dashboard_address="localhost:0",
            scheduler_kwargs={"dashboard": False},
        )
        self.client = Client(self.cluster, set_as_default=False)
        # Dask would close it at exit, but waits.
        atexit.register(self.close)

    def close(self) -> None:
        """Stop the cluster without waiting for functions that still run, if a run ended early.

        Their threads go on until this process ends; worker processes are ended.
        """
        atexit.unregister(self.close)
        if self.client.status == "closed":
            return
        if compat.on_loop(self.client):
            # The last reference to a run may be dropped on the loop, which cannot wait for itself.
            threading.Thread(target=self._close, name="handoff-close").start()
        else:
            self._close()

    def _close(self) -> None:
        compat.close_clients(self.cluster)
        self.client.sync(compat.end_workers, self.cluster)
        self.client.close()
        self.cluster.close()


async def installed(client: Client) -> dict[str, Any] | None:
    """Return the facts of the plugin on a client's scheduler; None if it is not there."""
    await compat.connected(client)
    _require_scheduler(client)
    facts: Any = client.get_metadata([HandoffPlugin.name], default=None)
    return cast("dict[str, Any] | None", await answered(client, facts))


async def install(client: Client) -> None:
    """Install the plugin on a client's scheduler and its workers, unless it is there.

    It brings a copy of the package to those that lack it.

    Raises
    ------
    HandoffError
        The scheduler takes no plugins from clients, has a broken copy of the package or another
        version, or is gone.
    """
    facts = await installed(client)
    if client.scheduler_comm is not None:
        bound_log(client.scheduler_comm)
    if facts is None:
        try:
            plugin = HandoffPlugin()
            await answered(client, client.register_plugin(plugin, name=HandoffPlugin.name))
        except ValueError as error:
            if "disallowed" not in str(error):
                raise
            raise HandoffError(
                f"the scheduler takes no plugins from clients ({error}): have its operator start "
                "it with --preload handoff_dask.preload"
            ) from error
        except ImportError as error:
            raise HandoffError(f"on the scheduler, {error}") from error
        facts = await installed(client) or {}
    _check_versions(facts)


def _check_versions(facts: Mapping[str, Any]) -> None:
    """Warn of versions that differ, or raise if the scheduler's does not fit ours."""
    theirs = facts.get("version", __version__)
    if not fits(theirs):
        raise VersionError("the scheduler", theirs, __version__)
    others = {f"worker {address}": v for address, v in facts.get("strangers", {}).items()}
    for where, version in {"the scheduler": theirs, **others}.items():
        if version != __version__:
            warnings.warn(
                f"{where} has handoff_dask {version}, this client {__version__}", stacklevel=2
            )
    for address, problem in facts.get("unusable", {}).items():
        warnings.warn(f"worker {address} is given no functions: {problem}", stacklevel=2)


# Dask has tblib pickle exceptions, which fails if the cause cannot be pickled: all types known when
# Dask is imported, and what its tasks raise later. The latter then come here, see below.
copyreg.pickle(FunctionFailedError, FunctionFailedError.__reduce__)


@dask_serialize.register(FunctionFailedError)  # type: ignore[untyped-decorator]
def _serialized(error: FunctionFailedError) -> tuple[dict[str, Any], list[bytes]]:
    """Pickle an error for Dask, whatever its cause."""
    return {}, [pickle.dumps(packed(error))]


@dask_deserialize.register(FunctionFailedError)  # type: ignore[untyped-decorator]
def _deserialized(header: dict[str, Any], frames: list[bytes]) -> Exception:
    error: Exception = pickle.loads(frames[0])
    return error


async def restored(
    errors: Iterable[tuple[int, Any, Any, str]], texts: Mapping[int, tuple[str, str]]
) -> dict[int, BaseException]:
    """Return exceptions that can be raised, by index.

    Parameters
    ----------
    errors
        As the scheduler keeps them: (index, exception, traceback, text of the traceback).
    texts
        {index: (type, message)} for those that cannot be unpickled here.
    """

    def restore() -> dict[int, BaseException]:
        exceptions = {}
        for index, error, traceback, text in errors:
            try:
                exception: Any = pickle.loads(error) if isinstance(error, bytes) else error
                if exception.__traceback__ is None:  # errors of functions bring their own
                    _, _, frames = clean_exception(None, traceback)
                    exception = exception.with_traceback(without_ours(frames))
            except BaseException as problem:  # unpickling may run the user's code
                unknown = type(problem).__name__, text_of(problem)
                exception = StandInError(*texts.get(index, unknown), text)
            exceptions[index] = exception
        return exceptions

    # A restored traceback refers to the frames that it was restored under, and these to whatever
    # they hold: results, for example, which would stay on the cluster. A thread has none of them.
    return await asyncio.get_running_loop().run_in_executor(None, restore)


def sync(client: Client, method: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Run a coroutine function on the client's loop; with an asynchronous client, return it.

    Tracebacks of our own errors leave out the frames of Dask and of this package.
    """
    __tracebackhide__ = True

    async def answer() -> Any:
        __tracebackhide__ = True
        try:
            return await method(*args)
        except HandoffError as error:
            raise error.with_traceback(None) from error.__cause__

    try:
        return client.sync(answer)
    except HandoffError as error:
        raise error.with_traceback(None) from error.__cause__


async def call(client: Client, handler: str, /, **kwargs: Any) -> Any:
    """Call a handler of the plugin; raise ClusterLostError if the scheduler is gone."""
    return await ask(client, f"handoff_{handler}", **kwargs)


async def ask(client: Client, handler: str, /, **kwargs: Any) -> Any:
    """Call a handler of the scheduler; as :func:`call`."""
    _require_scheduler(client)
    return await answered(client, getattr(client.scheduler, handler)(**kwargs))


async def answered(client: Client, answer: Awaitable[T]) -> T:
    """Wait for an answer of the scheduler; raise ClusterLostError if the scheduler is gone.

    By itself, a call keeps looking for a scheduler that is gone, and does not say so.
    """
    asked = asyncio.ensure_future(answer)
    try:
        while not asked.done():
            _require_scheduler(client)
            await asyncio.wait([asked], timeout=PULSE)
        return asked.result()
    except OSError:
        # The client learns of the loss on another connection, perhaps a moment later.
        for _ in range(10):
            _require_scheduler(client)
            await asyncio.sleep(PULSE / 5)
        raise
    finally:
        asked.cancel()


def _require_scheduler(client: Client) -> None:
    if client.status in ("closing", "closed"):
        # By its user, or by itself once Dask has given up connecting again.
        raise ClusterLostError(None, "its client was closed, or the scheduler went away")
    if client.status != "running":
        raise ClusterLostError(None, "the scheduler went away")
