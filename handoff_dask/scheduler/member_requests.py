"""What clients ask of functions in bundles: their results, their end, and another try."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from handoff_dask.attempts.members import CANCELLED, FAILED, OPEN, with_dependents, with_sources
from handoff_dask.attempts.states import PLACED
from handoff_dask.compat import scheduler as compat
from handoff_dask.scheduler.membership import Bundles
from handoff_dask.scheduler.records import BundleRecord
from handoff_dask.scheduler.runs import Runs
from handoff_dask.wire.keys import index_of, is_collected, run_of

if TYPE_CHECKING:
    from distributed import Scheduler
    from distributed.scheduler import TaskState


@dataclass(eq=False)
class MemberRequests:
    """Does what clients ask of members of bundles, as Dask does it for tasks."""

    scheduler: Scheduler
    runs: Runs
    bundles: Bundles

    def take(self, run_id: str, indices: Iterable[int], client: str) -> None:
        """Have the results of members by themselves, for a client that wants them."""
        run_ = self.runs.get(run_id)
        if run_ is None:
            return
        for index in indices:
            record = run_.bundle_of(index)
            if run_.unit_key(index) not in self.scheduler.tasks:
                run_.asked.append(partial(self.take, run_id, [index], client))
                continue
            if index in run_.cancelled:
                compat.report_cancelled(self.scheduler, [run_.key_of(index)], [client])
                continue
            key = run_.key_of(index) if record is None else self.bundles.make_taking(record, index)
            self.scheduler.client_desires_keys([key], client)
            if record is not None and self.scheduler.tasks[key].state == "released":
                stimulus_id = f"handoff-take-{time.time()}"
                if self.scheduler.tasks[record.key].state == "erred":
                    compat.fail_orphan(self.scheduler, key, stimulus_id)
                else:
                    self.scheduler.transitions({key: "waiting"}, stimulus_id)

    def take_by_key(self, key: Any, client: str) -> None:
        """Have a member's result by itself, given its key, unless it is there or asked for."""
        if key not in self.scheduler.tasks and (member := self.runs.member(key)):
            self.take(member[0].run.spec.run_id, [index_of(key)], client)

    def cancel(self, record: BundleRecord, position: int) -> bool:
        """Cancel a member that has not ended, and what depends on it in its bundle.

        False if it has ended otherwise, or if functions outside depend on one of these.
        """
        members, run_ = record.members, record.run
        if members.states[position] != OPEN:
            return members.states[position] == CANCELLED
        gone = [
            p
            for p in with_dependents({position}, self.bundles.sources(record))
            if members.states[p] == OPEN
        ]
        collected = self.bundles.collected(record)
        for p in gone:
            index = record.bundle.members[p]
            ts = self.scheduler.tasks.get(run_.key_of(index))
            if (ts is not None and ts.dependents) or index in collected:
                return False
        if isinstance(record.state, PLACED):
            worker = record.state.placement.worker
            number = compat.placement_number(self.scheduler.tasks[record.key])
            for p in gone:
                message = {"op": "handoff-withdraw-member", "number": number, "position": p}
                self.scheduler.worker_send(worker, message)
        indices = [record.bundle.members[p] for p in gone]
        run_.cancelled.update(indices)
        record.end(gone, CANCELLED)
        # The tasks that would take their values.
        taking = [key for key in map(run_.key_of, indices) if key in self.scheduler.tasks]
        compat.cancel_for_all(self.scheduler, taking)
        return True

    def retried(self, keys: Iterable[Any], client: str | None) -> None:
        """Have members that failed travel alone: a client wants these to be tried again.

        `keys` are those of members, or of what failed because a member did. Dask, which goes on
        from here, starts what depends on them.
        """
        tasks = self.scheduler.tasks
        again: dict[BundleRecord, set[int]] = {}
        stack, seen = list(keys), set()
        while stack:
            key = stack.pop()
            if key in seen:
                continue
            seen.add(key)
            if client is not None:
                # The message that asks for its result may be still to come.
                self.take_by_key(key, client)
            ts = tasks.get(key)
            if ts is None:
                continue
            stack += [d.key for d in ts.dependencies if d.state == "erred"]
            for record, position in self._taken_by(ts):
                again.setdefault(record, set()).add(position)
        for record, positions in again.items():
            self._try_again(record, positions)

    def _taken_by(self, ts: TaskState) -> Iterable[tuple[BundleRecord, int]]:
        """Return the members whose values a task takes out of a bundle."""
        if (member := self.runs.member(ts.key)) is not None:
            return [member]
        if not is_collected(ts.key):
            return []
        run_ = self.runs[run_of(ts.key) or ""]
        homes = [(run_.bundle_of(index), index) for index in compat.arguments(ts)[0]]
        return [(record, record.position(index)) for record, index in homes if record is not None]

    def _try_again(self, record: BundleRecord, positions: Collection[int]) -> None:
        """Try members again because of whose failure others failed, and these, too."""
        members, run_, sources = record.members, record.run, self.bundles.sources(record)
        own = {p for p in members.having(FAILED) if record.bundle.members[p] in run_.failed}
        failed = with_dependents(own & with_sources(positions, sources), sources)
        failed &= set(members.having(FAILED))
        if not failed:
            return
        indices = [record.bundle.members[p] for p in failed]
        for index in indices:
            run_.pardon(index)
        record.reopen(failed)
        owns = self.bundles.separate(record, failed)
        for function in owns:
            function.forgiven = len(function.entries)
        # What failed because of them follows.
        tasks = self.scheduler.tasks
        taking = [d.key for d in tasks[record.key].dependents if is_collected(d.key)]
        keys = [function.key for function in owns]
        dependents = [d for key in (*keys, *taking) for d in tasks[key].dependents]
        keys += [d.key for d in dependents if d.state == "erred"]
        stimulus_id = f"handoff-retry-{time.time()}"
        self.scheduler.transitions(dict.fromkeys(keys, "waiting"), stimulus_id)
        self.bundles.ask()
