"""Prepares a DAG for submission: checks, graph, description."""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, cast
from uuid import uuid4

import cloudpickle
from distributed import Client, Future

from handoff_dask import collector
from handoff_dask.client.attempt_log import AttemptLog
from handoff_dask.client.describing import Outline, Rows, dag_label
from handoff_dask.client.options import Allocator, RunOptions, learned_url
from handoff_dask.client.results import select
from handoff_dask.client.stored_results import StoredResults
from handoff_dask.errors import AllocationError, InvalidFunctionError, UnknownWorkerError
from handoff_dask.graph.translation import PackedCall, Translator
from handoff_dask.learning.identity import code_identity
from handoff_dask.model.contents import contents
from handoff_dask.model.dag import DAG, functions_of
from handoff_dask.model.expansion import Node, expand
from handoff_dask.model.function import Function, claims, given_by_field
from handoff_dask.wire.messages import RunSpec

#: How many calls are pickled at a time: the first are on their way while the rest is pickled.
PIECE = 10_000
#: Larger DAGs are sent depth first.
SMALL = 1000


def _holder(functions: Iterable[Function], future: Future[Any]) -> tuple[Function, str]:
    """Find the function, and the field of it, that hold a future."""
    for function in functions:
        for field, values in given_by_field(function).items():
            if any(value is future for value in contents(values)):
                return function, field
    raise LookupError(future.key)


class Submission:
    """A DAG and the options of its run, checked and translated.

    What the store has under the keys in `gone` is not used: it cannot be read. The functions in
    `over` are those of a run that is started again whose ends are known.

    Raises
    ------
    DAGError
        The DAG is not valid, or holds what cannot be pickled.
    """

    def __init__(
        self,
        dag: DAG,
        options: RunOptions,
        gone: frozenset[str] = frozenset(),
        over: Container[Hashable] = (),
    ) -> None:
        dag.validate()
        self.options = options
        self._gone = gone
        # The caller may add functions to it.
        self._dag = None if options.stored_in is None else copy(dag)
        functions = functions_of(dag)
        nodes = expand(functions, isolate=bool(options.isolate))
        selected = select(dag, nodes, options.results)
        wanted = set(selected)
        used = {i for node in nodes for i in node.dependencies}
        regular = [node for node in nodes if node.kind == "function"]
        # Functions whose results nobody needs run for their side effects.
        discard = frozenset(
            n.index for n in regular if n.index not in used and n.function.id not in wanted
        )
        awaited = {
            n.function.id: n.index
            for n in regular
            if (n.function.id in wanted or n.index in discard) and n.function.id not in over
        }
        stored = StoredResults.look(options.stored_in, nodes, awaited.values(), gone)
        nodes, runs = stored.without(nodes), stored.runs
        #: The nodes that run, in an order in which each comes after those that it needs.
        self.order = _dependencies_first(nodes)
        if len(runs) < len(nodes):
            self.order = [index for index in self.order if index in runs]
        run_id = uuid4().hex
        self.translator = translator = Translator(
            nodes,
            run_id,
            dag_id=dag.id,
            policy=options.policy,
            discard=discard,
            runs=self.order,
            stored=stored.places(nodes, dag.id),
        )
        self.outline = Outline(
            run_id=run_id,
            dag_id=dag.id,
            functions=functions,
            nodes=nodes,
            key=translator.key,
            wanted=selected,
            awaited={id_: index for id_, index in awaited.items() if index in runs},
            on_error=options.on_error,
            stored=stored.known(nodes, dag.id),
        )
        #: The nodes that run whose results are asked for, and those that the run waits for.
        self.awaited = frozenset(self.outline.awaited.values())
        self.wanted = self.awaited - discard
        #: Whether where some functions run depends on others: then all are sent together.
        self.whole = any(nodes[index].collocated is not None for index in self.order)
        self._piece = len(nodes) if self.whole else PIECE
        #: The packed calls of the first of them. What cannot be pickled raises here; of the others,
        #: it fails its function alone.
        self.first = {index: translator.packed(index) for index in self.order[: self._piece]}
        #: Hears of the attempts if this process logs them.
        self.log = AttemptLog(functions, options.policy) if AttemptLog.enabled() else None

    def again(self, gone: Iterable[str], over: Container[Hashable], since: float) -> Submission:
        """Return a submission of the same functions without what the store has lost.

        The ends of the functions in `over` are known. `since` is how long this one has run: the
        limit of time goes on.
        """
        assert self._dag is not None
        options = self.options
        if options.timeout is not None:
            left = max(cast("float", options.timeout) - since, 0.001)
            options = replace(options, timeout=left)
        return Submission(self._dag, options, self._gone.union(gone), over)

    @property
    def has_listeners(self) -> bool:
        """Whether the client subscribes to the events of the run."""
        return self.log is not None or self.options.on_event is not None

    def check_futures(self, client: Client | None) -> None:
        """Raise if an argument is a future whose result the run cannot have.

        `client` is the run's; None for one that no future can belong to.
        """
        for future in self.translator.futures.values():
            if client is None or future.client is not client:
                problem = (
                    "is of another client than the run: pass its result, or run the DAG with "
                    "client=future.client"
                )
            elif future.status in ("cancelled", "lost"):
                problem = f"was {future.status}: nobody has its result"
            else:
                continue
            function, field = _holder(self.outline.functions.values(), future)
            raise InvalidFunctionError(
                function.id, field, f"holds the future {future.key!r}, which {problem}"
            )

    def pins(
        self, capabilities: Mapping[str, Mapping[str, float]], names: Mapping[str, Sequence[str]]
    ) -> dict[Hashable, str]:
        """Ask the user's allocator where everything runs.

        `capabilities` and `names` are by worker address; the names are its address, name and host.
        """
        allocator = self.options.allocation_strategy
        assert isinstance(allocator, Allocator)
        nodes = map(self.outline.nodes.__getitem__, self.order)
        regular = [node.function for node in nodes if node.kind == "function"]
        answer = dict(allocator.allocate(regular, capabilities))
        for function in regular:
            if function.id not in answer:
                problem = f"{type(allocator).__name__}.allocate() returned no worker for it"
                raise AllocationError(function.id, claims(function) or {}, problem)
            if not any(str(answer[function.id]) in own for own in names.values()):
                known = sorted(name for _, name, _ in names.values())
                raise UnknownWorkerError(str(answer[function.id]), known)
        return {id_: str(worker) for id_, worker in answer.items()}

    def spec(
        self, client: str, pins: Mapping[Hashable, str] | None = None, within: Any = None
    ) -> bytes:
        """Return the description of the run, pickled.

        `client` is the id of the client, `pins` what the allocator chose, and `within` the key of
        the task that submits the run, if any.
        """
        outline, options, nodes = self.outline, self.options, self.outline.nodes
        strategy = options.allocation_strategy
        translator = self.translator
        self.rows = Rows(
            nodes,
            translator.prefixes,
            translator.policies,
            pins,
            frozenset(outline.wanted),
            outline.awaited,
            options.expected,
        )
        usual = isinstance(options.results, str) and not outline.stored.results
        in_order = None if usual else outline.wanted
        indices = {node.function.id: node.index for node in nodes if node.kind == "function"}
        return RunSpec(
            run_id=outline.run_id,
            dag_id=dag_label(outline.dag_id),
            client=client,
            kinds=self.rows.kinds(self.order),
            nodes=len(nodes),
            functions=sum(nodes[index].kind == "function" for index in self.order),
            awaited=len(outline.awaited),
            codes=self._codes(),
            isolated=next((index for index in self.order if nodes[index].isolated), None),
            running=len(self.order),
            stored=None if outline.stored.store is None else len(outline.stored.results),
            own_stored=outline.stored.packed(
                nodes[index].function for index in outline.stored.results
            ),
            learned=learned_url(),
            own_id=cloudpickle.dumps(outline.dag_id),
            strategy=strategy if isinstance(strategy, str) else "packed",
            max_concurrency=options.max_concurrency,
            placement_timeout=cast("float", options.placement_timeout),
            priority=options.priority,
            detach=options.detach,
            timeout=cast("float | None", options.timeout),
            order=None if in_order is None else tuple(map(indices.__getitem__, in_order)),
            stops_at_failure=options.on_error == "raise",
            within=within,
            events=self.has_listeners,
        ).packed()

    def _codes(self) -> dict[str, str]:
        """Return what identifies each code in other runs as well, by its name in this one."""
        codes: dict[str, str] = {}
        for index in self.order:
            prefix = self.translator.prefixes[index]
            if prefix not in codes:
                codes[prefix] = code_identity(self.outline.nodes[index].call.code)
        return codes

    def pieces(self) -> Iterator[Mapping[int, PackedCall | InvalidFunctionError]]:
        """Yield the packed calls of all nodes, piece by piece."""
        yield self.first
        self.first = {}
        for start in range(self._piece, len(self.order), PIECE):
            piece: dict[int, PackedCall | InvalidFunctionError] = {}
            with collector.paused():
                for index in self.order[start : start + PIECE]:
                    try:
                        piece[index] = self.translator.packed(index)
                    except InvalidFunctionError as error:
                        piece[index] = error
            yield piece


def _dependencies_first(nodes: Sequence[Node]) -> Sequence[int]:
    """Return the nodes in an order in which each comes after those that it needs.

    If there may be several portions, depth first: functions of a portion can travel together, so
    those that need each other should be in the same one.
    """
    in_order = all(i < node.index for node in nodes for i in node.dependencies)
    if in_order and (len(nodes) <= SMALL or not any(node.dependencies for node in nodes)):
        return range(len(nodes))
    order: list[int] = []
    missing = [len(node.dependencies) for node in nodes]
    users: dict[int, list[int]] = {}
    for node in nodes:
        for i in node.dependencies:
            users.setdefault(i, []).append(node.index)
    ready = [node.index for node in reversed(nodes) if not node.dependencies]
    while ready:
        index = ready.pop()
        order.append(index)
        for user in reversed(users.get(index, ())):
            missing[user] -= 1
            if not missing[user]:
                ready.append(user)
    return order
