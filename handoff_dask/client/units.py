"""The tasks of a run as its client holds them, and the results that are fetched from them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from distributed import Client, Future

from handoff_dask.client import gathering
from handoff_dask.client.describing import Outline
from handoff_dask.client.outcomes import NOTHING, Before
from handoff_dask.compat import client_side as compat
from handoff_dask.errors import StoreError
from handoff_dask.store.entries import StoredResult
from handoff_dask.store.opened import opened, read
from handoff_dask.store.result_store import Store


class Unit(NamedTuple):
    """A task that holds results of a run, or whose end the run waits for."""

    future: Future[Any]
    #: The nodes whose ends the run waits for and that end with it.
    indices: Sequence[int]
    #: Whether it holds the results of several functions.
    is_bundle: bool


class Futures(Mapping[Hashable, "Future[Any]"]):
    """{function id: Future} of the results that are asked for.

    Functions that travel together have one future. The future of one of them is made when it is
    asked for, and so is the task that takes its result out of the others.
    """

    def __init__(self, outline: Outline, client: Client, before: Before = NOTHING) -> None:
        self._outline = outline
        self._client = client
        self._before = before
        self._wanted = dict.fromkeys(outline.wanted)
        self._known: dict[int, Future[Any]] = {}
        #: Of results that no task of the run has.
        self._others: dict[Hashable, Future[Any]] = {}
        #: Functions whose futures were asked for.
        self._given: set[Hashable] = set()

    def __getitem__(self, function_id: Hashable) -> Future[Any]:
        if function_id not in self._wanted:
            raise KeyError(function_id)
        self._given.add(function_id)
        if function_id in self._outline.stored_ids:
            stored = self._outline.stored_ids[function_id]
            return self._other(
                function_id, read, self._outline.stored.store, stored.location.for_reading()
            )
        if function_id in self._before.over:
            values, errors = self._before.values, self._before.errors
            return self._other(function_id, _end, values.get(function_id), errors.get(function_id))
        index = self._outline.awaited[function_id]
        if index not in self._known:
            self._known[index] = Future(self._outline.key(index), self._client)
            message = {"op": "handoff-take", "run_id": self._outline.run_id, "indices": [index]}
            compat.send(self._client, message)
        return self._known[index]

    def _other(self, function_id: Hashable, code: Callable[..., Any], *args: Any) -> Future[Any]:
        """Return the future of a task that has a result which no task of the run has."""
        if function_id not in self._others:
            self._others[function_id] = self._client.submit(code, *args, pure=False)
        return self._others[function_id]

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._wanted)

    def __len__(self) -> int:
        return len(self._wanted)

    def __repr__(self) -> str:
        return f"<futures of {len(self)} functions of {self._outline.dag_id!r}>"

    def add(self, unit: Unit) -> None:
        """Include the future of a function that travels alone."""
        self._known[unit.indices[0]] = unit.future

    def leave(self) -> None:
        """Forget those that were asked for, without releasing them: somebody may have them."""
        awaited = self._outline.awaited
        for function_id in self._given & awaited.keys():
            self._known.pop(awaited[function_id], None)
        self._others.clear()

    def release(self) -> None:
        """Release those that were made."""
        for future in (*self._known.values(), *self._others.values()):
            future.release()


def _end(value: Any, error: BaseException | None) -> Any:
    """Return a result, or raise an error, that is known."""
    if error is not None:
        raise error
    return value


class Units:
    """The tasks of a run, until they are released, and their results.

    `before` is what happened in it before it was started again.
    """

    def __init__(self, outline: Outline, client: Client, before: Before = NOTHING) -> None:
        self._outline = outline
        self._client = client
        self._units: list[Unit] = []
        self._alone: set[int] = set()
        self._unfetched: list[Unit] = []
        self._fetching = asyncio.Lock()
        #: Whether functions may have left bundles whose values are here since ``adopt``.
        self._left_since = False
        #: Futures of single functions.
        self.by_function = Futures(outline, client, before)
        #: {function id: value} of the results that are here.
        self.values: dict[Hashable, Any] = dict(before.values)
        #: {function id: error} of those that cannot be sent or opened.
        self.problems: gathering.Problems = {}

    def __iter__(self) -> Iterator[Unit]:
        return iter(self._units)

    @property
    def futures(self) -> list[Future[Any]]:
        """The futures of all tasks."""
        return [unit.future for unit in self._units]

    def add(self, units: Iterable[Unit]) -> None:
        """Include tasks."""
        for unit in units:
            self._units.append(unit)
            self._unfetched.append(unit)
            if not unit.is_bundle:
                self._alone.update(unit.indices)
                self.by_function.add(unit)

    def adopt(self, left: Iterable[int]) -> list[Future[Any]]:
        """Include the tasks of functions that left those with which they travelled.

        Return the futures of those that are new.
        """
        self._left_since = False
        nodes, awaited = self._outline.nodes, self._outline.awaited
        new = [
            index
            for index in left
            if index not in self._alone and nodes[index].function.id in awaited
        ]
        units = [
            Unit(Future(self._outline.key(index), self._client), (index,), False) for index in new
        ]
        self.add(units)
        return [unit.future for unit in units]

    async def fetch(self) -> None:
        """Fetch the results that there are, each once."""
        async with self._fetching:
            await self._read_stored()
            ended = [unit for unit in self._unfetched if unit.future.status == "finished"]
            if not ended:
                return
            futures: gathering.Futures = {n: unit.future for n, unit in enumerate(ended)}
            values, problems = await gathering.finished(self._client, futures)
            for number, unit in enumerate(ended):
                if number in values and unit.is_bundle:
                    self._open(unit, values[number])
                elif number in values:
                    self._store(self.values, unit.indices, values[number])
                elif number in problems:
                    self._store(self.problems, unit.indices, problems[number])
            known = values.keys() | problems.keys()
            done = {id(unit) for number, unit in enumerate(ended) if number in known}
            self._unfetched = [unit for unit in self._unfetched if id(unit) not in done]

    async def _read_stored(self) -> None:
        """Read the results that are in the store and asked for."""
        store, stored = self._outline.stored.store, self._outline.stored_ids
        left = [
            id_
            for id_ in (self._outline.wanted if stored else ())
            if id_ in stored and id_ not in self.values and id_ not in self.problems
        ]
        if left:
            assert store is not None
            values, problems = await asyncio.to_thread(_values, store, stored, left)
            self.values.update(values)
            self.problems.update(problems)

    def _open(self, unit: Unit, values: Any) -> None:
        """Take the results of functions that travelled together apart."""
        nodes = self._outline.nodes
        for index in unit.indices:
            if index in values:
                self.values[nodes[index].function.id] = values[index]
            elif index in values.problems:
                problem = TypeError(f"the value {values.problems[index]}")
                self.problems[nodes[index].function.id] = problem
            elif index not in values.errors and index not in self._alone:
                self._left_since = True

    def _store(self, place: dict[Hashable, Any], indices: Iterable[int], value: Any) -> None:
        for index in indices:
            place[self._outline.nodes[index].function.id] = value

    @property
    def complete(self) -> bool:
        """Whether everything that did not fail is here, as far as is known from ``adopt``."""
        ended = all(unit.future.status in ("error", "cancelled") for unit in self._unfetched)
        return ended and not self._left_since

    def release(self) -> None:
        """Release the results; others who hold them keep them.

        To be called on the client's loop: from another thread, each release would wake it.
        """
        # Not left to the garbage collector: Dask's gather leaves circles of references.
        for unit in self._units:
            if unit.is_bundle:
                unit.future.release()
        self._units.clear()
        self.by_function.release()


def _values(
    store: Store, stored: Mapping[Hashable, StoredResult], ids: Iterable[Hashable]
) -> tuple[dict[Hashable, Any], gathering.Problems]:
    """Read results from a store; return them, and the errors of those that cannot be read."""
    values: dict[Hashable, Any] = {}
    problems: gathering.Problems = {}
    for id_ in ids:
        try:
            values[id_] = opened(store).value(stored[id_])
        except StoreError as error:
            problems[id_] = error
    return values, problems
