"""Functions that travel together: what their workers report, and how they leave their bundle."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from handoff_dask.attempts.ledger import Entry
from handoff_dask.attempts.losses import End, Lost
from handoff_dask.attempts.members import (
    DONE,
    FAILED,
    OPEN,
    with_dependents,
    with_sources,
)
from handoff_dask.attempts.states import PLACED, Running
from handoff_dask.compat import scheduler as compat
from handoff_dask.compat.task_spec import Task, TaskRef, referred_key
from handoff_dask.model.attempt import UNKNOWN, Usage
from handoff_dask.placement.engine import Engine
from handoff_dask.scheduler.records import BundleRecord, FunctionRecord, RunRecord
from handoff_dask.scheduler.runs import Runs
from handoff_dask.wire.bundles import EndedColumns, Member, MemberFailure, unpacked
from handoff_dask.wire.keys import is_collected
from handoff_dask.wire.messages import Block, function_specs
from handoff_dask.worker.bundle_task import collect, run_bundle, take
from handoff_dask.worker.task import Terms, run, run_and_discard, run_on_terms

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState


@dataclass(eq=False)
class Bundles:
    """Keeps what becomes of the members of bundles.

    Whatever goes wrong with a bundle, the functions concerned leave it: they get tasks of their
    own, and what holds for any other function holds for them. The rest runs again as a bundle.
    """

    scheduler: Scheduler
    engine: Engine
    runs: Runs
    #: Records how long functions of a code, given by its name in a run, took on average (s), and
    #: when the first of them started.
    measured: Callable[[RunRecord, str, float, float], None]
    #: Has the engine decide soon.
    ask: Callable[[], None]

    # What workers report

    def reported(
        self,
        key: Any,
        number: int,
        ended: bytes,
        failures: list[Any],
        worker: str,
        gave_back: bool = False,
        **_: Any,
    ) -> None:
        """Record which members have ended on a worker, as far as it has got.

        If it gives the others back, they leave at once: when the task of the bundle has ended, Dask
        drops its inputs, which they need.
        """
        record = self.runs.functions.get(key)
        if not isinstance(record, BundleRecord):
            return  # its run is forgotten
        self._done(record, number, worker, EndedColumns.unpack(ended))
        for fields in failures:
            self._failed(record, number, worker, MemberFailure(*fields))
        if gave_back and self._is_current(record, number):
            self.leave(record, record.members.open)
        elif isinstance(record.state, Running) and record.members.open_count:
            self.ask()

    def _done(
        self,
        record: BundleRecord,
        number: int,
        worker: str,
        ended: EndedColumns,
    ) -> None:
        members, bundle = record.members, record.bundle
        if members.has_charged:
            ended = ended.of(members.uncharged(number, ended.positions))
        if not ended:
            return
        positions = ended.positions
        indices = array("I", map(bundle.members.__getitem__, positions))
        block = Block(
            worker,
            bundle.cost,
            indices,
            ended.started,
            ended.stopped,
            ended.cpu_time,
            ended.result_bytes,
            ended.stored,
        )
        record.blocks.append(block)
        record.run.retries += members.reported(number, positions, ended.stopped[-1])
        record.run.block_ended(record, block)
        self._learn(record, positions, block)
        if self._is_current(record, number):
            record.end((p for p in positions if members.states[p] == OPEN), DONE)
        else:
            members.late(number, positions)

    def _is_current(self, record: BundleRecord, number: int) -> bool:
        """Whether a placement is the one that is under way."""
        ts = self.scheduler.tasks.get(record.key)
        return isinstance(record.state, PLACED) and ts is not None and ts.run_id == number

    def _learn(self, record: BundleRecord, positions: Iterable[int], block: Block) -> None:
        """Teach the engine how long members took: their codes on average, long ones one by one."""
        bundle = record.bundle
        seconds: dict[str, list[float]] = {}
        for position, started, stopped in zip(positions, block.started, block.stopped, strict=True):
            seconds.setdefault(bundle.prefix(position), []).append(stopped - started)
        for code, measured in seconds.items():
            mean = sum(measured) / len(measured)
            self.engine.duration_learned(code, mean)
            self.measured(record.run, code, mean, block.started[0])
            longest = max(measured)
            if longest > bundle.patience:
                index = block.indices[measured.index(longest)] if len(seconds) == 1 else None
                if index is not None:
                    label = record.run.row(index).label
                    self.engine.duration_known((code, label), longest)

    def _failed(
        self, record: BundleRecord, number: int, worker: str, failure: MemberFailure
    ) -> None:
        """Record a failed attempt of a member, and its end if no other follows."""
        run_, position = record.run, failure.position
        if not record.members.uncharged(number, [position]):
            return
        index = record.bundle.members[position]
        run_.retries += record.members.reported(number, [position], failure.stopped, failures=1)
        self._enter(
            record, index, worker, failure.started, failure.stopped, failure.error_type,
            failure.message, usage=Usage(failure.cpu_time),
        )  # fmt: skip
        if not failure.final or record.members.states[position] != OPEN:
            return
        # What depends on it in the bundle does not run.
        reached = with_dependents({position}, self.sources(record))
        if isinstance(record.state, PLACED) and not self._is_current(record, number):
            record.members.late(number, reached)  # they are sent again already
            return
        for other in reached:
            if failure.exception is not None and record.members.states[other] == OPEN:
                run_.errors[record.bundle.members[other]] = failure.exception
        self.runs.function_failed(run_, index, failure.message, failure.error_type)
        record.end((p for p in reached if record.members.states[p] == OPEN), FAILED)

    def _enter(
        self,
        record: BundleRecord,
        index: int,
        worker: str,
        started: float,
        stopped: float,
        error_type: str | None,
        message: str | None,
        outcome: Any = "error",
        counts: bool = True,
        usage: Usage = UNKNOWN,
    ) -> None:
        """Enter an attempt of a member that did not succeed into the ledger."""
        run_ = record.run
        before = run_.entries.get(index, ())
        number = record.members.tries[record.position(index)]
        entry = Entry(
            number, worker, started, stopped, outcome, error_type, message, record.bundle.cost,
            counts, usage,
        )  # fmt: skip
        run_.entries[index] = (*before, entry)
        run_.attempt_ended(index, entry)

    # The end of a placement

    def lost(self, record: BundleRecord, lost: Lost, end: End) -> None:
        """Charge what had started of a bundle that was lost, and have that travel alone."""
        sources = self.sources(record) if record.key in self.scheduler.tasks else ()
        losses = record.members.lost(lost, end, sources)
        for position, due in losses.charges:
            index = record.bundle.members[position]
            self._enter(
                record, index, lost.worker, due.started, due.stopped, None, due.message,
                due.outcome, due.counts,
            )  # fmt: skip
            record.run.retries += record.members.tries[position] > 1
        if lost.worker_gone and record.run.stop is None and record.key in self.runs.functions:
            self.reopen(record)
        leave = losses.leave
        nothing_started = end.started is not None and lost.number not in end.started
        if record.doom is not None or (nothing_started and (lost.inputs or not lost.worker_gone)):
            # Its inputs do not arrive, or something is wrong with its task itself.
            record.doom = None
            leave = set(record.members.open)
        if leave and record.key in self.runs.functions:
            self.leave(record, leave)
            self._empty(record)

    def ended(self, record: BundleRecord) -> None:
        """Have what a bundle gave back travel alone, after the transition that is under way."""
        if record.members.open_count:
            asyncio.get_running_loop().call_soon(self._give_back, record)

    def _give_back(self, record: BundleRecord) -> None:
        if record.key in self.runs.functions and record.state.name == "done":
            self.leave(record, record.members.open)

    def dissolve(self, record: BundleRecord) -> None:
        """Have all functions of a bundle travel alone: it cannot be placed."""
        record.doom = None
        record.cost = {}
        self.leave(record, record.members.open)
        self._empty(record)

    def _empty(self, record: BundleRecord) -> None:
        """Have a bundle that nothing is left of end at once: it needs no inputs, which may fail."""
        ts = self.scheduler.tasks.get(record.key)
        if ts is None or record.members.open_count or record.members.having(DONE):
            return
        if ts.state not in ("waiting", "no-worker"):
            return
        spec = Task(record.key, run_bundle, compat.arguments(ts)[0], ())
        compat.put_task(self.scheduler, record.key, spec, ts, ts.annotations or {})
        self._start([record.key])

    def reopen(self, record: BundleRecord) -> None:
        """Have members run again whose results were lost and that somebody needs."""
        members = record.members
        needed = [p for p in members.having(DONE) if self._is_needed(record, p)]
        reached = with_sources({*needed, *members.open}, self.sources(record))
        record.reopen([p for p in reached if members.states[p] == DONE])

    def _is_needed(self, record: BundleRecord, position: int) -> bool:
        index = record.bundle.members[position]
        if record.run.row(index).wanted:
            return True
        ts = self.scheduler.tasks.get(record.run.key_of(index))
        if ts is not None and ts.state != "memory" and (ts.waiters or ts.who_wants):
            return True
        return index in self.collected(record)

    def collected(self, record: BundleRecord) -> set[int]:
        """Return the nodes in a bundle whose values are still to be taken out of it together."""
        ts = self.scheduler.tasks[record.key]
        collecting = [d for d in ts.dependents if is_collected(d.key)]
        return {
            index
            for dependent in collecting
            if dependent.state != "memory" and (dependent.waiters or dependent.who_wants)
            for index in compat.arguments(dependent)[0]
        }

    # A placement

    def _failures(self, record: BundleRecord, position: int) -> int:
        """Return how many attempts of a member count against its `max_retries`."""
        entries = record.run.entries.get(record.bundle.members[position], ())
        return sum(entry.counts for entry in entries)

    def mark(self, record: BundleRecord, ts: TaskState) -> Mapping[str, Any]:
        """Return what the worker is told of a placement of a bundle."""
        members = record.members
        mark: dict[str, Any] = {"patience": record.bundle.patience}
        if members.untried:
            return mark
        mark["positions"] = members.open
        tried = [p for p in members.open if members.tries[p]]
        mark["attempts"] = {p: (members.tries[p], self._failures(record, p)) for p in tried}
        errors = record.run.errors
        if errors:
            failed = {p: record.bundle.members[p] for p in members.having(FAILED)}
            mark["errors"] = {p: errors[index] for p, index in failed.items() if index in errors}
        # Those that others need which travel alone since.
        needed = {
            position
            for position in members.open
            if (
                other := self.scheduler.tasks.get(
                    record.run.key_of(record.bundle.members[position])
                )
            )
            and (other.waiters or other.who_wants)
        }
        if needed:
            inside = unpacked(compat.arguments(ts)[0])
            kept = {position for position in members.open if inside[position].keep}
            mark["keep"] = sorted(kept | needed)
        return mark

    def lacking(self, key: Any, **_: Any) -> None:
        """Have bundles run again whose results lack a value that a task is to take out of them.

        It was taken before, and lost since; when the bundle last ran, nobody needed it.
        """
        ts = self.scheduler.tasks.get(key)
        if ts is not None and key not in self.runs.functions and ts.state != "memory":
            stimulus_id = f"handoff-lacking-{time.time()}"
            for dependency in list(ts.dependencies):
                record = self.runs.functions.get(dependency.key)
                if isinstance(record, BundleRecord) and dependency.state == "memory":
                    self.scheduler.transitions({dependency.key: "released"}, stimulus_id)

    # Leaving

    def leave(self, record: BundleRecord, positions: Collection[int]) -> None:
        """Make tasks of their own for members, and for what depends on them in the bundle."""
        leaving = with_dependents(set(positions), self.sources(record))
        self._begin(record, self.separate(record, leaving))

    def input_failed(self, ts: TaskState) -> None:
        """Save the members of bundles that do not need what failed, before Dask fails these."""
        for dependent in list(ts.dependents):
            record = self.runs.functions.get(dependent.key)
            if not isinstance(record, BundleRecord) or isinstance(record.state, PLACED):
                continue
            members, names, *refs = compat.arguments(dependent)
            inside = unpacked(members)
            failed = {
                number
                for number, ref in enumerate(refs[len(names) :])
                if referred_key(ref) == ts.key
            }
            needing = {
                p for p, member in enumerate(inside) if not failed.isdisjoint(member.sources)
            }
            lost = with_dependents(needing, _sources_of(inside))
            owns = self.separate(record, set(record.members.open) - lost)
            if owns:
                # After the transition that is under way.
                asyncio.get_running_loop().call_soon(self._begin, record, owns)

    def separate(self, record: BundleRecord, positions: Collection[int]) -> list[FunctionRecord]:
        """Make tasks of their own for members; they are not to start yet."""
        scheduler, run_ = self.scheduler, record.run
        ts = scheduler.tasks[record.key]
        inside = unpacked(compat.arguments(ts)[0])
        leaving = [
            position for position in sorted(positions) if record.members.states[position] == OPEN
        ]
        owns = list(map(record.leave, leaving))
        for own in owns:
            self._make_task(record, own, ts, inside)
        self._redirect(ts, {own.index: own.key for own in owns})
        rows = [own.row for own in owns]
        specs = function_specs(rows, run_.unit_key)
        self.engine.functions_added(run_.spec.run_id, specs)
        return owns

    def _redirect(self, ts: TaskState, left: Mapping[int, Any]) -> None:
        """Have what collects values of a bundle get those from elsewhere that left it."""
        for dependent in [d for d in ts.dependents if is_collected(d.key)]:
            indices, before, *refs = compat.arguments(dependent)
            new = [index for index in indices if index in left]
            if not new or dependent.state == "memory":
                continue
            own = [*refs[1:], *(TaskRef(left[index]) for index in new)]
            spec = Task(dependent.key, collect, indices, (*before, *new), refs[0], *own)
            wanted = dependent.state != "released"
            annotations = dependent.annotations or {}
            compat.put_task(self.scheduler, dependent.key, spec, ts, annotations)
            if wanted:
                asyncio.get_running_loop().call_soon(self._start, [dependent.key])

    def _begin(self, record: BundleRecord, owns: Iterable[FunctionRecord]) -> None:
        """Let members begin that left a bundle; forget them if nobody wants them any more."""
        keys = [own.key for own in owns]
        unneeded = [key for key in (record.key, *keys) if self._is_let_go(record, key)]
        # These first, so that Dask does not give up what they need with what is forgotten.
        self._start(key for key in keys if key not in unneeded)
        stimulus_id = f"handoff-forget-{time.time()}"
        self.scheduler.transitions(dict.fromkeys(unneeded, "forgotten"), stimulus_id)

    def _is_let_go(self, record: BundleRecord, key: Any) -> bool:
        """Whether a task that has to do with a bundle is needed no more than the bundle is."""
        bundle, ts = map(self.scheduler.tasks.get, (record.key, key))
        wanted = bundle is not None and bundle.who_wants
        return not wanted and ts is not None and not ts.who_wants and not ts.dependents

    def _start(self, keys: Iterable[Any]) -> None:
        """Let tasks begin that were made or changed for members."""
        tasks = self.scheduler.tasks
        # What waits for one of them may have let it begin already.
        known = [key for key in keys if key in tasks and tasks[key].state == "released"]
        stimulus_id = f"handoff-leave-{time.time()}"
        self.scheduler.transitions(dict.fromkeys(known, "waiting"), stimulus_id)
        self.ask()

    def _make_task(
        self,
        record: BundleRecord,
        own: FunctionRecord,
        ts: TaskState,
        inside: list[Member],
    ) -> None:
        run_, row = record.run, own.row
        member = inside[record.position(row.index)]
        _, names, *refs = compat.arguments(ts)
        contents = dict(zip(names, refs, strict=False))
        inputs = refs[len(names) :]
        values: list[Any] = [contents[name] for name in member.names]
        for source in member.sources:
            if source >= 0:
                values.append(inputs[source])
            else:
                index = record.bundle.members[-1 - source]
                if index not in run_.left:
                    self.make_taking(record, index)
                values.append(TaskRef(run_.key_of(index)))
        keep = row.wanted or not row.awaited
        call: tuple[Any, ...] = run if keep else run_and_discard, member.names, member.call
        if member.stored is not None:
            terms = Terms(None, None, keep, gpus=False, stored=member.stored)
            call = run_on_terms, terms, member.names, member.call
        spec = Task(own.key, *call, *values)
        marks = {"handoff": dict(_mark(ts)), "retries": member.max_retries}
        task = compat.put_task(self.scheduler, own.key, spec, ts, marks)
        compat.hold(task)
        self.runs.functions[own.key] = own
        run_.alive += 1
        if row.awaited and ts.who_wants:
            # Until the bundle is released, or the client has a future of it.
            self.scheduler.client_desires_keys([own.key], run_.spec.keeper)

    def let_go(self, keys: Iterable[Any]) -> None:
        """Release what left bundles that no client wants any more."""
        for key in keys:
            record, ts = self.runs.functions.get(key), self.scheduler.tasks.get(key)
            if isinstance(record, BundleRecord) and ts is not None and not ts.who_wants:
                self.released(record)

    def released(self, record: BundleRecord) -> None:
        """Release what left a bundle that nobody wants, after the transition that is under way."""
        run_ = record.run
        if run_.spec.detach and run_.kept:
            return
        left = {run_.key_of(index): index for index in record.bundle.members if index in run_.left}
        if left and run_.spec.keeper in self.scheduler.clients:
            asyncio.get_running_loop().call_soon(self._release, run_, left)

    def _release(self, run_: RunRecord, left: Mapping[Any, int]) -> None:
        for key, index in left.items():
            ts = self.scheduler.tasks.get(key)
            if ts is not None and index in run_.failed and ts.exception is not None:
                run_.errors[index] = ts.exception  # the client may ask for it later
        self.scheduler.client_releases_keys(keys=list(left), client=run_.spec.keeper)

    def make_taking(self, record: BundleRecord, index: int) -> Any:
        """Make the task that takes a member's result out of the bundle's, unless there is one."""
        key = record.run.key_of(index)
        if key not in self.scheduler.tasks:
            bundle = self.scheduler.tasks[record.key]
            spec = Task(key, take, index, TaskRef(record.key))
            ts = compat.put_task(
                self.scheduler, key, spec, bundle, {"handoff": dict(_mark(bundle))}
            )
            compat.free_near_inputs(ts)
        return key

    def pardon(self, record: BundleRecord) -> None:
        """Have the members run again that failed because an input of their bundle did."""
        failed = [
            p
            for p in record.members.having(FAILED)
            if record.bundle.members[p] not in record.run.errors
        ]
        record.reopen(failed)
        for position in failed:
            record.run.pardon(record.bundle.members[position])

    def sources(self, record: BundleRecord) -> list[list[int]]:
        """Return the members that each one needs, by position."""
        return _sources_of(unpacked(compat.arguments(self.scheduler.tasks[record.key])[0]))


def _mark(ts: TaskState) -> Mapping[str, Any]:
    mark: Mapping[str, Any] = (ts.annotations or {}).get("handoff", {})
    return {"run": mark.get("run")}


def _sources_of(members: Iterable[Member]) -> list[list[int]]:
    """Return the members that each one needs, by position."""
    return [[-1 - source for source in member.sources if source < 0] for member in members]
