"""What is made of a DAG before the cluster hears of it: checks, graph, specification."""

from __future__ import annotations

import pickle
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import cloudpickle
from distributed import Client, Future

from handoff_dask import pickling
from handoff_dask.client.options import Allocator, RunOptions
from handoff_dask.client.outline import Outline
from handoff_dask.client.results import select
from handoff_dask.errors import AllocationError, InvalidFunctionError, UnknownWorkerError
from handoff_dask.graph.translation import Translation, translate
from handoff_dask.model.contents import contents
from handoff_dask.model.dag import DAG
from handoff_dask.model.expansion import Node, expand
from handoff_dask.model.function import Function, given_by_field
from handoff_dask.model.retry import RetryPolicy
from handoff_dask.placement.events import Finding
from handoff_dask.wire.messages import RunSpec, allocation_error


def dag_label(dag_id: Hashable) -> str:
    """Return the name that the scheduler has for a DAG, whose id may be of the user's own type."""
    return dag_id if isinstance(dag_id, str) else repr(dag_id)


def function_label(function_id: Hashable) -> str:
    """Return the name that the scheduler has for a function."""
    return repr(function_id)


def function_rows(
    nodes: Sequence[Node],
    prefixes: Sequence[str],
    policies: Sequence[RetryPolicy] | None = None,
    pins: Mapping[Hashable, str] | None = None,
) -> tuple[tuple[Any, ...], ...]:
    """Return the fields of a ``FunctionRow`` for each node.

    Parameters
    ----------
    nodes, prefixes
        The nodes, and the names of their code.
    policies
        How each node is retried, if it is going to run.
    pins
        An allocator's word, which stands above pins and collocations of the DAG.
    """
    # One object for each distinct policy, so that it travels once.
    numbers: dict[int, RetryPolicy] = {}
    escalations: dict[int, bytes] = {}

    def terms(node: Node) -> tuple[Any, ...]:
        if policies is None:
            return ()
        policy = policies[node.index]
        if id(policy) not in numbers:
            numbers[id(policy)] = policy.numbers
            if policy.escalate is not None:
                escalations[id(policy)] = pickling.dumps(policy)
        return numbers[id(policy)], node.function.timeout, escalations.get(id(policy))

    rows = []
    for node, prefix in zip(nodes, prefixes, strict=True):
        pin, collocated = node.pin, node.collocated
        if pins and node.kind == "function":
            pin, collocated = pins[node.function.id], None
        rows.append(
            (
                prefix,
                function_label(node.function.id),
                node.cost,
                node.dependencies,
                pin,
                collocated,
                node.binds,
                node.source,
                node.target,
                *terms(node),
            )
        )
    return tuple(rows)


def _holder(functions: Iterable[Function], future: Future[Any]) -> tuple[Function, str]:
    """Find the function, and the field of it, that hold a future."""
    for function in functions:
        for field, values in given_by_field(function).items():
            if any(value is future for value in contents(values)):
                return function, field
    raise LookupError(future.key)


class Submission:
    """A DAG and the options of its run, checked and translated.

    Attributes
    ----------
    run_id : str
        Tells this run from every other on the cluster.
    nodes : list of Node
        What the DAG expands to.
    wanted : list of Hashable
        The functions whose results are asked for.
    awaited : dict
        {function id: index} of those, and of the functions that run only for what they do.
    translation : Translation
        The Dask graph.

    Raises
    ------
    DAGError
        The DAG is not valid, or holds what cannot be pickled.
    """

    def __init__(self, dag: DAG, options: RunOptions) -> None:
        dag.validate()
        self.dag_id = dag.id
        self.functions: dict[Hashable, Function] = dict(dag.functions)
        self.options = options
        self.run_id = uuid4().hex
        self.nodes = expand(self.functions)
        self.wanted = select(self.functions, self.nodes, options.results)
        wanted = set(self.wanted)
        used = {i for node in self.nodes for i in node.dependencies}
        regular = [node for node in self.nodes if node.kind == "function"]
        # Functions that nobody needs run for what they do; what they return is dropped.
        discard = frozenset(
            n.index for n in regular if n.index not in used and n.function.id not in wanted
        )
        self.awaited = {
            n.function.id: n.index for n in regular if n.function.id in wanted or n.index in discard
        }
        self.translation: Translation = translate(
            self.nodes,
            self.run_id,
            dag_id=self.dag_id,
            policy=options.policy,
            discard=discard,
        )

    def check_futures(self, client: Client | None) -> None:
        """Raise if an argument is a future whose result the run cannot have.

        Parameters
        ----------
        client
            The run's client; None for one that no future can belong to.

        Raises
        ------
        InvalidFunctionError
            It names the function and the field.
        """
        for future in self.translation.futures.values():
            if client is None or future.client is not client:
                problem = (
                    "is of another client than the run: pass its result, or run the DAG with "
                    "client=future.client"
                )
            elif future.status in ("cancelled", "lost"):
                problem = f"was {future.status}: nobody has its result"
            else:
                continue
            function, field = _holder(self.functions.values(), future)
            raise InvalidFunctionError(
                function.id, field, f"holds the future {future.key!r}, which {problem}"
            )

    @property
    def outline(self) -> Outline:
        """What it takes to follow the run."""
        return Outline(
            run_id=self.run_id,
            dag_id=self.dag_id,
            functions=self.functions,
            nodes=self.nodes,
            wanted=self.wanted,
            awaited=self.awaited,
            keys=self.translation.keys,
            on_error=self.options.on_error,
            detach=self.options.detach,
        )

    @property
    def regular(self) -> list[Function]:
        """The functions that are scheduled."""
        return [f for f in self.functions.values() if f.type == "regular"]

    def pins(
        self,
        capabilities: Mapping[str, Mapping[str, float]],
        names: Mapping[str, Sequence[str]],
    ) -> Any:
        """Ask the user's allocator where everything runs.

        Parameters
        ----------
        capabilities
            {worker address: {resource: amount}}.
        names
            {worker address: what it answers to: its address, its name, its host}.
        """
        allocator = self.options.allocation_strategy
        assert isinstance(allocator, Allocator)
        answer = dict(allocator.allocate(self.regular, capabilities))
        for function in self.regular:
            if function.id not in answer:
                raise AllocationError(
                    function.id,
                    function.cost or {},
                    f"{type(allocator).__name__}.allocate() returned no worker for it",
                )
            if not any(str(answer[function.id]) in own for own in names.values()):
                known = sorted(name for _, name, _ in names.values())
                raise UnknownWorkerError(str(answer[function.id]), known)
        return {id_: str(worker) for id_, worker in answer.items()}

    def spec(
        self, client: str, pins: Mapping[Hashable, str] | None = None, within: Any = None
    ) -> bytes:
        """Return what the scheduler's plugin is told, pickled.

        Parameters
        ----------
        client
            Id of the client.
        pins
            What the allocator chose; it overrides pins and collocations of the DAG.
        within
            Key of the task that submits it, if one does.
        """
        translation = self.translation
        rows = function_rows(self.nodes, translation.prefixes, translation.policies, pins)
        strategy = self.options.allocation_strategy
        return pickle.dumps(
            RunSpec(
                run_id=self.run_id,
                dag_id=dag_label(self.dag_id),
                own_id=cloudpickle.dumps(self.dag_id),
                outline=self.outline.packed(),
                client=client,
                rows=rows,
                strategy=strategy if isinstance(strategy, str) else "packed",
                max_concurrency=self.options.max_concurrency,
                placement_timeout=self.options.placement_timeout,
                priority=self.options.priority,
                detach=self.options.detach,
                timeout=self.options.timeout,
                wanted=frozenset(self.awaited[id_] for id_ in self.wanted),
                awaited=frozenset(self.awaited.values()),
                stops_at_failure=self.options.on_error == "raise",
                within=within,
            )
        )

    def allocation_error(self, index: int, finding: Finding) -> AllocationError:
        """Return the error for a node that no worker can hold."""
        node = self.nodes[index]
        return allocation_error(node.function.id, node.cost, finding)
