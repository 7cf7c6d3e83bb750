"""The public API as type checkers see it, with either kind of client. Only they read this."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Mapping, Sequence
from datetime import timedelta

from distributed import Client

from handoff_dask import (
    DAG,
    Advice,
    Argument,
    Attempt,
    AttemptEnded,
    CodeAdvice,
    ExecutionResult,
    Explanation,
    Fetching,
    Finding,
    Function,
    FunctionPlaced,
    Plan,
    Ref,
    RetryPolicy,
    Run,
    RunClosed,
    RunExplanation,
    RunInfo,
    Unready,
    Waiting,
    collocated,
    compute,
    current,
    discover_nodes,
    execute,
    execute_local,
    explain,
    forget,
    function,
    get_result,
    get_run,
    list_runs,
    persist,
    plan,
    register_local_node,
    register_node,
    resources_available,
    submit,
    uninstall,
)
from handoff_dask.wire.run_events import Event


class FirstWorker:
    """An allocator."""

    def allocate(
        self, functions: Sequence[Function], capabilities: Mapping[str, Mapping[str, float]]
    ) -> Mapping[Hashable, str]:
        return {function.id: next(iter(capabilities)) for function in functions}


def listen(event: Event) -> None:
    if isinstance(event, FunctionPlaced):
        worker: str = event.worker
        print(worker)
    elif isinstance(event, AttemptEnded):
        attempt: Attempt = event.attempt
        print(attempt)
    elif isinstance(event, RunClosed):
        at: float = event.at
        print(at)


dag: DAG = (
    DAG("dag")
    .add_function(Function("source", [], int, extra_args=["42"], cost={"cpu": 1}, timeout=5))
    .add_function(
        Function(
            ("user", 2),
            [Argument("source", str)],
            str,
            node=collocated("source"),
            retry=RetryPolicy(max_retries=2, delay=1),
        )
    )
    .add_function(
        Function(
            "units",
            code=int,
            cost={"memory": "2 GB", "cpu": 1},
            timeout="5 min",
            node=("alice", 0),
            allow_other_workers=True,
            stored=False,
            store_key="clean-2",
            priority=0.5,
            retry=RetryPolicy(delay=timedelta(minutes=1), max_delay="1h"),
        )
    )
)


@function(cost={"cpu": 2, "memory": "2 GB"}, timeout="5 min", node=["alice", "bob"])
def clean(table: list[int], *, level: int = 1) -> list[int]:
    return table * level


table: list[int] = clean([1], level=2)
clean("text")  # type: ignore[arg-type]
function(cots=1)  # type: ignore[call-arg]
function(timeout=[1])(clean)  # type: ignore[arg-type]

built: DAG = DAG.new("built").add_function(Function("record", code=int))
ref: Ref = built.add(clean, [1, 2], level=2, cost={"cpu": 1})
refs: list[Ref] = built.map(clean, [[1], [2]], id="tables")
record: Function = DAG("other", functions=[built[ref], built["record"]])[ref.id]
ids: list[Hashable] = [id for id in built if id in dag or ref in built]
_ = ref + 1  # type: ignore[operator]
len(ref)  # type: ignore[arg-type]


def synchronous(client: Client) -> None:
    result: ExecutionResult = execute(dag, client=client, on_event=listen)
    makespan: float = execute(dag, allocation_strategy=FirstWorker()).makespan
    _ = execute(dag).makspan  # type: ignore[attr-defined]
    execute(dag, on_event="print")  # type: ignore[arg-type]
    execute(dag, results=["source"], progress=True)
    execute(dag, results=5)  # type: ignore[arg-type]
    execute(dag, on_error="ignore")  # type: ignore[arg-type]
    source: str = result["source"]
    missing: bool = "source" not in result
    local: ExecutionResult = execute_local(dag, results=["source"])
    run: Run = submit(dag, detach=True, on_event=print)
    counts: dict[str, int] = run.counts()
    attempts: tuple[Attempt, ...] = run.status()["attempts"]["source"]
    attempts = run.attempts["source"]
    for id_, value in run.as_completed(timeout=5):
        print(id_, value)
    with submit(dag) as entered:
        run = entered
    remaining: float | None = run.remaining()
    why: RunExplanation = run.explain(held=20)
    run.wait(timeout=5)
    result = run.result()
    run.wait(timedelta(minutes=5))
    execute(dag, timeout="1h", placement_timeout=timedelta(minutes=1), priority=0.5)
    register_node("worker", {"memory": "16 GB", "licence": 1})
    plan(dag, {"a": {"memory": "16 GB"}}, {"source": "1 min"}, overhead="2ms")
    same: Run = get_run("dag", client=client)
    same.cancel()
    infos: list[RunInfo] = list_runs(stopped=True)
    number: int = get_result("dag", "source")
    forget("dag")
    (total,) = compute(dag, max_retries=1)
    kept: tuple[object, ...] = persist(DAG.from_dask(total, id="total"), client=client)
    print(kept)
    explanation: Explanation = explain(dag, client=client)
    explain(dag, client)  # type: ignore[call-arg]
    discover_nodes(client)  # type: ignore[call-arg]
    uninstall(client)  # type: ignore[call-arg]
    finding: Finding = explanation["source"]
    waiting: Waiting | Unready | Fetching = why["source"]
    planned: Plan = plan(dag, discover_nodes(), result)
    planned = plan(dag, result.capabilities, result)
    advice: Advice = result.advice()
    row: CodeAdvice = advice.rows[0]
    offers: dict[str, float] = register_node("worker", {"licence": 1})
    declared: dict[str, float] = register_local_node({"licence": 1})
    free: bool = resources_available("worker", {"cpu": 1})
    uninstall(force=True)
    print(makespan, local, counts, attempts, remaining, why, infos, number, explanation, planned)
    print(
        offers, declared, free, current(), source, missing, finding, waiting, planned.timeline, row
    )


async def asynchronous(client: Client) -> None:
    result: ExecutionResult = await execute(dag, client=client, on_event=listen)
    _ = (await execute(dag)).makspan  # type: ignore[attr-defined]
    run: Run = await submit(dag, client=client, detach=True)
    counts: dict[str, int] = await run.counts()
    attempts: tuple[Attempt, ...] = (await run.status())["attempts"]["source"]
    attempts = (await run.attempts)["source"]
    async for id_, value in run.as_completed():
        print(id_, value)
    async with submit(dag) as entered:
        result = await entered
    result = await asyncio.create_task(execute(dag))
    run = await asyncio.create_task(submit(dag))
    remaining: float | None = await run.remaining()
    why: RunExplanation = await run.explain(held=20)
    await run.wait(timeout=5)
    result = await run.result()
    same: Run = await get_run("dag", client=client)
    async with get_run("dag") as entered:
        result = await entered
    await same.cancel()
    infos: list[RunInfo] = await list_runs()
    number: int = await get_result("dag", "source")
    await forget("dag")
    explanation: Explanation = await explain(dag)
    nodes: dict[str, dict[str, float]] = await discover_nodes()
    offers: dict[str, float] = await register_node("worker", {"licence": 1})
    declared: dict[str, float] = await register_local_node({"licence": 1})
    free: bool = await resources_available("worker", {"cpu": 1})
    await uninstall()
    print(result, counts, attempts, remaining, why, infos, number, explanation, nodes)
    print(offers, declared, free)
