"""The life of a run at its client: from its submission, or from when it is followed, to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

from distributed import Client, Future

from handoff_dask.attempts.states import STATES, STORED, UNENDED
from handoff_dask.client import connection, outcomes, waiting
from handoff_dask.client.describing import Outline
from handoff_dask.client.explaining import Fetching, RunExplanation, Unready
from handoff_dask.client.listening import Listener
from handoff_dask.client.options import Allocator
from handoff_dask.client.results import Attempts, ExecutionResult
from handoff_dask.client.sending import Sender
from handoff_dask.client.stored_results import record
from handoff_dask.client.submission import Submission
from handoff_dask.client.units import Unit, Units
from handoff_dask.errors import (
    ClusterLostError,
    HandoffError,
    InvalidFunctionError,
    RunCancelledError,
)
from handoff_dask.model.attempt import Attempt
from handoff_dask.placement.events import Waiting
from handoff_dask.wire.messages import Opened, RunReport, allocation_error

logger = logging.getLogger(__name__)

#: How often a run starts again without exactly what the store has lost; then, without all it has.
_RESTARTS = 8
#: Seconds before the first further look at a run that the scheduler does not yet call over.
PAUSE = 0.005


class Progress(NamedTuple):
    """The functions of a run by state, and the seconds that it will still take, if known."""

    counts: dict[str, int]
    remaining: float | None


class Follower:
    """A run, as its client follows it. The coroutines run on the client's event loop."""

    def __init__(self, outline: Outline, client: Client) -> None:
        self.outline = outline
        self.client = client
        #: Its tasks, and the results that are here.
        self.units = Units(outline, client)
        self._sender: Sender | None = None
        #: What it was started from, if results are stored, and what happened in it before something
        #: that was stored turned out to be gone.
        self._submission: Submission | None = None
        self._before: outcomes.Before = outcomes.NOTHING
        #: Key of the task that submitted it, if any.
        self._within: Any = None
        #: When it was last started, by the loop's clock, and how often it was started again.
        self._began, self._restarts = 0.0, 0
        #: Whether another client submitted it.
        self._followed = False
        #: Why this client stopped the run, if it did.
        self._stopped: RunCancelledError | None = None
        self._outcome: asyncio.Future[ExecutionResult] | None = None
        #: Functions by state at the end of the run: a failed one is forgotten on the scheduler.
        self._final: Mapping[str, int] = {}
        self._listener: Listener | None = None
        #: Stops the cluster, if it was started for this run.
        self.close: Callable[[], Any] = lambda: None

    # Known without asking the scheduler

    @property
    def over(self) -> bool:
        """Whether the run has ended and, if it is waited for, its results are here."""
        if self._outcome is not None:
            return self._outcome.done()
        return all(unit.future.done() for unit in self.units)

    @property
    def remark(self) -> str:
        """How the run ended, if that is known."""
        if self._outcome is None or not self._outcome.done():
            return ""
        error = None if self._outcome.cancelled() else self._outcome.exception()
        return "ended" if error is None else f"{type(error).__name__}: {error}"

    def known_counts(self) -> dict[str, int]:
        """Return how many functions are in which state, as far as the futures tell."""
        if self._final:
            return self._before.counted(self._final)
        names = {"finished": "done", "error": "failed", "pending": "waiting"}
        counts = dict.fromkeys(STATES, 0)
        if self.outline.stored.store is not None:
            counts[STORED] = len(self.outline.stored.results)
        for unit in self.units:
            counts[names.get(str(unit.future.status), "cancelled")] += len(unit.indices)
        return self._before.counted(counts)

    def _counted(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Return the counts of all functions, given the scheduler's."""
        # It does not keep a run of which nothing is left to run.
        return self._before.counted(counts) if counts else self.known_counts()

    # The start

    async def start(self, submission: Submission, within: Any) -> None:
        """Open the run on the cluster; `within` is the key of the task that submits it, if any."""
        client, options, self._within = self.client, submission.options, within
        if options.stored_in is not None:
            self._submission, self._began = submission, asyncio.get_running_loop().time()
        await connection.install(client)
        if futures := submission.translator.futures:
            # Dask cancels what depends on a function that it does not know yet.
            await self._call("sent", keys=[future.key for future in futures.values()])
        pins = None
        if isinstance(options.allocation_strategy, Allocator):
            nodes = await self._call("nodes")
            pins = submission.pins(
                {address: node["capabilities"] for address, node in nodes.items()},
                {address: node["names"] for address, node in nodes.items()},
            )
        if submission.has_listeners:
            self._listener = Listener(client, self.outline, options.on_event, submission.log)
        try:
            spec = submission.spec(client.id, pins, within)
            opened: Opened = pickle.loads(await self._call("open", spec=spec))
            if opened.refused is not None:
                index, finding = opened.refused
                node = self.outline.nodes[index]
                raise allocation_error(node.function.id, node.cost, finding)
            if opened.unavailable is not None:
                index, problem = opened.unavailable
                raise InvalidFunctionError(
                    self.outline.nodes[index].function.id, "isolate", problem
                )
            if self._stopped is not None:  # cancelled meanwhile
                raise self._stopped
            await asyncio.to_thread(
                record, self.outline.stored, self.outline.dag_id, self.outline.nodes
            )
            if submission.order:
                self._sender = Sender(client, submission, opened, self._ask, self.units.add)
        except BaseException:
            await self._give_up()
            raise

    async def send(self, calls: Mapping[int, Any]) -> bool:
        """Send functions of the run; return whether more are of use."""
        if self._sender is None:
            return False  # it has none
        try:
            await self._sender.add(calls)
        except BaseException:
            await self._give_up()
            raise
        return not self.ending().done()

    async def sent(self, detach: bool) -> None:
        """Return once the run is under way or, if it is detached, the cluster has all of it."""
        self.ending()
        if detach:
            # The client may be closed as soon as this returns.
            await self._arrival()

    async def _give_up(self) -> None:
        """Have the scheduler forget the run: nothing more will follow."""
        with contextlib.suppress(OSError, ClusterLostError):
            await self._ask("close")

    async def _arrival(self) -> None:
        """Wait until the scheduler has the graph; raise if it will not get it."""
        # If the scheduler refuses it, the futures fail, and whoever waits for them stops the run.
        watch = asyncio.get_running_loop().call_later(connection.PULSE, self.ending)
        try:
            if not await self._ask("arrived"):
                await asyncio.shield(self.ending())
        finally:
            watch.cancel()

    async def follow(self) -> Follower:
        """Follow a run that another client submitted."""
        self._followed = True
        client = self.client
        self.units.add(
            Unit(Future(key, client), indices, is_bundle)
            for key, indices, is_bundle in self.outline.units
        )
        # Only now: the scheduler answers with the states, which only existing futures receive.
        await waiting.want(client, self.units.futures)
        return self

    # Questions

    async def _call(self, handler: str, **kwargs: Any) -> Any:
        """Call a handler of the plugin; the error of a lost cluster names the DAG."""
        try:
            return await connection.call(self.client, handler, **kwargs)
        except ClusterLostError as error:
            raise self._named(error) from error

    def _named(self, error: ClusterLostError) -> ClusterLostError:
        return ClusterLostError(self.outline.dag_id, error.problem)

    async def _ask(self, handler: str, **kwargs: Any) -> Any:
        return await self._call(handler, run_id=self.outline.run_id, **kwargs)

    async def status(self) -> dict[str, Any]:
        """Count the functions by state, and return the attempts."""
        report, _ = await self.report()
        return {**self._counted(report.counts), "attempts": self._attempts(report)}

    async def attempts(self) -> dict[Hashable, tuple[Attempt, ...]]:
        """Return the attempts that have ended, by function."""
        report, _ = await self.report()
        return self._attempts(report)

    def _attempts(self, report: RunReport) -> dict[Hashable, tuple[Attempt, ...]]:
        attempts = Attempts(report, self.outline.nodes, self.outline.stored)
        return dict(self._before.and_then(attempts))

    async def progress(self) -> Progress:
        """Ask how far the run is."""
        answer = await self._ask("progress")
        return Progress(self._counted(answer["counts"]), answer["remaining"])

    async def counts(self) -> dict[str, int]:
        """Count the functions by state."""
        return (await self.progress()).counts

    async def remaining(self) -> float | None:
        """Return the seconds that the run will still take, as the scheduler estimates them."""
        return (await self.progress()).remaining

    async def holds(self) -> list[tuple[int, Mapping[str, float], Waiting]]:
        """Return what functions are held for: how many, what they cost, and why."""
        holds: list[tuple[int, Mapping[str, float], Waiting]]
        holds = pickle.loads(await self._ask("holds"))
        return holds

    async def explain(self, held: int | None) -> RunExplanation:
        """Tell what each function that is not running waits for."""
        answer = await self._ask("why", held=held)
        nodes = self.outline.nodes
        verdicts: dict[Hashable, Waiting | Unready | Fetching] = {}
        for index, why in pickle.loads(answer).items():
            id_ = nodes[index].function.id
            if isinstance(why, tuple):  # a transform fetches for its function
                verdicts[id_] = Fetching.of(why, nodes)
            elif nodes[index].kind == "function":
                if isinstance(why, list):
                    lacks = dict.fromkeys(nodes[i].function.id for i in why)
                    why = Unready(tuple(other for other in lacks if other != id_))
                verdicts[id_] = why or Waiting("next")
        return RunExplanation(verdicts)

    async def report(self) -> tuple[RunReport, outcomes.Causes]:
        """Ask the scheduler what happened, and for the errors of what failed, the first first."""
        answer = await self._ask("report")
        if answer is None and not self.outline.awaited:
            return RunReport(), {}  # the scheduler does not keep a run of which nothing runs
        return await outcomes.opened_report(answer)

    # The end

    def cancel(self) -> Any:
        """Stop the run, because the user wants it."""
        reason = RunCancelledError(self.outline.dag_id, "it was cancelled")
        return connection.sync(self.client, self.stop, reason)

    async def stop(self, reason: RunCancelledError) -> None:
        """Stop the run, if it has not ended."""
        if self._outcome is not None and self._outcome.done():
            return
        self._stopped = self._stopped or reason
        with contextlib.suppress(OSError, ClusterLostError):
            problem = "its functions were cancelled on the cluster"
            await self._ask("stop", kind="cancelled", problem=problem)
        if self._outcome is not None:
            await asyncio.wait([self._outcome])

    async def leave(self) -> None:
        """Wait for the end and raise the error of the run, unless this client cancelled it."""
        try:
            await self.result(None)
        except RunCancelledError:
            if self._stopped is None:
                raise

    async def complete(self) -> ExecutionResult:
        """Return the result and leave nothing behind; stop the run if that is cancelled."""
        try:
            return await self.result(None)
        except BaseException:
            # Also when the task that waits here is cancelled.
            await self.stop(RunCancelledError(self.outline.dag_id, "nobody waits for it any more"))
            raise
        finally:
            self.units.release()
            if self._listener is not None:
                # The last events come once the results are released.
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._listener.closed.wait(), waiting.PATIENCE)

    async def wait(self, timeout: float | None) -> None:
        """Wait for the end, whatever it is."""
        with contextlib.suppress(HandoffError):
            await self.result(timeout)

    async def result(self, timeout: float | None) -> ExecutionResult:
        """Wait for the end, and return the result or raise what the run ended with."""
        dag_id = self.outline.dag_id
        if self._outcome is None and not self._followed:
            raise self._stopped or RunCancelledError(dag_id, "it was never started")
        outcome = self.ending()
        # The run goes on even if whoever waits for it gives up.
        await asyncio.wait([outcome], timeout=timeout)
        if not outcome.done():
            raise await self.too_late(timeout)
        return await asyncio.shield(outcome)

    async def too_late(self, timeout: float | None) -> TimeoutError:
        """Return the error that the run did not end in time, which says what has not ended."""
        text = f"run {self.outline.dag_id!r} did not end within {timeout} s"
        with contextlib.suppress(OSError, ClusterLostError, asyncio.TimeoutError):
            counts = await asyncio.wait_for(self.counts(), waiting.PATIENCE)
            states = [f"{counts[s]} {s}" for s in STATES if s in UNENDED and counts[s]]
            if states:
                text += f"; of its functions {', '.join(states)}"
        return TimeoutError(text)

    async def fetched(self, ids: Iterable[Hashable]) -> dict[Hashable, Any]:
        """Return {function id: value} of those functions whose results can be had now."""
        await self.units.fetch()
        values = self.units.values
        return {id_: values[id_] for id_ in ids if id_ in values}

    def ending(self) -> asyncio.Future[ExecutionResult]:
        """Wait for the end and fetch the results: for a run that is followed, once asked to."""
        if self._outcome is None:
            self._outcome = waiting.outcome_of(self._finish())
        return self._outcome

    async def _finish(self) -> ExecutionResult:
        """Wait for the end of the run, and fetch its results or say why there are none."""
        try:
            while True:
                report, causes = await self._ended()
                if gone := self._gone(report, causes):
                    await self._start_again(gone, report, causes)
                    continue
                self._final = report.counts
                result = outcomes.result_of(
                    self.outline,
                    report,
                    causes,
                    self.units.values,
                    self.units.problems,
                    self._stopped,
                    self._before,
                )
                known = result.results.keys() | result.errors.keys()
                # Or else some ran again, and failed, after the report.
                if report.stop is not None or known >= set(self.outline.wanted):
                    return result
                await asyncio.sleep(waiting.PATIENCE / 10)
        except HandoffError as error:
            self.units.release()
            if isinstance(error, ClusterLostError):
                raise self._named(error) from error
            raise

    async def _ended(self) -> tuple[RunReport, outcomes.Causes]:
        """Wait for the end of the run, and fetch its results."""
        units = self.units
        while True:
            await self._until_sent()
            await waiting.ended(self.client, self.outline.run_id, units.futures)
            report, causes = await self._final_report()
            await waiting.settle(self.client, units.futures)
            await units.fetch()
            if report.stop is not None or units.complete:
                return report, causes
            # A worker that was lost meanwhile took results with it; these are made again.
            await asyncio.sleep(waiting.PATIENCE / 10)

    def _gone(self, report: RunReport, causes: outcomes.Causes) -> frozenset[str]:
        """Return the keys of what the store has lost since it was looked up."""
        if self._submission is None or self._stopped or report.stop is not None:
            return frozenset()
        errors = (*causes.values(), *self.units.problems.values())
        missing = {error.key for error in errors if outcomes.is_missing(error)}
        # Not what an argument, or a function's own run, was to read.
        used = {stored.location.key for stored in self.outline.stored.results.values()}
        gone = frozenset(missing & used)
        if not gone or self._restarts < _RESTARTS:
            return gone
        logger.warning(
            "Run %r goes on without what is stored: after %d starts, there are still results that "
            "this client has seen in %r, and that are missing for its workers",
            self.outline.dag_id,
            self._restarts + 1,
            self.outline.stored.store,
        )
        return frozenset(used)

    async def _start_again(
        self, gone: frozenset[str], report: RunReport, causes: outcomes.Causes
    ) -> None:
        """Run what is left without what the store has lost; it has the rest."""
        assert self._submission is not None
        self._restarts += 1
        before = self._before.then(self.outline, report, causes, self.units.values, gone)
        if self._submission.options.detach:
            # Other clients only see the last start, which has to have it all.
            before = before._replace(over=frozenset(), values={}, errors={})
        self.units.by_function.leave()
        self.units.release()
        since = asyncio.get_running_loop().time() - self._began
        submission = await asyncio.to_thread(self._submission.again, gone, before.over, since)
        self._before, self.outline = before, submission.outline
        self.units = Units(self.outline, self.client, before)
        await self.start(submission, self._within)
        for piece in submission.pieces():
            if not await self.send(piece):
                break

    async def _until_sent(self) -> None:
        """Wait until the cluster has been sent all of the run, or needs no more of it."""
        if self._sender is None:
            return
        over = waiting.over(self.client, self.outline.run_id)
        sending = waiting.outcome_of(self._sender.finish())
        try:
            while not (over.done() or sending.done() or await self._refused()):
                await asyncio.wait(
                    [over, sending], timeout=waiting.INTERVAL, return_when=asyncio.FIRST_COMPLETED
                )
            if sending.done():
                sending.result()
            else:
                self._sender.stop()
        except Exception as error:
            await self._ask("stop", kind="failed", problem=f"it could not be sent: {error!r}")
            raise
        finally:
            over.cancel()
            self._sender = None  # it refers to this

    async def _refused(self) -> Future[Any] | None:
        """Return a future that has failed because the scheduler refused its graph, if one has."""
        failed = [future for future in self.units.futures if future.status == "error"]
        if not failed:
            return None
        report, _ = await self.report()
        return None if report.arrived or report.counts.get("failed") else failed[0]

    async def _final_report(self) -> tuple[RunReport, outcomes.Causes]:
        """Wait until the scheduler says that the run is over; return its report.

        Raise if the run never began, or goes on without this client.
        """
        loop, dag_id = asyncio.get_running_loop(), self.outline.dag_id
        pause, deadline = PAUSE, loop.time() + waiting.PATIENCE
        while True:
            report, causes = await self.report()
            if new := self.units.adopt(report.left):
                await waiting.want(self.client, new)
            if report.over:
                return report, causes
            if (refused := await self._refused()) is not None:
                error = await refused.exception()
                problem = f"the scheduler refused its graph: {outcomes.described(error)}"
                await self._ask("stop", kind="failed", problem=problem)
                raise HandoffError(f"run {dag_id!r}: {problem}") from error
            cancelled = any(f.status == "cancelled" for f in self.units.futures)
            if cancelled and loop.time() > deadline:
                if not report.arrived:
                    # A future among its arguments is gone: the scheduler has dropped the graph.
                    problem = "the cluster cancelled its functions before they had arrived"
                    await self._ask("stop", kind="cancelled", problem=problem)
                    continue
                raise RunCancelledError(
                    dag_id, "its futures were cancelled here, while it goes on on the cluster"
                )
            pause = min(2 * pause, waiting.INTERVAL)
            await asyncio.sleep(pause)
