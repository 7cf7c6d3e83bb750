"""Sends the functions of a run: in portions, the short ones in bundles."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

from distributed import Client, Future

from handoff_dask.client import annotating
from handoff_dask.client.describing import function_label, packed_outlines
from handoff_dask.client.options import Allocator
from handoff_dask.client.submission import PIECE, Submission
from handoff_dask.client.units import Unit
from handoff_dask.compat import client_side as compat
from handoff_dask.errors import InvalidFunctionError
from handoff_dask.graph.translation import BundledNodes, PackedCall
from handoff_dask.learning.uses import digest
from handoff_dask.placement.bundling import (
    Candidate,
    bundleable,
    bundles,
    companions,
    is_collector,
    is_short,
)
from handoff_dask.wire.keys import is_collected, is_shared
from handoff_dask.wire.messages import BundleRow, Opened, Portion, packed_rows

#: Functions of codes whose durations are unknown that are sent before these are waited for: enough
#: to keep the workers busy and to learn from, few enough to cost little.
SAMPLE = 1000
#: The most nodes of a portion.
PORTION = 20_000
#: The most bytes of pickled calls in it.
BYTES = 2_000_000
#: A bundle gives back what has not started after this many times the work that it is worth.
PATIENCE = 4
#: Seconds that it takes to store a small result, unless the durations are of stored ones.
STORING = 0.0005
#: Pieces that may wait to be sent before the pickling pauses.
WAITING = 2
#: Seconds between looks whether it may go on.
LOOK = 0.01


class Sender:
    """Sends the functions of an opened run.

    Parameters
    ----------
    client, submission, opened
        The client, the run, and what the scheduler answered to its opening.
    ask
        Calls a handler of the plugin about the run.
    sent
        Is called with the units of each portion.
    """

    def __init__(
        self,
        client: Client,
        submission: Submission,
        opened: Opened,
        ask: Callable[..., Awaitable[Any]],
        sent: Callable[[Iterable[Unit]], None],
    ) -> None:
        self._client = client
        self._submission = submission
        self._opened = opened
        self._ask = ask
        self._sent = sent
        self._seconds = dict(opened.seconds)
        #: By node: how long it takes, as its submitter says.
        expected = submission.options.expected
        self._expected = {
            node.index: expected[id_]
            for node in submission.outline.nodes
            if expected and node.kind == "function" and (id_ := node.function.id) in expected
        }
        #: Codes of which functions were sent alone.
        self._sampled: set[str] = set()
        #: The calls that are to be sent next, in order.
        self._calls: dict[int, PackedCall | InvalidFunctionError] = {}
        #: How many nodes are still to come.
        self._left = len(submission.order)
        self._portions = self._bundles = 0
        #: Whether it waits for the cluster to learn durations.
        self._learning = False
        nodes = submission.outline.nodes
        running = [nodes[index] for index in submission.order]
        # A user's allocator decides for each function.
        own = isinstance(submission.options.allocation_strategy, Allocator)
        self._worth = 0.0 if own else submission.options.worth
        self._short = self._may_be_short() if self._worth else frozenset()
        #: How many nodes need each node, in all and of those that were sent.
        self._users = Counter(i for node in running for i in node.dependencies)
        self._users_sent: Counter[int] = Counter()
        #: By node: the collectors that need it.
        self._collectors: dict[int, list[int]] = {}
        for node in filter(is_collector, running):
            for i in node.dependencies:
                self._collectors.setdefault(i, []).append(node.index)
        #: How many groups of values are taken together.
        self._groups = 0
        #: Futures of what later portions need.
        self._lent: list[Future[Any]] = []
        self._task: asyncio.Task[None] | None = None

    def _may_be_short(self) -> frozenset[int]:
        """Return the nodes that may travel with others, if they are short."""
        submission = self._submission
        nodes, policies = submission.outline.nodes, submission.translator.policies
        grouped = companions(nodes)
        futures = bool(submission.translator.futures)
        retried = self._opened.nannies
        return frozenset(
            node.index
            for node, policy in zip(nodes, policies, strict=True)
            if bundleable(node, policy)
            and node.index not in grouped
            and (retried or policy.max_retries)
            and not futures
        )

    # Pieces

    async def add(self, calls: Mapping[int, PackedCall | InvalidFunctionError]) -> None:
        """Have calls sent, in the background but for the first portion."""
        self._calls.update(calls)
        self._left -= len(calls)
        if self._task is None:
            # The first portion at once: what is wrong with it is raised here.
            self._send_portion()
            self._task = asyncio.create_task(self._send_all())
        while len(self._calls) > WAITING * PIECE and not self._learning and not self._task.done():
            await asyncio.sleep(LOOK)

    @property
    def done(self) -> bool:
        """Whether all is sent."""
        return not self._left and not self._calls

    async def finish(self) -> None:
        """Wait until all is sent; raise what went wrong."""
        if self._task is not None:
            await asyncio.shield(self._task)

    def stop(self) -> None:
        """Send no more."""
        if self._task is not None:
            self._task.cancel()

    async def _send_all(self) -> None:
        while not self.done:
            if not self._calls:
                await asyncio.sleep(LOOK)
                continue
            await self._learn()
            self._send_portion()
            # What was sent before has arrived: messages do not pile up.
            if not await self._ask("arrived", portion=self._portions - 2):
                return
        if self._lent:
            await self._ask("arrived")
            for future in self._lent:
                future.release()
            self._lent.clear()

    async def _learn(self) -> None:
        """Learn how long functions take whose like were sent, unless the cluster needs more now."""
        prefixes = self._submission.translator.prefixes
        some = islice(self._calls, PORTION)
        unknown = {prefixes[i] for i in some if self._is_unknown(i)}
        unknown &= self._sampled
        if unknown:
            self._learning = True
            try:
                seconds = await self._ask(
                    "learned", prefixes=list(unknown), portions=self._portions
                )
                self._seconds.update(seconds)
            finally:
                self._learning = False

    def _is_unknown(self, index: int) -> bool:
        """Whether a node may be short and it is unknown how long it takes."""
        prefix = self._submission.translator.prefixes[index]
        known = prefix in self._seconds or index in self._expected
        return index in self._short and not known

    # Portions

    def _next(self) -> list[int]:
        """Return the nodes of the next portion."""
        samples = size = 0
        chosen: list[int] = []
        whole = self._submission.whole
        for index, call in islice(self._calls.items(), None if whole else PORTION):
            samples += self._is_unknown(index)
            size += len(call[1]) if isinstance(call, tuple) else 0
            if chosen and not whole and (samples > SAMPLE or size > BYTES):
                break
            chosen.append(index)
        return chosen

    def _send_portion(self) -> None:
        submission, key = self._submission, self._submission.translator.key
        nodes, rows = submission.outline.nodes, submission.rows
        chosen = self._next()
        calls = {index: self._calls.pop(index) for index in chosen}
        last = self.done
        for index in chosen:
            self._users_sent.update(nodes[index].dependencies)
        bundled = [] if not self._worth else self._bundled(chosen, calls)
        inside = frozenset(index for bundle in bundled for index in bundle.members)
        alone = [index for index in chosen if index not in inside]
        self._sampled.update(submission.translator.prefixes[index] for index in alone)
        packed, broken = self._sorted_out(calls)
        graph = submission.translator.graph(self._portions, packed, alone, bundled, broken)
        members = [index for bundle in bundled for index in bundle.members]
        functions = [nodes[i].function for i in (*alone, *members) if nodes[i].kind == "function"]
        if not self._portions:
            known = submission.outline.functions.values()
            functions += [f for f in known if f.type == "inline"]
        portion = Portion(
            submission.outline.run_id,
            self._portions,
            last,
            rows.of(alone),
            [self._row(bundle) for bundle in bundled],
            packed_rows(rows.of(members)) if members else b"",
            packed_outlines(functions),
        )
        self._portions += 1
        units = self._units(alone, bundled)
        # What later portions need is kept until these have arrived.
        lent = [] if last else self._lendable(chosen, inside, graph)
        keys = [unit_key for unit_key, _, _ in units] + lent
        message = {"op": "handoff-portion", "run_id": portion.run_id, "portion": portion.packed()}
        compat.send(self._client, message)
        get = partial(
            self._client.get,
            graph,
            keys,
            sync=False,
            priority=submission.options.priority,
        )
        futures: list[Future[Any]] = annotating.without(list(map(key, chosen)), get)
        self._sent(
            Unit(future, indices, is_bundle)
            for future, (_, indices, is_bundle) in zip(futures, units, strict=False)
        )
        self._lent += futures[len(units) :]

    def _lendable(self, chosen: Iterable[int], inside: frozenset[int], graph: Any) -> list[Any]:
        """Return the keys that later portions need and nobody else wants."""
        awaited, key = self._submission.awaited, self._submission.translator.key
        lent: list[Any] = [
            key(i)
            for i in chosen
            if self._users_sent[i] < self._users[i]
            and (key(i) in graph if i in inside else i not in awaited)
        ]
        return lent + [name for name in graph if is_shared(name) or is_collected(name)]

    def _units(
        self, alone: Sequence[int], bundled: Sequence[BundledNodes]
    ) -> list[tuple[Any, Sequence[int], bool]]:
        awaited, key = self._submission.awaited, self._submission.translator.key
        units: list[tuple[Any, Sequence[int], bool]] = [
            (key(index), (index,), False) for index in alone if index in awaited
        ]
        for bundle in bundled:
            # Also of those that nobody waits for: while it is wanted, its functions can leave it.
            name = self._submission.translator.bundle_key(bundle.number)
            units.append((name, [i for i in bundle.members if i in awaited], True))
        return units

    def _bundled(
        self, chosen: Sequence[int], calls: Mapping[int, PackedCall | InvalidFunctionError]
    ) -> list[BundledNodes]:
        """Choose which nodes of a portion travel together."""
        nodes, prefixes = self._submission.outline.nodes, self._submission.translator.prefixes
        longer, kinds = self._opened.longer, self._opened.threads
        threads = {tuple(nodes[i].cost.items()): number for i, number in kinds.items()}
        if not self._seconds and not self._expected:
            return []
        candidates = []
        for index in chosen:
            node = nodes[index]
            seconds = self._takes(index) if index in self._short else None
            if seconds is not None and not is_short(seconds, self._worth):
                seconds = None
            if longer and (prefixes[index], digest(function_label(node.function.id))) in longer:
                seconds = None
            if not isinstance(calls[index], tuple):
                seconds = None  # it fails alone
            candidates.append(
                Candidate(
                    index,
                    node.dependencies,
                    self._users[index],
                    node.cost,
                    node.function.priority,
                    seconds,
                    len(self._collectors.get(index, ())),
                )
            )
        groups = bundles(
            candidates,
            worth=self._worth,
            threads=lambda cost: threads.get(tuple(cost.items()), 1),
        )
        return [self._made(members) for members in groups]

    def _takes(self, index: int) -> float | None:
        """Return how long a node takes (s): as its submitter says, or as others of its code."""
        known = self._expected.get(index) if self._expected else None
        if known is None:
            known = self._seconds.get(self._submission.translator.prefixes[index])
        if known is None or index not in self._submission.translator.stored:
            return known
        return known + STORING

    def _made(self, members: tuple[int, ...]) -> BundledNodes:
        nodes, wanted = self._submission.outline.nodes, self._submission.wanted
        inside = set(members)
        used = Counter(i for m in members for i in nodes[m].dependencies)
        collected, by_collector = self._collected(members)
        taken = [i for i in members if used[i] + by_collector[i] < self._users[i]]
        dependencies = tuple(dict.fromkeys(i for i in used if i not in inside))
        kept = frozenset(taken).union(by_collector, (i for i in members if i in wanted))
        self._bundles += 1
        return BundledNodes(self._bundles - 1, members, kept, taken, collected, dependencies)

    def _collected(
        self, members: Iterable[int]
    ) -> tuple[Mapping[int, Sequence[int]], Counter[int]]:
        """Return the members whose values collectors take together, and how many each has."""
        by_collector: dict[int, list[int]] = {}
        for index in members if self._collectors else ():
            for collector in self._collectors.get(index, ()):
                by_collector.setdefault(collector, []).append(index)
        groups: dict[int, Sequence[int]] = {}
        for collector, indices in by_collector.items():
            self._submission.translator.collects(collector, self._groups, indices)
            groups[self._groups] = indices
            self._groups += 1
        return groups, Counter(i for indices in groups.values() for i in indices)

    def _row(self, bundle: BundledNodes) -> BundleRow:
        submission = self._submission
        nodes, prefixes = submission.outline.nodes, submission.translator.prefixes
        first = nodes[bundle.members[0]]
        codes = tuple(prefixes[i] for i in bundle.members)
        return BundleRow(
            bundle.number,
            bundle.members,
            first.cost,
            bundle.dependencies,
            first.function.priority,
            sum(self._takes(i) or 0.0 for i in bundle.members),
            PATIENCE * self._worth,
            codes[:1] if len(set(codes)) == 1 else codes,
            bytes(index in submission.awaited for index in bundle.members),
            function_label(first.function.id),
        )

    def _sorted_out(
        self, calls: Mapping[int, PackedCall | InvalidFunctionError]
    ) -> tuple[dict[int, PackedCall], dict[int, InvalidFunctionError]]:
        packed: dict[int, PackedCall] = {}
        broken: dict[int, InvalidFunctionError] = {}
        for index, call in calls.items():
            if isinstance(call, tuple):
                packed[index] = call
            else:
                broken[index] = call
        return packed, broken
